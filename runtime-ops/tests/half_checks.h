// Activations of half precision: every half and many floats through the conversions, and calls of halves beside calls of floats.
#pragma once
#include "checks.h"
#include "mambac/capi.h"
#include "mambac/plan.h"

inline std::vector<uint16_t> halves_of(const std::vector<float>& v) {
  std::vector<uint16_t> out(v.size());
  for (size_t i = 0; i < v.size(); i++) out[i] = half_bits(v[i]);
  return out;
}
inline std::vector<float> floats_of(const std::vector<uint16_t>& v) {
  std::vector<float> out(v.size());
  for (size_t i = 0; i < v.size(); i++) out[i] = (float)half_value(v[i]);
  return out;
}
inline const float* behind(const std::vector<uint16_t>& v) { return (const float*)(const void*)v.data(); }
inline float* behind(std::vector<uint16_t>& v) { return (float*)(void*)v.data(); }

inline void conversions(const std::vector<const char*>& isas) {
  std::vector<uint16_t> every(65536);
  for (int i = 0; i < 65536; i++) every[(size_t)i] = (uint16_t)i;
  Random r(41);
  std::vector<float> floats;
  for (int i = 0; i < 200000; i++) {
    // Near halves and their midpoints, and of every size.
    const float near = (float)half_value((uint16_t)(r.next() & 0x7bff)), size = ldexpf((float)r.normal(), (int)(r.next() % 48) - 30);
    floats.push_back(i % 2 ? size : near * (1 + (float)((int)(r.next() % 9) - 4) * 0x1p-13f));
  }
  for (float f : {0.0f, -0.0f, 65504.0f, 65519.996f, 65520.0f, INFINITY, -INFINITY, 0x1p-25f, 0x1.000002p-25f, 0x1p-24f, 0x1.8p-24f}) floats.push_back(f);
  for (const char* isa : isas) {
    const mambac::Kernels* k = mambac::kernels_named(isa);
    g_where = std::string(isa) + " conversions";
    for (size_t first : {0u, 1u, 7u}) {
      const size_t count = every.size() - first;
      std::vector<float> wide(count, -1.0f);
      k->widen(every.data() + first, wide.data(), (int64_t)count);
      for (size_t i = 0; i < count; i++) {
        const uint16_t h = every[first + i];
        const bool finite = (h & 0x7c00) != 0x7c00;
        if (finite) CHECK((double)wide[i] == half_value(h) && std::signbit(wide[i]) == (h >> 15 != 0), "%04x is %g", h, (double)wide[i]);
        else CHECK((h & 0x3ff) != 0 ? wide[i] != wide[i] : wide[i] == (h & 0x8000 ? -INFINITY : INFINITY), "%04x is %g", h, (double)wide[i]);
      }
    }
    for (size_t count : {floats.size(), (size_t)1, (size_t)15, (size_t)16, (size_t)17}) {
      std::vector<uint16_t> narrow(count + 1, 0xabcd);
      k->narrow(floats.data(), narrow.data(), (int64_t)count);
      for (size_t i = 0; i < count; i++) CHECK(narrow[i] == half_bits(floats[i]), "%.9g is %04x, not %04x", (double)floats[i], narrow[i], half_bits(floats[i]));
      CHECK(narrow[count] == 0xabcd, "wrote beyond its end");
    }
  }
}

// How calls are run: the CPU's kernels, or others that compute the same with floats and halves.
struct HalfRunner {
  int (*scan)(const char* op, const char* isa, const mambac_scan* call, char* error, size_t room);
  int (*conv)(const char* op, const char* isa, const mambac_conv* call, char* error, size_t room);
  int (*rotate)(const char* isa, const mambac_rotate* call, char* error, size_t room);
  int (*gate)(const char* isa, const mambac_gate* call, char* error, size_t room);
};

// The call of floats on the values of the halves is the same call before its last rounding.
inline void half_scan(const HalfRunner& run, const Op& op, const char* isa, const Sizes& s, uint64_t seed) {
  Random r(seed);
  Inputs in = make_inputs(op, s, r, 1, false, 0);
  const std::vector<uint16_t> x = halves_of(in.x), dt = halves_of(in.dt), B = halves_of(in.B), C = halves_of(in.C);
  in.x = floats_of(x), in.dt = floats_of(dt), in.B = floats_of(B), in.C = floats_of(C);
  constexpr int replay = 4;
  if (op.replay) in.past.assign((size_t)(s.B * mambac_replay_bytes(op.name.c_str(), s.H, s.P, s.N, s.G, replay)), 0);
  char text[120], error[320] = "";
  snprintf(text, sizeof text, "%s %s halves B%d L%d H%d P%d N%d", isa, op.name.c_str(), s.B, s.L, s.H, s.P, s.N);
  g_where = text;
  std::vector<float> y((size_t)s.B * s.L * s.channels(), NAN);
  std::vector<uint16_t> half_y(y.size(), 0x7e00);
  std::vector<uint8_t> present(in.past.size()), half_present(in.past.size());
  mambac_scan call = {s.B, s.L, s.H, s.P, s.N, s.G, in.dt_min, in.dt_max, in.x.data(), in.dt.data(), in.A.data(), in.B.data(), in.C.data(), in.D.data(),
                      in.bias.data(), in.past.data(), y.data(), present.data(), op.replay ? replay : 0, in.row_step.data(), in.column_step.data(), 0};
  CHECK(run.scan(op.name.c_str(), isa, &call, error, sizeof error) == 0, "%s", error);
  call.x = behind(x), call.dt = behind(dt), call.B = behind(B), call.C = behind(C), call.y = behind(half_y);
  call.present = half_present.data();
  call.half = 1;
  CHECK(run.scan(op.name.c_str(), isa, &call, error, sizeof error) == 0, "%s", error);
  CHECK(present == half_present, "another state");
  for (size_t i = 0; i < y.size(); i++) CHECK(half_y[i] == half_bits(y[i]), "y[%zu] is %04x, not %04x", i, half_y[i], half_bits(y[i]));
}

