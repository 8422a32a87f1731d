#include "launch.h"
#include "replay_rings.h"

namespace mambac {
namespace cuda {
namespace {

constexpr int kFinishThreads = 128;

// b and the count of every sequence after the call, a block a sequence.
template <class T>
MAMBAC_KERNEL(kFinishThreads, 8) replay_finish(ScanArgs a) {
  for (int64_t task = block_x(); task < a.batch; task += blocks_x()) {
    const ReplaySequence q(a, task);
    sync_block();  // every thread has read the count
    if (!q.good) {
      if (q.moved) copy_bytes(q.past + q.at.b, q.present + q.at.b, q.at.bytes - q.at.b);
      continue;
    }
    const int first = q.first(), slots = q.last(a) - first;
    for (int64_t i = thread_index(); i < a.groups * slots * a.d_state; i += threads()) {
      const int64_t n = i % a.d_state, row = i / a.d_state, group = row / slots;
      const int j = first + (int)(row % slots);
      const int64_t place = q.b(a, group, j) + 2 * n;
      uint32_t bits = 0;
      if (j < q.kept)
        bits = (uint32_t)q.past[place] | (uint32_t)q.past[place + 1] << 8;
      else if (j < q.after)
        bits = ring_half(get(B_of<T>(a) + (q.token(a, j) * a.groups + group) * a.d_state + n));
      put_half(q.present + place, bits);
    }
    if (thread_index() == 0) put_word(q.present + q.at.count, (uint32_t)q.after);
    for (int64_t i = q.at.count + 4 + thread_index(); i < q.at.bytes; i += threads()) q.present[i] = 0;
  }
}

}  // namespace

int launch_replay_finish(const ScanArgs& a, void* stream) {
  const Grid grid = {blocks_for(a.batch, 1), 1, kFinishThreads, 0};
  return a.half ? launch(replay_finish<uint16_t>, grid, stream, a) : launch(replay_finish<float>, grid, stream, a);
}

}  // namespace cuda
}  // namespace mambac
