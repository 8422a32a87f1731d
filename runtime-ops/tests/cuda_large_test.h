// Calls whose operands have more than 2^32 elements or bytes, or more than 65 535 sequences: memory that is reserved and not
// used, of which the last blocks alone run. Their results must be, to the bit, those of a small call with the same numbers.
#pragma once
#include <sys/mman.h>

#include <memory>

#include "checks.h"
#include "mambac/cuda.h"
#include "../src/cuda/launch.h"

namespace large_test {

using mambac::cuda::emulation;

// Zeros, as many as asked for.
struct Reserved {
  size_t bytes;
  uint8_t* data;
  explicit Reserved(size_t n) : bytes(n > 0 ? n : 1) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED, "no address space for %zu bytes", bytes);
    data = p == MAP_FAILED ? nullptr : (uint8_t*)p;
  }
  Reserved(const Reserved&) = delete;
  ~Reserved() {
    if (data != nullptr) munmap(data, bytes);
  }
  void end_with(const void* from, size_t n) {
    if (n > 0) memcpy(data + bytes - n, from, n);
  }
  bool ends_with(const void* with, size_t n) const { return n == 0 || memcmp(data + bytes - n, with, n) == 0; }
};

// The last head of the last sequence. `unaligned`: the general kernel.
inline void scan_case(const char* name, const Sizes& s, int replay, int multiprocessors, bool unaligned) {
  const Op op = parse(name);
  const Sizes one = {1, s.L, 1, s.P, s.N, 1};
  char text[160];
  snprintf(text, sizeof text, "%s large B%d L%d H%d P%d N%d%s", name, s.B, s.L, s.H, s.P, s.N, unaligned ? ", unaligned" : "");
  g_where = text;
  Random r(31);
  const Inputs in = make_inputs(op, one, r, 1, op.replay);
  auto bytes_of = [&](const Sizes& z) {
    return op.replay ? (size_t)mambac_replay_bytes(name, z.H, z.P, z.N, z.G, replay) : (size_t)z.H * head_bytes(op, z.P, z.N);
  };
  const size_t state = bytes_of(s), rows = (size_t)s.L * s.H * s.P, groups = (size_t)s.L * s.G * s.N, odd = unaligned ? 4 : 0;
  // With one head and group in the small call and `s.G` 1, the last head's operands lie at stride H.
  Reserved x((size_t)s.B * rows * 4), dt((size_t)s.B * s.L * s.H * 4), A((size_t)s.H * 4), B((size_t)s.B * groups * 4), C((size_t)s.B * groups * 4), D((size_t)s.H * s.P * 4),
      bias((size_t)s.H * 4), row((size_t)s.H * s.P * 4), column((size_t)s.N * 4), past((size_t)s.B * state + 16), present((size_t)s.B * state + 16), y((size_t)s.B * rows * 4);
  for (int l = 0; l < s.L; l++) {
    const size_t token = ((size_t)s.B - 1) * s.L + l;
    memcpy(x.data + ((token * s.H + s.H - 1) * s.P) * 4, in.x.data() + (size_t)l * s.P, (size_t)s.P * 4);
    memcpy(dt.data + (token * s.H + s.H - 1) * 4, in.dt.data() + l, 4);
  }
  A.end_with(in.A.data(), 4), bias.end_with(in.bias.data(), 4), D.end_with(in.D.data(), (size_t)s.P * 4);
  B.end_with(in.B.data(), in.B.size() * 4), C.end_with(in.C.data(), in.C.size() * 4);
  row.end_with(in.row_step.data(), in.row_step.size() * 4), column.end_with(in.column_step.data(), in.column_step.size() * 4);
  uint8_t *old_state = past.data + odd, *new_state = present.data + odd;
  const size_t last = (size_t)s.B * state - (op.replay ? 0 : in.past.size());
  if (!op.replay) memcpy(old_state + last, in.past.data(), in.past.size());
  auto f = [](const Reserved& m) { return (const float*)m.data; };
  mambac_scan call = {s.B, s.L, s.H, s.P, s.N, s.G, in.dt_min, in.dt_max, f(x), f(dt), f(A), f(B), f(C), f(D), f(bias), old_state, (float*)y.data, new_state, replay,
                      op.frozen ? f(row) : nullptr, op.frozen ? f(column) : nullptr};
  char error[320] = "";
  emulation.device.multiprocessors = multiprocessors;
  const int64_t room = mambac_cuda_scan_workspace(name, &call);
  std::unique_ptr<float[]> workspace(room > 0 ? new float[(size_t)room / 4] : nullptr);
  emulation.only_last = 8;  // some kernels take a head in several blocks
  CHECK(mambac_cuda_scan_launch(name, &call, workspace.get(), nullptr, error, sizeof error) == 0, "%s", error);
  emulation.only_last = 0;

  std::vector<float> want((size_t)s.L * s.P, NAN);
  const size_t small = bytes_of(one);
  Reserved one_past(small + 16), one_present(small + 16), one_B(in.B.size() * 4), one_C(in.C.size() * 4), one_column(in.column_step.size() * 4);
  if (!op.replay) memcpy(one_past.data + odd, in.past.data(), small);
  one_B.end_with(in.B.data(), in.B.size() * 4), one_C.end_with(in.C.data(), in.C.size() * 4), one_column.end_with(in.column_step.data(), in.column_step.size() * 4);
  call = {1, s.L, 1, s.P, s.N, 1, in.dt_min, in.dt_max, in.x.data(), in.dt.data(), in.A.data(), f(one_B), f(one_C), in.D.data(), in.bias.data(), one_past.data + odd, want.data(),
          one_present.data + odd, replay, in.row_step.data(), op.frozen ? f(one_column) : nullptr};
  CHECK(mambac_cuda_scan_launch(name, &call, workspace.get(), nullptr, error, sizeof error) == 0, "%s", error);
  for (int l = 0; l < s.L; l++) {
    const size_t token = ((size_t)s.B - 1) * s.L + l;
    CHECK(memcmp(y.data + (token * s.H + s.H - 1) * s.P * 4, want.data() + (size_t)l * s.P, (size_t)s.P * 4) == 0, "y of token %d", l);
  }
  if (op.replay) {  // the last head's checkpoint and newest token, and what heads share
    const uint8_t *many = new_state + ((size_t)s.B - 1) * state, *few = one_present.data + odd;
    const mambac::Format format = op.kind == Kind::H8 ? mambac::Format::kH8 : mambac::Format::kH4;
    const mambac::ReplayLayout at = mambac::replay_layout(format, s.H, s.P, s.N, 1, replay), at1 = mambac::replay_layout(format, 1, s.P, s.N, 1, replay);
    CHECK(memcmp(many + (s.H - 1) * at.head, few, (size_t)at.head) == 0, "checkpoint");
    CHECK(memcmp(many + at.u + 2 * (s.H - 1) * replay * s.P, few + at1.u, 2 * (size_t)replay * s.P) == 0, "u");
    CHECK(memcmp(many + at.l + 4 * (s.H - 1) * replay, few + at1.l, 4 * (size_t)replay) == 0, "l");
    CHECK(memcmp(many + at.b, few + at1.b, (size_t)(at1.count + 4 - at1.b)) == 0, "b and count");
  } else {
    CHECK(memcmp(new_state + last, one_present.data + odd, small) == 0, "state");
  }
}

