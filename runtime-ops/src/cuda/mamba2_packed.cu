#include "decode_packed.h"
#include "launch.h"

namespace mambac {
namespace cuda {
namespace {

template <class T, class Codes, bool kMaxNorm, int kLanes, int kRows>
bool pick(const ScanArgs& a, const Device& d, Choice* out) {
  constexpr bool whole = kRows == 8;
  if (whole && a.head_dim % Tile<kLanes, kRows>::kWarpRows != 0) return false;
  const PackedKernel k = {decode_packed<T, false, Codes, kMaxNorm, kLanes, kRows, whole, 512, 1>, kLanes, kRows, 512};
  return pick_packed(k, a, d, out);
}
// Eight rows a lane amortise what a warp does once; four make twice as many warps, for batches that leave the device idle, and
// for the 8-bit kernels that registers do not hold otherwise.
template <class T, class Codes, bool kMaxNorm, int kLanes>
bool pick_by_size(const ScanArgs& a, const Device& d, Choice* out) {
  const bool few = a.batch * a.heads < 2 * (int64_t)d.multiprocessors;
  if constexpr (Codes::kRowBytes == 4 || !kMaxNorm || kLanes == 16)
    if (!few && pick<T, Codes, kMaxNorm, kLanes, 8>(a, d, out)) return true;
  return pick<T, Codes, kMaxNorm, kLanes, 4>(a, d, out);
}
template <class T, class Codes, bool kMaxNorm>
bool pick_by_states(const ScanArgs& a, const Device& d, Choice* out) {
  if (a.d_state == 64) return pick_by_size<T, Codes, kMaxNorm, 8>(a, d, out);
  if (a.d_state == 128) return pick_by_size<T, Codes, kMaxNorm, 16>(a, d, out);
  return a.d_state == 256 && pick_by_size<T, Codes, kMaxNorm, 32>(a, d, out);
}

template <class T>
bool pick_by_format(const ScanArgs& a, const Device& d, Choice* out) {
  if (a.format == Format::kH8) return a.max_norm ? pick_by_states<T, Codes8, true>(a, d, out) : pick_by_states<T, Codes8, false>(a, d, out);
  return a.max_norm ? pick_by_states<T, Codes4, true>(a, d, out) : pick_by_states<T, Codes4, false>(a, d, out);
}

}  // namespace

bool pick_mamba2_packed(const ScanArgs& a, const Device& d, Choice* out) {
  return a.half ? pick_by_format<uint16_t>(a, d, out) : pick_by_format<float>(a, d, out);
}

}  // namespace cuda
}  // namespace mambac
