// The fibers behind cuda_emulation.h.
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <memory>
#include <vector>

#include "mambac/scan.h"
#include "../src/cuda/device.h"
#include "reference.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
// Set where all but this file, whose own bookkeeping is no business of the kernels, is built for the thread sanitizer.
#ifdef MAMBAC_WATCH_RACES
#include <sanitizer/tsan_interface.h>
#endif
// What orders memory accesses is an address that threads let go of before and take up behind. Each meeting of a barrier needs
// its own: a thread that leaves one late must not see what others did before the next. So do blocks, which nothing orders.
#ifdef MAMBAC_WATCH_RACES
#define RELEASE(place) __tsan_release(place)
#define ACQUIRE(place) __tsan_acquire(place)
#else
#define RELEASE(place) (void)(place)
#define ACQUIRE(place) (void)(place)
#endif
// Plain jumps save two system calls a switch; sanitizers follow only swapcontext.
#if defined(__SANITIZE_ADDRESS__) || defined(MAMBAC_WATCH_RACES)
#define SWITCH(from, to, started) swapcontext(&(from).context, &(to).context)
#else
#define SWITCH(from, to, started)                   \
  do {                                              \
    if (_setjmp((from).jump) == 0) {                \
      if (started) _longjmp((to).jump, 1);          \
      setcontext(&(to).context);                    \
    }                                               \
  } while (0)
#endif

