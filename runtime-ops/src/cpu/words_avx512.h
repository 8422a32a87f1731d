// 128 columns of a row as four vectors of 16-bit whole numbers (exact_i4.h). Word w of vector j is column 4 w + j, which is
// nibble j of word w of a row of codes.
#pragma once

struct Words {
  __m512i v;
};
constexpr int kMaximaWords = 4;  // vectors of which registers hold the largest and the smallest words
MAMBAC_INLINE Words w_load(const int16_t* p) { return {_mm512_loadu_si512(p)}; }
MAMBAC_INLINE void w_store(int16_t* p, Words a) { _mm512_storeu_si512(p, a.v); }
MAMBAC_INLINE Words w_set(const int32_t* twice) { return {_mm512_set1_epi32(*twice)}; }
MAMBAC_INLINE Words w_zero() { return {_mm512_setzero_si512()}; }
MAMBAC_INLINE Words w_add(Words a, Words b) { return {_mm512_add_epi16(a.v, b.v)}; }
MAMBAC_INLINE Words w_product(Words a, Words b) { return {_mm512_mulhrs_epi16(a.v, b.v)}; }  // a b / 32768, rounded
MAMBAC_INLINE Words w_abs(Words a) { return {_mm512_abs_epi16(a.v)}; }
MAMBAC_INLINE Words w_max(Words a, Words b) { return {_mm512_max_epi16(a.v, b.v)}; }
MAMBAC_INLINE Words w_min(Words a, Words b) { return {_mm512_min_epi16(a.v, b.v)}; }
MAMBAC_INLINE Words w_minus(Words a) { return {_mm512_sub_epi16(_mm512_setzero_si512(), a.v)}; }
// Two vectors of floats, rounded, as the even and the odd words, and back.
MAMBAC_INLINE Words w_join(Vec even, Vec odd) {
  return {_mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_cvtps_epi32(even.v), _mm512_slli_epi32(_mm512_cvtps_epi32(odd.v), 16))};
}
MAMBAC_INLINE Vec w_even(Words a) { return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(a.v, 16), 16))}; }
MAMBAC_INLINE Vec w_odd(Words a) { return {_mm512_cvtepi32_ps(_mm512_srai_epi32(a.v, 16))}; }
MAMBAC_INLINE Vec w_lanes(Words a) { return {_mm512_castsi512_ps(a.v)}; }  // the words of a vector as its lanes
// Numbers to codes: products with `mantissa` halves and a power of two, rounded twice. The powers are shifts that bring a code
// to the highest four bits of a byte, with as many behind it as tell where half of one is added; bytes are put together first.
struct WordSteps {
  __m512i half[4], shift[4];
  MAMBAC_MEMBER WordSteps(const Vec* mantissa, const Vec* power) {
    for (int j = 0; j < 4; j++) {
      const __m512i even = _mm512_srli_epi32(_mm512_castps_si512(power[j].v), 23), odd = _mm512_srli_epi32(_mm512_castps_si512(power[j + 4].v), 23);
      const __m512i both = _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));  // 0 makes shifts of more than 15, and codes 0
      const __m512i up = _mm512_sub_epi16(both, _mm512_set1_epi16(127 - 13));
      shift[j] = j < 2 ? _mm512_sub_epi16(_mm512_set1_epi16(8), up) : up;
      half[j] = w_join(mantissa[j], mantissa[j + 4]).v;
    }
  }
  MAMBAC_MEMBER __m512i bytes(const Words* n, int j) const {  // of vectors j and j + 2
    const __m512i low = _mm512_srav_epi16(_mm512_mulhrs_epi16(n[j].v, half[j]), shift[j]);
    const __m512i high = _mm512_sllv_epi16(_mm512_mulhrs_epi16(n[j + 2].v, half[j + 2]), shift[j + 2]);
    return _mm512_add_epi8(_mm512_ternarylogic_epi32(_mm512_set1_epi16(0x00ff), low, high, 0xCA), _mm512_set1_epi8(8));  // mask ? a : b
  }
  MAMBAC_MEMBER void pack(uint8_t* out, const Words* n) const {
    const __m512i even = _mm512_srli_epi16(bytes(n, 0), 4);
    _mm512_storeu_si512(out, _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), even, bytes(n, 1), 0xCA));
  }
};

