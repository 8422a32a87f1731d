// Mamba-1: one decay a channel and state, exp(d A[e, n]); heads are pseudo-heads of head_dim channels.
#pragma once

// B and C of channel e at token l of batch b.
MAMBAC_INLINE const float* group_row(const ScanArgs& a, const float* m, Int b, Int l, Int e) {
  const Int group = e / (a.heads * a.head_dim / a.groups);
  return m + ((b * a.length + l) * a.groups + group) * a.d_state;
}

// One token of channels e0 .. e0 + p - 1, states row by row.
template <class Rows>
static void mamba1_step(const ScanArgs& a, Int b, Int l, Int e0, Int p, const typename Rows::Element* past,
                        typename Rows::Element* present, Int row_stride) {
  const Int n = a.d_state, channels = a.heads * a.head_dim, whole = n / 16;
  const int tail = (int)(n % 16);
  const Int at = (b * a.length + l) * channels + e0;
  for (Int p0 = 0; p0 < p; p0 += 16) {
    const int count = rows_left(p0, p);
    float d[16], xd[16];
    Vec sums[16];
    const Vec x = v_load_n(a.x + at + p0, count);
    const Vec delta = v_delta(v_load_n(a.dt + at + p0, count), v_load_n(a.dt_bias + e0 + p0, count), a.dt_min, a.dt_max);
    v_store(d, v_mul(delta, v_set(kLog2E)));
    v_store(xd, v_mul(delta, x));
    for (int r = count; r < 16; r++) sums[r] = v_zero();
    for (int r = 0; r < count; r++) {
      const Int e = e0 + p0 + r;
      const float *A = a.A + e * n, *B = group_row(a, a.B, b, l, e), *C = group_row(a, a.C, b, l, e);
      const typename Rows::Element* in = past + (p0 + r) * row_stride;
      typename Rows::Element* out = present + (p0 + r) * row_stride;
      const Vec dv = v_set(d[r]), xv = v_set(xd[r]);
      Vec sum = v_zero();
      for (Int v = 0; v < whole; v++) {
        Vec h = v_fma(Rows::load(in + 16 * v), v_exp2(v_mul(dv, v_load(A + 16 * v))), v_mul(xv, v_load(B + 16 * v)));
        Rows::store(out + 16 * v, h);
        sum = v_fma(h, v_load(C + 16 * v), sum);
      }
      if (tail > 0) {
        const Int i = 16 * whole;
        Vec h = v_fma(Rows::load_n(in + i, tail), v_exp2(v_mul(dv, v_load_n(A + i, tail))), v_mul(xv, v_load_n(B + i, tail)));
        Rows::store_n(out + i, h, tail);
        sum = v_fma(h, v_load_n(C + i, tail), sum);
      }
      sums[r] = sum;
    }
    v_store_n(a.y + at + p0, v_fma(v_load_n(a.D + e0 + p0, count), x, v_reduce16<v_add>(sums)), count);
  }
}

// Prefill runs 64 channels of one group at a time, lanes = channels, over blocks of tokens whose inputs are gathered first:
// rows of x, dt and y lie whole activations apart, which would hit the same few cache sets again and again.
constexpr Int kLaneChannels = 64;
struct LaneBlock {
  float *state, *rates;     // [4][N, 16]
  float *delta, *fed, *y;   // [kBlockTokens, 64]
  MAMBAC_MEMBER LaneBlock(Carve& c, Int n)
      : state(c.take(kLaneChannels * n)), rates(c.take(kLaneChannels * n)), delta(c.take(kBlockTokens * kLaneChannels)),
        fed(c.take(kBlockTokens * kLaneChannels)), y(c.take(kBlockTokens * kLaneChannels)) {}
};

// `tokens` tokens from l on, of `count` <= 64 channels from e on.
static void mamba1_lanes(const ScanArgs& a, const LaneBlock& k, Int b, Int l, int tokens, Int e, Int count) {
  const Int n = a.d_state, channels = a.heads * a.head_dim, stride = a.groups * n;
  const float *B = group_row(a, a.B, b, l, e), *C = group_row(a, a.C, b, l, e);
  for (int t = 0; t < tokens; t++)
    for (Int c = 0; c < count; c += 16) {
      const int some = rows_left(c, count);
      const Int from = (b * a.length + l + t) * channels + e + c, to = t * kLaneChannels + c;
      const Vec x = v_load_n(a.x + from, some);
      const Vec delta = v_delta(v_load_n(a.dt + from, some), v_load_n(a.dt_bias + e + c, some), a.dt_min, a.dt_max);
      v_store(k.delta + to, v_mul(delta, v_set(kLog2E)));
      v_store(k.fed + to, v_mul(delta, x));
      v_store(k.y + to, v_mul(v_load_n(a.D + e + c, some), x));
    }
  for (Int c = 0; c < count; c += 16) {
    float* state = k.state + c * n;
    const float* rates = k.rates + c * n;
    for (int t = 0; t < tokens; t++) {
      const Int at = t * kLaneChannels + c;
      const Vec delta = v_load(k.delta + at), fed = v_load(k.fed + at);
      const float *bt = B + t * stride, *ct = C + t * stride;
      Vec sum = v_load(k.y + at);
      for (Int i = 0; i < n; i++) {
        Vec h = v_mul(v_load(state + 16 * i), v_exp2(v_mul(delta, v_load(rates + 16 * i))));
        h = v_fma(fed, v_set(bt[i]), h);
        v_store(state + 16 * i, h);
        sum = v_fma(h, v_set(ct[i]), sum);
      }
      v_store(k.y + at, sum);
    }
  }
  for (int t = 0; t < tokens; t++)
    for (Int c = 0; c < count; c += 16)
      v_store_n(a.y + (b * a.length + l + t) * channels + e + c, v_load(k.y + t * kLaneChannels + c), rows_left(c, count));
}

