// Sixteen float lanes as a plain array: the reference for every other instruction set, and the fallback where there is
// none. Lane by lane it does what the vector units do, in the same order; only fused multiply-adds round twice.
#pragma once
#include "dot_planes.h"

#if defined(__GNUC__)
typedef float Lanes __attribute__((vector_size(64)));  // lowered to whatever the target has
#else
struct Lanes {
  float lane[16];
  float& operator[](int i) { return lane[i]; }
  const float& operator[](int i) const { return lane[i]; }
};
#define MAMBAC_LANE_OPERATOR(op)                              \
  static inline Lanes operator op(Lanes a, Lanes b) {         \
    for (int i = 0; i < 16; i++) a.lane[i] = a.lane[i] op b.lane[i]; \
    return a;                                                 \
  }
MAMBAC_LANE_OPERATOR(+)
MAMBAC_LANE_OPERATOR(-)
MAMBAC_LANE_OPERATOR(*)
MAMBAC_LANE_OPERATOR(/)
#endif
struct Vec {
  Lanes v;
};
struct HalfVec {
  uint16_t v[16];
};
constexpr int kTileRows = 1;
constexpr int kTileStates = 2;
constexpr int kStepRows = 1;    // packed decode: rows that share one load of B, C and the steps
constexpr int kFoldRows = 1;    // the same in units of the old steps
constexpr int kReplayRows = 1;   // rebuilding a replayed state: rows ...
constexpr int kReplayWide = 2;   // ... times vectors of columns

#define MAMBAC_LANES(expression)        \
  Vec r;                                \
  for (int i = 0; i < 16; i++) r.v[i] = (expression); \
  return r

MAMBAC_INLINE float bits_to_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
MAMBAC_INLINE uint32_t float_to_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

