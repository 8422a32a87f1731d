// A packed head in the registers of a block: eight columns of kRows rows a lane.
#pragma once
#include "codec.h"

namespace mambac {
namespace cuda {

// The state that the head at `state` stands for; rows beyond p are zero.
template <class Codes, class Tile>
MAMBAC_DEVICE void unpack_head(const Tile& tile, int p, const char* state, float (*h)[8]) {
  const char* scales = state + p * Tile::kLanes * Codes::kRowBytes;
  float step[8];
  load8_halves(scales + 2 * p + 16 * tile.at, step);
#pragma unroll
  for (int k = 0; k < 8; k++) step[k] *= 1.0f / Codes::kLimit;
#pragma unroll
  for (int r = 0; r < Tile::kRows; r++) {
    const int row = tile.row(r);
    const float sc = row < p ? half_value(((const uint16_t*)scales)[row]) : 0.0f;
    const typename Codes::Word w = row < p ? Codes::load(state + (row * Tile::kLanes + tile.at) * Codes::kRowBytes) : Codes::zero();
#pragma unroll
    for (int k = 0; k < 8; k++) h[r][k] = Codes::code(w, k) * sc * step[k];
  }
}

// Scales and codes of h, stored at `state` unless it is null; with `keep` h becomes what the codes stand for. Every thread
// of the block passes a barrier between the last read of h's origin and the first store. `room`: scale_room bytes.
template <class Codes, bool kMaxNorm, class Tile>
MAMBAC_DEVICE void pack_head(const Tile& tile, int p, float (*h)[8], char* state, bool keep, char* room) {
  enum { kRows = Tile::kRows, kOwned = Tile::kOwned };
  typedef RowStatistic<kMaxNorm> Statistic;
  float statistic[kRows], stat[kOwned], inverse[kOwned], scale[kOwned];
  uint32_t sc[kOwned];
  bool wild = false;
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    statistic[r] = 0.0f;
#pragma unroll
    for (int k = 0; k < 8; k++) {
      statistic[r] = Statistic::of(statistic[r], fabsf(h[r][k]));
      wild |= !(fabsf(h[r][k]) < INFINITY);
    }
  }
  tile.template reduce_rows<Statistic>(statistic, stat);
#pragma unroll
  for (int i = 0; i < kOwned; i++) {
    sc[i] = channel_scale(kMaxNorm ? stat[i] : fast_sqrt(stat[i] * (1.0f / Tile::kStates)));
    scale[i] = half_value(sc[i]);
    inverse[i] = fast_reciprocal(scale[i]);
  }
  float largest[8];
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    const float factor = tile.of_row(inverse, r);
#pragma unroll
    for (int k = 0; k < 8; k++) {
      h[r][k] *= factor;
      largest[k] = r == 0 ? fabsf(h[r][k]) : fmaxf(largest[k], fabsf(h[r][k]));
    }
  }
  uint16_t* scales = state == nullptr ? nullptr : (uint16_t*)(state + p * Tile::kLanes * Codes::kRowBytes);
  float ratio[8], step[8];
  wild = state_scales<Codes, 1>(tile, largest, wild, room, scales == nullptr ? nullptr : scales + p, ratio);
  load8((const float*)(room + threads() / 32 * Tile::kStates * 2) + Tile::kStates + 8 * tile.at, 4, step);
#pragma unroll
  for (int k = 0; k < 8; k++) step[k] *= 1.0f / Codes::kLimit;
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    const typename Codes::Word w = wild ? encode8<Codes, true>(h[r], ratio) : encode8<Codes, false>(h[r], ratio);
    const float factor = tile.of_row(scale, r);
    if (keep) {
#pragma unroll
      for (int k = 0; k < 8; k++) h[r][k] = Codes::code(w, k) * factor * step[k];
    }
    if (state != nullptr && tile.row(r) < p) Codes::store(state + (tile.row(r) * Tile::kLanes + tile.at) * Codes::kRowBytes, w);
  }
  if (state == nullptr) return;
#pragma unroll
  for (int i = 0; i < kOwned; i++)
    if (tile.writes() && tile.owned(i) < p) scales[tile.owned(i)] = (uint16_t)sc[i];
}

}  // namespace cuda
}  // namespace mambac
