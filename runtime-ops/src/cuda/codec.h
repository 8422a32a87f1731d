// Eight codes of one row in a lane: packed words to floats and back.
#pragma once
#include "tile.h"

namespace mambac {
namespace cuda {

// An integer below 2^24 read as the bits of a float is that integer times 2^-149, exactly (subnormals and the first
// binade have one spacing). So a code is unpacked by one mask; the float's place in its word goes into the column's
// factor. Factors would overflow, so everything decoded this way is 2^-kShift times its value.
constexpr int kShift = 48;

// 4-bit codes, column k in bits 4 k .. 4 k + 3.
struct Codes4 {
  typedef uint32_t Word;
  enum { kLimit = 7, kBias = 8, kRowBytes = 4 };  // kRowBytes: of 8 columns
  MAMBAC_DEVICE_MEMBER static Word zero() { return 0; }
  MAMBAC_DEVICE_MEMBER static Word load(const void* p) { return *(const uint32_t*)p; }
  MAMBAC_DEVICE_MEMBER static void store(void* p, Word w) { *(uint32_t*)p = w; }
  // The code of column k plus kBias as the bits of a float, times 2^place(k).
  MAMBAC_DEVICE_MEMBER static constexpr int place(int k) { return k < 6 ? 4 * k : 4 * k - 8; }
  MAMBAC_DEVICE_MEMBER static float raw(Word w, int k) {
    const uint32_t biased = w ^ 0x88888888u;  // two's complement to offset binary
    return as_float(k < 6 ? biased & (0xfu << 4 * k) : (biased >> 8) & (0xfu << (4 * k - 8)));
  }
  MAMBAC_DEVICE_MEMBER static float code(Word w, int k) { return (float)((int)((w >> 4 * k & 15u) ^ 8u) - 8); }
  // From codes + kMagic: the integers are in the low bits, a sum of shifted words packs them all.
  MAMBAC_DEVICE_MEMBER static Word pack(const float* c) {
    uint32_t sum = 0x88888888u - kMagicBits * 0x11111111u;
#pragma unroll
    for (int k = 0; k < 8; k++) sum += as_bits(c[k]) << 4 * k;
    return sum ^ 0x88888888u;
  }
  // From codes + kLimit + kMagic.
  MAMBAC_DEVICE_MEMBER static Word pack_raised(const float* c) {
    uint32_t sum = 0x11111111u - kMagicBits * 0x11111111u;
#pragma unroll
    for (int k = 0; k < 8; k++) sum += as_bits(c[k]) << 4 * k;
    return sum ^ 0x88888888u;
  }
  // Sixteen codes of a row.
  typedef uint2 Pair;
  MAMBAC_DEVICE_MEMBER static Pair load_pair(const void* p) { return *(const uint2*)p; }
  MAMBAC_DEVICE_MEMBER static void store_pair(void* p, Word first, Word second) { *(uint2*)p = make_uint2(first, second); }
  MAMBAC_DEVICE_MEMBER static Word half_of(Pair w, int second) { return second ? w.y : w.x; }
};

// 8-bit codes, column k in byte k.
struct Codes8 {
  typedef uint2 Word;
  enum { kLimit = 127, kBias = 128, kRowBytes = 8 };
  MAMBAC_DEVICE_MEMBER static Word zero() { return make_uint2(0, 0); }
  MAMBAC_DEVICE_MEMBER static Word load(const void* p) { return *(const uint2*)p; }
  MAMBAC_DEVICE_MEMBER static void store(void* p, Word w) { *(uint2*)p = w; }
  MAMBAC_DEVICE_MEMBER static constexpr int place(int k) { return k % 4 < 3 ? 8 * (k % 4) : 16; }
  MAMBAC_DEVICE_MEMBER static float raw(Word w, int k) {
    const uint32_t biased = (k < 4 ? w.x : w.y) ^ 0x80808080u;
    return as_float(k % 4 < 3 ? biased & (0xffu << 8 * (k % 4)) : (biased >> 8) & 0xff0000u);
  }
  MAMBAC_DEVICE_MEMBER static float code(Word w, int k) {
    return (float)((int)(((k < 4 ? w.x : w.y) >> 8 * (k % 4) & 255u) ^ 128u) - 128);
  }
  MAMBAC_DEVICE_MEMBER static Word pack(const float* c) {
    uint32_t words[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t a = as_bits(c[4 * i]) & 255u, b = as_bits(c[4 * i + 1]) & 255u;
      const uint32_t d = as_bits(c[4 * i + 2]) & 255u, e = as_bits(c[4 * i + 3]);
      words[i] = a | b << 8 | d << 16 | e << 24;
    }
    return make_uint2(words[0], words[1]);
  }
  MAMBAC_DEVICE_MEMBER static Word pack_raised(const float* c) {
    uint32_t words[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      uint32_t sum = 0x01010101u - kMagicBits * 0x01010101u;
#pragma unroll
      for (int k = 0; k < 4; k++) sum += as_bits(c[4 * i + k]) << 8 * k;
      words[i] = sum ^ 0x80808080u;
    }
    return make_uint2(words[0], words[1]);
  }
  typedef uint4 Pair;
  MAMBAC_DEVICE_MEMBER static Pair load_pair(const void* p) { return *(const uint4*)p; }
  MAMBAC_DEVICE_MEMBER static void store_pair(void* p, Word first, Word second) { *(uint4*)p = make_uint4(first.x, first.y, second.x, second.y); }
  MAMBAC_DEVICE_MEMBER static Word half_of(Pair w, int second) { return second ? make_uint2(w.z, w.w) : make_uint2(w.x, w.y); }
};

// 2^e for -126 <= e <= 127.
MAMBAC_DEVICE float power2(int e) { return as_float((uint32_t)(e + 127) << 23); }

// One column's factors: raw(w, k) * scale + offset is its code times `step`, times 2^-kShift.
template <class Codes>
MAMBAC_DEVICE void column_factors(float step, int k, float* scale, float* offset) {
  *scale = step * power2(149 - kShift - Codes::place(k));
  *offset = step * (-(float)Codes::kBias * power2(-kShift));
}

// Codes of eight values t with qmax / Ss in `ratio`; kWild: values may lie outside the range.
template <class Codes, bool kWild>
MAMBAC_DEVICE typename Codes::Word encode8(const float* t, const float* ratio) {
  float c[8];
  if (kWild) {
#pragma unroll
    for (int k = 0; k < 8; k++)  // NaN becomes the lowest code
      c[k] = fminf(fmaxf(t[k] * ratio[k], -(float)Codes::kLimit), (float)Codes::kLimit) + kMagic;
  } else {
#pragma unroll
    for (int k = 0; k < 8; k++) c[k] = fmaf(t[k], ratio[k], kMagic);
  }
  return Codes::pack(c);
}

// Shared memory of `state_scales`: column maxima of every warp, then ratio and Ss of every column.
MAMBAC_ANYWHERE static inline int scale_room(int warps, int states) { return warps * states * 2 + states * 8; }

// From the largest |t| of each of a lane's eight columns: state scales of the whole block. Each thread works out the
// scales of some columns and stores them to `stored` (unless null); then `ratio` (qmax / Ss, 0 where Ss is 0) of the
// lane's columns is read back, and their Ss stays in the room. Every thread passes a barrier, so what any thread read of
// the old state before may be overwritten after. Returns, for the whole block, whether `wild` was set or a value may exceed
// its column's range: that takes an Ss at its upper bound or a subnormal one, whose relative rounding error is large.
// kAtOnce: how many warps' maxima are read at once.
template <class Codes, int kAtOnce, class Tile>
MAMBAC_DEVICE bool state_scales(const Tile& tile, const float* largest, bool wild, char* room, uint16_t* stored, float* ratio) {
  const int warps = threads() / 32;
  uint32_t h[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    h[i] = half_pair(largest[2 * i], largest[2 * i + 1]);
#pragma unroll
    for (int width = Tile::kLanes; width < 32; width *= 2) h[i] = half_pair_max(h[i], shuffle_xor(h[i], width));
  }
  uint16_t* maxima = (uint16_t*)room;
  float* ratios = (float*)(room + warps * Tile::kStates * 2);
  if (tile.group == 0) *(uint4*)(maxima + tile.warp * Tile::kStates + 8 * tile.at) = make_uint4(h[0], h[1], h[2], h[3]);
  if (warps > 1)
    sync_block();
  else
    sync_warp();
#pragma unroll 1
  for (int c = thread_index(); c < Tile::kStates; c += threads()) {
    uint32_t most = 0;
#pragma unroll kAtOnce
    for (int w = 0; w < warps; w++) {
      const uint32_t other = maxima[w * Tile::kStates + c];
      most = other > most ? other : most;  // halves that are not negative compare like integers
    }
    most = most < 0x7bffu ? most : 0x7bffu;
    const float ss = half_value(most);
    ratios[c] = most > 0 ? (float)Codes::kLimit * fast_reciprocal(ss) : 0.0f;
    ratios[Tile::kStates + c] = ss;
    wild |= most > 0 && most - 0x400u > 0x7bfeu - 0x400u;
    if (stored != nullptr) stored[c] = (uint16_t)most;
  }
  if (warps > 1) {
    wild = any_in_block(wild);
  } else {
    wild = any_in_warp(wild);
    sync_warp();
  }
  load8(ratios + 8 * tile.at, 4, ratio);
  return wild;
}

}  // namespace cuda
}  // namespace mambac
