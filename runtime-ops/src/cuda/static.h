// Mamba-2 with packed states whose steps are given. The state is kept in units of its step, g = h / step:
//   g = a q + (d x_p / row_p) (B_n / column_n),   y_p = row_p sum_n g (C_n column_n) + D x_p,
// and the new codes are g rounded. Rows need nothing of one another, so a warp takes rows and no barrier is passed. All g
// are 2^-kShift times their value (codec.h).
//
// A code's bounds cost nothing: (g + qmax) / (2 qmax) is worked out by a multiply-add that clamps to [0, 1], NaN to 0.
#pragma once
#include "codec.h"

namespace mambac {
namespace cuda {

// 1 / step, or 0 where the step is not positive: such rows and columns get nothing.
MAMBAC_DEVICE float static_inverse(float step) { return step > 0.0f ? fast_reciprocal(step) : 0.0f; }

// Codes of eight g.
template <class Codes>
MAMBAC_DEVICE typename Codes::Word static_codes(const float* g) {
  constexpr float span = 2.0f * Codes::kLimit;
  float c[8];
#pragma unroll
  for (int k = 0; k < 8; k++) c[k] = fmaf(fma_clamped(g[k], (1.0f / span) * power2(kShift), 0.5f), span, kMagic);
  return Codes::pack_raised(c);
}

// Eight columns of a token, and of their steps.
struct StaticColumns {
  float b[8], c[8];
  template <class T>
  MAMBAC_DEVICE_MEMBER void set(const T* B, const T* C, const float* step) {
    float s[8];
    load8(B, 4, b);
    load8(C, 4, c);
    load8(step, 4, s);
#pragma unroll
    for (int k = 0; k < 8; k++) b[k] *= static_inverse(s[k]), c[k] *= s[k];
  }
};

// One token. Rows of all heads of a group and sequence lie behind one another, and share B, C and column steps. A lane has
// 16 columns of kRows rows; head_dim is a multiple of the rows of a warp.
template <class T, class CodesType, int kLanes, int kRows>
struct StaticDecode {
  typedef CodesType Codes;
  typedef cuda::Tile<kLanes, kRows> Tile;
  enum { kOwned = Tile::kOwned, kColumns = 16 * kLanes, kLaneBytes = 2 * Codes::kRowBytes, kRowBytes = kLanes * kLaneBytes };
  struct Operands {
    typename Codes::Pair codes[kRows];
    float x[kOwned], row[kOwned], skip[kOwned];
  };

  const ScanArgs& s;
  const Tile tile;
  const unsigned p, batches;  // batches of rows in a head

  MAMBAC_DEVICE_MEMBER explicit StaticDecode(const ScanArgs& args)
      : s(args), tile(-(thread_index() / 32) * Tile::kWarpRows), p((unsigned)args.head_dim), batches(p / Tile::kWarpRows) {}

  // Batch i, counted over all heads of all sequences; `part`: of its head.
  MAMBAC_DEVICE_MEMBER int64_t first_row(int64_t i) const { return i * Tile::kWarpRows; }
  MAMBAC_DEVICE_MEMBER int64_t place(int64_t i) const { return first_row(i) * kRowBytes + tile.first * kRowBytes + tile.at * kLaneBytes; }
  MAMBAC_DEVICE_MEMBER Operands load(int64_t i, unsigned head, unsigned part) const {
    Operands in;
    const char* codes = (const char*)s.past + place(i);
#pragma unroll
    for (int r = 0; r < kRows; r++) in.codes[r] = Codes::load_pair(codes + r * Tile::kGroups * kRowBytes);
    const int64_t channel = (int64_t)head * p + part * Tile::kWarpRows;
#pragma unroll
    for (int k = 0; k < kOwned; k++) {
      in.x[k] = get(x_of<T>(s) + first_row(i) + tile.owned(k));
      in.row[k] = s.row_step[channel + tile.owned(k)];
      in.skip[k] = s.D[channel + tile.owned(k)];
    }
    return in;
  }

