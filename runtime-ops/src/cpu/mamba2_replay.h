// Mamba-2 with a replayed state: a packed checkpoint and the tokens since then (layout and rule: README.md).
//
// One token reads the codes once and writes one slot of each ring: with w_j the decay from token j to the new one,
//   y = w Sc_p sum_n q (step_n C_n) + sum_j w_j (b_j C) u_j + D x,
// and b_j C is the same for every head of a group, so it is worked out beforehand. Only when the rings are full is the state
// itself made: h = w decoded(checkpoint) + sum_j w_j u_j outer b_j.
#pragma once

// What belongs to one head alone; b and the count are shared and written by replay_finish.
struct ReplayHead {
  uint8_t *packed, *u, *l;
};

MAMBAC_INLINE HalfVec rounded_input(Vec v) { return h_round(v_min(v_set(65504.0f), v_max(v_set(-65504.0f), v))); }  // NaN passes
MAMBAC_INLINE void halves_to(uint8_t* p, HalfVec v, int count) {
  if (count == 16) {
    h_store((uint16_t*)p, v);
    return;
  }
  uint16_t t[16];
  h_store(t, v);
  memcpy(p, t, (size_t)(2 * count));
}
MAMBAC_INLINE float float_at(const uint8_t* p) {
  float f;
  memcpy(&f, p, sizeof f);
  return f;
}
MAMBAC_INLINE const uint8_t* ring_of(const ScanArgs& a, const ReplayLayout& at, Int b, Int group) {
  return (const uint8_t*)a.past + b * at.bytes + at.b + 2 * group * a.replay * a.d_state;
}

// d and the decay's logarithm d * A of tokens t0 .. t0 + n - 1 of head h; n <= 16.
MAMBAC_INLINE void replay_deltas(const ScanArgs& a, Int b, Int h, Int t0, int n, Vec* delta, Vec* rate) {
  Vec decay;
  mamba2_deltas(a, b, h, t0, n, delta, &decay);
  *rate = v_mul(*delta, v_set(a.A[h]));
}

// What is worked out for all heads of a sequence at once, one token: rows of round16(heads) numbers, a head in each lane.
struct ReplayShared {
  Int heads;  // numbers in a row
  float *delta, *rate;
  float* weights;  // rows of what the tokens in the ring count, the new one, and the checkpoint
  float* gains;    // rows of what u of a token counts in y: its weight times C b
  float* b;        // [groups, R, round16(N)]: b of all tokens in vector order, where the state is rounded now
  MAMBAC_MEMBER ReplayShared(const ScanArgs& a, Int b)
      : heads(round16(a.heads)), delta(a.steps + b * replay_step_floats(a)), rate(delta + heads), weights(rate + heads),
        gains(weights + (a.replay + 1) * heads), b(gains + a.replay * heads) {}
};

// Weights and gains of heads h .. h + 15 from their logarithms: the new token's is 0, an older one's the rates of all tokens
// behind it; the checkpoint's last. l: rings of these heads.
static void replay_weights(const ScanArgs& a, const ReplayShared& k, Int b, Int h, int count, const uint8_t* l) {
  const int some = rows_left(h, a.heads);
  const Int r = a.replay;
  for (int j0 = 0; j0 < count; j0 += 16) {
    Vec rows[16];
    for (int i = 0; i < 16; i++) {
      float t[16] = {0};
      if (i < some && j0 + 16 <= r)
        memcpy(t, l + 4 * (i * r + j0), sizeof t);
      else if (i < some)
        memcpy(t, l + 4 * (i * r + j0), (size_t)(4 * (r - j0)));
      rows[i] = v_load(t);
    }
    v_transpose16(rows);
    for (int j = 0; j < 16 && j0 + j < count; j++) v_store(k.weights + (j0 + j) * k.heads + h, rows[j]);
  }
  const float* dots = a.dots + b * a.groups * r;
  Int groups[16] = {0};
  for (int i = 0; i < some && a.groups > 1; i++) groups[i] = (h + i) / (a.heads / a.groups);
  Vec sum = v_zero();
  for (int j = count; j >= 0; j--) {
    float* at = k.weights + j * k.heads + h;
    const Vec next = v_load(j < count ? at : k.rate + h), w = v_exp(sum);
    float each[16];
    for (int i = 0; i < 16 && a.groups > 1; i++) each[i] = dots[groups[i] * r + j];
    v_store(at, w);
    v_store(k.gains + j * k.heads + h, v_mul(w, a.groups > 1 ? v_load(each) : v_set(dots[j])));
    sum = v_add(sum, next);
  }
  v_store(k.weights + (count + 1) * k.heads + h, v_exp(sum));
}

