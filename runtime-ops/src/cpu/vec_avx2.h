// Sixteen float lanes in two AVX2 registers. Included inside an instruction set's own namespace.
#pragma once
#include "dot_planes.h"
#include "vec_x64.h"

struct Vec {
  __m256 lo, hi;
};
struct HalfVec {
  __m128i lo, hi;
};
constexpr int kTileRows = 1;
constexpr int kTileStates = 4;
constexpr int kStepRows = 2;    // packed decode: rows that share one load of B, C and the steps
constexpr int kFoldRows = 2;    // the same in units of the old steps
constexpr int kReplayRows = 4;   // rebuilding a replayed state: rows ...
constexpr int kReplayWide = 1;   // ... times vectors of columns

MAMBAC_INLINE __m256i lanes8(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
MAMBAC_INLINE Vec v_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
MAMBAC_INLINE Vec v_set(float f) { return {_mm256_set1_ps(f), _mm256_set1_ps(f)}; }
MAMBAC_INLINE Vec v_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
MAMBAC_INLINE void v_store(float* p, Vec a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
MAMBAC_INLINE Vec v_load_n(const float* p, int n) {
  if (n <= 8) return {_mm256_maskload_ps(p, lanes8(n)), _mm256_setzero_ps()};
  return {_mm256_loadu_ps(p), _mm256_maskload_ps(p + 8, lanes8(n - 8))};
}
MAMBAC_INLINE void v_store_n(float* p, Vec a, int n) {
  _mm256_maskstore_ps(p, lanes8(n), a.lo);
  if (n > 8) _mm256_maskstore_ps(p + 8, lanes8(n - 8), a.hi);
}
MAMBAC_INLINE Vec v_add(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
MAMBAC_INLINE Vec v_sub(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
MAMBAC_INLINE Vec v_mul(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
MAMBAC_INLINE Vec v_div(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
MAMBAC_INLINE Vec v_fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
MAMBAC_INLINE Vec v_max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
MAMBAC_INLINE Vec v_min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
MAMBAC_INLINE Vec v_abs(Vec a) {
  const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(a.lo, m), _mm256_and_ps(a.hi, m)};
}
MAMBAC_INLINE Vec v_max_abs(Vec m, Vec a) { return v_max(v_abs(a), m); }  // m >= 0; NaN is left out
MAMBAC_INLINE Vec v_sqrt(Vec a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
MAMBAC_INLINE Vec v_round(Vec a) { return {_mm256_round_ps(a.lo, 8), _mm256_round_ps(a.hi, 8)}; }
// a * 2^n for whole |n| <= 250, in two factors so that neither leaves the exponent range.
MAMBAC_INLINE __m256 scale2_8(__m256 a, __m256 n) {
  __m256i i = _mm256_cvtps_epi32(n), h = _mm256_srai_epi32(i, 1), bias = _mm256_set1_epi32(127);
  __m256 f = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(h, bias), 23));
  __m256 g = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(i, h), bias), 23));
  return _mm256_mul_ps(_mm256_mul_ps(a, f), g);
}
MAMBAC_INLINE Vec v_scale2(Vec a, Vec n) { return {scale2_8(a.lo, n.lo), scale2_8(a.hi, n.hi)}; }
MAMBAC_INLINE Vec v_if_gt0(Vec t, Vec a) {
  const __m256 z = _mm256_setzero_ps();
  return {_mm256_and_ps(_mm256_cmp_ps(t.lo, z, _CMP_GT_OQ), a.lo), _mm256_and_ps(_mm256_cmp_ps(t.hi, z, _CMP_GT_OQ), a.hi)};
}
// A number that is not negative as a power of two and a factor from 1 to 2; 0 and 1 where it is 0.
MAMBAC_INLINE Vec v_power(Vec a) {
  const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000));
  return {_mm256_and_ps(a.lo, m), _mm256_and_ps(a.hi, m)};
}
MAMBAC_INLINE Vec v_mantissa(Vec a) {
  const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x007fffff)), one = _mm256_set1_ps(1.0f);
  return {_mm256_or_ps(_mm256_and_ps(a.lo, m), one), _mm256_or_ps(_mm256_and_ps(a.hi, m), one)};
}
MAMBAC_INLINE bool v_any_above(Vec a, Vec limit, int n) {
  unsigned m = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a.lo, limit.lo, _CMP_NLE_UQ)) |
               (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a.hi, limit.hi, _CMP_NLE_UQ)) << 8;
  return (m & ((1u << n) - 1u)) != 0;
}
// Keeps the computation of `a` here: a compiler that sinks a sum below a loop spills what it sums.
MAMBAC_INLINE void v_now(Vec& a) {
#if defined(__GNUC__)
  __asm__ volatile("" : "+x"(a.lo), "+x"(a.hi));
#else
  (void)a;
#endif
}