inline void half_conv(const HalfRunner& run, const char* isa, int B, int E, int L, int K, int W, uint64_t seed) {
  Random r(seed);
  std::vector<float> x = r.normals((size_t)B * E * L, 2), weight = r.normals((size_t)E * K, 1), bias = r.normals((size_t)E, 1), past = r.normals((size_t)B * E * W, 1);
  const std::vector<uint16_t> hx = halves_of(x), hpast = halves_of(past);
  x = floats_of(hx), past = floats_of(hpast);
  std::vector<float> y(x.size()), present(past.size());
  std::vector<uint16_t> half_y(y.size()), half_present = hpast;
  char error[320] = "";
  g_where = std::string(isa) + " convolution of halves";
  mambac_conv call = {B, E, L, K, W, x.data(), weight.data(), bias.data(), past.data(), y.data(), present.data(), 0};
  CHECK(run.conv("CausalConvSilu", isa, &call, error, sizeof error) == 0, "%s", error);
  call.x = behind(hx), call.past = behind(half_present), call.y = behind(half_y), call.present = behind(half_present);  // one buffer
  call.half = 1;
  CHECK(run.conv("CausalConvSilu", isa, &call, error, sizeof error) == 0, "%s", error);
  for (size_t i = 0; i < y.size(); i++) CHECK(half_y[i] == half_bits(y[i]), "y[%zu]", i);
  for (size_t i = 0; i < present.size(); i++) CHECK(half_present[i] == half_bits(present[i]), "present[%zu]", i);
}

// Tokens in rows among other channels, which are not numbers; as one output, or split in three.
inline void half_conv_rows(const HalfRunner& run, const char* isa, const ConvSizes& s, bool silu, bool split, uint64_t seed) {
  Random r(seed);
  const int first = (int)(seed % 4), row = first + s.E + (int)(seed % 3), one = split ? (s.E + 1) / 3 : s.E, two = split ? s.E / 3 : 0;
  const int sizes[3] = {one, two, s.E - one - two};
  std::vector<uint16_t> hx = halves_of(r.normals((size_t)s.B * s.L * row, 2)), hpast = halves_of(r.normals((size_t)s.B * s.E * s.W, 1));
  for (size_t i = 0; i < hx.size(); i++)
    if ((int)(i % (size_t)row) < first || (int)(i % (size_t)row) >= first + s.E) hx[i] = 0x7e00;
  const std::vector<float> x = floats_of(hx), past = floats_of(hpast), weight = r.normals((size_t)s.E * s.K, 1), bias = r.normals((size_t)s.E, 1);
  std::vector<float> y[3], present(past.size(), NAN);
  for (int p = 0; p < 3; p++) y[p].assign((size_t)s.B * s.L * sizes[p], NAN);
  const char* const names[2][2] = {{"CausalConvRows", "CausalConvSiluRows"}, {"CausalConvSplit", "CausalConvSiluSplit"}};
  const char* const name = names[split][silu];
  char text[160], error[320] = "";
  snprintf(text, sizeof text, "%s %s of halves B%d E%d L%d K%d W%d row %d first %d", isa, name, s.B, s.E, s.L, s.K, s.W, row, first);
  g_where = text;
  mambac_conv call = {s.B, s.E, s.L, s.K, s.W, x.data(), weight.data(), bias.data(), past.data(), y[0].data(), present.data(), 0, row, first, one, two,
                      y[1].data(), y[2].data()};
  CHECK(run.conv(name, isa, &call, error, sizeof error) == 0, "%s", error);
  for (int alias = 0; alias < 2; alias++) {
    std::vector<uint16_t> half_y[3], half_present = alias ? hpast : std::vector<uint16_t>(hpast.size(), 0x7e00);
    for (int p = 0; p < 3; p++) half_y[p].assign(y[p].size(), 0x7e00);
    mambac_conv half = call;
    half.half = 1;
    half.x = behind(hx), half.past = alias ? behind(half_present) : behind(hpast), half.present = behind(half_present);
    half.y = behind(half_y[0]), half.y2 = behind(half_y[1]), half.y3 = behind(half_y[2]);
    CHECK(run.conv(name, isa, &half, error, sizeof error) == 0, "%s", error);
    for (int p = 0; p < 3; p++)
      for (size_t i = 0; i < y[p].size(); i++)
        CHECK(half_y[p][i] == half_bits(y[p][i]), "part %d [%zu] is %04x, not %04x, alias %d", p, i, half_y[p][i], half_bits(y[p][i]), alias);
    CHECK(half_present == halves_of(present), "another state, alias %d", alias);
  }
}

