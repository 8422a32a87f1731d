// The CUDA side of the registration, driven by a stand-in for ONNX Runtime's C API: no such session can run here, but what a
// host calls, and what it is given, is the same.
#pragma once
#include <map>

#include "../src/ort/abi.h"
#include "checks.h"

extern "C" mambac::ort::Status* RegisterCustomOps(mambac::ort::SessionOptions* options, const mambac::ort::ApiBase* base);

namespace host {

using namespace mambac::ort;

struct Tensor {
  int type;
  std::vector<int64_t> dims;
  void* data;
};
struct Node {
  std::map<std::string, int64_t> whole;
  std::map<std::string, float> real;
};
struct Context {
  std::vector<Tensor> inputs, outputs;
  void* stream;
};
inline std::vector<const CustomOp*> g_ops;
inline std::string g_status;  // of the last status that was made

inline Status* no_error() { return nullptr; }
inline Api make_api() {
  Api api;
  for (void*& slot : api.slot) slot = nullptr;
  auto set = [&](int slot, auto function) { api.slot[slot] = reinterpret_cast<void*>(+function); };
  set(kCreateStatus, [](int, const char* text) {
    g_status = text;
    return (Status*)&g_status;
  });
  set(kReleaseStatus, [](Status*) {});
  set(kCreateCustomOpDomain, [](const char* name, OpDomain** out) {
    static int domain;
    *out = (OpDomain*)&domain;
    return strcmp(name, "com.mambac") == 0 ? no_error() : (Status*)&g_status;
  });
  set(kCustomOpDomainAdd, [](OpDomain*, const CustomOp* op) {
    g_ops.push_back(op);
    return no_error();
  });
  set(kAddCustomOpDomain, [](SessionOptions*, OpDomain*) { return no_error(); });
  set(kAttributeInt64, [](const KernelInfo* info, const char* name, int64_t* out) {
    *out = ((const Node*)info)->whole.at(name);
    return no_error();
  });
  set(kAttributeFloat, [](const KernelInfo* info, const char* name, float* out) {
    *out = ((const Node*)info)->real.at(name);
    return no_error();
  });
  set(kContextInputCount, [](const KernelContext* c, size_t* out) {
    *out = ((const Context*)c)->inputs.size();
    return no_error();
  });
  set(kContextInput, [](const KernelContext* c, size_t i, const Value** out) {
    *out = (const Value*)&((const Context*)c)->inputs.at(i);
    return no_error();
  });
  set(kContextOutput, [](KernelContext* c, size_t i, const int64_t* dims, size_t rank, Value** out) {
    Tensor& t = ((Context*)c)->outputs.at(i);
    t.dims.assign(dims, dims + rank);
    *out = (Value*)&t;
    return no_error();
  });
  set(kGetTensorTypeAndShape, [](const Value* v, TensorInfo** out) {
    *out = (TensorInfo*)v;
    return no_error();
  });
  set(kReleaseTensorInfo, [](TensorInfo*) {});
  set(kGetTensorElementType, [](const TensorInfo* t, int* out) {
    *out = ((const Tensor*)t)->type;
    return no_error();
  });
  set(kGetDimensionsCount, [](const TensorInfo* t, size_t* out) {
    *out = ((const Tensor*)t)->dims.size();
    return no_error();
  });
  set(kGetDimensions, [](const TensorInfo* t, int64_t* out, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = ((const Tensor*)t)->dims.at(i);
    return no_error();
  });
  set(kGetTensorMutableData, [](Value* v, void** out) {
    *out = ((Tensor*)v)->data;
    return no_error();
  });
  set(kContextGpuStream, [](const KernelContext* c, void** out) {
    *out = ((const Context*)c)->stream;
    return no_error();
  });
  return api;
}

// With activations of this type, and results of that one where it says so.
inline const CustomOp* find_op(const char* name, bool cuda, ElementType type = kFloat, ElementType result = kUndefined) {
  const CustomOp* found = nullptr;
  for (const CustomOp* op : g_ops) {
    const char* provider = op->GetExecutionProviderType(op);
    if (strcmp(op->GetName(op), name) == 0 && (provider != nullptr) == cuda && op->GetInputType(op, 0) == type && (result == kUndefined || op->GetOutputType(op, 0) == result)) {
      CHECK(found == nullptr, "%s is registered twice", name);
      CHECK(!cuda || strcmp(provider, "CUDAExecutionProvider") == 0, "%s", provider);
      found = op;
    }
  }
  CHECK(found != nullptr, "%s is not registered", name);
  return found;
}

// Creates a kernel, computes once, destroys it; the text of the error, or nothing.
inline std::string compute(const Api& api, const CustomOp* op, const Node& node, Context& context) {
  void* kernel = nullptr;
  if (op->CreateKernelV2(op, &api, (const KernelInfo*)&node, &kernel) != nullptr) return g_status;
  Status* s = op->KernelComputeV2(kernel, (KernelContext*)&context);
  op->KernelDestroy(kernel);
  return s == nullptr ? "" : g_status;
}

}  // namespace host
