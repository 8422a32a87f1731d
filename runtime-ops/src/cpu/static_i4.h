// Static 4-bit states with rows of whole 128 columns, in 16-bit whole numbers: half the instructions of float lanes.
//
// A code times the decay is looked up in a table of sixteen 4096ths of a step; what is fed is a rounded product of two
// 16-bit numbers; adding one half with saturation and keeping the top four bits rounds. So a code may be its neighbour where
// h / step is within 2^-11 of a tie. y does not suffer: it is read from the old codes, exactly (dot.h),
//   y_p = a row_p sum_n q (C_n column_n) + d x_p (B C) + D x_p.
#pragma once

constexpr Int kStaticAhead = 4096;  // bytes that codes are fetched ahead: the next head, where P N = 8192 and codes have 4 bits
constexpr float kFixedUnit = 4096.0f;
constexpr float kFixedMost = 7.9f;  // steps fed to one code at the most, so that the product fits
alignas(64) constexpr float kFixedCodes[16] = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};

// What the heads of a group share of one token, in the order of the columns. The last two only for rows of whole 128.
struct StaticGroup {
  float largest;   // of |b|
  float product;   // B C
  float unit;      // of the planes; 0: nothing here is in whole numbers
  float per_unit;  // of `ordered` numbers: b = ordered / per_unit
  const float *b, *c;  // B / column, C column
  const DotPlanes* planes;
  const int16_t* ordered;
};
// One token of one head.
struct StaticHead {
  Int p, n;
  float delta, decay;
  const float *row, *per_row, *x, *D;  // [P]; per_row: 1 / row, in whole vectors
  float* y;
};

// kBlocks: blocks of 128 columns a row when known at compile time, else 0. False, and nothing is done, where the numbers do not fit 16 bits. `most`: the largest |d x / row|.
template <class Row, int kBlocks>
static bool fixed_token(const StaticHead& s, const StaticGroup& k, float most, const uint8_t* past, uint8_t* present, Carve scratch) {
  if (!(k.unit != 0 && most * k.largest < kFixedMost && s.decay <= 1.0f)) return false;
  const Int p = s.p, blocks = kBlocks > 0 ? kBlocks : s.n / 128, bytes = 64 * blocks;
  int32_t* fed = (int32_t*)scratch.take(p);
  float* sums = scratch.take(16 * round16(p));
  const Vec scale = v_set(s.delta * (kFixedUnit * 32768.0f / k.per_unit));
  for (Int i = 0; i < p; i += 16) fixed_twice(fed + i, v_mul(v_mul(scale, v_load_n(s.x + i, rows_left(i, p))), v_load(s.per_row + i)));
  int16_t table[16];
  fixed_store(table, v_add(v_round(v_mul(v_load(kFixedCodes), v_set(s.decay * kFixedUnit))), v_set(kFixedUnit / 2)));
  const bool single = kBlocks == 1 || blocks == 1;
  for (Int i = 0; i < blocks; i++) {
    const Row step(k.planes[i], table, k.ordered + 128 * i);
    for (Int r = 0; r < p; r++) {
      const Int at = r * bytes + 64 * i;
      MAMBAC_PREFETCH(past + at + kStaticAhead);
      dot_put(sums + 16 * r, step.row(past + at, fed + r, present + at), single, i == 0);
    }
  }
  // Sums of all rows after them: nothing of the next rows waits for these.
  const Vec worth = v_set(s.decay * k.unit), shared = v_set(s.delta * k.product);
  for (Int p0 = 0; p0 < p; p0 += 16) {
    const int count = rows_left(p0, p);
    const Vec x = v_load_n(s.x + p0, count), rest = v_mul(x, v_add(shared, v_load_n(s.D + p0, count)));
    v_store_n(s.y + p0, v_fma(v_mul(v_load_n(s.row + p0, count), worth), dot_total(sums + 16 * p0, count, single), rest), count);
  }
  return true;
}
