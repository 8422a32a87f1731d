// 128 columns of a row as four vectors of 16-bit whole numbers (exact_i4.h). Word w of vector j is column 4 w + j, which is
// nibble j of word w of a row of codes.
#pragma once

struct Words {
  __m256i lo, hi;
};
constexpr int kMaximaWords = 2;  // vectors of which registers hold the largest and the smallest words
MAMBAC_INLINE Words w_load(const int16_t* p) { return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 16))}; }
MAMBAC_INLINE void w_store(int16_t* p, Words a) {
  _mm256_storeu_si256((__m256i*)p, a.lo);
  _mm256_storeu_si256((__m256i*)(p + 16), a.hi);
}
MAMBAC_INLINE Words w_set(const int32_t* twice) { return {_mm256_set1_epi32(*twice), _mm256_set1_epi32(*twice)}; }
MAMBAC_INLINE Words w_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
MAMBAC_INLINE Words w_add(Words a, Words b) { return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)}; }
MAMBAC_INLINE Words w_product(Words a, Words b) { return {_mm256_mulhrs_epi16(a.lo, b.lo), _mm256_mulhrs_epi16(a.hi, b.hi)}; }  // a b / 32768, rounded
MAMBAC_INLINE Words w_abs(Words a) { return {_mm256_abs_epi16(a.lo), _mm256_abs_epi16(a.hi)}; }
MAMBAC_INLINE Words w_max(Words a, Words b) { return {_mm256_max_epi16(a.lo, b.lo), _mm256_max_epi16(a.hi, b.hi)}; }
MAMBAC_INLINE Words w_min(Words a, Words b) { return {_mm256_min_epi16(a.lo, b.lo), _mm256_min_epi16(a.hi, b.hi)}; }
MAMBAC_INLINE Words w_minus(Words a) { return {_mm256_sub_epi16(_mm256_setzero_si256(), a.lo), _mm256_sub_epi16(_mm256_setzero_si256(), a.hi)}; }
// Two vectors of floats, rounded, as the even and the odd words, and back.
MAMBAC_INLINE __m256i join8(__m256 even, __m256 odd) {
  return _mm256_blend_epi16(_mm256_cvtps_epi32(even), _mm256_slli_epi32(_mm256_cvtps_epi32(odd), 16), 0xaa);
}
MAMBAC_INLINE Words w_join(Vec even, Vec odd) { return {join8(even.lo, odd.lo), join8(even.hi, odd.hi)}; }
MAMBAC_INLINE __m256 even8(__m256i a) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(a, 16), 16)); }
MAMBAC_INLINE Vec w_even(Words a) { return {even8(a.lo), even8(a.hi)}; }
MAMBAC_INLINE Vec w_odd(Words a) { return {_mm256_cvtepi32_ps(_mm256_srai_epi32(a.lo, 16)), _mm256_cvtepi32_ps(_mm256_srai_epi32(a.hi, 16))}; }
MAMBAC_INLINE Vec w_lanes(Words a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }  // the words of a vector as its lanes
// Codes in the low bits of four vectors to a row of nibbles.
MAMBAC_INLINE __m256i pack16(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i low = _mm256_or_si256(_mm256_and_si256(a, _mm256_set1_epi16(0x000f)), _mm256_and_si256(_mm256_slli_epi16(b, 4), _mm256_set1_epi16(0x00f0)));
  const __m256i high = _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi16(c, 8), _mm256_set1_epi16(0x0f00)), _mm256_slli_epi16(d, 12));
  return _mm256_or_si256(low, high);
}
// Numbers to codes: products with `mantissa` halves and a power of two, rounded twice.
struct WordSteps {
  Words half[4], rest[4];
  MAMBAC_MEMBER WordSteps(const Vec* mantissa, const Vec* power) {
    const Vec one = v_set(65536.0f);
    for (int j = 0; j < 4; j++) {
      half[j] = w_join(mantissa[j], mantissa[j + 4]);
      rest[j] = w_join(v_mul(power[j], one), v_mul(power[j + 4], one));
    }
  }
  MAMBAC_MEMBER void pack(uint8_t* out, const Words* numbers) const {
    Words n[4];
    for (int j = 0; j < 4; j++) n[j] = w_product(w_product(numbers[j], half[j]), rest[j]);
    _mm256_storeu_si256((__m256i*)out, pack16(n[0].lo, n[1].lo, n[2].lo, n[3].lo));
    _mm256_storeu_si256((__m256i*)(out + 32), pack16(n[0].hi, n[1].hi, n[2].hi, n[3].hi));
  }
};

