// What the kernels use of CUDA, each thing once. With MAMBAC_CUDA_EMULATION the same kernels compile for the host and every
// thread of a block really runs there (tests/cuda_emulation.h).
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "mambac/scan.h"

namespace mambac {
namespace cuda {

// The blocks and threads of a launch, and the bytes of shared memory of a block.
struct Grid {
  int64_t x;
  int y, threads;
  size_t shared;
};
constexpr int64_t kMostBlocksX = 2147483647;
constexpr int kMostBlocksY = 65535;
// What launches depend on, of the current device.
struct Device {
  int multiprocessors, shared_bytes;  // shared_bytes: the most a block may have
};
constexpr int kErrorInvalidValue = 1;  // cudaErrorInvalidValue

}  // namespace cuda
}  // namespace mambac

#ifdef MAMBAC_CUDA_EMULATION
#include "cuda_emulation.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define MAMBAC_DEVICE static __device__ __forceinline__
#define MAMBAC_DEVICE_MEMBER __device__ __forceinline__
// At most `threads` threads a block; registers are capped so that `blocks` of them fit on one multiprocessor.
#define MAMBAC_KERNEL(threads, blocks) static __global__ void __launch_bounds__(threads, blocks)

namespace mambac {
namespace cuda {

constexpr unsigned kWarp = 32, kAllLanes = 0xffffffffu;

MAMBAC_DEVICE int thread_index() { return (int)threadIdx.x; }
MAMBAC_DEVICE int threads() { return (int)blockDim.x; }
MAMBAC_DEVICE int64_t block_x() { return (int64_t)blockIdx.x; }
MAMBAC_DEVICE int64_t blocks_x() { return (int64_t)gridDim.x; }
MAMBAC_DEVICE int block_y() { return (int)blockIdx.y; }
MAMBAC_DEVICE void sync_block() { __syncthreads(); }
MAMBAC_DEVICE void sync_warp() { __syncwarp(); }
MAMBAC_DEVICE bool any_in_block(bool b) { return __syncthreads_or(b) != 0; }  // a barrier too
MAMBAC_DEVICE bool any_in_warp(bool b) { return __any_sync(kAllLanes, b) != 0; }
MAMBAC_DEVICE unsigned ballot(bool b) { return __ballot_sync(kAllLanes, b); }
template <class T>
MAMBAC_DEVICE T shuffle(T v, int lane) {
  return __shfl_sync(kAllLanes, v, lane);
}
// From a lane of the kLanes neighbours (a power of two) that this one is among. A lane known to the compiler costs no address.
template <int kLanes, class T>
MAMBAC_DEVICE T shuffle_among(T v, int lane) {
  return __shfl_sync(kAllLanes, v, lane, kLanes);
}
template <class T>
MAMBAC_DEVICE T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(kAllLanes, v, mask);
}
// The block's dynamic shared memory.
MAMBAC_DEVICE char* shared_memory() {
  extern __shared__ uint4 mambac_shared[];
  return (char*)mambac_shared;
}

MAMBAC_DEVICE float as_float(uint32_t u) { return __uint_as_float(u); }
MAMBAC_DEVICE uint32_t as_bits(float f) { return __float_as_uint(f); }
MAMBAC_DEVICE uint32_t half_bits(float f) { return __half_as_ushort(__float2half_rn(f)); }
MAMBAC_DEVICE float half_value(uint32_t h) { return __half2float(__ushort_as_half((unsigned short)h)); }
// Two halves in one word, the first in the low half.
MAMBAC_DEVICE uint32_t half_pair(float low, float high) {
  const __half2 h = __floats2half2_rn(low, high);
  uint32_t u;
  memcpy(&u, &h, 4);
  return u;
}
MAMBAC_DEVICE __half2 pair_of(uint32_t u) {
  __half2 h;
  memcpy(&h, &u, 4);
  return h;
}
MAMBAC_DEVICE uint32_t word_of(__half2 h) {
  uint32_t u;
  memcpy(&u, &h, 4);
  return u;
}
MAMBAC_DEVICE uint32_t half_pair_max(uint32_t a, uint32_t b) { return word_of(__hmax2(pair_of(a), pair_of(b))); }
MAMBAC_DEVICE uint32_t half_pair_min(uint32_t a, uint32_t b) { return word_of(__hmin2(pair_of(a), pair_of(b))); }

// Also where `a` is subnormal, in builds that flush those, too.
MAMBAC_DEVICE float fma_subnormal(float a, float b, float c) { return __fmaf_ieee_rn(a, b, c); }
MAMBAC_DEVICE float fma_clamped(float a, float b, float c) { return __saturatef(__fmaf_rn(a, b, c)); }  // to [0, 1], NaN to 0
MAMBAC_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }  // never part of a multiply-add
MAMBAC_DEVICE float quotient(float a, float b) { return __fdiv_rn(a, b); }  // to the nearest, whatever is compiled with

// Relative error below 2^-22; subnormal arguments and results are zero.
MAMBAC_DEVICE float fast_sqrt(float f) {
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(f));
  return r;
}
MAMBAC_DEVICE float fast_reciprocal(float f) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(f));
  return r;
}
MAMBAC_DEVICE float fast_exp2(float f) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(f));
  return r;
}

MAMBAC_DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// A failure is reported once: left in place, the next to ask the runtime for errors would take it for its own.
static inline int reported(cudaError_t e) {
  if (e != cudaSuccess) (void)cudaGetLastError();
  return (int)e;
}

static inline int current_device(Device* d) {
  int at = 0;
  cudaError_t e = cudaGetDevice(&at);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&d->multiprocessors, cudaDevAttrMultiProcessorCount, at);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&d->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, at);
  return reported(e);
}

// A kernel's launch; arguments travel by value. Returns a CUDA error code.
template <class Arguments>
static inline int launch(void (*kernel)(Arguments), const Grid& g, void* stream, Arguments arguments) {
  if (g.x < 1 || g.x > kMostBlocksX || g.y < 1 || g.y > kMostBlocksY) return kErrorInvalidValue;  // dim3 would cut them short
  if (g.shared > 48 * 1024) {
    // Always the most a block may have: a call with less, from another thread, must not take it away before this one's launch.
    Device d;
    if (const int e = current_device(&d)) return e;
    const cudaError_t e = cudaFuncSetAttribute((const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, d.shared_bytes);
    if (e != cudaSuccess) return reported(e);
  }
  void* list[] = {&arguments};
  return reported(cudaLaunchKernel((const void*)kernel, dim3((unsigned)g.x, (unsigned)g.y), dim3((unsigned)g.threads), list, g.shared,
                                   (cudaStream_t)stream));
}
static inline int copy_on_device(void* to, const void* from, size_t bytes, void* stream) {
  return reported(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, (cudaStream_t)stream));
}
// Memory for work on one stream, ordered with it.
static inline int allocate_on_stream(void** p, size_t bytes, void* stream) {
  return reported(cudaMallocAsync(p, bytes, (cudaStream_t)stream));
}
static inline int free_on_stream(void* p, void* stream) { return reported(cudaFreeAsync(p, (cudaStream_t)stream)); }
static inline const char* error_text(int code) { return cudaGetErrorString((cudaError_t)code); }

}  // namespace cuda
}  // namespace mambac
#endif
