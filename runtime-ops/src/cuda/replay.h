// Mamba-2 with a replayed state: a packed checkpoint and the tokens since then.
//
// One token reads the codes once and writes one slot of each ring: with w_j the decay from token j to the new one,
//   y = w Sc_p sum_n q (step_n C_n) + sum_j w_j (b_j C) u_j + D x,
// and b_j C is the same for every head of a group. Only when the rings are full is the state itself made, by another kernel.
#pragma once
#include "packing.h"
#include "replay_rings.h"

namespace mambac {
namespace cuda {

// Eight halves of a ring's row, which may start at any multiple of four bytes.
MAMBAC_DEVICE void load8_ring(const void* p, float* out) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t pair = ((const uint32_t*)p)[i];
    out[2 * i] = half_value(pair & 0xffffu);
    out[2 * i + 1] = half_value(pair >> 16);
  }
}

// A number of every token in the rings: lane i has those of tokens i and i + 32.
struct PerToken {
  float low, high;
  MAMBAC_DEVICE_MEMBER float of(int j) const {
    const float a = shuffle(low, j % 32), b = shuffle(high, j % 32);
    return j < 32 ? a : b;
  }
};
// The sum of v over lanes behind this one.
MAMBAC_DEVICE float sum_behind(float v, int lane) {
  float sum = v;
#pragma unroll
  for (int width = 1; width < 32; width *= 2) {
    const float other = shuffle(sum, lane + width < 32 ? lane + width : lane);
    if (lane + width < 32) sum += other;
  }
  const float next = shuffle(sum, lane < 31 ? lane + 1 : lane);
  return lane < 31 ? next : 0.0f;
}

// Zeros in the slots of a head from `first` on.
MAMBAC_DEVICE void clear_slots(const ScanArgs& s, const ReplaySequence& q, int64_t head, int first) {
  const int slots = (int)s.replay - first;
  uint32_t *u = (uint32_t*)(q.present + q.u(s, head, first)), *l = (uint32_t*)(q.present + q.l(s, head, first));
  for (int64_t i = thread_index(); i < slots * (s.head_dim / 2); i += threads()) u[i] = 0;
  for (int i = thread_index(); i < slots; i += threads()) l[i] = 0;
}

// One token: y and the new slots. Where the rings are full then, `ReplayTokens::round` follows in a launch of its own.
template <class T, class CodesType, int kLanes, int kRows>
struct ReplayDecode {
  typedef CodesType Codes;
  typedef cuda::Tile<kLanes, kRows> Tile;
  enum { kOwned = Tile::kOwned, kStates = Tile::kStates, kRowBytes = kLanes * Codes::kRowBytes, kPairs = Tile::kWarpRows / 2 };

  const ScanArgs& s;
  const Tile tile;
  const int p, warps;
  float* dots;  // shared memory: b_j C of every token in the rings and of the new one

  MAMBAC_DEVICE_MEMBER explicit ReplayDecode(const ScanArgs& args)
      : s(args), tile(0), p((int)args.head_dim), warps(threads() / 32), dots((float*)shared_memory()) {}

  MAMBAC_DEVICE_MEMBER void load_columns(const void* state, const T* C, float* c) const {
    float step[8];
    load8_halves((const char*)state + p * kRowBytes + 2 * p + 16 * tile.at, step);
    load8(C + 8 * tile.at, 4, c);
#pragma unroll
    for (int k = 0; k < 8; k++) c[k] *= step[k] * (1.0f / Codes::kLimit);
  }

  // A warp a token; the new token's is the last.
  MAMBAC_DEVICE_MEMBER void set_dots(const ReplaySequence& q, int64_t group) const {
    const T *B = B_of<T>(s) + (q.batch * s.groups + group) * kStates, *C = C_of<T>(s) + (q.batch * s.groups + group) * kStates;
    sync_block();  // nobody reads those of another group any more
    for (int j = tile.warp; j <= q.count; j += warps) {
      const uint32_t* b = (const uint32_t*)(q.past + q.b(s, group, j));
      float sum = 0.0f;
      for (int i = tile.lane; i < kStates / 2; i += 32) {
        const uint32_t pair = j < q.count ? b[i] : ring_half(get(B + 2 * i)) | ring_half(get(B + 2 * i + 1)) << 16;
        sum = fmaf(half_value(pair & 0xffffu), get(C + 2 * i), sum);
        sum = fmaf(half_value(pair >> 16), get(C + 2 * i + 1), sum);
      }
#pragma unroll
      for (int width = 16; width >= 1; width /= 2) sum += shuffle_xor(sum, width);
      if (tile.lane == 0) dots[j] = sum;
    }
    sync_block();
  }

