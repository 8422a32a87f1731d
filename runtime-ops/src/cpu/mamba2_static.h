// Mamba-2 with packed states whose steps are given: that of row p and column n is row_step[p] * column_step[n].
//
// One token is one pass over the codes, because the state is kept in units of its step, g = h / step:
//   g = a q + (d x_p / row_p) (B_n / column_n),   y_p = row_p sum_n g (C_n column_n) + D x_p,
// and the new codes are g rounded. What has n in it is the same for all heads of a group and worked out once a token.
#pragma once

// 1 / step, or 0 where the step is not positive: such rows and columns stay zero.
MAMBAC_INLINE Vec static_inverse(Vec step) { return v_if_gt0(step, v_div(v_set(1.0f), step)); }

// Where a sequence's preparation keeps its parts: step sizes, decays, then the groups.
MAMBAC_INLINE float* static_part(const ScanArgs& a, Int b) { return a.prepared + b * static_prepared_floats(a); }
MAMBAC_INLINE bool static_fixed(const ScanArgs& a) { return a.format == Format::kH4 && a.d_state % 128 == 0; }
MAMBAC_INLINE StaticGroup static_group(const ScanArgs& a, Int b, Int g) {
  const float* at = static_part(a, b) + 2 * round16(a.heads) + g * static_group_floats(a);
  const Int n = a.d_state, whole = (n + 127) / 128 * 128;
  StaticGroup k = {at[0], at[1], at[2], at[3], at + kStaticScalars, at + kStaticScalars + whole, nullptr, nullptr};
  k.planes = (const DotPlanes*)(at + kStaticScalars + 2 * whole);
  k.ordered = (const int16_t*)(k.planes + n / 128);
  return k;
}

// The token a.token of one sequence.
template <class Row>
static void static_prepare(const ScanArgs& a, int64_t sequence) {
  const Int b = sequence, n = a.d_state, token = b * a.length + a.token;
  float *deltas = static_part(a, b), *decays = deltas + round16(a.heads);
  for (Int h = 0; h < a.heads; h += 16) {
    const int some = rows_left(h, a.heads);
    const Vec delta = v_delta(v_load_n(a.dt + token * a.heads + h, some), v_load_n(a.dt_bias + h, some), a.dt_min, a.dt_max);
    v_store(deltas + h, delta);
    v_store(decays + h, v_exp(v_mul(delta, v_load_n(a.A + h, some))));
  }
  for (Int g = 0; g < a.groups; g++) {
    const StaticGroup k = static_group(a, b, g);
    float *vb = (float*)k.b, *vc = (float*)k.c, *scalars = vb - kStaticScalars;
    const float *B = a.B + (token * a.groups + g) * n, *C = a.C + (token * a.groups + g) * n, *column = a.column_step + g * n;
    Vec top = v_zero(), product = v_zero(), finite = v_zero();
    for (Int i = 0; i < n; i += 16) {
      const int some = rows_left(i, n);
      const Vec step = v_load_n(column + i, some), bi = v_load_n(B + i, some), ci = v_load_n(C + i, some);
      const Vec scaled = v_mul(bi, static_inverse(step));
      v_store(vb + i, scaled);
      v_store(vc + i, v_mul(ci, step));
      top = v_max_abs(top, scaled);
      finite = v_fma(bi, v_zero(), finite);
      product = v_fma(bi, ci, product);
    }
    Vec products[16];
    for (int i = 0; i < 16; i++) products[i] = product;
    float sums[16];
    v_store(sums, v_reduce16<v_add>(products));
    scalars[0] = v_any_above(finite, v_zero(), 16) ? NAN : fixed_top(top);  // a maximum leaves NaN out
    scalars[1] = sums[0];
    scalars[2] = scalars[3] = 0;
    if (!static_fixed(a) || !(scalars[0] > 1e-20f && scalars[0] < 1e20f)) continue;
    scalars[2] = make_planes((DotPlanes*)k.planes, vc, n);
    scalars[3] = 32767.0f / scalars[0];
    for (Int i = 0; i < n; i += 128) {
      int16_t natural[128];
      for (Int j = 0; j < 128; j += 16) fixed_store(natural + j, v_mul(v_load(vb + i + j), v_set(scalars[3])));
      Row::order((int16_t*)k.ordered + i, natural);
    }
  }
}

