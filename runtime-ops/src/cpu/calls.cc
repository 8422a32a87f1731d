// Whole calls of operators without a scan, and of any operator whose activations are IEEE halves: those are turned to floats
// before the kernels and back behind them, a tensor at a time, so that kernels know float32 only.
#include <stdio.h>
#include <stdlib.h>

#include <atomic>

#include "calls.h"

namespace mambac {
namespace {

constexpr int64_t kPiece = 8192;  // values that one task converts
constexpr int kMostTensors = 5;
constexpr double kGateWork = 16;  // of a channel, in multiply-adds: an exponential and a division

int64_t pieces(int64_t count) { return (count + kPiece - 1) / kPiece; }

struct Tensor {
  const void* halves;
  float* floats;
  int64_t count;
};

struct Conversion {
  const Kernels* kernels;
  bool narrow;
  Tensor tensor[kMostTensors];
  int tensors;
};
void conversion_piece(void* user, size_t task) {
  const Conversion& c = *(Conversion*)user;
  int64_t piece = (int64_t)task;
  int i = 0;
  for (; piece >= pieces(c.tensor[i].count); i++) piece -= pieces(c.tensor[i].count);
  const Tensor& t = c.tensor[i];
  const int64_t first = piece * kPiece, count = t.count - first < kPiece ? t.count - first : kPiece;
  if (c.narrow)
    c.kernels->narrow(t.floats + first, (uint16_t*)t.halves + first, count);
  else
    c.kernels->widen((const uint16_t*)t.halves + first, t.floats + first, count);
}
bool convert(Conversion& c, const Spread& spread) {
  int64_t tasks = 0;
  double work = 0;
  for (int i = 0; i < c.tensors; i++) {
    tasks += pieces(c.tensor[i].count);
    work += (double)c.tensor[i].count;
  }
  return tasks == 0 || spread.run(spread.host, conversion_piece, tasks, work, &c);
}

// The tensors of halves of one call, and floats in their place while the kernels run.
struct Halves {
  Conversion from, to;
  void* block;
  explicit Halves(const Kernels& k) : from{&k, false, {}, 0}, to{&k, true, {}, 0}, block(nullptr) {}
  ~Halves() { free(block); }

  void in(const float* halves, int64_t count) { from.tensor[from.tensors++] = {halves, nullptr, count}; }
  void out(const float* halves, int64_t count) { to.tensor[to.tensors++] = {halves, nullptr, count}; }
  const float* floats_in(int i) const { return from.tensor[i].floats; }
  float* floats_out(int i) const { return to.tensor[i].floats; }

