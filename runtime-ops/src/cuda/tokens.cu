#include "tokens.h"
#include "launch.h"

namespace mambac {
namespace cuda {
namespace {

template <class T, bool kMamba1, int kLanes, int kRows>
bool pick(const ScanArgs& a, Choice* out) {
  const bool packed = a.format == Format::kH8 || a.format == Format::kH4;
  return pick_rows(scan_tokens<T, kMamba1, kLanes, kRows, 512, 1>, kLanes, kRows, packed ? 16 : 2, packed, a, out);
}

template <class T>
bool pick_by_states(const ScanArgs& a, Choice* out) {
  if (a.family == Family::kMamba1) return a.d_state == 16 && a.heads % a.groups == 0 && pick<T, true, 2, 2>(a, out);
  if (a.d_state == 64) return pick<T, false, 8, 4>(a, out);
  if (a.d_state == 128) return pick<T, false, 16, 4>(a, out);
  return a.d_state == 256 && pick<T, false, 32, 4>(a, out);
}

}  // namespace

bool pick_tokens(const ScanArgs& a, Choice* out) { return a.half ? pick_by_states<uint16_t>(a, out) : pick_by_states<float>(a, out); }

}  // namespace cuda
}  // namespace mambac
