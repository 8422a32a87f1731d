// Rows times an orthonormal Hadamard matrix of order m 2^k: butterflies over the power of two, then the dense factor.
#include "launch.h"

namespace mambac {
namespace cuda {
namespace {

constexpr int kHadamardThreads = 256;

// A block a row, which lies in shared memory. x and y may be one buffer: a row is read whole before it is written.
MAMBAC_KERNEL(kHadamardThreads, 4) hadamard_rows(HadamardArgs a) {
  float* v = (float*)shared_memory();
  const int n = a.order * a.power;
  for (int64_t row = block_x(); row < a.rows; row += blocks_x()) {
    const float* x = a.x + row * n;
    float* y = a.y + row * n;
    for (int i = thread_index(); i < n; i += threads()) v[i] = x[i];
    sync_block();
    for (int step = 1; step < a.power; step *= 2) {
      for (int i = thread_index(); i < n / 2; i += threads()) {
        const int low = i / step * 2 * step + i % step;
        const float p = v[low], q = v[low + step];
        v[low] = p + q;
        v[low + step] = p - q;
      }
      sync_block();
    }
    for (int i = thread_index(); i < n; i += threads()) {
      const int r = i / a.power, at = i % a.power;
      float sum = 0.0f;
      for (int j = 0; j < a.order; j++)
        sum = fmaf(a.order == 1 ? 1.0f : a.factor[a.transposed ? r * a.order + j : j * a.order + r], v[j * a.power + at], sum);
      y[i] = sum * a.scale;
    }
    sync_block();
  }
}

}  // namespace

int launch_hadamard(HadamardArgs a, void* stream) {
  if (a.rows == 0) return 0;
  Device d;
  if (const int e = current_device(&d)) return e;
  const int64_t n = (int64_t)a.order * a.power, most = 16 * (int64_t)d.multiprocessors;
  if (n * 4 > d.shared_bytes) return kErrorInvalidValue;
  a.scale = (float)(1.0 / sqrt((double)n));
  const Grid grid = {a.rows < most ? a.rows : most, 1, kHadamardThreads, (size_t)n * 4};
  return launch(hadamard_rows, grid, stream, a);
}

}  // namespace cuda
}  // namespace mambac