MAMBAC_INLINE Vec v_set(float f) { MAMBAC_LANES(f); }
MAMBAC_INLINE Vec v_zero() { return v_set(0.0f); }
MAMBAC_INLINE Vec v_load(const float* p) {
  Vec r;
  memcpy(&r, p, 64);
  return r;
}
MAMBAC_INLINE void v_store(float* p, Vec a) { memcpy(p, &a, 64); }
static inline Vec v_load_n(const float* p, int n) { MAMBAC_LANES(i < n ? p[i] : 0.0f); }
static inline void v_store_n(float* p, Vec a, int n) {
  for (int i = 0; i < n; i++) p[i] = a.v[i];
}
MAMBAC_INLINE Vec v_add(Vec a, Vec b) { return {a.v + b.v}; }
MAMBAC_INLINE Vec v_sub(Vec a, Vec b) { return {a.v - b.v}; }
MAMBAC_INLINE Vec v_mul(Vec a, Vec b) { return {a.v * b.v}; }
MAMBAC_INLINE Vec v_div(Vec a, Vec b) { return {a.v / b.v}; }
MAMBAC_INLINE Vec v_fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
static inline Vec v_max(Vec a, Vec b) { MAMBAC_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
static inline Vec v_min(Vec a, Vec b) { MAMBAC_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
static inline Vec v_abs(Vec a) { MAMBAC_LANES(bits_to_float(float_to_bits(a.v[i]) & 0x7fffffffu)); }
// A number that is not negative as a power of two and a factor from 1 to 2; 0 and 1 where it is 0.
static inline Vec v_power(Vec a) { MAMBAC_LANES(bits_to_float(float_to_bits(a.v[i]) & 0x7f800000u)); }
static inline Vec v_mantissa(Vec a) { MAMBAC_LANES(bits_to_float((float_to_bits(a.v[i]) & 0x007fffffu) | 0x3f800000u)); }
MAMBAC_INLINE Vec v_max_abs(Vec m, Vec a) { return v_max(v_abs(a), m); }  // m >= 0; NaN is left out
static inline Vec v_sqrt(Vec a) { MAMBAC_LANES(sqrtf(a.v[i])); }
// Nearest even without the floating-point environment: adding and taking off 1.5 * 2^23 rounds |f| < 2^22.
MAMBAC_INLINE float round_even(float f) {
  const float magic = 12582912.0f;
  return f > -4194304.0f && f < 4194304.0f ? (f + magic) - magic : f;
}
static inline Vec v_round(Vec a) { MAMBAC_LANES(round_even(a.v[i])); }
MAMBAC_INLINE float scale2(float a, float n) {
  if (!(n > -260.0f && n < 260.0f)) return n > 0.0f ? a * bits_to_float(0x7f000000u) * bits_to_float(0x7f000000u) : a * n;
  int whole = (int)n, half = whole / 2;
  return a * bits_to_float((uint32_t)(half + 127) << 23) * bits_to_float((uint32_t)(whole - half + 127) << 23);
}
static inline Vec v_scale2(Vec a, Vec n) { MAMBAC_LANES(scale2(a.v[i], n.v[i])); }
static inline Vec v_if_gt0(Vec t, Vec a) { MAMBAC_LANES(t.v[i] > 0.0f ? a.v[i] : 0.0f); }
static inline bool v_any_above(Vec a, Vec limit, int n) {
  bool any = false;
  for (int i = 0; i < n; i++) any |= !(a.v[i] <= limit.v[i]);
  return any;
}
// Keeps the computation of `a` here: a compiler that sinks a sum below a loop spills what it sums.
MAMBAC_INLINE void v_now(Vec&) {}

// IEEE half from float, nearest even, with subnormals, infinities and NaN.
static inline uint16_t half_of(float f) {
  uint32_t u = float_to_bits(f), sign = u >> 16 & 0x8000u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);  // 65520 and above
  if (u < 0x38800000u) {                                    // below 2^-14: the sum below rounds to a multiple of 2^-24
    float shifted = bits_to_float(u) + 0.5f;
    return (uint16_t)(sign | (float_to_bits(shifted) - 0x3f000000u));
  }
  return (uint16_t)(sign | ((u + 0xc8000fffu + (u >> 13 & 1u)) >> 13));
}
static inline float float_of_half(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, m = h & 0x7fffu;
  if (m >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (m & 0x3ffu) << 13);
  if (m < 0x400u) return bits_to_float(sign | float_to_bits((float)m * 0x1p-24f));
  return bits_to_float(sign | ((m << 13) + 0x38000000u));
}
static inline HalfVec h_round(Vec a) {
  HalfVec r;
  for (int i = 0; i < 16; i++) r.v[i] = half_of(a.v[i]);
  return r;
}
static inline Vec h_widen(HalfVec a) { MAMBAC_LANES(float_of_half(a.v[i])); }
MAMBAC_INLINE HalfVec h_load(const void* p) {
  HalfVec r;
  memcpy(r.v, p, 32);
  return r;
}
MAMBAC_INLINE void h_store(uint16_t* p, HalfVec a) { memcpy(p, a.v, 32); }

template <Vec (*Op)(Vec, Vec)>
static inline float reduce1(Vec r) {
  for (int width = 8; width >= 1; width /= 2) {
    Vec s = v_zero();
    for (int i = 0; i < width; i++) s.v[i] = r.v[i + width];
    r = Op(r, s);
  }
  return r.v[0];
}
// Lane i of the result is row i reduced over its lanes, always in the order 8, 4, 2, 1.
template <Vec (*Op)(Vec, Vec)>
static inline Vec v_reduce16(const Vec* r) {
  Vec out;
  for (int row = 0; row < 16; row++) out.v[row] = reduce1<Op>(r[row]);
  return out;
}

static inline void v_transpose16(Vec* r) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < i; j++) {
      float t = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = t;
    }
}

// [16][8] floats to [8][16].
static inline void split128(float* out, const float* in) {
  for (int k = 0; k < 8; k++)
    for (int d = 0; d < 16; d++) out[16 * k + d] = in[8 * d + k];
}
// 128 halves as eight vectors, of which vector k holds elements 8 d + k, and back.
static inline void h_split128(const uint8_t* p, Vec* out) {
  uint16_t t[128];
  memcpy(t, p, sizeof t);
  for (int i = 0; i < 128; i++) out[i % 8].v[i / 8] = float_of_half(t[i]);
}
static inline void h_join128(uint16_t* p, const HalfVec* in) {
  uint16_t t[128];
  for (int i = 0; i < 128; i++) t[i] = in[i % 8].v[i / 8];
  memcpy(p, t, sizeof t);
}

// A code: nearest even, clamped; NaN becomes the lowest code, as the vector units give it.
static inline int code_of(float f, int limit) {
  float r = f < (float)limit ? f : (float)limit;
  if (f != f) r = -(float)limit;
  r = r > -(float)limit ? r : -(float)limit;
  return (int)round_even(r);
}
MAMBAC_INLINE int nibble(const uint8_t* p, int i) { return (((p[i / 2] >> (i % 2 * 4)) & 15) ^ 8) - 8; }
MAMBAC_INLINE void set_nibble(uint8_t* p, int i, int code) {
  int shift = i % 2 * 4;
  p[i / 2] = (uint8_t)((p[i / 2] & ~(15 << shift)) | (code & 15) << shift);
}

// Lane i takes lane i ^ kStep.
template <int kStep>
static inline Vec v_swap(Vec a) { MAMBAC_LANES(a.v[i ^ kStep]); }

