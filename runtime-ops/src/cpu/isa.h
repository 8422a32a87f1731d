// What every instruction set's file includes before it opens its target: C headers only. Nothing that is compiled for a
// wider target may be an inline function with external linkage, or the linker could hand it to the narrower code.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "mambac/scan.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define MAMBAC_INLINE static __forceinline
#define MAMBAC_MEMBER __forceinline
#define MAMBAC_APART static __declspec(noinline)
#define MAMBAC_PREFETCH(p) ((void)(p))
#define MAMBAC_PREFETCH_READ(p) ((void)(p))
#else
#define MAMBAC_INLINE static inline __attribute__((always_inline))
#define MAMBAC_MEMBER inline __attribute__((always_inline))
#define MAMBAC_APART static __attribute__((noinline))
#define MAMBAC_PREFETCH(p) __builtin_prefetch((p), 1, 3)
#define MAMBAC_PREFETCH_READ(p) __builtin_prefetch((p), 0, 3)
#endif

#if defined(__clang__)
#define MAMBAC_UNROLL _Pragma("clang loop unroll(enable)")
#define MAMBAC_UNROLL16 _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define MAMBAC_UNROLL _Pragma("GCC unroll 8")
#define MAMBAC_UNROLL16 _Pragma("GCC unroll 16")
#else
#define MAMBAC_UNROLL
#define MAMBAC_UNROLL16
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define MAMBAC_X64 1
#include <immintrin.h>
#endif

namespace mambac {
extern const Kernels kPortableKernels;
#ifdef MAMBAC_X64
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512VnniKernels;
#endif
}  // namespace mambac
