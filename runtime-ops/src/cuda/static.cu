#include "static.h"
#include "launch.h"

namespace mambac {
namespace cuda {
namespace {

constexpr int kThreads = 128, kBlocks = 4;

template <class T, class Codes, int kStates, int kRows>
bool pick(const ScanArgs& a, const Device& d, Choice* out) {
  typedef StaticDecode<T, Codes, kStates / 16, kRows> Decode;
  if (a.head_dim % Decode::Tile::kWarpRows != 0) return false;
  out->kernel = decode_static<T, Codes, kStates / 16, kRows, kThreads, kBlocks>;
  const int64_t batches = a.batch * a.heads * (a.head_dim / Decode::Tile::kWarpRows);
  const bool few = batches < (int64_t)d.multiprocessors * (kThreads / 32);
  if (few && kRows == 8) return false;  // half the rows a warp, and a warp a block
  const int threads = few ? 32 : kThreads;
  const int64_t blocks = ceil_div(batches, threads / 32), resident = (int64_t)d.multiprocessors * kBlocks;
  out->grid.x = blocks < resident ? blocks : resident;
  out->grid.y = 1;
  out->grid.threads = threads;
  out->grid.shared = 0;
  return true;
}
// Eight rows a lane of 4-bit codes, where there are many; 8-bit codes take twice the registers and bring twice the bytes.
template <class T, class Codes, int kStates>
bool pick_by_size(const ScanArgs& a, const Device& d, Choice* out) {
  if (a.length > 1) return pick_rows(tokens_static<T, Codes, kStates / 8, 4>, kStates / 8, 4, 4, false, a, out);
  if constexpr (Codes::kRowBytes == 4)
    if (pick<T, Codes, kStates, 8>(a, d, out)) return true;
  return pick<T, Codes, kStates, 4>(a, d, out);
}
template <class T, class Codes>
bool pick_by_states(const ScanArgs& a, const Device& d, Choice* out) {
  if (a.d_state == 64) return pick_by_size<T, Codes, 64>(a, d, out);
  if (a.d_state == 128) return pick_by_size<T, Codes, 128>(a, d, out);
  return a.d_state == 256 && pick_by_size<T, Codes, 256>(a, d, out);
}

template <class T>
bool pick_by_format(const ScanArgs& a, const Device& d, Choice* out) {
  return a.format == Format::kH8 ? pick_by_states<T, Codes8>(a, d, out) : pick_by_states<T, Codes4>(a, d, out);
}

}  // namespace

bool pick_static(const ScanArgs& a, const Device& d, Choice* out) {
  if (!aligned16(a.column_step) || a.head_dim > 1 << 22) return false;
  return a.half ? pick_by_format<uint16_t>(a, d, out) : pick_by_format<float>(a, d, out);
}

}  // namespace cuda
}  // namespace mambac
