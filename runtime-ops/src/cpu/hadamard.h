// Rows times an orthonormal Hadamard matrix of order m 2^k: butterflies over the power of two, then the dense factor.
#pragma once

// Butterflies between lanes that differ in one bit: a + b where it is 0, a - b where it is 1, b being the lane that has it.
struct LaneSigns {
  Vec bit[4];
};
MAMBAC_INLINE LaneSigns lane_signs() {
  LaneSigns s;
  float lane[16];
  for (int b = 0; b < 4; b++) {
    for (int i = 0; i < 16; i++) lane[i] = i >> b & 1 ? -1.0f : 1.0f;
    s.bit[b] = v_load(lane);
  }
  return s;
}
MAMBAC_INLINE Vec walsh_lanes(Vec v, const LaneSigns& s) {
  v = v_fma(v, s.bit[0], v_swap<1>(v));
  v = v_fma(v, s.bit[1], v_swap<2>(v));
  v = v_fma(v, s.bit[2], v_swap<4>(v));
  return v_fma(v, s.bit[3], v_swap<8>(v));
}

template <int kVectors, int kStep>
MAMBAC_INLINE void walsh_across(Vec* v) {
  MAMBAC_UNROLL16
  for (int i = 0; i < kVectors; i++) {
    if ((i & kStep) != 0) continue;
    const Vec a = v[i], b = v[i ^ kStep];  // not i + kStep: the compiler cannot see that it stays inside
    v[i] = v_add(a, b);
    v[i ^ kStep] = v_sub(a, b);
  }
}

// The first stages, kVectors vectors at a time: y = scale * x, transformed in runs of 16 kVectors.
template <int kVectors>
static void walsh_first(const float* x, float* y, Int length, Vec scale, const LaneSigns& signs) {
  for (Int at = 0; at < length; at += 16 * kVectors) {
    Vec v[kVectors];
    MAMBAC_UNROLL16
    for (int i = 0; i < kVectors; i++) v[i] = walsh_lanes(v_mul(v_load(x + at + 16 * i), scale), signs);
    if (kVectors > 1) walsh_across<kVectors, 1>(v);
    if (kVectors > 2) walsh_across<kVectors, 2>(v);
    if (kVectors > 4) walsh_across<kVectors, 4>(v);
    MAMBAC_UNROLL16
    for (int i = 0; i < kVectors; i++) v_store(y + at + 16 * i, v[i]);
  }
}

// The stages from `step` on of one run of `power` numbers, two at a time.
static void walsh_rest(float* y, Int power, Int step) {
  for (; 4 * step <= power; step *= 4) {
    for (Int base = 0; base < power; base += 4 * step) {
      for (Int i = base; i < base + step; i += 16) {
        const Vec a = v_load(y + i), b = v_load(y + i + step), c = v_load(y + i + 2 * step), d = v_load(y + i + 3 * step);
        const Vec s = v_add(a, b), t = v_sub(a, b), u = v_add(c, d), w = v_sub(c, d);
        v_store(y + i, v_add(s, u));
        v_store(y + i + step, v_add(t, w));
        v_store(y + i + 2 * step, v_sub(s, u));
        v_store(y + i + 3 * step, v_sub(t, w));
      }
    }
  }
  if (2 * step > power) return;
  for (Int i = 0; i < step; i += 16) {
    const Vec a = v_load(y + i), b = v_load(y + i + step);
    v_store(y + i, v_add(a, b));
    v_store(y + i + step, v_sub(a, b));
  }
}

