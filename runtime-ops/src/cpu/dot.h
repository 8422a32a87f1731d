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
  float tops[16], sums[16], most = 0, total = 0;
  v_store(tops, top);
  v_store(sums, sum);
  for (int i = 0; i < 16; i++) {
    most = tops[i] > most ? tops[i] : most;
    total += sums[i];
  }
  if (!(most > 1e-25f && most < 1e25f && 32 * total >= (float)n * most)) return 0;
  const Vec scale = v_set(kDotLimit / most);
  for (Int i = 0; i < n; i += 128) split_planes(k[i / 128], c + i, scale);
  return most / kDotLimit;
}

// Rows 0 .. count - 1 of codes against the planes.
template <class Dot, int kBlocks>
MAMBAC_INLINE void dot_rows(const DotPlanes* k, const uint8_t* codes, Int bytes, Int blocks, int count, Vec* sums) {
  if (kBlocks == 1 && count == 16) {
    const Dot dot(k[0]);
    MAMBAC_UNROLL16
    for (int r = 0; r < 16; r++) sums[r] = dot.row(codes + r * bytes);
    return;
  }
  for (int r = count; r < 16; r++) sums[r] = v_zero();
  for (Int i = 0; i < (kBlocks > 0 ? kBlocks : blocks); i++) {
    const Dot dot(k[i]);
    for (int r = 0; r < count; r++) {
      const Vec sum = dot.row(codes + r * bytes + 64 * i);
      sums[r] = i == 0 ? sum : v_add(sums[r], sum);
    }
  }
}