// b of all R tokens of group g, of which the last is in B and the others are in the ring.
template <class Codec>
static void replay_columns(const uint8_t* ring, const float* B, Int tokens, Int n, float* out) {
  const Int np = round16(n);
  for (Int j = 0; j < tokens; j++) {
    for (Int i0 = 0; i0 < n; i0 += 128) {  // whole 128s where the order of vectors is not that of columns
      alignas(64) float plain[128];
      const Int most = n - i0 < 128 ? n - i0 : 128;
      for (Int i = 0; i < most; i += 16) {
        const int width = rows_left(i, most);
        v_store(plain + i, j + 1 < tokens ? halves_at(ring + 2 * (j * n + i0 + i), width) : h_widen(rounded_input(v_load_n(B + i0 + i, width))));
      }
      to_vector_order<Codec>(out + j * np + i0, plain, most);
    }
  }
}

// The counts of past and, for one token, what heads share: C against every b of the ring and the new one; step sizes and
// weights of all heads.
static void replay_prepare(const ScanArgs& a, int64_t b) {
  const ReplayLayout at = replay_layout(a);
  const Int n = a.d_state, groups = a.groups;
  uint32_t count;
  memcpy(&count, (const uint8_t*)a.past + b * at.bytes + at.count, sizeof count);
  a.counts[b] = (int32_t)count;
  if (a.length != 1) return;
  for (Int g = 0; g < groups; g++) {
    const uint8_t* ring = ring_of(a, at, b, g);
    const float *B = a.B + (b * groups + g) * n, *C = a.C + (b * groups + g) * n;
    float* dots = a.dots + (b * groups + g) * a.replay;
    const int all = (int)count + 1;
    for (int j0 = 0; j0 < all; j0 += 16) {
      const int some = rows_left(j0, all);
      Vec sums[16];
      for (int j = 0; j < 16; j++) {
        Vec sum = v_zero();
        for (Int i = 0; j < some && i < n; i += 16) {
          const int width = rows_left(i, n);
          const Vec v = j0 + j < (int)count ? halves_at(ring + 2 * ((j0 + j) * n + i), width) : h_widen(rounded_input(v_load_n(B + i, width)));
          sum = v_fma(v, v_load_n(C + i, width), sum);
        }
        sums[j] = sum;
      }
      v_store_n(dots + j0, v_reduce16<v_add>(sums), some);
    }
  }
  const ReplayShared k(a, b);
  for (Int g = 0; g < groups && (Int)count + 1 == a.replay; g++) {
    const float* B = a.B + (b * groups + g) * n;
    float* out = k.b + g * a.replay * round16(n);
    if (a.format == Format::kH4 && n % 128 == 0)
      replay_columns<StridedI4>(ring_of(a, at, b, g), B, a.replay, n, out);
    else
      replay_columns<PlainI8>(ring_of(a, at, b, g), B, a.replay, n, out);
  }
  for (Int h = 0; h < a.heads; h += 16) {
    const int some = rows_left(h, a.heads);
    const Vec delta = v_delta(v_load_n(a.dt + b * a.heads + h, some), v_load_n(a.dt_bias + h, some), a.dt_min, a.dt_max);
    v_store(k.delta + h, delta);
    v_store(k.rate + h, v_mul(delta, v_load_n(a.A + h, some)));
    replay_weights(a, k, b, h, (int)count, (const uint8_t*)a.past + b * at.bytes + at.l + 4 * h * a.replay);
  }
}

