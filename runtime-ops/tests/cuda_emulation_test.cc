// The CUDA kernels, run on the host (cuda_emulation.h), against the double reference and the CPU kernels: arithmetic,
// indexing, barriers and the choice of kernels, not what a device's own units do. Exit status 0: all agree.
// Usage: cuda_emulation_test [quick] [PART]: PART leaves out operators whose name does not have it, and with them what is
// tested of all together: "halves", "large" and "positions" (of rings) are such parts, too. Or cuda_emulation_test
// racy-barrier | racy-blocks: runs nothing but a wrong kernel, which the thread sanitizer must report.
#include <memory>

#include "checks.h"
#include "cuda_conv_test.h"
#include "cuda_gates.h"
#include "cuda_half_test.h"
#include "cuda_large_test.h"
#include "cuda_ort_test.h"
#include "cuda_racy.h"
#include "cuda_replay_test.h"
#include "cuda_row_test.h"
#include "mambac/call.h"
#include "mambac/cuda.h"
#include "replay_checks.h"
#include "../src/cuda/launch.h"

using mambac::cuda::emulation;

constexpr double kTolerance = 4e-6;     // of a sum, relative to the magnitudes in it
constexpr double kCodeRounding = 1e-6;  // three approximate factors of up to 2^-22 each

// A buffer at a 16-byte boundary, or `off` bytes behind one.
struct Aligned {
  std::vector<uint8_t> room;
  uint8_t* data;
  Aligned(const void* from, size_t bytes, size_t off) : room(bytes + 32) {
    data = room.data() + (16 - (uintptr_t)room.data() % 16) % 16 + off;
    if (bytes > 0) memcpy(data, from, bytes);
  }
};

static mambac_scan call_of(const Sizes& s, const Inputs& in, const void* past, float* y, void* present, int replay) {
  return {s.B, s.L, s.H, s.P, s.N, s.G, in.dt_min, in.dt_max, in.x.data(), in.dt.data(), in.A.data(), in.B.data(),
          in.C.data(), in.D.data(), in.bias.data(), past, y, present, replay, in.row_step.data(), in.column_step.data()};
}

enum class Buffers { kTwo, kOne, kUnaligned };
static Output run(const Op& op, const Sizes& s, const Inputs& in, Buffers buffers, int replay = 0) {
  Output out;
  out.y.assign((size_t)s.B * s.L * s.channels(), NAN);
  const size_t bytes = in.past.size(), off = buffers == Buffers::kUnaligned ? 4 : 0;
  Aligned past(in.past.data(), bytes, off), present(std::vector<uint8_t>(bytes, 0xa5).data(), bytes, off);
  const bool one = buffers == Buffers::kOne;
  // operand vectors of exactly their size, so that a sanitizer sees every read beyond
  const mambac_scan call = call_of(s, in, past.data, out.y.data(), one ? past.data : present.data, replay);
  const int64_t room = mambac_cuda_scan_workspace(op.name.c_str(), &call);
  CHECK(room >= 0, "no workspace size");
  std::unique_ptr<float[]> workspace(room > 0 ? new float[(size_t)room / 4] : nullptr);
  char error[320] = "";
  CHECK(mambac_cuda_scan_launch(op.name.c_str(), &call, workspace.get(), nullptr, error, sizeof error) == 0, "%s", error);
  const uint8_t* from = one ? past.data : present.data;
  out.present.assign(from, from + bytes);
  return out;
}

static Output run_on_cpu(const Op& op, const Sizes& s, const Inputs& in) {
  Output out;
  out.y.assign((size_t)s.B * s.L * s.channels(), NAN);
  out.present.assign(in.past.size(), 0xa5);
  const mambac_scan call = call_of(s, in, in.past.data(), out.y.data(), out.present.data(), 0);
  char error[320] = "";
  CHECK(mambac_scan_run(op.name.c_str(), nullptr, &call, error, sizeof error) == 0, "%s", error);
  return out;
}

