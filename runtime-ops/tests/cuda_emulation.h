// Runs the CUDA kernels on the host: src/cuda/device.h includes this instead of CUDA when MAMBAC_CUDA_EMULATION is set.
//
// Every CUDA thread is a fiber with a stack of its own; blocks run one after another. A barrier or shuffle suspends a fiber
// until all threads concerned have arrived, and fibers are resumed in an order the test chooses, so a kernel that relies on
// an order gives different bits. A thread that ends, or waits elsewhere, while others wait for it stops the program: what
// would hang a device is an error here. Shared memory is a heap block of exactly the size asked for, filled with NaN before
// each block, so AddressSanitizer sees every overrun. Under ThreadSanitizer only barriers order memory accesses (shuffles do
// not, as on a device), each for itself, and nothing orders the blocks of a launch: missing barriers are reported as races,
// and so are blocks that touch each other's data, unless it is threads of one number that do.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define MAMBAC_DEVICE static inline
#define MAMBAC_DEVICE_MEMBER inline
#define MAMBAC_KERNEL(threads, blocks) static inline void

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
static inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace mambac {
namespace cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// The fiber that runs now, and what it may ask of its block. Defined in cuda_emulation.cc.
int thread_index();
int threads();
int64_t block_x();
int64_t blocks_x();
int block_y();
char* shared_memory();
void sync_block();
void sync_warp();
bool any_in_block(bool b);
bool any_in_warp(bool b);
unsigned ballot(bool b);
uint32_t shuffle_bits(uint32_t bits, int lane, const char* kind);
template <class T>
static inline T exchanged(T v, int lane, const char* kind) {
  static_assert(sizeof(T) == 4, "32-bit values");
  uint32_t bits;
  memcpy(&bits, &v, 4);
  bits = shuffle_bits(bits, lane, kind);
  memcpy(&v, &bits, 4);
  return v;
}
template <class T>
static inline T shuffle(T v, int lane) {
  return exchanged(v, lane & 31, "shuffle");
}
template <int kLanes, class T>
static inline T shuffle_among(T v, int lane) {
  return exchanged(v, thread_index() % 32 / kLanes * kLanes + lane, "shuffle_among");
}
template <class T>
static inline T shuffle_xor(T v, int mask) {
  return exchanged(v, (thread_index() % 32) ^ mask, "shuffle_xor");
}

static inline float as_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline uint32_t as_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
uint32_t half_bits(float f);
float half_value(uint32_t h);
static inline uint32_t half_pair(float low, float high) { return half_bits(low) | half_bits(high) << 16; }
static inline uint32_t half_pair_max(uint32_t a, uint32_t b) {
  return half_pair(fmaxf(half_value(a & 0xffffu), half_value(b & 0xffffu)), fmaxf(half_value(a >> 16), half_value(b >> 16)));
}
static inline float fma_subnormal(float a, float b, float c) { return fmaf(a, b, c); }
static inline float fma_clamped(float a, float b, float c) {
  const float v = fmaf(a, b, c);
  return v > 0.0f ? fminf(v, 1.0f) : 0.0f;
}
static inline float product(float a, float b) { return a * b; }
static inline float quotient(float a, float b) { return a / b; }
// As rough as the device's approximations may be: off by up to 2^-22, differently for different arguments, and flushing.
float rough(double exact);
static inline float flush(float f) { return fabsf(f) < 0x1p-126f ? 0.0f : f; }
static inline float fast_sqrt(float f) { return rough(sqrt((double)flush(f))); }
static inline float fast_reciprocal(float f) { return rough(1.0 / (double)flush(f)); }
static inline float fast_exp2(float f) { return rough(exp2((double)f)); }

static inline void prefetch(const void*) {}

int current_device(Device* d);
int allocate_on_stream(void** p, size_t bytes, void* stream);
int free_on_stream(void* p, void* stream);
int copy_on_device(void* to, const void* from, size_t bytes, void* stream);
const char* error_text(int code);

// What tests set and read.
struct Emulation {
  Device device;
  int order;          // of fibers: 0 forward, 1 backward, 2 random at every switch
  const char* error;  // of the last launch that was not possible
  void* stream;       // of the last launch
  long launches, blocks;
  int64_t only_last;  // blocks in x of every launch that run, counted from its end; 0: all
};
extern Emulation emulation;
int run_grid(void (*body)(void* call), void* call, const Grid& grid);

template <class Arguments>
static inline int launch(void (*kernel)(Arguments), const Grid& grid, void* stream, Arguments arguments) {
  emulation.stream = stream;
  struct Call {
    void (*kernel)(Arguments);
    Arguments arguments;
  } call = {kernel, arguments};
  return run_grid([](void* c) { ((Call*)c)->kernel(((Call*)c)->arguments); }, &call, grid);
}

}  // namespace cuda
}  // namespace mambac