MAMBAC_INLINE HalfVec h_round(Vec a) { return {_mm256_cvtps_ph(a.lo, 0), _mm256_cvtps_ph(a.hi, 0)}; }
MAMBAC_INLINE Vec h_widen(HalfVec a) { return {_mm256_cvtph_ps(a.lo), _mm256_cvtph_ps(a.hi)}; }
MAMBAC_INLINE HalfVec h_load(const void* p) {
  return {_mm_loadu_si128((const __m128i*)p), _mm_loadu_si128((const __m128i*)p + 1)};
}
MAMBAC_INLINE void h_store(uint16_t* p, HalfVec a) {
  _mm_storeu_si128((__m128i*)p, a.lo);
  _mm_storeu_si128((__m128i*)(p + 8), a.hi);
}

// [8][16] halves to [16][8], in place.
MAMBAC_INLINE void join128(uint16_t* p) {
  __m128i r[16];
  for (int half = 0; half < 2; half++) {
    __m128i t[8], u[8], *a = r + 8 * half;
    for (int i = 0; i < 8; i++) a[i] = _mm_loadu_si128((const __m128i*)(p + 16 * i + 8 * half));
    for (int i = 0; i < 4; i++) {  // pairs of rows i, i + 4
      t[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
      t[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
    }
    for (int i = 0; i < 4; i++) {
      u[2 * i] = _mm_unpacklo_epi16(t[i], t[i + 4]);
      u[2 * i + 1] = _mm_unpackhi_epi16(t[i], t[i + 4]);
    }
    for (int i = 0; i < 4; i++) {
      a[2 * i] = _mm_unpacklo_epi16(u[i], u[i + 4]);
      a[2 * i + 1] = _mm_unpackhi_epi16(u[i], u[i + 4]);
    }
  }
  for (int i = 0; i < 16; i++) _mm_storeu_si128((__m128i*)(p + 8 * i), r[i]);
}
// 128 halves as eight vectors, of which vector k holds elements 8 d + k, and back.
MAMBAC_INLINE void h_split128(const uint8_t* p, Vec* out) {
  float plain[128], strided[128];
  for (int i = 0; i < 8; i++) v_store(plain + 16 * i, h_widen(h_load(p + 32 * i)));
  split128(strided, plain);
  for (int i = 0; i < 8; i++) out[i] = v_load(strided + 16 * i);
}
MAMBAC_INLINE void h_join128(uint16_t* p, const HalfVec* in) {
  for (int i = 0; i < 8; i++) h_store(p + 16 * i, in[i]);
  join128(p);
}

template <Vec (*Op)(Vec, Vec)>
MAMBAC_INLINE __m256 op8(__m256 a, __m256 b) {
  return Op({a, a}, {b, b}).lo;
}
template <Vec (*Op)(Vec, Vec)>
MAMBAC_INLINE __m256 reduce8(const Vec* r) {
  __m256 t[8], u[4], w[2];
  for (int i = 0; i < 8; i++) t[i] = op8<Op>(r[i].lo, r[i].hi);
  for (int i = 0; i < 4; i++)
    u[i] = op8<Op>(_mm256_permute2f128_ps(t[i], t[i + 4], 0x20), _mm256_permute2f128_ps(t[i], t[i + 4], 0x31));
  for (int i = 0; i < 2; i++)
    w[i] = op8<Op>(_mm256_shuffle_ps(u[2 * i], u[2 * i + 1], 0x44), _mm256_shuffle_ps(u[2 * i], u[2 * i + 1], 0xEE));
  return op8<Op>(_mm256_shuffle_ps(w[0], w[1], 0x88), _mm256_shuffle_ps(w[0], w[1], 0xDD));
}
// Lane i of the result is row i reduced over its lanes, always in the order 8, 4, 2, 1.
template <Vec (*Op)(Vec, Vec)>
MAMBAC_INLINE Vec v_reduce16(const Vec* r) {
  return {reduce8<Op>(r), reduce8<Op>(r + 8)};
}

MAMBAC_INLINE void v_transpose16(Vec* r) {
  __m256 a[8], b[8], c[8], d[8];  // [a b; c d] becomes [a' c'; b' d']
  for (int i = 0; i < 8; i++) a[i] = r[i].lo, b[i] = r[i].hi, c[i] = r[i + 8].lo, d[i] = r[i + 8].hi;
  transpose8(a);
  transpose8(b);
  transpose8(c);
  transpose8(d);
  for (int i = 0; i < 8; i++) r[i] = {a[i], c[i]}, r[i + 8] = {b[i], d[i]};
}

// Lane i takes lane i ^ kStep: 1, 2, 4 or 8.
template <int kStep>
MAMBAC_INLINE Vec v_swap(Vec a) {
  if (kStep == 1) return {_mm256_permute_ps(a.lo, 0xB1), _mm256_permute_ps(a.hi, 0xB1)};
  if (kStep == 2) return {_mm256_permute_ps(a.lo, 0x4E), _mm256_permute_ps(a.hi, 0x4E)};
  if (kStep == 4) return {_mm256_permute2f128_ps(a.lo, a.lo, 1), _mm256_permute2f128_ps(a.hi, a.hi, 1)};
  return {a.hi, a.lo};
}

// Sixteen int8 codes as scaled floats, and back: round to nearest even, clamp to +-127.
MAMBAC_INLINE Vec scaled_bytes(__m128i b, __m256 scale) {
  return {_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)), scale),
          _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(b, b))), scale)};
}
struct I8 {
  __m256 scale;
  MAMBAC_MEMBER void set(float s) { scale = _mm256_set1_ps(s); }
  MAMBAC_MEMBER Vec load(const uint8_t* p) const { return scaled_bytes(_mm_loadu_si128((const __m128i*)p), scale); }
};
MAMBAC_INLINE __m128i bytes_of(Vec a) {
  __m256i w = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
  w = _mm256_permute4x64_epi64(w, 0xD8);
  return _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
}
MAMBAC_INLINE void i8_store(uint8_t* p, Vec a) {
  _mm_storeu_si128((__m128i*)p, _mm_max_epi8(bytes_of(a), _mm_set1_epi8(-127)));
}
// Codes as whole floats.
MAMBAC_INLINE __m256 float_bytes(__m128i b) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)); }
MAMBAC_INLINE Vec whole_bytes(__m128i b) { return {float_bytes(b), float_bytes(_mm_unpackhi_epi64(b, b))}; }
MAMBAC_INLINE Vec i8_codes(const uint8_t* p) { return whole_bytes(_mm_loadu_si128((const __m128i*)p)); }
// Four vectors of floats whose lowest byte is the code.
MAMBAC_INLINE __m256i low_words(Vec a) {  // in 64-bit pieces 0, 2, 1, 3
  return _mm256_blend_epi16(_mm256_castps_si256(a.lo), _mm256_slli_epi32(_mm256_castps_si256(a.hi), 16), 0xAA);
}
MAMBAC_INLINE void i8_store_low4(uint8_t* p, const Vec* a) {
  // Of two vectors of words [lo0 hi0 lo1 hi1 ...]: bytes put in order lane by lane, then the lanes.
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  const __m256i pieces = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int k = 0; k < 4; k += 2) {
    const __m256i b = _mm256_packs_epi16(low_words(a[k]), low_words(a[k + 1]));
    _mm256_storeu_si256((__m256i*)(p + 16 * k), _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(b, order), pieces));
  }
}
// Four vectors at once: packed in 128-bit lanes, put in order at the end.
MAMBAC_INLINE void i8_store4(uint8_t* p, const Vec* a) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int k = 0; k < 4; k += 2) {
    const __m256i low = _mm256_packs_epi32(_mm256_cvtps_epi32(a[k].lo), _mm256_cvtps_epi32(a[k].hi));
    const __m256i high = _mm256_packs_epi32(_mm256_cvtps_epi32(a[k + 1].lo), _mm256_cvtps_epi32(a[k + 1].hi));
    const __m256i b = _mm256_max_epi8(_mm256_packs_epi16(low, high), _mm256_set1_epi8(-127));
    _mm256_storeu_si256((__m256i*)(p + 16 * k), _mm256_permutevar8x32_epi32(b, order));
  }
}

