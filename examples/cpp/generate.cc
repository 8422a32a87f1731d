// Continues a prompt, byte by byte, on mambac's kernels: ONNX Runtime's C API, recurrent state in place.
//
//   g++ -std=c++17 -O2 generate.cc -o generate -ldl
//   ./generate libonnxruntime.so MODEL.onnx libmambac_ops.so "And God said"
//
// Neither headers nor import libraries of ONNX Runtime are needed: `OrtApi` is a table of function pointers to which
// releases only append, so a function's slot never changes. With the headers at hand, read `ort(kCreateEnv, ...)` as
// `api->CreateEnv(...)`; everything else stays as it is.
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

enum Slot {
  kGetErrorMessage = 2, kCreateEnv = 3, kCreateSession = 7, kCreateSessionOptions = 10, kSetLogSeverity = 22,
  kSetIntraOpNumThreads = 24, kInputCount = 30, kInputTypeInfo = 33, kInputName = 36, kCreateTensorWithData = 49,
  kGetTensorMutableData = 51, kCastToTensorInfo = 55, kGetElementType = 60, kGetDimensionsCount = 61, kGetDimensions = 62,
  kGetShapeElementCount = 64, kGetTensorTypeAndShape = 65, kCreateCpuMemoryInfo = 69, kGetDefaultAllocator = 78,
  kReleaseValue = 96, kReleaseTensorInfo = 99, kGetModelMetadata = 111, kLookupMetadata = 116, kRunWithBinding = 133,
  kCreateIoBinding = 134, kBindInput = 136, kBindOutput = 137, kBindOutputToDevice = 138, kGetBoundOutputValues = 140,
  kRegisterCustomOpsLibrary = 228,
};
enum ElementType { kFloat = 1, kUint8 = 2, kInt64 = 7, kFloat16 = 10 };

struct ApiBase {
  void* const* (*get_api)(uint32_t version);
  const char* (*version)();
};
void* const* g_api = nullptr;

// Calls a function of the table. All that are called here give a status: null, or an error.
template <class... Args>
void ort(Slot slot, Args... args) {
  void* status = reinterpret_cast<void* (*)(Args...)>(g_api[slot])(args...);
  if (status == nullptr) return;
  fprintf(stderr, "%s\n", reinterpret_cast<const char* (*)(void*)>(g_api[kGetErrorMessage])(status));
  exit(1);
}
void release(Slot slot, void* object) { reinterpret_cast<void (*)(void*)>(g_api[slot])(object); }

// The state pairs of the metadata `mambac.states`: [{"input":"past","output":"present"}, ...]. Names hold no quotes.
std::map<std::string, std::string> state_pairs(const std::string& json) {
  std::map<std::string, std::string> pairs;
  auto text_after = [&](const char* key, size_t& at) {
    at = json.find(key, at);
    if (at == std::string::npos) return std::string();
    const size_t start = at + strlen(key), end = json.find('"', start);
    at = end;
    return json.substr(start, end - start);
  };
  for (size_t at = 0;;) {
    const std::string past = text_after("\"input\":\"", at);
    if (at == std::string::npos) return pairs;
    pairs[past] = text_after("\"output\":\"", at);
  }
}

