// One token of packed states. A block walks neighbouring heads; the operands of the next head are loaded while the scales
// and codes of this one are worked out, so memory never waits for arithmetic.
//
// Everything of a row is kept divided by its old channel scale (a half of at least 2^-14, so the division is safe) and
// times 2^-kShift: g = code * (a Ss / qmax) + (d x / Sc) B, h = Sc g. That leaves one multiply-add for the old code, one
// for the input and one for the output of each state.
#pragma once
#include "codec.h"

namespace mambac {
namespace cuda {

// kWhole: head_dim is a multiple of the rows of a warp.
template <class T, bool kMamba1, class CodesType, bool kMaxNorm, int kLanes, int kRows, bool kWhole>
struct PackedDecode {
  typedef CodesType Codes;
  typedef cuda::Tile<kLanes, kRows> Tile;
  typedef RowStatistic<kMaxNorm> Statistic;
  enum { kOwned = Tile::kOwned };

  // What one head's step reads from memory early. A, B and C come from caches and are read when they are used.
  struct Operands {
    typename Codes::Word codes[kRows];
    uint4 ss;
    float x[kOwned], raw[kOwned];  // of owned rows; raw: dt + bias, Mamba-1 only
    uint32_t sc[kOwned];
  };

  const ScanArgs& s;
  const Tile tile;
  const unsigned p, bytes;  // bytes: of a head

  MAMBAC_DEVICE_MEMBER explicit PackedDecode(const ScanArgs& args)
      : s(args), tile(0), p((unsigned)args.head_dim), bytes(p * row_bytes() + 2 * p + 2 * Tile::kStates) {}

  // A head and where its operands are. Of one token they follow one another as the heads do.
  struct Cursor {
    unsigned task, head, place, row;  // place: of the head within its group; row: of B and C
    MAMBAC_DEVICE_MEMBER Cursor(const ScanArgs& a, unsigned first) {
      const unsigned per_group = (unsigned)a.heads / (unsigned)a.groups;
      task = first;
      head = task % (unsigned)a.heads;
      row = task / per_group;
      place = task - row * per_group;
    }
    MAMBAC_DEVICE_MEMBER void advance(const ScanArgs& a) {
      task++;
      if (++head == (unsigned)a.heads) head = 0;
      if (++place * (unsigned)a.groups == (unsigned)a.heads) {
        place = 0;
        row++;
      }
    }
  };
  // 32-bit sizes, 64-bit products.
  MAMBAC_DEVICE_MEMBER static uint64_t at(unsigned i, unsigned size) { return (uint64_t)i * size; }

  MAMBAC_DEVICE_MEMBER static constexpr unsigned row_bytes() { return kLanes * Codes::kRowBytes; }

  MAMBAC_DEVICE_MEMBER bool real(unsigned row) const { return kWhole || row < p; }
  MAMBAC_DEVICE_MEMBER Operands load(const Cursor& c) const {
    Operands in;
    const char* state = (const char*)s.past + at(c.task, bytes);
    const char* codes = state + tile.first * row_bytes() + tile.at * Codes::kRowBytes;
#pragma unroll
    for (int r = 0; r < kRows; r++)
      in.codes[r] = real(tile.row(r)) ? Codes::load(codes + r * Tile::kGroups * row_bytes()) : Codes::zero();
    const uint16_t* scales = (const uint16_t*)(state + p * row_bytes());
    in.ss = *(const uint4*)(scales + p + 8 * tile.at);
#pragma unroll
    for (int i = 0; i < kOwned; i++) {
      const unsigned row = tile.owned(i);
      in.x[i] = real(row) ? get(x_of<T>(s) + at(c.task, p) + row) : 0.0f;
      in.sc[i] = real(row) ? scales[row] : 0;
      in.raw[i] = kMamba1 && real(row) ? get(dt_of<T>(s) + at(c.task, p) + row) + s.dt_bias[at(c.head, p) + row] : 0.0f;
    }
    return in;
  }