// Two rows of 16 sums of whole numbers, or of 32 words, as one vector: of lanes i and i + 8 of the first, then of the other.
MAMBAC_INLINE __m512i halves_of(Vec a, Vec b) { return _mm512_mask_blend_epi32(0xFF00, _mm512_castps_si512(a.v), _mm512_castps_si512(b.v)); }
MAMBAC_INLINE __m512i other_halves_of(Vec a, Vec b) { return _mm512_shuffle_i64x2(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v), 0x4E); }
MAMBAC_INLINE Vec w_sum_of(Vec a, Vec b) { return {_mm512_castsi512_ps(_mm512_add_epi32(halves_of(a, b), other_halves_of(a, b)))}; }
MAMBAC_INLINE Vec w_larger_of(Vec a, Vec b) { return {_mm512_castsi512_ps(_mm512_max_epi16(halves_of(a, b), other_halves_of(a, b)))}; }
// Lane i of the result is the sum over row i, r and r + 8 being those of vector r. Any four numbers of a row fit 32 bits.
MAMBAC_INLINE Vec w_sum16(const Vec* s) {
  const __m512i quarters = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
  const __m512i singles = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
  __m512 u[4], w[2];
  for (int i = 0; i < 4; i++) {
    const __m512i a = _mm512_castps_si512(s[i].v), b = _mm512_castps_si512(s[i + 4].v);
    u[i] = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_mask_blend_epi32(0xF0F0, a, b), _mm512_permutex2var_epi32(a, quarters, b)));
  }
  for (int i = 0; i < 2; i++) w[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xCCCC, u[i], u[i + 2]), _mm512_shuffle_ps(u[i], u[i + 2], 0x4E));
  return {_mm512_add_ps(_mm512_mask_blend_ps(0xAAAA, w[0], w[1]), _mm512_permutex2var_ps(w[0], singles, w[1]))};
}
// The same for the larger ones of even and of odd words.
MAMBAC_INLINE Words w_larger16(const Vec* s) {
  const __m512i quarters = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
  const __m512i singles = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
  __m512i u[4], w[2];
  for (int i = 0; i < 4; i++) {
    const __m512i a = _mm512_castps_si512(s[i].v), b = _mm512_castps_si512(s[i + 4].v);
    u[i] = _mm512_max_epi16(_mm512_mask_blend_epi32(0xF0F0, a, b), _mm512_permutex2var_epi32(a, quarters, b));
  }
  for (int i = 0; i < 2; i++) {
    const __m512 a = _mm512_castsi512_ps(u[i]), b = _mm512_castsi512_ps(u[i + 2]);
    w[i] = _mm512_max_epi16(_mm512_mask_blend_epi32(0xCCCC, u[i], u[i + 2]), _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x4E)));
  }
  return {_mm512_max_epi16(_mm512_mask_blend_epi32(0xAAAA, w[0], w[1]), _mm512_permutex2var_epi32(w[0], singles, w[1]))};
}

