// The rings of a Replay state: what of them every kernel reads and writes the same way (layout and rule: README.md).
//
// A sequence's count and b belong to all its heads, so kernels of heads only read them and `replay_finish` writes them, in a
// launch behind.
#pragma once
#include "numerics.h"

namespace mambac {
namespace cuda {

// One sequence before and after a call.
struct ReplaySequence {
  const uint8_t* past;
  uint8_t* present;
  ReplayLayout at;
  int64_t batch;
  bool good;        // its count is one that an operator writes
  bool moved;       // past and present are two buffers
  bool rounds;      // the state is rounded in this call
  int count, after;  // tokens in the rings
  int kept;         // slots that stay as they are; those from here to `after` are filled with the call's last tokens
  MAMBAC_DEVICE_MEMBER ReplaySequence(const ScanArgs& a, int64_t b) : at(replay_layout(a)), batch(b) {
    past = (const uint8_t*)a.past + b * at.bytes;
    present = (uint8_t*)a.present + b * at.bytes;
    const uint32_t stored = word_at(past + at.count);
    good = stored < (uint32_t)a.replay;
    moved = past != present;
    count = good ? (int)stored : 0;
    const int64_t all = count + a.length;
    rounds = all >= a.replay;
    after = (int)(all % a.replay);
    kept = rounds ? 0 : count;
  }
  // The token of the call that slot j is filled with.
  MAMBAC_DEVICE_MEMBER int64_t token(const ScanArgs& a, int j) const { return batch * a.length + a.length - after + j; }
  MAMBAC_DEVICE_MEMBER int64_t u(const ScanArgs& a, int64_t head, int j) const { return at.u + 2 * (head * a.replay + j) * a.head_dim; }
  MAMBAC_DEVICE_MEMBER int64_t l(const ScanArgs& a, int64_t head, int j) const { return at.l + 4 * (head * a.replay + j); }
  MAMBAC_DEVICE_MEMBER int64_t b(const ScanArgs& a, int64_t group, int j) const { return at.b + 2 * (group * a.replay + j) * a.d_state; }
  // Slots that a kernel has to write: from the first to before the second.
  MAMBAC_DEVICE_MEMBER int first() const { return moved ? 0 : kept; }
  MAMBAC_DEVICE_MEMBER int last(const ScanArgs& a) const { return moved || rounds ? (int)a.replay : after; }
};

MAMBAC_DEVICE void copy_bytes(const uint8_t* from, uint8_t* to, int64_t count) {
  for (int64_t i = thread_index(); i < count; i += threads()) to[i] = from[i];
}

// u and l of one head after the call, and its checkpoint where it stays but moves. All threads of a block; what they write
// has been read by all.
template <class T>
MAMBAC_DEVICE void replay_slots(const ScanArgs& a, const ReplaySequence& q, int64_t head) {
  const int64_t p = a.head_dim;
  if (q.moved && !q.rounds) copy_bytes(q.past + head * q.at.head, q.present + head * q.at.head, q.at.head);
  const int first = q.first(), last = q.last(a);
  for (int64_t i = thread_index(); i < (last - first) * (p + 1); i += threads()) {  // p values of u and one l a slot
    const int j = first + (int)(i / (p + 1));
    const int64_t c = i % (p + 1), place = c < p ? q.u(a, head, j) + 2 * c : q.l(a, head, j);
    uint32_t bits = 0;
    if (j < q.kept) {
      bits = c < p ? (uint32_t)q.past[place] | (uint32_t)q.past[place + 1] << 8 : word_at(q.past + place);
    } else if (j < q.after) {
      const int64_t token = q.token(a, j);
      const float d = delta_of(get(dt_of<T>(a) + token * a.heads + head) + a.dt_bias[head], a.dt_min, a.dt_max);
      bits = c < p ? ring_half(product(d, get(x_of<T>(a) + (token * a.heads + head) * p + c))) : as_bits(product(d, a.A[head]));
    }
    if (c < p)
      put_half(q.present + place, bits);
    else
      put_word(q.present + place, bits);
  }
}
// A head of a sequence whose count no operator has written: y is not a number, the state passes.
template <class T>
MAMBAC_DEVICE void replay_refuse(const ScanArgs& a, const ReplaySequence& q, int64_t head) {
  const int64_t p = a.head_dim, ring = 2 * a.replay * p;
  for (int64_t i = thread_index(); i < a.length * p; i += threads())
    put(y_of<T>(a) + ((q.batch * a.length + i / p) * a.heads + head) * p + i % p, NAN);
  if (!q.moved) return;
  copy_bytes(q.past + head * q.at.head, q.present + head * q.at.head, q.at.head);
  copy_bytes(q.past + q.u(a, head, 0), q.present + q.u(a, head, 0), ring);
  copy_bytes(q.past + q.l(a, head, 0), q.present + q.l(a, head, 0), 4 * a.replay);
}

}  // namespace cuda
}  // namespace mambac
