// Every shape and format, for what the fast kernels do not take. One block a head; the state is in shared memory, or in the
// workspace where it is too large.
#pragma once
#include "replay_rings.h"

namespace mambac {
namespace cuda {

struct GeneralArgs {
  ScanArgs scan;
  float* workspace;  // null: shared memory
  int64_t scratch;   // floats a block needs
};
constexpr int kGeneralThreads = 256;

// State [P, N], channel scales [P], state scales [N], new inverse channel scales [P].
static inline int64_t general_scratch(const ScanArgs& a) { return a.head_dim * a.d_state + 2 * a.head_dim + a.d_state; }

struct General {
  const ScanArgs& s;
  float *state, *sc, *ss, *inverse;
  const int64_t p, n, task, batch, head;
  const int lane, warp, warps;
  const uint8_t* packed_past;  // this head's codes and scales
  uint8_t* packed_present;

  MAMBAC_DEVICE_MEMBER General(const ScanArgs& args, float* scratch, int64_t t)
      : s(args), state(scratch), sc(scratch + args.head_dim * args.d_state), ss(sc + args.head_dim), inverse(ss + args.d_state),
        p(args.head_dim), n(args.d_state), task(t), batch(t / args.heads), head(t % args.heads), lane(thread_index() % 32),
        warp(thread_index() / 32), warps(threads() / 32), packed_past((const uint8_t*)args.past + t * bytes()),
        packed_present((uint8_t*)args.present + t * bytes()) {}

  MAMBAC_DEVICE_MEMBER int limit() const { return s.format == Format::kH8 ? 127 : 7; }
  MAMBAC_DEVICE_MEMBER bool packed() const { return s.format == Format::kH8 || s.format == Format::kH4; }
  MAMBAC_DEVICE_MEMBER bool frozen() const { return s.row_step != nullptr; }
  MAMBAC_DEVICE_MEMBER int64_t code_bytes() const { return mambac::code_bytes(s.format, p, n); }
  MAMBAC_DEVICE_MEMBER int64_t bytes() const { return frozen() ? code_bytes() : head_bytes(s.format, p, n); }  // of a head
  MAMBAC_DEVICE_MEMBER void load() {
    const int64_t count = p * n;
    if (!packed()) {
      for (int64_t i = thread_index(); i < count; i += threads())
        state[i] = s.format == Format::kF32 ? ((const float*)s.past)[task * count + i]
                                            : half_value(((const uint16_t*)s.past)[task * count + i]);
    } else {
      const uint8_t* in = packed_past;
      const uint8_t* scales = in + code_bytes();
      if (frozen()) set_scales();
      const float part = 1.0f / (float)limit();
      for (int64_t i = thread_index(); i < count; i += threads()) {
        const int code = s.format == Format::kH8 ? (int8_t)in[i] : ((in[i / 2] >> (i % 2 * 4) & 15) ^ 8) - 8;
        state[i] = frozen() ? (float)code * sc[i / n] * (ss[i % n] * part)
                            : (float)code * half_at(scales + 2 * (i / n)) * (half_at(scales + 2 * (p + i % n)) * part);
      }
    }
    sync_block();
  }

  // y and the new state of token l, a warp a row. kReplay: x and B as the rings keep them.
  template <class T, bool kReplay>
  MAMBAC_DEVICE_MEMBER void update(int64_t l) {
    const bool two = s.family == Family::kMamba2;
    const int64_t token = batch * s.length + l, channels = s.heads * p;
    for (int64_t r = warp; r < p; r += warps) {
      const int64_t e = head * p + r, rate = two ? head : e, group = two ? head / (s.heads / s.groups) : e / (channels / s.groups);
      const T *b = B_of<T>(s) + (token * s.groups + group) * n, *c = C_of<T>(s) + (token * s.groups + group) * n;
      const float d = delta_of(get(dt_of<T>(s) + token * (two ? s.heads : channels) + rate) + s.dt_bias[rate], s.dt_min, s.dt_max);
      const float x = get(x_of<T>(s) + token * channels + e), decay = two ? expf(product(d, s.A[head])) : 0.0f;
      const float xd = kReplay ? half_value(ring_half(product(d, x))) : d * x;
      float sum = 0.0f;
      for (int64_t i = lane; i < n; i += 32) {
        const float a = two ? decay : expf(d * s.A[e * n + i]), h = fmaf(state[r * n + i], a, xd * (kReplay ? half_value(ring_half(get(b + i))) : get(b + i)));
        state[r * n + i] = h;
        sum = fmaf(h, get(c + i), sum);
      }
      for (int width = 16; width >= 1; width /= 2) sum += shuffle_xor(sum, width);
      if (lane == 0) put(y_of<T>(s) + token * channels + e, fmaf(s.D[e], x, sum));
    }
    sync_block();
  }