// Sixteen nibbles (8 bytes, even element low) as scaled floats, and back: round to nearest even, clamp to +-7.
struct I4 {
  __m256 scale;    // for sign-extended nibbles
  __m256 scale28;  // for nibbles left in the top 4 bits of a dword
  MAMBAC_MEMBER void set(float s) {
    scale = _mm256_set1_ps(s);
    scale28 = _mm256_set1_ps(s * 0x1p-28f);
  }
  MAMBAC_MEMBER Vec load(const uint8_t* p) const {
    __m128i b = _mm_loadl_epi64((const __m128i*)p), mask = _mm_set1_epi8(15);
    __m128i n = _mm_and_si128(_mm_unpacklo_epi8(b, _mm_srli_epi16(b, 4)), mask);
    const __m128i sign = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    return scaled_bytes(_mm_shuffle_epi8(sign, n), scale);
  }
  // Vector k of a block of 128 nibbles: lane d is nibble k of dword d, that is element 8 d + k.
  MAMBAC_MEMBER Vec load_strided(const uint8_t* p, int k) const {
    const __m256i top = _mm256_set1_epi32((int)0xf0000000u);
    __m256i a = _mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)p), 28 - 4 * k);
    __m256i b = _mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)(p + 32)), 28 - 4 * k);
    return {_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_and_si256(a, top)), scale28),
            _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_and_si256(b, top)), scale28)};
  }
};
// Codes as whole floats.
MAMBAC_INLINE Vec i4_codes(const uint8_t* p) {
  const __m128i b = _mm_loadl_epi64((const __m128i*)p), mask = _mm_set1_epi8(15);
  const __m128i n = _mm_and_si128(_mm_unpacklo_epi8(b, _mm_srli_epi16(b, 4)), mask);
  return whole_bytes(_mm_shuffle_epi8(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1), n));
}
MAMBAC_INLINE Vec i4_codes_strided(const uint8_t* p, int k) {
  const __m256i a = _mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)p), 28 - 4 * k);
  const __m256i b = _mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)(p + 32)), 28 - 4 * k);
  return {_mm256_cvtepi32_ps(_mm256_srai_epi32(a, 28)), _mm256_cvtepi32_ps(_mm256_srai_epi32(b, 28))};
}
// Two vectors of floats whose lowest 16 bits are four codes plus 8: those of nibbles 0 to 3, and 4 to 7, of every dword.
MAMBAC_INLINE __m256i join_low(__m256 low, __m256 high) {
  const __m256i both = _mm256_blend_epi16(_mm256_castps_si256(low), _mm256_slli_epi32(_mm256_castps_si256(high), 16), 0xAA);
  return _mm256_xor_si256(both, _mm256_set1_epi8((char)0x88));
}
MAMBAC_INLINE void i4_store_low(uint8_t* p, Vec low, Vec high) {
  _mm256_storeu_si256((__m256i*)p, join_low(low.lo, high.lo));
  _mm256_storeu_si256((__m256i*)(p + 32), join_low(low.hi, high.hi));
}
MAMBAC_INLINE void i4_store(uint8_t* p, Vec a) {
  __m128i c = _mm_min_epi8(_mm_max_epi8(bytes_of(a), _mm_set1_epi8(-7)), _mm_set1_epi8(7));
  __m128i w = _mm_maddubs_epi16(_mm_and_si128(c, _mm_set1_epi8(15)), _mm_set1_epi16(0x1001));
  _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(w, w));
}
MAMBAC_INLINE void i4_store_half(uint8_t* p, const __m256* a) {
  __m256i c[8];
  for (int k = 0; k < 8; k++) c[k] = _mm256_cvtps_epi32(a[k]);
  // Per 128-bit lane: bytes [k][dword] for the even and for the odd nibbles of each byte.
  __m256i even = _mm256_packs_epi16(_mm256_packs_epi32(c[0], c[2]), _mm256_packs_epi32(c[4], c[6]));
  __m256i odd = _mm256_packs_epi16(_mm256_packs_epi32(c[1], c[3]), _mm256_packs_epi32(c[5], c[7]));
  const __m256i lo = _mm256_set1_epi8(-7), hi = _mm256_set1_epi8(7), mask = _mm256_set1_epi8(15);
  even = _mm256_and_si256(_mm256_min_epi8(_mm256_max_epi8(even, lo), hi), mask);
  odd = _mm256_slli_epi16(_mm256_and_si256(_mm256_min_epi8(_mm256_max_epi8(odd, lo), hi), mask), 4);
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  _mm256_storeu_si256((__m256i*)p, _mm256_shuffle_epi8(_mm256_or_si256(even, odd), order));
}
MAMBAC_INLINE void i4_store_strided(uint8_t* p, const Vec* a) {
  __m256 t[8];
  for (int k = 0; k < 8; k++) t[k] = a[k].lo;
  i4_store_half(p, t);
  for (int k = 0; k < 8; k++) t[k] = a[k].hi;
  i4_store_half(p + 32, t);
}