// The last channels of the last sequence.
inline void conv_case(const char* name, const mambac_conv& sizes) {
  mambac_conv call = sizes;
  char text[120];
  snprintf(text, sizeof text, "%s large B%lld E%lld L%lld", name, (long long)call.batch, (long long)call.channels, (long long)call.length);
  g_where = text;
  const size_t E = (size_t)call.channels, K = (size_t)call.kernel, L = (size_t)call.length, W = (size_t)call.width, B = (size_t)call.batch;
  const bool rows = call.row > 0;
  Random r(32);
  const std::vector<float> xs = r.normals(L, 1), w = r.normals(K, 1), past_row = r.normals(W, 1), bias_of = r.normals(1, 1);
  Reserved x(B * L * E * 4), weight(E * K * 4), bias(E * 4), past(B * E * W * 4), present(B * E * W * 4), y(B * L * E * 4);
  float* first = (float*)x.data + (rows ? (B - 1) * L * E + E - 1 : (B * E - 1) * L);
  for (size_t l = 0; l < L; l++) first[rows ? l * E : l] = xs[l];
  weight.end_with(w.data(), K * 4), bias.end_with(bias_of.data(), 4), past.end_with(past_row.data(), W * 4);
  auto f = [](const Reserved& m) { return (float*)m.data; };
  call.x = f(x), call.weight = f(weight), call.bias = f(bias), call.past = f(past), call.present = f(present), call.y = f(y);
  char error[320] = "";
  emulation.only_last = 1;
  CHECK(mambac_cuda_conv_launch(name, &call, nullptr, error, sizeof error) == 0, "%s", error);
  emulation.only_last = 0;
  std::vector<float> want(L), state(W);
  const mambac_conv one = {1, 1, call.length, call.kernel, call.width, xs.data(), w.data(), bias_of.data(), past_row.data(), want.data(), state.data(), 0, rows ? 1 : 0, 0, 0, 0, nullptr, nullptr};
  CHECK(mambac_cuda_conv_launch(name, &one, nullptr, error, sizeof error) == 0, "%s", error);
  const float* out = f(y) + (rows ? (B - 1) * L * E + E - 1 : (B * E - 1) * L);
  const size_t begin = rows ? (L - 1) / 32 * 32 : 0;  // a block of rows has some of the tokens
  for (size_t l = begin; l < L; l++) CHECK(out[rows ? l * E : l] == want[l], "y[%zu]", l);
  if (begin == 0) CHECK(present.ends_with(state.data(), W * 4), "state");
}

