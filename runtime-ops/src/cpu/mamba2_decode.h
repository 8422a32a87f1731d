// Mamba-2, one token of one head in one pass over its state: h = a h + (d x) outer B, y = h C + D x.
#pragma once

MAMBAC_INLINE void finish_rows(const Token& t, Int p0, int count, Vec sums) {
  Vec x = v_load_n(t.x + p0, count), d = v_load_n(t.D + p0, count);
  v_store_n(t.y + p0, v_fma(d, x, sums), count);
}
MAMBAC_INLINE void scaled_inputs(const Token& t, Int p0, int count, float* out) {
  v_store(out, v_mul(t.delta, v_load_n(t.x + p0, count)));
}

// States stored as floats or halves; y comes from the value before it is rounded to its storage type. Rows are walked one
// after the other, with B and C held where the compiler can keep them in registers: a state that has left the cache moves
// at the speed of memory only while it is read in order (several rows at a time, or prefetching, cost up to 80 %).
template <class Rows, int kVectors, bool kTail>
static void step_rows(const Token& t, const typename Rows::Element* past, typename Rows::Element* present, Int p, Int n) {
  const Int vectors = kVectors > 0 ? kVectors : round16(n) / 16, whole = kTail ? vectors - 1 : vectors;
  const int tail = (int)(n - 16 * whole);
  const Vec a = t.decay;
  const float *B = t.B, *C = t.C;
  enum { kHeld = kVectors > 0 && kVectors <= 8 ? kVectors : 1 };
  Vec held_b[kHeld], held_c[kHeld];
  for (int v = 0; v < kHeld; v++) held_b[v] = v_load(B + 16 * v), held_c[v] = v_load(C + 16 * v);
  for (Int p0 = 0; p0 < p; p0 += 16) {
    const int count = rows_left(p0, p);
    float xd[16];
    Vec sums[16];
    scaled_inputs(t, p0, count, xd);
    for (int r = 0; r < count; r++) {
      const typename Rows::Element* in = past + (p0 + r) * n;
      typename Rows::Element* out = present + (p0 + r) * n;
      const Vec x = v_set(xd[r]);
      Vec sum = v_zero();
      MAMBAC_UNROLL
      for (Int v = 0; v < whole; v++) {
        const Vec b = kHeld > 1 ? held_b[v] : v_load(B + 16 * v), c = kHeld > 1 ? held_c[v] : v_load(C + 16 * v);
        Vec h = v_fma(Rows::load(in + 16 * v), a, v_mul(x, b));
        Rows::store(out + 16 * v, h);
        sum = v_fma(h, c, sum);
      }
      if (kTail) {
        Vec h = v_fma(Rows::load_n(in + 16 * whole, tail), a, v_mul(x, v_load(B + 16 * whole)));
        Rows::store_n(out + 16 * whole, h, tail);
        sum = v_fma(h, v_load(C + 16 * whole), sum);
      }
      sums[r] = sum;
    }
    for (int r = count; r < 16; r++) sums[r] = v_zero();
    finish_rows(t, p0, count, v_reduce16<v_add>(sums));
  }
}
template <class Rows>
static void step_rows_any(const Token& t, const void* past, void* present, Int p, Int n) {
  typedef typename Rows::Element E;
  const E* in = (const E*)past;
  E* out = (E*)present;
  if (n == 128)
    step_rows<Rows, 8, false>(t, in, out, p, n);
  else if (n == 64)
    step_rows<Rows, 4, false>(t, in, out, p, n);
  else if (n % 16 == 0)
    step_rows<Rows, 0, false>(t, in, out, p, n);
  else
    step_rows<Rows, 0, true>(t, in, out, p, n);
}

