// The gate of a block, y * silu(z), and the RMS norm of groups of channels behind it or before it. y and z are read once:
// a group stays in the registers of its threads between its sum and its result.
#include "launch.h"
#include "sink.h"

namespace mambac {
namespace cuda {
namespace {

constexpr int kFlatThreads = 256, kNormThreads = 512, kGeneralThreads = 256;

struct NormArgs {
  GateArgs gate;
  int64_t groups;      // of all rows
  int64_t per_row;     // groups of one row
  int warps;           // that share a group
  bool few;            // all groups can be counted in 32 bits
};

// Element i's channel, or group i's group within its row; `few`: i can be counted in 32 bits.
MAMBAC_DEVICE int64_t within(int64_t i, int64_t size, bool few) { return few ? (int64_t)((unsigned)i % (unsigned)size) : i % size; }

// Without a norm. kWide: 16-byte loads; with slopes rows are whole vectors then.
template <class T, class Sink, bool kSloped, bool kWide>
MAMBAC_KERNEL(kFlatThreads, 6) gate_flat(GateArgs a) {
  const int64_t count = a.rows * a.channels, me = block_x() * threads() + thread_index(), all = blocks_x() * threads();
  const bool few = count < (int64_t)1 << 31;
  const T *y = (const T*)a.y, *z = (const T*)a.z;
  const Sink out(a.out, a.codes);
  if (kWide)
    for (int64_t i = me; i < count / 4; i += all) {
      float u[4], v[4], slope[4];
      load4(y + 4 * i, u);
      load4(z + 4 * i, v);
      if (kSloped) load4(a.slope + within(4 * i, a.channels, few), slope);
#pragma unroll
      for (int k = 0; k < 4; k++) u[k] *= kSloped ? sloped_silu(v[k], slope[k]) : silu(v[k]);
      out.four(4 * i, u);
    }
  for (int64_t i = (kWide ? count / 4 * 4 : 0) + me; i < count; i += all) {
    const float v = get(z + i);
    out.one(i, get(y + i) * (kSloped ? sloped_silu(v, a.slope[within(i, a.channels, few)]) : silu(v)));
  }
}

MAMBAC_DEVICE float warp_sum(float v) {
#pragma unroll
  for (int width = 16; width >= 1; width /= 2) v += shuffle_xor(v, width);
  return v;
}
// The first channel of group `task` within its row.
MAMBAC_DEVICE int64_t channel_of(const NormArgs& n, int64_t task) {
  return n.per_row == 1 ? 0 : within(task, n.per_row, n.few) * n.gate.group;
}
MAMBAC_DEVICE float norm_scale(float sum, int64_t count, float epsilon) { return 1.0f / sqrtf(sum / (float)count + epsilon); }

// kVectors times four channels a thread; groups are multiples of four channels at 16-byte boundaries.
template <class T, class Sink, bool kBefore, int kVectors>
MAMBAC_KERNEL(kNormThreads, kVectors > 4 ? 1 : 2) gate_norm(NormArgs n) {
  const GateArgs& a = n.gate;
  const Sink out(a.out, a.codes);
  float* sums = (float*)shared_memory();
  const int warp = thread_index() / 32, slot = warp / n.warps, together = threads() / 32 / n.warps, width = n.warps * 32;
  const int me = thread_index() - slot * width, vectors = (int)(a.group / 4);
  int turn = 0;
  for (int64_t first = block_x() * together; first < n.groups; first += blocks_x() * together, turn ^= 1) {
    const int64_t task = first + slot, at = task * a.group;
    const T *y = (const T*)a.y + at, *z = (const T*)a.z + at;
    float v[kVectors][4], gate[kVectors][4], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; i++) {
      const int from = me + i * width;
      if (task < n.groups && from < vectors) {
        load4(y + 4 * from, v[i]);
        load4(z + 4 * from, gate[i]);
      } else {
#pragma unroll
        for (int k = 0; k < 4; k++) v[i][k] = gate[i][k] = 0.0f;
      }
#pragma unroll
      for (int k = 0; k < 4; k++) {
        if (!kBefore) v[i][k] *= silu(gate[i][k]);
        sum = fmaf(v[i][k], v[i][k], sum);
      }
    }
    sum = warp_sum(sum);
    if (n.warps > 1) {
      float* mine = sums + turn * (threads() / 32);  // two turns of room: one barrier a turn is enough
      if (thread_index() % 32 == 0) mine[warp] = sum;
      sync_block();
      sum = 0.0f;
      for (int w = 0; w < n.warps; w++) sum += mine[slot * n.warps + w];
    }
    const float scale = norm_scale(sum, a.group, a.epsilon), *weight = a.weight + channel_of(n, task);
    if (task < n.groups)
#pragma unroll
      for (int i = 0; i < kVectors; i++) {
        const int from = me + i * width;
        if (from >= vectors) continue;
        float w[4];
        load4(weight + 4 * from, w);
#pragma unroll
        for (int k = 0; k < 4; k++) w[k] *= v[i][k] * scale * (kBefore ? silu(gate[i][k]) : 1.0f);
        out.four(at + 4 * from, w);
      }
  }
}

// Groups of any size: a block a group, read twice. out may be y or z: a thread writes what it alone has read.
template <class T, class Sink, bool kBefore>
MAMBAC_KERNEL(kGeneralThreads, 4) gate_norm_any(NormArgs n) {
  const GateArgs& a = n.gate;
  const Sink out(a.out, a.codes);
  float* sums = (float*)shared_memory();
  for (int64_t task = block_x(); task < n.groups; task += blocks_x()) {
    const T *y = (const T*)a.y + task * a.group, *z = (const T*)a.z + task * a.group;
    const float* weight = a.weight + channel_of(n, task);
    float sum = 0.0f;
    for (int64_t i = thread_index(); i < a.group; i += threads()) {
      const float v = kBefore ? get(y + i) : get(y + i) * silu(get(z + i));
      sum = fmaf(v, v, sum);
    }
    sum = warp_sum(sum);
    if (thread_index() % 32 == 0) sums[thread_index() / 32] = sum;
    sync_block();
    sum = 0.0f;
    for (int w = 0; w < threads() / 32; w++) sum += sums[w];
    const float scale = norm_scale(sum, a.group, a.epsilon);
    for (int64_t i = thread_index(); i < a.group; i += threads())
      out.one(task * a.group + i, get(y + i) * scale * weight[i] * silu(get(z + i)));
    sync_block();
  }
}

template <class T, class Sink, bool kBefore>
int launch_norm(NormArgs n, bool aligned, void* stream) {
  const GateArgs& a = n.gate;
  const bool wide = aligned && aligned16(a.weight) && a.group % 4 == 0;
  const int64_t vectors = wide ? a.group / 4 : 0, most = 8 * kNormThreads;
  if (!wide || vectors > most)
    return launch(gate_norm_any<T, Sink, kBefore>, {blocks_for(n.groups, 1), 1, kGeneralThreads, kGeneralThreads / 32 * 4}, stream, n);
  const int each = vectors <= kNormThreads ? 1 : vectors <= 2 * kNormThreads ? 2 : 8;
  n.warps = (int)ceil_div(vectors, 32 * each);
  const int together = n.warps >= 4 ? 1 : 4 / n.warps, threads = together * n.warps * 32;
  const Grid grid = {blocks_for(n.groups, together), 1, threads, (size_t)(threads / 32 * 2 * 4)};
  if (each == 1) return launch(gate_norm<T, Sink, kBefore, 1>, grid, stream, n);
  return each == 2 ? launch(gate_norm<T, Sink, kBefore, 2>, grid, stream, n) : launch(gate_norm<T, Sink, kBefore, 8>, grid, stream, n);
}

template <class T, class Sink>
int launch_as(const GateArgs& a, void* stream) {
  if (a.rows == 0) return 0;
  const bool aligned = aligned16(a.y) && aligned16(a.z) && aligned_result(a.out, a.codes);
  if (a.group == 0) {
    const bool sloped = a.slope != nullptr, wide = aligned && (!sloped || (aligned16(a.slope) && a.channels % 4 == 0));
    const int64_t count = a.rows * a.channels;
    const Grid grid = {blocks_for(wide ? ceil_div(count, 4) : count, kFlatThreads), 1, kFlatThreads, 0};
    if (sloped) return wide ? launch(gate_flat<T, Sink, true, true>, grid, stream, a) : launch(gate_flat<T, Sink, true, false>, grid, stream, a);
    return wide ? launch(gate_flat<T, Sink, false, true>, grid, stream, a) : launch(gate_flat<T, Sink, false, false>, grid, stream, a);
  }
  const int64_t per_row = a.channels / a.group, groups = a.rows * per_row;
  const NormArgs n = {a, groups, per_row, 1, groups < (int64_t)1 << 31};
  return a.before ? launch_norm<T, Sink, true>(n, aligned, stream) : launch_norm<T, Sink, false>(n, aligned, stream);
}

}  // namespace

int launch_gate(const GateArgs& a, void* stream) {
  if (a.codes.to != nullptr) return a.half ? launch_as<uint16_t, CodeSink>(a, stream) : launch_as<float, CodeSink>(a, stream);
  return a.half ? launch_as<uint16_t, ValueSink<uint16_t>>(a, stream) : launch_as<float, ValueSink<float>>(a, stream);
}

}  // namespace cuda
}  // namespace mambac