  bool allocate() {
    size_t floats = 16;
    Conversion* both[] = {&from, &to};
    for (Conversion* c : both)
      for (int i = 0; i < c->tensors; i++) floats += round16((size_t)c->tensor[i].count);
    block = malloc(sizeof(float) * floats);
    if (block == nullptr) return false;
    float* at = (float*)(((uintptr_t)block + kScratchAlign - 1) & ~(uintptr_t)(kScratchAlign - 1));
    for (Conversion* c : both)
      for (int i = 0; i < c->tensors; i++) {
        c->tensor[i].floats = at;
        at += round16((size_t)c->tensor[i].count);
      }
    return true;
  }
  static size_t round16(size_t n) { return (n + 15) & ~(size_t)15; }
};

bool no_memory(char* error, size_t room, const char* name) {
  if (room > 0) snprintf(error, room, "%s: out of memory for activations", name);
  return false;
}

template <class Args>
struct Run {
  const Kernels* kernels;
  Args args;
};
void conv_piece(void* user, size_t task) {
  const Run<ConvArgs>& run = *(Run<ConvArgs>*)user;
  run.kernels->conv(run.args, (int64_t)task);
}

constexpr int64_t kStackRow = 8192;  // floats

template <class Args>
struct RowRun {
  const Kernels* kernels;
  Args args;
  std::atomic<bool> failed;
};
// A row at a time to floats and on to codes: a row stays in the nearest cache between the two.
template <class Args>
void encode_rows(RowRun<Args>& run, int64_t task, int64_t width, void (*row_of)(const Kernels&, const Args&, int64_t, float*)) {
  alignas(kScratchAlign) float local[kStackRow];
  float* floats = local;
  void* block = nullptr;
  if (width > kStackRow) {
    block = malloc(sizeof(float) * (size_t)width + kScratchAlign);
    if (block == nullptr) return run.failed.store(true, std::memory_order_relaxed);
    floats = (float*)(((uintptr_t)block + kScratchAlign - 1) & ~(uintptr_t)(kScratchAlign - 1));
  }
  const int64_t first = task * kRowBlock, last = first + kRowBlock < run.args.rows ? first + kRowBlock : run.args.rows;
  for (int64_t row = first; row < last; row++) {
    row_of(*run.kernels, run.args, row, floats);
    run.kernels->encode(floats, run.args.codes, row * width, width);
  }
  free(block);
}

void hadamard_row(const Kernels& k, const HadamardArgs& a, int64_t row, float* to) {
  HadamardArgs one = a;
  one.rows = 1;
  one.x = a.x + row * a.size;
  one.y = to;
  k.hadamard(one, 0);
}
void gate_row(const Kernels& k, const GateArgs& a, int64_t row, float* to) {
  GateArgs one = a;
  one.rows = 1;
  one.y = a.y + row * a.channels;
  one.z = a.z + row * a.channels;
  one.out = to;
  k.gate(one, 0);
}

void hadamard_piece(void* user, size_t task) {
  RowRun<HadamardArgs>& run = *(RowRun<HadamardArgs>*)user;
  if (run.args.codes.to == nullptr)
    run.kernels->hadamard(run.args, (int64_t)task);
  else
    encode_rows(run, (int64_t)task, run.args.size, hadamard_row);
}
void gate_piece(void* user, size_t task) {
  RowRun<GateArgs>& run = *(RowRun<GateArgs>*)user;
  if (run.args.codes.to == nullptr)
    run.kernels->gate(run.args, (int64_t)task);
  else
    encode_rows(run, (int64_t)task, run.args.channels, gate_row);
}

}  // namespace

bool run_half_scan(const Kernels& k, const ScanArgs& a, const char* name, const Spread& spread, char* error, size_t room) {
  if (room > 0) error[0] = 0;
  const int64_t tokens = a.batch * a.length, channels = a.heads * a.head_dim, matrix = tokens * a.groups * a.d_state;
  Halves h(k);
  h.in(a.x, tokens * channels);
  h.in(a.dt, tokens * (a.family == Family::kMamba2 ? a.heads : channels));
  h.in(a.B, matrix);
  h.in(a.C, matrix);
  h.out(a.y, tokens * channels);
  if (!h.allocate()) return no_memory(error, room, name);
  ScanArgs floats = a;
  floats.half = false;
  floats.x = h.floats_in(0);
  floats.dt = h.floats_in(1);
  floats.B = h.floats_in(2);
  floats.C = h.floats_in(3);
  floats.y = h.floats_out(0);
  return convert(h.from, spread) && run_scan(k, floats, name, spread, error, room) && convert(h.to, spread);
}

bool run_conv(const Kernels& k, const ConvArgs& a, const char* name, const Spread& spread, char* error, size_t room) {
  if (room > 0) error[0] = 0;
  Run<ConvArgs> run = {&k, a};
  ConvArgs& floats = run.args;
  Halves h(k);
  if (a.half) {
    const int64_t rows = a.batch * a.channels;
    const int64_t tokens = a.batch * a.length;
    h.in(a.x, a.row > 0 ? tokens * a.row : rows * a.length);
    h.in(a.past, rows * a.width);
    h.out(a.y, tokens * a.part[0]);
    h.out(a.present, rows * a.width);
    for (int i = 0; i < 2; i++) h.out(a.more[i], tokens * a.part[i + 1]);
    if (!h.allocate()) return no_memory(error, room, name);
    floats.half = false;
    floats.x = h.floats_in(0);
    floats.past = h.floats_in(1);
    floats.y = h.floats_out(0);
    floats.present = h.floats_out(1);
    for (int i = 0; i < 2; i++) floats.more[i] = h.floats_out(2 + i);
  }
  const double work = (double)(a.batch * a.channels) * (double)(a.length + 1) * (double)(a.kernel + 8);
  return convert(h.from, spread) && spread.run(spread.host, conv_piece, conv_tasks(floats), work, &run) && convert(h.to, spread);
}

bool run_hadamard(const Kernels& k, const HadamardArgs& a, const char* name, const Spread& spread, char* error, size_t room) {
  if (room > 0) error[0] = 0;
  RowRun<HadamardArgs> run = {&k, a, {false}};
  HadamardArgs& floats = run.args;
  Halves h(k);
  if (a.half) {
    h.in(a.x, a.rows * a.size);
    if (a.codes.to == nullptr) h.out(a.y, a.rows * a.size);
    if (!h.allocate()) return no_memory(error, room, name);
    floats.half = false;
    floats.x = h.floats_in(0);
    if (a.codes.to == nullptr) floats.y = h.floats_out(0);
  }
  const double work = (double)a.rows * (double)a.size * (double)(a.order + 8);
  if (!convert(h.from, spread) || !spread.run(spread.host, hadamard_piece, row_tasks(a.rows), work, &run)) return false;
  return run.failed.load(std::memory_order_relaxed) ? no_memory(error, room, name) : convert(h.to, spread);
}

bool run_gate(const Kernels& k, const GateArgs& a, const char* name, const Spread& spread, char* error, size_t room) {
  if (room > 0) error[0] = 0;
  RowRun<GateArgs> run = {&k, a, {false}};
  GateArgs& floats = run.args;
  Halves h(k);
  if (a.half) {
    h.in(a.y, a.rows * a.channels);
    h.in(a.z, a.rows * a.channels);
    if (a.codes.to == nullptr) h.out(a.out, a.rows * a.channels);
    if (!h.allocate()) return no_memory(error, room, name);
    floats.half = false;
    floats.y = h.floats_in(0);
    floats.z = h.floats_in(1);
    if (a.codes.to == nullptr) floats.out = h.floats_out(0);
  }
  const double work = (double)a.rows * (double)a.channels * kGateWork;
  if (!convert(h.from, spread) || !spread.run(spread.host, gate_piece, row_tasks(a.rows), work, &run)) return false;
  return run.failed.load(std::memory_order_relaxed) ? no_memory(error, room, name) : convert(h.to, spread);
}

}  // namespace mambac