// How far the packed states of the two libraries are apart.
struct Parity {
  long scales = 0, scales_off = 0, codes = 0, off = 0;
};
static Parity g_parity, g_fixed;  // g_fixed: where the CPU's codes are worked out in 16 bits
static void compare_with_cpu(const Op& op, const Sizes& s, const Output& got, const Output& cpu) {
  if (!op.packed()) return;
  const size_t bytes = head_bytes(op, s.P, s.N), codes = op.frozen ? bytes : bytes - 2 * (size_t)(s.P + s.N);
  const bool whole = whole_numbers(op, s);
  Parity& parity = whole || (op.frozen && op.kind == Kind::H4 && s.N % 128 == 0 && s.L == 1) ? g_fixed : g_parity;
  for (int i = 0; i < s.B * s.H; i++) {
    const uint8_t *a = got.present.data() + i * bytes, *b = cpu.present.data() + i * bytes;
    for (size_t j = codes; j < bytes; j += 2) {
      const int d = u16(a + j) - u16(b + j);
      parity.scales++;
      parity.scales_off += d != 0;
      const int most = j < codes + 2 * (size_t)s.P ? 1 : whole ? 3 : 2;  // state scales are relative to the channels' coarser halves
      CHECK(abs(d) <= most, "the scale at byte %zu is %d halves from the CPU's", j, d);
    }
    for (int j = 0; j < s.P * s.N; j++) {
      const int d = code_at(op, a, j) - code_at(op, b, j);
      parity.codes++;
      parity.off += d != 0;
      CHECK(d >= -1 && d <= 1, "code %d is %d from the CPU's", j, d);
    }
  }
}

static Inputs first_tokens(const Op& op, const Sizes& s, const Inputs& in, int count) {
  Inputs out = in;
  out.x.clear(), out.dt.clear(), out.B.clear(), out.C.clear();
  for (int b = 0; b < s.B; b++) {
    auto append = [&](std::vector<float>& to, const std::vector<float>& v, size_t width) {
      to.insert(to.end(), v.begin() + (long)(b * s.L * width), v.begin() + (long)((b * s.L + count) * width));
    };
    append(out.x, in.x, s.channels());
    append(out.dt, in.dt, s.rates(op));
    append(out.B, in.B, (size_t)s.G * s.N);
    append(out.C, in.C, (size_t)s.G * s.N);
  }
  return out;
}

static void name_case(const Op& op, const Sizes& s, uint64_t seed, double scale) {
  char text[160];
  snprintf(text, sizeof text, "%s B%d L%d H%d P%d N%d G%d seed %llu scale %g", op.name.c_str(), s.B, s.L, s.H, s.P, s.N, s.G,
           (unsigned long long)seed, scale);
  g_where = text;
}

static void one_case(const Op& op, const Sizes& s, uint64_t seed, double scale, bool zero_state, bool every_order) {
  name_case(op, s, seed, scale);
  Random r(seed);
  Inputs in = make_inputs(op, s, r, scale, zero_state, op.frozen ? (int)(seed % 8) : kHoles);
  emulation.order = 0;
  const Output out = run(op, s, in, Buffers::kTwo);
  CHECK(same(out, run(op, s, in, Buffers::kOne)), "one buffer as past and present gives other bits");
  for (int order = 1; order < 3 && every_order; order++) {
    emulation.order = order;
    CHECK(same(out, run(op, s, in, order == 1 ? Buffers::kOne : Buffers::kTwo)), "threads in order %d give other bits", order);
  }
  emulation.order = 0;
  if (!op.token || s.L == 1) {
    const Result want = scan(op, s, in);
    check_y(want, out.y, kTolerance);
    check_state(op, s, want, out.present, kTolerance, kCodeRounding, &in);
    compare_with_cpu(op, s, out, run_on_cpu(op, s, in));
    return;
  }
  // A state that is rounded at every token goes its own way after a tie, so its tokens are checked one by one: the state
  // before token l is what the same kernel stores after l tokens.
  // (A single token runs in another kernel, so the walk starts with two.)
  Sizes some = s, one = s;
  one.L = 1;
  std::vector<uint8_t> before;
  for (int l = 1; l < s.L; l++) {
    some.L = l + 1;
    const Output head = run(op, some, first_tokens(op, s, in, l + 1), Buffers::kOne);
    if (l > 1) {
      Inputs step = token_of(op, s, in, l);
      step.past = before;
      const Result want = scan(op, one, step);
      std::vector<float> y;
      const size_t width = (size_t)s.channels();
      for (int b = 0; b < s.B; b++) {
        const auto from = head.y.begin() + (long)(((size_t)b * some.L + l) * width);
        y.insert(y.end(), from, from + (long)width);
      }
      check_y(want, y, kTolerance);
      check_state(op, one, want, head.present, kTolerance, kCodeRounding, &step);
    }
    before = head.present;
    if (l + 1 == s.L) CHECK(same(head, out), "not the bits of the same call before");
  }
}

