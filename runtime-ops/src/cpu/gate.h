// The gate of a block, y * silu(z), and the RMS norm of groups of channels behind it or before it.
#pragma once

constexpr int kSquareSums = 4;  // running sums of squares: fewer roundings, and no waiting for the last addition

struct SquareSum {
  Vec part[kSquareSums];
  MAMBAC_MEMBER SquareSum() {
    for (int k = 0; k < kSquareSums; k++) part[k] = v_zero();
  }
  // 1 / sqrt(mean + epsilon) of `count` values.
  MAMBAC_MEMBER float scale(Int count, float epsilon) const {
    float lane[16];
    v_store(lane, v_add(v_add(part[0], part[1]), v_add(part[2], part[3])));
    double sum = 0;
    for (int i = 0; i < 16; i++) sum += (double)lane[i];
    return (float)(1.0 / sqrt(sum / (double)count + (double)epsilon));
  }
};

MAMBAC_INLINE Vec gated(Vec y, Vec z) { return v_mul(y, v_silu(z)); }

// out = y * silu(z) where kGate, else y; gives 1 / root mean square of it.
template <bool kGate>
static float gate_squares(const float* y, const float* z, float* out, Int count, float epsilon) {
  SquareSum sum;
  Int i = 0;
  for (; i + 16 * kSquareSums <= count; i += 16 * kSquareSums) {
    MAMBAC_UNROLL16
    for (int k = 0; k < kSquareSums; k++) {
      const Vec v = kGate ? gated(v_load(y + i + 16 * k), v_load(z + i + 16 * k)) : v_load(y + i + 16 * k);
      sum.part[k] = v_fma(v, v, sum.part[k]);
      if (kGate) v_store(out + i + 16 * k, v);
    }
  }
  for (; i < count; i += 16) {
    const int n = rows_left(i, count);
    const Vec v = kGate ? gated(v_load_n(y + i, n), v_load_n(z + i, n)) : v_load_n(y + i, n);
    sum.part[0] = v_fma(v, v, sum.part[0]);
    if (kGate) v_store_n(out + i, v, n);
  }
  return sum.scale(count, epsilon);
}

// out = y * z * sigmoid(slope * z).
static void gate_sloped(const float* y, const float* z, const float* slope, float* out, Int count) {
  for (Int i = 0; i < count; i += 16) {
    const int n = rows_left(i, count);
    const Vec v = v_load_n(z + i, n), s = v_sub(v_zero(), v_load_n(slope + i, n));
    v_store_n(out + i, v_mul(v_load_n(y + i, n), v_div(v, v_add(v_set(1.0f), v_exp(v_mul(s, v))))), n);
  }
}

static void gate_plain(const float* y, const float* z, float* out, Int count) {
  Int i = 0;
  for (; i + 16 <= count; i += 16) v_store(out + i, gated(v_load(y + i), v_load(z + i)));
  if (i < count) v_store_n(out + i, gated(v_load_n(y + i, (int)(count - i)), v_load_n(z + i, (int)(count - i))), (int)(count - i));
}

// One group of one row.
static void gate_group(const GateArgs& a, const float* y, const float* z, const float* weight, float* out) {
  const float scale = a.before ? gate_squares<false>(y, z, out, a.group, a.epsilon) : gate_squares<true>(y, z, out, a.group, a.epsilon);
  const Vec factor = v_set(scale);
  for (Int i = 0; i < a.group; i += 16) {
    const int n = rows_left(i, a.group);
    const Vec w = v_load_n(weight + i, n), v = v_load_n((a.before ? y : out) + i, n);
    const Vec normed = v_mul(v_mul(v, factor), w);
    v_store_n(out + i, a.before ? gated(normed, v_load_n(z + i, n)) : normed, n);
  }
}

static void gate_task(const GateArgs& a, int64_t task) {
  const Int first = task * kRowBlock, last = first + kRowBlock < a.rows ? first + kRowBlock : a.rows;
  for (Int row = first; row < last; row++) {
    const Int at = row * a.channels;
    if (a.group == 0) {
      if (a.slope != nullptr)
        gate_sloped(a.y + at, a.z + at, a.slope, a.out + at, a.channels);
      else
        gate_plain(a.y + at, a.z + at, a.out + at, a.channels);
      continue;
    }
    for (Int c = 0; c < a.channels; c += a.group) gate_group(a, a.y + at + c, a.z + at + c, a.weight + c, a.out + at + c);
  }
}
