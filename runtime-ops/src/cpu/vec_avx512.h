// Sixteen float lanes in one AVX-512 register. Included inside an instruction set's own namespace.
#pragma once
#include "dot_planes.h"
#include "vec_x64.h"

struct Vec {
  __m512 v;
};
struct HalfVec {
  __m256i v;
};
constexpr int kTileRows = 2;   // prefill register tile: vectors of channels ...
constexpr int kTileStates = 8;  // ... times states
constexpr int kStepRows = 4;    // packed decode: rows that share one load of B, C and the steps
constexpr int kFoldRows = 4;    // the same in units of the old steps
constexpr int kReplayRows = 4;   // rebuilding a replayed state: rows ...
constexpr int kReplayWide = 4;   // ... times vectors of columns

MAMBAC_INLINE __mmask16 lanes(int n) { return (__mmask16)((1u << n) - 1u); }
MAMBAC_INLINE Vec v_zero() { return {_mm512_setzero_ps()}; }
MAMBAC_INLINE Vec v_set(float f) { return {_mm512_set1_ps(f)}; }
MAMBAC_INLINE Vec v_load(const float* p) { return {_mm512_loadu_ps(p)}; }
MAMBAC_INLINE void v_store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
MAMBAC_INLINE Vec v_load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(lanes(n), p)}; }
MAMBAC_INLINE void v_store_n(float* p, Vec a, int n) { _mm512_mask_storeu_ps(p, lanes(n), a.v); }
MAMBAC_INLINE Vec v_add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
MAMBAC_INLINE Vec v_sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
MAMBAC_INLINE Vec v_mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
MAMBAC_INLINE Vec v_div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
MAMBAC_INLINE Vec v_fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
MAMBAC_INLINE Vec v_max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }  // a > b ? a : b
MAMBAC_INLINE Vec v_min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }  // a < b ? a : b
MAMBAC_INLINE Vec v_abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
MAMBAC_INLINE Vec v_max_abs(Vec m, Vec a) { return {_mm512_range_ps(m.v, a.v, 11)}; }  // m >= 0; 11: larger magnitude, sign off; NaN is left out
MAMBAC_INLINE Vec v_sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
MAMBAC_INLINE Vec v_round(Vec a) { return {_mm512_roundscale_ps(a.v, 8)}; }  // nearest even
MAMBAC_INLINE Vec v_scale2(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }  // a * 2^n, n whole
MAMBAC_INLINE Vec v_if_gt0(Vec t, Vec a) { return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(t.v, _mm512_setzero_ps(), _CMP_GT_OQ), a.v)}; }
// A number that is not negative as a power of two and a factor from 1 to 2; 0 and 1 where it is 0.
MAMBAC_INLINE Vec v_power(Vec a) { return {_mm512_and_ps(a.v, _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000)))}; }
MAMBAC_INLINE Vec v_mantissa(Vec a) {  // 0xEA: a & b | c
  const __m512i m = _mm512_ternarylogic_epi32(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x007fffff), _mm512_set1_epi32(0x3f800000), 0xEA);
  return {_mm512_castsi512_ps(m)};
}
// Any of the first n lanes not <= limit (so NaN counts).
MAMBAC_INLINE bool v_any_above(Vec a, Vec limit, int n) {
  return (_mm512_cmp_ps_mask(a.v, limit.v, _CMP_NLE_UQ) & lanes(n)) != 0;
}
// Keeps the computation of `a` here: a compiler that sinks a sum below a loop spills what it sums.
MAMBAC_INLINE void v_now(Vec& a) {
#if defined(__GNUC__)
  __asm__ volatile("" : "+v"(a.v));
#else
  (void)a;
#endif
}