// One input that is not a number, with given steps: it shows in y and ends as the lowest code, in its own row alone.
static void not_a_number(const Op& op, Buffers buffers) {
  for (int tokens : {1, 2}) {
    const Sizes s = {1, tokens, 2, 16, 128, 1};
    name_case(op, s, 123, 1);
    Random r(123);
    Inputs in = make_inputs(op, s, r, 1, false);
    const Output good = run(op, s, in, buffers);
    const size_t at = (size_t)((tokens - 1) * s.channels() + 5);
    in.x[at] = NAN;
    const Output bad = run(op, s, in, buffers);
    for (size_t i = 0; i < good.y.size(); i++) CHECK(i == at ? bad.y[i] != bad.y[i] : bad.y[i] == good.y[i], "y[%zu] = %.9g", i, (double)bad.y[i]);
    for (int i = 0; i < s.H * s.P * s.N; i++) {
      const int code = code_at(op, bad.present.data(), i);
      CHECK(i / s.N == 5 ? code == -op.qmax() : code == code_at(op, good.present.data(), i), "code %d: %d", i, code);
    }
  }
}

// No token: the state passes. No batch: nothing happens.
static void nothing(const Op& op, Sizes s) {
  s.L = 0;
  name_case(op, s, 5, 1);
  Random r(5);
  const Inputs in = make_inputs(op, s, r, 1, false);
  CHECK(run(op, s, in, Buffers::kTwo).present == in.past && run(op, s, in, Buffers::kOne).present == in.past, "another state");
  s.L = 1, s.B = 0;
  const long before = emulation.launches;
  run(op, s, make_inputs(op, s, r, 1, false), Buffers::kTwo);
  CHECK(emulation.launches == before, "a launch without work");
}

// 512 tokens, each a call of its own, the state in place. Each is checked from the state the kernel left; and the whole run
// must be as far from the unrounded recurrence as the reference's.
static void recirculate(const Op& op, int P, int tokens) {
  const Sizes s = {1, tokens, 2, P, op.two ? 128 : 16, 1};
  name_case(op, s, 77, 1);
  Random r(77);
  Inputs in = make_inputs(op, s, r, 1, true);
  Recirculation run_of(op, s, in);
  Sizes one = s;
  one.L = 1;
  std::vector<uint8_t> state = in.past;
  for (int l = 0; l < tokens; l++) {
    Inputs step = token_of(op, s, in, l);
    step.past = state;
    const Output o = run(op, one, step, Buffers::kOne);
    if (l % 8 == 0 || l + 20 > tokens) {
      const Result want = scan(op, one, step);
      check_y(want, o.y, kTolerance);
      check_state(op, one, want, o.present, kTolerance, kCodeRounding, &step);
    }
    run_of.add((size_t)l * s.channels(), o.y);
    state = o.present;
  }
  run_of.check(op);
  printf("%s: %d tokens in place: relative error %.3g, the reference's %.3g\n", op.name.c_str(), tokens, run_of.relative(),
         run_of.reference());
}