// The last rows.
inline void rows_case(int64_t rows, int64_t channels, int64_t group) {
  char text[120], error[320] = "";
  snprintf(text, sizeof text, "rows large %lld x %lld, groups of %lld", (long long)rows, (long long)channels, (long long)group);
  g_where = text;
  Random r(33);
  const size_t n = (size_t)channels, all = (size_t)rows * n * 4;
  const std::vector<float> a = r.normals(n, 1), z = r.normals(n, 1), weight = r.normals(n, 1);
  std::vector<float> want(n);
  Reserved y(all), gate(all), out(all);
  y.end_with(a.data(), n * 4), gate.end_with(z.data(), n * 4);
  mambac_gate call = {rows, channels, group, 0, 1e-5f, (const float*)y.data, (const float*)gate.data, weight.data(), (float*)out.data, nullptr};
  emulation.only_last = 1;
  CHECK(mambac_cuda_gate_launch(&call, nullptr, error, sizeof error) == 0, "%s", error);
  emulation.only_last = 0;
  call.rows = 1, call.y = a.data(), call.z = z.data(), call.out = want.data();
  CHECK(mambac_cuda_gate_launch(&call, nullptr, error, sizeof error) == 0, "%s", error);
  const size_t alone = group > 0 ? (size_t)group : 1024;  // what the last block is sure to have
  CHECK(out.ends_with(want.data() + n - alone, alone * 4), "gate");
  const float one = 1;
  mambac_rotate turn = {rows, channels, 1, channels, (const float*)y.data, &one, (float*)out.data};
  emulation.only_last = 1;
  CHECK(mambac_cuda_rotate_launch(&turn, nullptr, error, sizeof error) == 0, "%s", error);
  emulation.only_last = 0;
  turn.rows = 1, turn.x = a.data(), turn.y = want.data();
  CHECK(mambac_cuda_rotate_launch(&turn, nullptr, error, sizeof error) == 0, "%s", error);
  CHECK(out.ends_with(want.data(), n * 4), "rotation");
}

inline void all() {
  const mambac::cuda::Device before = emulation.device;
  constexpr int kEnough = 1 << 24;  // multiprocessors: a head a block
  for (const char* name : {"Mamba2ScanF32", "Mamba2ScanF16"}) scan_case(name, {65537, 1, 16, 64, 128, 1}, 0, kEnough, false);
  for (const char* name : {"Mamba2ScanH4", "Mamba2ScanH4Max", "Mamba2ScanH8", "Mamba2ScanH4Static", "Mamba2ScanH8Static"}) scan_case(name, {65537, 1, 16, 64, 128, 1}, 0, kEnough, false);
  scan_case("Mamba2ScanH4", {65537, 1, 16, 64, 64, 1}, 0, 1 << 15, false);  // several heads a block
  scan_case("Mamba2ScanH4", {65537, 3, 16, 64, 128, 1}, 0, kEnough, false);
  scan_case("Mamba2ScanH4Static", {65537, 3, 16, 64, 128, 1}, 0, kEnough, false);
  scan_case("Mamba2ScanF32", {65537, 40, 16, 64, 128, 1}, 0, kEnough, false);
  for (int length : {1, 2}) scan_case("Mamba2ScanH4Replay", {131073, length, 8, 64, 128, 1}, 4, kEnough, false);
  scan_case("Mamba2ScanH8Replay", {131073, 1, 4, 64, 128, 1}, 1, kEnough, false);  // rounded at once
  for (const char* name : {"Mamba2ScanF32", "Mamba2ScanH8"}) scan_case(name, {65537, 2, 16, 64, 100, 1}, 0, kEnough, true);
  scan_case("Mamba2ScanH4Replay", {131073, 2, 8, 64, 100, 1}, 4, kEnough, true);
  emulation.device = before;
  conv_case("CausalConvSilu", {65536, 4096, 17, 4, 3, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 0, 0, 0, 0, nullptr, nullptr});
  conv_case("CausalConvSilu", {1 << 20, 4099, 1, 4, 3, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 0, 0, 0, 0, nullptr, nullptr});
  conv_case("CausalConvSiluRows", {65537, 4096, 40, 4, 3, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 4096, 0, 0, 0, nullptr, nullptr});
  conv_case("CausalConvRows", {1 << 20, 4099, 1, 4, 3, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 4099, 0, 0, 0, nullptr, nullptr});
  rows_case(1 << 20, 4096, 0);
  rows_case(1 << 20, 4096, 4096);
  rows_case(1 << 20, 4096, 2);
}

}  // namespace large_test