// Sixteen rows at a time; `kWild` where products may leave the range that conversion to integers has. B and C in vector order.
template <class Codec, int kVectors, bool kTail, bool kWild>
MAMBAC_INLINE void static_rows(const StaticHead& s, const float* B, const float* C, const uint8_t* past, uint8_t* present) {
  const Int p = s.p, n = s.n;
  const Int vectors = kVectors > 0 ? kVectors : round16(n) / 16, whole = kTail ? vectors - 1 : vectors, bytes = Codec::row_bytes(n);
  const Vec top = v_set((float)Codec::kLimit), bottom = v_set(-(float)Codec::kLimit), delta = v_set(s.delta);
  typename Codec::Decoder decoder;
  decoder.set(s.decay);
  enum { kHeld = kVectors > 0 && kVectors <= 8 ? kVectors : 1 };
  Vec held_b[kHeld], held_c[kHeld];
  for (int v = 0; v < kHeld; v++) held_b[v] = v_load(B + 16 * v), held_c[v] = v_load(C + 16 * v);
  for (Int p0 = 0; p0 < p; p0 += 16) {
    const int count = rows_left(p0, p);
    float fed[16];
    Vec sums[16];
    v_store(fed, v_mul(v_mul(delta, v_load_n(s.x + p0, count)), v_load(s.per_row + p0)));
    for (int r = 0; r < count; r++) {
      const uint8_t* in = past + (p0 + r) * bytes;
      uint8_t* out = present + (p0 + r) * bytes;
      const Vec x = v_set(fed[r]);
      Vec sum = v_zero();
      for (Int i = 0; i < bytes; i += 64) MAMBAC_PREFETCH(in + kStaticAhead + i);
      MAMBAC_UNROLL
      for (Int v = 0; v < whole; v += Codec::kGroup) {
        Vec g[Codec::kGroup];
        for (int i = 0; i < Codec::kGroup; i++) {
          const Vec b = kHeld > 1 ? held_b[v + i] : v_load(B + 16 * (v + i)), c = kHeld > 1 ? held_c[v + i] : v_load(C + 16 * (v + i));
          g[i] = v_fma(x, b, Codec::load(decoder, in, v + i));
          sum = v_fma(g[i], c, sum);
          if (kWild) g[i] = v_min(top, v_max(bottom, g[i]));
        }
        Codec::store(out, v, g);
      }
      if (kTail) {
        Vec g[Codec::kGroup];
        g[0] = v_fma(x, v_load(B + 16 * whole), load_tail<Codec>(decoder, in, whole, n));
        sum = v_fma(g[0], v_load(C + 16 * whole), sum);
        if (kWild) g[0] = v_min(top, v_max(bottom, g[0]));
        store_tail<Codec>(out, whole, n, g);
      }
      sums[r] = sum;
    }
    for (int r = count; r < 16; r++) sums[r] = v_zero();
    const Vec skip = v_mul(v_load_n(s.D + p0, count), v_load_n(s.x + p0, count));
    v_store_n(s.y + p0, v_fma(v_load_n(s.row + p0, count), v_reduce16<v_add>(sums), skip), count);
  }
}

// Row: the instruction set's FixedRow.
template <class Row, class Codec, int kVectors, bool kTail>
MAMBAC_APART void static_head(const StaticHead& s, const StaticGroup& k, float most, const uint8_t* past, uint8_t* present, Carve c) {
  const float *B = k.b, *C = k.c;
  if (Codec::kGroup == 8) {
    if (fixed_token<Row, Row::kSingle ? kVectors / 8 : 0>(s, k, most, past, present, c)) return;
    float *vb = c.take(s.n), *vc = c.take(s.n);
    to_vector_order<Codec>(vb, B, s.n);
    to_vector_order<Codec>(vc, C, s.n);
    B = vb;
    C = vc;
  }
  if (most * k.largest < 0x1p29f)
    static_rows<Codec, kVectors, kTail, false>(s, B, C, past, present);
  else
    static_rows<Codec, kVectors, kTail, true>(s, B, C, past, present);
}
template <class Row, class Whole, class Plain>
MAMBAC_INLINE void static_plain(const StaticHead& s, const StaticGroup& k, float most, const uint8_t* past, uint8_t* present, Carve c) {
  if (s.n == 128)
    static_head<Row, Whole, 8, false>(s, k, most, past, present, c);
  else if (s.n == 64)
    static_head<Row, Whole, 4, false>(s, k, most, past, present, c);
  else if (s.n % 16 == 0)
    static_head<Row, Plain, 0, false>(s, k, most, past, present, c);
  else
    static_head<Row, Plain, 0, true>(s, k, most, past, present, c);
}