// That sizes of real models reach the kernels made for them.
static void choices() {
  g_where = "choices";
  const mambac::cuda::Device d = {132, 227 * 1024};
  struct Case {
    const char* op;
    int batch, length, heads, head_dim, d_state, groups;
    int threads;  // of the fast kernel's blocks
  };
  const Case cases[] = {
      {"Mamba2ScanH4", 128, 1, 64, 64, 128, 1, 128},    {"Mamba2ScanH4", 1, 1, 24, 64, 128, 1, 256},
      {"Mamba2ScanH4Max", 64, 1, 80, 64, 128, 8, 128},  {"Mamba2ScanH8", 128, 1, 64, 64, 128, 1, 128},
      {"Mamba2ScanH4", 64, 1, 128, 64, 256, 1, 256},    {"Mamba2ScanH4", 64, 1, 128, 64, 64, 8, 64},
      {"Mamba2ScanH4", 64, 1, 128, 72, 128, 8, 288},    {"Mamba1ScanH8", 4, 1, 24, 64, 16, 1, 32},
      {"Mamba2ScanF32", 64, 1, 64, 64, 128, 1, 128},    {"Mamba2ScanF16", 1, 1, 24, 64, 128, 1, 128},
      {"Mamba1ScanF32", 1, 1, 24, 64, 16, 1, 128},      {"Mamba2ScanH4", 1, 512, 24, 64, 128, 1, 256},
      {"Mamba2ScanH4Static", 128, 1, 64, 64, 128, 1, 128}, {"Mamba2ScanH4Static", 1, 1, 24, 64, 128, 1, 32},
      {"Mamba2ScanH8Static", 64, 1, 64, 64, 64, 8, 128}, {"Mamba2ScanH8StaticToken", 1, 512, 24, 64, 128, 1, 128},
      {"Mamba2ScanH4Replay", 128, 1, 64, 64, 128, 1, 128}, {"Mamba2ScanH8MaxReplay", 1, 1, 24, 64, 128, 1, 256},
      {"Mamba2ScanH4Replay", 1, 512, 24, 64, 128, 1, 256},
      {"Mamba2ScanH8Token", 1, 7, 24, 128, 128, 1, 512}, {"Mamba1ScanH8", 1, 512, 24, 64, 16, 1, 64},
  };
  for (const Case& c : cases) {
    alignas(16) static float operand[4];
    mambac_scan call = {c.batch, c.length, c.heads, c.head_dim, c.d_state, c.groups, -INFINITY, INFINITY, operand, operand, operand,
                        operand, operand, operand, operand, operand, operand, operand, 16, operand, operand};
    mambac::ScanArgs a;
    mambac::Message m;
    CHECK(mambac::scan_args(c.op, &call, &a, &m), "%s", m.text);
    mambac::cuda::Choice choice;
    const bool fast = mambac::cuda::pick_fast(a, d, &choice);
    CHECK(fast && choice.grid.threads == c.threads, "%s B%d L%d P%d N%d: fast %d, threads %d", c.op, c.batch, c.length, c.head_dim,
          c.d_state, fast, fast ? choice.grid.threads : 0);
  }
}

