// Where operators on rows put their results: floats or halves as they are, or 8-bit codes on a grid of one step.
#pragma once
#include "tile.h"

namespace mambac {
namespace cuda {

template <class T>
struct ValueSink {
  T* to;
  MAMBAC_DEVICE_MEMBER ValueSink(float* values, const CodesOut&) : to((T*)values) {}
  MAMBAC_DEVICE_MEMBER void one(int64_t i, float v) const { put(to + i, v); }
  // Four neighbours; i and `to` make that an aligned store.
  MAMBAC_DEVICE_MEMBER void four(int64_t i, const float* v) const { store4(to + i, v); }
};

// round_half_even(value / scale) + zero point, saturated; a NaN is the lowest code.
struct CodeSink {
  uint8_t* to;
  float scale, low, high;
  uint32_t zero;
  MAMBAC_DEVICE_MEMBER CodeSink(float*, const CodesOut& c) : to((uint8_t*)c.to), scale(*c.scale) {
    const int middle = c.is_signed ? *(const int8_t*)c.zero : *(const uint8_t*)c.zero;
    low = (float)((c.is_signed ? -128 : 0) - middle);
    high = (float)((c.is_signed ? 127 : 255) - middle);
    zero = (uint32_t)middle;
  }
  MAMBAC_DEVICE_MEMBER uint32_t code(float v) const {
    return (as_bits(fminf(fmaxf(quotient(v, scale), low), high) + kMagic) + zero) & 0xffu;
  }
  MAMBAC_DEVICE_MEMBER void one(int64_t i, float v) const { to[i] = (uint8_t)code(v); }
  MAMBAC_DEVICE_MEMBER void four(int64_t i, const float* v) const {
    *(uint32_t*)(to + i) = code(v[0]) | code(v[1]) << 8 | code(v[2]) << 16 | code(v[3]) << 24;
  }
};

// Whether four neighbours from any multiple of four on may be written at once.
static inline bool aligned_result(const float* values, const CodesOut& codes) {
  return codes.to != nullptr ? ((uintptr_t)codes.to & 3) == 0 : ((uintptr_t)values & 15) == 0;
}

}  // namespace cuda
}  // namespace mambac