// All tokens of one pseudo-head, whose rows of float state lie `row_stride` apart; `pad`: rows have room for whole vectors.
static void mamba1_tokens(const ScanArgs& a, Int b, Int e0, const float* past, float* present, Int row_stride, bool pad, Carve c) {
  const Int p = a.head_dim, n = a.d_state, each = a.heads * p / a.groups;
  LaneBlock k(c, n);
  for (Int p0 = 0; p0 < p; p0 += kLaneChannels) {
    const Int count = p - p0 < kLaneChannels ? p - p0 : kLaneChannels, e = e0 + p0;
    const float* in = past + p0 * row_stride;
    float* out = present + p0 * row_stride;
    if (a.length < 4 || e / each != (e + count - 1) / each) {
      for (Int l = 0; l < a.length; l++, in = out) mamba1_step<F32Rows>(a, b, l, e, count, in, out, row_stride);
      continue;
    }
    for (Int q = 0; q < count; q += 16) {
      const int some = rows_left(q, count);
      transpose_in<F32Rows>(a.A + (e + q) * n, n, k.rates + q * n, 16, some, n);
      transpose_in<F32Rows>(in + q * row_stride, row_stride, k.state + q * n, 16, some, n);
    }
    for (Int l = 0; l < a.length; l += kBlockTokens)
      mamba1_lanes(a, k, b, l, (int)(a.length - l < kBlockTokens ? a.length - l : kBlockTokens), e, count);
    for (Int q = 0; q < count; q += 16)
      transpose_out<F32Rows>(out + q * row_stride, row_stride, k.state + q * n, 16, rows_left(q, count), n, 1.0f, pad);
  }
}

// Half states over more than one token without rounding in between: through float rows.
static void mamba1_halves(const ScanArgs& a, Int b, Int e0, const uint16_t* past, uint16_t* present, Carve c) {
  const Int p = a.head_dim, n = a.d_state, np = round16(n);
  float* rows = c.take(round16(p) * np);
  for (Int r = 0; r < p; r++)
    for (Int i = 0; i < n; i += 16) v_store(rows + r * np + i, F16Rows::load_n(past + r * n + i, rows_left(i, n)));
  mamba1_tokens(a, b, e0, rows, rows, np, true, c);
  for (Int r = 0; r < p; r++)
    for (Int i = 0; i < n; i += 16) F16Rows::store_n(present + r * n + i, v_load(rows + r * np + i), rows_left(i, n));
}

template <class Codec>
static void mamba1_packed(const ScanArgs& a, Int b, Int e0, const uint8_t* past, uint8_t* present, Carve c) {
  const Int p = a.head_dim, n = a.d_state, np = round16(n);
  Packing k(c, p, np);
  unpack_head<Codec>(k, past, p, n);
  if (!a.per_token) {
    mamba1_tokens(a, b, e0, k.rows, k.rows, np, true, c);
    a.max_norm ? pack_head<Codec, true>(k, present, p, n) : pack_head<Codec, false>(k, present, p, n);
    return;
  }
  for (Int l = 0; l < a.length; l++) {
    mamba1_step<F32Rows>(a, b, l, e0, p, k.rows, k.rows, np);
    a.max_norm ? pack_head<Codec, true>(k, present, p, n) : pack_head<Codec, false>(k, present, p, n);
    if (l + 1 < a.length) unpack_head<Codec>(k, present, p, n);
  }
}

static void mamba1_task(const ScanArgs& a, int64_t task, void* scratch) {
  const Int b = task / a.heads, h = task % a.heads, p = a.head_dim, n = a.d_state, e0 = h * p;
  const Int bytes = head_bytes(a.format, p, n);
  const void* past = (const char*)a.past + task * bytes;
  void* present = (char*)a.present + task * bytes;
  if (a.length == 0) {
    if (past != present) memcpy(present, past, (size_t)bytes);
    return;
  }
  Carve c(scratch);
  switch (a.format) {
    case Format::kF32:
      mamba1_tokens(a, b, e0, (const float*)past, (float*)present, n, false, c);
      return;
    case Format::kF16:
      if (a.per_token) {
        for (Int l = 0; l < a.length; l++) {
          mamba1_step<F16Rows>(a, b, l, e0, p, (const uint16_t*)past, (uint16_t*)present, n);
          past = present;
        }
        return;
      }
      if (a.length == 1)
        mamba1_step<F16Rows>(a, b, 0, e0, p, (const uint16_t*)past, (uint16_t*)present, n);
      else
        mamba1_halves(a, b, e0, (const uint16_t*)past, (uint16_t*)present, c);
      return;
    case Format::kH8:
      mamba1_packed<PlainI8>(a, b, e0, (const uint8_t*)past, (uint8_t*)present, c);
      return;
    case Format::kH4:
      mamba1_packed<PlainI4>(a, b, e0, (const uint8_t*)past, (uint8_t*)present, c);
      return;
  }
}
