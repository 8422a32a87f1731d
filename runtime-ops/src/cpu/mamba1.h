// Mamba-1: one decay a channel and state, exp(d A[e, n]); heads are pseudo-heads of head_dim channels.
#pragma once

// B and C of channel e at token l of batch b.
MAMBAC_INLINE const float* group_row(const ScanArgs& a, const float* m, Int b, Int l, Int e) {
  const Int group = e / (a.heads * a.head_dim / a.groups);
  return m + ((b * a.length + l) * a.groups + group) * a.d_state;
}

// One token of channels e0 .. e0 + p - 1, states row by row.
template <class Rows>
static void mamba1_step(const ScanArgs& a, Int b, Int l, Int e0, const typename Rows::Element* past,
                        typename Rows::Element* present, Int row_stride) {
  const Int n = a.d_state, channels = a.heads * a.head_dim, whole = n / 16;
  const int tail = (int)(n % 16);
  const Int at = (b * a.length + l) * channels + e0;
  for (Int p0 = 0; p0 < a.head_dim; p0 += 16) {
    const int count = rows_left(p0, a.head_dim);
    float d[16], xd[16];
    Vec sums[16];
    const Vec x = v_load_n(a.x + at + p0, count);
    const Vec delta = v_delta(v_load_n(a.dt + at + p0, count), v_load_n(a.dt_bias + e0 + p0, count), a.dt_min, a.dt_max);
    v_store(d, delta);
    v_store(xd, v_mul(delta, x));
    for (int r = 0; r < 16; r++) sums[r] = v_zero();
    for (int r = 0; r < count; r++) {
      const Int e = e0 + p0 + r;
      const float *A = a.A + e * n, *B = group_row(a, a.B, b, l, e), *C = group_row(a, a.C, b, l, e);
      const typename Rows::Element* in = past + (p0 + r) * row_stride;
      typename Rows::Element* out = present + (p0 + r) * row_stride;
      const Vec dv = v_set(d[r]), xv = v_set(xd[r]);
      Vec sum = v_zero();
      for (Int v = 0; v < whole; v++) {
        Vec h = v_fma(Rows::load(in + 16 * v), v_exp(v_mul(dv, v_load(A + 16 * v))), v_mul(xv, v_load(B + 16 * v)));
        Rows::store(out + 16 * v, h);
        sum = v_fma(h, v_load(C + 16 * v), sum);
      }
      if (tail > 0) {
        const Int i = 16 * whole;
        Vec h = v_fma(Rows::load_n(in + i, tail), v_exp(v_mul(dv, v_load_n(A + i, tail))), v_mul(xv, v_load_n(B + i, tail)));
        Rows::store_n(out + i, h, tail);
        sum = v_fma(h, v_load_n(C + i, tail), sum);
      }
      sums[r] = sum;
    }
    v_store_n(a.y + at + p0, v_fma(v_load_n(a.D + e0 + p0, count), x, v_reduce16<v_add>(sums)), count);
  }
}

// All tokens of up to 16 channels of one group, with lanes = channels. `state` and `rates` are [N, 16].
static void mamba1_lanes(const ScanArgs& a, Int b, Int e0, int count, float* state, const float* rates) {
  const Int n = a.d_state, channels = a.heads * a.head_dim;
  const Vec bias = v_load_n(a.dt_bias + e0, count), skip = v_load_n(a.D + e0, count);
  for (Int l = 0; l < a.length; l++) {
    const Int at = (b * a.length + l) * channels + e0;
    const float *B = group_row(a, a.B, b, l, e0), *C = group_row(a, a.C, b, l, e0);
    const Vec x = v_load_n(a.x + at, count);
    const Vec delta = v_delta(v_load_n(a.dt + at, count), bias, a.dt_min, a.dt_max), xd = v_mul(delta, x);
    Vec sum = v_mul(skip, x);
    for (Int i = 0; i < n; i++) {
      Vec h = v_mul(v_load(state + 16 * i), v_exp2(v_mul(delta, v_load(rates + 16 * i))));
      h = v_fma(xd, v_set(B[i]), h);
      v_store(state + 16 * i, h);
      sum = v_fma(h, v_set(C[i]), sum);
    }
    v_store_n(a.y + at, sum, count);
  }
}