// Rows p0 + r .. p0 + r + kRows - 1 of a packed state into k.rows, updated; sums of h C and statistics of |h| of each.
template <class Codec, bool kMax, int kVectors, bool kTail, int kRows>
MAMBAC_INLINE void update_rows(const Packing& k, const Token& t, const uint8_t* codes, Int bytes, float* rows, Int n, Int vectors,
                               const float* xd, const float* scale, Vec* sums, Vec* statistic) {
  const Int np = 16 * vectors, whole = kTail ? vectors - 1 : vectors;
  typedef typename Codec::Decoder Decoder;
  Decoder decoder[kRows];
  Vec x[kRows], sum[kRows], stat[kRows];
  for (int r = 0; r < kRows; r++) {
    decoder[r].set(scale[r]);
    x[r] = v_set(xd[r]);
    sum[r] = stat[r] = v_zero();
  }
  const float *steps = k.step, *B = t.B, *C = t.C;
  MAMBAC_UNROLL
  for (Int v = 0; v < vectors; v++) {
    const Vec step = v_load(steps + 16 * v), b = v_load(B + 16 * v), c = v_load(C + 16 * v);
    for (int r = 0; r < kRows; r++) {
      const uint8_t* row = codes + r * bytes;
      Vec q = kTail && v == whole ? load_tail<Codec>(decoder[r], row, v, n) : Codec::load(decoder[r], row, v);
      Vec h = v_fma(q, step, v_mul(x[r], b));
      v_store(rows + r * np + 16 * v, h);
      sum[r] = v_fma(h, c, sum[r]);
      stat[r] = kMax ? v_max_abs(stat[r], h) : v_add(stat[r], v_abs(h));
      v_now(stat[r]);
    }
  }
  for (int r = 0; r < kRows; r++) {
    sums[r] = sum[r];
    statistic[r] = stat[r];
  }
}

// Packed states: unpack, update and read out 16 rows at a time, then their scales, then all codes. B and C are in vector
// order.
template <class Codec, bool kMax, int kVectors, bool kTail>
static void step_packed(Packing& k, const Token& t, const uint8_t* past, uint8_t* present, Int p, Int n) {
  const Int vectors = kVectors > 0 ? kVectors : round16(n) / 16;
  const Int np = 16 * vectors, bytes = Codec::row_bytes(n), head = p * bytes + 2 * (p + n);
  const uint8_t* sc = past + p * bytes;
  old_steps<Codec>(k, sc + 2 * p, n);
  start_packing(k, vectors, kMax && Codec::kGroup > 1);
  for (Int p0 = 0; p0 < p; p0 += 16) {
    const int count = rows_left(p0, p);
    const uint8_t* codes = past + p0 * bytes;
    float* rows = k.rows + p0 * np;
    float xd[16], scale[16];
    Vec sums[16], statistic[16];
    scaled_inputs(t, p0, count, xd);
    v_store(scale, v_mul(t.decay, halves_at(sc + 2 * p0, count)));
    int r = 0;
    for (; r + kStepRows <= count; r += kStepRows) {
      for (Int i = 0; i < kStepRows * bytes; i += 64) MAMBAC_PREFETCH(codes + head + r * bytes + i);  // the next head's
      update_rows<Codec, kMax, kVectors, kTail, kStepRows>(k, t, codes + r * bytes, bytes, rows + r * np, n, vectors,
                                                           xd + r, scale + r, sums + r, statistic + r);
    }
    for (; r < count; r++)
      update_rows<Codec, kMax, kVectors, kTail, 1>(k, t, codes + r * bytes, bytes, rows + r * np, n, vectors, xd + r,
                                                   scale + r, sums + r, statistic + r);
    for (; r < 16; r++) sums[r] = statistic[r] = v_zero();
    finish_rows(t, p0, count, v_reduce16<v_add>(sums));
    channel_scales<kMax>(k, p0, count, kMax ? v_reduce16<v_max>(statistic) : v_reduce16<v_add>(statistic), (float)n);
    // One block late, so that its work hides the latency of the sums, root and division above.
    if (p0 > 0) column_maxima<kVectors>(k, k.rows + (p0 - 16) * np, p0 - 16, 16, vectors);
  }
  const Int last = (p - 1) & ~(Int)15;
  column_maxima<kVectors>(k, k.rows + last * np, last, (int)(p - last), vectors);
  finish_packing<Codec, kVectors>(k, present, p, n);
}

// What a head's state is in units of its old steps: h = unit_p step_n g with g = code + input_p gain_n, and y = unit_p sum g
// weight_n. One multiplication a value less than with h itself.
struct Folded {
  const float *gain, *weight;  // B / step, C * step, in vector order
};

