// Registers every operator of domain com.mambac, version 1, for the CPU; in a build with MAMBAC_CUDA for the CUDA provider
// too, whose kernels are launched by src/cuda/ort.cc.
#include <atomic>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abi.h"
#include "mambac/capi.h"
#include "op.h"
#ifdef MAMBAC_CUDA
#include "../cuda/ort.h"
#endif

namespace mambac {
namespace ort {
namespace {

#ifdef MAMBAC_CUDA
constexpr int kProviders = 2;
#else
constexpr int kProviders = 1;
#endif
constexpr int kOps = kScanOps + kConvOps + kRowOps;
// Sets of types that an operator is registered with: floats or halves, and codes of two types.
constexpr int kMostTypes = 4;

Status* read_input(const Op& op, KernelContext* c, size_t i, Shape* shape, const void** data) {
  const Api* api = op.api;
  const Value* v = nullptr;
  if (Status* s = call<Status*>(api, kContextInput, (const KernelContext*)c, i, &v)) return s;
  char text[120];
  if (v == nullptr) {
    snprintf(text, sizeof text, "%s: input %d is missing", op.name(), (int)i);
    return invalid(api, text);
  }
  TensorInfo* info = nullptr;
  if (Status* s = call<Status*>(api, kGetTensorTypeAndShape, v, &info)) return s;
  int type = 0;
  Status* s = call<Status*>(api, kGetTensorElementType, (const TensorInfo*)info, &type);
  if (s == nullptr) s = call<Status*>(api, kGetDimensionsCount, (const TensorInfo*)info, &shape->rank);
  const int wanted = op.input_type((int)i);
  if (s == nullptr && (shape->rank > kMaxRank || type != wanted)) {
    snprintf(text, sizeof text, "%s: input %d has element type %d and rank %d; expected type %d and rank 1 to 4", op.name(),
             (int)i, type, (int)shape->rank, wanted);
    s = invalid(api, text);
  }
  if (s == nullptr) s = call<Status*>(api, kGetDimensions, (const TensorInfo*)info, (int64_t*)shape->dims, shape->rank);
  call<void>(api, kReleaseTensorInfo, info);
  if (s != nullptr) return s;
  void* p = nullptr;
  s = call<Status*>(api, kGetTensorMutableData, (Value*)v, &p);
  *data = p;
  return s;
}

Status* make_output(const Api* api, KernelContext* c, size_t i, const Shape& shape, void** data) {
  Value* v = nullptr;
  if (Status* s = call<Status*>(api, kContextOutput, c, i, (const int64_t*)shape.dims, shape.rank, &v)) return s;
  if (v == nullptr) return invalid(api, "mambac: an output is not connected; every node needs all of them");
  return call<Status*>(api, kGetTensorMutableData, v, data);
}

// Work below this many multiply-adds is not worth waking another thread for.
constexpr double kSerialWork = 1 << 15;

Status* spread(const Api* api, KernelContext* c, void (*piece)(void*, size_t), int64_t tasks, double work, void* user) {
  if (tasks > 1 && work > kSerialWork)
    return call<Status*>(api, kContextParallelFor, (const KernelContext*)c, piece, (size_t)tasks, (size_t)0, user);
  for (int64_t i = 0; i < tasks; i++) piece(user, (size_t)i);
  return nullptr;
}

// How a call spreads its pieces here; keeps the host's own failure.
struct SpreadHost {
  const Api* api;
  KernelContext* context;
  Status* failure;
};
bool spread_call(void* host, void (*piece)(void*, size_t), int64_t tasks, double work, void* user) {
  SpreadHost& h = *(SpreadHost*)host;
  h.failure = spread(h.api, h.context, piece, tasks, work, user);
  return h.failure == nullptr;
}

// Runs a planned call: scan, convolution or rows.
template <class Args>
Status* run_call(bool (*run)(const Kernels&, const Args&, const char*, const Spread&, char*, size_t), const Op& op, KernelContext* c, const Args& args) {
  SpreadHost host = {op.api, c, nullptr};
  const Spread way = {&host, spread_call};
  Message m;
  if (run(kernels(), args, op.name(), way, m.text, sizeof m.text)) return nullptr;
  return host.failure != nullptr ? host.failure : make_status(op.api, kFail, m.text);
}

Status* compute_scan(const Kernel& k, KernelContext* c, const Shape* in, const void* const* data) {
  const Op& op = *k.op;
  Message m;
  ScanArgs a;
  if (!plan_scan(*op.scan, k.scan, in, &a, &m)) return invalid(op.api, m.text);
  void *y = nullptr, *present = nullptr;
  if (Status* s = make_output(op.api, c, 0, in[0], &y)) return s;
  if (Status* s = make_output(op.api, c, 1, in[kPastInput], &present)) return s;
  a.x = (const float*)data[0];
  a.dt = (const float*)data[1];
  a.A = (const float*)data[2];
  a.B = (const float*)data[3];
  a.C = (const float*)data[4];
  a.D = (const float*)data[5];
  a.dt_bias = (const float*)data[6];
  a.past = data[kPastInput];
  if (op.scan->frozen) {
    a.row_step = (const float*)data[kRowStepInput];
    a.column_step = (const float*)data[kColumnStepInput];
  }
  a.y = (float*)y;
  a.present = present;
  a.half = op.half;
#ifdef MAMBAC_CUDA
  if (op.cuda) return cuda_scan(op.api, c, op.name(), a);
#endif
  return run_call(run_scan, op, c, a);
}

Status* compute_conv(const Kernel& k, KernelContext* c, const Shape* in, const void* const* data) {
  const Op& op = *k.op;
  Message m;
  ConvArgs a;
  if (!plan_conv(*op.conv, k.conv, in, &a, &m)) return invalid(op.api, m.text);
  void *y[3] = {nullptr, nullptr, nullptr}, *present = nullptr;
  Shape shape = in[0];
  const int parts = op.conv->parts > 0 ? op.conv->parts : 1;
  for (int i = 0; i < parts; i++) {
    if (op.conv->parts > 0) shape.dims[2] = a.part[i];
    if (Status* s = make_output(op.api, c, (size_t)(i == 0 ? 0 : i + 1), shape, &y[i])) return s;
  }
  if (Status* s = make_output(op.api, c, 1, in[3], &present)) return s;
  a.x = (const float*)data[0];
  a.weight = (const float*)data[1];
  a.bias = (const float*)data[2];
  a.past = (const float*)data[3];
  a.y = (float*)y[0];
  a.more[0] = (float*)y[1];
  a.more[1] = (float*)y[2];
  a.present = (float*)present;
  a.half = op.half;
#ifdef MAMBAC_CUDA
  if (op.cuda) return cuda_conv(op.api, c, op.name(), a);
#endif
  return run_call(run_conv, op, c, a);
}

// The grid that the last two inputs give, and the codes on it.
CodesOut codes_out(const Op& op, void* to, const void* const* data) {
  const int at = value_inputs(*op.row);
  return {to, (const float*)data[at], data[at + 1], op.codes == kInt8};
}

Status* compute_hadamard(const Kernel& k, KernelContext* c, const Shape* in, const void* const* data) {
  const Op& op = *k.op;
  Message m;
  HadamardArgs a;
  if (!plan_hadamard(*op.row, k.row, in, &a, &m)) return invalid(op.api, m.text);
  void* y = nullptr;
  if (Status* s = make_output(op.api, c, 0, in[0], &y)) return s;
  a.x = (const float*)data[0];
  a.factor = (const float*)data[1];
  a.y = (float*)y;
  a.half = op.half;
  if (op.row->codes) a.codes = codes_out(op, y, data);
#ifdef MAMBAC_CUDA
  if (op.cuda) return cuda_hadamard(op.api, c, op.name(), a);
#endif
  return run_call(run_hadamard, op, c, a);
}

Status* compute_gate(const Kernel& k, KernelContext* c, const Shape* in, const void* const* data) {
  const Op& op = *k.op;
  Message m;
  GateArgs a;
  if (!plan_gate(*op.row, k.row, in, &a, &m)) return invalid(op.api, m.text);
  void* out = nullptr;
  if (Status* s = make_output(op.api, c, 0, in[op.row->like], &out)) return s;
  a.y = (const float*)data[0];
  a.z = (const float*)data[1];
  if (op.row->kind == RowKind::kGatedNorm) a.weight = (const float*)data[2];
  if (op.row->kind == RowKind::kSlopedGate) a.slope = (const float*)data[2];
  a.out = (float*)out;
  a.half = op.half;
  if (op.row->codes) a.codes = codes_out(op, out, data);
#ifdef MAMBAC_CUDA
  if (op.cuda) return cuda_gate(op.api, c, op.name(), a);
#endif
  return run_call(run_gate, op, c, a);
}

Status* compute(void* kernel, KernelContext* c) {
  const Kernel& k = *(const Kernel*)kernel;
  const Api* api = k.op->api;
  size_t given = 0;
  if (Status* s = call<Status*>(api, kContextInputCount, (const KernelContext*)c, &given)) return s;
  if ((int)given != k.op->inputs()) return invalid(api, "mambac: a node has the wrong number of inputs");
  Shape shapes[kMostScanInputs];
  const void* data[kMostScanInputs];
  for (size_t i = 0; i < given; i++)
    if (Status* s = read_input(*k.op, c, i, &shapes[i], &data[i])) return s;
  if (k.op->scan != nullptr) return compute_scan(k, c, shapes, data);
  if (k.op->conv != nullptr) return compute_conv(k, c, shapes, data);
  return k.op->row->kind == RowKind::kHadamard ? compute_hadamard(k, c, shapes, data) : compute_gate(k, c, shapes, data);
}

// The host hands on a dimension that has neither a size nor a name as a size of -1, and a shape that it does not know as one
// without axes: operators behind would calculate with both.
Status* fully_named(const Api* api, const TensorInfo* info, bool* named) {
  size_t rank = 0;
  if (Status* s = call<Status*>(api, kGetDimensionsCount, info, &rank)) return s;
  *named = rank > 0 && rank <= kMaxRank;
  if (!*named) return nullptr;
  int64_t sizes[kMaxRank];
  const char* names[kMaxRank] = {};
  if (Status* s = call<Status*>(api, kGetDimensions, info, (int64_t*)sizes, rank)) return s;
  if (Status* s = call<Status*>(api, kGetSymbolicDimensions, info, (const char**)names, rank)) return s;
  for (size_t i = 0; i < rank; i++)
    if (sizes[i] < 0 && (names[i] == nullptr || names[i][0] == '\0')) *named = false;
  return nullptr;
}

// An int attribute while shapes are inferred.
Status* shape_attribute(const Api* api, ShapeContext* c, const char* name, int64_t* value) {
  const OpAttribute* attribute = nullptr;
  if (Status* s = call<Status*>(api, kShapeAttribute, (const ShapeContext*)c, name, &attribute)) return s;
  size_t read = 0;
  return call<Status*>(api, kReadAttribute, attribute, (int)kWhole, (void*)value, sizeof *value, &read);
}

// The outputs of a convolution of rows: batch and tokens of x, and as many channels as each of them has.
Status* infer_rows(const Op& op, ShapeContext* c) {
  const Api* api = op.api;
  TensorInfo *x = nullptr, *past = nullptr;
  if (Status* s = call<Status*>(api, kShapeInput, (const ShapeContext*)c, (size_t)0, &x)) return s;
  size_t rank = 0;
  int type = 0;  // of x: one set of types infers for all of a name
  if (Status* s = call<Status*>(api, kGetTensorElementType, (const TensorInfo*)x, &type)) return s;
  if (Status* s = call<Status*>(api, kGetDimensionsCount, (const TensorInfo*)x, &rank)) return s;
  if (rank != 3) return nullptr;  // not known; what is wrong is told when it runs
  if (Status* s = call<Status*>(api, kShapeInput, (const ShapeContext*)c, (size_t)op.past(), &past)) return s;
  bool named = false;
  if (Status* s = fully_named(api, past, &named)) return s;
  if (named)
    if (Status* s = call<Status*>(api, kShapeSetOutput, (const ShapeContext*)c, (size_t)1, (const TensorInfo*)past)) return s;
  if (Status* s = fully_named(api, x, &named)) return s;
  if (!named) return nullptr;
  int64_t dims[3] = {0, 0, 0}, part[3] = {0, 0, 0}, all = 0;
  const char* names[3] = {"", "", ""};
  if (Status* s = call<Status*>(api, kGetDimensions, (const TensorInfo*)x, dims, rank)) return s;
  if (Status* s = call<Status*>(api, kGetSymbolicDimensions, (const TensorInfo*)x, names, rank)) return s;
  if (Status* s = shape_attribute(api, c, "channels", &all)) return s;
  part[0] = all;
  const size_t parts = (size_t)op.conv->parts;
  if (parts == 3) {
    if (Status* s = shape_attribute(api, c, "first_size", &part[0])) return s;
    if (Status* s = shape_attribute(api, c, "second_size", &part[1])) return s;
    part[2] = all - part[0] - part[1];
  }
  names[2] = "";
  for (size_t i = 0; i < parts; i++) {
    TensorInfo* info = nullptr;
    if (Status* s = call<Status*>(api, kCreateTensorInfo, &info)) return s;
    dims[2] = part[i];
    Status* s = call<Status*>(api, kSetTensorElementType, info, type);
    if (s == nullptr) s = call<Status*>(api, kSetDimensions, info, (const int64_t*)dims, rank);
    if (s == nullptr) s = call<Status*>(api, kSetSymbolicDimensions, info, (const char**)names, rank);
    if (s == nullptr) s = call<Status*>(api, kShapeSetOutput, (const ShapeContext*)c, i == 0 ? i : i + 1, (const TensorInfo*)info);
    call<void>(api, kReleaseTensorInfo, info);
    if (s != nullptr) return s;
  }
  return nullptr;
}

// Codes are shaped like an input and have the type of the zero point, the last input: one set of types infers for all of a name.
Status* infer_codes(const Op& op, ShapeContext* c) {
  const Api* api = op.api;
  TensorInfo *like = nullptr, *zero = nullptr, *info = nullptr;
  if (Status* s = call<Status*>(api, kShapeInput, (const ShapeContext*)c, (size_t)op.row->like, &like)) return s;
  if (Status* s = call<Status*>(api, kShapeInput, (const ShapeContext*)c, (size_t)(op.row->inputs - 1), &zero)) return s;
  bool named = false;
  if (Status* s = fully_named(api, like, &named)) return s;
  if (!named) return nullptr;
  size_t rank = 0;
  int type = 0;
  int64_t dims[kMaxRank];
  const char* names[kMaxRank] = {};
  if (Status* s = call<Status*>(api, kGetTensorElementType, (const TensorInfo*)zero, &type)) return s;
  if (Status* s = call<Status*>(api, kGetDimensionsCount, (const TensorInfo*)like, &rank)) return s;
  if (Status* s = call<Status*>(api, kGetDimensions, (const TensorInfo*)like, (int64_t*)dims, rank)) return s;
  if (Status* s = call<Status*>(api, kGetSymbolicDimensions, (const TensorInfo*)like, (const char**)names, rank)) return s;
  if (Status* s = call<Status*>(api, kCreateTensorInfo, &info)) return s;
  Status* s = call<Status*>(api, kSetTensorElementType, info, type);
  if (s == nullptr) s = call<Status*>(api, kSetDimensions, info, (const int64_t*)dims, rank);
  if (s == nullptr) s = call<Status*>(api, kSetSymbolicDimensions, info, (const char**)names, rank);
  if (s == nullptr) s = call<Status*>(api, kShapeSetOutput, (const ShapeContext*)c, (size_t)0, (const TensorInfo*)info);
  call<void>(api, kReleaseTensorInfo, info);
  return s;
}

// y is shaped like the first input, or the one an operator on rows says; present like past. Unknown where those are.
Status* infer_shapes(const CustomOp* base, ShapeContext* c) {
  const Op& op = op_of(base);
  if (op.conv != nullptr && op.conv->parts > 0) return infer_rows(op, c);
  if (op.row != nullptr && op.row->codes) return infer_codes(op, c);
  const size_t from[2] = {op.row != nullptr ? (size_t)op.row->like : 0, (size_t)op.past()};
  for (size_t i = 0; i < (size_t)op.outputs(); i++) {
    TensorInfo* info = nullptr;
    if (Status* s = call<Status*>(op.api, kShapeInput, (const ShapeContext*)c, from[i], &info)) return s;
    bool named = false;
    if (Status* s = fully_named(op.api, info, &named)) return s;
    if (!named) continue;
    if (Status* s = call<Status*>(op.api, kShapeSetOutput, (const ShapeContext*)c, i, (const TensorInfo*)info)) return s;
  }
  return nullptr;
}

// present may take the buffer of past where nothing else reads it, and the output of an operator on rows that of the input it
// is shaped like.
template <int kFrom, int kTo>
size_t may_inplace(int** in, int** out) {
  static int from[1] = {kFrom}, to[1] = {kTo};
  *in = from;
  *out = to;
  return 1;
}
size_t never_inplace(int**, int**) { return 0; }
void keep(int*, int*) {}

void fill(Op& op, const Api* api, const ScanOp* scan, const ConvOp* conv, const RowOp* row, bool cuda, bool half, ElementType codes) {
  op.api = api;
  op.scan = scan;
  op.conv = conv;
  op.row = row;
  op.cuda = cuda;
  op.half = half;
  op.codes = codes;
  op.version = kApiVersion;
  op.GetName = [](const CustomOp* o) { return op_of(o).name(); };
  op.GetExecutionProviderType = [](const CustomOp* o) -> const char* {
    return op_of(o).cuda ? "CUDAExecutionProvider" : nullptr;  // null: the CPU
  };
  op.GetInputTypeCount = [](const CustomOp* o) -> size_t { return (size_t)op_of(o).inputs(); };
  op.GetOutputTypeCount = [](const CustomOp* o) -> size_t { return (size_t)op_of(o).outputs(); };
  op.GetInputType = [](const CustomOp* o, size_t i) { return op_of(o).input_type((int)i); };
  op.GetOutputType = [](const CustomOp* o, size_t i) { return op_of(o).output_type((int)i); };
  op.GetInputCharacteristic = op.GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return kMemoryDefault; };
  op.GetVariadicInputMinArity = op.GetVariadicInputHomogeneity = op.GetVariadicOutputMinArity =
      op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { free(kernel); };
  op.InferOutputShape = infer_shapes;
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 0x7fffffff; };
  op.GetMayInplace = row != nullptr && row->codes ? never_inplace : scan != nullptr ? may_inplace<kPastInput, 1> : conv != nullptr ? may_inplace<kConvInputs - 1, 1> : row->like == 0 ? may_inplace<0, 0> : may_inplace<1, 0>;
  op.ReleaseMayInplace = keep;
}

// The operators of one host. Hosts are few (one per copy of ONNX Runtime in the process) and never released: the
// operators and their domain must outlive every session.
struct Host {
  const Api* api;
  OpDomain* domain;
  Op ops[kOps * kProviders * kMostTypes];  // those of operators without codes are left out
  Host* next;
};
std::atomic_flag g_lock = ATOMIC_FLAG_INIT;
Host* g_hosts = nullptr;

struct Lock {
  Lock() {
    while (g_lock.test_and_set(std::memory_order_acquire)) {
    }
  }
  ~Lock() { g_lock.clear(std::memory_order_release); }
};

Status* host_for(const Api* api, Host** out) {
  Lock lock;
  for (Host* h = g_hosts; h != nullptr; h = h->next)
    if (h->api == api) {
      *out = h;
      return nullptr;
    }
  Host* h = (Host*)calloc(1, sizeof(Host));
  if (h == nullptr) return make_status(api, kFail, "mambac: out of memory");
  h->api = api;
  if (Status* s = call<Status*>(api, kCreateCustomOpDomain, "com.mambac", &h->domain)) {
    free(h);
    return s;
  }
  for (int i = 0; i < kOps * kProviders * kMostTypes; i++) {
    const int at = i % kOps;
    const ScanOp* scan = at < kScanOps ? scan_ops() + at : nullptr;
    const ConvOp* conv = at >= kScanOps && at < kScanOps + kConvOps ? conv_ops() + (at - kScanOps) : nullptr;
    const RowOp* row = at >= kScanOps + kConvOps ? row_ops() + (at - kScanOps - kConvOps) : nullptr;
    const bool half = i / kOps % 2 != 0, more = i / kOps / 2 % 2 != 0, cuda = i >= kMostTypes * kOps;
    if (more && (row == nullptr || !row->codes)) continue;
    fill(h->ops[i], api, scan, conv, row, cuda, half, more ? kInt8 : kUint8);
    if (Status* s = call<Status*>(api, kCustomOpDomainAdd, h->domain, (const CustomOp*)&h->ops[i])) return s;
  }
  h->next = g_hosts;
  g_hosts = h;
  *out = h;
  return nullptr;
}

}  // namespace
}  // namespace ort
}  // namespace mambac

extern "C" MAMBAC_EXPORT mambac::ort::Status* RegisterCustomOps(mambac::ort::SessionOptions* options,
                                                                const mambac::ort::ApiBase* base) {
  using namespace mambac::ort;
  // Asking for a version the host lacks prints to stderr, so its version string is read first.
  const char* version = base->GetVersionString();
  const bool known = version != nullptr && strncmp(version, "1.", 2) == 0;
  const Api* api = known && atoi(version + 2) < (int)kApiVersion ? nullptr : base->GetApi(kApiVersion);
  if (api == nullptr) {
    const Api* oldest = base->GetApi(1);
    char text[120];
    snprintf(text, sizeof text, "mambac's operators need ONNX Runtime 1.18 or newer; this is %s", version ? version : "unknown");
    return oldest == nullptr ? nullptr : make_status(oldest, kFail, text);
  }
  Host* host = nullptr;
  if (Status* s = host_for(api, &host)) return s;
  return call<Status*>(api, kAddCustomOpDomain, options, host->domain);
}
