// 128 columns of a row as four vectors of 16-bit whole numbers (exact_i4.h). Word w of vector j is column 4 w + j, which is
// nibble j of word w of a row of codes.
#pragma once

struct Words {
  int16_t v[32];
};
constexpr int kMaximaWords = 1;  // vectors of which registers hold the largest and the smallest words
#define MAMBAC_WORDS(value)                                      \
  Words r;                                                       \
  for (int i = 0; i < 32; i++) r.v[i] = (int16_t)(value);        \
  return r
static inline Words w_load(const int16_t* p) { MAMBAC_WORDS(p[i]); }
static inline void w_store(int16_t* p, Words a) { memcpy(p, a.v, sizeof a.v); }
static inline Words w_set(const int32_t* twice) { MAMBAC_WORDS((int16_t)*twice); }
static inline Words w_zero() { MAMBAC_WORDS(0); }
static inline Words w_add(Words a, Words b) { MAMBAC_WORDS(a.v[i] + b.v[i]); }
static inline Words w_product(Words a, Words b) { MAMBAC_WORDS((a.v[i] * b.v[i] + 0x4000) >> 15); }  // a b / 32768, rounded
static inline Words w_abs(Words a) { MAMBAC_WORDS(a.v[i] < 0 ? -a.v[i] : a.v[i]); }
static inline Words w_max(Words a, Words b) { MAMBAC_WORDS(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
static inline Words w_min(Words a, Words b) { MAMBAC_WORDS(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
static inline Words w_minus(Words a) { MAMBAC_WORDS(-a.v[i]); }
// Two vectors of floats, rounded, as the even and the odd words, and back.
static inline Words w_join(Vec even, Vec odd) { MAMBAC_WORDS((int32_t)round_even(i % 2 ? odd.v[i / 2] : even.v[i / 2])); }
static inline Vec w_even(Words a) {
  Vec r;
  for (int i = 0; i < 16; i++) r.v[i] = (float)a.v[2 * i];
  return r;
}
static inline Vec w_odd(Words a) {
  Vec r;
  for (int i = 0; i < 16; i++) r.v[i] = (float)a.v[2 * i + 1];
  return r;
}
static inline Vec w_lanes(Words a) {  // the words of a vector as its lanes
  Vec r;
  memcpy(&r, &a, sizeof r);
  return r;
}
// Numbers to codes: products with `mantissa` halves and a power of two, rounded twice.
struct WordSteps {
  Words half[4], rest[4];
  WordSteps(const Vec* mantissa, const Vec* power) {
    const Vec one = v_set(65536.0f);
    for (int j = 0; j < 4; j++) {
      half[j] = w_join(mantissa[j], mantissa[j + 4]);
      rest[j] = w_join(v_mul(power[j], one), v_mul(power[j + 4], one));
    }
  }
  void pack(uint8_t* out, const Words* numbers) const {
    Words n[4];
    for (int j = 0; j < 4; j++) n[j] = w_product(w_product(numbers[j], half[j]), rest[j]);
    for (int i = 0; i < 64; i++) out[i] = (uint8_t)((n[i % 2 * 2].v[i / 2] & 15) | (n[i % 2 * 2 + 1].v[i / 2] & 15) << 4);
  }
};

// Two rows of 16 sums of whole numbers, or of 32 words, as one vector: of lanes i and i + 8 of the first, then of the other.
static inline Vec w_sum_of(Vec a, Vec b) {
  int32_t t[2][16], s[16];
  Vec r;
  memcpy(t[0], &a, sizeof a);
  memcpy(t[1], &b, sizeof b);
  for (int i = 0; i < 16; i++) s[i] = t[i / 8][i % 8] + t[i / 8][i % 8 + 8];
  memcpy(&r, s, sizeof s);
  return r;
}
static inline Vec w_larger_of(Vec a, Vec b) {
  Words t[2], s;
  memcpy(&t[0], &a, sizeof a);
  memcpy(&t[1], &b, sizeof b);
  for (int i = 0; i < 32; i++) {
    const int16_t x = t[i / 16].v[i % 16], y = t[i / 16].v[i % 16 + 16];
    s.v[i] = x > y ? x : y;
  }
  return w_lanes(s);
}
// Lane i of the result is the sum over row i, r and r + 8 being those of vector r. Any four numbers of a row fit 32 bits.
static inline Vec w_sum16(const Vec* rows) {
  Vec r;
  for (int i = 0; i < 16; i++) {
    int32_t t[16];
    float u[4];
    memcpy(t, &rows[i % 8], sizeof t);
    for (int k = 0; k < 4; k++) u[k] = (float)(t[i / 8 * 8 + k] + t[i / 8 * 8 + k + 4]);
    r.v[i] = (u[0] + u[2]) + (u[1] + u[3]);
  }
  return r;
}
// The same for the larger ones of even and of odd words.
static inline Words w_larger16(const Vec* rows) {
  Words r;
  for (int i = 0; i < 32; i++) {
    Words t;
    memcpy(&t, &rows[i / 2 % 8], sizeof t);
    r.v[i] = t.v[i / 16 * 16 + i % 2];
    for (int k = 1; k < 8; k++) {
      const int16_t x = t.v[i / 16 * 16 + 2 * k + i % 2];
      if (x > r.v[i]) r.v[i] = x;
    }
  }
  return r;
}

struct ExactRow {
  int32_t c[128];
  // Coefficients in the order of StridedI4's vectors, times `scale`.
  ExactRow(const Vec* read, Vec scale) {
    for (int k = 0; k < 8; k++) {
      const Vec whole = v_round(v_mul(read[k], scale));
      for (int d = 0; d < 16; d++) c[8 * d + k] = (int32_t)whole.v[d];
    }
  }
  // The sums of a row of codes times the coefficients, and of the row 8 behind it, in half as many lanes each.
  Vec read(const uint8_t* codes) const {
    int32_t sums[16] = {0};
    for (int i = 0; i < 256; i++) sums[i / 128 * 8 + i % 64 / 8] += nibble(codes + i / 128 * 512, i % 128) * c[i % 128];
    Vec r;
    memcpy(&r, sums, sizeof sums);
    return r;
  }
  // Codes, in 4096ths, times what one of those is worth.
  struct Codes {
    const uint8_t* row;
    int worth;
    Codes(const uint8_t* codes, const int32_t* twice) : row(codes), worth((int16_t)*twice) {}
    Words nibbles(int j) const { MAMBAC_WORDS((4096 * nibble(row, 4 * i + j) * worth + 0x4000) >> 15); }
  };
  // Sums of two neighbouring words times weights in each lane, over four vectors.
  static Vec weighed(const Words* a, const Words* weight) {
    int32_t sums[16] = {0};
    for (int i = 0; i < 128; i++) sums[i % 32 / 2] += a[i / 32].v[i % 32] * weight[i / 32].v[i % 32];
    Vec r;
    memcpy(&r, sums, sizeof sums);
    return r;
  }
};
#undef MAMBAC_WORDS