inline void half_rows(const HalfRunner& run, const char* isa, int rows, int channels, int group, bool before, uint64_t seed) {
  Random r(seed);
  std::vector<float> a = r.normals((size_t)rows * channels, 2), z = r.normals(a.size(), 3), weight = r.normals((size_t)channels, 1), out(a.size());
  std::vector<uint16_t> ha = halves_of(a);
  const std::vector<uint16_t> hz = halves_of(z);
  a = floats_of(ha), z = floats_of(hz);
  char error[320] = "";
  g_where = std::string(isa) + " rows of halves";
  mambac_gate gate = {rows, channels, group, before, 1e-5f, a.data(), z.data(), weight.data(), out.data(), nullptr, 0};
  CHECK(run.gate(isa, &gate, error, sizeof error) == 0, "%s", error);
  std::vector<uint16_t> half_out(out.size());
  gate.y = behind(ha), gate.z = behind(hz), gate.out = behind(half_out), gate.half = 1;
  CHECK(run.gate(isa, &gate, error, sizeof error) == 0, "%s", error);
  for (size_t i = 0; i < out.size(); i++) CHECK(half_out[i] == half_bits(out[i]), "out[%zu]", i);
  const float one = 1;
  mambac_rotate rotate = {rows, channels, 1, 4, a.data(), &one, out.data(), 0};
  CHECK(run.rotate(isa, &rotate, error, sizeof error) == 0, "%s", error);
  rotate.x = behind(ha), rotate.y = behind(ha), rotate.half = 1;  // in place
  CHECK(run.rotate(isa, &rotate, error, sizeof error) == 0, "%s", error);
  for (size_t i = 0; i < out.size(); i++) CHECK(ha[i] == half_bits(out[i]), "y[%zu]", i);
}

inline void half_calls(const HalfRunner& run, const char* isa) {
  uint64_t seed = 1;
  for (int o = 0; o < mambac::kScanOps; o++) {
    const Op op = parse(mambac::scan_ops()[o].name);
    const int groups = op.two ? 2 : 1;
    half_scan(run, op, isa, {2, 1, 2, 16, 128, 1}, seed++);
    half_scan(run, op, isa, {1, 1, 4, 64, op.two ? 64 : 16, groups}, seed++);
    half_scan(run, op, isa, {2, 1, 2, 8, 256, 1}, seed++);
    half_scan(run, op, isa, {1, 1, 3, 5, 6, 1}, seed++);
    half_scan(run, op, isa, {1, 9, 4, 5, 20, groups}, seed++);
    half_scan(run, op, isa, {2, 6, 4, 32, op.two ? 128 : 16, groups}, seed++);
  }
  half_conv(run, isa, 2, 67, 1, 4, 3, seed++);
  half_conv(run, isa, 2, 67, 1, 4, 4, seed++);
  half_conv(run, isa, 2, 5, 1, 3, 7, seed++);
  half_conv(run, isa, 1, 67, 40, 4, 3, seed++);
  half_conv(run, isa, 1, 130, 5, 3, 4, seed++);
  half_conv(run, isa, 1, 3, 3, 2, 200, seed++);
  for (const ConvSizes& s : {ConvSizes{2, 67, 1, 4, 3}, ConvSizes{2, 67, 1, 4, 4}, ConvSizes{1, 130, 5, 3, 4}, ConvSizes{2, 5, 70, 4, 3}, ConvSizes{1, 3, 3, 2, 40}, ConvSizes{3, 16, 2, 1, 0},
                             ConvSizes{1, 9, 0, 4, 3}})
    for (int kind = 0; kind < 4; kind++) half_conv_rows(run, isa, s, kind % 2 != 0, kind / 2 != 0, seed++);
  for (int before = 0; before < 2; before++) {
    half_rows(run, isa, 1, 96, 48, before != 0, seed++);
    half_rows(run, isa, 37, 1000, 500, before != 0, seed++);
    half_rows(run, isa, 3, 2048, 2048, before != 0, seed++);
    half_rows(run, isa, 2, 36, 9, before != 0, seed++);
  }
  half_rows(run, isa, 5, 100, 0, false, seed++);
  half_rows(run, isa, 3, 36, 0, false, seed++);
}
