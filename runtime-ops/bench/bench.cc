// Times the kernels without ONNX Runtime on one thread and prints JSON: medians in microseconds, and the median of the
// per-round ratios to a baseline of the same case. Variants of a case run interleaved (A, B, C, A, B, C, ...), so that a
// busy machine hits all of them alike.
// Usage: bench [--rounds N] [--isa NAME] [--clock wall|cpu] [--case decode|stack|prefill|mamba1|conv]
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "mambac/capi.h"
#include "mambac/plan.h"

namespace {

bool g_cpu_time = false;  // what others take from a busy machine is then left out
double now() {
  if (g_cpu_time) return (double)clock() * 1e6 / CLOCKS_PER_SEC;
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Variant {
  std::string name;
  std::function<void()> run;
  std::vector<double> times;
  int turns = 1;  // steps of one run, beyond those of the case
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

bool g_first = true;

// `steps` divides the time of one run: tokens, or layers.
void compare(const char* name, const char* isa, std::vector<Variant> variants, int rounds, double at_least, double steps) {
  std::vector<int> repeats;
  for (Variant& v : variants) {
    v.run();
    double t = now();
    v.run();
    t = now() - t;
    repeats.push_back(std::max(1, (int)(at_least / std::max(t, 0.1))));
  }
  for (int round = 0; round < rounds; round++)
    for (size_t i = 0; i < variants.size(); i++) {
      double t = now();
      for (int k = 0; k < repeats[i]; k++) variants[i].run();
      variants[i].times.push_back((now() - t) / repeats[i] / steps / variants[i].turns);
    }
  printf("%s  {\"case\": \"%s\", \"isa\": \"%s\", \"unit\": \"us per step\", \"variants\": [", g_first ? "" : ",\n", name, isa);
  g_first = false;
  for (size_t i = 0; i < variants.size(); i++) {
    std::vector<double> ratios;
    for (int r = 0; r < rounds; r++) ratios.push_back(variants[0].times[(size_t)r] / variants[i].times[(size_t)r]);
    printf("%s\n    {\"name\": \"%s\", \"median\": %.2f, \"fastest\": %.2f, \"speed\": %.2f}", i ? "," : "", variants[i].name.c_str(),
           median(variants[i].times), *std::min_element(variants[i].times.begin(), variants[i].times.end()), median(ratios));
  }
  printf("]}");
  fflush(stdout);
}

uint32_t g_seed = 1;
float uniform() {
  g_seed = g_seed * 1664525u + 1013904223u;
  return (float)(g_seed >> 8) / 8388608.0f - 1.0f;
}
std::vector<float> floats(size_t n) {
  std::vector<float> v(n);
  for (float& f : v) f = uniform();
  return v;
}

// One layer's call with buffers of its own. The state starts at zero and is updated in place.
// "R16" behind the name of a Replay operator is its replay length.
struct Scan {
  std::string op;
  std::vector<float> x, dt, A, B, C, D, bias, y, row_step, column_step;
  std::vector<uint8_t> state;
  mambac_scan call;
  Scan(const std::string& wanted, int64_t batch, int64_t length, int64_t heads, int64_t p, int64_t n) : op(wanted) {
    const size_t replay_at = wanted.find("ReplayR");
    int64_t replay = 0;
    if (replay_at != std::string::npos) {
      replay = atoi(wanted.c_str() + replay_at + 7);
      op.resize(replay_at + 6);
    }
    const std::string& name = op;
    const bool two = name[5] == '2';
    const size_t rows = (size_t)(batch * length), e = (size_t)(heads * p), rates = two ? (size_t)heads : e;
    x = floats(rows * e);
    dt = floats(rows * rates);
    A = floats(two ? (size_t)heads : e * (size_t)n);
    for (float& a : A) a = -1.0f - fabsf(a);
    B = floats(rows * (size_t)n);
    C = floats(rows * (size_t)n);
    D = floats(e);
    bias = std::vector<float>(rates, -2.0f);
    y.resize(rows * e);
    row_step = std::vector<float>(e, 1.0f);  // of Static operators
    column_step = std::vector<float>((size_t)n, name.find("H8") == std::string::npos ? 0.0625f : 0.004f);
    state.resize((size_t)(batch * (replay > 0 ? mambac_replay_bytes(name.c_str(), heads, p, n, 1, replay) : mambac_state_bytes(name.c_str(), heads, p, n))));
    call = {batch, length, heads, p, n, 1, -INFINITY, INFINITY, x.data(), dt.data(), A.data(), B.data(), C.data(), D.data(), bias.data(), state.data(), y.data(), state.data(), replay, row_step.data(), column_step.data()};
  }
  void run(const char* isa) {
    char error[320];
    if (mambac_scan_run(op.c_str(), isa, &call, error, sizeof error) != 0) {
      fprintf(stderr, "%s\n", error);
      exit(1);
    }
  }
};

const char* const kFormats[] = {"F32", "F16", "H8", "H8Max", "H4", "H4Max"};
const char* const kStatics[] = {"H8Static", "H4Static"};
const char* const kReplays[] = {"H8ReplayR16", "H4ReplayR4", "H4ReplayR8", "H4ReplayR16", "H4MaxReplayR16"};

// Reads and writes every float once where it lies: what a float state costs at the least. Wide enough for any memory.
typedef float Wide __attribute__((vector_size(64), aligned(4), may_alias));
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void pass_over(float* data, size_t count) {
  for (size_t i = 0; i + 64 <= count; i += 64) {
    Wide* v = reinterpret_cast<Wide*>(data + i);
    for (int k = 0; k < 4; k++) v[k] = v[k] * 0.999f + 0.001f;
  }
}

std::vector<Variant> scans(const char* family, const char* isa, int layers, int64_t batch, int64_t length, int64_t heads, int64_t p, int64_t n) {
  std::vector<Variant> out;
  std::vector<const char*> formats(kFormats, kFormats + 6);
  if (strcmp(family, "Mamba2") == 0) {
    formats.insert(formats.end(), kStatics, kStatics + 2);
    formats.insert(formats.end(), kReplays, kReplays + 5);
  }
  for (const char* format : formats) {
    auto stack = std::make_shared<std::vector<Scan>>();
    stack->reserve((size_t)layers);
    for (int i = 0; i < layers; i++) stack->emplace_back(std::string(family) + "Scan" + format, batch, length, heads, p, n);
    for (Scan& s : *stack) s.call.past = s.call.present = s.state.data();
    // A replayed state is rounded once in R tokens: 16 of them, so that every run does the same work.
    const int turns = strstr(format, "Replay") != nullptr && length == 1 ? 16 : 1;
    out.push_back({format, [stack, isa, turns] { for (int i = 0; i < turns; i++) for (Scan& s : *stack) s.run(isa); }, {}, turns});
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 15;
  const char *only_isa = nullptr, *only_case = nullptr;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--rounds") == 0) rounds = std::max(1, atoi(argv[i + 1]));
    if (strcmp(argv[i], "--isa") == 0) only_isa = argv[i + 1];
    if (strcmp(argv[i], "--case") == 0) only_case = argv[i + 1];
    if (strcmp(argv[i], "--clock") == 0) g_cpu_time = strcmp(argv[i + 1], "cpu") == 0;
  }
  auto wanted = [&](const char* name) { return only_case == nullptr || strcmp(only_case, name) == 0; };
  printf("[\n");
  for (const char* isa : {"avx512", "avx2", "portable"}) {
    if (mambac::kernels_named(isa) == nullptr || (only_isa != nullptr && strcmp(isa, only_isa) != 0)) continue;
    const bool slow = strcmp(isa, "portable") == 0;
    // One layer of the 130M shape, its state warm; 48 layers of the 370M shape (50 MB of float state); prefill of 512.
    if (wanted("decode")) {
      std::vector<Variant> v = scans("Mamba2", isa, 1, 1, 1, 24, 64, 128);
      auto from = std::make_shared<std::vector<float>>(24 * 64 * 128), to = std::make_shared<std::vector<float>>(24 * 64 * 128);
      v.push_back({"copy of the float state", [from, to] { memcpy(to->data(), from->data(), from->size() * 4); }, {}});
      compare("decode H=24 P=64 N=128", isa, v, rounds, 2000, 1);
    }
    if (wanted("stack") && !slow) {
      std::vector<Variant> v = scans("Mamba2", isa, 48, 1, 1, 32, 64, 128);
      auto states = std::make_shared<std::vector<std::vector<float>>>(48, std::vector<float>(32 * 64 * 128));
      v.push_back({"pass over the float states", [states] { for (auto& s : *states) pass_over(s.data(), s.size()); }, {}});
      compare("decode 48 layers H=32 P=64 N=128", isa, v, rounds, 1, 48);
    }
    if (wanted("prefill")) {
      const int tokens = slow ? 64 : 512;
      compare(slow ? "prefill 64 H=24 P=64 N=128" : "prefill 512 H=24 P=64 N=128", isa, scans("Mamba2", isa, 1, 1, tokens, 24, 64, 128), rounds, 1, tokens);
    }
    if (wanted("mamba1")) {
      compare("decode Mamba-1 E=1536 N=16", isa, scans("Mamba1", isa, 1, 1, 1, 24, 64, 16), rounds, 2000, 1);
      const int tokens = slow ? 32 : 256;
      compare(slow ? "prefill 32 Mamba-1 E=1536 N=16" : "prefill 256 Mamba-1 E=1536 N=16", isa, scans("Mamba1", isa, 1, 1, tokens, 24, 64, 16), rounds, 1, tokens);
    }
    if (wanted("conv"))
      for (int length : {1, 512}) {
        const int channels = 1792;
        auto x = std::make_shared<std::vector<float>>(floats((size_t)(channels * length))), w = std::make_shared<std::vector<float>>(floats(channels * 4)),
             b = std::make_shared<std::vector<float>>(floats(channels)), y = std::make_shared<std::vector<float>>((size_t)(channels * length)),
             state = std::make_shared<std::vector<float>>(channels * 3);
        std::vector<Variant> v;
        for (const char* op : {"CausalConvSilu", "CausalConv"})
          v.push_back({op, [=] {
                         mambac_conv call = {1, channels, length, 4, 3, x->data(), w->data(), b->data(), state->data(), y->data(), state->data()};
                         char error[320];
                         if (mambac_conv_run(op, isa, &call, error, sizeof error) != 0) exit(1);
                       }, {}});
        compare(length == 1 ? "conv decode C=1792 K=4" : "conv prefill 512 C=1792 K=4", isa, v, rounds, 1000, 1);
      }
  }
  printf("\n]\n");
  return 0;
}
