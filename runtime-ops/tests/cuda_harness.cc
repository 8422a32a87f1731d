// The CUDA kernels on a device: against the double reference and the CPU kernels, then timed against a device copy of the
// same run. Prints JSON. Exit status 1: a wrong result; 2 (with --gates): a gate is missed. Without a device every gate is
// "not run", and the exit status is 0, or 3 with --gates.
// Usage: cuda_harness [--gates] [--times] [--rounds N]; --times leaves out what is not a time.
#include <time.h>

#include "cuda_gates.h"
#include "cuda_timing.h"
#include "replay_checks.h"
#include "row_checks.h"

using namespace device;

namespace {

constexpr double kTolerance = 4e-6, kCodeRounding = 1e-6;

Output run(const Op& op, const Sizes& s, const Inputs& in, bool one_buffer) {
  Call call(s, in, 0);
  Buffer past(in.past.data(), in.past.size()), present(std::vector<uint8_t>(in.past.size(), 0xa5).data(), in.past.size());
  Buffer& out = one_buffer ? past : present;
  launch(op, call, past.data, out.data, nullptr);
  must(cudaDeviceSynchronize(), "kernel");
  Output o;
  o.y.resize((size_t)s.B * s.L * s.channels());
  o.present.resize(in.past.size());
  call.y->read(o.y.data());
  out.read(o.present.data());
  return o;
}

long g_codes = 0, g_codes_off = 0;
void against_cpu(const Op& op, const Sizes& s, const Inputs& in, const Output& got) {
  if (!op.packed()) return;
  Output cpu = got;
  const mambac_scan call = {s.B, s.L, s.H, s.P, s.N, s.G, in.dt_min, in.dt_max, in.x.data(), in.dt.data(), in.A.data(), in.B.data(), in.C.data(),
                            in.D.data(), in.bias.data(), in.past.data(), cpu.y.data(), cpu.present.data(), 0, in.row_step.data(), in.column_step.data()};
  char error[320] = "";
  CHECK(mambac_scan_run(op.name.c_str(), nullptr, &call, error, sizeof error) == 0, "%s", error);
  const size_t bytes = head_bytes(op, s.P, s.N);
  for (int i = 0; i < s.B * s.H; i++)
    for (int j = 0; j < s.P * s.N; j++) {
      const int d = code_at(op, got.present.data() + i * bytes, j) - code_at(op, cpu.present.data() + i * bytes, j);
      g_codes++;
      g_codes_off += d != 0;
      CHECK(d >= -1 && d <= 1, "code %d of head %d is %d from the CPU's", j, i, d);
    }
}

void one_step(const Op& op, const Sizes& s, uint64_t seed, double scale) {
  char text[160];
  snprintf(text, sizeof text, "%s B%d L%d H%d P%d N%d G%d scale %g", op.name.c_str(), s.B, s.L, s.H, s.P, s.N, s.G, scale);
  g_where = text;
  Random r(seed);
  const Inputs in = make_inputs(op, s, r, scale, scale == 0);
  const Output out = run(op, s, in, false), in_place = run(op, s, in, true);
  CHECK(out.present == in_place.present && memcmp(out.y.data(), in_place.y.data(), out.y.size() * 4) == 0, "in place gives other bits");
  if (op.token && s.L > 1) return;  // goes its own way after a tie; its single tokens are checked
  const Result want = scan(op, s, in);
  check_y(want, out.y, kTolerance);
  check_state(op, s, want, out.present, kTolerance, kCodeRounding, &in);
  against_cpu(op, s, in, out);
}

// 512 tokens in place, each checked from the state the kernel left, the whole against the reference's distance from the
// unrounded recurrence.
void recirculate(const Op& op, std::string* json) {
  const int tokens = 512;
  const Sizes s = {1, tokens, 2, 64, op.two ? 128 : 16, 1};
  g_where = op.name + " recirculated";
  Random r(77);
  Inputs in = make_inputs(op, s, r, 1, true);
  Recirculation run_of(op, s, in);
  Sizes one = s;
  one.L = 1;
  std::vector<uint8_t> state = in.past;
  for (int l = 0; l < tokens; l++) {
    Inputs step = token_of(op, s, in, l);
    step.past = state;
    const Output o = run(op, one, step, true);
    const Result want = scan(op, one, step);
    check_y(want, o.y, kTolerance);
    check_state(op, one, want, o.present, kTolerance, kCodeRounding, &step);
    run_of.add((size_t)l * s.channels(), o.y);
    state = o.present;
  }
  run_of.check(op);
  char text[200];
  snprintf(text, sizeof text, "%s\n    {\"op\": \"%s\", \"tokens\": %d, \"relative_error\": %.4g, \"reference\": %.4g}", json->empty() ? "" : ",",
           op.name.c_str(), tokens, run_of.relative(), run_of.reference());
  *json += text;
}

// The ratio of two subjects' times, round by round.
double ratio(const std::vector<Subject>& all, const char* a, const char* b) {
  std::vector<double> v;
  const Subject *over = nullptr, *under = nullptr;
  for (const Subject& s : all) {
    if (s.name == a) over = &s;
    if (s.name == b) under = &s;
  }
  for (size_t i = 0; i < over->times.size(); i++) v.push_back(over->times[i] / under->times[i]);
  return median(v);
}
double share(const std::vector<Subject>& all, const char* name) {
  for (const Subject& s : all)
    if (s.name == name) return median(s.share);
  return NAN;
}

std::vector<Subject> subjects() {
  std::vector<Subject> all;
  Random r(9);
  const Sizes large = {128, 1, 64, 64, 128, 1};  // 8192 heads
  for (const char* name : {"Mamba2ScanF32", "Mamba2ScanF16", "Mamba2ScanH8", "Mamba2ScanH4", "Mamba2ScanH4Max", "Mamba2ScanH8Static", "Mamba2ScanH4Static"}) {
    const Op op = parse(name);
    const Inputs in = make_inputs(op, large, r, 1, true);
    all.push_back(scan_subject(op, large, 0, in, 2.0 * (double)in.past.size()));
  }
  for (const char* name : {"Mamba2ScanH8Replay", "Mamba2ScanH4Replay"}) {
    const Op op = parse(name);
    const int R = 16;
    Inputs in = replay_inputs(op, large, R, r, 1, true);
    const ReplayParts at = replay_parts(op, large, R);
    for (int b = 0; b < large.B; b++) in.past[b * at.bytes + at.count] = (uint8_t)(b % R);  // one sequence in R is rounded with each call
    // Of a sequence: its checkpoint read, half of its rings read and one slot written; all of it once more in R calls.
    const double checkpoint = (double)at.u, rings = (double)(at.count - at.u);
    all.push_back(scan_subject(op, large, R, in, large.B * (checkpoint * (1 + 1.0 / R) + rings * (0.5 + 2.0 / R))));
  }
  for (const auto& [order, power] : {std::pair<int, int>{12, 128}, {20, 256}, {1, 4096}}) {
    const int64_t rows = 4096, size = order * power, o = order, p = power;
    auto factor = std::make_shared<Buffer>(r.normals((size_t)(o * o), 1).data(), (size_t)(o * o) * 4);
    all.push_back(row_subject("HadamardRotate " + std::to_string(order) + " x " + std::to_string(power), rows, size, 1, [=](const float* const* in, float* out, cudaStream_t stream) {
      const mambac_rotate call = {rows, size, o, p, in[0], (const float*)factor->data, out};
      return mambac_cuda_rotate_launch(&call, stream, nullptr, 0);
    }));
  }
  for (const auto& [group, before] : {std::pair<int, int>{-1, 0}, {0, 0}, {5120, 0}, {640, 1}}) {
    const int64_t rows = 4096, channels = 5120, g = group < 0 ? 0 : group, b = before;
    auto weight = std::make_shared<Buffer>(r.normals((size_t)channels, 1).data(), (size_t)channels * 4);
    const bool sloped = group < 0;
    const std::string name = sloped ? "SlopedSiluGate" : group == 0 ? "SiluGate" : "GatedRMSNorm of " + std::to_string(group) + (before ? ", before" : "");
    all.push_back(row_subject(name, rows, channels, 2, [=](const float* const* in, float* out, cudaStream_t stream) {
      const mambac_gate call = {rows, channels, g, b, 1e-5f, in[0], in[1], (const float*)weight->data, out, sloped ? (const float*)weight->data : nullptr};
      return mambac_cuda_gate_launch(&call, stream, nullptr, 0);
    }));
  }
  return all;
}

double g_start = 0;
double now() {
  timespec t;
  timespec_get(&t, TIME_UTC);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
// What has been done, for whoever waits.
void done(const char* what) { fprintf(stderr, "%6.1f s  %s: %ld checks, %ld failures so far\n", now() - g_start, what, g_checks, g_failures); }

void check_everything(std::string* recirculated) {
  const char* all[] = {"F32", "F16", "F16Token", "H8", "H8Token", "H8Max", "H8MaxToken", "H4", "H4Token", "H4Max", "H4MaxToken"};
  const Sizes mamba2[] = {{4, 1, 24, 64, 128, 1}, {128, 1, 8, 64, 128, 2}, {2, 1, 4, 48, 128, 1}, {2, 1, 3, 64, 64, 3}, {1, 1, 4, 64, 256, 1},
                          {1, 1, 3, 5, 6, 1},     {1, 300, 4, 64, 128, 2}, {2, 3, 2, 128, 64, 1}, {1, 1, 2, 70, 1000, 1}};
  const Sizes mamba1[] = {{4, 1, 24, 64, 16, 1}, {2, 1, 3, 24, 16, 1}, {1, 1, 4, 4, 8, 2}, {1, 200, 4, 64, 16, 2}, {2, 3, 3, 4, 16, 4}};
  uint64_t seed = 1;
  for (const char* format : {"H8Static", "H8StaticToken", "H4Static", "H4StaticToken"})
    for (const Sizes& s : mamba2) one_step(parse(std::string("Mamba2Scan") + format), s, seed++, 1);
  for (const char* format : all) {
    for (const Sizes& s : mamba2)
      for (double scale : {1.0, 1e-5, 0.0}) one_step(parse(std::string("Mamba2Scan") + format), s, seed++, scale);
    for (const Sizes& s : mamba1)
      for (double scale : {1.0, 1e-5, 0.0}) one_step(parse(std::string("Mamba1Scan") + format), s, seed++, scale);
  }
  done("scans");
  for (const char* name : {"Mamba2ScanF32", "Mamba2ScanF16", "Mamba2ScanH8", "Mamba2ScanH4", "Mamba2ScanH4Max", "Mamba1ScanF32", "Mamba1ScanH8", "Mamba1ScanH4",
                           "Mamba2ScanH8Static", "Mamba2ScanH4Static"})
    recirculate(parse(name), recirculated);
  CHECK(g_codes_off <= g_codes / 1000, "more than 0.1 %% of codes differ from the CPU's");
  done("512 tokens in place");

  g_runner.scan = scan;
  for (const char* name : {"Mamba2ScanH8Replay", "Mamba2ScanH8MaxReplay", "Mamba2ScanH4Replay", "Mamba2ScanH4MaxReplay"}) {
    const Op op = parse(name);
    for (const Sizes& s : {Sizes{2, 1, 24, 64, 128, 1}, Sizes{3, 1, 4, 48, 64, 2}, Sizes{1, 1, 4, 64, 256, 1}, Sizes{2, 40, 4, 64, 128, 2}, Sizes{2, 1, 3, 5, 6, 1}, Sizes{2, 7, 3, 5, 6, 1}})
      for (int R : {1, 4, 16, 64}) replay_case(op, {"cuda"}, s, R, seed++, 1, false);
  }
  done("replayed states");
  g_runner.rotate = rotate;
  g_runner.gate = gate;
  hadamard_cases({"cuda"}, true);
  gate_cases({"cuda"});
  done("rotations and gates");
}

// One call of few heads, in microseconds.
double few_heads(const char* name, int replay, cudaStream_t stream, int rounds) {
  double most = 0;
  for (int heads : {24, 64}) {
    Random r(5);
    const Op op = parse(name);
    const Sizes s = {1, 1, heads, 64, 128, 1};
    const Inputs in = replay > 0 ? replay_inputs(op, s, replay, r, 1, true) : make_inputs(op, s, r, 1, true);
    most = std::max(most, latency(op, s, in, replay, stream, rounds));
  }
  return most;
}

}  // namespace

int main(int argc, char** argv) {
  bool enforce = false, only_times = false;
  int rounds = 15;
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--gates") == 0) enforce = true;
    if (strcmp(argv[i], "--times") == 0) only_times = true;
    if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc) rounds = std::max(9, atoi(argv[++i]));
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::string json;
    const int status = not_run(enforce, &json);
    fputs(json.c_str(), stdout);
    return status;
  }
  cudaDeviceProp device;
  must(cudaGetDeviceProperties(&device, 0), "device");

  std::string recirculated;
  g_start = now();
  if (!only_times) check_everything(&recirculated);

  cudaStream_t stream;
  must(cudaStreamCreate(&stream), "stream");
  std::vector<Subject> timed = subjects();
  const std::vector<double> copies = time_all(timed, rounds, stream);
  done("times");
  const double few = few_heads("Mamba2ScanH4", 0, stream, rounds), few_static = few_heads("Mamba2ScanH4Static", 0, stream, rounds),
               few_replay = few_heads("Mamba2ScanH4Replay", 16, stream, rounds);
  const std::vector<double> values = {share(timed, "Mamba2ScanF32"), share(timed, "Mamba2ScanF16"), share(timed, "Mamba2ScanH4"),
                                      ratio(timed, "Mamba2ScanF32", "Mamba2ScanH4"), ratio(timed, "Mamba2ScanF16", "Mamba2ScanH4"), few};
  static_assert(kGateCount == 6, "a value for every gate");
  printf("{\n  \"device\": \"%s\", \"compute_capability\": \"%d.%d\", \"rounds\": %d,\n", device.name, device.major, device.minor, rounds);
  printf("  \"checks\": %ld, \"failures\": %ld, \"codes_against_cpu\": %ld, \"codes_off\": %ld,\n", g_checks, g_failures, g_codes, g_codes_off);
  printf("  \"recirculated\": [%s],\n", recirculated.c_str());
  printf("  \"copy_gb_s\": {\"median\": %.1f, \"lowest\": %.1f, \"highest\": %.1f},\n  \"times\": [", median(copies) / 1000, copies.front() / 1000, copies.back() / 1000);
  const char* comma = "";
  for (Subject& s : timed) {
    std::sort(s.times.begin(), s.times.end());
    printf("%s\n    {\"op\": \"%s\", \"us\": %.2f, \"lowest\": %.2f, \"highest\": %.2f, \"share_of_copy\": %.3f}", comma, s.name.c_str(), median(s.times),
           s.times.front(), s.times.back(), median(s.share));
    comma = ",";
  }
  printf("],\n  \"us_at_64_heads_or_fewer\": {\"Mamba2ScanH4\": %.2f, \"Mamba2ScanH4Static\": %.2f, \"Mamba2ScanH4Replay of 16\": %.2f},\n", few, few_static, few_replay);
  std::string gates;
  const bool met = gates_json(values, &gates);
  printf("  %s\n}\n", gates.c_str());
  cudaStreamDestroy(stream);
  return g_failures > 0 ? 1 : enforce && !met ? 2 : 0;
}
