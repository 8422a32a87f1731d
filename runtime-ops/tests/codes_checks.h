// Operators on rows that give 8-bit codes: to the bit what their float forms give, rounded as QuantizeLinear rounds it.
#pragma once
#include "half_checks.h"
#include "mambac/plan.h"

struct CodesRunner {
  int (*rotate)(const char* isa, const mambac_rotate* call, char* error, size_t room);
  int (*gate)(const char* isa, const mambac_gate* call, char* error, size_t room);
};

// round_half_even(value / scale) + zero, saturated; a NaN is the lowest code.
inline int code_of_value(float value, float scale, int zero, bool is_signed) {
  const int low = is_signed ? -128 : 0, high = is_signed ? 127 : 255;
  const float steps = value / scale;
  if (isnan(steps) || steps <= (float)(low - zero)) return low;
  if (steps >= (float)(high - zero)) return high;
  const float down = floorf(steps), rest = steps - down;  // exact: |steps| is at most 255
  const int whole = (int)down;
  return whole + zero + (rest > 0.5f || (rest == 0.5f && whole % 2 != 0) ? 1 : 0);
}

struct Grid {
  float scale;
  int zero;
  bool is_signed;
  uint8_t byte() const { return (uint8_t)zero; }
};
constexpr Grid kGrids[] = {{0.03f, 0, true}, {0.03f, 128, false}, {0.5f, -7, true}, {0.25f, 3, false}, {1e-30f, 128, false}, {3e38f, 0, true}};

// A buffer of codes with a margin that must stay as it is.
struct CodeBuffer {
  std::vector<uint8_t> bytes;
  size_t count;
  explicit CodeBuffer(size_t n) : bytes(n + 64, 0xa5), count(n) {}
  void check(const std::vector<float>& floats, const Grid& g) const {
    for (size_t i = 0; i < count; i++) {
      const int got = g.is_signed ? (int)(int8_t)bytes[i] : (int)bytes[i], want = code_of_value(floats[i], g.scale, g.zero, g.is_signed);
      CHECK(got == want, "code %zu of %.9g / %g is %d, expected %d", i, (double)floats[i], (double)g.scale, got, want);
    }
    for (size_t i = count; i < bytes.size(); i++) CHECK(bytes[i] == 0xa5, "written behind the end");
  }
};

inline mambac_codes codes_of(CodeBuffer& to, const Grid& g, const uint8_t* zero) { return {to.bytes.data(), &g.scale, zero, g.is_signed ? 1 : 0}; }

// What no norm and no rotation of normal numbers gives: ties, neighbours of ties, what saturates, what is no number.
inline std::vector<float> extremes(const Grid& g, size_t count, uint64_t seed) {
  Random r(seed);
  const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, 3.4e38f, -3.4e38f, 1e-42f, -1e-42f, 0.0f, -0.0f};
  std::vector<float> v(count);
  for (float& f : v) {
    const float tie = g.scale * ((float)(r.below(600) - 300) + 0.5f);
    const int kind = r.below(5);
    f = kind == 0 ? odd[r.below(10)] : kind == 1 ? tie : kind == 2 ? nextafterf(tie, r.below(2) ? INFINITY : -INFINITY) : (float)(r.normal() * 60) * g.scale;
  }
  return v;
}

// The kernel that rounds, on any number of values from any place on.
inline void encode_cases(const char* isa) {
  const mambac::Kernels* k = mambac::kernels_named(isa);
  uint64_t seed = 1;
  for (const Grid& g : kGrids)
    for (int count : {0, 1, 15, 16, 17, 63, 64, 65, 130, 1000})
      for (int first : {0, 5}) {
        g_where = std::string(isa) + " encode " + std::to_string(count);
        const std::vector<float> values = extremes(g, (size_t)count, seed++);
        CodeBuffer to((size_t)(first + count));
        const uint8_t zero = g.byte();
        k->encode(values.data(), {to.bytes.data(), &g.scale, &zero, g.is_signed}, first, count);
        for (int i = 0; i < first; i++) CHECK(to.bytes[(size_t)i] == 0xa5, "written before the start");
        to.bytes.erase(to.bytes.begin(), to.bytes.begin() + first);
        to.count -= (size_t)first;
        to.check(values, g);
      }
}

