// How a block shares one head: a lane holds 8 columns of kRows rows, kLanes neighbouring lanes hold whole rows.
#pragma once
#include "numerics.h"

namespace mambac {
namespace cuda {

struct Add {
  MAMBAC_DEVICE_MEMBER static float of(float a, float b) { return a + b; }
};
// What the channel scale of a row is made from: sum or maximum of |h|.
template <bool kMaxNorm>
struct RowStatistic {
  MAMBAC_DEVICE_MEMBER static float of(float a, float b) { return kMaxNorm ? fmaxf(a, b) : a + b; }
};

// kLanes: d_state / 8, a power of two; kRows too, and at least 2. Row r of a lane is first + r * kGroups.
template <int kLaneCount, int kRowCount>
struct Tile {
  enum {
    kLanes = kLaneCount,
    kRows = kRowCount,
    kStates = 8 * kLanes,
    kGroups = 32 / kLanes,
    kWarpRows = kRows * kGroups,
    kOwned = kRows > kLanes ? kRows / kLanes : 1,        // rows whose scalars a lane keeps
    kSharing = kRows > kLanes ? 1 : kLanes / kRows,      // neighbouring lanes that keep the same row's
  };
  int lane, at, group, warp, first;
  MAMBAC_DEVICE_MEMBER explicit Tile(int block_row) {
    lane = thread_index() % 32;
    warp = thread_index() / 32;
    at = lane % kLanes;
    group = lane / kLanes;
    first = block_row + warp * kWarpRows + group;
  }
  MAMBAC_DEVICE_MEMBER int row(int r) const { return first + r * kGroups; }
  // The i-th row this lane owns, and whether it is the one to write that row's results.
  MAMBAC_DEVICE_MEMBER int owned(int i) const { return row(at / kSharing * kOwned + i); }
  MAMBAC_DEVICE_MEMBER bool writes() const { return at % kSharing == 0; }
  MAMBAC_DEVICE_MEMBER int owner(int r) const { return group * kLanes + r / kOwned * kSharing; }
  MAMBAC_DEVICE_MEMBER float of_row(const float* owned_values, int r) const {
    return shuffle(owned_values[r % kOwned], owner(r));
  }
  // The same without working out lanes; it takes registers that some kernels do not have.
  MAMBAC_DEVICE_MEMBER float of_row_among(const float* owned_values, int r) const {
    return shuffle_among<kLanes>(owned_values[r % kOwned], r / kOwned * kSharing);
  }

  // Reducing values of kRows rows over the lanes that share them: every exchange halves the rows a lane has, so the order
  // of each sum is fixed. `fold` is the first exchange, of row r (low) and row r + kRows / 2 (high), r < kRows / 2; the
  // others follow in `finish`, which overwrites v[kRows / 2] and leaves the rows this lane owns in `out`.
  template <class Op>
  MAMBAC_DEVICE_MEMBER float fold(float low, float high) const {
    return exchange<Op>(low, high, kLanes / 2);
  }
  template <class Op>
  MAMBAC_DEVICE_MEMBER void finish(float* v, float* out) const {
    int count = kRows / 2;
#pragma unroll
    for (int width = kLanes / 4; width >= 1; width /= 2) {
      if (count > 1) {
        count /= 2;
#pragma unroll
        for (int i = 0; i < count; i++) v[i] = exchange<Op>(v[i], v[i + count], width);
      } else {
        v[0] = Op::of(v[0], shuffle_xor(v[0], width));
      }
    }
#pragma unroll
    for (int i = 0; i < kOwned; i++) out[i] = v[i];
  }
  template <class Op>
  MAMBAC_DEVICE_MEMBER void reduce_rows(const float* v, float* out) const {
    float half[kRows / 2];
#pragma unroll
    for (int r = 0; r < kRows / 2; r++) half[r] = fold<Op>(v[r], v[r + kRows / 2]);
    finish<Op>(half, out);
  }

 private:
  template <class Op>
  MAMBAC_DEVICE_MEMBER float exchange(float low, float high, int width) const {
    const bool upper = (at & width) != 0;
    return Op::of(upper ? high : low, shuffle_xor(upper ? low : high, width));
  }
};

// Four floats from 16-byte aligned memory.
MAMBAC_DEVICE void load4(const float* p, float* out) {
  const float4 v = *(const float4*)p;
  out[0] = v.x;
  out[1] = v.y;
  out[2] = v.z;
  out[3] = v.w;
}
MAMBAC_DEVICE void store4(float* p, const float* v) { *(float4*)p = make_float4(v[0], v[1], v[2], v[3]); }
// Four halves from 8-byte aligned memory.
MAMBAC_DEVICE void load4(const uint16_t* p, float* out) {
  const uint2 w = *(const uint2*)p;
  out[0] = half_value(w.x & 0xffffu);
  out[1] = half_value(w.x >> 16);
  out[2] = half_value(w.y & 0xffffu);
  out[3] = half_value(w.y >> 16);
}
MAMBAC_DEVICE void store4(uint16_t* p, const float* v) { *(uint2*)p = make_uint2(half_pair(v[0], v[1]), half_pair(v[2], v[3])); }
// Eight floats from 16-byte aligned memory: four at `p`, four at `p + second`.
MAMBAC_DEVICE void load8(const float* p, int second, float* out) {
  load4(p, out);
  load4(p + second, out + 4);
}
MAMBAC_DEVICE void store8(float* p, int second, const float* v) {
  store4(p, v);
  store4(p + second, v + 4);
}
MAMBAC_DEVICE void load8_halves(const void* p, float* out) {
  const uint4 w = *(const uint4*)p;
  const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    out[2 * i] = half_value(words[i] & 0xffffu);
    out[2 * i + 1] = half_value(words[i] >> 16);
  }
}
// As floats: four at `p`, four at `p + second`; one load of 16 aligned bytes where they are neighbours.
MAMBAC_DEVICE void load8(const uint16_t* p, int second, float* out) {
  if (second == 4) return load8_halves(p, out);
  load4(p, out);
  load4(p + second, out + 4);
}
MAMBAC_DEVICE void store8_halves(void* p, const float* v) {
  *(uint4*)p = make_uint4(half_pair(v[0], v[1]), half_pair(v[2], v[3]), half_pair(v[4], v[5]), half_pair(v[6], v[7]));
}

// Where the operands of one head are. Row r of a head is channel head * head_dim + r.
struct Head {
  unsigned batch, head, per_group;
  MAMBAC_DEVICE_MEMBER Head(const ScanArgs& a, unsigned task)
      : batch(task / (unsigned)a.heads), head(task - batch * (unsigned)a.heads), per_group((unsigned)a.heads / (unsigned)a.groups) {}
  MAMBAC_DEVICE_MEMBER int64_t token(const ScanArgs& a, int64_t l) const { return batch * a.length + l; }
  MAMBAC_DEVICE_MEMBER int64_t channels(const ScanArgs& a, int64_t l) const {
    return (token(a, l) * a.heads + head) * a.head_dim;
  }
  // Row of B and C. Mamba-1: right where no group divides the pseudo-head, which launches check.
  MAMBAC_DEVICE_MEMBER int64_t group_row(const ScanArgs& a, int64_t l) const {
    return (token(a, l) * a.groups + (a.groups == 1 ? 0u : head / per_group)) * a.d_state;
  }
};

}  // namespace cuda
}  // namespace mambac
