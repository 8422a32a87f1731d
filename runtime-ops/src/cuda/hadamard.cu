// Rows times an orthonormal Hadamard matrix of order m 2^k: butterflies over the power of two, then the dense factor. The
// order of every sum is that of the CPU kernels, and so are the bits.
//
// A span is what one matrix takes: order * power neighbouring numbers. A block takes whole spans, so that x is read once and
// y written once: a warp turns runs of 128 numbers in its registers, what is longer goes through shared memory, and the
// factor reads its columns there. Spans too large for shared memory are turned piece by piece in y.
#include "launch.h"
#include "sink.h"

namespace mambac {
namespace cuda {
namespace {

constexpr int kThreads = 256, kRun = 128;
constexpr int kTargets = 4;                                // rows of the result a thread sums at once; orders are multiples of four
constexpr int64_t kChunk = 8192;                           // numbers a block takes at once, where there are many
constexpr int64_t kSmallOrder = 64;                        // factors up to it are kept in shared memory
constexpr int64_t kColumns = 32, kPiece = 4096;            // of spans too large for shared memory

struct RotateArgs {
  int64_t count, span;       // of all numbers, and of one span
  int64_t chunk;             // whole spans a block takes at once, a multiple of four numbers where `wide`
  int order, power, bits;    // bits: the power's logarithm
  int64_t step;              // of one stage, for spans too large for shared memory
  bool wide;                 // x and y lie at 16-byte boundaries, codes at 4-byte ones
  bool shared_factor;
  const float* x;
  const float* factor;       // null: one, with an order of one
  float* y;
  float scale;
  CodesOut codes;
};
MAMBAC_ANYWHERE inline int64_t round_up(int64_t v, int64_t to) { return (v + to - 1) / to * to; }
MAMBAC_ANYWHERE inline int64_t factor_stride(int order) { return round_up(order, kTargets); }

// Four numbers of a run of `left`, zeros behind its end.
template <class T>
MAMBAC_DEVICE void load_some(const T* p, int64_t left, bool wide, float* v) {
  if (wide && left >= 4) return load4(p, v);
#pragma unroll
  for (int k = 0; k < 4; k++) v[k] = k < left ? get(p + k) : 0.0f;
}
template <class Sink>
MAMBAC_DEVICE void store_some(const Sink& y, int64_t at, int64_t left, bool wide, const float* v) {
  if (wide && left >= 4) return y.four(at, v);
#pragma unroll
  for (int k = 0; k < 4; k++)
    if (k < left) y.one(at + k, v[k]);
}
MAMBAC_DEVICE void butterfly(float* a, float* b) {
  const float p = *a, q = *b;
  *a = p + q;
  *b = p - q;
}

// The stages up to runs of `power` or 128, each lane having four neighbouring numbers.
MAMBAC_DEVICE void turn_run(float* v, int power) {
  if (power >= 2) butterfly(v, v + 1), butterfly(v + 2, v + 3);
  if (power >= 4) butterfly(v, v + 2), butterfly(v + 1, v + 3);
  const int lane = thread_index() % 32;
#pragma unroll
  for (int width = 1; width < 32; width *= 2) {
    if (power < 8 * width) break;
    const float sign = (lane & width) != 0 ? -1.0f : 1.0f;
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = fmaf(v[k], sign, shuffle_xor(v[k], width));
  }
}
// The stages from `step` on of every run of `power` numbers, two at a time, in shared memory.
MAMBAC_DEVICE void turn_rest(float* v, int count, int power, int step) {
  for (; step <= power / 4; step *= 4) {
    for (int i = thread_index(); i < count / 16; i += threads()) {
      const int place = i & (step / 4 - 1);
      float* at = v + 16 * (i - place) + 4 * place;
      float a[4], b[4], c[4], d[4];
      load4(at, a), load4(at + step, b), load4(at + 2 * step, c), load4(at + 3 * step, d);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        butterfly(a + k, b + k), butterfly(c + k, d + k);
        butterfly(a + k, c + k), butterfly(b + k, d + k);
      }
      store4(at, a), store4(at + step, b), store4(at + 2 * step, c), store4(at + 3 * step, d);
    }
    sync_block();
  }
  if (step > power / 2) return;
  for (int i = thread_index(); i < count / 8; i += threads()) {
    const int place = i & (step / 4 - 1);
    float* at = v + 8 * (i - place) + 4 * place;
    float a[4], b[4];
    load4(at, a), load4(at + step, b);
#pragma unroll
    for (int k = 0; k < 4; k++) butterfly(a + k, b + k);
    store4(at, a), store4(at + step, b);
  }
  sync_block();
}

// kTargets rows of factor^T times kWidth columns of the matrix [order, power] at `v`.
template <int kWidth>
MAMBAC_DEVICE void sum_targets(const float* v, int power, const float* factor, int64_t stride, int order, int targets, bool padded,
                               float (*sum)[kWidth]) {
#pragma unroll
  for (int t = 0; t < kTargets; t++)
#pragma unroll
    for (int k = 0; k < kWidth; k++) sum[t][k] = 0.0f;
#pragma unroll 2
  for (int i = 0; i < order; i++, v += power, factor += stride) {
    float from[kWidth], f[kTargets];
    if (kWidth == 4)
      load4(v, from);
    else
      from[0] = *v;
    if (padded) {
      load4(factor, f);
    } else {
#pragma unroll
      for (int t = 0; t < kTargets; t++) f[t] = t < targets ? factor[t] : 0.0f;
    }
#pragma unroll
    for (int t = 0; t < kTargets; t++)
#pragma unroll
      for (int k = 0; k < kWidth; k++) sum[t][k] = fmaf(f[t], from[k], sum[t][k]);
  }
}
// The factor on every span of a chunk; `count` numbers, which go to `y` from number `start` on.
template <class Sink, int kWidth>
MAMBAC_DEVICE void apply_factor(const RotateArgs& a, const float* v, int count, const float* shared, const Sink& y, int64_t start) {
  const float* factor = a.shared_factor ? shared : a.factor;
  const int64_t stride = a.shared_factor ? factor_stride(a.order) : a.order;
  const int bits = a.bits - (kWidth == 4 ? 2 : 0), span = (int)a.span, groups = (a.order + kTargets - 1) / kTargets;
  const int items = count / span * groups << bits;
  for (int i = thread_index(); i < items; i += threads()) {
    const int rest = i >> bits, column = (i - (rest << bits)) * kWidth, first = rest % groups * kTargets;
    const int at = rest / groups * span + column;
    const int targets = a.order - first < kTargets ? a.order - first : kTargets;
    float sum[kTargets][kWidth];
    sum_targets<kWidth>(v + at, a.power, factor + first, stride, a.order, targets, a.shared_factor, sum);
#pragma unroll
    for (int t = 0; t < kTargets; t++)
      if (t < targets) {
        const int64_t to = start + at + (first + t) * a.power;
        if (kWidth == 4)
          store_some(y, to, 4, a.wide, sum[t]);
        else
          y.one(to, sum[t][0]);
      }
  }
}

// x and y may be one buffer: a chunk is read whole before it is written.
template <class T, class Sink>
MAMBAC_KERNEL(kThreads, 4) rotate_spans(RotateArgs a) {
  const Sink y(a.y, a.codes);
  float* v = (float*)shared_memory();
  float* factor = v + round_up(a.chunk, kRun);
  const bool direct = a.order == 1 && a.power <= kRun;
  if (a.shared_factor) {
    const int stride = (int)factor_stride(a.order);
    for (int i = thread_index(); i < a.order * stride; i += threads())
      factor[i] = i % stride < a.order ? a.factor[i / stride * a.order + i % stride] : 0.0f;
  }
  const float scale = a.order == 1 && a.factor != nullptr ? product(a.scale, a.factor[0]) : a.scale;
  for (int64_t start = block_x() * a.chunk; start < a.count; start += blocks_x() * a.chunk) {
    const int count = (int)(a.count - start < a.chunk ? a.count - start : a.chunk);
    const T* x = (const T*)a.x + start;
    for (int run = thread_index() / 32 * kRun; run < count; run += threads() / 32 * kRun) {
      const int at = run + thread_index() % 32 * 4;
      float w[4];
      load_some(x + at, count - at, a.wide, w);
#pragma unroll
      for (int k = 0; k < 4; k++) w[k] = product(w[k], scale);
      turn_run(w, a.power);
      if (direct)
        store_some(y, start + at, count - at, a.wide, w);
      else
        store4(v + at, w);
    }
    if (direct) continue;
    sync_block();
    turn_rest(v, count, a.power, kRun);
    if (a.order == 1) {
      for (int at = 4 * thread_index(); at < count; at += 4 * threads()) {
        float w[4];
        load4(v + at, w);
        store_some(y, start + at, count - at, a.wide, w);
      }
    } else if (a.power % 4 == 0) {
      apply_factor<Sink, 4>(a, v, count, factor, y, start);
    } else {
      apply_factor<Sink, 1>(a, v, count, factor, y, start);
    }
    sync_block();
  }
}

// One stage of butterflies in place, for spans too large for shared memory.
template <class T>
MAMBAC_KERNEL(kThreads, 6) rotate_stage(RotateArgs a) {
  for (int64_t i = block_x() * threads() + thread_index(); i < a.count / 2; i += blocks_x() * threads()) {
    const int64_t place = i & (a.step - 1);
    T* at = (T*)a.y + 2 * (i - place) + place;
    float p = get(at), q = get(at + a.step);
    butterfly(&p, &q);
    put(at, p);
    put(at + a.step, q);
  }
}
// The factor in place: a block takes 32 columns, which it keeps in shared memory.
template <class T>
MAMBAC_KERNEL(kThreads, 4) rotate_columns(RotateArgs a) {
  float* v = (float*)shared_memory();
  const int lane = thread_index() % 32, warp = thread_index() / 32, warps = threads() / 32;
  const int64_t columns = a.count / a.order;
  for (int64_t first = block_x() * kColumns; first < columns; first += blocks_x() * kColumns) {
    const int64_t column = first + lane, span = column >> a.bits;
    T* y = (T*)a.y + span * a.span + (column - (span << a.bits));
    for (int i = warp; i < a.order; i += warps) v[i * kColumns + lane] = column < columns ? get(y + (int64_t)i * a.power) : 0.0f;
    sync_block();
    for (int t = warp; t < a.order; t += warps) {
      float sum = 0.0f;
      for (int i = 0; i < a.order; i++) sum = fmaf(a.factor[i * a.order + t], v[i * kColumns + lane], sum);
      if (column < columns) put(y + (int64_t)t * a.power, sum);
    }
    sync_block();
  }
}

// Bytes of shared memory a block needs.
int64_t room_for(const RotateArgs& a) {
  return 4 * (round_up(a.chunk, kRun) + (a.shared_factor ? a.order * factor_stride(a.order) : 0));
}
// -1 where a span does not fit into shared memory.
template <class T, class Sink>
int launch_spans(RotateArgs a, const Device& d, void* stream) {
  a.shared_factor = a.order > 1 && a.order <= kSmallOrder;
  // As many spans as fill a block, but no fewer blocks than the device runs at once; a chunk's start must stay aligned.
  const int64_t spans = a.count / a.span, even = a.span % 4 == 0 ? 1 : a.span % 2 == 0 ? 2 : 4;
  const int64_t filling = kChunk / a.span, spread = spans / (4 * (int64_t)d.multiprocessors);
  int64_t many = round_up(filling < spread ? filling : spread, even);
  if (many == 0) many = even;
  for (a.chunk = a.span * many; room_for(a) > d.shared_bytes; a.chunk = a.span * many) {
    if (many == even) return -1;
    many = round_up(many / 2, even);
  }
  const Grid grid = {blocks_for(a.count, a.chunk), 1, kThreads, (size_t)room_for(a)};
  return launch(rotate_spans<T, Sink>, grid, stream, a);
}
// Pieces of the power of two, the stages between them, then the factor. y is all the memory there is: halves are rounded at
// each of these steps.
template <class T>
int launch_large(const RotateArgs& a, const Device& d, void* stream) {
  RotateArgs piece = a;
  piece.order = 1;
  piece.factor = a.order == 1 ? a.factor : nullptr;
  piece.power = a.power < kPiece ? a.power : (int)kPiece;
  piece.span = piece.power;
  int code = launch_spans<T, ValueSink<T>>(piece, d, stream);
  RotateArgs rest = a;
  for (rest.step = piece.power; code == 0 && rest.step < a.power; rest.step *= 2)
    code = launch(rotate_stage<T>, {blocks_for(a.count / 2, kThreads), 1, kThreads, 0}, stream, rest);
  if (code == 0 && a.order > 1)
    code = launch(rotate_columns<T>, {blocks_for(a.count / a.order, kColumns), 1, kThreads, (size_t)(a.order * kColumns * 4)}, stream, rest);
  return code < 0 ? kErrorInvalidValue : code;
}

template <class T>
int launch_as(const RotateArgs& a, const Device& d, void* stream) {
  if (a.codes.to != nullptr) {
    const int code = launch_spans<T, CodeSink>(a, d, stream);
    return code < 0 ? kErrorSpanTooLarge : code;
  }
  const int code = launch_spans<T, ValueSink<T>>(a, d, stream);
  return code < 0 ? launch_large<T>(a, d, stream) : code;
}

}  // namespace

int launch_hadamard(const HadamardArgs& h, void* stream) {
  if (h.rows == 0) return 0;
  Device d;
  if (const int e = current_device(&d)) return e;
  RotateArgs a = {};
  a.count = h.rows * h.size;
  a.span = h.order * h.power;
  a.order = (int)h.order;
  a.power = (int)h.power;
  while ((int64_t)1 << a.bits < h.power) a.bits++;
  a.wide = aligned16(h.x) && aligned_result(h.y, h.codes);
  a.x = h.x;
  a.factor = h.factor;
  a.y = h.y;
  a.codes = h.codes;
  a.scale = (float)(1.0 / sqrt((double)a.span));
  return h.half ? launch_as<uint16_t>(a, d, stream) : launch_as<float>(a, d, stream);
}

}  // namespace cuda
}  // namespace mambac