inline void rotate_codes(const CodesRunner& run, const char* isa, int rows, int blocks, int order, int power, uint64_t seed) {
  Random r(seed);
  const int size = blocks * order * power;
  std::vector<float> x = r.normals((size_t)rows * size, 1), factor((size_t)order * order);
  for (float& f : factor) f = r.below(2) ? 1.0f : -1.0f;
  if (rows > 1) x[(size_t)r.below(size)] = seed % 2 ? NAN : INFINITY;  // spoils one block of the first row
  const std::vector<uint16_t> halves = halves_of(x);
  for (int half = 0; half < 2; half++) {
    if (half) x = floats_of(halves);
    const Grid& g = kGrids[seed % 4];
    const uint8_t zero = g.byte();
    char error[320] = "";
    g_where = std::string(isa) + " codes of a rotation of " + std::to_string(rows) + " x " + std::to_string(size) + (half ? ", halves" : "");
    std::vector<float> floats(x.size(), NAN);
    mambac_rotate call = {rows, size, order, power, x.data(), factor.data(), floats.data(), 0, {}};
    CHECK(run.rotate(isa, &call, error, sizeof error) == 0, "%s", error);
    CodeBuffer codes(x.size());
    call.y = nullptr;
    if (half) call.x = behind(halves), call.half = 1;
    call.codes = codes_of(codes, g, &zero);
    CHECK(run.rotate(isa, &call, error, sizeof error) == 0, "%s", error);
    codes.check(floats, g);
  }
}

// group -1: factors inside the sigmoid.
inline void gate_codes(const CodesRunner& run, const char* isa, int rows, int channels, int group, bool before, uint64_t seed) {
  Random r(seed);
  std::vector<float> y = r.normals((size_t)rows * channels, 1), z = r.normals(y.size(), 2), weight = r.normals((size_t)channels, 1);
  if (rows > 1) y[(size_t)r.below(channels)] = seed % 2 ? NAN : INFINITY;
  const std::vector<uint16_t> hy = halves_of(y), hz = halves_of(z);
  for (int half = 0; half < 2; half++) {
    if (half) y = floats_of(hy), z = floats_of(hz);
    const Grid& g = kGrids[seed % 4];
    const uint8_t zero = g.byte();
    char error[320] = "";
    g_where = std::string(isa) + " codes of a gate of " + std::to_string(rows) + " x " + std::to_string(channels) + (half ? ", halves" : "");
    std::vector<float> floats(y.size(), NAN);
    mambac_gate call = {rows, channels, group < 0 ? 0 : group, before, 1e-5f, y.data(), z.data(), weight.data(), floats.data(), group < 0 ? weight.data() : nullptr, 0, {}};
    CHECK(run.gate(isa, &call, error, sizeof error) == 0, "%s", error);
    CodeBuffer codes(y.size());
    call.out = nullptr;
    if (half) call.y = behind(hy), call.z = behind(hz), call.half = 1;
    call.codes = codes_of(codes, g, &zero);
    CHECK(run.gate(isa, &call, error, sizeof error) == 0, "%s", error);
    codes.check(floats, g);
  }
}

