// Calls of the CUDA kernels with operands on a device.
#pragma once
#include <cuda_runtime.h>

#include <memory>

#include "checks.h"
#include "mambac/cuda.h"

namespace device {

inline void must(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  fprintf(stderr, "%s: %s: %s\n", g_where.c_str(), what, cudaGetErrorString(e));
  exit(1);
}
struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  explicit Buffer(size_t n) : bytes(n) { must(cudaMalloc(&data, n > 0 ? n : 1), "cudaMalloc"); }
  Buffer(const void* from, size_t n) : Buffer(n) {
    if (n > 0) must(cudaMemcpy(data, from, n, cudaMemcpyHostToDevice), "copy to the device");
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(data); }
  void read(void* to) const {
    if (bytes > 0) must(cudaMemcpy(to, data, bytes, cudaMemcpyDeviceToHost), "copy from the device");
  }
};

// Operands of one scan on the device; the state apart. `replay`: the ring's length, of Replay operators.
struct Call {
  std::vector<std::unique_ptr<Buffer>> operands;
  std::unique_ptr<Buffer> y;
  mambac_scan scan;
  Call(const Sizes& s, const Inputs& in, int replay) : y(new Buffer((size_t)s.B * s.L * s.channels() * 4)) {
    for (const std::vector<float>* v : {&in.x, &in.dt, &in.A, &in.B, &in.C, &in.D, &in.bias, &in.row_step, &in.column_step})
      operands.push_back(std::make_unique<Buffer>(v->data(), v->size() * 4));
    auto at = [&](int i) { return (const float*)operands[(size_t)i]->data; };
    scan = {s.B, s.L, s.H, s.P, s.N, s.G, in.dt_min, in.dt_max, at(0), at(1), at(2), at(3), at(4), at(5), at(6), nullptr, (float*)y->data, nullptr,
            replay, at(7), at(8)};
  }
  size_t operand_bytes() const {
    size_t sum = y->bytes;
    for (const auto& b : operands) sum += b->bytes;
    return sum;
  }
};
inline void launch(const Op& op, Call& call, void* past, void* present, cudaStream_t stream) {
  call.scan.past = past;
  call.scan.present = present;
  const int64_t room = mambac_cuda_scan_workspace(op.name.c_str(), &call.scan);
  CHECK(room >= 0, "no workspace size");
  void* workspace = nullptr;
  if (room > 0) must(cudaMallocAsync(&workspace, (size_t)room, stream), "workspace");
  char error[320] = "";
  CHECK(mambac_cuda_scan_launch(op.name.c_str(), &call.scan, workspace, stream, error, sizeof error) == 0, "%s", error);
  if (workspace != nullptr) must(cudaFreeAsync(workspace, stream), "workspace");
}

// Runners (runner.h) on the device. Of scans, those of Replay operators.
inline int scan(const char* op, const char* isa, const mambac_scan* c, char* error, size_t room) {
  if (isa == nullptr || strcmp(isa, "cuda") != 0) return mambac_scan_run(op, isa, c, error, room);
  const size_t b = (size_t)c->batch, tokens = b * (size_t)c->length, e = (size_t)(c->heads * c->head_dim), bc = (size_t)(c->groups * c->d_state);
  const size_t state = b * (size_t)mambac_replay_bytes(op, c->heads, c->head_dim, c->d_state, c->groups, c->replay_length), h = (size_t)c->heads;
  Buffer x(c->x, tokens * e * 4), dt(c->dt, tokens * h * 4), A(c->A, h * 4), B(c->B, tokens * bc * 4), C(c->C, tokens * bc * 4), D(c->D, e * 4),
      bias(c->dt_bias, h * 4), past(c->past, state), other(c->present, state), y(tokens * e * 4);
  Buffer& present = c->past == c->present ? past : other;
  mambac_scan call = *c;
  call.x = (const float*)x.data, call.dt = (const float*)dt.data, call.A = (const float*)A.data, call.B = (const float*)B.data;
  call.C = (const float*)C.data, call.D = (const float*)D.data, call.dt_bias = (const float*)bias.data;
  call.past = past.data, call.present = present.data, call.y = (float*)y.data;
  const int64_t needed = mambac_cuda_scan_workspace(op, &call);
  Buffer workspace(needed > 0 ? (size_t)needed : 0);
  const int status = mambac_cuda_scan_launch(op, &call, workspace.data, nullptr, error, room);
  must(cudaDeviceSynchronize(), "kernel");
  y.read(c->y);
  present.read(c->present);
  return status;
}
inline int rotate(const char*, const mambac_rotate* c, char* error, size_t room) {
  const size_t bytes = (size_t)(c->rows * c->size) * 4;
  Buffer x(c->x, bytes), y(bytes), factor(c->factor, (size_t)(c->order * c->order) * 4);
  Buffer& out = c->x == c->y ? x : y;
  const mambac_rotate call = {c->rows, c->size, c->order, c->power, (const float*)x.data, (const float*)factor.data, (float*)out.data};
  const int status = mambac_cuda_rotate_launch(&call, nullptr, error, room);
  must(cudaDeviceSynchronize(), "kernel");
  out.read(c->y);
  return status;
}
inline int gate(const char*, const mambac_gate* c, char* error, size_t room) {
  const size_t bytes = (size_t)(c->rows * c->channels) * 4;
  Buffer y(c->y, bytes), z(c->z, bytes), other(bytes), weight(c->weight, (size_t)c->channels * 4), slope(c->slope, c->slope == nullptr ? 0 : (size_t)c->channels * 4);
  Buffer& out = c->out == c->y ? y : c->out == c->z ? z : other;
  const mambac_gate call = {c->rows, c->channels, c->group_size, c->norm_before_gate, c->epsilon, (const float*)y.data, (const float*)z.data,
                            (const float*)weight.data, (float*)out.data, c->slope == nullptr ? nullptr : (const float*)slope.data};
  const int status = mambac_cuda_gate_launch(&call, nullptr, error, room);
  must(cudaDeviceSynchronize(), "kernel");
  out.read(c->out);
  return status;
}

}  // namespace device