// Sixteen int8 codes as scaled floats, and back.
struct I8 {
  float scale;
  void set(float s) { scale = s; }
  Vec load(const uint8_t* p) const { MAMBAC_LANES((float)(int8_t)p[i] * scale); }
};
static inline void i8_store(uint8_t* p, Vec a) {
  for (int i = 0; i < 16; i++) p[i] = (uint8_t)(int8_t)code_of(a.v[i], 127);
}
// Codes as whole floats, and vectors of floats whose lowest byte is the code.
static inline Vec i8_codes(const uint8_t* p) { MAMBAC_LANES((float)(int8_t)p[i]); }
static inline void i8_store_low4(uint8_t* p, const Vec* a) {
  for (int k = 0; k < 4; k++)
    for (int i = 0; i < 16; i++) p[16 * k + i] = (uint8_t)float_to_bits(a[k].v[i]);
}
static inline void i8_store4(uint8_t* p, const Vec* a) {
  for (int k = 0; k < 4; k++) i8_store(p + 16 * k, a[k]);
}

// Sixteen nibbles (8 bytes, even element low) as scaled floats, and back.
struct I4 {
  float scale;
  void set(float s) { scale = s; }
  Vec load(const uint8_t* p) const { MAMBAC_LANES((float)nibble(p, i) * scale); }
  // Vector k of a block of 128 nibbles: lane d is nibble k of dword d, that is element 8 d + k.
  Vec load_strided(const uint8_t* p, int k) const { MAMBAC_LANES((float)nibble(p, 8 * i + k) * scale); }
};
// Codes as whole floats.
static inline Vec i4_codes(const uint8_t* p) { MAMBAC_LANES((float)nibble(p, i)); }
static inline Vec i4_codes_strided(const uint8_t* p, int k) { MAMBAC_LANES((float)nibble(p, 8 * i + k)); }
// Two vectors of floats whose lowest 16 bits are four codes plus 8: those of nibbles 0 to 3, and 4 to 7, of every dword.
static inline void i4_store_low(uint8_t* p, Vec low, Vec high) {
  for (int i = 0; i < 16; i++) {
    const uint32_t both = ((float_to_bits(low.v[i]) & 0xffffu) | float_to_bits(high.v[i]) << 16) ^ 0x88888888u;
    for (int k = 0; k < 4; k++) p[4 * i + k] = (uint8_t)(both >> (8 * k));
  }
}
static inline void i4_store(uint8_t* p, Vec a) {
  for (int i = 0; i < 16; i++) set_nibble(p, i, code_of(a.v[i], 7));
}
static inline void i4_store_strided(uint8_t* p, const Vec* a) {
  for (int k = 0; k < 8; k++)
    for (int i = 0; i < 16; i++) set_nibble(p, 8 * i + k, code_of(a[k].v[i], 7));
}

// 64 whole numbers within +-0x7f7f7f of each kind into planes.
static inline void split_whole(DotPlanes& k, const int32_t* even, const int32_t* odd) {
  const int32_t* whole[2] = {even, odd};
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 64; j++) {
      const int32_t c = whole[i][j], high = (c + 128) >> 8;
      k.c[0][i][j] = (int8_t)c;
      k.c[1][i][j] = (int8_t)high;
      k.c[2][i][j] = (int8_t)((high + 128) >> 8);
    }
}

// 128 coefficients times `scale`, rounded, into planes; the products stay within +-0x7f7f7f.
static void split_planes(DotPlanes& k, const float* c, Vec scale) {
  float scaled[128];
  int32_t even[64], odd[64];
  for (int i = 0; i < 128; i += 16) v_store(scaled + i, v_round(v_mul(v_load(c + i), scale)));
  for (int i = 0; i < 64; i++) {
    even[i] = (int32_t)scaled[2 * i];
    odd[i] = (int32_t)scaled[2 * i + 1];
  }
  split_whole(k, even, odd);
}

// Sums of 128 codes of 4 bits times coefficients (dot.h).
struct NibbleDot {
  int32_t c[128];
  explicit NibbleDot(const DotPlanes& k) {
    for (int i = 0; i < 128; i++) c[i] = (k.c[2][i & 1][i / 2] * 256 + k.c[1][i & 1][i / 2]) * 256 + k.c[0][i & 1][i / 2];
  }
  Vec read(const uint8_t* codes) const {
    int32_t sums[16] = {0};
    for (int i = 0; i < 128; i++) sums[i / 8] += nibble(codes, i) * c[i];
    Vec r;
    memcpy(&r, sums, sizeof r);
    return r;
  }
};
#undef MAMBAC_LANES