inline void codes_refusals() {
  g_where = "refusals of codes";
  const mambac::RowOp& turns = mambac::row_op(mambac::RowKind::kHadamard, true);
  const mambac::RowAttributes attributes = {12, 12, 1, 12, 12, 0, 0};
  mambac::Message m;
  mambac::HadamardArgs rotation;
  mambac::GateArgs gate;
  for (int wrong = 0; wrong < 3; wrong++) {
    mambac::Shape in[] = {{{3, 12}, 2}, {{12, 12}, 2}, {{}, 0}, {{}, 0}};
    if (wrong > 0) in[wrong + 1] = {{1}, 1};
    CHECK(mambac::plan_hadamard(turns, attributes, in, &rotation, &m) == (wrong == 0), "%s", m.text);
    if (wrong > 0) CHECK(strstr(m.text, wrong == 1 ? "HadamardRotateQ8: input scale has shape [1]" : "HadamardRotateQ8: input zero_point has shape [1]"), "%s", m.text);
    for (mambac::RowKind kind : {mambac::RowKind::kSiluGate, mambac::RowKind::kGatedNorm}) {
      const mambac::RowOp& op = mambac::row_op(kind, true);
      mambac::Shape rows[5] = {{{3, 12}, 2}, {{3, 12}, 2}, {{12}, 1}, {{}, 0}, {{}, 0}};
      if (mambac::value_inputs(op) == 2) rows[2] = {{}, 0};
      if (wrong > 0) rows[mambac::value_inputs(op) + wrong - 1] = {{2, 12}, 2};
      CHECK(mambac::plan_gate(op, attributes, rows, &gate, &m) == (wrong == 0), "%s", m.text);
      if (wrong > 0) CHECK(strncmp(m.text, op.name, strlen(op.name)) == 0 && strstr(m.text, "expected a scalar"), "%s", m.text);
    }
  }
  char error[160] = "";
  uint8_t code = 0;
  const float scale = 1;
  mambac_rotate rotate = {0, 12, 12, 1, nullptr, nullptr, nullptr, 0, {&code, nullptr, &code, 0}};
  CHECK(mambac_rotate_run(nullptr, &rotate, error, sizeof error) == 1 && strstr(error, "HadamardRotateQ8: there is no scale"), "%s", error);
  rotate.codes.scale = &scale;
  CHECK(mambac_rotate_run(nullptr, &rotate, error, sizeof error) == 0, "%s", error);
  mambac_gate gates = {0, 12, 6, 0, 1e-5f, nullptr, nullptr, nullptr, nullptr, nullptr, 0, {&code, &scale, nullptr, 0}};
  CHECK(mambac_gate_run(nullptr, &gates, error, sizeof error) == 1 && strstr(error, "GatedRMSNormQ8: there is no scale"), "%s", error);
}

inline void codes_cases(const CodesRunner& run, const char* isa) {
  uint64_t seed = 1;
  for (int rows : {1, 3, 19}) {
    rotate_codes(run, isa, rows, 1, 12, 64, seed++);
    rotate_codes(run, isa, rows, 2, 1, 128, seed++);
    rotate_codes(run, isa, rows, 1, 1, 512, seed++);
    rotate_codes(run, isa, rows, 3, 3, 2, seed++);
    rotate_codes(run, isa, rows, 1, 5, 4, seed++);
    rotate_codes(run, isa, rows, 1, 7, 1, seed++);
    rotate_codes(run, isa, rows, 1, 1, 1, seed++);
    for (int channels : {1, 3, 17, 64, 80, 1000, 1536})
      for (int groups : {-1, 0, 1, 4, 5})
        for (int before = 0; before < (groups > 0 ? 2 : 1); before++)
          if (groups <= 0 || channels % groups == 0) gate_codes(run, isa, rows, channels, groups > 0 ? channels / groups : groups, before != 0, seed++);
  }
  rotate_codes(run, isa, 0, 1, 12, 4, seed++);
  gate_codes(run, isa, 0, 12, 12, false, seed++);
  rotate_codes(run, isa, 2, 1, 1, 16384, seed++);  // rows that do not fit on the stack
  rotate_codes(run, isa, 2, 2, 20, 512, seed++);
  gate_codes(run, isa, 3, 9000, 4500, false, seed++);
  gate_codes(run, isa, 2, 16388, 16388, true, seed++);
}
