#include "isa.h"

#ifdef MAMBAC_X64
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace mambac {
namespace {
#include "vec_avx2.h"
#include "fixed_avx2.h"
#include "words_avx2.h"
#include "kernel_bodies.h"
}  // namespace
extern const Kernels kAvx2Kernels = {"avx2", mamba2_prepare, mamba2_task<ExactRow>, mamba1_task, conv_task, replay_prepare, replay_task<NibbleDot>, replay_finish, hadamard_task, gate_task, static_prepare<FixedRow>, static_token<FixedRow>, static_prefill, widen_halves, narrow_halves, encode_codes};
}  // namespace mambac

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif
