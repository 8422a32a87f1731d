// The CUDA kernels of operators on rows, run on the host with the checks of the CPU's.
#pragma once
#include "cuda_ort_test.h"
#include "mambac/cuda.h"
#include "../src/cuda/launch.h"
#include "codes_checks.h"
#include "row_checks.h"

namespace row_test {

using mambac::cuda::emulation;

inline size_t g_shift = 0;  // bytes that operands lie behind a 16-byte boundary
inline int g_calls = 0;

// A copy of `count` floats where the test wants it.
struct Placed {
  std::vector<float> room;
  float* data;
  Placed(const float* from, size_t count) : room(count + 8) {
    data = (float*)(((uintptr_t)room.data() + 15) / 16 * 16 + g_shift);
    if (count > 0) memcpy(data, from, count * 4);
  }
};

// Threads run in another order with each call: results that are compared bit for bit then do not depend on it.
inline int rotate(const char* isa, const mambac_rotate* c, char* error, size_t room) {
  if (isa == nullptr || strcmp(isa, "cuda") != 0) return mambac_rotate_run(isa, c, error, room);
  emulation.order = g_calls++ % 3;
  const size_t count = (size_t)(c->rows * c->size);
  Placed x(c->x, count), y(c->y, count), factor(c->factor, (size_t)(c->order * c->order));
  const mambac_rotate call = {c->rows, c->size, c->order, c->power, x.data, factor.data, c->x == c->y ? x.data : y.data};
  const int status = mambac_cuda_rotate_launch(&call, nullptr, error, room);
  if (count > 0) memcpy(c->y, call.y, count * 4);
  emulation.order = 0;
  return status;
}
inline int gate(const char* isa, const mambac_gate* c, char* error, size_t room) {
  if (isa == nullptr || strcmp(isa, "cuda") != 0) return mambac_gate_run(isa, c, error, room);
  emulation.order = g_calls++ % 3;
  const size_t count = (size_t)(c->rows * c->channels);
  Placed y(c->y, count), z(c->z, count), out(c->out, count), weight(c->weight, (size_t)c->channels), slope(c->slope, c->slope == nullptr ? 0 : (size_t)c->channels);
  const mambac_gate call = {c->rows, c->channels, c->group_size, c->norm_before_gate, c->epsilon, y.data, z.data, weight.data,
                            c->out == c->y ? y.data : c->out == c->z ? z.data : out.data, c->slope == nullptr ? nullptr : slope.data};
  const int status = mambac_cuda_gate_launch(&call, nullptr, error, room);
  if (count > 0) memcpy(c->out, call.out, count * 4);
  emulation.order = 0;
  return status;
}

// With codes, and all operands where they are.
inline int rotate_codes_here(const char*, const mambac_rotate* c, char* error, size_t room) {
  emulation.order = g_calls++ % 3;
  const int status = mambac_cuda_rotate_launch(c, nullptr, error, room);
  emulation.order = 0;
  return status;
}
inline int gate_codes_here(const char*, const mambac_gate* c, char* error, size_t room) {
  emulation.order = g_calls++ % 3;
  const int status = mambac_cuda_gate_launch(c, nullptr, error, room);
  emulation.order = 0;
  return status;
}

inline void refusals() {
  g_where = "refusals of operators on rows";
  char error[320] = "";
  CHECK(mambac_cuda_rotate_launch(nullptr, nullptr, error, sizeof error) == 1 && strstr(error, "HadamardRotate: null"), "%s", error);
  CHECK(mambac_cuda_gate_launch(nullptr, nullptr, error, sizeof error) == 1 && strstr(error, "null"), "%s", error);
  const mambac_rotate odd = {1, 12, 12, 3, nullptr, nullptr, nullptr};
  CHECK(mambac_cuda_rotate_launch(&odd, nullptr, error, sizeof error) == 1 && strstr(error, "HadamardRotate: attribute power"), "%s", error);
  mambac_gate gates = {1, 12, 5, 0, 1e-5f, nullptr, nullptr, nullptr, nullptr, nullptr};
  CHECK(mambac_cuda_gate_launch(&gates, nullptr, error, sizeof error) == 1 && strstr(error, "GatedRMSNorm: attribute group_size"), "%s", error);
  gates.group_size = 0;
  gates.channels = -1;
  CHECK(mambac_cuda_gate_launch(&gates, nullptr, error, sizeof error) == 1 && strstr(error, "SiluGate: attribute channels"), "%s", error);
  const long before = emulation.launches;
  gates.channels = 12;
  gates.rows = 0;
  const mambac_rotate none = {0, 12, 12, 1, nullptr, nullptr, nullptr};
  CHECK(mambac_cuda_gate_launch(&gates, nullptr, error, sizeof error) == 0 && mambac_cuda_rotate_launch(&none, nullptr, error, sizeof error) == 0, "%s", error);
  CHECK(emulation.launches == before, "a launch without work");
}

inline void all(bool quick) {
  refusals();
  g_runner.rotate = rotate;
  g_runner.gate = gate;
  std::vector<const char*> both;  // sums are in one order, so rotations have the bits of the CPU's
  if (mambac::kernels_named("avx2") != nullptr) both.push_back("avx2");
  both.push_back("cuda");
  const int processors = emulation.device.multiprocessors, shared = emulation.device.shared_bytes;
  for (size_t shift : {0, 4}) {
    g_shift = shift;
    emulation.device.multiprocessors = shift == 0 ? 1 : 132;  // many spans a block, and one
    if (shift == 0 || !quick) hadamard_cases(both, quick);
    hadamard_case(both, 5, 2, 12, 32, 3, 1);
    gate_cases({"cuda"});
  }
  for (int channels : {2052, 4100, 8192, 16384, 16388})
    for (int before = 0; before < 2; before++) {
      g_shift = 0;
      gate_case({"cuda"}, 2, channels, channels, before != 0, 1e-5f, (uint64_t)channels, 1);
    }
  gate_case({"cuda"}, 70, 64, 8, false, 1e-5f, 5, 1);
  emulation.device.multiprocessors = 1;
  hadamard_case(both, 400, 1, 1, 64, 7, 1);  // several turns of a block
  hadamard_case(both, 300, 3, 12, 16, 8, 1);
  hadamard_case(both, 90, 1, 3, 2, 9, 1);
  for (int order : {1, 3, 12}) {  // spans that do not fit
    emulation.device.shared_bytes = 20000;
    hadamard_case(both, 2, 1, order, 16384 >> (order == 12), 10, 1);
  }
  char error[320] = "";
  const float scale = 1, one = 1;
  uint8_t code = 0;
  const mambac_rotate large = {1, 16384, 1, 16384, &one, &one, nullptr, 0, {&code, &scale, &code, 0}};
  CHECK(mambac_cuda_rotate_launch(&large, nullptr, error, sizeof error) == 1 && strstr(error, "HadamardRotateQ8") && strstr(error, "shared memory"), "%s", error);
  emulation.device.shared_bytes = shared;
  g_shift = 0;
  for (int many : {1, 132}) {
    emulation.device.multiprocessors = many;
    codes_cases({rotate_codes_here, gate_codes_here}, "cuda");
  }
  emulation.device.multiprocessors = processors;
}

// Operators on rows through the registration: the bits of the C interface, on the node's stream.
inline void registration_of_rows() {
  static const host::Api api = host::make_api();
  const int rows = 3, channels = 48;
  Random r(6);
  std::vector<float> x = r.normals((size_t)rows * channels, 1), z = r.normals(x.size(), 1), factor = r.normals(144, 1), weight = r.normals(channels, 1);
  char error[320] = "";
  const float scale = 0.02f;
  const uint8_t zero = 128;
  for (int i = 0; i < mambac::kRowOps + mambac::kRowKinds; i++) {
    const mambac::RowOp& op = mambac::row_ops()[i < mambac::kRowOps ? i : i - mambac::kRowKinds];
    const bool is_signed = i >= mambac::kRowOps;
    g_where = std::string("registration of ") + op.name + (is_signed ? ", int8" : "");
    std::vector<float> want(x.size(), NAN), got(x.size(), NAN);
    const bool turns = op.kind == mambac::RowKind::kHadamard, norm = op.kind == mambac::RowKind::kGatedNorm, sloped = op.kind == mambac::RowKind::kSlopedGate;
    const mambac_codes codes = {op.codes ? want.data() : nullptr, &scale, &zero, is_signed};
    const mambac_rotate rotate = {rows, channels, 12, 4, x.data(), factor.data(), want.data(), 0, codes};
    const mambac_gate gate = {rows, channels, norm ? 24 : 0, 1, 1e-5f, x.data(), z.data(), weight.data(), want.data(), sloped ? weight.data() : nullptr, 0, codes};
    CHECK((turns ? mambac_cuda_rotate_launch(&rotate, nullptr, error, sizeof error) : mambac_cuda_gate_launch(&gate, nullptr, error, sizeof error)) == 0, "%s", error);
    int stream;
    host::Context c;
    c.stream = &stream;
    c.inputs = {{1, {rows, channels}, x.data()}};
    if (turns)
      c.inputs.push_back({1, {12, 12}, factor.data()});
    else
      c.inputs.push_back({1, {1, rows, channels}, z.data()});
    if (norm || sloped) c.inputs.push_back({1, {channels}, weight.data()});
    const mambac::ort::ElementType type = !op.codes ? mambac::ort::kFloat : is_signed ? mambac::ort::kInt8 : mambac::ort::kUint8;
    if (op.codes) {
      c.inputs.push_back({1, {}, (void*)&scale});
      c.inputs.push_back({type, {}, (void*)&zero});
    }
    c.outputs = {{type, {}, got.data()}};
    const host::Node node = {{{"size", channels}, {"order", 12}, {"power", 4}, {"channels", channels}, {"group_size", 24}, {"norm_before_gate", 1}}, {{"epsilon", 1e-5f}}};
    const mambac::ort::CustomOp* registered = host::find_op(op.name, true, mambac::ort::kFloat, type);
    const std::string failure = host::compute(api, registered, node, c);
    CHECK(failure.empty() && same_bits(want.data(), got.data(), got.size()), "%s", failure.c_str());
    CHECK(emulation.stream == &stream, "not on the node's stream");
    CHECK(c.outputs[0].dims == c.inputs[(size_t)op.like].dims, "shape");
    host::find_op(op.name, false, mambac::ort::kFloat, type);
    host::find_op(op.name, true, mambac::ort::kFloat16, op.codes ? type : mambac::ort::kFloat16);
    c.inputs[0].dims = {rows, channels + 1};
    std::string refusal = host::compute(api, registered, node, c);
    CHECK(refusal.find(op.name) == 0, "message: %s", refusal.c_str());
    if (!op.codes) continue;
    c.inputs[0].dims = {rows, channels};
    c.inputs.back().type = is_signed ? mambac::ort::kUint8 : mambac::ort::kInt8;
    refusal = host::compute(api, registered, node, c);
    CHECK(refusal.find(op.name) == 0 && refusal.find("element type") != std::string::npos, "message: %s", refusal.c_str());
  }
}

}  // namespace row_test
