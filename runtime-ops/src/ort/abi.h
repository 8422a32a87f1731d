// The part of the ONNX Runtime C ABI a custom-op library needs, by slot number of its append-only table.
// API 18 has every slot used here; hosts from 1.18 on give that table.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace mambac {
namespace ort {

constexpr uint32_t kApiVersion = 18;

#if defined(_WIN32) && !defined(_WIN64)
#error "32-bit Windows has another calling convention"
#endif

struct Status;
struct Value;
struct KernelInfo;
struct KernelContext;
struct TensorInfo;
struct SessionOptions;
struct OpDomain;
struct ShapeContext;
struct OpAttribute;

struct Api {
  void* slot[278];  // as many as API 18 promises that are used here; never copied, only indexed
};
struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

enum Slot : int {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kCreateTensorInfo = 57,
  kSetTensorElementType = 58,
  kSetDimensions = 59,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetSymbolicDimensions = 63,
  kGetTensorTypeAndShape = 65,
  kAttributeFloat = 85,
  kAttributeInt64 = 86,
  kContextInputCount = 88,
  kContextOutputCount = 89,
  kContextInput = 90,
  kContextOutput = 91,
  kReleaseStatus = 93,
  kReleaseTensorInfo = 99,
  kContextGpuStream = 193,
  kShapeInput = 268,
  kShapeAttribute = 269,
  kShapeSetOutput = 270,
  kSetSymbolicDimensions = 271,
  kReadAttribute = 272,
  kContextParallelFor = 274,
};

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kFloat16 = 10 };
enum MemoryType : int { kMemoryDefault = 0 };
enum Characteristic : int { kRequired = 0 };
enum AttributeType : int { kWhole = 1 };

// A custom op as the host sees it: function pointers in ABI order, each given the op itself first, except the last four.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, size_t);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShape)(const CustomOp*, ShapeContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int** in, int** out);
  void (*ReleaseMayInplace)(int* in, int* out);
  size_t (*GetAliasMap)(int** in, int** out);
  void (*ReleaseAliasMap)(int* in, int* out);
};

template <class R, class... A>
inline R call(const Api* api, int slot, A... a) {
  return reinterpret_cast<R (*)(A...)>(api->slot[slot])(a...);
}
inline Status* make_status(const Api* api, ErrorCode code, const char* text) {
  return call<Status*>(api, kCreateStatus, (int)code, text);
}
inline void release(const Api* api, Status* s) {
  if (s != nullptr) call<void>(api, kReleaseStatus, s);
}

}  // namespace ort
}  // namespace mambac
