// The readout of 4-bit codes in integers. Two instructions a byte of codes instead of six, and exact: the coefficients are
// rounded once, to 2^-24 of the largest.
#pragma once

constexpr float kDotLimit = 8355000.0f;  // below 0x7f7f7f, the largest that fits three signed bytes

// n coefficients (a multiple of 128) into planes. Gives what one unit of them is worth, or 0 where a few
// coefficients so outgrow the others that rounding to the largest would show.
static float make_planes(DotPlanes* k, const float* c, Int n) {
  Vec top = v_zero(), sum = v_zero();
  for (Int i = 0; i < n; i += 16) {
    const Vec v = v_load(c + i);
    top = v_max_abs(top, v);
    sum = v_add(sum, v_abs(v));
  }
  sum = v_add(sum, v_swap<8>(sum));
  sum = v_add(sum, v_swap<4>(sum));
  sum = v_add(sum, v_swap<2>(sum));
  float sums[16];
  v_store(sums, v_add(sum, v_swap<1>(sum)));
  const float most = fixed_top(top), total = sums[0];
  if (!(most > 1e-25f && most < 1e25f && 32 * total >= (float)n * most)) return 0;
  const Vec scale = v_set(kDotLimit / most);
  for (Int i = 0; i < n; i += 128) split_planes(k[i / 128], c + i, scale);
  return most / kDotLimit;
}

// What read() gave for the rows of a head, 16 numbers each. Sums of one block of columns are brought together as whole numbers;
// those of more would not fit 32 bits and are floats from the start.
MAMBAC_INLINE void dot_put(float* sums, Vec lanes, bool single, bool first) {
  v_store(sums, single ? lanes : first ? fixed_floats(lanes) : v_add(v_load(sums), fixed_floats(lanes)));
}
MAMBAC_INLINE Vec dot_total(const float* sums, int count, bool single) {
  Vec part[16];
  for (int r = 0; r < 16; r++) part[r] = r < count ? v_load(sums + 16 * r) : v_zero();
  if (!single) return v_reduce16<v_add>(part);
  for (int r = 0; r < 8; r++) part[r] = w_sum_of(part[r], part[r + 8]);
  return w_sum16(part);
}

// All p rows of a head's codes against the planes; `sums` has room for 16 numbers a row. The codes `next` behind are fetched.
template <class Dot, int kBlocks>
MAMBAC_INLINE void dot_head(const DotPlanes* k, const uint8_t* codes, Int bytes, Int blocks, Int p, Int next, float* sums, float* out) {
  const bool single = kBlocks == 1 || blocks == 1;
  for (Int i = 0; i < (kBlocks > 0 ? kBlocks : blocks); i++) {
    const Dot dot(k[i]);
    for (Int r = 0; r < p; r++) {
      const uint8_t* row = codes + r * bytes + 64 * i;
      MAMBAC_PREFETCH_READ(row + next);
      dot_put(sums + 16 * r, dot.read(row), single, i == 0);
    }
  }
  for (Int p0 = 0; p0 < p; p0 += 16) v_store(out + p0, dot_total(sums + 16 * p0, rows_left(p0, p), single));
}