  MAMBAC_DEVICE_MEMBER void step(int64_t i, const Operands& in, const StaticColumns* columns, float delta, float decay) const {
    float factor[8], offset = 0.0f, fed[kOwned], sums[kRows], y[kOwned];
#pragma unroll
    for (int k = 0; k < 8; k++) column_factors<Codes>(decay, k, &factor[k], &offset);
#pragma unroll
    for (int k = 0; k < kOwned; k++) fed[k] = delta * in.x[k] * (static_inverse(in.row[k]) * power2(-kShift));
    char* codes = (char*)s.present + place(i);
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      const float x = tile.of_row(fed, r);
      typename Codes::Word w[2];
      float sum = 0.0f;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float g[8];
#pragma unroll
        for (int k = 0; k < 8; k++) {
          g[k] = fmaf(x, columns[half].b[k], fma_subnormal(Codes::raw(Codes::half_of(in.codes[r], half), k), factor[k], offset));
          sum = fmaf(g[k], columns[half].c[k], sum);
        }
        w[half] = static_codes<Codes>(g);
      }
      Codes::store_pair(codes + r * Tile::kGroups * kRowBytes, w[0], w[1]);
      sums[r] = sum;
    }
    tile.template reduce_rows<Add>(sums, y);
#pragma unroll
    for (int k = 0; k < kOwned; k++)
      if (tile.writes()) put(y_of<T>(s) + first_row(i) + tile.owned(k), fmaf(in.skip[k], in.x[k], y[k] * power2(kShift) * in.row[k]));
  }

  // Batches first .. last - 1. The codes of the next are loaded before this one's are worked out.
  MAMBAC_DEVICE_MEMBER void walk(int64_t first, int64_t last) const {
    if (first >= last) return;
    const unsigned heads = (unsigned)s.heads, per_group = heads / (unsigned)s.groups;
    int64_t group = -1;
    StaticColumns columns[2];
    float deltas = 0.0f, decays = 0.0f;
    int64_t task = first / batches;  // (sequence, head)
    unsigned head = (unsigned)(task % heads), part = (unsigned)(first - task * batches), turn = 0;
    Operands in = load(first, head, part);
    for (int64_t i = first; i < last; i++) {
      if (i == first || part == 0) {
        if (i != first) task++;
        if (turn % 32 == 0) {  // lane j: the rate of the j-th head from here
          const int64_t all = s.batch * s.heads, mine = task + tile.lane < all ? task + tile.lane : all - 1;
          const unsigned h = (unsigned)(mine % heads);
          deltas = delta_of(get(dt_of<T>(s) + mine) + s.dt_bias[h], s.dt_min, s.dt_max);
          decays = expf(deltas * s.A[h]);
        }
        turn++;
        if (task / per_group != group) {
          group = task / per_group;
          const int64_t bc = group * kColumns + 16 * tile.at;
          const float* steps = s.column_step + head / per_group * kColumns + 16 * tile.at;
#pragma unroll
          for (int half = 0; half < 2; half++) columns[half].set(B_of<T>(s) + bc + 8 * half, C_of<T>(s) + bc + 8 * half, steps + 8 * half);
        }
      }
      const int from = (int)((turn - 1) % 32);
      const float delta = shuffle(deltas, from), decay = shuffle(decays, from);
      if (++part == batches) part = 0, head = head + 1 == heads ? 0 : head + 1;
      const Operands next = i + 1 < last ? load(i + 1, head, part) : in;
      step(i, in, columns, delta, decay);
      in = next;
    }
  }
};

template <class T, class Codes, int kLanes, int kRows, int kThreads, int kBlocks>
MAMBAC_KERNEL(kThreads, kBlocks) decode_static(ScanArgs s) {
  const StaticDecode<T, Codes, kLanes, kRows> decode(s);
  const int64_t all = s.batch * s.heads * decode.batches, warps = blocks_x() * (threads() / 32);
  const int64_t warp = block_x() * (threads() / 32) + thread_index() / 32;
  decode.walk(all * warp / warps, all * (warp + 1) / warps);
}

// Several tokens, the state in registers from the first to the last; a lane has 8 columns of kRows rows.
template <class T, class CodesType, int kLanes, int kRows>
struct StaticTokens {
  typedef CodesType Codes;
  typedef cuda::Tile<kLanes, kRows> Tile;
  enum { kOwned = Tile::kOwned, kRowBytes = kLanes * Codes::kRowBytes };

  const ScanArgs& s;
  const Tile tile;
  const int64_t task;
  const Head head;
  const int p;

