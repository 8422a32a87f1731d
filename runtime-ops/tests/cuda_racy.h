// Kernels that are wrong: what a build for the thread sanitizer must report, so that its silence about others means something.
#pragma once
#include "../src/cuda/device.h"

namespace racy {

using namespace mambac::cuda;

struct Arguments {
  float* out;
};
// A barrier is missing between what neighbours read and what is written.
MAMBAC_KERNEL(64, 1) without_barrier(Arguments a) {
  float* v = (float*)shared_memory();
  const int t = thread_index();
  v[t] = (float)t;
  sync_block();
  const float next = v[(t + 1) % threads()];
  v[t] = next + 1.0f;
  sync_block();
  a.out[block_x() * threads() + t] = v[t];
}
// Threads of two blocks write one number.
MAMBAC_KERNEL(64, 1) across_blocks(Arguments a) {
  if (thread_index() == (int)block_x()) a.out[0] = 1.0f;
}

inline int run(bool barrier) {
  float out[128] = {};
  const Arguments a = {out};
  return launch(barrier ? without_barrier : across_blocks, {2, 1, 64, 64 * 4}, nullptr, a);
}

}  // namespace racy
