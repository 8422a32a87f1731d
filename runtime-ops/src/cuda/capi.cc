// The C interface of the kernels (mambac/cuda.h).
#include "mambac/cuda.h"

#include <stdio.h>
#include <string.h>

#include "launch.h"
#include "mambac/call.h"

namespace {

using namespace mambac;

int fail(char* error, size_t room, const char* text, const char* detail) {
  if (error != nullptr && room > 0) snprintf(error, room, "%s%s", text, detail);
  return 1;
}
int launched(int code, const char* what, char* error, size_t room) {
  if (code == 0) return 0;
  if (error != nullptr && room > 0) snprintf(error, room, "%s: CUDA error %d: %s", what, code, cuda::failure_text(code));
  return 1;
}

}  // namespace

extern "C" int64_t mambac_cuda_scan_workspace(const char* name, const mambac_scan* c) {
  ScanArgs a;
  Message m;
  int64_t bytes = 0;
  if (!scan_args(name, c, &a, &m) || cuda::scan_workspace(a, &bytes) != 0) return -1;
  return bytes;
}

extern "C" int mambac_cuda_scan_launch(const char* name, const mambac_scan* c, void* workspace, void* stream, char* error, size_t room) {
  ScanArgs a;
  Message m;
  if (!scan_args(name, c, &a, &m)) return fail(error, room, m.text, "");
  return launched(cuda::launch_scan(a, workspace, stream), name, error, room);
}

extern "C" int mambac_cuda_conv_launch(const char* name, const mambac_conv* c, void* stream, char* error, size_t room) {
  ConvArgs a;
  Message m;
  if (!conv_args(name, c, &a, &m)) return fail(error, room, m.text, "");
  return launched(cuda::launch_conv(a, stream), name, error, room);
}

extern "C" int mambac_cuda_rotate_launch(const mambac_rotate* c, void* stream, char* error, size_t room) {
  HadamardArgs a;
  Message m;
  if (!rotate_args(c, &a, &m)) return fail(error, room, m.text, "");
  return launched(cuda::launch_hadamard(a, stream), rotate_op(*c).name, error, room);
}

extern "C" int mambac_cuda_gate_launch(const mambac_gate* c, void* stream, char* error, size_t room) {
  GateArgs a;
  Message m;
  if (!gate_args(c, &a, &m)) return fail(error, room, m.text, "");
  return launched(cuda::launch_gate(a, stream), gate_op(*c).name, error, room);
}