  // Replaces the state of a head and writes its y; loads the operands of the head after it unless this is the `last`.
  MAMBAC_DEVICE_MEMBER Operands step(Cursor c, bool last, const Operands& in, float delta, float decay) const {
    const uint64_t channels = at(c.task, p), here = at(c.head, p);
    float t[kRows][8], sums[kRows], statistic[kRows];
    float scale[kOwned], input[kOwned], rate[kOwned];
    typename Codes::Word codes[kRows];
    unsigned live[kOwned], all = kAllLanes;
#pragma unroll
    for (int i = 0; i < kOwned; i++) {
      const float sc = half_value(in.sc[i]), d = kMamba1 ? delta_of(in.raw[i], s.dt_min, s.dt_max) : delta;
      const float safe = in.sc[i] == 0 ? 1.0f : sc;  // a zero state
      scale[i] = safe * power2(kShift);
      input[i] = d * in.x[i] * (fast_reciprocal(safe) * power2(-kShift));
      rate[i] = d * kLog2E;
      live[i] = ballot(in.sc[i] != 0);
      all &= live[i];
    }
    float x[kRows], rates[kRows];
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      x[r] = tile.of_row_among(input, r);
      rates[r] = kMamba1 ? tile.of_row_among(rate, r) : 0.0f;
      sums[r] = statistic[r] = 0.0f;
      codes[r] = in.codes[r];
    }
    if (all != kAllLanes) {  // rows whose channel scale is zero are zero
#pragma unroll
      for (int r = 0; r < kRows; r++)
        if (!(live[r % kOwned] >> tile.owner(r) & 1u)) codes[r] = Codes::zero();
    }
    // Four columns at a time: their constants would not fit into registers beside the state all at once.
    const uint64_t bc = at(c.row, Tile::kStates) + 8 * tile.at;
    const float whole = (kMamba1 ? 1.0f : decay) * (1.0f / Codes::kLimit);
#pragma unroll
    for (int k0 = 0; k0 < 8; k0 += 4) {
      float b_row[4], c_row[4], factor[4], offset[4];
      load4(B_of<T>(s) + bc + k0, b_row);
      load4(C_of<T>(s) + bc + k0, c_row);
      const uint32_t ss[2] = {k0 == 0 ? in.ss.x : in.ss.z, k0 == 0 ? in.ss.y : in.ss.w};
#pragma unroll
      for (int k = 0; k < 4; k++)
        column_factors<Codes>(half_value(k % 2 ? ss[k / 2] >> 16 : ss[k / 2] & 0xffffu) * whole, k0 + k, &factor[k], &offset[k]);
#pragma unroll
      for (int i = 0; i < kRows; i++) {
        const int r = i / 2 + i % 2 * (kRows / 2);  // in the pairs that `fold` takes
        float a[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (kMamba1 && real(tile.row(r))) load4(s.A + (here + tile.row(r)) * Tile::kStates + 8 * tile.at + k0, a);
#pragma unroll
        for (int k = 0; k < 4; k++) {
          const float old = fma_subnormal(Codes::raw(codes[r], k0 + k), factor[k], offset[k]);
          const float g = kMamba1 ? fmaf(old, fast_exp2(rates[r] * a[k]), x[r] * b_row[k]) : fmaf(x[r], b_row[k], old);
          sums[r] = fmaf(g, c_row[k], sums[r]);
          statistic[r] = Statistic::of(statistic[r], fabsf(g));
          t[r][k0 + k] = g;
        }
        if (k0 == 4 && i % 2 == 1) {
          sums[i / 2] = tile.template fold<Add>(sums[i / 2], sums[r]);
          statistic[i / 2] = tile.template fold<Statistic>(statistic[i / 2], statistic[r]);
        }
      }
    }

    float y[kOwned], stat[kOwned], to_new[kOwned];
    uint32_t sc[kOwned];
    bool wild = false;
    tile.template finish<Add>(sums, y);
    tile.template finish<Statistic>(statistic, stat);
#pragma unroll
    for (int i = 0; i < kOwned; i++) {
      const float raw = stat[i] * scale[i];
      sc[i] = channel_scale(kMaxNorm ? raw : fast_sqrt(raw * (1.0f / Tile::kStates)));
      to_new[i] = scale[i] * fast_reciprocal(half_value(sc[i]));
      wild |= !(fabsf(y[i]) < INFINITY);  // also where the state holds NaN, which maxima do not show
      const unsigned row = tile.owned(i);
      if (tile.writes() && real(row)) put(y_of<T>(s) + channels + row, fmaf(s.D[here + row], in.x[i], y[i] * scale[i]));
    }
    char* state = (char*)s.present + at(c.task, bytes);
    c.advance(s);
    const Operands next = last ? in : load(c);
    float largest[8];
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      const float factor = tile.of_row_among(to_new, r);
#pragma unroll
      for (int k = 0; k < 8; k++) {
        t[r][k] *= factor;
        largest[k] = r == 0 ? fabsf(t[r][k]) : fmaxf(largest[k], fabsf(t[r][k]));
      }
    }
    uint16_t* scales = (uint16_t*)(state + p * row_bytes());
    float ratio[8];
    wild = state_scales<Codes, 4>(tile, largest, wild, shared_memory(), scales + p, ratio);
    if (wild)
      store_codes<true>(state, t, ratio);
    else
      store_codes<false>(state, t, ratio);
#pragma unroll
    for (int i = 0; i < kOwned; i++)
      if (tile.writes() && real(tile.owned(i))) scales[tile.owned(i)] = (uint16_t)sc[i];
    return next;
  }