// The token a.token of one head.
template <class Row>
static void static_token(const ScanArgs& a, int64_t task, void* scratch) {
  const Int b = task / a.heads, h = task % a.heads, p = a.head_dim, n = a.d_state, bytes = code_bytes(a.format, p, n);
  const Int at = ((b * a.length + a.token) * a.heads + h) * p;
  const float* shared = static_part(a, b);
  Carve c(scratch);
  float* per_row = c.take(p);
  const StaticHead s = {p, n, shared[h], shared[round16(a.heads) + h], a.row_step + h * p, per_row, a.x + at, a.D + h * p, a.y + at};
  const StaticGroup k = static_group(a, b, a.groups == 1 ? 0 : h / (a.heads / a.groups));
  for (Int i = p; i < 2 * p; i += 16) {  // the next head's operands; its codes are fetched row by row
    MAMBAC_PREFETCH_READ(s.row + i);
    MAMBAC_PREFETCH_READ(s.x + i);
    MAMBAC_PREFETCH_READ(s.D + i);
    MAMBAC_PREFETCH(s.y + i);
  }
  Vec top = v_zero(), finite = v_zero();
  for (Int i = 0; i < p; i += 16) {
    const int some = rows_left(i, p);
    const Vec dx = v_mul(v_set(s.delta), v_load_n(s.x + i, some)), inverse = static_inverse(v_load_n(s.row + i, some));
    v_store(per_row + i, inverse);
    top = v_max_abs(top, v_mul(dx, inverse));
    finite = v_fma(dx, v_zero(), finite);
  }
  const float most = v_any_above(finite, v_zero(), 16) ? NAN : fixed_top(top);
  const uint8_t* past = (const uint8_t*)a.past + task * bytes;
  uint8_t* present = (uint8_t*)a.present + task * bytes;
  if (a.format == Format::kH8)
    static_plain<Row, BlockI8, PlainI8>(s, k, most, past, present, c);
  else if (n == 128)
    static_head<Row, StridedI4, 8, false>(s, k, most, past, present, c);
  else if (n % 128 == 0)
    static_head<Row, StridedI4, 0, false>(s, k, most, past, present, c);
  else
    static_plain<Row, PlainI4, PlainI4>(s, k, most, past, present, c);
}

// Many tokens of one head, rounded at the end: the state is turned around and kept in float32 as that of any format.
template <class Codec>
static void static_tokens(const ScanArgs& a, Int b, Int h, const uint8_t* past, uint8_t* present, Carve c) {
  const Int p = a.head_dim, n = a.d_state, np = round16(n), pp = round16(p), vectors = np / 16, whole = n / 16, bytes = Codec::row_bytes(n);
  const float *row = a.row_step + h * p, *column = a.column_step + h / (a.heads / a.groups) * n;
  Packing k(c, p, np);
  float* state = c.take(np * pp);
  Block block(c, pp);
  to_vector_order<Codec>(k.step, column, n);
  for (Int i = 0; i < np; i += 16) v_store(k.ratio + i, static_inverse(v_load(k.step + i)));
  for (Int i = 0; i < p; i += 16) v_store(k.inverse + i, static_inverse(v_load_n(row + i, rows_left(i, p))));
  for (Int r = 0; r < p; r++) {
    const uint8_t* codes = past + r * bytes;
    float* out = k.rows + r * np;
    typename Codec::Decoder decoder;
    decoder.set(row[r]);
    for (Int v = 0; v < vectors; v++) {
      const Vec q = v < whole ? Codec::load(decoder, codes, v) : load_tail<Codec>(decoder, codes, v, n);
      v_store(out + 16 * v, v_mul(q, v_load(k.step + 16 * v)));
    }
  }
  transpose_in<F32Rows>(k.rows, np, state, pp, p, n);
  float running = 1.0f;
  for (Int t0 = 0; t0 < a.length; t0 += kBlockTokens) {
    block.tokens = (int)(a.length - t0 < kBlockTokens ? a.length - t0 : kBlockTokens);
    run_block(a, block, state, b, h, t0, &running);
  }
  transpose_out<F32Rows>(k.rows, np, state, pp, p, n, running, true);
  write_codes<Codec, 0, true>(k, present, p, n);
}
static void static_prefill(const ScanArgs& a, int64_t task, void* scratch) {
  const Int b = task / a.heads, h = task % a.heads, bytes = code_bytes(a.format, a.head_dim, a.d_state);
  const uint8_t* past = (const uint8_t*)a.past + task * bytes;
  uint8_t* present = (uint8_t*)a.present + task * bytes;
  if (a.format == Format::kH8)
    static_tokens<PlainI8>(a, b, h, past, present, Carve(scratch));
  else
    static_tokens<PlainI4>(a, b, h, past, present, Carve(scratch));
}