// y = scale * x, each run of `power` numbers times the Walsh-Hadamard matrix.
static void walsh_row(const float* x, float* y, Int size, Int power, float scale) {
  if (power < 16) {
    for (Int i = 0; i < size; i++) y[i] = scale * x[i];
    for (Int step = 1; step < power; step *= 2) {
      for (Int base = 0; base < size; base += 2 * step) {
        for (Int i = base; i < base + step; i++) {
          const float a = y[i], b = y[i + step];
          y[i] = a + b;
          y[i + step] = a - b;
        }
      }
    }
    return;
  }
  const LaneSigns signs = lane_signs();
  const Int run = power < 128 ? power : 128;
  switch (run) {
    case 16:
      walsh_first<1>(x, y, size, v_set(scale), signs);
      break;
    case 32:
      walsh_first<2>(x, y, size, v_set(scale), signs);
      break;
    case 64:
      walsh_first<4>(x, y, size, v_set(scale), signs);
      break;
    default:
      walsh_first<8>(x, y, size, v_set(scale), signs);
  }
  if (power > run)
    for (Int at = 0; at < size; at += power) walsh_rest(y + at, power, run);
}

constexpr int kFactorTargets = 4;  // rows of the result that share one load

// The factor on 16 kWide columns (n of them, where kWide is 1) of rows that are `power` apart, in place.
template <int kWide>
static void factor_columns(float* y, Int power, Int order, const float* factor, int n) {
  float from[kMostOrder * 16 * kWide];
  constexpr Int kRow = 16 * kWide;
  for (Int i = 0; i < order; i++)
    for (int k = 0; k < kWide; k++)
      v_store(from + i * kRow + 16 * k, n == 16 ? v_load(y + i * power + 16 * k) : v_load_n(y + i * power, n));
  Int t = 0;
  for (; t + kFactorTargets <= order; t += kFactorTargets) {
    Vec sum[kFactorTargets][kWide];
    MAMBAC_UNROLL16
    for (int q = 0; q < kFactorTargets; q++)
      for (int k = 0; k < kWide; k++) sum[q][k] = v_zero();
    for (Int i = 0; i < order; i++) {
      Vec v[kWide];
      for (int k = 0; k < kWide; k++) v[k] = v_load(from + i * kRow + 16 * k);
      MAMBAC_UNROLL16
      for (int q = 0; q < kFactorTargets; q++) {
        const Vec f = v_set(factor[i * order + t + q]);
        for (int k = 0; k < kWide; k++) sum[q][k] = v_fma(f, v[k], sum[q][k]);
      }
    }
    for (int q = 0; q < kFactorTargets; q++) {
      float* to = y + (t + q) * power;
      for (int k = 0; k < kWide; k++) {
        if (n == 16)
          v_store(to + 16 * k, sum[q][k]);
        else
          v_store_n(to, sum[q][k], n);
      }
    }
  }
  for (; t < order; t++) {
    for (int k = 0; k < kWide; k++) {
      Vec sum = v_zero();
      for (Int i = 0; i < order; i++) sum = v_fma(v_set(factor[i * order + t]), v_load(from + i * kRow + 16 * k), sum);
      if (n == 16)
        v_store(y + t * power + 16 * k, sum);
      else
        v_store_n(y + t * power, sum, n);
    }
  }
}

static void hadamard_task(const HadamardArgs& a, int64_t task) {
  const Int first = task * kRowBlock, last = first + kRowBlock < a.rows ? first + kRowBlock : a.rows;
  const Int span = a.order * a.power;
  const float scale = (float)(1.0 / sqrt((double)span)) * (a.order == 1 ? a.factor[0] : 1.0f);
  for (Int row = first; row < last; row++) {
    float* y = a.y + row * a.size;
    walsh_row(a.x + row * a.size, y, a.size, a.power, scale);
    if (a.order == 1) continue;
    for (Int block = 0; block < a.size; block += span) {
      Int at = 0;
      if (a.power % (16 * kTileRows) == 0)
        for (; at < a.power; at += 16 * kTileRows) factor_columns<kTileRows>(y + block + at, a.power, a.order, a.factor, 16);
      for (; at < a.power; at += 16) factor_columns<1>(y + block + at, a.power, a.order, a.factor, rows_left(at, a.power));
    }
  }
}