// Two rows of 16 sums of whole numbers, or of 32 words, as one vector: of lanes i and i + 8 of the first, then of the other.
MAMBAC_INLINE __m256 sum_of(Vec a) { return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi))); }
MAMBAC_INLINE __m256 larger_of(__m256 a, __m256 b) { return _mm256_castsi256_ps(_mm256_max_epi16(_mm256_castps_si256(a), _mm256_castps_si256(b))); }
MAMBAC_INLINE Vec w_sum_of(Vec a, Vec b) { return {sum_of(a), sum_of(b)}; }
MAMBAC_INLINE Vec w_larger_of(Vec a, Vec b) { return {larger_of(a.lo, a.hi), larger_of(b.lo, b.hi)}; }
// Lane i of the result is the sum over row i, r and r + 8 being those of vector r. Any four numbers of a row fit 32 bits.
MAMBAC_INLINE __m256 sum8(const __m256* rows) {
  __m256 u[4], w[2];
  for (int i = 0; i < 4; i++) {
    const __m256i a = _mm256_castps_si256(rows[i]), b = _mm256_castps_si256(rows[i + 4]);
    u[i] = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31)));
  }
  for (int i = 0; i < 2; i++) w[i] = _mm256_add_ps(_mm256_shuffle_ps(u[2 * i], u[2 * i + 1], 0x44), _mm256_shuffle_ps(u[2 * i], u[2 * i + 1], 0xEE));
  return _mm256_add_ps(_mm256_shuffle_ps(w[0], w[1], 0x88), _mm256_shuffle_ps(w[0], w[1], 0xDD));
}
MAMBAC_INLINE __m256i larger8(const __m256* rows) {
  __m256 u[4], w[2];
  for (int i = 0; i < 4; i++) u[i] = larger_of(_mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20), _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31));
  for (int i = 0; i < 2; i++) w[i] = larger_of(_mm256_shuffle_ps(u[2 * i], u[2 * i + 1], 0x44), _mm256_shuffle_ps(u[2 * i], u[2 * i + 1], 0xEE));
  return _mm256_castps_si256(larger_of(_mm256_shuffle_ps(w[0], w[1], 0x88), _mm256_shuffle_ps(w[0], w[1], 0xDD)));
}
MAMBAC_INLINE Vec w_sum16(const Vec* s) {
  __m256 lo[8], hi[8];
  for (int i = 0; i < 8; i++) lo[i] = s[i].lo, hi[i] = s[i].hi;
  return {sum8(lo), sum8(hi)};
}
// The same for the larger ones of even and of odd words.
MAMBAC_INLINE Words w_larger16(const Vec* s) {
  __m256 lo[8], hi[8];
  for (int i = 0; i < 8; i++) lo[i] = s[i].lo, hi[i] = s[i].hi;
  return {larger8(lo), larger8(hi)};
}

