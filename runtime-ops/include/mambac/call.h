// Calls of the C interface as kernels take them, checked.
#pragma once
#include "mambac/capi.h"
#include "mambac/plan.h"

namespace mambac {

// False, with a message, where there is no such operator or its sizes do not fit. Pointers are taken over unread.
bool scan_args(const char* name, const mambac_scan* call, ScanArgs* args, Message* message);
bool conv_args(const char* name, const mambac_conv* call, ConvArgs* args, Message* message);
bool rotate_args(const mambac_rotate* call, HadamardArgs* args, Message* message);
bool gate_args(const mambac_gate* call, GateArgs* args, Message* message);
// The operator a call of a gate is of.
inline const RowOp& gate_op(const mambac_gate& call) {
  const RowKind kind = call.group_size != 0 ? RowKind::kGatedNorm : call.slope != nullptr ? RowKind::kSlopedGate : RowKind::kSiluGate;
  return row_op(kind, call.codes.to != nullptr);
}
// The operator a call of a rotation is of.
inline const RowOp& rotate_op(const mambac_rotate& call) { return row_op(RowKind::kHadamard, call.codes.to != nullptr); }

}  // namespace mambac