// b and the count of a sequence after the call.
static void replay_finish(const ScanArgs& a, int64_t b) {
  const ReplayLayout at = replay_layout(a);
  const Int n = a.d_state, r = a.replay, groups = a.groups, count = a.counts[b], all = count + a.length, after = all % r;
  const uint8_t* past = (const uint8_t*)a.past + b * at.bytes;
  uint8_t* present = (uint8_t*)a.present + b * at.bytes;
  const Int kept = all < r ? count : 0, fresh = after - kept;  // slots that stay, tokens of this call in the slots behind them
  for (Int g = 0; g < groups; g++) {
    uint8_t* ring = present + at.b + 2 * g * r * n;
    if (past != present) memcpy(ring, past + at.b + 2 * g * r * n, (size_t)(2 * kept * n));
    for (Int j = 0; j < fresh; j++) {
      const float* B = a.B + ((b * a.length + a.length - fresh + j) * groups + g) * n;
      for (Int i = 0; i < n; i += 16) {
        const int width = rows_left(i, n);
        halves_to(ring + 2 * ((kept + j) * n + i), rounded_input(v_load_n(B + i, width)), width);
      }
    }
    if (past != present || all >= r) memset(ring + 2 * after * n, 0, (size_t)(2 * (r - after) * n));
  }
  const uint32_t stored = (uint32_t)after;
  memcpy(present + at.count, &stored, sizeof stored);
  memset(present + at.count + 4, 0, (size_t)(at.bytes - at.count - 4));
}

// sum_n q C_n of rows 0 .. count - 1 of a packed head, from C in vector order and times the steps.
template <class Codec, int kVectors, bool kTail>
MAMBAC_INLINE void read_rows(const float* C, const uint8_t* codes, Int bytes, Int n, Int vectors, int count, Vec* sums) {
  const Int whole = kTail ? vectors - 1 : vectors;
  enum { kHeld = kVectors > 0 && kVectors <= 8 ? kVectors : 1 };
  typename Codec::Decoder decoder;
  decoder.set(1.0f);
  Vec held[kHeld];
  for (int v = 0; v < kHeld; v++) held[v] = v_load(C + 16 * v);
  for (int r = 0; r < count; r++) {
    const uint8_t* row = codes + r * bytes;
    Vec sum = v_zero();
    MAMBAC_UNROLL
    for (Int v = 0; v < whole; v++) sum = v_fma(Codec::load(decoder, row, v), kHeld > 1 ? held[v] : v_load(C + 16 * v), sum);
    if (kTail) sum = v_fma(load_tail<Codec>(decoder, row, whole, n), v_load(C + 16 * whole), sum);
    sums[r] = sum;
  }
  for (int r = count; r < 16; r++) sums[r] = v_zero();
}

// sum_j gains_j u_j of channels p0 .. p0 + 16 kWide - 1, of which the last vector has `some`, over the tokens in the ring; gains lie `apart`.
template <int kWide>
MAMBAC_INLINE void ring_sums(const uint8_t* u, Int p, Int p0, int some, int count, const float* gains, Int apart, float* out) {
  Vec sum[kWide];
  for (int v = 0; v < kWide; v++) sum[v] = v_zero();
  for (int j = 0; j < count; j++) {
    const Vec gain = v_set(gains[j * apart]);
    for (int v = 0; v < kWide; v++)
      sum[v] = v_fma(gain, halves_at(u + 2 * (j * p + p0 + 16 * v), v + 1 < kWide ? 16 : some), sum[v]);
  }
  for (int v = 0; v < kWide; v++) v_store(out + p0 + 16 * v, sum[v]);
}