  template <bool kWild>
  MAMBAC_DEVICE_MEMBER void store_codes(char* state, const float (*t)[8], const float* ratio) const {
    char* codes = state + tile.first * row_bytes() + tile.at * Codes::kRowBytes;
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      const typename Codes::Word w = encode8<Codes, kWild>(t[r], ratio);
      if (real(tile.row(r))) Codes::store(codes + r * Tile::kGroups * row_bytes(), w);
    }
  }

  // Heads first .. last - 1, in order.
  MAMBAC_DEVICE_MEMBER void walk(unsigned first, unsigned last) const {
    if (first >= last) return;
    Cursor c(s, first);
    Operands in = load(c);
    float deltas = 0.0f, decays = 0.0f;
    for (unsigned task = first; task < last; task++) {
      const unsigned turn = (task - first) % 32;
      if (!kMamba1 && turn == 0) {  // lane i: the rate of the i-th head from here
        const unsigned mine = task + tile.lane < last ? task + tile.lane : last - 1, h = mine % (unsigned)s.heads;
        deltas = delta_of(get(dt_of<T>(s) + mine) + s.dt_bias[h], s.dt_min, s.dt_max);
        decays = expf(deltas * s.A[h]);
      }
      const float delta = kMamba1 ? 0.0f : shuffle(deltas, (int)turn), decay = kMamba1 ? 0.0f : shuffle(decays, (int)turn);
      in = step(c, task + 1 == last, in, delta, decay);
      c.advance(s);
    }
  }
};

template <class T, bool kMamba1, class Codes, bool kMaxNorm, int kLanes, int kRows, bool kWhole, int kThreads, int kBlocks>
MAMBAC_KERNEL(kThreads, kBlocks) decode_packed(ScanArgs s) {
  const int64_t tasks = s.batch * s.heads;
  const PackedDecode<T, kMamba1, Codes, kMaxNorm, kLanes, kRows, kWhole> decode(s);
  decode.walk((unsigned)(tasks * block_x() / blocks_x()), (unsigned)(tasks * (block_x() + 1) / blocks_x()));
}

}  // namespace cuda
}  // namespace mambac
