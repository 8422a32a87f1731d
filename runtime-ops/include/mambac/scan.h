// What a scan or conv kernel is called with: raw pointers, sizes and nothing of ONNX Runtime.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define MAMBAC_ANYWHERE __host__ __device__
#else
#define MAMBAC_ANYWHERE
#endif

namespace mambac {

enum class Family : int { kMamba1, kMamba2 };
enum class Format : int { kF32, kF16, kH8, kH4 };

// Meaning and layouts: runtime-ops/README.md. Sizes are checked by plan.h; kernels trust them.
// Mamba-1: heads = channels / head_dim pseudo-heads, so both families have heads * head_dim channels.
struct ScanArgs {
  Family family;
  Format format;
  bool max_norm;   // channel scale is max |h| instead of sqrt(mean |h|)
  bool per_token;  // the state is rounded to its format after every token
  bool half;       // x, dt, B, C and y are IEEE halves behind these pointers; only run_scan takes them
  int64_t batch, length, heads, head_dim, d_state, groups;
  int64_t replay;  // tokens between two roundings of a Replay state, at most kMostReplay; 0 for every other operator
  float dt_min, dt_max;
  const float* x;        // [batch, length, heads, head_dim]
  const float* dt;       // [batch, length, heads]; Mamba-1 [batch, length, channels]
  const float* A;        // [heads]; Mamba-1 [channels, d_state]
  const float* B;        // [batch, length, groups, d_state]
  const float* C;        // [batch, length, groups, d_state]
  const float* D;        // [channels]
  const float* dt_bias;  // [heads]; Mamba-1 [channels]
  const float* row_step;     // [heads, head_dim], Static operators; null for every other
  const float* column_step;  // [groups, d_state]
  const void* past;
  float* y;       // [batch, length, channels]
  void* present;  // may be the same buffer as past; must not overlap it otherwise
  // Mamba-2, one token, set by run_scan and Kernels::mamba2_prepare; else null:
  float* decays;   // [batch, 2, heads]: d and exp(d * A)
  float* ordered;  // [batch, groups, ordered_floats(d_state)]: B and C in the order of a kernel's vectors, where it has one of
                   // its own, and B C
  // Replay, set by run_scan and Kernels::replay_prepare:
  int32_t* counts;  // [batch]: tokens in the rings of past
  float* dots;      // [batch, groups, replay], one token: C against b of every token in the ring and the new one
  float* steps;     // [batch, replay_step_floats(args)], one token: what heads share of it and of those in the rings
  // Static, one token at a time, set by run_scan and Kernels::static_prepare:
  int64_t token;
  float* prepared;  // [batch, static_prepared_floats(args)]: what heads share
};

struct ConvArgs {
  bool silu;
  bool half;  // x, past, y and present are IEEE halves; only run_conv takes them
  int64_t batch, channels, length, kernel, width;
  const float* x;       // [batch, channels, length]; in rows: channels `first` and on of [batch, length, row]
  const float* weight;  // [channels, kernel]
  const float* bias;    // [channels]
  const float* past;    // [batch, channels, width]
  float* y;             // [batch, channels, length]; in rows: [batch, length, part[0]]
  float* present;       // [batch, channels, width]; may be the same buffer as past
  int64_t row;          // channels of a token of x; 0: not in rows
  int64_t first;
  int64_t part[3];      // channels of y, more[0] and more[1], which follow each other and are all of them
  float* more[2];       // [batch, length, part[1]] and [batch, length, part[2]]
};

constexpr int64_t kMostOrder = 256;

// Where an operator on rows gives 8-bit codes instead of floats: round_half_even(value / scale) + zero point, saturated, as
// QuantizeLinear has it.
struct CodesOut {
  void* to;           // as many as there are values; null: the result is floats
  const float* scale; // one
  const void* zero;   // one, of the type of the codes
  bool is_signed;     // int8, otherwise uint8
};

// Rows times an orthonormal Hadamard matrix: blocks of order * power channels, each times (factor x Walsh) / sqrt(order * power).
struct HadamardArgs {
  bool half;                         // x and y are IEEE halves; only run_hadamard takes them
  int64_t rows, size, order, power;  // order * power divides size; power is a power of two, order at most kMostOrder
  const float* x;                    // [rows, size]
  const float* factor;               // [order, order]
  float* y;                          // [rows, size]; may be the same buffer as x; unused where there are codes
  CodesOut codes;                    // only run_hadamard takes them
};

// Rows of y times silu(z), with an RMS norm behind the gate, or before it, or with a factor inside the sigmoid.
struct GateArgs {
  bool before;  // the norm comes before the gate
  bool half;    // y, z and out are IEEE halves; only run_gate takes them
  int64_t rows, channels;
  int64_t group;  // channels that share a norm; 0: no norm
  float epsilon;
  const float* y;       // [rows, channels]
  const float* z;       // [rows, channels]
  const float* weight;  // [channels], with a norm
  const float* slope;   // [channels], never beside a norm: z * sigmoid(slope * z) instead of silu(z); null: 1
  float* out;           // [rows, channels]; may be the same buffer as y or z; unused where there are codes
  CodesOut codes;       // only run_gate takes them
};

// Bytes of one head of recurrent state: P x N values, for the packed formats followed by P + N half scales.
MAMBAC_ANYWHERE inline int64_t head_bytes(Format format, int64_t p, int64_t n) {
  switch (format) {
    case Format::kF32:
      return p * n * 4;
    case Format::kF16:
      return p * n * 2;
    case Format::kH8:
      return p * n + 2 * p + 2 * n;
    case Format::kH4:
      return p * n / 2 + 2 * p + 2 * n;
  }
  return 0;
}

// The same for a Static operator, whose steps are not part of the state.
MAMBAC_ANYWHERE inline int64_t code_bytes(Format format, int64_t p, int64_t n) { return format == Format::kH4 ? p * n / 2 : p * n; }

// Floats of B and C in another order, and of their product.
inline int64_t ordered_floats(int64_t n) { return 2 * n + 16; }

// Floats of one sequence's preparation: d and decays of all heads; for each group B and C, as they are and in 16 and 24 bits.
constexpr int64_t kStaticScalars = 16;
inline int64_t static_group_floats(const ScanArgs& a) { return kStaticScalars + 4 * ((a.d_state + 127) / 128 * 128); }
inline int64_t static_prepared_floats(const ScanArgs& a) { return 2 * ((a.heads + 15) / 16 * 16) + a.groups * static_group_floats(a); }

constexpr int64_t kMostReplay = 64;

// Where the parts of one sequence's Replay state lie, in bytes from its start.
struct ReplayLayout {
  int64_t head;  // size of one packed head; the checkpoint is `heads` of them, from 0 on
  int64_t u, l, b, count;
  int64_t bytes;  // all of it
};
MAMBAC_ANYWHERE inline ReplayLayout replay_layout(Format format, int64_t h, int64_t p, int64_t n, int64_t g, int64_t r) {
  ReplayLayout s;
  s.head = head_bytes(format, p, n);
  s.u = h * s.head;
  s.l = s.u + 2 * h * r * p;
  s.b = s.l + 4 * h * r;
  s.count = s.b + 2 * g * r * n;
  s.bytes = (s.count + 4 + 63) / 64 * 64;
  return s;
}
MAMBAC_ANYWHERE inline ReplayLayout replay_layout(const ScanArgs& a) {
  return replay_layout(a.format, a.heads, a.head_dim, a.d_state, a.groups, a.replay);
}

// Floats of one sequence that one Replay token prepares for all heads: d, d * A, weights of R tokens and the checkpoint, R gains, and b.
inline int64_t replay_step_floats(const ScanArgs& a) {
  return (a.heads + 15) / 16 * 16 * (2 * a.replay + 3) + a.groups * a.replay * ((a.d_state + 15) / 16 * 16);
}

// One instruction set's kernels. A scan task is one (batch, head); a conv task is one batch row and kConvBlock channels; a
// task of an operator on rows is kRowBlock rows.
struct Kernels {
  const char* name;
  // One token of Mamba-2 is prepared for every sequence before the tasks.
  void (*mamba2_prepare)(const ScanArgs& args, int64_t sequence);
  void (*mamba2)(const ScanArgs& args, int64_t task, void* scratch);
  void (*mamba1)(const ScanArgs& args, int64_t task, void* scratch);
  void (*conv)(const ConvArgs& args, int64_t task);
  // A call of a Replay operator: the first for every sequence, then the second for every (batch, head), then the third for
  // every sequence. What heads share (b and the count) is only read before the third.
  void (*replay_prepare)(const ScanArgs& args, int64_t sequence);
  void (*replay)(const ScanArgs& args, int64_t task, void* scratch);
  void (*replay_finish)(const ScanArgs& args, int64_t sequence);
  void (*hadamard)(const HadamardArgs& args, int64_t task);
  void (*gate)(const GateArgs& args, int64_t task);
  // One token of a Static operator: the first for every sequence, then the second for every (batch, head). Calls that round
  // at their end only take the third.
  void (*static_prepare)(const ScanArgs& args, int64_t sequence);
  void (*static_token)(const ScanArgs& args, int64_t task, void* scratch);
  void (*static_prefill)(const ScanArgs& args, int64_t task, void* scratch);
  // IEEE halves to floats and back, to the nearest even.
  void (*widen)(const uint16_t* from, float* to, int64_t count);
  void (*narrow)(const float* from, uint16_t* to, int64_t count);
  // Numbers of a result from `first` on as codes; a NaN is the lowest.
  void (*encode)(const float* from, const CodesOut& codes, int64_t first, int64_t count);
};

constexpr int64_t kConvBlock = 64;
constexpr int64_t kRowBlock = 8;
constexpr size_t kScratchAlign = 64;

// Scratch bytes one scan task needs; the start must be aligned to kScratchAlign.
size_t scan_scratch_bytes(const ScanArgs& args);

// The kernels of an instruction set ("portable", "avx2", "avx512"), null where this machine cannot run it.
const Kernels* kernels_named(const char* name);

// The kernels this process uses: the best the CPU has, or what MAMBAC_ISA names when the CPU has it. Chosen once.
const Kernels& kernels();

// How a host runs `tasks` independent pieces that are `work` multiply-adds together. False: it could not, and says itself why.
struct Spread {
  void* host;
  bool (*run)(void* host, void (*piece)(void* user, size_t task), int64_t tasks, double work, void* user);
};

// Runs a planned scan with its pointers set. `name` is the operator's, for messages. Scratch is on the stack, or from the
// heap where it is large. False with a message: out of memory, or a past that no operator has written; false with an empty
// one: `spread` failed.
bool run_scan(const Kernels& kernels, const ScanArgs& args, const char* name, const Spread& spread, char* error, size_t room);

// The same for operators without a scan.
bool run_conv(const Kernels& kernels, const ConvArgs& args, const char* name, const Spread& spread, char* error, size_t room);
bool run_hadamard(const Kernels& kernels, const HadamardArgs& args, const char* name, const Spread& spread, char* error, size_t room);
bool run_gate(const Kernels& kernels, const GateArgs& args, const char* name, const Spread& spread, char* error, size_t room);

inline int64_t conv_tasks(const ConvArgs& a) { return a.batch * ((a.channels + kConvBlock - 1) / kConvBlock); }

inline int64_t row_tasks(int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock; }

}  // namespace mambac
