#include "replay.h"
#include "launch.h"

namespace mambac {
namespace cuda {
namespace {

template <class T, class Codes, int kLanes, int kRows>
bool pick_decode(const ScanArgs& a, const Device& d, Choice* out) {
  const PackedKernel k = {decode_replay<T, Codes, kLanes, kRows>, kLanes, kRows, 512};
  if (!pick_packed(k, a, d, out)) return false;
  out->grid.shared = 4 * (kMostReplay + 4);
  return true;
}
// As for states that are rounded at every token: eight rows a lane where there are many heads.
template <class T, class Codes, int kLanes>
bool pick_by_size(const ScanArgs& a, const Device& d, Choice* out) {
  const bool few = a.batch * a.heads < 2 * (int64_t)d.multiprocessors;
  if (!few && pick_decode<T, Codes, kLanes, 8>(a, d, out)) return true;
  return pick_decode<T, Codes, kLanes, 4>(a, d, out);
}
// `round`: what follows one token.
template <class T, class Codes, bool kMaxNorm, int kLanes>
bool pick(const ScanArgs& a, const Device& d, bool round, Choice* out) {
  if (a.length > 1) return pick_rows(tokens_replay<T, Codes, kMaxNorm, kLanes, 4>, kLanes, 4, 16, true, a, out);
  if (!round) return pick_by_size<T, Codes, kLanes>(a, d, out);
  const PackedKernel k = {round_replay<T, Codes, kMaxNorm, kLanes, 4>, kLanes, 4, 512};
  return pick_packed(k, a, d, out);
}
template <class T, class Codes, bool kMaxNorm>
bool pick_by_states(const ScanArgs& a, const Device& d, bool round, Choice* out) {
  if (a.d_state == 64) return pick<T, Codes, kMaxNorm, 8>(a, d, round, out);
  if (a.d_state == 128) return pick<T, Codes, kMaxNorm, 16>(a, d, round, out);
  return a.d_state == 256 && pick<T, Codes, kMaxNorm, 32>(a, d, round, out);
}
template <class T>
bool pick_as(const ScanArgs& a, const Device& d, bool round, Choice* out) {
  if (a.format == Format::kH8) return a.max_norm ? pick_by_states<T, Codes8, true>(a, d, round, out) : pick_by_states<T, Codes8, false>(a, d, round, out);
  return a.max_norm ? pick_by_states<T, Codes4, true>(a, d, round, out) : pick_by_states<T, Codes4, false>(a, d, round, out);
}

bool pick_by_format(const ScanArgs& a, const Device& d, bool round, Choice* out) {
  return a.half ? pick_as<uint16_t>(a, d, round, out) : pick_as<float>(a, d, round, out);
}

}  // namespace

// Both kernels of one token, or neither.
bool pick_replay(const ScanArgs& a, const Device& d, Choice* out) {
  Choice round;
  return pick_by_format(a, d, true, &round) && pick_by_format(a, d, false, out);
}
int launch_replay_round(const ScanArgs& a, const Device& d, void* stream) {
  Choice round;
  return pick_by_format(a, d, true, &round) ? launch(round.kernel, round.grid, stream, a) : kErrorInvalidValue;
}

}  // namespace cuda
}  // namespace mambac