template <bool kVnni>
struct ExactRowOf {
  // Planes (dot_planes.h), the same with their halves exchanged, and what the 8 adds to the sums of both, taken off.
  __m512i c[3][2], turned[3][2], start[3];
  // Coefficients in the order of StridedI4's vectors, times `scale`: the four bytes of a lane of a plane are every other vector's.
  MAMBAC_MEMBER ExactRowOf(const Vec* read, Vec scale) {
    const __m512i low = _mm512_set1_epi32(0x00ff00ff), words = _mm512_set1_epi32(0xffff), eight = _mm512_set1_epi8(8), zero = _mm512_setzero_si512();
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    for (int odd = 0; odd < 2; odd++) {
      __m512i x[4];  // bytes plus 128
      for (int i = 0; i < 4; i++)
        x[i] = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(read[2 * i + odd].v, scale.v)), _mm512_set1_epi32(0x808080));
      const __m512i a = _mm512_ternarylogic_epi32(words, x[0], _mm512_slli_epi32(x[2], 16), 0xCA);  // mask ? a : b
      const __m512i b = _mm512_ternarylogic_epi32(words, x[1], _mm512_slli_epi32(x[3], 16), 0xCA);
      const __m512i d = _mm512_ternarylogic_epi32(words, _mm512_srli_epi32(x[0], 16), x[2], 0xCA);
      const __m512i f = _mm512_ternarylogic_epi32(words, _mm512_srli_epi32(x[1], 16), x[3], 0xCA);
      c[0][odd] = _mm512_xor_si512(_mm512_ternarylogic_epi32(low, a, _mm512_slli_epi16(b, 8), 0xCA), flip);
      c[1][odd] = _mm512_xor_si512(_mm512_ternarylogic_epi32(low, _mm512_srli_epi16(a, 8), b, 0xCA), flip);
      c[2][odd] = _mm512_xor_si512(_mm512_ternarylogic_epi32(low, d, _mm512_slli_epi16(f, 8), 0xCA), flip);
    }
    for (int plane = 0; plane < 3; plane++) {
      for (int odd = 0; odd < 2; odd++) turned[plane][odd] = _mm512_shuffle_i64x2(c[plane][odd], c[plane][odd], 0x4E);
      start[plane] = _mm512_sub_epi32(zero, products(turned[plane], eight, eight, products(c[plane], eight, eight, zero)));
    }
  }
  static MAMBAC_MEMBER __m512i products(const __m512i* by, __m512i even, __m512i odd, __m512i from) {
    if (kVnni) return NibbleDotOf<true>::add(NibbleDotOf<true>::add(from, even, by[0]), odd, by[1]);
    const __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16(even, by[0]), _mm512_maddubs_epi16(odd, by[1]));
    return _mm512_add_epi32(from, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
  // The sums of a row of codes times the coefficients, and of the row 8 behind it, in half as many lanes each: halves of both rows
  // are exchanged before they are multiplied. The planes on their own: short chains of dependent instructions.
  MAMBAC_MEMBER Vec read(const uint8_t* codes) const {
    const __m512i a = _mm512_loadu_si512(codes), b = _mm512_loadu_si512(codes + 512), mask = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8);
    const __m512i r[2] = {_mm512_mask_blend_epi64(0xF0, a, b), _mm512_shuffle_i64x2(a, b, 0x4E)};
    __m512i even[2], odd[2], sums = _mm512_setzero_si512();
    for (int i = 0; i < 2; i++) {
      even[i] = _mm512_ternarylogic_epi32(r[i], mask, eight, 0x6A);  // (r & mask) ^ eight: codes plus 8
      odd[i] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(r[i], 4), mask, eight, 0x6A);
    }
    for (int plane = 2; plane >= 0; plane--) {
      const __m512i all = products(turned[plane], even[1], odd[1], products(c[plane], even[0], odd[0], start[plane]));
      sums = plane == 2 ? all : _mm512_add_epi32(_mm512_slli_epi32(sums, 8), all);
    }
    return w_lanes({sums});
  }
  // Codes times what 4096ths of one are worth; a permute reads five bits of each word, and the table is there twice.
  struct Codes {
    __m512i row, table;
    MAMBAC_MEMBER Codes(const uint8_t* codes, const int32_t* worth) : row(_mm512_loadu_si512(codes)) {
      alignas(64) static constexpr int16_t kSteps[32] = {0,      4096,   8192,   12288,  16384,  20480, 24576, 28672, -32768, -28672, -24576,
                                                         -20480, -16384, -12288, -8192,  -4096,  0,     4096,  8192,  12288,  16384,  20480,
                                                         24576,  28672,  -32768, -28672, -24576, -20480, -16384, -12288, -8192, -4096};
      table = _mm512_mulhrs_epi16(_mm512_load_si512(kSteps), _mm512_set1_epi32(*worth));
    }
    MAMBAC_MEMBER Words nibbles(int j) const {
      return {_mm512_permutexvar_epi16(j == 0 ? row : _mm512_srli_epi16(row, (unsigned)(4 * j)), table)};
    }
  };
  // Sums of two neighbouring words times weights in each lane, over four vectors.
  static MAMBAC_MEMBER Vec weighed(const Words* a, const Words* weight) {
    __m512i sum[2];
    for (int j = 0; j < 2; j++) sum[j] = _mm512_madd_epi16(a[j].v, weight[j].v);
    for (int j = 0; j < 2; j++) {
      const __m512i x = a[2 + j].v, y = weight[2 + j].v;
#if !defined(_MSC_VER) || defined(__clang__)
      if (kVnni) {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(sum[j]) : "v"(x), "v"(y));
        continue;
      }
#endif
      sum[j] = _mm512_add_epi32(sum[j], _mm512_madd_epi16(x, y));
    }
    return w_lanes({_mm512_add_epi32(sum[0], sum[1])});
  }
};