namespace mambac {
namespace cuda {

Emulation emulation = {{4, 227 * 1024}, 0, "", nullptr, 0, 0, 0};

namespace {

constexpr size_t kStack = 256 * 1024;

// A place where `expected` fibers meet. `turn` counts the meetings.
struct Meeting {
  int expected, arrived;
  long turn;
  char* order;  // of this turn and the next
  const char* kind;
  bool any[2];
  uint32_t values[2][32];
};
struct Place {
  ucontext_t context;
  jmp_buf jump;
};
struct Fiber : Place {
  int index;
  bool started, done;
  const Meeting* waits;  // for its turn to pass `since`
  long since;
  void* sanitizer;
  void* fake_stack;
};
struct Block {
  int64_t x, blocks;
  int y, threads;
  char* shared;
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting whole;
  void (*body)(void*);
  void* call;
  int running;  // index, or -1 for the scheduler
  Place scheduler;
  void *scheduler_sanitizer, *scheduler_fake_stack;
  const void* scheduler_stack;
  size_t scheduler_stack_size;
};
Block* g = nullptr;
char g_begun, g_ended;  // what was done before a block, and by blocks of a launch
std::vector<std::unique_ptr<char[]>> g_stacks;
#ifdef MAMBAC_WATCH_RACES
std::vector<void*> g_sanitizer_fibers;  // kept: they are expensive
#endif

[[noreturn]] void stop(const char* what, const char* detail) {
  fprintf(stderr, "emulation: block %lld,%d: %s%s\n", (long long)g->x, g->y, what, detail);
  abort();
}

void to_scheduler(Fiber& f, bool last) {
  g->running = -1;
#ifdef MAMBAC_WATCH_RACES
  __tsan_switch_to_fiber(g->scheduler_sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &f.fake_stack, g->scheduler_stack, g->scheduler_stack_size);
#endif
  SWITCH(f, g->scheduler, true);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(f.fake_stack, nullptr, nullptr);
#endif
  (void)last;
}
void to_fiber(Fiber& f) {
  g->running = f.index;
#ifdef MAMBAC_WATCH_RACES
  __tsan_switch_to_fiber(f.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&g->scheduler_fake_stack, g_stacks[(size_t)f.index].get(), kStack);
#endif
  const bool started = f.started;
  f.started = true;
  SWITCH(g->scheduler, f, started);
  (void)started;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(g->scheduler_fake_stack, nullptr, nullptr);
#endif
}
void entry() {
  Fiber& f = g->fibers[(size_t)g->running];
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &g->scheduler_stack, &g->scheduler_stack_size);
#endif
  ACQUIRE(&g_begun);
  g->body(g->call);
  RELEASE(&g_ended);
  f.done = true;
  to_scheduler(f, true);
  stop("a finished thread was resumed", "");
}

// Waits until all expected fibers are here. Two turns of values are kept: no fiber can be two meetings ahead of another.
int meet(Meeting& m, const char* kind, bool b) {
  Fiber& f = g->fibers[(size_t)g->running];
  const int slot = (int)(m.turn & 1);
  if (m.arrived == 0) {
    m.kind = kind;
    m.any[slot] = false;
  } else if (strcmp(m.kind, kind) != 0) {
    stop("threads of one warp or block meet at different places: ", kind);
  }
  m.any[slot] |= b;
  if (++m.arrived == m.expected) {
    m.arrived = 0;
    m.turn++;
  } else {
    f.waits = &m;
    f.since = m.turn;
    to_scheduler(f, false);
  }
  return slot;
}
Meeting& my_warp() { return g->warps[(size_t)(g->running / 32)]; }

int barrier(Meeting& m, const char* kind, bool b) {
  char* order = m.order + (m.turn & 1);
  RELEASE(order);
  const int slot = meet(m, kind, b);
  ACQUIRE(order);
  return slot;
}
// A meeting of `expected` fibers at addresses that no meeting has had for long.
Meeting new_meeting(int expected) {
  static char room[1 << 17];
  static size_t at = 0;
  at = (at + 2) % sizeof room;
  Meeting m = {};
  m.expected = expected;
  m.order = room + at;
  return m;
}

uint64_t g_random = 1;
size_t pick(size_t n) {
  g_random = g_random * 6364136223846793005ull + 1442695040888963407ull;
  return (size_t)((g_random >> 33) % n);
}

void run_block() {
  const int n = g->threads;
  g->fibers.resize((size_t)n);
  for (int i = 0; i < n / 32; i++) g->warps.push_back(new_meeting(32));
  g->whole = new_meeting(n);
  while (g_stacks.size() < (size_t)n) g_stacks.emplace_back(new char[kStack]);
#ifdef MAMBAC_WATCH_RACES
  g->scheduler_sanitizer = __tsan_get_current_fiber();
#endif
  RELEASE(&g_begun);
  for (int i = 0; i < n; i++) {
    Fiber& f = g->fibers[(size_t)i];
    f.index = i;
    f.started = f.done = false;
    f.waits = nullptr;
    f.fake_stack = nullptr;
#ifdef MAMBAC_WATCH_RACES
    if (g_sanitizer_fibers.size() <= (size_t)i) g_sanitizer_fibers.push_back(__tsan_create_fiber(0));
    f.sanitizer = g_sanitizer_fibers[(size_t)i];
#endif
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = g_stacks[(size_t)i].get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
  }
  int left = n;
  while (left > 0) {
    bool moved = false;
    for (int i = 0; i < n; i++) {
      const int at = emulation.order == 0 ? i : emulation.order == 1 ? n - 1 - i : (int)pick((size_t)n);
      Fiber& f = g->fibers[(size_t)at];
      if (f.done || (f.waits != nullptr && f.waits->turn == f.since)) continue;
      f.waits = nullptr;
      to_fiber(f);
      moved = true;
      if (f.done) left--;
    }
    if (!moved && emulation.order == 2) {  // chance may have picked waiting fibers only
      for (Fiber& f : g->fibers) moved |= !f.done && (f.waits == nullptr || f.waits->turn != f.since);
    }
    if (!moved) stop("threads wait for others that never come: ", g->whole.arrived > 0 ? "block barrier" : "warp");
  }
}

// Shared memory, filled with NaN. Where races are watched every block of a launch has its own and keeps it: the next block's
// threads would seem to race with this one's.
struct SharedMemory {
  std::vector<void*> held;
  char* take(size_t bytes) {
    if (bytes == 0) return nullptr;
    const size_t room = (bytes + 15) & ~(size_t)15;
    void* p = aligned_alloc(16, room);
    memset(p, 0xff, room);
    held.push_back(p);
    return (char*)p;
  }
  void block_ends() {
#ifndef MAMBAC_WATCH_RACES
    launch_ends();
#endif
  }
  void launch_ends() {
    for (void* p : held) free(p);
    held.clear();
  }
};

}  // namespace

int run_grid(void (*body)(void*), void* call, const Grid& grid) {
  emulation.launches++;
  emulation.error = grid.x < 1 || grid.x > kMostBlocksX || grid.y < 1 || grid.y > kMostBlocksY ? "grid size"
                    : grid.threads < 32 || grid.threads > 1024 || grid.threads % 32 != 0 ? "block size"
                    : grid.shared > (size_t)emulation.device.shared_bytes ? "shared memory"
                                                                          : "";
  if (emulation.error[0] != 0) return kErrorInvalidValue;
  SharedMemory shared;
  for (int y = 0; y < grid.y; y++)
    for (int64_t x = emulation.only_last > 0 && grid.x > emulation.only_last ? grid.x - emulation.only_last : 0; x < grid.x; x++) {
      emulation.blocks++;
      Block block = {};
      block.x = x;
      block.blocks = grid.x;
      block.y = y;
      block.threads = grid.threads;
      block.shared = shared.take(grid.shared);
      block.body = body;
      block.call = call;
      block.running = -1;
      g = &block;
      run_block();
      shared.block_ends();
      g = nullptr;
    }
  ACQUIRE(&g_ended);
  shared.launch_ends();
  return 0;
}

int thread_index() { return g->running; }
int threads() { return g->threads; }
int64_t block_x() { return g->x; }
int64_t blocks_x() { return g->blocks; }
int block_y() { return g->y; }
char* shared_memory() { return g->shared; }

void sync_block() { barrier(g->whole, "sync_block", false); }
void sync_warp() { barrier(my_warp(), "sync_warp", false); }
bool any_in_block(bool b) {
  Meeting& m = g->whole;
  return m.any[barrier(m, "any_in_block", b)];
}
bool any_in_warp(bool b) {
  Meeting& m = my_warp();
  return m.any[meet(m, "any_in_warp", b)];
}
uint32_t shuffle_bits(uint32_t bits, int lane, const char* kind) {
  Meeting& m = my_warp();
  m.values[m.turn & 1][g->running % 32] = bits;
  return m.values[meet(m, kind, false)][lane];
}
unsigned ballot(bool b) {
  Meeting& m = my_warp();
  m.values[m.turn & 1][g->running % 32] = b ? 1u : 0u;
  const int slot = meet(m, "ballot", false);
  unsigned all = 0;
  for (int i = 0; i < 32; i++) all |= m.values[slot][i] << i;
  return all;
}

uint32_t half_bits(float f) { return reference::half_bits((double)f); }
float half_value(uint32_t h) { return (float)reference::half_value((uint16_t)h); }
float rough(double exact) {
  uint64_t bits;
  memcpy(&bits, &exact, 8);
  const double noise = ((double)((bits * 0x9e3779b97f4a7c15ull) >> 40) * 0x1p-24 - 0.5) * 0x1p-21;  // below 2^-22
  return flush((float)(exact * (1 + noise)));
}

int current_device(Device* d) {
  *d = emulation.device;
  return 0;
}
int allocate_on_stream(void** p, size_t bytes, void*) {
  *p = malloc(bytes);
  return 0;
}
int free_on_stream(void* p, void*) {
  free(p);
  return 0;
}
int copy_on_device(void* to, const void* from, size_t bytes, void*) {
  memcpy(to, from, bytes);
  return 0;
}
const char* error_text(int) { return emulation.error; }

}  // namespace cuda
}  // namespace mambac