  // sum_j gains_j u_j of this warp's rows: lane i has that of rows 2 i and 2 i + 1 where i < kPairs.
  MAMBAC_DEVICE_MEMBER void older(const uint8_t* u, int count, const PerToken& gains, float* out) const {
    const int pair = tile.lane % kPairs, turn = tile.lane / kPairs, row = tile.warp * Tile::kWarpRows + 2 * pair;
    out[0] = out[1] = 0.0f;
    for (int j0 = 0; j0 < count; j0 += 32 / kPairs) {
      const int j = j0 + turn;
      const float gain = gains.of(j < count ? j : 0);
      const uint32_t w = j < count && row < p ? *(const uint32_t*)(u + 2 * ((int64_t)j * p + row)) : 0u;
      out[0] = fmaf(gain, half_value(w & 0xffffu), out[0]);
      out[1] = fmaf(gain, half_value(w >> 16), out[1]);
    }
#pragma unroll
    for (int width = kPairs; width < 32; width *= 2) {
      out[0] += shuffle_xor(out[0], width);
      out[1] += shuffle_xor(out[1], width);
    }
  }

  MAMBAC_DEVICE_MEMBER void step(const ReplaySequence& q, int64_t head, int64_t group) const {
    const uint8_t* past = q.past + head * q.at.head;
    const int64_t task = q.batch * s.heads + head;
    typename Codes::Word codes[kRows];
    const uint8_t* code = past + tile.first * kRowBytes + tile.at * Codes::kRowBytes;
#pragma unroll
    for (int r = 0; r < kRows; r++) codes[r] = tile.row(r) < p ? Codes::load(code + r * Tile::kGroups * kRowBytes) : Codes::zero();
    float x[kOwned], skip[kOwned], sc[kOwned], fed[kOwned];
#pragma unroll
    for (int i = 0; i < kOwned; i++) {
      const int row = tile.owned(i);
      x[i] = row < p ? get(x_of<T>(s) + task * p + row) : 0.0f;
      skip[i] = row < p ? s.D[head * p + row] : 0.0f;
      sc[i] = row < p ? half_value(((const uint16_t*)(past + p * kRowBytes))[row]) : 0.0f;
    }
    // Decays: of token j that of all tokens behind it, of the checkpoint that of all.
    const float delta = delta_of(get(dt_of<T>(s) + task) + s.dt_bias[head], s.dt_min, s.dt_max), rate = product(delta, s.A[head]);
    const float* l = (const float*)(q.past + q.l(s, head, 0));
    const float low = tile.lane < q.count ? l[tile.lane] : 0.0f, high = tile.lane + 32 < q.count ? l[tile.lane + 32] : 0.0f;
    const float above = sum_behind(high, tile.lane), all_high = shuffle(above + high, 0), below = sum_behind(low, tile.lane);
    const PerToken weights = {expf(below + all_high + rate), expf(above + rate)};
    const float decay = expf(shuffle(below + low, 0) + all_high + rate);
    const PerToken gains = {tile.lane < q.count ? weights.low * dots[tile.lane] : 0.0f,
                            tile.lane + 32 < q.count ? weights.high * dots[tile.lane + 32] : 0.0f};
    float ring[2];
    older(q.past + q.u(s, head, 0), q.count, gains, ring);

    float c[8], sums[kRows], y[kOwned], factor[8], offset = 0.0f;
    load_columns(past, C_of<T>(s) + (q.batch * s.groups + group) * kStates, c);
#pragma unroll
    for (int k = 0; k < 8; k++) column_factors<Codes>(1.0f, k, &factor[k], &offset);
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      sums[r] = 0.0f;
#pragma unroll
      for (int k = 0; k < 8; k++) sums[r] = fmaf(fma_subnormal(Codes::raw(codes[r], k), factor[k], offset), c[k], sums[r]);
    }
    tile.template reduce_rows<Add>(sums, y);
    const float newest = dots[q.count];
    uint16_t* slot = (uint16_t*)(q.present + q.u(s, head, q.count));
#pragma unroll
    for (int i = 0; i < kOwned; i++) {
      const int row = tile.owned(i), place = row - tile.warp * Tile::kWarpRows;
      const float first = shuffle(ring[0], place / 2), second = shuffle(ring[1], place / 2);
      const uint32_t u = ring_half(product(delta, x[i]));
      fed[i] = half_value(u);
      const float state = fmaf(y[i] * power2(kShift) * decay, sc[i], fmaf(newest, fed[i], place % 2 != 0 ? second : first));
      if (!tile.writes() || row >= p) continue;
      put(y_of<T>(s) + task * p + row, fmaf(skip[i], x[i], state));
      slot[row] = (uint16_t)u;
    }
    if (thread_index() == 0) *(float*)(q.present + q.l(s, head, q.count)) = rate;
    if (q.moved && !q.rounds) move(q, head);
  }

  // The checkpoint and the older tokens of a head to another buffer.
  MAMBAC_DEVICE_MEMBER void move(const ReplaySequence& q, int64_t head) const {
    auto words = [&](int64_t at, int64_t bytes) {
      const uint32_t* from = (const uint32_t*)(q.past + at);
      uint32_t* to = (uint32_t*)(q.present + at);
      for (int64_t i = thread_index(); i < bytes / 4; i += threads()) to[i] = from[i];
    };
    words(head * q.at.head, q.at.head);
    words(q.u(s, head, 0), 2 * (int64_t)q.count * p);
    words(q.l(s, head, 0), 4 * q.count);
    clear_slots(s, q, head, q.count + 1);
  }
  // The lines of a head on their way from memory.
  MAMBAC_DEVICE_MEMBER void fetch(const ReplaySequence& q, int64_t head) const {
    const int64_t state = q.at.head, tokens = 2 * (int64_t)q.count * p;
    for (int64_t i = 128 * thread_index(); i < state; i += 128 * threads()) prefetch(q.past + head * q.at.head + i);
    for (int64_t i = 128 * thread_index(); i < tokens; i += 128 * threads()) prefetch(q.past + q.u(s, head, 0) + i);
    if (thread_index() == 0) prefetch(q.past + q.l(s, head, 0));
  }

  // Heads first .. last - 1 of all sequences.
  MAMBAC_DEVICE_MEMBER void walk(int64_t first, int64_t last) const {
    if (first >= last) return;
    const unsigned heads = (unsigned)s.heads, per_group = heads / (unsigned)s.groups;
    ReplaySequence q(s, first / heads);
    unsigned head = (unsigned)(first - q.batch * heads), known = ~0u;  // known: the group whose dots are there
    for (int64_t task = first; task < last; task++) {
      const unsigned group = head / per_group;
      if (q.good && group != known) set_dots(q, known = group);
      if (q.good) {
        if (task + 1 < last && head + 1 < heads) fetch(q, head + 1);
        step(q, head, group);
      } else {
        replay_refuse<T>(s, q, head);
      }
      if (++head < heads || task + 1 == last) continue;
      head = 0;
      known = ~0u;
      q = ReplaySequence(s, q.batch + 1);
    }
  }
};