// 64 coefficients, whole numbers, as planes: the four bytes of a lane of a plane are those of every other vector.
MAMBAC_INLINE void plane_bytes(DotPlanes& k, int odd, int at, const __m256i* c) {
  const __m256i low = _mm256_set1_epi16(0xff), bias = _mm256_set1_epi32(0x808080), flip = _mm256_set1_epi8((char)0x80);
  __m256i x[4];  // bytes plus 128
  for (int i = 0; i < 4; i++) x[i] = _mm256_add_epi32(c[i], bias);
  const __m256i a = _mm256_blend_epi16(x[0], _mm256_slli_epi32(x[2], 16), 0xaa), b = _mm256_blend_epi16(x[1], _mm256_slli_epi32(x[3], 16), 0xaa);
  const __m256i d = _mm256_blend_epi16(_mm256_srli_epi32(x[0], 16), x[2], 0xaa), f = _mm256_blend_epi16(_mm256_srli_epi32(x[1], 16), x[3], 0xaa);
  const __m256i plane[3] = {_mm256_or_si256(_mm256_and_si256(a, low), _mm256_slli_epi16(b, 8)),
                            _mm256_or_si256(_mm256_srli_epi16(a, 8), _mm256_andnot_si256(low, b)),
                            _mm256_or_si256(_mm256_and_si256(d, low), _mm256_slli_epi16(f, 8))};
  for (int i = 0; i < 3; i++) _mm256_storeu_si256((__m256i*)(k.c[i][odd] + at), _mm256_xor_si256(plane[i], flip));
}
// Coefficients in the order of StridedI4's vectors, times `scale`.
struct RowPlanes {
  DotPlanes planes;
  MAMBAC_MEMBER RowPlanes(const Vec* read, Vec scale) {
    for (int odd = 0; odd < 2; odd++) {
      __m256i lo[4], hi[4];
      for (int i = 0; i < 4; i++) {
        const Vec c = v_mul(read[2 * i + odd], scale);
        lo[i] = _mm256_cvtps_epi32(c.lo);
        hi[i] = _mm256_cvtps_epi32(c.hi);
      }
      plane_bytes(planes, odd, 0, lo);
      plane_bytes(planes, odd, 32, hi);
    }
  }
};
struct ExactRow {
  RowPlanes planes;
  NibbleDot dot;
  MAMBAC_MEMBER ExactRow(const Vec* read, Vec scale) : planes(read, scale), dot(planes.planes) {}
  // The sums of a row of codes times the coefficients, and of the row 8 behind it, in half as many lanes each.
  MAMBAC_MEMBER __m256 sums(const uint8_t* codes) const {
    const __m256i low = dot.part(_mm256_loadu_si256((const __m256i*)codes), 0), high = dot.part(_mm256_loadu_si256((const __m256i*)(codes + 32)), 1);
    return _mm256_castsi256_ps(_mm256_add_epi32(low, high));
  }
  MAMBAC_MEMBER Vec read(const uint8_t* codes) const { return {sums(codes), sums(codes + 512)}; }
  // Codes, in 4096ths, times what one of those is worth.
  struct Codes {
    __m256i lo, hi, worth;
    MAMBAC_MEMBER Codes(const uint8_t* codes, const int32_t* twice)
        : lo(_mm256_loadu_si256((const __m256i*)codes)), hi(_mm256_loadu_si256((const __m256i*)(codes + 32))), worth(_mm256_set1_epi32(*twice)) {}
    MAMBAC_MEMBER __m256i product(__m256i row, int j) const {
      return _mm256_mulhrs_epi16(_mm256_and_si256(_mm256_slli_epi16(row, 12 - 4 * j), _mm256_set1_epi16((short)0xf000)), worth);
    }
    MAMBAC_MEMBER Words nibbles(int j) const { return {product(lo, j), product(hi, j)}; }
  };
  // Sums of two neighbouring words times weights in each lane, over four vectors.
  static MAMBAC_MEMBER Vec weighed(const Words* a, const Words* weight) {
    __m256i lo = _mm256_madd_epi16(a[0].lo, weight[0].lo), hi = _mm256_madd_epi16(a[0].hi, weight[0].hi);
    for (int j = 1; j < 4; j++) {
      lo = _mm256_add_epi32(lo, _mm256_madd_epi16(a[j].lo, weight[j].lo));
      hi = _mm256_add_epi32(hi, _mm256_madd_epi16(a[j].hi, weight[j].hi));
    }
    return w_lanes({lo, hi});
  }
};
