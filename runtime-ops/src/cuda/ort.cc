#include "ort.h"

#include <stdio.h>

#include "launch.h"

namespace mambac {
namespace ort {
namespace {

Status* compute_stream(const Api* api, KernelContext* c, void** stream) {
  *stream = nullptr;
  return call<Status*>(api, kContextGpuStream, (const KernelContext*)c, stream);
}
Status* result(const Api* api, const char* name, int code) {
  if (code == 0) return nullptr;
  char text[240];
  snprintf(text, sizeof text, "%s: CUDA error %d: %s", name, code, cuda::failure_text(code));
  return make_status(api, kFail, text);
}
template <class Args>
Status* launched(const Api* api, KernelContext* c, const char* name, int (*launch)(const Args&, void*), const Args& args) {
  void* stream = nullptr;
  if (Status* s = compute_stream(api, c, &stream)) return s;
  return result(api, name, launch(args, stream));
}

}  // namespace

Status* cuda_scan(const Api* api, KernelContext* c, const char* name, const ScanArgs& args) {
  void *stream = nullptr, *workspace = nullptr;
  if (Status* s = compute_stream(api, c, &stream)) return s;
  int64_t bytes = 0;
  int code = cuda::scan_workspace(args, &bytes);
  if (code == 0 && bytes > 0) code = cuda::allocate_on_stream(&workspace, (size_t)bytes, stream);
  if (code == 0) code = cuda::launch_scan(args, workspace, stream);
  if (workspace != nullptr) {
    const int freed = cuda::free_on_stream(workspace, stream);
    code = code != 0 ? code : freed;
  }
  return result(api, name, code);
}

Status* cuda_conv(const Api* api, KernelContext* c, const char* name, const ConvArgs& args) {
  return launched(api, c, name, cuda::launch_conv, args);
}
Status* cuda_hadamard(const Api* api, KernelContext* c, const char* name, const HadamardArgs& args) {
  return launched(api, c, name, cuda::launch_hadamard, args);
}
Status* cuda_gate(const Api* api, KernelContext* c, const char* name, const GateArgs& args) {
  return launched(api, c, name, cuda::launch_gate, args);
}

}  // namespace ort
}  // namespace mambac