  // The scales that make the steps of a Static operator.
  MAMBAC_DEVICE_MEMBER void set_scales() {
    const float* column = s.column_step + head / (s.heads / s.groups) * n;
    for (int64_t r = thread_index(); r < p; r += threads()) {
      sc[r] = s.row_step[head * p + r];
      inverse[r] = sc[r] > 0.0f ? 1.0f / sc[r] : 0.0f;
    }
    for (int64_t i = thread_index(); i < n; i += threads()) ss[i] = column[i] * (float)limit();
    sync_block();
  }
  // Scales of the state, rounded to halves, and the inverse channel scales.
  MAMBAC_DEVICE_MEMBER void choose_scales() {
    if (frozen()) return;
    for (int64_t r = warp; r < p; r += warps) {
      float stat = 0.0f;
      for (int64_t i = lane; i < n; i += 32)
        stat = s.max_norm ? fmaxf(stat, fabsf(state[r * n + i])) : stat + fabsf(state[r * n + i]);
      for (int width = 16; width >= 1; width /= 2) {
        const float other = shuffle_xor(stat, width);
        stat = s.max_norm ? fmaxf(stat, other) : stat + other;
      }
      if (lane == 0) {
        sc[r] = half_value(channel_scale(s.max_norm ? stat : sqrtf(stat / (float)n)));
        inverse[r] = 1.0f / sc[r];
      }
    }
    sync_block();
    for (int64_t i = thread_index(); i < n; i += threads()) {
      float most = 0.0f;
      for (int64_t r = 0; r < p; r++) most = fmaxf(most, fabsf(state[r * n + i] * inverse[r]));
      ss[i] = half_value(half_bits(fminf(most, kLargestHalf)));
    }
    sync_block();
  }
  MAMBAC_DEVICE_MEMBER int code_at(int64_t i) const {
    const float top = (float)limit(), column = ss[i % n];
    if (!(column > 0.0f)) return 0;
    const float c = state[i] * inverse[i / n] * (top / column);
    return (int)rintf(fminf(fmaxf(c, -top), top));  // NaN becomes the lowest code
  }

  // Rounds the state to its format between two tokens.
  MAMBAC_DEVICE_MEMBER void round_state() {
    const int64_t count = p * n;
    if (s.format == Format::kF16) {
      for (int64_t i = thread_index(); i < count; i += threads()) state[i] = half_value(half_bits(state[i]));
    } else if (packed()) {
      choose_scales();
      const float part = 1.0f / (float)limit();
      for (int64_t i = thread_index(); i < count; i += threads()) state[i] = (float)code_at(i) * sc[i / n] * (ss[i % n] * part);
    }
    sync_block();
  }

  MAMBAC_DEVICE_MEMBER void store() {
    const int64_t count = p * n;
    if (!packed()) {
      for (int64_t i = thread_index(); i < count; i += threads()) {
        if (s.format == Format::kF32)
          ((float*)s.present)[task * count + i] = state[i];
        else
          ((uint16_t*)s.present)[task * count + i] = (uint16_t)half_bits(state[i]);
      }
    } else {
      choose_scales();
      uint8_t* out = packed_present;
      uint8_t* scales = out + code_bytes();
      if (s.format == Format::kH8) {
        for (int64_t i = thread_index(); i < count; i += threads()) out[i] = (uint8_t)(int8_t)code_at(i);
      } else {
        for (int64_t i = thread_index(); i < count / 2; i += threads())
          out[i] = (uint8_t)((code_at(2 * i) & 15) | (code_at(2 * i + 1) & 15) << 4);
      }
      if (!frozen())
        for (int64_t i = thread_index(); i < p; i += threads()) put_half(scales + 2 * i, half_bits(sc[i]));
      if (!frozen())
        for (int64_t i = thread_index(); i < n; i += threads()) put_half(scales + 2 * (p + i), half_bits(ss[i]));
    }
    sync_block();
  }
};

template <class T>
MAMBAC_KERNEL(kGeneralThreads, 4) scan_general(GeneralArgs g) {
  float* scratch = g.workspace != nullptr ? g.workspace + block_x() * g.scratch : (float*)shared_memory();
  for (int64_t task = block_x(); task < g.scan.batch * g.scan.heads; task += blocks_x()) {
    General head(g.scan, scratch, task);
    head.load();
    for (int64_t l = 0; l < g.scan.length; l++) {
      head.update<T, false>(l);
      if (g.scan.per_token && l + 1 < g.scan.length) head.round_state();
    }
    head.store();
  }
}

// The same of Replay states: the tokens in the rings run again, then the new ones.
template <class T>
MAMBAC_KERNEL(kGeneralThreads, 3) replay_general(GeneralArgs g) {
  const ScanArgs& s = g.scan;
  float* scratch = g.workspace != nullptr ? g.workspace + block_x() * g.scratch : (float*)shared_memory();
  for (int64_t task = block_x(); task < s.batch * s.heads; task += blocks_x()) {
    General head(s, scratch, task);
    const ReplaySequence q(s, head.batch);
    if (!q.good) {
      replay_refuse<T>(s, q, head.head);
      continue;
    }
    head.packed_past = q.past + head.head * q.at.head;
    head.packed_present = q.present + head.head * q.at.head;
    head.load();
    for (int j = 0; j < q.count; j++) {
      const uint8_t *u = q.past + q.u(s, head.head, j), *b = q.past + q.b(s, head.head / (s.heads / s.groups), j);
      const float decay = expf(as_float(word_at(q.past + q.l(s, head.head, j))));
      for (int64_t i = thread_index(); i < head.p * head.n; i += threads())
        head.state[i] = fmaf(head.state[i], decay, half_at(u + 2 * (i / head.n)) * half_at(b + 2 * (i % head.n)));
      sync_block();
    }
    int64_t filled = q.count;
    for (int64_t l = 0; l < s.length; l++) {
      head.update<T, true>(l);
      if (++filled < s.replay) continue;
      filled = 0;
      head.store();
      head.round_state();
    }
    replay_slots<T>(s, q, head.head);
    sync_block();
  }
}

}  // namespace cuda
}  // namespace mambac
