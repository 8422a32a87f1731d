// The CUDA kernels with float16 activations, run on the host: to the bit what they give with float32 ones, rounded once.
#pragma once
#include <memory>

#include "half_checks.h"
#include "mambac/cuda.h"

namespace half_test {

inline int scan(const char* op, const char*, const mambac_scan* c, char* error, size_t room) {
  const int64_t bytes = mambac_cuda_scan_workspace(op, c);
  CHECK(bytes >= 0, "no workspace size");
  std::unique_ptr<float[]> workspace(bytes > 0 ? new float[(size_t)bytes / 4] : nullptr);
  return mambac_cuda_scan_launch(op, c, workspace.get(), nullptr, error, room);
}
inline int conv(const char* op, const char*, const mambac_conv* c, char* error, size_t room) {
  return mambac_cuda_conv_launch(op, c, nullptr, error, room);
}
inline int rotate(const char*, const mambac_rotate* c, char* error, size_t room) { return mambac_cuda_rotate_launch(c, nullptr, error, room); }
inline int gate(const char*, const mambac_gate* c, char* error, size_t room) { return mambac_cuda_gate_launch(c, nullptr, error, room); }

inline void all() { half_calls({scan, conv, rotate, gate}, "cuda"); }

}  // namespace half_test
