#include "decode_plain.h"
#include "launch.h"

namespace mambac {
namespace cuda {
namespace {

template <class T, bool kMamba1, int kLanes>
bool pick(const ScanArgs& a, Choice* out) {
  void (*floats)(ScanArgs) = decode_plain<T, kMamba1, FloatRows<kLanes>, kLanes, 4, 128, 5>;
  void (*halves)(ScanArgs) = decode_plain<T, kMamba1, HalfRows<kLanes>, kLanes, 4, 128, 5>;
  return pick_rows(a.format == Format::kF32 ? floats : halves, kLanes, 4, 4, false, a, out);
}

template <class T>
bool pick_by_states(const ScanArgs& a, Choice* out) {
  if (a.family == Family::kMamba1) return a.d_state == 16 && a.heads % a.groups == 0 && pick<T, true, 2>(a, out);
  if (a.d_state == 64) return pick<T, false, 8>(a, out);
  if (a.d_state == 128) return pick<T, false, 16>(a, out);
  return a.d_state == 256 && pick<T, false, 32>(a, out);
}

}  // namespace

bool pick_plain(const ScanArgs& a, Choice* out) { return a.half ? pick_by_states<uint16_t>(a, out) : pick_by_states<float>(a, out); }

}  // namespace cuda
}  // namespace mambac