// Rows of k.rows from old codes, in the units of Folded; sums of g weight, and statistics of step |g|, of each.
template <class Codec, bool kMax, int kVectors, int kRows>
MAMBAC_INLINE void fold_rows(const float* steps, const Folded& f, const uint8_t* codes, Int bytes, float* rows, const float* input,
                             Vec* sums, Vec* statistic) {
  Vec x[kRows], sum[kRows], stat[kRows];
  for (int r = 0; r < kRows; r++) {
    x[r] = v_set(input[r]);
    sum[r] = stat[r] = v_zero();
  }
  MAMBAC_UNROLL
  for (Int v = 0; v < kVectors; v++) {
    const Vec step = v_load(steps + 16 * v), b = v_load(f.gain + 16 * v), c = v_load(f.weight + 16 * v);
    for (int r = 0; r < kRows; r++) {
      const Vec g = v_fma(x[r], b, Codec::codes(codes + r * bytes, v));
      v_store(rows + 16 * (r * kVectors + v), g);
      sum[r] = v_fma(g, c, sum[r]);
      stat[r] = kMax ? v_max_abs(stat[r], v_mul(g, step)) : v_fma(v_abs(g), step, stat[r]);
      v_now(stat[r]);
    }
  }
  for (int r = 0; r < kRows; r++) {
    sums[r] = sum[r];
    statistic[r] = stat[r];
  }
}

// Units of rows into k.units and of columns into k.step, and what Folded and its inputs hold. False where a unit is so small
// or an input so large that the state in such units might leave the range of floats; a step of zero is no unit at all.
template <class Codec, int kVectors>
MAMBAC_INLINE bool fold(Packing& k, const Token& t, const uint8_t* scales, Int p, float* gain, float* weight, float* input) {
  constexpr int kTogether = Codec::kGroup == 8 ? 8 : 1;
  const Vec limit = v_set((float)Codec::kLimit), share = v_set(1.0f / (float)Codec::kLimit);
  const float *B = kTogether == 8 ? t.ordered_b : t.B, *C = kTogether == 8 ? t.ordered_c : t.C;
  float *steps = k.step, *units = k.units;
  Vec low = v_set(1.0f), high = v_zero(), most = v_zero();
  for (int v = 0; v < kVectors; v += kTogether) {
    Vec ss[kTogether];
    load_scales<Codec>(scales + 2 * (p + 16 * v), ss);
    for (int i = 0; i < kTogether; i++) {
      const int at = 16 * (v + i);
      const Vec b = v_div(v_mul(limit, v_load(B + at)), ss[i]), step = v_mul(ss[i], share);
      low = v_min(low, ss[i]);
      high = v_max(high, ss[i]);
      most = v_max_abs(most, b);
      v_store(steps + at, step);
      v_store(gain + at, b);
      v_store(weight + at, v_mul(v_load(C + at), step));
    }
  }
  for (Int i = 0; i < p; i += 16) {
    const Vec unit = v_mul(t.decay, h_widen(h_load(scales + 2 * i))), x = v_div(v_mul(t.delta, v_load(t.x + i)), unit);
    low = v_min(low, unit);
    high = v_max(high, unit);
    most = v_max_abs(most, x);
    v_store(units + i, unit);
    v_store(input + i, x);
  }
  return !v_any_above(v_set(0x1p-60f), low, 16) && !v_any_above(high, v_set(65504.0f), 16) && !v_any_above(most, v_set(0x1p36f), 16);
}

// y, and channel scales, of 16 rows from what fold_rows gave. Units of rows lie in k.units.
MAMBAC_INLINE void fold_outputs(Packing& k, const Token& t, Int p0, const Vec* sums) {
  const Vec sum = v_reduce16<v_add>(sums);
  k.wild |= v_any_above(sum, v_set(INFINITY), 16);  // NaN, which a maximum does not show
  finish_rows(t, p0, 16, v_mul(v_load(k.units + p0), sum));
}
template <bool kMax>
MAMBAC_INLINE void fold_scales(Packing& k, Int p0, const Vec* statistic, float n) {
  const Vec size = kMax ? v_reduce16<v_max>(statistic) : v_reduce16<v_add>(statistic), unit = v_load(k.units + p0);
  channel_scales<kMax>(k, p0, 16, v_mul(unit, size), n);
  v_store(k.inverse + p0, v_mul(unit, v_load(k.inverse + p0)));
}