// 128 coefficients times `scale`, rounded, into planes; the products stay within +-0x7f7f7f.
static void split_planes(DotPlanes& k, const float* c, Vec scale) {
  // Bytes of four dwords in a register come out as [lanes][even 0 2, odd 0 2] and are put in order at the end.
  const __m256i half = _mm256_set1_epi32(128), pieces = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
  for (int i = 0; i < 128; i += 32) {
    __m256i v[4];
    for (int j = 0; j < 4; j++) v[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(c + i + 8 * j), scale.lo));
    for (int plane = 0; plane < 3; plane++) {
      __m256i low[4];
      for (int j = 0; j < 4; j++) {
        low[j] = _mm256_srai_epi32(_mm256_slli_epi32(v[j], 24), 24);
        v[j] = _mm256_srai_epi32(_mm256_add_epi32(v[j], half), 8);
      }
      __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(low[0], low[1]), _mm256_packs_epi32(low[2], low[3]));
      bytes = _mm256_permutevar8x32_epi32(bytes, pieces);  // columns in order
      bytes = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(bytes, order), 0xD8);
      _mm_storeu_si128((__m128i*)(k.c[plane][0] + i / 2), _mm256_castsi256_si128(bytes));
      _mm_storeu_si128((__m128i*)(k.c[plane][1] + i / 2), _mm256_extracti128_si256(bytes, 1));
    }
  }
}