// All tokens of one pseudo-head: lanes = channels where 16 of them share their group, else row by row.
template <class Rows>
static void mamba1_tokens(const ScanArgs& a, Int b, Int e0, const typename Rows::Element* past,
                          typename Rows::Element* present, Int row_stride, bool pad, Carve c) {
  const Int p = a.head_dim, n = a.d_state, each = a.heads * p / a.groups;
  const bool together = e0 / each == (e0 + p - 1) / each;
  if (a.length < 4 || !together) {
    for (Int l = 0; l < a.length; l++) {
      mamba1_step<Rows>(a, b, l, e0, past, present, row_stride);
      past = present;
    }
    return;
  }
  float *state = c.take(round16(n) * 16), *rates = c.take(round16(n) * 16);
  for (Int p0 = 0; p0 < p; p0 += 16) {
    const int count = rows_left(p0, p);
    transpose_in<F32Rows>(a.A + (e0 + p0) * n, n, rates, 16, count, n);
    for (Int i = 0; i < n; i++) v_store(rates + 16 * i, v_mul(v_load(rates + 16 * i), v_set(1.44269504f)));
    transpose_in<Rows>(past + p0 * row_stride, row_stride, state, 16, count, n);
    mamba1_lanes(a, b, e0 + p0, count, state, rates);
    transpose_out<Rows>(present + p0 * row_stride, row_stride, state, 16, count, n, 1.0f, pad);
  }
}

// Half states over more than one token without rounding in between: through float rows.
static void mamba1_halves(const ScanArgs& a, Int b, Int e0, const uint16_t* past, uint16_t* present, Carve c) {
  const Int p = a.head_dim, n = a.d_state, np = round16(n);
  float* rows = c.take(round16(p) * np);
  for (Int r = 0; r < p; r++)
    for (Int i = 0; i < n; i += 16) v_store(rows + r * np + i, F16Rows::load_n(past + r * n + i, rows_left(i, n)));
  mamba1_tokens<F32Rows>(a, b, e0, rows, rows, np, true, c);
  for (Int r = 0; r < p; r++)
    for (Int i = 0; i < n; i += 16) F16Rows::store_n(present + r * n + i, v_load(rows + r * np + i), rows_left(i, n));
}

template <class Codec>
static void mamba1_packed(const ScanArgs& a, Int b, Int e0, const uint8_t* past, uint8_t* present, Carve c) {
  const Int p = a.head_dim, n = a.d_state, np = round16(n);
  Packing k(c, p, np);
  unpack_head<Codec>(k, past, p, n);
  if (!a.per_token) {
    mamba1_tokens<F32Rows>(a, b, e0, k.rows, k.rows, np, true, c);
    a.max_norm ? pack_head<Codec, true>(k, present, p, n) : pack_head<Codec, false>(k, present, p, n);
    return;
  }
  for (Int l = 0; l < a.length; l++) {
    mamba1_step<F32Rows>(a, b, l, e0, k.rows, k.rows, np);
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
      mamba1_tokens<F32Rows>(a, b, e0, (const float*)past, (float*)present, n, false, c);
      return;
    case Format::kF16:
      if (a.per_token) {
        for (Int l = 0; l < a.length; l++) {
          mamba1_step<F16Rows>(a, b, l, e0, (const uint16_t*)past, (uint16_t*)present, n);
          past = present;
        }
        return;
      }
      if (a.length == 1)
        mamba1_step<F16Rows>(a, b, 0, e0, (const uint16_t*)past, (uint16_t*)present, n);
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