int main(int argc, char** argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: generate LIBONNXRUNTIME MODEL LIBRARY PROMPT\n");
    return 2;
  }
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // read when ONNX Runtime starts; without it models are told about
  void* runtime = dlopen(argv[1], RTLD_NOW);
  void* entry = runtime == nullptr ? nullptr : dlsym(runtime, "OrtGetApiBase");
  if (entry == nullptr) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  g_api = reinterpret_cast<const ApiBase* (*)()>(entry)()->get_api(18);
  if (g_api == nullptr) {
    fprintf(stderr, "ONNX Runtime 1.18 or newer is needed\n");
    return 1;
  }

  void *env, *options, *session, *allocator, *cpu, *binding;
  ort(kCreateEnv, 3, "generate", &env);
  ort(kCreateSessionOptions, &options);
  ort(kSetIntraOpNumThreads, options, 1);
  // Without this line the functions in the model run instead of the kernels.
  ort(kRegisterCustomOpsLibrary, options, (const char*)argv[3]);
  ort(kCreateSession, env, (const char*)argv[2], options, &session);
  ort(kGetDefaultAllocator, &allocator);
  ort(kCreateCpuMemoryInfo, 1, 0, &cpu);
  ort(kCreateIoBinding, session, &binding);

  void* metadata;
  char* json = nullptr;
  ort(kGetModelMetadata, session, &metadata);
  ort(kLookupMetadata, metadata, allocator, "mambac.states", &json);
  if (json == nullptr) {
    fprintf(stderr, "%s was not compiled by mambac\n", argv[2]);
    return 1;
  }
  const std::map<std::string, std::string> pairs = state_pairs(json);

  // One buffer of zeros is past and present of a state: all zero bytes are the zero state, and kernels update it in place.
  std::vector<std::vector<uint8_t>> states;
  size_t inputs = 0;
  ort(kInputCount, session, &inputs);
  for (size_t i = 0; i < inputs; i++) {
    char* name;
    ort(kInputName, session, i, allocator, &name);
    const auto pair = pairs.find(name);
    if (pair == pairs.end()) continue;  // input_ids
    void* info;
    const void* tensor_info;
    int type;
    size_t rank;
    ort(kInputTypeInfo, session, i, &info);
    ort(kCastToTensorInfo, info, &tensor_info);
    ort(kGetElementType, tensor_info, &type);
    ort(kGetDimensionsCount, tensor_info, &rank);
    std::vector<int64_t> shape(rank);
    ort(kGetDimensions, tensor_info, shape.data(), rank);
    shape[0] = 1;
    size_t bytes = type == kUint8 ? 1 : type == kFloat16 ? 2 : 4;
    for (int64_t dim : shape) bytes *= (size_t)dim;
    states.emplace_back(bytes);
    void* state;
    ort(kCreateTensorWithData, (const void*)cpu, (void*)states.back().data(), bytes, (const int64_t*)shape.data(), rank, type, &state);
    ort(kBindInput, binding, (const char*)name, state);
    ort(kBindOutput, binding, pair->second.c_str(), state);
  }

  std::string text = argv[4];
  std::vector<int64_t> tokens;
  for (unsigned char byte : text) tokens.push_back(byte);
  for (int step = 0; step < 40; step++) {
    const int64_t shape[2] = {1, (int64_t)tokens.size()};
    void* ids;
    ort(kCreateTensorWithData, (const void*)cpu, (void*)tokens.data(), tokens.size() * sizeof(int64_t), (const int64_t*)shape, (size_t)2, (int)kInt64, &ids);
    ort(kBindInput, binding, "input_ids", ids);
    // Anew each time: an output that is left bound keeps the shape of the last run.
    ort(kBindOutputToDevice, binding, "logits", cpu);
    ort(kRunWithBinding, session, (const void*)nullptr, binding);

    // Bound outputs come in the order they were bound, so the logits are the last.
    void** values;
    size_t count, elements;
    void* info;
    float* logits;
    ort(kGetBoundOutputValues, binding, allocator, &values, &count);
    ort(kGetTensorTypeAndShape, values[count - 1], &info);
    ort(kGetShapeElementCount, info, &elements);
    ort(kGetTensorMutableData, values[count - 1], &logits);
    const size_t vocabulary = elements / tokens.size();
    const float* last = logits + elements - vocabulary;
    const int64_t next = std::max_element(last, last + vocabulary) - last;
    release(kReleaseTensorInfo, info);
    for (size_t i = 0; i < count; i++) release(kReleaseValue, values[i]);
    release(kReleaseValue, ids);
    tokens.assign(1, next);
    text += (char)next;
  }
  printf("%s\n", text.c_str());
  // The system takes everything else back: the process ends here.
  return 0;
}