MAMBAC_INLINE HalfVec h_round(Vec a) { return {_mm512_cvtps_ph(a.v, 8)}; }
MAMBAC_INLINE Vec h_widen(HalfVec a) { return {_mm512_cvtph_ps(a.v)}; }
MAMBAC_INLINE HalfVec h_load(const void* p) { return {_mm256_loadu_si256((const __m256i*)p)}; }
MAMBAC_INLINE void h_store(uint16_t* p, HalfVec a) { _mm256_storeu_si256((__m256i*)p, a.v); }

// 128 halves as eight vectors, of which vector k holds elements 8 d + k, and back.
MAMBAC_INLINE void h_split128(const uint8_t* p, Vec* out) {
  alignas(64) static const uint16_t kPick[32] = {0, 8, 16, 24, 32, 40, 48, 56, 1, 9, 17, 25, 33, 41, 49, 57, 2, 10, 18, 26, 34, 42, 50, 58, 3, 11, 19, 27, 35, 43, 51, 59};
  const __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 64), c = _mm512_loadu_si512(p + 128), d = _mm512_loadu_si512(p + 192);
  for (int q = 0; q < 2; q++) {  // vectors 4 q to 4 q + 3: lanes 0 to 7 of each from the first half, then the others
    const __m512i pick = _mm512_add_epi16(_mm512_load_si512(kPick), _mm512_set1_epi16((short)(4 * q)));
    const __m512i low = _mm512_permutex2var_epi16(a, pick, b), high = _mm512_permutex2var_epi16(c, pick, d);
    const __m512i x = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
    const __m512i y = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
    out[4 * q].v = _mm512_cvtph_ps(_mm512_castsi512_si256(x));
    out[4 * q + 1].v = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1));
    out[4 * q + 2].v = _mm512_cvtph_ps(_mm512_castsi512_si256(y));
    out[4 * q + 3].v = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(y, 1));
  }
}
MAMBAC_INLINE void h_join128(uint16_t* p, const HalfVec* in) {
  alignas(64) static const uint16_t kPick[32] = {0, 8, 16, 24, 32, 40, 48, 56, 1, 9, 17, 25, 33, 41, 49, 57, 2, 10, 18, 26, 34, 42, 50, 58, 3, 11, 19, 27, 35, 43, 51, 59};
  const __m512i pick = _mm512_load_si512(kPick), next = _mm512_add_epi16(pick, _mm512_set1_epi16(4));
  __m512i w[4];
  for (int i = 0; i < 4; i++) w[i] = _mm512_inserti64x4(_mm512_castsi256_si512(in[2 * i].v), in[2 * i + 1].v, 1);
  for (int half = 0; half < 2; half++) {  // lanes 8 half to 8 half + 7 of vectors 0 to 3, and of 4 to 7
    const __m512i low = half ? _mm512_shuffle_i64x2(w[0], w[1], 0xDD) : _mm512_shuffle_i64x2(w[0], w[1], 0x88);
    const __m512i high = half ? _mm512_shuffle_i64x2(w[2], w[3], 0xDD) : _mm512_shuffle_i64x2(w[2], w[3], 0x88);
    _mm512_storeu_si512(p + 64 * half, _mm512_permutex2var_epi16(low, pick, high));
    _mm512_storeu_si512(p + 64 * half + 32, _mm512_permutex2var_epi16(low, next, high));
  }
}

// Lane i of the result is row i reduced over its lanes, always in the order 8, 4, 2, 1. Halves that stay where they are take
// a blend, which any unit does, the others a shuffle.
template <Vec (*Op)(Vec, Vec)>
MAMBAC_INLINE Vec v_reduce16(const Vec* r) {
  const __m512i quarters = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
  const __m512i singles = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
  Vec s[8], u[4], w[2];
  for (int i = 0; i < 8; i++)
    s[i] = Op({_mm512_mask_blend_ps(0xFF00, r[i].v, r[i + 8].v)}, {_mm512_shuffle_f32x4(r[i].v, r[i + 8].v, 0x4E)});
  for (int i = 0; i < 4; i++)
    u[i] = Op({_mm512_mask_blend_ps(0xF0F0, s[i].v, s[i + 4].v)}, {_mm512_permutex2var_ps(s[i].v, quarters, s[i + 4].v)});
  for (int i = 0; i < 2; i++)
    w[i] = Op({_mm512_mask_blend_ps(0xCCCC, u[i].v, u[i + 2].v)}, {_mm512_shuffle_ps(u[i].v, u[i + 2].v, 0x4E)});
  return Op({_mm512_mask_blend_ps(0xAAAA, w[0].v, w[1].v)}, {_mm512_permutex2var_ps(w[0].v, singles, w[1].v)});
}

