// Which kernels this machine can run, and how a task gets its scratch.
#include <stdio.h>
#include <stdlib.h>

#include <atomic>

#include "calls.h"
#include "isa.h"

#ifdef MAMBAC_X64
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace mambac {
namespace {

#ifdef MAMBAC_X64
struct CpuId {
  unsigned eax, ebx, ecx, edx;
};
CpuId cpuid(unsigned leaf) {
  CpuId r = {0, 0, 0, 0};
#if defined(_MSC_VER)
  int t[4];
  __cpuidex(t, (int)leaf, 0);
  r = {(unsigned)t[0], (unsigned)t[1], (unsigned)t[2], (unsigned)t[3]};
#else
  __cpuid_count(leaf, 0, r.eax, r.ebx, r.ecx, r.edx);
#endif
  return r;
}
uint64_t enabled_state() {  // XCR0: the register sets the operating system saves
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
#endif
}
bool has(unsigned word, int bit) { return (word >> bit & 1u) != 0; }

int x64_level() {  // 0: neither, 1: AVX2 + FMA + F16C, 2: and AVX-512 F, BW, DQ, VL, 3: and VNNI
  if (cpuid(0).eax < 7) return 0;
  const CpuId one = cpuid(1), seven = cpuid(7);
  if (!has(one.ecx, 27)) return 0;  // OSXSAVE
  const uint64_t state = enabled_state();
  if ((state & 0x6) != 0x6 || !has(one.ecx, 28) || !has(one.ecx, 12) || !has(one.ecx, 29) || !has(seven.ebx, 5)) return 0;
  const bool wide = (state & 0xe6) == 0xe6 && has(seven.ebx, 16) && has(seven.ebx, 17) && has(seven.ebx, 30) && has(seven.ebx, 31);
  return !wide ? 1 : has(seven.ecx, 11) ? 3 : 2;
}
#endif

const Kernels& choose() {
  const char* asked = getenv("MAMBAC_ISA");
  if (asked != nullptr)
    if (const Kernels* k = kernels_named(asked)) return *k;
  const char* best_first[] = {"avx512", "avx2"};
  for (const char* name : best_first)
    if (const Kernels* k = kernels_named(name)) return *k;
  return kPortableKernels;
}

size_t round16(size_t n) { return (n + 15) & ~(size_t)15; }

constexpr size_t kStackScratch = 96 * 1024;

// Rounds to nearest and takes subnormals as zero while it lives: the state of an idle sequence decays into subnormals, which
// some machines multiply a hundred times more slowly. arm64 does not.
struct FloatMode {
#ifdef MAMBAC_X64
  unsigned saved;
  FloatMode() : saved(_mm_getcsr()) { _mm_setcsr((saved & ~0x6000u) | 0x8040u); }
  ~FloatMode() { _mm_setcsr(saved); }
#endif
};

}  // namespace

const Kernels* kernels_named(const char* name) {
  if (strcmp(name, "portable") == 0) return &kPortableKernels;
#ifdef MAMBAC_X64
  static std::atomic<int> known{-1};
  int level = known.load(std::memory_order_relaxed);
  if (level < 0) known.store(level = x64_level(), std::memory_order_relaxed);
  if (level >= 1 && strcmp(name, "avx2") == 0) return &kAvx2Kernels;
  if (level >= 3 && strcmp(name, "avx512") == 0) return &kAvx512VnniKernels;
  if (level >= 2 && (strcmp(name, "avx512") == 0 || strcmp(name, "avx512-base") == 0)) return &kAvx512Kernels;
#endif
  return nullptr;
}

const Kernels& kernels() {
  static std::atomic<const Kernels*> chosen{nullptr};
  const Kernels* k = chosen.load(std::memory_order_relaxed);
  if (k == nullptr) chosen.store(k = &choose(), std::memory_order_relaxed);
  return *k;
}

// An upper bound over all paths of all instruction sets, piece by piece as the kernels take them.
size_t scan_scratch_bytes(const ScanArgs& a) {
  const size_t p = round16((size_t)a.head_dim), n = round16((size_t)a.d_state), r = (size_t)a.replay;
  if (a.prepared != nullptr) return sizeof(float) * (2 * n + 18 * p + 64);
  const size_t packing = p * n + 3 * n + p + (p / 2 + 16) + (n / 2 + 16) + 32;
  const size_t ordered = 2 * n + (size_t)ordered_floats((int64_t)n) + 2 * p;  // B, C, x and units of one token
  const size_t prefill = n * p + 2 * 32 * p;        // transposed state, inputs and sums of a block
  const size_t lanes = 2 * 64 * n + 3 * 32 * 64;    // Mamba-1: states, rates and a block of tokens of 64 channels
  if (r > 0) {
    const size_t token = 2 * n + 2 * p + r * p, block = prefill + 2 * 32 * n;  // the inputs in the ring, or B and C of a block
    return sizeof(float) * (packing + (a.length == 1 ? token : block) + 64);
  }
  if (a.decays != nullptr) return sizeof(float) * (packing + ordered + 64);
  return sizeof(float) * (packing + ordered + (prefill > lanes ? prefill : lanes) + 64);
}

namespace {

bool run_task(void (*task_of)(const ScanArgs&, int64_t, void*), const ScanArgs& a, size_t bytes, int64_t task) {
  alignas(kScratchAlign) unsigned char local[kStackScratch];
  void *block = nullptr, *scratch = local;
  if (bytes > sizeof local) {
    block = malloc(bytes + kScratchAlign);
    if (block == nullptr) return false;
    scratch = (void*)(((uintptr_t)block + kScratchAlign - 1) & ~(uintptr_t)(kScratchAlign - 1));
  }
  {
    const FloatMode mode;
    (void)mode;
    task_of(a, task, scratch);
  }
  free(block);
  return true;
}

struct ScanRun {
  ScanArgs args;
  void (*task)(const ScanArgs&, int64_t, void*);      // of a (batch, head)
  void (*sequence)(const ScanArgs&, int64_t);         // of a batch row
  size_t scratch;
  std::atomic<bool> failed;
};
void head_piece(void* user, size_t task) {
  ScanRun& run = *(ScanRun*)user;
  if (!run_task(run.task, run.args, run.scratch, (int64_t)task)) run.failed.store(true, std::memory_order_relaxed);
}
void sequence_piece(void* user, size_t sequence) {
  const ScanRun& run = *(ScanRun*)user;
  const FloatMode mode;
  (void)mode;
  run.sequence(run.args, (int64_t)sequence);
}

bool refuse(char* error, size_t room, const char* name, const char* what) {
  if (room > 0) snprintf(error, room, "%s: %s", name, what);
  return false;
}
constexpr char kNoMemory[] = "out of memory for scratch";

bool run_heads(ScanRun& run, const char* name, const Spread& spread, char* error, size_t room) {
  const ScanArgs& a = run.args;
  const int64_t tasks = a.batch * a.heads, tokens = a.length > 0 && a.prepared == nullptr ? a.length : 1;
  run.scratch = scan_scratch_bytes(a);
  run.failed.store(false, std::memory_order_relaxed);
  if (!spread.run(spread.host, head_piece, tasks, (double)tasks * (double)(tokens * a.head_dim) * (double)a.d_state, &run)) return false;
  return !run.failed.load(std::memory_order_relaxed) || refuse(error, room, name, kNoMemory);
}

// Token by token where the state is rounded after each: what the heads of a group share is worked out first.
bool run_static(const Kernels& k, ScanRun& run, const char* name, const Spread& spread, char* error, size_t room) {
  ScanArgs& a = run.args;
  if (a.length == 0) {
    const size_t bytes = (size_t)(a.batch * a.heads * code_bytes(a.format, a.head_dim, a.d_state));
    if (a.past != a.present && bytes > 0) memcpy(a.present, a.past, bytes);
    return true;
  }
  if (a.length > 1 && !a.per_token) {
    run.task = k.static_prefill;
    return run_heads(run, name, spread, error, room);
  }
  const size_t bytes = sizeof(float) * (size_t)(a.batch * static_prepared_floats(a));
  alignas(kScratchAlign) unsigned char local[8192];
  void *block = nullptr, *prepared = local;
  if (bytes > sizeof local) {
    block = malloc(bytes + kScratchAlign);
    if (block == nullptr) return refuse(error, room, name, kNoMemory);
    prepared = (void*)(((uintptr_t)block + kScratchAlign - 1) & ~(uintptr_t)(kScratchAlign - 1));
  }
  a.prepared = (float*)prepared;
  run.task = k.static_token;
  run.sequence = k.static_prepare;
  const int64_t length = a.length;
  bool good = true;
  for (int64_t t = 0; good && t < length; t++) {
    a.token = t;
    good = spread.run(spread.host, sequence_piece, a.batch, 8 * (double)a.batch * (double)a.groups * (double)a.d_state, &run) &&
           run_heads(run, name, spread, error, room);
    a.past = a.present;
  }
  free(block);
  return good;
}

// One token of Mamba-2.
bool run_step(const Kernels& k, ScanRun& run, const char* name, const Spread& spread, char* error, size_t room) {
  ScanArgs& a = run.args;
  const size_t batch = (size_t)a.batch, decays = round16(2 * batch * (size_t)a.heads), ordered = batch * (size_t)(a.groups * ordered_floats(a.d_state));
  alignas(kScratchAlign) unsigned char local[4096];
  void *block = nullptr, *whole = local;
  if (sizeof(float) * (decays + ordered) > sizeof local) {
    block = malloc(sizeof(float) * (decays + ordered) + kScratchAlign);
    if (block == nullptr) return refuse(error, room, name, kNoMemory);
    whole = (void*)(((uintptr_t)block + kScratchAlign - 1) & ~(uintptr_t)(kScratchAlign - 1));
  }
  a.decays = (float*)whole;
  a.ordered = a.decays + decays;
  run.sequence = k.mamba2_prepare;
  const double work = 8.0 * (double)a.batch * (double)(a.heads + 2 * a.groups * a.d_state);
  const bool good = spread.run(spread.host, sequence_piece, a.batch, work, &run) && run_heads(run, name, spread, error, room);
  free(block);
  return good;
}

bool run_replay(const Kernels& k, ScanRun& run, const char* name, const Spread& spread, char* error, size_t room) {
  ScanArgs& a = run.args;
  const ReplayLayout at = replay_layout(a);
  if (a.length == 0) {
    if (a.past != a.present && a.batch > 0) memcpy(a.present, a.past, (size_t)(a.batch * at.bytes));
    return true;
  }
  for (int64_t b = 0; b < a.batch; b++) {
    uint32_t count;
    memcpy(&count, (const char*)a.past + b * at.bytes + at.count, sizeof count);
    if (count < (uint64_t)a.replay) continue;
    if (room > 0)
      snprintf(error, room, "%s: past of sequence %lld counts %lu tokens; it must be fewer than replay_length = %lld (a damaged state, or one of another model)",
               name, (long long)b, (unsigned long)count, (long long)a.replay);
    return false;
  }
  const double step = (double)a.batch * (double)a.groups * (double)a.d_state;
  // What is worked out beforehand for one token.
  const size_t dots = a.length == 1 ? (size_t)(a.groups * a.replay) : 0, steps = a.length == 1 ? (size_t)replay_step_floats(a) : 0;
  const size_t batch = (size_t)a.batch, all = batch * (dots + steps + 1);
  alignas(kScratchAlign) unsigned char local[16384];
  void* block = nullptr;
  if (all * sizeof(float) > sizeof local && (block = malloc(all * sizeof(float))) == nullptr)
    return refuse(error, room, name, kNoMemory);
  a.dots = (float*)(block != nullptr ? block : local);
  a.steps = a.dots + batch * dots;
  a.counts = (int32_t*)(a.steps + batch * steps);
  run.task = k.replay;
  run.sequence = k.replay_prepare;
  bool good = spread.run(spread.host, sequence_piece, a.batch, step * (double)(dots > 0 ? a.replay : 1), &run) &&
              run_heads(run, name, spread, error, room);
  if (good) {
    run.sequence = k.replay_finish;
    good = spread.run(spread.host, sequence_piece, a.batch, step * (double)(a.length < a.replay ? a.length : a.replay), &run);
  }
  free(block);
  return good;
}

}  // namespace

bool run_scan(const Kernels& k, const ScanArgs& args, const char* name, const Spread& spread, char* error, size_t room) {
  if (args.half) return run_half_scan(k, args, name, spread, error, room);
  if (room > 0) error[0] = 0;
  ScanRun run;
  run.args = args;
  run.args.decays = run.args.ordered = nullptr;
  if (args.replay > 0) return run_replay(k, run, name, spread, error, room);
  if (args.row_step != nullptr) return run_static(k, run, name, spread, error, room);
  run.task = args.family == Family::kMamba2 ? k.mamba2 : k.mamba1;
  if (args.family == Family::kMamba2 && args.length == 1) return run_step(k, run, name, spread, error, room);
  return run_heads(run, name, spread, error, room);
}

}  // namespace mambac
