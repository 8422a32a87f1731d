// Rows of 128 codes of 4 bits in 16-bit whole numbers (static_i4.h), 32 lanes at a time.
#pragma once

MAMBAC_INLINE void fixed_store(int16_t* p, Vec a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a.v))); }
MAMBAC_INLINE void fixed_twice(int32_t* p, Vec a) {
  const __m512i i = _mm512_cvtps_epi32(a.v);
  _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xaaaaaaaa, i, _mm512_slli_epi32(i, 16)));
}
MAMBAC_INLINE Vec fixed_floats(Vec lanes) { return {_mm512_cvtepi32_ps(_mm512_castps_si512(lanes.v))}; }  // lanes of whole numbers
MAMBAC_INLINE float fixed_top(Vec a) { return _mm512_reduce_max_ps(a.v); }

// Vector j holds nibble j of every 16-bit word, columns 4 w + j: one shift of the row, and a permute that reads five bits of
// each word, of which the fifth is ignored as the table is there twice.
template <bool kVnni>
struct FixedRowOf {
  enum { kSingle = 1 };  // a loop of its own for rows of one block pays
  NibbleDotOf<kVnni> dot;
  __m512i table, b[4];
  static MAMBAC_MEMBER void order(int16_t* out, const int16_t* natural) {
    alignas(64) static constexpr int16_t kEvery[32] = {0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60,
                                                       0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60};
    __m512i z[4];
    for (int i = 0; i < 4; i++) z[i] = _mm512_loadu_si512(natural + 32 * i);
    for (int j = 0; j < 4; j++) {
      const __m512i at = _mm512_add_epi16(_mm512_load_si512(kEvery), _mm512_set1_epi16((short)j));
      const __m512i low = _mm512_permutex2var_epi16(z[0], at, z[1]), high = _mm512_permutex2var_epi16(z[2], at, z[3]);
      _mm512_storeu_si512(out + 32 * j, _mm512_mask_blend_epi64(0xf0, low, high));
    }
  }
  MAMBAC_MEMBER FixedRowOf(const DotPlanes& planes, const int16_t* values, const int16_t* ordered) : dot(planes) {
    table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)values));
    for (int j = 0; j < 4; j++) b[j] = _mm512_loadu_si512(ordered + 32 * j);
  }
  // The sums of the old codes as whole numbers; the new codes go to `out`.
  MAMBAC_MEMBER Vec row(const uint8_t* in, const int32_t* fed, uint8_t* out) const {
    const __m512i r = _mm512_loadu_si512(in), x = _mm512_set1_epi32(*fed), mask = _mm512_set1_epi8(15);
    const __m512i sums = dot.whole(r);
    __m512i w[4];
    for (int j = 0; j < 4; j++) {
      w[j] = _mm512_permutexvar_epi16(j == 0 ? r : _mm512_srli_epi16(r, (unsigned)(4 * j)), table);
      w[j] = _mm512_adds_epi16(w[j], _mm512_mulhrs_epi16(x, b[j]));
    }
    // The upper bytes of two vectors as one, which a code of -8 is put right in.
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15)), bottom = _mm512_set1_epi8(-7 * 16);
    const __m512i low = _mm512_max_epi8(_mm512_mask_shuffle_epi8(w[2], 0x5555555555555555, w[0], order), bottom);
    const __m512i high = _mm512_max_epi8(_mm512_mask_shuffle_epi8(w[3], 0x5555555555555555, w[1], order), bottom);
    _mm512_storeu_si512(out, _mm512_ternarylogic_epi32(_mm512_srli_epi16(low, 4), high, mask, 0xE4));  // mask ? low : high
    return {_mm512_castsi512_ps(sums)};
  }
};
typedef FixedRowOf<false> FixedRow;
