// Causal depthwise convolution over the stream (past, x), with SiLU where asked.
#include "launch.h"

namespace mambac {
namespace cuda {
namespace {

constexpr int kConvThreads = 128;

// y at one place of a row without its activation.
template <class T>
MAMBAC_DEVICE float conv_at(const ConvArgs& a, const float* w, float bias, const T* x, const T* past, int64_t l) {
  float sum = bias;
  for (int64_t k = 0; k < a.kernel; k++) {
    const int64_t j = l + k - (a.kernel - 1);
    sum = fmaf(w[k], get(j < 0 ? past + a.width + j : x + j), sum);
  }
  return sum;
}

// One token: a thread a channel. A thread reads all it needs of past before it writes present, which may be past.
template <class T>
MAMBAC_KERNEL(kConvThreads, 8) conv_token(ConvArgs a) {
  const int64_t row = block_x() * threads() + thread_index();
  if (row >= a.batch * a.channels) return;
  const int64_t e = row % a.channels;
  const float* w = a.weight + e * a.kernel;
  const T *x = (const T*)a.x + row, *past = (const T*)a.past + row * a.width, last = *x;
  T* present = (T*)a.present + row * a.width;
  const float sum = conv_at(a, w, a.bias[e], x, past, 0);
  put((T*)a.y + row, a.silu ? silu(sum) : sum);
  for (int64_t i = 0; i + 1 < a.width; i++) present[i] = past[i + 1];
  if (a.width > 0) present[a.width - 1] = last;
}
// The same for the usual sizes: kernel 4, width 3 or 4.
template <class T, int kWidth>
MAMBAC_KERNEL(kConvThreads, 8) conv_token4(ConvArgs a) {
  const int64_t row = block_x() * threads() + thread_index();
  if (row >= a.batch * a.channels) return;
  const int64_t e = row % a.channels;
  const float* w = a.weight + e * 4;
  const T* past = (const T*)a.past + row * kWidth;
  T* present = (T*)a.present + row * kWidth;
  const T x = ((const T*)a.x)[row];
  T s[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; i++) s[i] = past[i];
  const T* last = s + kWidth - 3;
  const float sum = fmaf(w[3], get(&x), fmaf(w[2], get(last + 2), fmaf(w[1], get(last + 1), fmaf(w[0], get(last), a.bias[e]))));
  put((T*)a.y + row, a.silu ? silu(sum) : sum);
#pragma unroll
  for (int i = 0; i + 1 < kWidth; i++) present[i] = s[i + 1];
  present[kWidth - 1] = x;
}

// Any number of tokens: a block a channel.
template <class T>
MAMBAC_KERNEL(kConvThreads, 8) conv_row(ConvArgs a) {
  for (int64_t row = block_x(); row < a.batch * a.channels; row += blocks_x()) {
    const int64_t e = row % a.channels;
    const float* w = a.weight + e * a.kernel;
    const T *x = (const T*)a.x + row * a.length, *past = (const T*)a.past + row * a.width;
    T *y = (T*)a.y + row * a.length, *present = (T*)a.present + row * a.width;
    const float bias = a.bias[e];
    for (int64_t l = thread_index(); l < a.length; l += threads()) {
      const float sum = conv_at(a, w, bias, x, past, l);
      put(y + l, a.silu ? silu(sum) : sum);
    }
    sync_block();
    // The last columns of the stream; what stays of past moves forward piece by piece, as present may be past.
    const int64_t kept = a.width > a.length ? a.width - a.length : 0;
    for (int64_t i0 = 0; i0 < kept; i0 += threads()) {
      const int64_t i = i0 + thread_index();
      const T moved = i < kept ? past[i + a.length] : T(0);
      sync_block();
      if (i < kept) present[i] = moved;
    }
    sync_block();
    for (int64_t i = kept + thread_index(); i < a.width; i += threads()) present[i] = x[a.length - a.width + i];
  }
}

// Tokens in rows: a thread a channel and kTokensOfRows tokens, so that neighbours read and write neighbouring channels. Only the
// first tokens read past, and their thread writes present behind that, which may be past.
constexpr int64_t kTokensOfRows = 32;
template <class T>
MAMBAC_KERNEL(kConvThreads, 8) conv_rows(ConvArgs a) {
  const int64_t blocks = (a.batch * a.channels + threads() - 1) / threads();
  const int64_t at = block_x() % blocks * threads() + thread_index();
  if (at >= a.batch * a.channels) return;
  const int64_t step = a.kernel - 1 > kTokensOfRows ? a.kernel - 1 : kTokensOfRows, l0 = block_x() / blocks * step;
  const int64_t e = at % a.channels, b = at / a.channels, l1 = l0 + step < a.length ? l0 + step : a.length;
  const float* w = a.weight + e * a.kernel;
  const T *past = (const T*)a.past + at * a.width, *x = (const T*)a.x + b * a.length * a.row + a.first + e;
  int64_t c = e;
  int part = 0;
  while (part < 2 && c >= a.part[part]) c -= a.part[part++];
  T* y = (T*)(part == 0 ? a.y : a.more[part - 1]) + b * a.length * a.part[part] + c;
  for (int64_t l = l0; l < l1; l++) {
    float sum = a.bias[e];
    for (int64_t k = 0; k < a.kernel; k++) {
      const int64_t j = l + k - (a.kernel - 1);
      sum = fmaf(w[k], get(j < 0 ? past + a.width + j : x + j * a.row), sum);
    }
    put(y + l * a.part[part], a.silu ? silu(sum) : sum);
  }
  if (l0 > 0) return;
  T* present = (T*)a.present + at * a.width;
  const int64_t kept = a.width > a.length ? a.width - a.length : 0;
  for (int64_t i = 0; i < kept; i++) present[i] = past[i + a.length];
  for (int64_t i = kept; i < a.width; i++) present[i] = x[(a.length - a.width + i) * a.row];
}

template <class T>
int launch_as(const ConvArgs& a, void* stream) {
  const int64_t rows = a.batch * a.channels;
  if (rows == 0) return 0;
  if (a.length == 0)
    return a.past == a.present ? 0 : copy_on_device(a.present, a.past, (size_t)(rows * a.width) * sizeof(T), stream);
  if (a.row > 0) {
    const int64_t step = a.kernel - 1 > kTokensOfRows ? a.kernel - 1 : kTokensOfRows;
    const Grid grid = {ceil_div(rows, kConvThreads) * ceil_div(a.length, step), 1, kConvThreads, 0};
    return launch(conv_rows<T>, grid, stream, a);
  }
  if (a.length == 1) {
    const Grid grid = {ceil_div(rows, kConvThreads), 1, kConvThreads, 0};
    if (a.kernel == 4 && a.width == 3) return launch(conv_token4<T, 3>, grid, stream, a);
    if (a.kernel == 4 && a.width == 4) return launch(conv_token4<T, 4>, grid, stream, a);
    return launch(conv_token<T>, grid, stream, a);
  }
  const int64_t most = 1 << 20;
  const Grid grid = {rows < most ? rows : most, 1, kConvThreads, 0};
  return launch(conv_row<T>, grid, stream, a);
}

}  // namespace

int launch_conv(const ConvArgs& a, void* stream) { return a.half ? launch_as<uint16_t>(a, stream) : launch_as<float>(a, stream); }

}  // namespace cuda
}  // namespace mambac