// step_packed for whole vectors of rows and columns, in units of the old steps. False: the state is as it was, and nobody
// has such units: a column without values, as all are at the first token, or a decay down to nothing.
template <class Codec, bool kMax, int kVectors>
static bool step_folded(Packing k, float* order, const Token& t, const uint8_t* past, uint8_t* present, Int p) {
  const Int n = 16 * kVectors, bytes = Codec::row_bytes(n), head = p * bytes + 2 * (p + n);
  float *gain = order, *weight = order + n, *input = order + 2 * n;
  k.units = input + round16(p);
  if (p % 16 != 0 || !fold<Codec, kVectors>(k, t, past + p * bytes, p, gain, weight, input)) return false;
  const Folded f = {gain, weight};
  k.sc = (uint16_t*)(present + p * bytes);
  k.ss = k.sc + p;
  start_packing(k, kVectors, false);
  Vec sums[16], statistic[16];
  for (Int p0 = 0; p0 < p; p0 += 16) {
    const uint8_t* codes = past + p0 * bytes;
    for (int r = 0; r < 16; r += kFoldRows) {
      for (Int i = 0; i < kFoldRows * bytes; i += 64) MAMBAC_PREFETCH(codes + head + r * bytes + i);  // the next head's
      fold_rows<Codec, kMax, kVectors, kFoldRows>(k.step, f, codes + r * bytes, bytes, k.rows + (p0 + r) * n, input + p0 + r, sums + r,
                                                  statistic + r);
    }
    fold_outputs(k, t, p0, sums);
    fold_scales<kMax>(k, p0, statistic, (float)n);
    // One block late, so that its work hides the latency of the sums, root and division above.
    if (p0 > 0) column_maxima<kVectors>(k, k.rows + (p0 - 16) * n, p0 - 16, 16, kVectors);
  }
  column_maxima<kVectors>(k, k.rows + (p - 16) * n, p - 16, 16, kVectors);
  finish_packing<Codec, kVectors, true>(k, present, p, n);
  return true;
}

// One token of a packed head. `order` has room for B and C in vector order.
template <class Codec, bool kMax, int kVectors, bool kTail>
MAMBAC_INLINE void step_ordered(Packing& k, float* order, Token t, const uint8_t* past, uint8_t* present, Int p, Int n) {
  float *b = order, *c = order + round16(n);
  to_vector_order<Codec>(b, t.B, n);
  to_vector_order<Codec>(c, t.C, n);
  t.B = b;
  t.C = c;
  step_packed<Codec, kMax, kVectors, kTail>(k, t, past, present, p, n);
}
// `Whole` serves rows of whole groups of its vectors with 64 or 128 columns, `Plain` all others.
template <class Whole, class Plain, bool kMax>
MAMBAC_INLINE void step_plain(Packing& k, float* order, const Token& t, const uint8_t* past, uint8_t* present, Int p, Int n) {
  if (n == 128 && step_folded<Whole, kMax, 8>(k, order, t, past, present, p)) return;
  if (n == 64 && step_folded<Whole, kMax, 4>(k, order, t, past, present, p)) return;
  if (n % 16 == 0)
    step_ordered<Plain, kMax, 0, false>(k, order, t, past, present, p, n);
  else
    step_ordered<Plain, kMax, 0, true>(k, order, t, past, present, p, n);
}
template <bool kMax>
MAMBAC_INLINE void step_i4(Packing& k, float* order, const Token& t, const uint8_t* past, uint8_t* present, Int p, Int n) {
  if (n == 128 && step_folded<StridedI4, kMax, 8>(k, order, t, past, present, p)) return;
  if (n % 128 == 0)
    step_ordered<StridedI4, kMax, 0, false>(k, order, t, past, present, p, n);
  else
    step_plain<PlainI4, PlainI4, kMax>(k, order, t, past, present, p, n);
}
MAMBAC_INLINE void step_packed_any(const ScanArgs& s, Packing& k, float* order, const Token& t, const void* past, void* present) {
  const uint8_t* in = (const uint8_t*)past;
  uint8_t* out = (uint8_t*)present;
  const Int p = s.head_dim, n = s.d_state;
  if (s.format == Format::kH8) {
    if (s.max_norm)
      step_plain<BlockI8, PlainI8, true>(k, order, t, in, out, p, n);
    else
      step_plain<BlockI8, PlainI8, false>(k, order, t, in, out, p, n);
  } else {
    if (s.max_norm)
      step_i4<true>(k, order, t, in, out, p, n);
    else
      step_i4<false>(k, order, t, in, out, p, n);
  }
}