MAMBAC_INLINE void v_transpose16(Vec* r) {
  __m512 t[16], u[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
  }
  for (int c = 0; c < 4; c++) {
    __m512 x = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88), y = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
    __m512 z = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xDD), w = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xDD);
    r[c].v = _mm512_shuffle_f32x4(x, y, 0x88);
    r[c + 8].v = _mm512_shuffle_f32x4(x, y, 0xDD);
    r[c + 4].v = _mm512_shuffle_f32x4(z, w, 0x88);
    r[c + 12].v = _mm512_shuffle_f32x4(z, w, 0xDD);
  }
}

// Lane i takes lane i ^ kStep: 1, 2, 4 or 8.
template <int kStep>
MAMBAC_INLINE Vec v_swap(Vec a) {
  if (kStep == 1) return {_mm512_permute_ps(a.v, 0xB1)};
  if (kStep == 2) return {_mm512_permute_ps(a.v, 0x4E)};
  return {_mm512_shuffle_f32x4(a.v, a.v, kStep == 4 ? 0xB1 : 0x4E)};
}

// Sixteen int8 codes as scaled floats, and back: round to nearest even, clamp to +-127.
struct I8 {
  Vec scale;
  MAMBAC_MEMBER void set(float s) { scale = v_set(s); }
  MAMBAC_MEMBER Vec load(const uint8_t* p) const {
    return {_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))), scale.v)};
  }
};
MAMBAC_INLINE __m128i bytes_of(Vec a) { return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)); }
MAMBAC_INLINE void i8_store(uint8_t* p, Vec a) {
  _mm_storeu_si128((__m128i*)p, _mm_max_epi8(bytes_of(a), _mm_set1_epi8(-127)));
}
// Codes as whole floats.
MAMBAC_INLINE Vec i8_codes(const uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))}; }
// Four vectors of floats whose lowest byte is the code.
MAMBAC_INLINE void i8_store_low4(uint8_t* p, const Vec* a) {
  const __m512i half = _mm512_set1_epi32(0x20000), step = _mm512_set1_epi32(0x40004);  // even words of two vectors
  const __m512i low = _mm512_or_si512(_mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), step), half);
  const __m512i x = _mm512_permutex2var_epi16(_mm512_castps_si512(a[0].v), low, _mm512_castps_si512(a[1].v));
  const __m512i y = _mm512_permutex2var_epi16(_mm512_castps_si512(a[2].v), low, _mm512_castps_si512(a[3].v));
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi64(order, _mm512_packs_epi16(x, y)));
}
// Four vectors at once: packed in 128-bit lanes, put in order at the end.
MAMBAC_INLINE void i8_store4(uint8_t* p, const Vec* a) {
  __m512i c[4];
  for (int k = 0; k < 4; k++) c[k] = _mm512_cvtps_epi32(a[k].v);
  const __m512i b = _mm512_packs_epi16(_mm512_packs_epi32(c[0], c[1]), _mm512_packs_epi32(c[2], c[3]));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_max_epi8(b, _mm512_set1_epi8(-127))));
}

