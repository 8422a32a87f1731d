// What is registered of an operator, and the kernel that is made of a node: its attributes, read and checked.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abi.h"
#include "mambac/plan.h"

namespace mambac {
namespace ort {
namespace {

// One registered operator. One set exists per host API table and outlives every session.
struct Op : CustomOp {
  const Api* api;
  const ScanOp* scan;  // two of these three are null
  const ConvOp* conv;
  const RowOp* row;
  bool cuda;
  bool half;  // activations are float16; parameters are float32 all the same
  ElementType codes;  // of operators that give codes: int8 or uint8
  const char* name() const { return scan != nullptr ? scan->name : conv != nullptr ? conv->name : row->name; }
  int inputs() const { return scan != nullptr ? scan_inputs(*scan) : conv != nullptr ? kConvInputs : row->inputs; }
  int outputs() const { return row != nullptr ? 1 : conv != nullptr && conv->parts == 3 ? 4 : 2; }
  int past() const { return scan != nullptr ? kPastInput : conv != nullptr ? kConvInputs - 1 : 0; }
  ElementType activation() const { return half ? kFloat16 : kFloat; }
  ElementType input_type(int i) const {
    if (row != nullptr && row->codes && i == row->inputs - 1) return codes;  // the zero point
    if (scan == nullptr) return i == 0 || i == (row == nullptr ? past() : row->like) ? activation() : kFloat;
    if (i == kPastInput) return state_type();
    return i == 0 || i == 1 || i == 3 || i == 4 ? activation() : kFloat;  // x, dt, B, C
  }
  ElementType output_type(int i) const {
    if (row != nullptr && row->codes) return codes;
    return i == 1 && scan != nullptr ? state_type() : activation();
  }
  ElementType state_type() const {
    if (scan->format == Format::kF32) return kFloat;
    return scan->format == Format::kF16 ? kFloat16 : kUint8;
  }
};
const Op& op_of(const CustomOp* op) { return *static_cast<const Op*>(op); }

struct Kernel {
  const Op* op;
  ScanAttributes scan;
  ConvAttributes conv;
  RowAttributes row;
};

Status* invalid(const Api* api, const char* text) { return make_status(api, kInvalidArgument, text); }

// Attributes of a node; the first missing one stops the reading with a message.
struct Reader {
  const Op& op;
  const KernelInfo* info;
  Message missing;
  bool good;
  Reader(const Op& o, const KernelInfo* i) : op(o), info(i), good(true) { missing.text[0] = 0; }
  void fail(const char* name, const char* type) {
    if (good) snprintf(missing.text, sizeof missing.text, "%s: attribute %s (%s) is missing", op.name(), name, type);
    good = false;
  }
  int64_t whole(const char* name) { return value<int64_t>(kAttributeInt64, name, "int"); }
  float real(const char* name) { return value<float>(kAttributeFloat, name, "float"); }
  template <class T>
  T value(Slot slot, const char* name, const char* type) {
    T found = 0;
    if (Status* s = call<Status*>(op.api, slot, info, name, &found)) {
      release(op.api, s);
      fail(name, type);
      return 0;
    }
    return found;
  }
};

Status* create_kernel(const CustomOp* base, const Api*, const KernelInfo* info, void** out) {
  const Op& op = op_of(base);
  *out = nullptr;
  Kernel k;
  memset(&k, 0, sizeof k);
  k.op = &op;
  Reader r(op, info);
  Message m;
  bool good;
  if (op.scan != nullptr) {
    const bool two = op.scan->family == Family::kMamba2;
    (two ? k.scan.num_heads : k.scan.channels) = r.whole(two ? "num_heads" : "channels");
    k.scan.head_dim = r.whole("head_dim");
    k.scan.d_state = r.whole("d_state");
    k.scan.num_groups = r.whole("num_groups");
    k.scan.chunk_size = two ? r.whole("chunk_size") : 1;
    if (op.scan->replay) k.scan.replay_length = r.whole("replay_length");
    k.scan.dt_min = r.real("dt_min");
    k.scan.dt_max = r.real("dt_max");
    if (!r.good) return invalid(op.api, r.missing.text);
    good = check_scan_attributes(*op.scan, k.scan, &m);
  } else if (op.conv != nullptr) {
    k.conv.channels = r.whole("channels");
    k.conv.kernel_size = r.whole("kernel_size");
    k.conv.state_width = r.whole("state_width");
    if (op.conv->parts > 0) k.conv.first = r.whole("first");
    if (op.conv->parts == 3) {
      k.conv.first_size = r.whole("first_size");
      k.conv.second_size = r.whole("second_size");
    }
    if (!r.good) return invalid(op.api, r.missing.text);
    good = check_conv_attributes(*op.conv, k.conv, &m);
  } else {
    if (op.row->kind == RowKind::kHadamard) {
      k.row.size = r.whole("size");
      k.row.order = r.whole("order");
      k.row.power = r.whole("power");
    } else {
      k.row.channels = r.whole("channels");
    }
    if (op.row->kind == RowKind::kGatedNorm) {
      k.row.group_size = r.whole("group_size");
      k.row.norm_before_gate = r.whole("norm_before_gate");
      k.row.epsilon = r.real("epsilon");
    }
    if (!r.good) return invalid(op.api, r.missing.text);
    good = check_row_attributes(*op.row, k.row, &m);
  }
  if (!good) return invalid(op.api, m.text);
  void* kernel = malloc(sizeof k);
  if (kernel == nullptr) return make_status(op.api, kFail, "mambac: out of memory");
  memcpy(kernel, &k, sizeof k);
  *out = kernel;
  return nullptr;
}

}  // namespace
}  // namespace ort
}  // namespace mambac
