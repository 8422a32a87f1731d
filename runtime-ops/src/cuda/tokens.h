// Any number of tokens of one head, its state in registers from the first to the last: prefill, and short calls of more
// than one token. Every format; a block takes a whole head, or with plain formats some rows of one.
#pragma once
#include "decode_plain.h"
#include "packing.h"

namespace mambac {
namespace cuda {

template <class T, bool kMamba1, int kLanes, int kRows>
struct Tokens {
  typedef cuda::Tile<kLanes, kRows> Tile;
  enum { kOwned = Tile::kOwned };
  typedef HalfRows<kLanes> Halves;

  const ScanArgs& s;
  const Tile tile;
  const int64_t task;
  const Head head;
  const int p;
  float h[kRows][8];

  MAMBAC_DEVICE_MEMBER Tokens(const ScanArgs& args)
      : s(args), tile(block_y() * (threads() / 32) * Tile::kWarpRows), task(block_x()), head(args, (unsigned)block_x()),
        p((int)args.head_dim) {}

  MAMBAC_DEVICE_MEMBER bool real(int r) const { return tile.row(r) < p; }
  MAMBAC_DEVICE_MEMBER int64_t element(int r) const { return (task * p + tile.row(r)) * Tile::kStates + 8 * tile.at; }

  template <class Codes>
  MAMBAC_DEVICE_MEMBER void load_packed() {
    unpack_head<Codes>(tile, p, (const char*)s.past + task * head_bytes(s.format, p, Tile::kStates), h);
  }
  MAMBAC_DEVICE_MEMBER void load() {
    if (s.format == Format::kH8) return load_packed<Codes8>();
    if (s.format == Format::kH4) return load_packed<Codes4>();
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      if (!real(r)) {
#pragma unroll
        for (int k = 0; k < 8; k++) h[r][k] = 0.0f;
      } else if (s.format == Format::kF32) {
        load8((const float*)s.past + element(r), 4, h[r]);
      } else {
        load8_halves((const uint16_t*)s.past + element(r), h[r]);
      }
    }
  }

  // Scales and codes of h. With `last` they are stored, else h becomes what the codes stand for.
  template <class Codes, bool kMaxNorm>
  MAMBAC_DEVICE_MEMBER void round_packed(bool last, char* room) {
    char* state = (char*)s.present + task * head_bytes(s.format, p, Tile::kStates);
    pack_head<Codes, kMaxNorm>(tile, p, h, last ? state : nullptr, !last, room);
  }
  MAMBAC_DEVICE_MEMBER void round_state(bool last, char* room) {
    if (s.format == Format::kH8)
      s.max_norm ? round_packed<Codes8, true>(last, room) : round_packed<Codes8, false>(last, room);
    else if (s.format == Format::kH4)
      s.max_norm ? round_packed<Codes4, true>(last, room) : round_packed<Codes4, false>(last, room);
    else if (last)
      store_plain();
    else if (s.format == Format::kF16)
#pragma unroll
      for (int r = 0; r < kRows; r++)
#pragma unroll
        for (int k = 0; k < 8; k++) h[r][k] = half_value(half_bits(h[r][k]));
  }
  MAMBAC_DEVICE_MEMBER void store_plain() {
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      if (!real(r)) continue;
      if (s.format == Format::kF32)
        store8((float*)s.present + element(r), 4, h[r]);
      else
        store8_halves((uint16_t*)s.present + element(r), h[r]);
    }
  }

  MAMBAC_DEVICE_MEMBER void run() {
    load();
    const int64_t here = (int64_t)head.head * p, channels = s.heads * p, length = s.length;
    float a[kMamba1 ? kRows : 1][8];
    if (kMamba1) {
#pragma unroll
      for (int r = 0; r < kRows; r++)
        if (real(r)) {
          load8(s.A + (here + tile.row(r)) * Tile::kStates + 8 * tile.at, 4, a[kMamba1 ? r : 0]);
        } else {
#pragma unroll
          for (int k = 0; k < 8; k++) a[kMamba1 ? r : 0][k] = 0.0f;
        }
    }
    float skip[kOwned], bias[kOwned];
#pragma unroll
    for (int i = 0; i < kOwned; i++) {
      const bool own = tile.owned(i) < p;
      skip[i] = own ? s.D[here + tile.owned(i)] : 0.0f;
      bias[i] = kMamba1 && own ? s.dt_bias[here + tile.owned(i)] : 0.0f;
    }
    const T *b_row = B_of<T>(s) + head.group_row(s, 0) + 8 * tile.at, *c_row = C_of<T>(s) + head.group_row(s, 0) + 8 * tile.at;
    const T *x_row = x_of<T>(s) + head.channels(s, 0);
    const T* dt_row = dt_of<T>(s) + (kMamba1 ? head.channels(s, 0) : head.batch * length * s.heads + head.head);
    T* y_row = y_of<T>(s) + head.channels(s, 0);
    const int64_t bc_stride = s.groups * Tile::kStates;
    float deltas = 0.0f, decays = 0.0f;
    for (int64_t l = 0; l < length; l++) {
      const int turn = (int)(l % 32);
      if (!kMamba1 && turn == 0) {  // lane i: the rate of the i-th token from here
        const int64_t mine = l + tile.lane < length ? l + tile.lane : length - 1;
        deltas = delta_of(get(dt_row + mine * s.heads) + s.dt_bias[head.head], s.dt_min, s.dt_max);
        decays = expf(deltas * s.A[head.head]);
      }
      float b[8], c[8], x[kOwned], input[kOwned], rate[kOwned], sums[kRows], y[kOwned];
      load8(b_row + l * bc_stride, 4, b);
      load8(c_row + l * bc_stride, 4, c);
      float delta = kMamba1 ? 0.0f : shuffle(deltas, turn);
      const float decay = kMamba1 ? 0.0f : shuffle(decays, turn);
#pragma unroll
      for (int i = 0; i < kOwned; i++) {
        const bool own = tile.owned(i) < p;
        x[i] = own ? get(x_row + l * channels + tile.owned(i)) : 0.0f;
        if (kMamba1) delta = own ? delta_of(get(dt_row + l * channels + tile.owned(i)) + bias[i], s.dt_min, s.dt_max) : 0.0f;
        input[i] = delta * x[i];
        rate[i] = delta * kLog2E;
      }
#pragma unroll
      for (int r = 0; r < kRows; r++) {
        const float xd = tile.of_row(input, r), own_rate = kMamba1 ? tile.of_row(rate, r) : 0.0f;
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < 8; k++) {
          h[r][k] = fmaf(h[r][k], kMamba1 ? fast_exp2(own_rate * a[kMamba1 ? r : 0][k]) : decay, xd * b[k]);
          sum = fmaf(h[r][k], c[k], sum);
        }
        sums[r] = sum;
      }
      tile.template reduce_rows<Add>(sums, y);
#pragma unroll
      for (int i = 0; i < kOwned; i++)
        if (tile.writes() && tile.owned(i) < p) put(y_row + l * channels + tile.owned(i), fmaf(skip[i], x[i], y[i]));
      const bool last = l + 1 == length;
      if (last || s.per_token) round_state(last, shared_memory());
    }
  }
};

template <class T, bool kMamba1, int kLanes, int kRows, int kThreads, int kBlocks>
MAMBAC_KERNEL(kThreads, kBlocks) scan_tokens(ScanArgs s) {
  Tokens<T, kMamba1, kLanes, kRows> tokens(s);
  tokens.run();
}

}  // namespace cuda
}  // namespace mambac
