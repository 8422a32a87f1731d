// Times of kernels on a device, beside those of a device copy: what one call moves counts, and no operand of a call is in the
// L2 cache when its turn comes.
#pragma once
#include <functional>

#include "cuda_device.h"

namespace device {

inline double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? NAN : (v[(v.size() - 1) / 2] + v[v.size() / 2]) / 2;
}

struct Timer {
  cudaEvent_t start, end;
  Timer() {
    must(cudaEventCreate(&start), "event");
    must(cudaEventCreate(&end), "event");
  }
  // Microseconds of what `work` puts on the stream.
  template <class Work>
  double time(cudaStream_t stream, Work work) {
    must(cudaEventRecord(start, stream), "event");
    work();
    must(cudaEventRecord(end, stream), "event");
    must(cudaEventSynchronize(end), "kernel");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, start, end), "event");
    return ms * 1000.0;
  }
};

// Bytes touched between two uses of one buffer: four times the L2 cache.
inline size_t cold_bytes() {
  int device = 0, cache = 0;
  must(cudaGetDevice(&device), "device");
  must(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device), "cache");
  return std::max((size_t)64 << 20, (size_t)4 * (size_t)cache);
}

// Something to time: `copies` of its operands, each launched in turn.
struct Subject {
  std::string name;
  double bytes;  // moved by one call
  int copies;
  std::function<void(int copy, cudaStream_t stream)> launch;
  std::vector<double> times = {}, share = {};  // microseconds of a call, and part of the copy's bandwidth, of every round
  double round(Timer& timer, cudaStream_t stream) const {
    return timer.time(stream, [&] {
      for (int i = 0; i < copies; i++) launch(i, stream);
    }) / copies;
  }
};

// A scan in place, from the state in `in`; `moved`: bytes of states that a call reads and writes.
inline Subject scan_subject(const Op& op, const Sizes& s, int replay, const Inputs& in, double moved) {
  struct Held {
    Call call;
    std::vector<std::unique_ptr<Buffer>> states;
  };
  auto held = std::make_shared<Held>(Held{Call(s, in, replay), {}});
  const int copies = (int)(cold_bytes() / in.past.size()) + 2;
  for (int i = 0; i < copies; i++) held->states.push_back(std::make_unique<Buffer>(in.past.data(), in.past.size()));
  return {op.name, moved + (double)held->call.operand_bytes(), copies,
          [held, op](int i, cudaStream_t stream) { launch(op, held->call, held->states[(size_t)i]->data, held->states[(size_t)i]->data, stream); }};
}
// Operators on rows of `channels`; `inputs` buffers of a row each are read, one is written.
inline Subject row_subject(const std::string& name, int64_t rows, int64_t channels, int inputs,
                           std::function<int(const float* const* in, float* out, cudaStream_t stream)> run) {
  const size_t bytes = (size_t)(rows * channels) * 4;
  const int copies = (int)(cold_bytes() / (bytes * (size_t)(inputs + 1))) + 2;
  auto held = std::make_shared<std::vector<std::unique_ptr<Buffer>>>();
  for (int i = 0; i < copies * (inputs + 1); i++) {
    held->push_back(std::make_unique<Buffer>(bytes));
    must(cudaMemset(held->back()->data, 0, bytes), "memset");
  }
  return {name, (double)bytes * (inputs + 1), copies, [held, inputs, run](int copy, cudaStream_t stream) {
            const float* in[2] = {};
            for (int i = 0; i < inputs; i++) in[i] = (const float*)(*held)[(size_t)(copy * (inputs + 1) + i)]->data;
            CHECK(run(in, (float*)(*held)[(size_t)(copy * (inputs + 1) + inputs)]->data, stream) == 0, "launch");
          }};
}

// Interleaved rounds of every subject and of a device copy, whose bytes a microsecond are returned, of every round.
inline std::vector<double> time_all(std::vector<Subject>& subjects, int rounds, cudaStream_t stream) {
  Timer timer;
  const size_t bytes = (size_t)512 << 20;
  Buffer from(bytes), to(bytes);
  must(cudaMemset(from.data, 0, bytes), "memset");
  std::vector<double> copies;
  for (int i = 0; i < rounds + 2; i++) {
    const double copy = 2.0 * (double)bytes / timer.time(stream, [&] { must(cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice, stream), "copy"); });
    if (i >= 2) copies.push_back(copy);
    for (Subject& s : subjects) {
      const double t = s.round(timer, stream);
      if (i < 2) continue;
      s.times.push_back(t);
      s.share.push_back(s.bytes / t / copy);
    }
  }
  std::sort(copies.begin(), copies.end());
  return copies;
}

// Microseconds of one call: a graph of calls, so that the host's launches do not count.
inline double latency(const Op& op, const Sizes& s, const Inputs& in, int replay, cudaStream_t stream, int rounds) {
  Call call(s, in, replay);
  Buffer state(in.past.data(), in.past.size());
  const int calls = 96;  // whole turns of a ring of 16
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; i++) launch(op, call, state.data, state.data, stream);
  must(cudaStreamEndCapture(stream, &graph), "capture");
  must(cudaGraphInstantiate(&exec, graph, 0), "graph");
  Timer timer;
  std::vector<double> times;
  for (int i = 0; i < rounds + 2; i++) {
    const double t = timer.time(stream, [&] { must(cudaGraphLaunch(exec, stream), "graph"); }) / calls;
    if (i >= 2) times.push_back(t);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  return median(times);
}

}  // namespace device
