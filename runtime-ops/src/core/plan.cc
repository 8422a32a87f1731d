#include "mambac/plan.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

namespace mambac {
namespace {

// Constant data: nothing here needs a guard, a destructor or the C++ runtime.
#define MAMBAC_PACKED(digit, family, suffix, format)                                   \
  {"Mamba" digit "Scan" suffix, family, format, false, false, false, false},                  \
      {"Mamba" digit "Scan" suffix "Token", family, format, false, true, false, false},       \
      {"Mamba" digit "Scan" suffix "Max", family, format, true, false, false, false},         \
      {"Mamba" digit "Scan" suffix "MaxToken", family, format, true, true, false, false}
#define MAMBAC_FAMILY(digit, family)                                                   \
  {"Mamba" digit "ScanF32", family, Format::kF32, false, false, false, false},                \
      {"Mamba" digit "ScanF16", family, Format::kF16, false, false, false, false},            \
      {"Mamba" digit "ScanF16Token", family, Format::kF16, false, true, false, false},        \
      MAMBAC_PACKED(digit, family, "H8", Format::kH8), MAMBAC_PACKED(digit, family, "H4", Format::kH4)
#define MAMBAC_REPLAY(suffix, format)                                                  \
  {"Mamba2Scan" suffix "Replay", Family::kMamba2, format, false, false, true, false},         \
      {"Mamba2Scan" suffix "MaxReplay", Family::kMamba2, format, true, false, true, false}
#define MAMBAC_STATIC(suffix, format)                                                  \
  {"Mamba2Scan" suffix "Static", Family::kMamba2, format, false, false, false, true},  \
      {"Mamba2Scan" suffix "StaticToken", Family::kMamba2, format, false, true, false, true}

constexpr ScanOp kScanTable[] = {MAMBAC_FAMILY("1", Family::kMamba1), MAMBAC_FAMILY("2", Family::kMamba2),
                                 MAMBAC_REPLAY("H8", Format::kH8), MAMBAC_REPLAY("H4", Format::kH4),
                                 MAMBAC_STATIC("H8", Format::kH8), MAMBAC_STATIC("H4", Format::kH4)};
static_assert(sizeof kScanTable == kScanOps * sizeof(ScanOp), "kScanOps");

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
bool fail(Message* message, const char* format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(message->text, sizeof message->text, format, list);
  va_end(list);
  return false;
}

constexpr int64_t kLargest = 1 << 30;  // of one attribute; products of two stay far inside 64 bits

bool positive(const char* op, const char* name, int64_t value, Message* m) {
  if (value >= 1 && value <= kLargest) return true;
  return fail(m, "%s: attribute %s is %lld; it must be between 1 and 2^30", op, name, (long long)value);
}

void show(const Shape& s, char* out, size_t room) {
  size_t used = (size_t)snprintf(out, room, "[");
  for (size_t i = 0; i < s.rank && i < kMaxRank && used < room; i++)
    used += (size_t)snprintf(out + used, room - used, "%s%lld", i ? ", " : "", (long long)s.dims[i]);
  if (used < room) snprintf(out + used, room - used, "]");
}

// Compares an input's shape with what it must be; -1 in `wanted` is any length and names `letters` the dimensions.
bool shaped(const char* op, const char* input, const Shape& got, size_t rank, const int64_t* wanted, const char* letters,
            Message* m) {
  bool same = got.rank == rank;
  for (size_t i = 0; same && i < rank; i++) same = wanted[i] < 0 ? got.dims[i] >= 0 : got.dims[i] == wanted[i];
  if (same) return true;
  char actual[96], expected[96];
  show(got, actual, sizeof actual);
  Shape e = {{0}, rank};
  for (size_t i = 0; i < rank; i++) e.dims[i] = wanted[i];
  show(e, expected, sizeof expected);
  return fail(m, "%s: input %s has shape %s; expected %s = %s (-1: any)", op, input, actual, letters, expected);
}

// Elements of a tensor of this shape with `bytes` each must be addressable.
bool addressable(const char* op, const char* what, const int64_t* dims, size_t rank, int64_t bytes, Message* m) {
  double total = (double)bytes;
  for (size_t i = 0; i < rank; i++) total *= (double)dims[i];
  return total < 4e18 ? true : fail(m, "%s: %s is too large", op, what);
}

// Rows of a tensor whose last axis has `width` elements.
bool rows_of(const char* op, const char* input, const Shape& got, int64_t width, const char* letters, int64_t* rows, Message* m) {
  bool good = got.rank >= 1 && got.rank <= kMaxRank && got.dims[got.rank - 1] == width;
  for (size_t i = 0; good && i < got.rank; i++) good = got.dims[i] >= 0;
  if (!good) {
    char actual[96];
    show(got, actual, sizeof actual);
    return fail(m, "%s: input %s has shape %s; expected %s with %lld last", op, input, actual, letters, (long long)width);
  }
  if (!addressable(op, input, got.dims, got.rank, 4, m)) return false;
  *rows = 1;
  for (size_t i = 0; i < got.rank; i++)
    if (got.dims[i] == 0) *rows = 0;  // the others may be anything
  for (size_t i = 0; *rows > 0 && i + 1 < got.rank; i++) *rows *= got.dims[i];
  return true;
}

// The grid of an operator that gives codes: two scalars behind its other inputs.
bool on_grid(const RowOp& op, const Shape* in, Message* m) {
  if (!op.codes) return true;
  const int at = value_inputs(op);
  return shaped(op.name, "scale", in[at], 0, nullptr, "a scalar", m) && shaped(op.name, "zero_point", in[at + 1], 0, nullptr, "a scalar", m);
}

const char* const kScanInputNames[kMostScanInputs] = {"x", "dt", "A", "B", "C", "D", "dt_bias", "past", "row_step", "column_step"};

}  // namespace

const ScanOp* scan_ops() { return kScanTable; }

const ScanOp* find_scan_op(const char* name) {
  const ScanOp* ops = scan_ops();
  for (int i = 0; i < kScanOps; i++)
    if (strcmp(ops[i].name, name) == 0) return &ops[i];
  return nullptr;
}

const ConvOp* conv_ops() {
  static constexpr ConvOp ops[kConvOps] = {{"CausalConv", false, 0},      {"CausalConvSilu", true, 0},
                                           {"CausalConvRows", false, 1},  {"CausalConvSiluRows", true, 1},
                                           {"CausalConvSplit", false, 3}, {"CausalConvSiluSplit", true, 3}};
  return ops;
}

const RowOp* row_ops() {
  static constexpr RowOp ops[kRowOps] = {{"HadamardRotate", RowKind::kHadamard, 2, 0, false},
                                         {"SiluGate", RowKind::kSiluGate, 2, 1, false},
                                         {"GatedRMSNorm", RowKind::kGatedNorm, 3, 1, false},
                                         {"SlopedSiluGate", RowKind::kSlopedGate, 3, 1, false},
                                         {"HadamardRotateQ8", RowKind::kHadamard, 4, 0, true},
                                         {"SiluGateQ8", RowKind::kSiluGate, 4, 1, true},
                                         {"GatedRMSNormQ8", RowKind::kGatedNorm, 5, 1, true},
                                         {"SlopedSiluGateQ8", RowKind::kSlopedGate, 5, 1, true}};
  return ops;
}

bool check_scan_attributes(const ScanOp& op, const ScanAttributes& a, Message* m) {
  const bool two = op.family == Family::kMamba2;
  if (!positive(op.name, two ? "num_heads" : "channels", two ? a.num_heads : a.channels, m)) return false;
  if (!positive(op.name, "head_dim", a.head_dim, m) || !positive(op.name, "d_state", a.d_state, m)) return false;
  if (!positive(op.name, "num_groups", a.num_groups, m)) return false;
  if (two && !positive(op.name, "chunk_size", a.chunk_size, m)) return false;
  const int64_t divided = two ? a.num_heads : a.channels;
  if (divided % a.num_groups != 0)
    return fail(m, "%s: attribute num_groups is %lld; it must divide %s = %lld", op.name, (long long)a.num_groups,
                two ? "num_heads" : "channels", (long long)divided);
  if (!two && a.channels % a.head_dim != 0)
    return fail(m, "%s: attribute head_dim is %lld; it must divide channels = %lld", op.name, (long long)a.head_dim,
                (long long)a.channels);
  if (op.format == Format::kH4 && a.d_state % 2 != 0)
    return fail(m, "%s: attribute d_state is %lld; 4-bit states need an even one", op.name, (long long)a.d_state);
  if (isnan(a.dt_min) || isnan(a.dt_max) || a.dt_min > a.dt_max)
    return fail(m, "%s: attributes dt_min = %g and dt_max = %g are no interval", op.name, (double)a.dt_min,
                (double)a.dt_max);
  if (op.replay && (a.replay_length < 1 || a.replay_length > kMostReplay))
    return fail(m, "%s: attribute replay_length is %lld; it must be between 1 and %lld", op.name, (long long)a.replay_length,
                (long long)kMostReplay);
  const int64_t head[] = {a.head_dim, a.d_state};
  return addressable(op.name, "the state of one head", head, 2, 64, m);
}

bool check_conv_attributes(const ConvOp& op, const ConvAttributes& a, Message* m) {
  if (!positive(op.name, "channels", a.channels, m) || !positive(op.name, "kernel_size", a.kernel_size, m)) return false;
  if (a.state_width < a.kernel_size - 1 || a.state_width > kLargest)
    return fail(m, "%s: attribute state_width is %lld; it must be at least kernel_size - 1 = %lld", op.name,
                (long long)a.state_width, (long long)(a.kernel_size - 1));
  if (op.parts > 0 && (a.first < 0 || a.first > kLargest))
    return fail(m, "%s: attribute first is %lld; it must be between 0 and 2^30", op.name, (long long)a.first);
  if (op.parts < 3) return true;
  if (!positive(op.name, "first_size", a.first_size, m) || !positive(op.name, "second_size", a.second_size, m)) return false;
  if (a.first_size + a.second_size >= a.channels)
    return fail(m, "%s: attributes first_size = %lld and second_size = %lld; they must leave some of channels = %lld", op.name,
                (long long)a.first_size, (long long)a.second_size, (long long)a.channels);
  return true;
}

static bool check_gate_attributes(const RowOp& op, const RowAttributes& a, Message* m) {
  if (!positive(op.name, "channels", a.channels, m)) return false;
  if (op.kind != RowKind::kGatedNorm) return true;
  if (!positive(op.name, "group_size", a.group_size, m)) return false;
  if (a.channels % a.group_size != 0)
    return fail(m, "%s: attribute group_size is %lld; it must divide channels = %lld", op.name, (long long)a.group_size,
                (long long)a.channels);
  if (a.norm_before_gate != 0 && a.norm_before_gate != 1)
    return fail(m, "%s: attribute norm_before_gate is %lld; it must be 0 or 1", op.name, (long long)a.norm_before_gate);
  if (!(a.epsilon >= 0 && a.epsilon < INFINITY))
    return fail(m, "%s: attribute epsilon is %g; it must be at least 0", op.name, (double)a.epsilon);
  return true;
}

bool check_row_attributes(const RowOp& op, const RowAttributes& a, Message* m) {
  if (op.kind != RowKind::kHadamard) return check_gate_attributes(op, a, m);
  if (!positive(op.name, "size", a.size, m) || !positive(op.name, "order", a.order, m)) return false;
  if (!positive(op.name, "power", a.power, m)) return false;
  if (a.order > kMostOrder)
    return fail(m, "%s: attribute order is %lld; it must be between 1 and %lld", op.name, (long long)a.order, (long long)kMostOrder);
  if ((a.power & (a.power - 1)) != 0)
    return fail(m, "%s: attribute power is %lld; it must be a power of two", op.name, (long long)a.power);
  if (a.size % (a.order * a.power) != 0)
    return fail(m, "%s: attributes order = %lld and power = %lld; their product must divide size = %lld", op.name, (long long)a.order,
                (long long)a.power, (long long)a.size);
  return true;
}

int64_t replay_bytes(const ScanOp& op, const ScanAttributes& a) {
  const double h = (double)a.num_heads, p = (double)a.head_dim, n = (double)a.d_state;
  if (h * (p + n + 2) * (p + n + 2 * (double)kMostReplay) * 4 > 4e18) return 0;  // more than the sum of the parts
  return replay_layout(op.format, a.num_heads, a.head_dim, a.d_state, a.num_groups, a.replay_length).bytes;
}

bool plan_scan(const ScanOp& op, const ScanAttributes& a, const Shape* in, ScanArgs* args, Message* m) {
  const bool two = op.family == Family::kMamba2;
  const int64_t p = a.head_dim, n = a.d_state, g = a.num_groups;
  const int64_t h = two ? a.num_heads : a.channels / p, e = h * p;
  const char* const* names = kScanInputNames;
  const int64_t any[] = {-1, -1, h, p}, any1[] = {-1, -1, e};
  if (!shaped(op.name, names[0], in[0], two ? 4 : 3, two ? any : any1, two ? "[B, L, H, P]" : "[B, L, E]", m)) return false;
  const int64_t b = in[0].dims[0], l = in[0].dims[1];
  const int64_t per_dt = two ? h : e;
  const int64_t dt[] = {b, l, per_dt}, bc[] = {b, l, g, n}, decay[] = {per_dt, n}, skip[] = {h, p}, one[] = {per_dt}, all[] = {e};
  const bool rows = op.format == Format::kF32 || op.format == Format::kF16;
  const int64_t state2[] = {b, h, p, n}, state1[] = {b, e, n}, packed[] = {b, h, packed_bytes(op, p, n)}, row_step[] = {h, p}, column_step[] = {g, n};
  if (!shaped(op.name, names[1], in[1], 3, dt, two ? "[B, L, H]" : "[B, L, E]", m)) return false;
  if (!shaped(op.name, names[2], in[2], two ? 1 : 2, decay, two ? "[H]" : "[E, N]", m)) return false;
  if (!shaped(op.name, names[3], in[3], 4, bc, "[B, L, G, N]", m)) return false;
  if (!shaped(op.name, names[4], in[4], 4, bc, "[B, L, G, N]", m)) return false;
  if (!shaped(op.name, names[5], in[5], two ? 2 : 1, two ? skip : all, two ? "[H, P]" : "[E]", m)) return false;
  if (!shaped(op.name, names[6], in[6], 1, one, two ? "[H]" : "[E]", m)) return false;
  const int64_t replay = op.replay ? a.replay_length : 0;
  if (op.replay) {
    const int64_t sequence[] = {b, replay_bytes(op, a)};
    if (sequence[1] == 0) return fail(m, "%s: the state of a sequence is too large", op.name);
    if (!addressable(op.name, "past", sequence, 2, 1, m) || !shaped(op.name, names[7], in[7], 2, sequence, "[B, bytes]", m)) return false;
  } else if (!shaped(op.name, names[7], in[7], rows && two ? 4 : 3, rows ? (two ? state2 : state1) : packed,
              rows ? (two ? "[B, H, P, N]" : "[B, E, N]") : "[B, heads, bytes]", m))
    return false;
  if (op.frozen && (!shaped(op.name, names[kRowStepInput], in[kRowStepInput], 2, row_step, "[H, P]", m) ||
                    !shaped(op.name, names[kColumnStepInput], in[kColumnStepInput], 2, column_step, "[G, N]", m)))
    return false;
  const int64_t large_y[] = {b, l, e}, large_state[] = {b, e, n}, large_bc[] = {b, l, g, n};
  if (!addressable(op.name, "x", large_y, 3, 4, m) || !addressable(op.name, "past", large_state, 3, 4, m) ||
      !addressable(op.name, "B", large_bc, 4, 4, m))
    return false;
  args->family = op.family;
  args->format = op.format;
  args->max_norm = op.max_norm;
  args->per_token = op.per_token;
  args->half = false;
  args->batch = b;
  args->length = l;
  args->heads = h;
  args->head_dim = p;
  args->d_state = n;
  args->groups = g;
  args->replay = replay;
  args->row_step = nullptr;
  args->column_step = nullptr;
  args->token = 0;
  args->prepared = nullptr;
  args->counts = nullptr;
  args->dots = nullptr;
  args->steps = nullptr;
  args->dt_min = a.dt_min;
  args->dt_max = a.dt_max;
  return true;
}

bool plan_conv(const ConvOp& op, const ConvAttributes& a, const Shape in[kConvInputs], ConvArgs* args, Message* m) {
  const int64_t e = a.channels, k = a.kernel_size, w = a.state_width;
  const int64_t x[] = {-1, e, -1}, rows[] = {-1, -1, -1}, weight[] = {e, 1, k}, bias[] = {e};
  const bool in_rows = op.parts > 0;
  if (!shaped(op.name, "x", in[0], 3, in_rows ? rows : x, in_rows ? "[B, L, channels of x]" : "[B, E, L]", m)) return false;
  if (in_rows && in[0].dims[2] < a.first + e)
    return fail(m, "%s: input x has %lld channels; expected at least first + channels = %lld", op.name, (long long)in[0].dims[2],
                (long long)(a.first + e));
  const int64_t past[] = {in[0].dims[0], e, w};
  if (!shaped(op.name, "weight", in[1], 3, weight, "[E, 1, K]", m)) return false;
  if (!shaped(op.name, "bias", in[2], 1, bias, "[E]", m)) return false;
  if (!shaped(op.name, "past", in[3], 3, past, "[B, E, W]", m)) return false;
  if (!addressable(op.name, "x", in[0].dims, 3, 4, m) || !addressable(op.name, "past", past, 3, 4, m)) return false;
  args->silu = op.silu;
  args->half = false;
  args->batch = in[0].dims[0];
  args->channels = e;
  args->length = in[0].dims[in_rows ? 1 : 2];
  args->kernel = k;
  args->width = w;
  args->row = in_rows ? in[0].dims[2] : 0;
  args->first = in_rows ? a.first : 0;
  args->part[0] = op.parts == 3 ? a.first_size : e;
  args->part[1] = op.parts == 3 ? a.second_size : 0;
  args->part[2] = e - args->part[0] - args->part[1];
  args->more[0] = args->more[1] = nullptr;
  return true;
}

bool plan_hadamard(const RowOp& op, const RowAttributes& a, const Shape in[kMostRowInputs], HadamardArgs* args, Message* m) {
  if (!rows_of(op.name, "x", in[0], a.size, "[..., size]", &args->rows, m)) return false;
  const int64_t factor[] = {a.order, a.order};
  if (!shaped(op.name, "factor", in[1], 2, factor, "[order, order]", m) || !on_grid(op, in, m)) return false;
  args->half = false;
  args->codes = {nullptr, nullptr, nullptr, false};
  args->size = a.size;
  args->order = a.order;
  args->power = a.power;
  return true;
}

bool plan_gate(const RowOp& op, const RowAttributes& a, const Shape in[kMostRowInputs], GateArgs* args, Message* m) {
  if (!rows_of(op.name, "z", in[1], a.channels, "[..., channels]", &args->rows, m)) return false;
  // y may have its channels in several axes: as many elements as z is what matters.
  bool same = in[0].rank <= kMaxRank;
  int64_t left = args->rows * a.channels;
  bool empty = false;
  for (size_t i = 0; same && i < in[0].rank; i++) {
    const int64_t size = in[0].dims[i];
    same = size >= 0 && (size == 0 || left % size == 0);
    if (size == 0) empty = true;
    else if (same) left /= size;
  }
  if (!same || (empty ? args->rows != 0 : args->rows == 0 || left != 1)) {
    char y[96], z[96];
    show(in[0], y, sizeof y);
    show(in[1], z, sizeof z);
    return fail(m, "%s: input y has shape %s; expected as many elements as z = %s", op.name, y, z);
  }
  const int64_t weight[] = {a.channels};
  const bool norm = op.kind == RowKind::kGatedNorm;
  if (value_inputs(op) == 3 && !shaped(op.name, norm ? "weight" : "slope", in[2], 1, weight, "[channels]", m)) return false;
  if (!on_grid(op, in, m)) return false;
  args->half = false;
  args->codes = {nullptr, nullptr, nullptr, false};
  args->channels = a.channels;
  args->group = norm ? a.group_size : 0;
  args->before = norm && a.norm_before_gate != 0;
  args->epsilon = norm ? a.epsilon : 0;
  args->weight = args->slope = nullptr;
  return true;
}

}  // namespace mambac
