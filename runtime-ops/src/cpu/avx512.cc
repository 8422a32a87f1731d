#include "isa.h"

#ifdef MAMBAC_X64
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace mambac {
namespace {
#include "vec_avx512.h"
#include "fixed_avx512.h"
#include "words_avx512.h"
#include "kernel_bodies.h"
}  // namespace
extern const Kernels kAvx512Kernels = {"avx512", mamba2_prepare, mamba2_task<ExactRowOf<false>>, mamba1_task, conv_task, replay_prepare, replay_task<NibbleDot>, replay_finish, hadamard_task, gate_task, static_prepare<FixedRow>, static_token<FixedRow>, static_prefill, widen_halves, narrow_halves, encode_codes};
extern const Kernels kAvx512VnniKernels = {"avx512", mamba2_prepare, mamba2_task<ExactRowOf<true>>, mamba1_task, conv_task, replay_prepare, replay_task<NibbleDotOf<true>>, replay_finish, hadamard_task, gate_task, static_prepare<FixedRowOf<true>>, static_token<FixedRowOf<true>>, static_prefill, widen_halves, narrow_halves, encode_codes};
}  // namespace mambac

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif
