// Random operands, and what a kernel's results must be beside those of reference.h. Counts what it checks.
#pragma once
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>

#include "reference.h"

using namespace reference;

inline long g_checks = 0, g_failures = 0;
inline std::string g_where;
#define CHECK(condition, ...)                                   \
  do {                                                          \
    g_checks++;                                                 \
    if (!(condition)) {                                         \
      if (g_failures++ < 20) {                                  \
        fprintf(stderr, "FAIL %s: %s: ", g_where.c_str(), #condition); \
        fprintf(stderr, __VA_ARGS__);                           \
        fputc('\n', stderr);                                    \
      }                                                         \
    }                                                           \
  } while (0)

inline bool same_bits(const float* a, const float* b, size_t n) { return n == 0 || memcmp(a, b, n * sizeof *a) == 0; }

struct Random {
  uint64_t s;
  explicit Random(uint64_t seed) : s(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint64_t next() {
    uint64_t z = s += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
  double unit() { return (double)(next() >> 11) * 0x1p-53; }
  int below(int n) { return (int)(next() % (uint64_t)n); }
  double normal() { return sqrt(-2 * log(unit() + 1e-300)) * cos(6.283185307179586 * unit()); }
  std::vector<float> normals(size_t n, double scale) {
    std::vector<float> v(n);
    for (float& f : v) f = (float)(scale * normal());
    return v;
  }
};

// A state a user could have: what the reference would store of random values with outlier rows and columns.
inline void encode(const Op& op, const std::vector<double>& h, int P, int N, uint8_t* out, const float* step = nullptr) {
  for (int i = 0; i < P * N; i++) {
    if (op.kind == Kind::F32) {
      float f = (float)h[(size_t)i];
      memcpy(out + 4 * i, &f, 4);
    } else if (op.kind == Kind::F16) {
      uint16_t u = half_bits(h[(size_t)i]);
      memcpy(out + 2 * i, &u, 2);
    }
  }
  if (!op.packed()) return;
  Scales s = choose_scales(op, h, P, N, step);
  uint8_t* scales = out + (op.kind == Kind::H8 ? P * N : P * N / 2);
  memset(out, 0, (size_t)(scales - out));
  for (int p = 0; p < P; p++)
    for (int n = 0; n < N; n++) {
      int i = p * N + n, c = code_for(op, h[(size_t)i], s.sc[p], s.ss[n]);
      if (op.kind == Kind::H8)
        out[i] = (uint8_t)c;
      else
        out[i / 2] = (uint8_t)(out[i / 2] | (c & 15) << (i % 2 * 4));
    }
  if (op.frozen) return;
  for (int p = 0; p < P; p++) {
    uint16_t u = half_bits(s.sc[p]);
    memcpy(scales + 2 * p, &u, 2);
  }
  for (int n = 0; n < N; n++) {
    uint16_t u = half_bits(s.ss[n]);
    memcpy(scales + 2 * (P + n), &u, 2);
  }
}

// What kernels take other ways for: columns of a state without any value, of values so small that their scale has few bits,
// and decays down to nothing.
enum Oddity { kHoles = 1, kFaint = 2, kSteep = 4 };

inline Inputs make_inputs(const Op& op, const Sizes& s, Random& r, double scale, bool zero_state, int odd = kHoles) {
  Inputs in;
  int E = s.channels(), R = s.rates(op);
  size_t rows = (size_t)s.B * s.L;
  in.x = r.normals(rows * E, scale);
  in.dt = r.normals(rows * R, 1.5);
  in.A = r.normals(op.two ? s.H : (size_t)E * s.N, 1);
  for (float& a : in.A) a = -(float)exp(a);
  for (size_t i = 0; (odd & kSteep) && i < in.A.size(); i++) in.A[i] *= i % 3 == 1 ? 60 : i % 3 == 2 ? 2000 : 1;
  in.B = r.normals(rows * s.G * s.N, 1);
  for (size_t i = 0; (odd & kFaint) && i < in.B.size(); i++) in.B[i] *= i % (size_t)s.N % 17 == 2 ? 3e-7f : i % (size_t)s.N % 17 == 4 ? 1e-8f : 1;
  in.C = r.normals(rows * s.G * s.N, 1);
  in.D = r.normals(E, 1);
  in.bias = r.normals(R, 1);
  for (float& f : in.bias) f -= 2;
  if (r.below(3) == 0) in.dt_min = 0.01f, in.dt_max = 0.5f;
  // Steps that fit most of the state below and clip some of it.
  for (int i = 0; op.frozen && i < E; i++) in.row_step.push_back((float)(scale * exp(0.3 * r.normal()) * (i % s.P % 7 == 3 ? 8 : 1)));
  for (int i = 0; op.frozen && i < s.G * s.N; i++) in.column_step.push_back((float)(exp(0.3 * r.normal()) * (i % s.N % 11 == 5 ? 5 : 1) * 3 / op.qmax()));
  size_t bytes = head_bytes(op, s.P, s.N);
  in.past.assign((size_t)s.B * s.H * bytes, 0);
  for (int i = 0; i < s.B * s.H && !zero_state; i++) {
    std::vector<double> h((size_t)s.P * s.N);
    for (int p = 0; p < s.P; p++)
      for (int n = 0; n < s.N; n++)
        h[(size_t)p * s.N + n] = scale * r.normal() * (p % 7 == 3 ? 8 : 1) * (n % 11 == 5 ? 5 : 1) * ((odd & kHoles) && n % 13 == 1 ? 0 : 1) *
                                   ((odd & kFaint) && n % 17 == 2 ? 1e-6 : 1);
    encode(op, h, s.P, s.N, in.past.data() + i * bytes, in.step_of(s, i).data());
  }
  return in;
}

struct Tally {
  long codes = 0, off = 0, scales = 0, scales_off = 0;
};
inline Tally g_tally, g_whole_tally;  // the second: of states that whole_numbers works out

// Whether kernels work out a token's 4-bit codes in 16-bit whole numbers.
inline bool whole_numbers(const Op& op, const Sizes& s) {
  return op.two && op.kind == Kind::H4 && !op.replay && !op.frozen && s.L == 1 && s.N == 128 && s.P % 16 == 0;
}
// The relative error of working out a code: 4-bit codes with given steps are worked out in 16 bits where rows are whole 128s;
// with measured scales what a step is worth in whole numbers depends on the state, and this is the bound over all.
inline double code_doubt(const Op& op, const Sizes& s) {
  if (whole_numbers(op, s)) return 0.018 / 7;
  return op.frozen && op.kind == Kind::H4 && s.N % 128 == 0 ? 0x1p-11 / 7 : 4e-7;
}

// The stored state against the exact one. Scales may be the neighbouring half where rounding was close; a code must be
// what the stored scales demand of the exact state, or its neighbour where that was close to a tie. `code_rounding`: the
// relative error of working out a code. `in` is needed for the steps of Static operators only.
inline void check_state(const Op& op, const Sizes& s, const Result& want, const std::vector<uint8_t>& present, double tolerance,
                        double code_rounding = 4e-7, const Inputs* in = nullptr) {
  Tally& tally = whole_numbers(op, s) ? g_whole_tally : g_tally;
  size_t bytes = head_bytes(op, s.P, s.N);
  for (int i = 0; i < s.B * s.H; i++) {
    const uint8_t* head = present.data() + i * bytes;
    const std::vector<double>&h = want.h[(size_t)i], &size = want.h_size[(size_t)i];
    if (!op.packed()) {
      std::vector<double> got = decode(op, head, s.P, s.N);
      for (size_t j = 0; j < h.size(); j++) {
        double slack = tolerance * size[j] + 1e-37;
        if (op.kind == Kind::F16) slack += fmax(fabs(h[j]) * 0x1p-11 * 1.001, 0x1p-25);
        bool overflow = op.kind == Kind::F16 && fabs(h[j]) > 65504 && fabs(got[j]) >= 65504;
        CHECK(overflow || fabs(got[j] - h[j]) <= slack, "state %zu: %.9g, expected %.9g", j, got[j], h[j]);
      }
      continue;
    }
    const std::vector<float> steps = in == nullptr ? std::vector<float>() : in->step_of(s, i);
    const float* step = steps.data();
    Scales got = scales_of(op, head, s.P, s.N, step), exact = choose_scales(op, h, s.P, s.N, step);
    double worst = 0;  // relative error of the float state
    for (size_t j = 0; j < h.size(); j++) worst = fmax(worst, size[j]);
    for (int p = 0; p < s.P && !op.frozen; p++) {
      tally.scales++;
      tally.scales_off += got.sc[p] != exact.sc[p];
      double row_size = 0, row = 0;
      for (int n = 0; n < s.N; n++) row_size = fmax(row_size, size[(size_t)p * s.N + n]), row = fmax(row, fabs(h[(size_t)p * s.N + n]));
      double slack = row > 0 ? 0x1.01p-10 + tolerance * row_size / row : 1;
      CHECK(fabs(got.sc[p] - exact.sc[p]) <= exact.sc[p] * slack, "Sc[%d] = %g, expected %g", p, got.sc[p], exact.sc[p]);
    }
    for (int n = 0; n < s.N && !op.frozen; n++) {
      double top = 0, top_size = 0;
      for (int p = 0; p < s.P; p++) {
        top = fmax(top, fabs(h[(size_t)p * s.N + n]) / got.sc[p]);
        top_size = fmax(top_size, size[(size_t)p * s.N + n] / got.sc[p]);
      }
      double ss = to_half(fmin(top, 65504));
      tally.scales++;
      tally.scales_off += got.ss[n] != ss;
      CHECK(fabs(got.ss[n] - ss) <= ss * 0x1.01p-10 + 0x1.01p-24 + tolerance * top_size, "Ss[%d] = %g, expected %g", n, got.ss[n], ss);
    }
    for (int p = 0; p < s.P; p++)
      for (int n = 0; n < s.N; n++) {
        size_t j = (size_t)p * s.N + n;
        double unit = got.sc[p] * got.ss[n] / op.qmax();
        int code = code_at(op, head, (int)j), expected = code_for(op, h[j], got.sc[p], got.ss[n]);
        tally.codes++;
        if (code == expected) continue;
        tally.off++;
        double exact_code = unit > 0 ? h[j] / unit : 0;
        double slack = unit > 0 ? tolerance * size[j] / unit + code_rounding * op.qmax() : 0;
        // A tie, or as far off as the doubt in the state before rounding allows.
        CHECK(fabs(code - clamp(exact_code, -op.qmax(), op.qmax())) <= 0.5 + slack,
              "code[%d,%d] = %d, expected %d (%.9g)", p, n, code, expected, exact_code);
      }
  }
}

inline void check_y(const Result& want, const std::vector<float>& y, double tolerance) {
  for (size_t i = 0; i < y.size(); i++)
    CHECK(fabs(y[i] - want.y[i]) <= tolerance * want.y_size[i] + 1e-37, "y[%zu] = %.9g, expected %.9g (size %.3g)", i, (double)y[i],
          want.y[i], want.y_size[i]);
}

// The l-th token of every sequence, as a call of its own; the state is that of the whole call.
inline Inputs token_of(const Op& op, const Sizes& s, const Inputs& in, int l) {
  auto slice = [&](const std::vector<float>& v, size_t width) {
    std::vector<float> o;
    for (int b = 0; b < s.B; b++)
      o.insert(o.end(), v.begin() + (long)((b * s.L + l) * width), v.begin() + (long)((b * s.L + l + 1) * width));
    return o;
  };
  Inputs step = in;
  step.x = slice(in.x, s.channels());
  step.dt = slice(in.dt, s.rates(op));
  step.B = slice(in.B, (size_t)s.G * s.N);
  step.C = slice(in.C, (size_t)s.G * s.N);
  return step;
}

// A long run beside the reference, which rounds after every token too: how far each is from the unrounded recurrence.
struct Recirculation {
  Result rounded, unrounded;
  double error = 0, rounding = 0, size = 0;
  Recirculation(const Op& op, const Sizes& s, const Inputs& in) {
    const Op exact = parse(op.two ? "Mamba2ScanF32" : "Mamba1ScanF32");
    Inputs zero = in;
    zero.past.assign((size_t)s.H * head_bytes(exact, s.P, s.N), 0);
    Op stepwise = op;
    stepwise.token = op.kind != Kind::F32;
    rounded = scan(stepwise, s, in);
    unrounded = scan(exact, s, zero);
  }
  // y from value `from` on.
  void add(size_t from, const std::vector<float>& y) {
    for (size_t i = 0; i < y.size(); i++) {
      error += pow(y[i] - unrounded.y[from + i], 2);
      rounding += pow(rounded.y[from + i] - unrounded.y[from + i], 2);
      size += pow(unrounded.y[from + i], 2);
    }
  }
  double relative() const { return sqrt(error / size); }
  double reference() const { return sqrt(rounding / size); }
  // The run is as far from it as the reference is.
  void check(const Op& op) const {
    if (op.kind == Kind::F32)
      CHECK(sqrt(error / size) < 1e-6, "error %.3g of %.3g", sqrt(error), sqrt(size));
    else
      CHECK(fabs(sqrt(error / rounding) - 1) < 0.1, "error %.4g, the reference's %.4g", sqrt(error), sqrt(rounding));
  }
};
