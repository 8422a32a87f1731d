#include "tokens.h"
#include "launch.h"

namespace mambac {
namespace cuda {
namespace {

template <bool kMamba1, int kLanes, int kRows>
bool pick(const ScanArgs& a, Choice* out) {
  const bool packed = a.format == Format::kH8 || a.format == Format::kH4;
  return pick_rows(scan_tokens<kMamba1, kLanes, kRows, 512, 1>, kLanes, kRows, packed ? 16 : 2, packed, a, out);
}

}  // namespace

bool pick_tokens(const ScanArgs& a, Choice* out) {
  if (a.family == Family::kMamba1) return a.d_state == 16 && a.heads % a.groups == 0 && pick<true, 2, 2>(a, out);
  if (a.d_state == 64) return pick<false, 8, 4>(a, out);
  if (a.d_state == 128) return pick<false, 16, 4>(a, out);
  return a.d_state == 256 && pick<false, 32, 4>(a, out);
}

}  // namespace cuda
}  // namespace mambac
