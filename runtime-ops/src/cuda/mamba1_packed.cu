#include "decode_packed.h"
#include "launch.h"

namespace mambac {
namespace cuda {
namespace {

template <class T, class Codes, bool kMaxNorm>
bool pick(const ScanArgs& a, const Device& d, Choice* out) {
  const PackedKernel k = {decode_packed<T, true, Codes, kMaxNorm, 2, 4, false, 256, 2>, 2, 4, 256};
  return pick_packed(k, a, d, out);
}

template <class T>
bool pick_by_format(const ScanArgs& a, const Device& d, Choice* out) {
  if (a.format == Format::kH8) return a.max_norm ? pick<T, Codes8, true>(a, d, out) : pick<T, Codes8, false>(a, d, out);
  return a.max_norm ? pick<T, Codes4, true>(a, d, out) : pick<T, Codes4, false>(a, d, out);
}

}  // namespace

// A warp takes 64 channels of 16 states. Each pseudo-head must lie in one group of B and C.
bool pick_mamba1_packed(const ScanArgs& a, const Device& d, Choice* out) {
  if (a.d_state != 16 || a.heads % a.groups != 0) return false;
  return a.half ? pick_by_format<uint16_t>(a, d, out) : pick_by_format<float>(a, d, out);
}

}  // namespace cuda
}  // namespace mambac
