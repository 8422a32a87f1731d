// Scalars of the recurrence and of the packed formats (rules: runtime-ops/README.md).
#pragma once
#include "device.h"

namespace mambac {
namespace cuda {

constexpr float kLargestHalf = 65504.0f, kSmallestScale = 0x1p-14f;
constexpr float kMagic = 12582912.0f;          // 1.5 * 2^23: adding it rounds |f| < 2^22 to nearest even ...
constexpr uint32_t kMagicBits = 0x4b400000u;   // ... and leaves the integer in the low bits
constexpr float kLog2E = 1.44269504f;

// clip(softplus(raw), low, high); NaN passes.
MAMBAC_DEVICE float delta_of(float raw, float low, float high) {
  const float soft = fmaxf(raw, 0.0f) + log1pf(expf(-fabsf(raw)));
  return raw == raw ? fminf(fmaxf(soft, low), high) : raw;
}
// A channel scale as half bits, from the root mean or the maximum of its row. NaN becomes the largest half.
MAMBAC_DEVICE uint32_t channel_scale(float raw) { return half_bits(fmaxf(fminf(raw, kLargestHalf), kSmallestScale)); }
MAMBAC_DEVICE float sloped_silu(float f, float slope) { return f / (1.0f + expf(-slope * f)); }
MAMBAC_DEVICE float silu(float f) { return f / (1.0f + expf(-f)); }

}  // namespace cuda
}  // namespace mambac
