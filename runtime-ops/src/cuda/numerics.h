// Scalars of the recurrence and of the packed formats (rules: runtime-ops/README.md).
#pragma once
#include "device.h"

namespace mambac {
namespace cuda {

constexpr float kLargestHalf = 65504.0f, kSmallestScale = 0x1p-14f;
constexpr float kMagic = 12582912.0f;          // 1.5 * 2^23: adding it rounds |f| < 2^22 to nearest even ...
constexpr uint32_t kMagicBits = 0x4b400000u;   // ... and leaves the integer in the low bits
constexpr float kLog2E = 1.44269504f;

// An activation: a float, or the bits of a half. Sums and products are floats either way.
MAMBAC_DEVICE float get(const float* p) { return *p; }
MAMBAC_DEVICE void put(float* p, float v) { *p = v; }
MAMBAC_DEVICE float get(const uint16_t* p) { return half_value(*p); }
MAMBAC_DEVICE void put(uint16_t* p, float v) { *p = (uint16_t)half_bits(v); }

// The activations of a scan as what they are.
template <class T>
MAMBAC_DEVICE const T* x_of(const ScanArgs& a) { return (const T*)a.x; }
template <class T>
MAMBAC_DEVICE const T* dt_of(const ScanArgs& a) { return (const T*)a.dt; }
template <class T>
MAMBAC_DEVICE const T* B_of(const ScanArgs& a) { return (const T*)a.B; }
template <class T>
MAMBAC_DEVICE const T* C_of(const ScanArgs& a) { return (const T*)a.C; }
template <class T>
MAMBAC_DEVICE T* y_of(const ScanArgs& a) { return (T*)a.y; }

// clip(softplus(raw), low, high); NaN passes.
MAMBAC_DEVICE float delta_of(float raw, float low, float high) {
  const float soft = fmaxf(raw, 0.0f) + log1pf(expf(-fabsf(raw)));
  return raw == raw ? fminf(fmaxf(soft, low), high) : raw;
}
// A channel scale as half bits, from the root mean or the maximum of its row. NaN becomes the largest half.
MAMBAC_DEVICE uint32_t channel_scale(float raw) { return half_bits(fmaxf(fminf(raw, kLargestHalf), kSmallestScale)); }
MAMBAC_DEVICE float sloped_silu(float f, float slope) { return f / (1.0f + expf(-slope * f)); }
MAMBAC_DEVICE float silu(float f) { return f / (1.0f + expf(-f)); }

// What a Replay ring keeps of an input, as half bits; NaN passes.
MAMBAC_DEVICE uint32_t ring_half(float v) { return half_bits(v == v ? fminf(fmaxf(v, -kLargestHalf), kLargestHalf) : v); }

// Numbers at addresses that may be odd.
MAMBAC_DEVICE float half_at(const uint8_t* at) { return half_value((uint32_t)at[0] | (uint32_t)at[1] << 8); }
MAMBAC_DEVICE void put_half(uint8_t* at, uint32_t bits) {
  at[0] = (uint8_t)bits;
  at[1] = (uint8_t)(bits >> 8);
}
MAMBAC_DEVICE uint32_t word_at(const uint8_t* at) {
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}
MAMBAC_DEVICE void put_word(uint8_t* at, uint32_t bits) {
  put_half(at, bits & 0xffffu);
  put_half(at + 2, bits >> 16);
}

}  // namespace cuda
}  // namespace mambac
