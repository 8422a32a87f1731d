// Which kernel runs a call. Each pick_* returns null where its kernels do not take the call.
#pragma once
#include "codec.h"

namespace mambac {
namespace cuda {

// A scan kernel and how many blocks and threads it needs.
struct Choice {
  void (*kernel)(ScanArgs);
  Grid grid;
  ScanArgs scan;  // what the kernel is given; set by pick_fast
};

// What the fast kernels ask for besides sizes: 16-byte loads and 32-bit head numbers.
static inline bool aligned16(const void* p) { return ((uintptr_t)p & 15) == 0; }
static inline bool fits_fast(const ScanArgs& a) {
  const bool packed = a.format == Format::kH8 || a.format == Format::kH4;
  return a.batch * a.heads < 1u << 31 && a.groups <= a.heads && aligned16(a.past) && aligned16(a.present) && aligned16(a.B) && aligned16(a.C) &&
         (a.family == Family::kMamba2 || aligned16(a.A)) && (!packed || a.head_dim % 8 == 0);
}
// What `launch_hadamard` gives besides CUDA error codes: codes of a span that does not fit into shared memory, whose floats
// have nowhere to be.
constexpr int kErrorSpanTooLarge = -2;
static inline const char* failure_text(int code) {
  return code == kErrorSpanTooLarge ? "order * power does not fit into the device's shared memory, as codes need: rotate to floats and quantize them" : error_text(code);
}
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Blocks of a kernel that does in turns what more blocks would do at once.
static inline int64_t blocks_for(int64_t items, int64_t each) {
  const int64_t needed = ceil_div(items, each), most = 1 << 20;
  return needed < most ? needed : most;
}

constexpr int kRegisterFile = 65536;  // 32-bit registers of a multiprocessor, on every architecture from sm_80 on

// Packed states, one token. `kernel` keeps kRows rows in each lane and at most 128 registers; blocks of whole heads.
struct PackedKernel {
  void (*kernel)(ScanArgs);
  int lanes, rows, most_threads;
};
static inline bool pick_packed(const PackedKernel& k, const ScanArgs& a, const Device& d, Choice* out) {
  const int64_t warps = ceil_div(a.head_dim, k.rows * (32 / k.lanes)), tasks = a.batch * a.heads;
  if (warps * 32 > k.most_threads) return false;
  const int64_t resident = (int64_t)d.multiprocessors * (kRegisterFile / 128 / (warps * 32));
  out->kernel = k.kernel;
  out->grid.x = tasks < resident ? tasks : resident;
  out->grid.y = 1;
  out->grid.threads = (int)(warps * 32);
  out->grid.shared = (size_t)scale_room((int)warps, 8 * k.lanes);
  return true;
}

// Kernels that give a block `most_warps` warps of rows of one head; whole heads where `whole`.
static inline bool pick_rows(void (*kernel)(ScanArgs), int lanes, int rows, int most_warps, bool whole, const ScanArgs& a, Choice* out) {
  const int64_t needed = ceil_div(a.head_dim, rows * (32 / lanes)), warps = needed < most_warps ? needed : most_warps;
  if ((whole && warps < needed) || a.head_dim > 1 << 22 || ceil_div(needed, warps) > kMostBlocksY) return false;
  out->kernel = kernel;
  out->grid.x = a.batch * a.heads;
  out->grid.y = (int)ceil_div(needed, warps);
  out->grid.threads = (int)(warps * 32);
  out->grid.shared = (size_t)scale_room((int)warps, 8 * lanes);
  return true;
}

bool pick_mamba2_packed(const ScanArgs& a, const Device& d, Choice* out);  // one token, H8 and H4
bool pick_mamba1_packed(const ScanArgs& a, const Device& d, Choice* out);
bool pick_static(const ScanArgs& a, const Device& d, Choice* out);         // Static, any number of tokens
bool pick_replay(const ScanArgs& a, const Device& d, Choice* out);         // Replay, any number of tokens
bool pick_plain(const ScanArgs& a, Choice* out);   // one token, F32 and F16
bool pick_tokens(const ScanArgs& a, Choice* out);  // any number of tokens, every format
bool pick_fast(const ScanArgs& a, const Device& d, Choice* out);  // one of these, where one takes the call

// What follows the kernel of a Replay operator (replay_rings.h); the first of one token in a kernel of `pick_replay`.
int launch_replay_round(const ScanArgs& a, const Device& d, void* stream);
int launch_replay_finish(const ScanArgs& a, void* stream);

// Device bytes `launch_scan` needs as workspace. All of these return CUDA error codes, 0 for success.
int scan_workspace(const ScanArgs& a, int64_t* bytes);
int launch_scan(const ScanArgs& a, void* workspace, void* stream);
int launch_conv(const ConvArgs& a, void* stream);
int launch_hadamard(const HadamardArgs& a, void* stream);
int launch_gate(const GateArgs& a, void* stream);

}  // namespace cuda
}  // namespace mambac