template <class T, class Codes, int kLanes, int kRows>
MAMBAC_KERNEL(512, 1) decode_replay(ScanArgs s) {
  const int64_t tasks = s.batch * s.heads;
  const ReplayDecode<T, Codes, kLanes, kRows> decode(s);
  decode.walk(tasks * block_x() / blocks_x(), tasks * (block_x() + 1) / blocks_x());
}

// Several tokens, a block a head: the tokens in the rings run again, then the new ones, the state in registers.
template <class T, class CodesType, bool kMaxNorm, int kLanes, int kRows>
struct ReplayTokens {
  typedef CodesType Codes;
  typedef cuda::Tile<kLanes, kRows> Tile;
  enum { kOwned = Tile::kOwned, kStates = Tile::kStates };

  const ScanArgs& s;
  const Tile tile;
  const int p;
  float h[kRows][8];

  MAMBAC_DEVICE_MEMBER explicit ReplayTokens(const ScanArgs& args) : s(args), tile(0), p((int)args.head_dim) {}

  // The token in slot j of `ring`, which is past but for the slot that has just been filled.
  MAMBAC_DEVICE_MEMBER void old_token(const ReplaySequence& q, const uint8_t* ring, int64_t head, int j, const float* b) {
    const float decay = expf(*(const float*)(ring + q.l(s, head, j)));
    const uint16_t* u = (const uint16_t*)(ring + q.u(s, head, j));
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      const float mine = tile.row(r) < p ? half_value(u[tile.row(r)]) : 0.0f;
#pragma unroll
      for (int k = 0; k < 8; k++) h[r][k] = fmaf(h[r][k], decay, mine * b[k]);
    }
  }
  // The state before the call.
  MAMBAC_DEVICE_MEMBER void rebuild(const ReplaySequence& q, int64_t head, int64_t group) {
    unpack_head<Codes>(tile, p, (const char*)q.past + head * q.at.head, h);
    for (int j = 0; j < q.count; j++) {
      float b[8];
      load8_ring(q.past + q.b(s, group, j) + 16 * tile.at, b);
      old_token(q, q.past, head, j, b);
    }
  }
  MAMBAC_DEVICE_MEMBER void new_columns(int64_t bc, float* b) const {
    load8(B_of<T>(s) + bc, 4, b);
#pragma unroll
    for (int k = 0; k < 8; k++) b[k] = half_value(ring_half(b[k]));
  }

  // Behind decode_replay, heads first .. last - 1: those whose rings are full get a new checkpoint.
  MAMBAC_DEVICE_MEMBER void round(int64_t first, int64_t last) {
    for (int64_t task = first; task < last; task++) {
      const ReplaySequence q(s, task / s.heads);
      if (!q.good || !q.rounds) {
        task = q.batch * s.heads + s.heads - 1;  // nor any other head of this sequence
        continue;
      }
      const int64_t head = task - q.batch * s.heads, group = head / (s.heads / s.groups);
      rebuild(q, head, group);
      float b[8];
      new_columns((q.batch * s.groups + group) * kStates + 8 * tile.at, b);
      old_token(q, q.present, head, q.count, b);
      pack_head<Codes, kMaxNorm>(tile, p, h, (char*)q.present + head * q.at.head, false, shared_memory());
      sync_block();  // what is cleared has been read
      clear_slots(s, q, head, 0);
    }
  }
  MAMBAC_DEVICE_MEMBER void run(int64_t task) {
    const ReplaySequence q(s, task / s.heads);
    const int64_t head = task - q.batch * s.heads, group = head / (s.heads / s.groups);
    if (!q.good) return replay_refuse<T>(s, q, head);
    char* checkpoint = (char*)q.present + head * q.at.head;
    rebuild(q, head, group);
    sync_block();  // what was read may be overwritten
    float skip[kOwned];
#pragma unroll
    for (int i = 0; i < kOwned; i++) skip[i] = tile.owned(i) < p ? s.D[head * p + tile.owned(i)] : 0.0f;
    float deltas = 0.0f, decays = 0.0f;
    int filled = q.count;
    for (int64_t l = 0; l < s.length; l++) {
      const int64_t token = q.batch * s.length + l, bc = (token * s.groups + group) * kStates + 8 * tile.at, channels = (token * s.heads + head) * p;
      const int turn = (int)(l % 32);
      if (turn == 0) {  // lane i: the rate of the i-th token from here
        const int64_t mine = (l + tile.lane < s.length ? token + tile.lane : token + s.length - 1 - l) * s.heads + head;
        deltas = delta_of(get(dt_of<T>(s) + mine) + s.dt_bias[head], s.dt_min, s.dt_max);
        decays = expf(product(deltas, s.A[head]));
      }
      const float delta = shuffle(deltas, turn), decay = shuffle(decays, turn);
      float b[8], c[8], x[kOwned], fed[kOwned], sums[kRows], y[kOwned];
      new_columns(bc, b);
      load8(C_of<T>(s) + bc, 4, c);
#pragma unroll
      for (int i = 0; i < kOwned; i++) {
        x[i] = tile.owned(i) < p ? get(x_of<T>(s) + channels + tile.owned(i)) : 0.0f;
        fed[i] = half_value(ring_half(product(delta, x[i])));
      }
#pragma unroll
      for (int r = 0; r < kRows; r++) {
        const float mine = tile.of_row(fed, r);
        sums[r] = 0.0f;
#pragma unroll
        for (int k = 0; k < 8; k++) {
          h[r][k] = fmaf(h[r][k], decay, mine * b[k]);
          sums[r] = fmaf(h[r][k], c[k], sums[r]);
        }
      }
      tile.template reduce_rows<Add>(sums, y);
#pragma unroll
      for (int i = 0; i < kOwned; i++)
        if (tile.writes() && tile.owned(i) < p) put(y_of<T>(s) + channels + tile.owned(i), fmaf(skip[i], x[i], y[i]));
      if (++filled < s.replay) continue;
      filled = 0;
      pack_head<Codes, kMaxNorm>(tile, p, h, checkpoint, true, shared_memory());
    }
    replay_slots<T>(s, q, head);
  }
};

template <class T, class Codes, bool kMaxNorm, int kLanes, int kRows>
MAMBAC_KERNEL(512, 1) round_replay(ScanArgs s) {
  const int64_t tasks = s.batch * s.heads;
  ReplayTokens<T, Codes, kMaxNorm, kLanes, kRows> tokens(s);
  tokens.round(tasks * block_x() / blocks_x(), tasks * (block_x() + 1) / blocks_x());
}
template <class T, class Codes, bool kMaxNorm, int kLanes, int kRows>
MAMBAC_KERNEL(512, 1) tokens_replay(ScanArgs s) {
  ReplayTokens<T, Codes, kMaxNorm, kLanes, kRows> tokens(s);
  tokens.run(block_x());
}

}  // namespace cuda
}  // namespace mambac