// Sixteen nibbles (8 bytes, even element low) as scaled floats, and back: round to nearest even, clamp to +-7.
// The table permute reads only the low 4 bits of each index, so no mask and no sign extension are needed.
struct I4 {
  __m512 table;
  MAMBAC_MEMBER void set(float s) {
    table = _mm512_mul_ps(_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1), _mm512_set1_ps(s));
  }
  MAMBAC_MEMBER Vec load(const uint8_t* p) const {
    __m128i b = _mm_loadl_epi64((const __m128i*)p);
    return {_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(b, _mm_srli_epi16(b, 4))), table)};
  }
  // Vector k of a block of 128 nibbles: lane d is nibble k of dword d, that is element 8 d + k.
  MAMBAC_MEMBER Vec load_strided(const uint8_t* p, int k) const {
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(_mm512_loadu_si512(p), (unsigned)(4 * k)), table)};
  }
};
// Codes as whole floats.
MAMBAC_INLINE __m512 nibble_values() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1); }
MAMBAC_INLINE Vec i4_codes(const uint8_t* p) {
  const __m128i b = _mm_loadl_epi64((const __m128i*)p);
  return {_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(b, _mm_srli_epi16(b, 4))), nibble_values())};
}
MAMBAC_INLINE Vec i4_codes_strided(const uint8_t* p, int k) {
  return {_mm512_permutexvar_ps(_mm512_srli_epi32(_mm512_loadu_si512(p), (unsigned)(4 * k)), nibble_values())};
}
// Two vectors of floats whose lowest 16 bits are four codes plus 8: those of nibbles 0 to 3, and 4 to 7, of every dword.
MAMBAC_INLINE void i4_store_low(uint8_t* p, Vec low, Vec high) {
  const __m512i top = _mm512_slli_epi32(_mm512_castps_si512(high.v), 16), mask = _mm512_set1_epi32(0xffff);
  const __m512i both = _mm512_ternarylogic_epi32(top, _mm512_castps_si512(low.v), mask, 0xF8);  // top | (low & mask)
  _mm512_storeu_si512(p, _mm512_xor_si512(both, _mm512_set1_epi8((char)0x88)));
}
MAMBAC_INLINE void i4_store(uint8_t* p, Vec a) {
  __m128i c = _mm_min_epi8(_mm_max_epi8(bytes_of(a), _mm_set1_epi8(-7)), _mm_set1_epi8(7));
  __m128i w = _mm_maddubs_epi16(_mm_and_si128(c, _mm_set1_epi8(15)), _mm_set1_epi16(0x1001));
  _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(w, w));
}
MAMBAC_INLINE void i4_store_strided(uint8_t* p, const Vec* a) {
  __m512i c[8];
  for (int k = 0; k < 8; k++) c[k] = _mm512_cvtps_epi32(a[k].v);
  // Per 128-bit lane: bytes [k][dword] for the even and for the odd nibbles of each byte.
  __m512i even = _mm512_packs_epi16(_mm512_packs_epi32(c[0], c[2]), _mm512_packs_epi32(c[4], c[6]));
  __m512i odd = _mm512_packs_epi16(_mm512_packs_epi32(c[1], c[3]), _mm512_packs_epi32(c[5], c[7]));
  const __m512i lo = _mm512_set1_epi8(-7), hi = _mm512_set1_epi8(7), mask = _mm512_set1_epi8(15);
  even = _mm512_min_epi8(_mm512_max_epi8(even, lo), hi);
  odd = _mm512_slli_epi16(_mm512_and_si512(_mm512_min_epi8(_mm512_max_epi8(odd, lo), hi), mask), 4);
  __m512i both = _mm512_ternarylogic_epi32(odd, even, mask, 0xF8);  // odd | (even & mask)
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  _mm512_storeu_si512(p, _mm512_shuffle_epi8(both, order));
}

