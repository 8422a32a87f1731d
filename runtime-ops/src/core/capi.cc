#include "mambac/capi.h"

#include <stdio.h>
#include <string.h>

#include "mambac/call.h"

namespace mambac {

static bool refuse(Message* m, const char* text, const char* detail) {
  snprintf(m->text, sizeof m->text, "%s%s", text, detail);
  return false;
}

bool scan_args(const char* name, const mambac_scan* c, ScanArgs* a, Message* m) {
  if (name == nullptr || c == nullptr) return refuse(m, "scan: null argument", "");
  const ScanOp* op = find_scan_op(name);
  if (op == nullptr) return refuse(m, "no such operator: ", name);
  const bool two = op->family == Family::kMamba2;
  const int64_t limit = 1 << 30;
  if (c->heads < 1 || c->heads > limit || c->head_dim < 1 || c->head_dim > limit || c->batch < 0 || c->length < 0)
    return refuse(m, name, ": sizes out of range");
  const int64_t h = c->heads, p = c->head_dim, n = c->d_state, g = c->groups, b = c->batch, l = c->length, e = h * p;
  const ScanAttributes attributes = {h, e, p, n, g, 1, c->replay_length, c->dt_min, c->dt_max};
  if (!check_scan_attributes(*op, attributes, m)) return false;
  const bool rows = op->format == Format::kF32 || op->format == Format::kF16;
  Shape past = rows ? (two ? Shape{{b, h, p, n}, 4} : Shape{{b, e, n}, 3}) : Shape{{b, h, packed_bytes(*op, p, n)}, 3};
  if (op->replay) {
    const int64_t bytes = replay_bytes(*op, attributes);
    past = {{b, bytes}, 2};
    if (bytes == 0) return refuse(m, name, ": sizes out of range");
  }
  const Shape shapes[kMostScanInputs] = {two ? Shape{{b, l, h, p}, 4} : Shape{{b, l, e}, 3},
                                     {{b, l, two ? h : e}, 3},
                                     two ? Shape{{h}, 1} : Shape{{e, n}, 2},
                                     {{b, l, g, n}, 4},
                                     {{b, l, g, n}, 4},
                                     two ? Shape{{h, p}, 2} : Shape{{e}, 1},
                                     {{two ? h : e}, 1},
                                     past,
                                     {{h, p}, 2},
                                     {{g, n}, 2}};
  if (!plan_scan(*op, attributes, shapes, a, m)) return false;
  if (op->frozen && (c->row_step == nullptr || c->column_step == nullptr)) return refuse(m, name, ": there are no steps");
  a->x = c->x;
  a->dt = c->dt;
  a->A = c->A;
  a->B = c->B;
  a->C = c->C;
  a->D = c->D;
  a->dt_bias = c->dt_bias;
  a->past = c->past;
  a->y = c->y;
  a->present = c->present;
  a->half = c->half != 0;
  if (op->frozen) {
    a->row_step = c->row_step;
    a->column_step = c->column_step;
  }
  return true;
}

bool conv_args(const char* name, const mambac_conv* c, ConvArgs* a, Message* m) {
  if (name == nullptr || c == nullptr) return refuse(m, "conv: null argument", "");
  const ConvOp* op = nullptr;
  for (int i = 0; i < kConvOps; i++)
    if (strcmp(conv_ops()[i].name, name) == 0) op = &conv_ops()[i];
  if (op == nullptr) return refuse(m, "no such operator: ", name);
  const ConvAttributes attributes = {c->channels, c->kernel, c->width, c->first, c->first_size, c->second_size};
  const bool rows = op->parts > 0;
  if (!check_conv_attributes(*op, attributes, m)) return false;
  const Shape shapes[kConvInputs] = {{{c->batch, rows ? c->length : c->channels, rows ? c->row : c->length}, 3},
                                     {{c->channels, 1, c->kernel}, 3},
                                     {{c->channels}, 1},
                                     {{c->batch, c->channels, c->width}, 3}};
  if (!plan_conv(*op, attributes, shapes, a, m)) return false;
  a->x = c->x;
  a->weight = c->weight;
  a->bias = c->bias;
  a->past = c->past;
  a->y = c->y;
  a->present = c->present;
  if (op->parts == 3) {
    a->more[0] = c->y2;
    a->more[1] = c->y3;
  }
  a->half = c->half != 0;
  return true;
}

// False, with a message, where there are codes to be written and no grid.
static bool codes_args(const RowOp& op, const mambac_codes& c, CodesOut* codes, Message* m) {
  if (op.codes && (c.scale == nullptr || c.zero_point == nullptr)) return refuse(m, op.name, ": there is no scale or no zero point");
  *codes = {c.to, c.scale, c.zero_point, c.is_signed != 0};
  return true;
}

bool rotate_args(const mambac_rotate* c, HadamardArgs* a, Message* m) {
  if (c == nullptr) return refuse(m, row_op(RowKind::kHadamard, false).name, ": null argument");
  const RowOp& op = rotate_op(*c);
  const RowAttributes attributes = {c->size, c->order, c->power, 0, 0, 0, 0};
  const Shape shapes[kMostRowInputs] = {{{c->rows, c->size}, 2}, {{c->order, c->order}, 2}};
  if (!check_row_attributes(op, attributes, m) || !plan_hadamard(op, attributes, shapes, a, m)) return false;
  a->x = c->x;
  a->factor = c->factor;
  a->y = c->y;
  a->half = c->half != 0;
  return codes_args(op, c->codes, &a->codes, m);
}

bool gate_args(const mambac_gate* c, GateArgs* a, Message* m) {
  if (c == nullptr) return refuse(m, "gate: null argument", "");
  const RowOp& op = gate_op(*c);
  const RowAttributes attributes = {0, 0, 0, c->channels, c->group_size, c->norm_before_gate, c->epsilon};
  const Shape rows = {{c->rows, c->channels}, 2};
  Shape shapes[kMostRowInputs] = {rows, rows};
  if (value_inputs(op) == 3) shapes[2] = {{c->channels}, 1};
  if (!check_row_attributes(op, attributes, m) || !plan_gate(op, attributes, shapes, a, m)) return false;
  a->y = c->y;
  a->z = c->z;
  a->weight = c->weight;
  a->slope = op.kind == RowKind::kSlopedGate ? c->slope : nullptr;
  a->out = c->out;
  a->half = c->half != 0;
  return codes_args(op, c->codes, &a->codes, m);
}

}  // namespace mambac