  MAMBAC_DEVICE_MEMBER explicit StaticTokens(const ScanArgs& args)
      : s(args), tile(block_y() * (threads() / 32) * Tile::kWarpRows), task(block_x()), head(args, (unsigned)block_x()), p((int)args.head_dim) {}

  MAMBAC_DEVICE_MEMBER int64_t place(int r) const { return (task * p + tile.row(r)) * kRowBytes + tile.at * Codes::kRowBytes; }
  MAMBAC_DEVICE_MEMBER void run() const {
    float g[kRows][8], row[kOwned], per_row[kOwned], skip[kOwned], y[kOwned], input[kOwned], x[kOwned];
    const int64_t here = (int64_t)head.head * p, channels = s.heads * p;
#pragma unroll
    for (int i = 0; i < kOwned; i++) {
      const bool own = tile.owned(i) < p;
      row[i] = own ? s.row_step[here + tile.owned(i)] : 0.0f;
      skip[i] = own ? s.D[here + tile.owned(i)] : 0.0f;
      per_row[i] = static_inverse(row[i]) * power2(-kShift);
    }
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      const typename Codes::Word w = tile.row(r) < p ? Codes::load((const char*)s.past + place(r)) : Codes::zero();
#pragma unroll
      for (int k = 0; k < 8; k++) g[r][k] = Codes::code(w, k) * power2(-kShift);
    }
    const int64_t bc = head.group_row(s, 0) + 8 * tile.at, bc_stride = s.groups * Tile::kStates;
    const float* steps = s.column_step + (s.groups == 1 ? 0 : head.head / head.per_group) * Tile::kStates + 8 * tile.at;
    const T *x_row = x_of<T>(s) + head.channels(s, 0), *dt_row = dt_of<T>(s) + head.batch * s.length * s.heads + head.head;
    T* y_row = y_of<T>(s) + head.channels(s, 0);
    float deltas = 0.0f, decays = 0.0f;
    for (int64_t l = 0; l < s.length; l++) {
      const int turn = (int)(l % 32);
      if (turn == 0) {  // lane i: the rate of the i-th token from here
        const int64_t mine = l + tile.lane < s.length ? l + tile.lane : s.length - 1;
        deltas = delta_of(get(dt_row + mine * s.heads) + s.dt_bias[head.head], s.dt_min, s.dt_max);
        decays = expf(deltas * s.A[head.head]);
      }
      const float delta = shuffle(deltas, turn), decay = shuffle(decays, turn);
      StaticColumns columns;
      columns.set(B_of<T>(s) + bc + l * bc_stride, C_of<T>(s) + bc + l * bc_stride, steps);
#pragma unroll
      for (int i = 0; i < kOwned; i++) {
        x[i] = tile.owned(i) < p ? get(x_row + l * channels + tile.owned(i)) : 0.0f;
        input[i] = delta * x[i] * per_row[i];
      }
      float sums[kRows];
#pragma unroll
      for (int r = 0; r < kRows; r++) {
        const float fed = tile.of_row(input, r);
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < 8; k++) {
          g[r][k] = fmaf(fed, columns.b[k], product(g[r][k], decay));
          sum = fmaf(g[r][k], columns.c[k], sum);
        }
        sums[r] = sum;
      }
      tile.template reduce_rows<Add>(sums, y);
#pragma unroll
      for (int i = 0; i < kOwned; i++)
        if (tile.writes() && tile.owned(i) < p) put(y_row + l * channels + tile.owned(i), fmaf(skip[i], x[i], y[i] * power2(kShift) * row[i]));
      const bool last = l + 1 == s.length;
      if (!last && !s.per_token) continue;
#pragma unroll
      for (int r = 0; r < kRows; r++) {
        const typename Codes::Word w = static_codes<Codes>(g[r]);
        if (last && tile.row(r) < p) Codes::store((char*)s.present + place(r), w);
#pragma unroll
        for (int k = 0; k < 8; k++) g[r][k] = Codes::code(w, k) * power2(-kShift);
      }
    }
  }
};

template <class T, class Codes, int kLanes, int kRows>
MAMBAC_KERNEL(128, 4) tokens_static(ScanArgs s) {
  const StaticTokens<T, Codes, kLanes, kRows> tokens(s);
  tokens.run();
}

}  // namespace cuda
}  // namespace mambac