// 128 coefficients times `scale`, rounded, into planes; the products stay within +-0x7f7f7f. Whole planes are stored: a
// load right behind pieces would wait for them.
static void split_planes(DotPlanes& k, const float* c, Vec scale) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i half = _mm512_set1_epi32(0x808080), next = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const __m512i pieces = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512i v[8];  // bytes of columns plus 128, carried: xor 128 makes digits with a sign of them
  for (int i = 0; i < 8; i++) v[i] = _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(c + 16 * i), scale.v)), half), half);
  for (int odd = 0; odd < 2; odd++) {
    __m512i w[4];  // in each 128 bits four bytes of every plane
    for (int i = 0; i < 4; i++) w[i] = _mm512_shuffle_epi8(_mm512_permutex2var_epi32(v[2 * i], odd ? next : even, v[2 * i + 1]), pieces);
    const __m512i a = _mm512_unpacklo_epi32(w[0], w[1]), b = _mm512_unpacklo_epi32(w[2], w[3]);
    const __m512i high = _mm512_unpacklo_epi64(_mm512_unpackhi_epi32(w[0], w[1]), _mm512_unpackhi_epi32(w[2], w[3]));
    _mm512_storeu_si512(k.c[0][odd], _mm512_permutexvar_epi32(order, _mm512_unpacklo_epi64(a, b)));
    _mm512_storeu_si512(k.c[1][odd], _mm512_permutexvar_epi32(order, _mm512_unpackhi_epi64(a, b)));
    _mm512_storeu_si512(k.c[2][odd], _mm512_permutexvar_epi32(order, high));
  }
}

// Sums of 128 codes of 4 bits times coefficients (dot.h). VNNI multiplies and adds four bytes a lane in one instruction.
template <bool kVnni>
struct NibbleDotOf {
  __m512i c[3][2], first, last;  // planes, and what the 8 adds to their sums, taken off the largest and from the end
  MAMBAC_MEMBER explicit NibbleDotOf(const DotPlanes& k) {
    const __m512i zero = _mm512_setzero_si512(), eight = _mm512_set1_epi8(8);
    for (int plane = 0; plane < 3; plane++)
      for (int odd = 0; odd < 2; odd++) c[plane][odd] = _mm512_loadu_si512(k.c[plane][odd]);
    first = _mm512_sub_epi32(zero, products(2, eight, eight, zero));
    last = _mm512_add_epi32(_mm512_slli_epi32(products(1, eight, eight, zero), 8), products(0, eight, eight, zero));
    last = _mm512_sub_epi32(zero, last);
  }
  static MAMBAC_MEMBER __m512i add(__m512i sum, __m512i codes, __m512i coefficients) {
#if defined(_MSC_VER) && !defined(__clang__)
    return _mm512_dpbusd_epi32(sum, codes, coefficients);
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(coefficients));
    return sum;
#endif
  }
  // from + the sums of four neighbouring bytes of codes plus 8 in each lane.
  MAMBAC_MEMBER __m512i products(int plane, __m512i even, __m512i odd, __m512i from) const {
    if (kVnni) return add(add(from, even, c[plane][0]), odd, c[plane][1]);
    const __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16(even, c[plane][0]), _mm512_maddubs_epi16(odd, c[plane][1]));
    return _mm512_add_epi32(from, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
  // Two chains of planes: one is longer than what else a row takes can hide, three are an addition more.
  MAMBAC_MEMBER __m512i whole(__m512i row) const {
    const __m512i mask = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8);
    const __m512i even = _mm512_ternarylogic_epi32(row, mask, eight, 0x6A);  // (row & mask) ^ eight: codes plus 8
    const __m512i odd = _mm512_ternarylogic_epi32(_mm512_srli_epi16(row, 4), mask, eight, 0x6A);
    const __m512i high = products(1, even, odd, _mm512_slli_epi32(products(2, even, odd, first), 8));
    return _mm512_add_epi32(_mm512_slli_epi32(high, 8), products(0, even, odd, last));
  }
  MAMBAC_MEMBER Vec read(const uint8_t* codes) const { return {_mm512_castsi512_ps(whole(_mm512_loadu_si512(codes)))}; }
};
typedef NibbleDotOf<false> NibbleDot;