// Sums of 128 codes of 4 bits times coefficients (dot.h).
struct NibbleDot {
  const DotPlanes& k;
  __m256i bias[2];
  MAMBAC_MEMBER explicit NibbleDot(const DotPlanes& planes) : k(planes) {
    for (int half = 0; half < 2; half++) {
      bias[half] = _mm256_setzero_si256();
      bias[half] = part(_mm256_setzero_si256(), half);
    }
  }
  MAMBAC_MEMBER __m256i part(__m256i row, int half) const {
    const __m256i mask = _mm256_set1_epi8(15);
    row = _mm256_xor_si256(row, _mm256_set1_epi8((char)0x88));  // codes plus 8
    const __m256i even = _mm256_and_si256(row, mask), odd = _mm256_and_si256(_mm256_srli_epi16(row, 4), mask);
    return _mm256_sub_epi32(sums(even, odd, half), bias[half]);
  }
  // Of codes plus 8, in bytes; `bias` is what the 8 add.
  MAMBAC_MEMBER __m256i sums(__m256i even, __m256i odd, int half) const {
    const __m256i one = _mm256_set1_epi16(1);
    __m256i p[3];
    for (int plane = 0; plane < 3; plane++) {
      const __m256i a = _mm256_maddubs_epi16(even, _mm256_loadu_si256((const __m256i*)(k.c[plane][0] + 32 * half)));
      const __m256i b = _mm256_maddubs_epi16(odd, _mm256_loadu_si256((const __m256i*)(k.c[plane][1] + 32 * half)));
      p[plane] = _mm256_add_epi16(a, b);
    }
    __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(p[2], _mm256_set1_epi16(256)), _mm256_madd_epi16(p[1], one));
    return _mm256_add_epi32(_mm256_slli_epi32(sum, 8), _mm256_madd_epi16(p[0], one));
  }
  MAMBAC_MEMBER Vec read(const uint8_t* codes) const {
    return {_mm256_castsi256_ps(part(_mm256_loadu_si256((const __m256i*)codes), 0)),
            _mm256_castsi256_ps(part(_mm256_loadu_si256((const __m256i*)codes + 1), 1))};
  }
};
