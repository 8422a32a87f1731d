// Rows of 128 codes of 4 bits in 16-bit whole numbers (static_i4.h), 16 lanes at a time.
#pragma once

MAMBAC_INLINE void fixed_store(int16_t* p, Vec a) {
  const __m256i w = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(w, 0xD8));
}
MAMBAC_INLINE __m256i twice8(__m256 a) {
  const __m256i i = _mm256_cvtps_epi32(a);
  return _mm256_blend_epi16(i, _mm256_slli_epi32(i, 16), 0xaa);
}
MAMBAC_INLINE void fixed_twice(int32_t* p, Vec a) {
  _mm256_storeu_si256((__m256i*)p, twice8(a.lo));
  _mm256_storeu_si256((__m256i*)(p + 8), twice8(a.hi));
}
MAMBAC_INLINE Vec fixed_floats(Vec lanes) {  // lanes of whole numbers
  return {_mm256_cvtepi32_ps(_mm256_castps_si256(lanes.lo)), _mm256_cvtepi32_ps(_mm256_castps_si256(lanes.hi))};
}
MAMBAC_INLINE float fixed_top(Vec a) {
  const __m256 m = _mm256_max_ps(a.lo, a.hi);
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}

// Half a row is 32 bytes: low nibbles are even columns, high ones odd. Each code plus 8 finds its two bytes in two tables;
// they are interleaved in 128-bit lanes, which the packing at the end undoes.
struct FixedRow {
  enum { kSingle = 0 };
  NibbleDot dot;
  __m256i low, high;  // bytes of the table, from code -8 on
  const int16_t* b;   // vectors of 16: half a row, even and odd columns, first and second eight of each lane
  static MAMBAC_MEMBER __m256i pairs(const int16_t* natural, int i) {  // columns 2 i .. 2 i + 7, 2 i + 32 .. 2 i + 39
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(natural + 2 * i))),
                                   _mm_loadu_si128((const __m128i*)(natural + 2 * i + 32)), 1);
  }
  static MAMBAC_MEMBER void order(int16_t* out, const int16_t* natural) {
    for (int half = 0; half < 2; half++)
      for (int part = 0; part < 2; part++) {
        const __m256i x = pairs(natural + 64 * half, 8 * part), y = pairs(natural + 64 * half, 8 * part + 4);
        const __m256i even = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_slli_epi32(x, 16), 16), _mm256_srai_epi32(_mm256_slli_epi32(y, 16), 16));
        const __m256i odd = _mm256_packs_epi32(_mm256_srai_epi32(x, 16), _mm256_srai_epi32(y, 16));
        _mm256_storeu_si256((__m256i*)(out + 64 * half + 16 * part), even);
        _mm256_storeu_si256((__m256i*)(out + 64 * half + 32 + 16 * part), odd);
      }
  }
  MAMBAC_MEMBER FixedRow(const DotPlanes& planes, const int16_t* values, const int16_t* ordered) : dot(planes), b(ordered) {
    __m256i v = _mm256_permute4x64_epi64(_mm256_loadu_si256((const __m256i*)values), 0x4E);
    const __m256i l = _mm256_and_si256(v, _mm256_set1_epi16(255)), h = _mm256_srli_epi16(v, 8);
    low = _mm256_permute4x64_epi64(_mm256_packus_epi16(l, l), 0x88);
    high = _mm256_permute4x64_epi64(_mm256_packus_epi16(h, h), 0x88);
  }
  // 32 codes plus 8 as two vectors of new values, plus 1/2.
  MAMBAC_MEMBER void advance(__m256i codes, __m256i x, const int16_t* at, __m256i* w) const {
    const __m256i l = _mm256_shuffle_epi8(low, codes), h = _mm256_shuffle_epi8(high, codes);
    w[0] = _mm256_adds_epi16(_mm256_unpacklo_epi8(l, h), _mm256_mulhrs_epi16(x, _mm256_loadu_si256((const __m256i*)at)));
    w[1] = _mm256_adds_epi16(_mm256_unpackhi_epi8(l, h), _mm256_mulhrs_epi16(x, _mm256_loadu_si256((const __m256i*)(at + 16))));
  }
  MAMBAC_MEMBER Vec row(const uint8_t* in, const int32_t* fed, uint8_t* out) const {
    const __m256i x = _mm256_set1_epi32(*fed), mask = _mm256_set1_epi8(15);
    __m256i sum[2];
    for (int half = 0; half < 2; half++) {
      const __m256i r = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)(in + 32 * half)), _mm256_set1_epi8((char)0x88));
      const __m256i evens = _mm256_and_si256(r, mask), odds = _mm256_and_si256(_mm256_srli_epi16(r, 4), mask);
      sum[half] = _mm256_sub_epi32(dot.sums(evens, odds, half), dot.bias[half]);
      __m256i even[2], odd[2];
      advance(evens, x, b + 64 * half, even);
      advance(odds, x, b + 64 * half + 32, odd);
      // A code of -8 is put right in bytes.
      const __m256i l = _mm256_max_epi8(_mm256_packs_epi16(_mm256_srai_epi16(even[0], 12), _mm256_srai_epi16(even[1], 12)), _mm256_set1_epi8(-7));
      const __m256i h = _mm256_max_epi8(_mm256_packs_epi16(_mm256_srai_epi16(odd[0], 8), _mm256_srai_epi16(odd[1], 8)), _mm256_set1_epi8(-7 * 16));
      _mm256_storeu_si256((__m256i*)(out + 32 * half), _mm256_or_si256(_mm256_and_si256(mask, l), _mm256_andnot_si256(mask, h)));
    }
    return {_mm256_castsi256_ps(sum[0]), _mm256_castsi256_ps(sum[1])};
  }
};
