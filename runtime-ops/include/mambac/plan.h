// Operator names, attributes and shapes, checked without ONNX Runtime. Meanings: runtime-ops/README.md.
#pragma once
#include "mambac/scan.h"

namespace mambac {

struct ScanOp {
  char name[32];
  Family family;
  Format format;
  bool max_norm, per_token, replay, frozen;
};
constexpr int kScanOps = 30;
const ScanOp* scan_ops();                     // kScanOps of them
const ScanOp* find_scan_op(const char* name);  // null where there is none

struct ConvOp {
  const char* name;
  bool silu;
  int parts;  // outputs beside present, for tokens in rows; 0: x and y are [B, E, L]
};
constexpr int kConvOps = 6;
const ConvOp* conv_ops();

// Operators on the last axis, without a state. One output, shaped like the input that `like` counts.
enum class RowKind : int { kHadamard, kSiluGate, kGatedNorm, kSlopedGate };
struct RowOp {
  const char* name;
  RowKind kind;
  int inputs, like;
  bool codes;  // the result is 8-bit codes; two more inputs say of which grid
};
constexpr int kRowKinds = 4, kRowOps = 2 * kRowKinds;
const RowOp* row_ops();  // in the order of RowKind, then those that give codes
inline const RowOp& row_op(RowKind kind, bool codes) { return row_ops()[(int)kind + (codes ? kRowKinds : 0)]; }

constexpr int kPastInput = 7, kRowStepInput = 8, kColumnStepInput = 9;  // of scans; only Static operators have the last two
constexpr int kMostScanInputs = 10, kConvInputs = 4, kMostRowInputs = 5, kGridInputs = 2;
// Inputs of an operator on rows before the grid.
inline int value_inputs(const RowOp& op) { return op.inputs - (op.codes ? kGridInputs : 0); }
inline int scan_inputs(const ScanOp& op) { return op.frozen ? 10 : 8; }
constexpr size_t kMaxRank = 8;

struct Shape {
  int64_t dims[kMaxRank];
  size_t rank;
};

struct Message {
  char text[320];
};

// Attributes of a node. Mamba-2: num_heads H, groups divide it. Mamba-1: channels E, head_dim and groups divide it.
// replay_length is read for Replay operators only.
struct ScanAttributes {
  int64_t num_heads, channels, head_dim, d_state, num_groups, chunk_size, replay_length;
  float dt_min, dt_max;
};
struct ConvAttributes {
  int64_t channels, kernel_size, state_width;
  int64_t first, first_size, second_size;  // with tokens in rows; the sizes with three parts
};

// One field for every attribute of every operator on rows; an operator reads its own.
struct RowAttributes {
  int64_t size, order, power;                      // Hadamard
  int64_t channels, group_size, norm_before_gate;  // gates; the last two with a norm
  float epsilon;                                   // with a norm
};

// False, with a message that names the operator, what is wrong and what was expected.
bool check_scan_attributes(const ScanOp& op, const ScanAttributes& attributes, Message* message);
bool check_conv_attributes(const ConvOp& op, const ConvAttributes& attributes, Message* message);
bool check_row_attributes(const RowOp& op, const RowAttributes& attributes, Message* message);

// Bytes of one sequence's state of a Replay operator with checked attributes; 0 where they are beyond counting.
int64_t replay_bytes(const ScanOp& op, const ScanAttributes& attributes);

// Bytes of one packed head of an operator with packed states.
inline int64_t packed_bytes(const ScanOp& op, int64_t p, int64_t n) { return op.frozen ? code_bytes(op.format, p, n) : head_bytes(op.format, p, n); }

// Checks the input shapes (scan_inputs(op) of them) against checked attributes and fills in every size of `args` (no pointers).
bool plan_scan(const ScanOp& op, const ScanAttributes& attributes, const Shape* inputs, ScanArgs* args,
               Message* message);
bool plan_conv(const ConvOp& op, const ConvAttributes& attributes, const Shape inputs[kConvInputs], ConvArgs* args,
               Message* message);
bool plan_hadamard(const RowOp& op, const RowAttributes& attributes, const Shape inputs[kMostRowInputs], HadamardArgs* args,
                   Message* message);
// The third input is the weight of a norm or the slope of a sloped gate.
bool plan_gate(const RowOp& op, const RowAttributes& attributes, const Shape inputs[kMostRowInputs], GateArgs* args, Message* message);

}  // namespace mambac