namespace {

using namespace mambac;

int fail(char* error, size_t room, const char* text, const char* detail) {
  if (error != nullptr && room > 0) snprintf(error, room, "%s%s", text, detail);
  return 1;
}

// Every piece on the calling thread.
bool in_turn(void*, void (*piece)(void*, size_t), int64_t tasks, double, void* user) {
  for (int64_t i = 0; i < tasks; i++) piece(user, (size_t)i);
  return true;
}

const Kernels* pick(const char* isa) { return isa == nullptr ? &kernels() : kernels_named(isa); }

}  // namespace

extern "C" int mambac_scan_run(const char* name, const char* isa, const mambac_scan* c, char* error, size_t room) {
  ScanArgs a;
  Message m;
  if (!scan_args(name, c, &a, &m)) return fail(error, room, m.text, "");
  const Kernels* k = pick(isa);
  if (k == nullptr) return fail(error, room, "this machine cannot run instruction set: ", isa);
  const Spread spread = {nullptr, in_turn};
  return run_scan(*k, a, name, spread, m.text, sizeof m.text) ? 0 : fail(error, room, m.text, "");
}

extern "C" int mambac_conv_run(const char* name, const char* isa, const mambac_conv* c, char* error, size_t room) {
  ConvArgs a;
  Message m;
  if (!conv_args(name, c, &a, &m)) return fail(error, room, m.text, "");
  const Kernels* k = pick(isa);
  if (k == nullptr) return fail(error, room, "this machine cannot run instruction set: ", isa);
  const Spread spread = {nullptr, in_turn};
  return run_conv(*k, a, name, spread, m.text, sizeof m.text) ? 0 : fail(error, room, m.text, "");
}

extern "C" int mambac_rotate_run(const char* isa, const mambac_rotate* c, char* error, size_t room) {
  HadamardArgs a;
  Message m;
  if (!rotate_args(c, &a, &m)) return fail(error, room, m.text, "");
  const Kernels* k = pick(isa);
  if (k == nullptr) return fail(error, room, "this machine cannot run instruction set: ", isa);
  const Spread spread = {nullptr, in_turn};
  return run_hadamard(*k, a, rotate_op(*c).name, spread, m.text, sizeof m.text) ? 0 : fail(error, room, m.text, "");
}

extern "C" int mambac_gate_run(const char* isa, const mambac_gate* c, char* error, size_t room) {
  GateArgs a;
  Message m;
  if (!gate_args(c, &a, &m)) return fail(error, room, m.text, "");
  const Kernels* k = pick(isa);
  if (k == nullptr) return fail(error, room, "this machine cannot run instruction set: ", isa);
  const Spread spread = {nullptr, in_turn};
  return run_gate(*k, a, gate_op(*c).name, spread, m.text, sizeof m.text) ? 0 : fail(error, room, m.text, "");
}

extern "C" int64_t mambac_state_bytes(const char* name, int64_t heads, int64_t head_dim, int64_t d_state) {
  const ScanOp* op = name == nullptr ? nullptr : find_scan_op(name);
  const int64_t limit = 1 << 20;
  if (op == nullptr || op->replay || heads < 1 || head_dim < 1 || d_state < 1) return 0;
  if (heads > limit || head_dim > limit || d_state > limit) return 0;
  return heads * packed_bytes(*op, head_dim, d_state);
}

extern "C" int64_t mambac_replay_bytes(const char* name, int64_t heads, int64_t head_dim, int64_t d_state, int64_t groups, int64_t replay_length) {
  const ScanOp* op = name == nullptr ? nullptr : find_scan_op(name);
  const ScanAttributes attributes = {heads, 1, head_dim, d_state, groups, 1, replay_length, 0, 0};
  Message m;
  return op != nullptr && op->replay && check_scan_attributes(*op, attributes, &m) ? replay_bytes(*op, attributes) : 0;
}

extern "C" const char* mambac_isa(void) { return mambac::kernels().name; }