// Rows p .. p + kRows - 1, vectors v .. v + kWide - 1 of the state that the checkpoint and `tokens` tokens make.
template <class Codec, bool kMax, int kRows, int kWide, bool kTail>
MAMBAC_INLINE void rebuild_tile(const Packing& k, const uint8_t* codes, Int bytes, const float* scale, const float* fed, Int pp,
                                const float* b, Int np, int tokens, float* rows, Int v0, Int n, Vec* statistic) {
  Vec h[kRows][kWide];
  for (int r = 0; r < kRows; r++) {
    typename Codec::Decoder decoder;
    decoder.set(scale[r]);
    for (int v = 0; v < kWide; v++) {
      const uint8_t* row = codes + r * bytes;
      const Vec q = kTail && 16 * (v0 + v) + 16 > n ? load_tail<Codec>(decoder, row, v0 + v, n) : Codec::load(decoder, row, v0 + v);
      h[r][v] = v_mul(q, v_load(k.step + 16 * (v0 + v)));
    }
  }
  for (int j = 0; j < tokens; j++) {
    Vec bj[kWide];
    for (int v = 0; v < kWide; v++) bj[v] = v_load(b + j * np + 16 * (v0 + v));
    for (int r = 0; r < kRows; r++) {
      const Vec u = v_set(fed[j * pp + r]);
      for (int v = 0; v < kWide; v++) h[r][v] = v_fma(u, bj[v], h[r][v]);
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kWide; v++) {
      v_store(rows + r * np + 16 * (v0 + v), h[r][v]);
      statistic[r] = kMax ? v_max_abs(statistic[r], h[r][v]) : v_add(statistic[r], v_abs(h[r][v]));
    }
}
template <class Codec, bool kMax, int kRows, bool kTail>
MAMBAC_INLINE void rebuild_rows(const Packing& k, const uint8_t* codes, Int bytes, const float* scale, const float* fed, Int pp,
                                const float* b, Int np, int tokens, float* rows, Int n, Vec* statistic) {
  const Int vectors = np / 16;
  Vec sum[kRows];
  for (int r = 0; r < kRows; r++) sum[r] = v_zero();
  Int v = 0;
  for (; v + kReplayWide <= vectors; v += kReplayWide)
    rebuild_tile<Codec, kMax, kRows, kReplayWide, kTail>(k, codes, bytes, scale, fed, pp, b, np, tokens, rows, v, n, sum);
  for (; v < vectors; v++) rebuild_tile<Codec, kMax, kRows, 1, kTail>(k, codes, bytes, scale, fed, pp, b, np, tokens, rows, v, n, sum);
  for (int r = 0; r < kRows; r++) statistic[r] = sum[r];
}

// The state from the checkpoint times `decay` and all R tokens, of which token j counts `weights`[j * apart] and b are in vector
// order; packed again.
template <class Codec, bool kMax, int kVectors, bool kTail>
MAMBAC_APART void replay_round(const ScanArgs& a, Packing& k, const ReplayHead& s, const float* b, float decay, const float* weights,
                               Int apart, Carve c) {
  const Int p = a.head_dim, n = a.d_state, np = round16(n), pp = round16(p), bytes = Codec::row_bytes(n);
  const int tokens = (int)a.replay;
  float* fed = c.take(tokens * pp);
  old_steps<Codec>(k, s.packed + p * bytes + 2 * p, n);
  for (int j = 0; j < tokens; j++) {
    const Vec w = v_set(weights[j * apart]);
    for (Int i = 0; i < p; i += 16) v_store(fed + j * pp + i, v_mul(w, halves_at(s.u + 2 * (j * p + i), rows_left(i, p))));
  }
  start_packing(k, np / 16, kMax && Codec::kGroup > 1);
  for (Int p0 = 0; p0 < p; p0 += 16) {
    const int count = rows_left(p0, p);
    float scale[16];
    Vec statistic[16];
    v_store(scale, v_mul(v_set(decay), halves_at(s.packed + p * bytes + 2 * p0, count)));
    int r = 0;
    for (; r + kReplayRows <= count; r += kReplayRows)
      rebuild_rows<Codec, kMax, kReplayRows, kTail>(k, s.packed + (p0 + r) * bytes, bytes, scale + r, fed + p0 + r, pp, b, np, tokens,
                                                    k.rows + (p0 + r) * np, n, statistic + r);
    for (; r < count; r++)
      rebuild_rows<Codec, kMax, 1, kTail>(k, s.packed + (p0 + r) * bytes, bytes, scale + r, fed + p0 + r, pp, b, np, tokens,
                                          k.rows + (p0 + r) * np, n, statistic + r);
    for (; r < 16; r++) statistic[r] = v_zero();
    channel_scales<kMax>(k, p0, count, kMax ? v_reduce16<v_max>(statistic) : v_reduce16<v_add>(statistic), (float)n);
    column_maxima<kVectors>(k, k.rows + p0 * np, p0, count, np / 16);
  }
  finish_packing<Codec, kVectors>(k, s.packed, p, n);
}

// One token of one head. Dot: the instruction set's NibbleDot.
template <class Dot, class Codec, bool kMax, int kVectors, bool kTail>
static void replay_token(const ScanArgs& a, const ReplayHead& s, Int b, Int h, Carve c) {
  const Int p = a.head_dim, n = a.d_state, vectors = kVectors > 0 ? kVectors : round16(n) / 16, bytes = Codec::row_bytes(n);
  const Int group = h / (a.heads / a.groups);
  const int count = a.counts[b];
  const uint8_t* sc = s.packed + p * bytes;
  const ReplayShared shared(a, b);
  Packing k(c, p, 16 * vectors);
  float *C = c.take(16 * vectors), *coded = c.take(p), *older = c.take(p);  // what the checkpoint and the tokens in the ring add to y
  const float* given = a.C + (b * a.groups + group) * n;
  const Int next = p * bytes + 2 * (p + n);  // the next head's checkpoint lies behind this one's, and so do its tokens
  for (Int i = 0; i < 2 * (p + n); i += 64) MAMBAC_PREFETCH_READ(sc + next + i);
  for (Int i = 0; i < 2 * count * p; i += 64) MAMBAC_PREFETCH_READ(s.u + 2 * a.replay * p + i);
  MAMBAC_PREFETCH(s.l + 4 * (a.replay + count));
  float unit = 0;
  if (Codec::kGroup == 8) {
    DotPlanes* planes = (DotPlanes*)c.take(n / 128 * (Int)sizeof(DotPlanes) / 4);
    for (Int i = 0; i < n; i += 16) v_store(C + i, v_mul(v_load(given + i), h_widen(h_load(sc + 2 * (p + i)))));
    unit = make_planes(planes, C, n) / (float)Codec::kLimit;
    if (unit != 0) dot_head<Dot, kVectors / 8>(planes, s.packed, bytes, n / 128, p, next, k.rows, coded);
  }
  if (unit == 0) {
    old_steps<Codec>(k, sc + 2 * p, n);
    to_vector_order<Codec>(C, given, n);
    for (Int v = 0; v < vectors; v++) v_store(C + 16 * v, v_mul(v_load(C + 16 * v), v_load(k.step + 16 * v)));
    for (Int p0 = 0; p0 < p; p0 += 16) {
      for (Int i = 0; i < 16 * bytes; i += 64) MAMBAC_PREFETCH_READ(s.packed + next + p0 * bytes + i);
      Vec sums[16];
      read_rows<Codec, kVectors, kTail>(C, s.packed + p0 * bytes, bytes, n, vectors, rows_left(p0, p), sums);
      v_store(coded + p0, v_reduce16<v_add>(sums));
    }
  }

  const Int apart = shared.heads;
  const float delta = shared.delta[h], rate = shared.rate[h], decay = shared.weights[(count + 1) * apart + h];
  const float* gains = shared.gains + h;
  memcpy(s.l + 4 * count, &rate, sizeof rate);
  Int p1 = 0;
  for (; p1 + 64 <= p; p1 += 64) ring_sums<4>(s.u, p, p1, 16, count, gains, apart, older);
  for (; p1 < p; p1 += 16) ring_sums<1>(s.u, p, p1, rows_left(p1, p), count, gains, apart, older);
  const float *x = a.x + (b * a.heads + h) * p, *D = a.D + h * p;
  float* y = a.y + (b * a.heads + h) * p;
  const Vec worth = v_set(unit == 0 ? decay : decay * unit), gain = v_set(gains[count * apart]);
  for (Int p0 = 0; p0 < p; p0 += 16) {
    const int some = rows_left(p0, p);
    const Vec xv = v_load_n(x + p0, some);
    const HalfVec u = rounded_input(v_mul(v_set(delta), xv));
    halves_to(s.u + 2 * (count * p + p0), u, some);
    Vec total = v_fma(v_mul(v_load(coded + p0), halves_at(sc + 2 * p0, some)), worth, v_load(older + p0));
    total = v_fma(gain, h_widen(u), total);
    v_store_n(y + p0, v_fma(v_load_n(D + p0, some), xv, total), some);
  }
  if (count + 1 < a.replay) return;
  replay_round<Codec, kMax, kVectors, kTail>(a, k, s, shared.b + group * a.replay * round16(n), decay, shared.weights + h, apart, c);
  memset(s.u, 0, (size_t)(2 * a.replay * p));
  memset(s.l, 0, (size_t)(4 * a.replay));
}
template <class Dot, class Whole, class Plain, bool kMax>
MAMBAC_INLINE void replay_plain(const ScanArgs& a, const ReplayHead& s, Int b, Int h, Carve c) {
  const Int n = a.d_state;
  if (n == 128)
    replay_token<Dot, Whole, kMax, 8, false>(a, s, b, h, c);
  else if (n == 64)
    replay_token<Dot, Whole, kMax, 4, false>(a, s, b, h, c);
  else if (n % 16 == 0)
    replay_token<Dot, Plain, kMax, 0, false>(a, s, b, h, c);
  else
    replay_token<Dot, Plain, kMax, 0, true>(a, s, b, h, c);
}
template <class Dot, bool kMax>
MAMBAC_INLINE void replay_i4(const ScanArgs& a, const ReplayHead& s, Int b, Int h, Carve c) {
  if (a.d_state == 128)
    replay_token<Dot, StridedI4, kMax, 8, false>(a, s, b, h, c);
  else if (a.d_state % 128 == 0)
    replay_token<Dot, StridedI4, kMax, 0, false>(a, s, b, h, c);
  else
    replay_plain<Dot, PlainI4, PlainI4, kMax>(a, s, b, h, c);
}

// Decays and inputs of the block's tokens, either all in the rings (slots from `slot` on) or all of this call (tokens from
// t0 on, whose slots are filled); their B and C into [tokens, n].
static void replay_inputs(const ScanArgs& a, Block& k, const ReplayHead& s, const uint8_t* ring, bool old, int slot, Int b, Int h,
                          Int t0, float* B, float* C, float* carried) {
  const Int p = a.head_dim, n = a.d_state, channels = a.heads * p, group = h / (a.heads / a.groups);
  float running = *carried;
  for (int i = 0; i < k.tokens; i += 16) {
    const int some = rows_left(i, k.tokens);
    float d[16], e[16], l[16] = {0};
    if (old) {
      memcpy(l, s.l + 4 * (slot + i), (size_t)(4 * some));
      v_store(e, v_exp(v_load(l)));
    } else {
      Vec delta, rate;
      replay_deltas(a, b, h, t0 + i, some, &delta, &rate);
      v_store(d, delta);
      v_store(l, rate);
      v_store(e, v_exp(rate));
      memcpy(s.l + 4 * (slot + i), l, (size_t)(4 * some));
    }
    for (int j = 0; j < some; j++) {
      const int t = i + j;
      running = advance(k, t, e[j], running);
      const Vec f = v_set(1.0f / running);
      const Int from = b * a.length + t0 + t;
      for (Int c = 0; c < p; c += 16) {
        const int count = rows_left(c, p);
        uint8_t* at = s.u + 2 * ((slot + t) * p + c);
        Vec u;
        if (old) {
          u = halves_at(at, count);
        } else {
          const HalfVec fresh = rounded_input(v_mul(v_set(d[j]), v_load_n(a.x + from * channels + h * p + c, count)));
          halves_to(at, fresh, count);
          u = h_widen(fresh);
        }
        v_store(k.input + t * k.pp + c, v_mul(f, u));
        v_store(k.sums + t * k.pp + c, v_zero());
      }
      for (Int c = 0; c < n; c += 16) {
        const int count = rows_left(c, n);
        const Int row = (from * a.groups + group) * n + c;
        v_store_n(B + t * n + c, old ? halves_at(ring + 2 * ((slot + t) * n + c), count) : h_widen(rounded_input(v_load_n(a.B + row, count))), count);
        v_store_n(C + t * n + c, old ? v_zero() : v_load_n(a.C + row, count), count);
      }
    }
  }
  *carried = running;
}

// Several tokens of one head: those of the rings run again, silently, then the new ones; the state leaves float32 only
// where the rings are full.
template <class Codec, bool kMax>
static void replay_prefill(const ScanArgs& a, const ReplayHead& s, const uint8_t* ring, Int b, Int h, Carve c) {
  const Int p = a.head_dim, n = a.d_state, np = round16(n), pp = round16(p);
  Packing k(c, p, np);
  float* state = c.take(np * pp);
  Block block(c, pp);
  float *B = c.take(kBlockTokens * n), *C = c.take(kBlockTokens * n);
  unpack_head<Codec>(k, s.packed, p, n);
  transpose_in<F32Rows>(k.rows, np, state, pp, p, n);
  const int r = (int)a.replay;
  float carried = 1.0f;
  int slot = 0;
  bool rounded = false;
  for (Int t = -a.counts[b]; t < a.length; t += block.tokens) {  // tokens before 0 are in the rings
    Int tokens = t < 0 ? -t : a.length - t < r - slot ? a.length - t : r - slot;
    block.tokens = (int)(tokens < kBlockTokens ? tokens : kBlockTokens);
    replay_inputs(a, block, s, ring, t < 0, slot, b, h, t, B, C, &carried);
    run_state(block, state, B, C, n, n);
    if (t >= 0) finish_block(a, block, b, h, t);
    slot += block.tokens;
    if (slot < r) continue;
    transpose_out<F32Rows>(k.rows, np, state, pp, p, n, carried, true);
    pack_head<Codec, kMax>(k, s.packed, p, n);
    slot = 0;
    rounded = true;
    carried = 1.0f;
    if (t + block.tokens == a.length) break;
    unpack_head<Codec>(k, s.packed, p, n);
    transpose_in<F32Rows>(k.rows, np, state, pp, p, n);
  }
  if (!rounded) return;
  memset(s.u + 2 * slot * p, 0, (size_t)(2 * (r - slot) * p));
  memset(s.l + 4 * slot, 0, (size_t)(4 * (r - slot)));
}

template <class Dot>
static void replay_task(const ScanArgs& a, int64_t task, void* scratch) {
  const Int b = task / a.heads, h = task % a.heads;
  const ReplayLayout at = replay_layout(a);
  const uint8_t* past = (const uint8_t*)a.past + b * at.bytes;
  uint8_t* present = (uint8_t*)a.present + b * at.bytes;
  const Int u = at.u + 2 * h * a.replay * a.head_dim, l = at.l + 4 * h * a.replay;
  const ReplayHead s = {present + h * at.head, present + u, present + l};
  if (past != present) {
    memcpy(s.packed, past + h * at.head, (size_t)at.head);
    memcpy(s.u, past + u, (size_t)(2 * a.replay * a.head_dim));
    memcpy(s.l, past + l, (size_t)(4 * a.replay));
  }
  const uint8_t* ring = ring_of(a, at, b, h / (a.heads / a.groups));
  const Carve c(scratch);
  if (a.length == 1) {
    if (a.format == Format::kH8)
      a.max_norm ? replay_plain<Dot, BlockI8, PlainI8, true>(a, s, b, h, c) : replay_plain<Dot, BlockI8, PlainI8, false>(a, s, b, h, c);
    else
      a.max_norm ? replay_i4<Dot, true>(a, s, b, h, c) : replay_i4<Dot, false>(a, s, b, h, c);
  } else if (a.format == Format::kH8) {
    a.max_norm ? replay_prefill<PlainI8, true>(a, s, ring, b, h, c) : replay_prefill<PlainI8, false>(a, s, ring, b, h, c);
  } else {
    a.max_norm ? replay_prefill<PlainI4, true>(a, s, ring, b, h, c) : replay_prefill<PlainI4, false>(a, s, ring, b, h, c);
  }
}
