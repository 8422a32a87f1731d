#include "isa.h"

namespace mambac {
namespace {
#include "vec_portable.h"
#include "fixed_portable.h"
#include "words_portable.h"
#include "kernel_bodies.h"
}  // namespace
extern const Kernels kPortableKernels = {"portable", mamba2_prepare, mamba2_task<ExactRow>, mamba1_task, conv_task, replay_prepare, replay_task<NibbleDot>, replay_finish, hadamard_task, gate_task, static_prepare<FixedRow>, static_token<FixedRow>, static_prefill, widen_halves, narrow_halves, encode_codes};
}  // namespace mambac
