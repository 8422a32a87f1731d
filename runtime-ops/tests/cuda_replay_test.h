// The CUDA kernels of Replay operators, run on the host with the checks of the CPU's, and held against those.
#pragma once
#include <memory>

#include "mambac/cuda.h"
#include "../src/cuda/launch.h"
#include "replay_checks.h"

namespace replay_test {

using mambac::cuda::emulation;

inline size_t g_shift = 0;  // bytes that the state lies behind a 16-byte boundary
inline int g_calls = 0;

// Threads run in another order with each call: results that are compared bit for bit then do not depend on it.
inline int scan(const char* op, const char* isa, const mambac_scan* c, char* error, size_t room) {
  if (isa == nullptr || strcmp(isa, "cuda") != 0) return mambac_scan_run(op, isa, c, error, room);
  emulation.order = g_calls++ % 3;
  const int64_t bytes = c->batch * mambac_replay_bytes(op, c->heads, c->head_dim, c->d_state, c->groups, c->replay_length);
  std::vector<uint8_t> past_room((size_t)bytes + 32), present_room((size_t)bytes + 32);
  auto place = [](std::vector<uint8_t>& v) { return (uint8_t*)(((uintptr_t)v.data() + 15) / 16 * 16) + g_shift; };
  uint8_t *past = place(past_room), *present = place(present_room);
  if (bytes > 0) memcpy(past, c->past, (size_t)bytes), memcpy(present, c->present, (size_t)bytes);
  mambac_scan call = *c;
  call.past = past;
  call.present = c->past == c->present ? past : present;
  const int64_t needed = mambac_cuda_scan_workspace(op, &call);
  std::unique_ptr<float[]> workspace(needed > 0 ? new float[(size_t)needed / 4] : nullptr);
  const int status = mambac_cuda_scan_launch(op, &call, workspace.get(), nullptr, error, room);
  if (bytes > 0) memcpy(c->present, call.present, (size_t)bytes);
  emulation.order = 0;
  return status;
}

struct Parity {
  long codes = 0, off = 0, scales = 0, scales_off = 0, y = 0, y_off = 0;
};
inline Parity g_parity;

// What a call stores, beside the CPU's.
inline void against_cpu(const Op& op, const Sizes& s, int R, uint64_t seed) {
  g_where = op.name + " against the CPU";
  Random r(seed);
  const Inputs in = replay_inputs(op, s, R, r, 1, false);
  const ReplayParts at = replay_parts(op, s, R);
  const Output got = run_replay(op, s, R, in, "cuda", false), cpu = run_replay(op, s, R, in, nullptr, false);
  for (int i = 0; i < s.B * s.H; i++) {
    const size_t from = i / s.H * at.bytes + i % s.H * at.head;
    const uint8_t *a = got.present.data() + from, *b = cpu.present.data() + from;
    for (int j = 0; j < s.P * s.N; j++) {
      const int d = code_at(op, a, j) - code_at(op, b, j);
      g_parity.codes++;
      g_parity.off += d != 0;
      CHECK(d >= -1 && d <= 1, "code %d is %d from the CPU's", j, d);
    }
    for (size_t j = at.head - 2 * (size_t)(s.P + s.N); j < at.head; j += 2) {
      g_parity.scales++;
      g_parity.scales_off += u16(a + j) != u16(b + j);
    }
  }
  for (size_t i = 0; i < got.y.size(); i++) {  // an input near a tie between two halves may become either
    g_parity.y++;
    g_parity.y_off += !(fabs(got.y[i] - cpu.y[i]) <= 1e-5 * (fabs(cpu.y[i]) + 10));
  }
}

// A count that no operator writes: y of that sequence is not a number, its state passes; other sequences do not notice.
inline void damaged(const Op& op, const Sizes& s, int R) {
  g_where = op.name + " damaged";
  Random r(5);
  const Inputs in = replay_inputs(op, s, R, r, 1, false);
  const ReplayParts at = replay_parts(op, s, R);
  const Output good = run_replay(op, s, R, in, "cuda", false);
  for (uint32_t count : {(uint32_t)R, (uint32_t)R + 1, 0x7fffffffu, 0x80000000u, 0xffffffffu})
    for (bool alias : {false, true}) {
      Inputs broken = in;
      for (int i = 0; i < 4; i++) broken.past[at.bytes + at.count + i] = (uint8_t)(count >> 8 * i);
      const Output out = run_replay(op, s, R, broken, "cuda", alias);
      const size_t y = (size_t)s.L * s.channels();
      CHECK(memcmp(out.present.data() + at.bytes, broken.past.data() + at.bytes, at.bytes) == 0, "the state of count %u changed", count);
      for (size_t i = y; i < 2 * y; i++) CHECK(out.y[i] != out.y[i], "y[%zu] = %.9g", i, (double)out.y[i]);
      for (int b : {0, 2}) {
        CHECK(memcmp(out.present.data() + b * at.bytes, good.present.data() + b * at.bytes, at.bytes) == 0, "the state of sequence %d changed", b);
        CHECK(memcmp(out.y.data() + b * y, good.y.data() + b * y, y * 4) == 0, "y of sequence %d changed", b);
      }
    }
}

inline void refusals(const Op& op) {
  g_where = op.name + " refusals";
  char error[320] = "";
  mambac_scan call = {};
  call.batch = call.length = call.heads = call.head_dim = call.groups = 1;
  call.d_state = 2;
  call.dt_max = 1;
  for (int R : {0, -1, 65}) {
    call.replay_length = R;
    CHECK(mambac_cuda_scan_launch(op.name.c_str(), &call, nullptr, nullptr, error, sizeof error) == 1 && strstr(error, "replay_length") != nullptr &&
              strstr(error, op.name.c_str()) == error, "%s", error);
    CHECK(mambac_cuda_scan_workspace(op.name.c_str(), &call) == -1, "a workspace");
  }
}

// Rings of `R` tokens from every count, in calls of every length up to two turns: each leaves every count. In place and not,
// in three orders of threads, by the kernels of one token and of several, and by the general one.
inline void every_position(const Op& op, int R) {
#ifdef __SANITIZE_THREAD__
  constexpr bool few = true;  // it takes hundreds of times as long, and looks at barriers alone
#else
  constexpr bool few = false;
#endif
  emulation.device.multiprocessors = 1;
  for (const Sizes& s : {Sizes{R, 0, 2, 8, 64, 1}, Sizes{R, 0, 2, 3, 6, 1}})
    for (int length = 1; length <= 2 * R + 1; length += few ? R - 1 : 1) replay_case(op, {"cuda"}, {s.B, length, s.H, s.P, s.N, s.G}, R, (uint64_t)(100 * R + length), 1, false, true);
  for (int length : {1, 2, R - 1, R, R + 1}) replay_case(op, {"cuda"}, {R, length, 2, 32, 128, 2}, R, (uint64_t)(7 * R + length), 1, false, true);
}

inline void positions(const Op& op, bool quick) {
  const Runner before = g_runner;
  g_runner.scan = scan;
  for (int R : {4, 8, 16})
    if (!quick || R == 4) every_position(op, R);
  g_runner = before;
}

inline void all(const Op& op, bool quick) {
  const Runner before = g_runner;
  g_runner.scan = scan;
  const int processors = emulation.device.multiprocessors, shared = emulation.device.shared_bytes;
  refusals(op);
  for (const Sizes& s : {Sizes{3, 1, 4, 8, 64, 2}, Sizes{3, 3, 2, 8, 64, 1}, Sizes{3, 2, 2, 5, 6, 1}, Sizes{3, 1, 2, 5, 6, 1}}) damaged(op, s, 4);
  emulation.device.multiprocessors = 1;
  uint64_t seed = 1;
  for (int R : {16, 3, 1, 40, 64})
    for (const Sizes& s : {Sizes{2, 1, 4, 64, 128, 2}, Sizes{3, 1, 2, 24, 64, 1}, Sizes{2, 1, 3, 16, 256, 3}, Sizes{1, 1, 2, 72, 128, 1}}) {
      if (quick && R != 16 && R != 3) continue;
      emulation.device.multiprocessors = seed % 2 ? 1 : 132;
      replay_case(op, {"cuda"}, s, R, seed, 1, false);
      against_cpu(op, s, R, seed++);
    }
  emulation.device.multiprocessors = 1;
  replay_case(op, {"cuda"}, {12, 1, 4, 64, 64, 2}, 3, 12, 1, false);  // several groups a block
  for (int R : {4, 16}) against_cpu(op, {2, 5, 2, 32, 128, 1}, R, seed++);
  positions(op, quick);
  emulation.device.multiprocessors = 4;
#ifdef __SANITIZE_THREAD__
  quick = true;
#else
  if (!quick || op.max == (op.kind == Kind::H8)) replay_sweep(op, {"cuda"}, quick);
#endif
  if (!quick) replay_long_run(op, {"cuda"}, 16, 512, 5);
  g_shift = 4;
  replay_case(op, {"cuda"}, {2, 1, 2, 16, 128, 1}, 4, seed, 1, false);
  g_shift = 0;
  emulation.device.shared_bytes = 2048;  // the general kernel's state in the workspace
  replay_case(op, {"cuda"}, {2, 5, 2, 33, 20, 1}, 4, seed, 1, false);
  emulation.device.shared_bytes = shared;
  emulation.device.multiprocessors = processors;
  g_runner = before;
}

}  // namespace replay_test
