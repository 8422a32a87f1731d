// Rows of 128 codes of 4 bits in 16-bit whole numbers (static_i4.h): one at a time, the reference for the vector units.
#pragma once

// 16 floats as 16-bit numbers, nearest even; they are within range.
static inline void fixed_store(int16_t* p, Vec a) {
  for (int i = 0; i < 16; i++) p[i] = (int16_t)(int32_t)round_even(a.v[i]);
}
// The same, each twice in a 32-bit number.
static inline void fixed_twice(int32_t* p, Vec a) {
  for (int i = 0; i < 16; i++) p[i] = (int32_t)((uint32_t)(uint16_t)(int16_t)(int32_t)round_even(a.v[i]) * 0x10001u);
}
static inline Vec fixed_floats(Vec lanes) {  // lanes of whole numbers
  int32_t t[16];
  memcpy(t, &lanes, sizeof t);
  for (int i = 0; i < 16; i++) lanes.v[i] = (float)t[i];
  return lanes;
}
static inline float fixed_top(Vec a) { return reduce1<v_max>(a); }

struct FixedRow {
  enum { kSingle = 0 };
  NibbleDot dot;
  const int16_t *table, *b;
  // What `b` is in the order this reads it: that of the columns.
  static void order(int16_t* out, const int16_t* natural) { memcpy(out, natural, 128 * sizeof *out); }
  FixedRow(const DotPlanes& planes, const int16_t* values, const int16_t* ordered) : dot(planes), table(values), b(ordered) {}
  // The sums of the old codes as whole numbers; the new codes go to `out`. `fed`: a 16-bit number, twice.
  Vec row(const uint8_t* in, const int32_t* fed, uint8_t* out) const {
    const Vec sum = dot.read(in);
    const int x = (int16_t)*fed;
    for (int i = 0; i < 128; i++) {
      int w = table[nibble(in, i) & 15] + ((x * b[i] + 0x4000) >> 15);
      w = w > 32767 ? 32767 : w < -7 * 4096 ? -7 * 4096 : w;
      set_nibble(out, i, w >> 12);
    }
    return sum;
  }
};