// The registered operators of the CUDA provider give what the C interface gives, on the node's stream.
static void registration() {
  g_where = "registration";
  static const host::Api api = host::make_api();
  static const host::ApiBase base = {[](uint32_t) -> const host::Api* { return &api; }, [] { return "1.30.0"; }};
  CHECK(RegisterCustomOps(nullptr, &base) == nullptr, "%s", host::g_status.c_str());
  CHECK(host::g_ops.size() == 4 * (size_t)(mambac::kScanOps + mambac::kConvOps + mambac::kRowOps + mambac::kRowKinds), "%zu operators", host::g_ops.size());
  int stream;
  for (int i = 0; i < mambac::kScanOps; i++) {
    const Op op = parse(mambac::scan_ops()[i].name);
    const Sizes s = op.two ? Sizes{2, 1, 4, 16, 128, 2} : Sizes{2, 1, 4, 16, 16, 2};
    name_case(op, s, 3, 1);
    host::find_op(op.name.c_str(), false);
    Random r(3);
    const int R = op.replay ? 4 : 0;
    Inputs in = op.replay ? replay_inputs(op, s, R, r, 1, false) : make_inputs(op, s, r, 1, false);
    const Output want = run(op, s, in, Buffers::kTwo, R);
    Output got;
    got.y.assign(want.y.size(), NAN);
    Aligned past(in.past.data(), in.past.size(), 0), present(in.past.data(), in.past.size(), 0);
    const int64_t B = s.B, L = s.L, H = s.H, P = s.P, N = s.N, G = s.G, E = H * P;
    const int state = op.kind == Kind::F32 ? 1 : op.kind == Kind::F16 ? 10 : 2;
    std::vector<int64_t> shape = op.replay   ? std::vector<int64_t>{B, (int64_t)replay_parts(op, s, R).bytes}
                                 : op.packed() ? std::vector<int64_t>{B, H, (int64_t)head_bytes(op, s.P, s.N)}
                                 : op.two    ? std::vector<int64_t>{B, H, P, N}
                                             : std::vector<int64_t>{B, E, N};
    typedef std::vector<int64_t> Dims;
    host::Context c;
    c.stream = &stream;
    c.inputs = {{1, op.two ? Dims{B, L, H, P} : Dims{B, L, E}, in.x.data()},
                {1, op.two ? Dims{B, L, H} : Dims{B, L, E}, in.dt.data()},
                {1, op.two ? Dims{H} : Dims{E, N}, in.A.data()},
                {1, {B, L, G, N}, in.B.data()},
                {1, {B, L, G, N}, in.C.data()},
                {1, op.two ? Dims{H, P} : Dims{E}, in.D.data()},
                {1, op.two ? Dims{H} : Dims{E}, in.bias.data()},
                {state, shape, past.data}};
    if (op.frozen) c.inputs.push_back({1, {H, P}, in.row_step.data()}), c.inputs.push_back({1, {G, N}, in.column_step.data()});
    c.outputs = {{1, {}, got.y.data()}, {state, {}, present.data}};
    const host::Node node = {{{"num_heads", H}, {"channels", E}, {"head_dim", P}, {"d_state", N}, {"num_groups", G}, {"chunk_size", 64}, {"replay_length", R}},
                             {{"dt_min", in.dt_min}, {"dt_max", in.dt_max}}};
    const host::CustomOp* registered = host::find_op(op.name.c_str(), true);
    std::string error = host::compute(api, registered, node, c);
    CHECK(error.empty(), "%s", error.c_str());
    got.present.assign(present.data, present.data + in.past.size());
    CHECK(same(got, want), "other bits than through the C interface");
    CHECK(emulation.stream == &stream, "not on the node's stream");
    CHECK(c.outputs[1].dims == shape, "shape of the state");
    emulation.device.shared_bytes = 0;  // no kernel of this device fits: the message must say which operator failed
    error = host::compute(api, registered, node, c);
    emulation.device.shared_bytes = 227 * 1024;
    if (op.packed() && !op.frozen && !op.replay) CHECK(error.find(op.name) == 0 && error.find("CUDA error") != std::string::npos, "message: %s", error.c_str());
  }
  const ConvSizes s = {2, 5, 3, 4, 3};
  g_where = "registration of CausalConvSilu";
  Random r(4);
  std::vector<float> x = r.normals(30, 1), w = r.normals(20, 1), bias = r.normals(5, 1), past = r.normals(30, 1), y(30), present(30), state;
  std::vector<double> want;
  conv(s, true, x.data(), w.data(), bias.data(), past.data(), want, state);
  host::Context c;
  c.stream = &stream;
  c.inputs = {{1, {2, 5, 3}, x.data()}, {1, {5, 1, 4}, w.data()}, {1, {5}, bias.data()}, {1, {2, 5, 3}, past.data()}};
  c.outputs = {{1, {}, y.data()}, {1, {}, present.data()}};
  const host::Node node = {{{"channels", 5}, {"kernel_size", 4}, {"state_width", 3}}, {}};
  const std::string error = host::compute(api, host::find_op("CausalConvSilu", true), node, c);
  CHECK(error.empty() && present == state, "%s", error.c_str());
  for (size_t i = 0; i < y.size(); i++) CHECK(fabs(y[i] - want[i]) < 1e-5, "y[%zu]", i);

  g_where = "registration of CausalConvSilu with halves";
  const host::CustomOp* halves = host::find_op("CausalConvSilu", true, host::kFloat16);
  std::vector<uint16_t> half_x = halves_of(x), half_past = halves_of(past), half_y(30), half_present(30);
  c.inputs[0] = {10, {2, 5, 3}, half_x.data()};
  c.outputs = {{10, {}, half_y.data()}, {10, {}, half_present.data()}};
  std::string mixed = host::compute(api, halves, node, c);
  CHECK(mixed.find("CausalConvSilu: input 3 has element type 1") == 0, "%s", mixed.c_str());
  c.inputs[3] = {10, {2, 5, 3}, half_past.data()};
  mixed = host::compute(api, halves, node, c);
  CHECK(mixed.empty() && half_present == halves_of(state), "%s", mixed.c_str());
  for (size_t i = 0; i < y.size(); i++) CHECK(fabs(half_value(half_y[i]) - want[i]) < 2e-3 * (1 + fabs(want[i])), "y[%zu]", i);
  for (const host::CustomOp* op : host::g_ops) {
    const bool half = op->GetInputType(op, 0) == host::kFloat16;
    const host::ElementType result = op->GetOutputType(op, 0), zero = op->GetInputType(op, op->GetInputTypeCount(op) - 1);
    const bool codes = strstr(op->GetName(op), "Q8") != nullptr;
    CHECK(codes ? result == zero && (result == host::kInt8 || result == host::kUint8) : result == op->GetInputType(op, 0), "%s: type of the result", op->GetName(op));
    if (strncmp(op->GetName(op), "Mamba", 5) != 0) continue;
    for (size_t i : {1u, 3u, 4u}) CHECK((op->GetInputType(op, i) == host::kFloat16) == half, "%s: input %zu", op->GetName(op), i);
    for (size_t i : {2u, 5u, 6u}) CHECK(op->GetInputType(op, i) == host::kFloat, "%s: input %zu", op->GetName(op), i);
  }
}

