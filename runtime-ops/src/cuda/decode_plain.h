// One token of states stored as floats or halves. Rows are independent: a block takes some rows of one head.
#pragma once
#include "tile.h"

namespace mambac {
namespace cuda {

// Rows of a state in memory. Columns of a lane: four from 4 * at, four from kSecond further, so that the lanes of a warp
// read whole lines with each 16-byte load.
template <int kLanes>
struct FloatRows {
  typedef float Element;
  enum { kFirst = 4, kSecond = 4 * kLanes };
  MAMBAC_DEVICE_MEMBER static void load(const float* row, int at, float* h) { load8(row + kFirst * at, kSecond, h); }
  MAMBAC_DEVICE_MEMBER static void store(float* row, int at, const float* h) { store8(row + kFirst * at, kSecond, h); }
};
template <int kLanes>
struct HalfRows {
  typedef uint16_t Element;
  enum { kFirst = 8, kSecond = 4 };
  MAMBAC_DEVICE_MEMBER static void load(const uint16_t* row, int at, float* h) { load8_halves(row + kFirst * at, h); }
  MAMBAC_DEVICE_MEMBER static void store(uint16_t* row, int at, const float* h) { store8_halves(row + kFirst * at, h); }
};

template <class T, bool kMamba1, class Rows, int kLanes, int kRows, int kThreads, int kBlocks>
MAMBAC_KERNEL(kThreads, kBlocks) decode_plain(ScanArgs s) {
  typedef typename Rows::Element Element;
  const int p = (int)s.head_dim;
  const Tile<kLanes, kRows> tile(block_y() * (threads() / 32) * Tile<kLanes, kRows>::kWarpRows);
  const int64_t task = block_x();
  const Head head(s, (unsigned)task);
  const Element* past = (const Element*)s.past + task * p * tile.kStates;
  Element* present = (Element*)s.present + task * p * tile.kStates;
  float h[kRows][8];
#pragma unroll
  for (int r = 0; r < kRows; r++)
    if (tile.row(r) < p) {
      Rows::load(past + tile.row(r) * tile.kStates, tile.at, h[r]);
    } else {
#pragma unroll
      for (int k = 0; k < 8; k++) h[r][k] = 0.0f;
    }
  float b[8], c[8];
  const int64_t bc = head.group_row(s, 0) + Rows::kFirst * tile.at, channels = head.channels(s, 0), here = (int64_t)head.head * p;
  load8(B_of<T>(s) + bc, Rows::kSecond, b);
  load8(C_of<T>(s) + bc, Rows::kSecond, c);
  float x[tile.kOwned], skip[tile.kOwned], input[tile.kOwned], rate[tile.kOwned];
  float delta = 0.0f, decay = 0.0f;
  if (!kMamba1) {
    delta = delta_of(get(dt_of<T>(s) + task) + s.dt_bias[head.head], s.dt_min, s.dt_max);
    decay = expf(delta * s.A[head.head]);
  }
#pragma unroll
  for (int i = 0; i < tile.kOwned; i++) {
    const int row = tile.owned(i);
    const bool real = row < p;
    x[i] = real ? get(x_of<T>(s) + channels + row) : 0.0f;
    skip[i] = real ? s.D[here + row] : 0.0f;
    if (kMamba1) delta = real ? delta_of(get(dt_of<T>(s) + channels + row) + s.dt_bias[here + row], s.dt_min, s.dt_max) : 0.0f;
    input[i] = delta * x[i];
    rate[i] = delta * kLog2E;
  }
  float sums[kRows];
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    const float xd = tile.of_row(input, r), own_rate = kMamba1 ? tile.of_row(rate, r) : 0.0f;
    const bool real = tile.row(r) < p;
    float a[8], sum = 0.0f;
    if (kMamba1 && real) load8(s.A + (here + tile.row(r)) * tile.kStates + Rows::kFirst * tile.at, Rows::kSecond, a);
#pragma unroll
    for (int k = 0; k < 8; k++) {
      const float keep = kMamba1 ? (real ? fast_exp2(own_rate * a[k]) : 0.0f) : decay;
      h[r][k] = fmaf(h[r][k], keep, xd * b[k]);
      sum = fmaf(h[r][k], c[k], sum);
    }
    sums[r] = sum;
    if (real) Rows::store(present + tile.row(r) * tile.kStates, tile.at, h[r]);
  }
  float y[tile.kOwned];
  tile.template reduce_rows<Add>(sums, y);
#pragma unroll
  for (int i = 0; i < tile.kOwned; i++)
    if (tile.writes() && tile.owned(i) < p) put(y_of<T>(s) + channels + tile.owned(i), fmaf(skip[i], x[i], y[i]));
}

}  // namespace cuda
}  // namespace mambac