// Without a device the harness names every gate, calls none met, and ends badly where gates were asked for.
static void gates_without_device() {
  g_where = "gates";
  std::string json, run;
  CHECK(not_run(false, &json) == 0 && not_run(true, &json) == kNotRun, "status");
  for (const Gate& g : kGates) CHECK(json.find(std::string("{\"gate\": \"") + g.name) != std::string::npos && strncmp(g.name, g.key, 2) == 0, "%s is missing", g.name);
  for (const char* key : {"\"G1 ", "\"G2 ", "\"G3 ", "\"G4 "}) CHECK(json.find(key) != std::string::npos, "%s is missing", key);
  CHECK(json.find("\"met\"") == std::string::npos && json.find("missed") == std::string::npos, "%s", json.c_str());
  std::vector<double> values;
  for (const Gate& g : kGates) values.push_back(g.minimum);
  CHECK(gates_json(values, &run) && run.find("not run") == std::string::npos, "%s", run.c_str());
  values.back() = 4.5;  // a time above its most
  CHECK(!gates_json(values, &run) && run.find("\"value\": 4.500, \"result\": \"missed\"") != std::string::npos, "%s", run.c_str());
}

int main(int argc, char** argv) {
  if (argc > 1 && strncmp(argv[1], "racy-", 5) == 0) return racy::run(strcmp(argv[1], "racy-barrier") == 0);
  bool quick = false;
  std::string part;
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "quick") == 0)
      quick = true;
    else
      part = argv[i];
  }
  auto wanted = [&](const char* name) { return std::string(name).find(part) != std::string::npos; };
  if (part.empty()) {
    choices();
    gates_without_device();
    registration();
    row_test::registration_of_rows();
  }
  // B, L, H, P, N, G; a quick run takes the first ones
  const std::vector<Sizes> one_token = {{2, 1, 4, 32, 128, 2}, {1, 1, 2, 24, 256, 1}, {1, 1, 3, 5, 6, 1},   {1, 1, 3, 64, 64, 3},
                                        {3, 1, 5, 16, 128, 1}, {2, 1, 4, 64, 128, 2}, {1, 1, 2, 64, 256, 2}, {1, 1, 2, 8, 64, 1},
                                        {2, 1, 2, 128, 128, 1}, {1, 1, 2, 33, 20, 2}, {2, 1, 4, 12, 128, 4}};
  const std::vector<Sizes> one_token1 = {{1, 1, 4, 64, 16, 2}, {1, 1, 2, 72, 16, 2}, {2, 1, 3, 4, 16, 4}, {2, 1, 2, 64, 16, 1},
                                         {3, 1, 3, 8, 16, 1},  {1, 1, 4, 4, 8, 2},   {1, 1, 1, 130, 16, 1}};
  const std::vector<Sizes> tokens = {{2, 3, 2, 16, 128, 1}, {1, 37, 2, 16, 64, 2}, {1, 3, 1, 64, 256, 1}, {2, 5, 2, 64, 128, 1},
                                     {1, 4, 2, 20, 128, 1}, {2, 3, 2, 5, 6, 1}};
  const std::vector<Sizes> tokens1 = {{1, 5, 2, 24, 16, 2}, {1, 35, 2, 24, 16, 2}, {2, 5, 2, 64, 16, 1}, {2, 3, 3, 4, 8, 1}};
  for (int i = 0; i < mambac::kScanOps; i++) {
    const Op op = parse(mambac::scan_ops()[i].name);
    if (op.replay && part == "positions") replay_test::positions(op, quick);
    if (!wanted(op.name.c_str())) continue;
    if (op.replay) {
      replay_test::all(op, quick);
      continue;
    }
    uint64_t seed = (uint64_t)i * 1000;
    auto sweep = [&](const std::vector<Sizes>& all, size_t most) {
      for (size_t j = 0; j < all.size() && (j < most || !quick); j++) {
        const Sizes& s = all[j];
        emulation.device.multiprocessors = 132;  // few heads
        one_case(op, s, seed++, 1, false, true);
        emulation.device.multiprocessors = 1;  // more heads than blocks
        one_case(op, s, seed++, 1, false, s.L == 1);
        if (quick) continue;
        one_case(op, s, seed++, 1e-3, false, false);
        one_case(op, s, seed++, 1, true, false);
      }
    };
    sweep(op.two ? one_token : one_token1, 3);
    sweep(op.two ? tokens : tokens1, 1);
    emulation.device.multiprocessors = 4;
    const Sizes few = op.two ? Sizes{1, 1, 3, 16, 128, 1} : Sizes{1, 1, 3, 16, 16, 1};
    for (double scale : {1e-9, 1e-6, 30.0, op.kind == Kind::F16 ? 300.0 : 2000.0}) one_case(op, few, seed++, scale, false, false);
    nothing(op, few);
    if (op.frozen) not_a_number(op, Buffers::kTwo), not_a_number(op, Buffers::kUnaligned);

    name_case(op, few, seed, 1);
    Random r(seed);
    const Inputs in = make_inputs(op, few, r, 1, false);
    const Output fast = run(op, few, in, Buffers::kTwo), general = run(op, few, in, Buffers::kUnaligned);
    check_y(scan(op, few, in), general.y, kTolerance);
    check_state(op, few, scan(op, few, in), general.present, kTolerance, kCodeRounding, &in);
    emulation.device.shared_bytes = 256;  // the general kernel's state in the workspace
    CHECK(same(general, run(op, few, in, Buffers::kUnaligned)), "workspace and shared memory give other bits");
    emulation.device.shared_bytes = 227 * 1024;
    compare_with_cpu(op, few, fast, general);
  }
  if (!quick) {
    for (const char* name : {"Mamba2ScanF32", "Mamba2ScanF16", "Mamba2ScanH8", "Mamba2ScanH4", "Mamba2ScanH4Max", "Mamba1ScanF32",
                             "Mamba1ScanF16", "Mamba1ScanH8", "Mamba1ScanH4", "Mamba2ScanH4Static", "Mamba2ScanH8Static"})
      if (wanted(name)) recirculate(parse(name), 16, 512);
  } else if (wanted("Mamba2ScanH4")) {
    recirculate(parse("Mamba2ScanH4"), 16, 64);
  }
  const ConvSizes convs[] = {{2, 5, 1, 4, 3}, {1, 70, 1, 4, 4}, {1, 3, 1, 3, 7}, {1, 2, 1, 1, 0}, {2, 3, 9, 4, 3}, {1, 2, 300, 4, 3},
                             {1, 2, 2, 4, 9}, {1, 1, 3, 2, 200}, {1, 2, 0, 4, 3}, {0, 2, 1, 4, 3}, {1, 2, 3, 1, 0}, {1, 1, 5, 6, 300}};
  uint64_t seed = 1;
  for (const ConvSizes& s : convs)
    for (int silu = 0; silu < 2 && wanted("CausalConvSiluSplit"); silu++) {
      conv_case(s, silu != 0, seed++);
      conv_rows_case(s, silu != 0, false, seed);
      if (s.E >= 3) conv_rows_case(s, silu != 0, true, seed);
    }
  if (wanted("HadamardRotate, SlopedSiluGate, GatedRMSNorm")) row_test::all(quick);
  for (int processors : {132, 1}) {
    if (!wanted("halves")) continue;
    emulation.device.multiprocessors = processors;
    emulation.order = processors == 1 ? 2 : 0;
    half_test::all();
  }
  emulation.order = 0;
  if (wanted("large")) large_test::all();

  g_where = "parity";
  CHECK(g_parity.off <= g_parity.codes / 1000, "more than 0.1 %% of codes differ from the CPU's");
  CHECK(g_fixed.off <= g_fixed.codes / 1000, "more than 0.1 %% of codes differ from the CPU's 16-bit ones");
  CHECK(g_parity.scales_off <= g_parity.scales / 500, "more than 0.2 %% of scales differ from the CPU's");
  printf("codes %ld, off by one %ld; scales %ld, neighbouring half %ld\n", g_tally.codes, g_tally.off, g_tally.scales, g_tally.scales_off);
  printf("against the CPU: of %ld scales %ld are the neighbouring half, of %ld codes %ld differ by one\n", g_parity.scales,
         g_parity.scales_off, g_parity.codes, g_parity.off);
  const replay_test::Parity& replayed = replay_test::g_parity;
  CHECK(replayed.off <= replayed.codes / 1000 && replayed.scales_off <= replayed.scales / 500, "replayed states differ too often from the CPU's");
  CHECK(replayed.y_off <= replayed.y / 1000, "of %ld y %ld differ from the CPU's", replayed.y, replayed.y_off);
  printf("replayed states: of %ld scales %ld are the neighbouring half, of %ld codes %ld differ by one\n", replayed.scales, replayed.scales_off,
         replayed.codes, replayed.off);
  printf("where the CPU works in 16 bits: of %ld codes %ld differ by one\n", g_fixed.codes, g_fixed.off);
  printf("%ld launches, %ld blocks\n%ld checks, %ld failures\n", emulation.launches, emulation.blocks, g_checks, g_failures);
  return g_failures == 0 ? 0 : 1;
}
