// The operators again in double precision, written from runtime-ops/README.md and sharing nothing with the kernels.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <string>
#include <vector>

namespace reference {

inline double half_value(uint16_t h) {
  int sign = h >> 15, e = h >> 10 & 31, m = h & 1023;
  double v = e == 31 ? (m ? NAN : INFINITY) : e == 0 ? ldexp(m, -24) : ldexp(1024 + m, e - 25);
  return sign ? -v : v;
}
// Nearest half, ties to even.
inline uint16_t half_bits(double v) {
  uint16_t sign = signbit(v) ? 0x8000 : 0;
  v = fabs(v);
  if (isnan(v)) return (uint16_t)(sign | 0x7e00);
  if (v >= 65520) return (uint16_t)(sign | 0x7c00);
  int e;
  frexp(v, &e);                       // v = f 2^e, f in [0.5, 1)
  int unit = e - 11 < -24 ? -24 : e - 11;
  double m = nearbyint(ldexp(v, -unit));
  double r = ldexp(m, unit);
  if (r == 0) return sign;
  frexp(r, &e);
  if (e - 1 < -14) return (uint16_t)(sign | (int)ldexp(r, 24));
  return (uint16_t)(sign | ((e - 1 + 15) << 10) | ((int)ldexp(r, 11 - e) - 1024));
}
inline double to_half(double v) { return half_value(half_bits(v)); }

enum class Kind { F32, F16, H8, H4 };

struct Op {
  std::string name;
  bool two;  // Mamba-2
  Kind kind;
  bool max, token, replay, frozen;
  int qmax() const { return kind == Kind::H8 ? 127 : 7; }
  bool packed() const { return kind == Kind::H8 || kind == Kind::H4; }
};
inline Op parse(const std::string& name) {
  auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
  Kind kind = has("F32") ? Kind::F32 : has("F16") ? Kind::F16 : has("H8") ? Kind::H8 : Kind::H4;
  return {name, name[5] == '2', kind, has("Max"), has("Token"), has("Replay"), has("Static")};
}

struct Sizes {
  int B, L, H, P, N, G;
  int channels() const { return H * P; }
  int rates(const Op& op) const { return op.two ? H : channels(); }  // dt and bias per token
};
inline size_t head_bytes(const Op& op, int P, int N) {
  if (op.kind == Kind::F32) return (size_t)P * N * 4;
  if (op.kind == Kind::F16) return (size_t)P * N * 2;
  return (op.kind == Kind::H8 ? (size_t)P * N : (size_t)P * N / 2) + (op.frozen ? 0 : 2 * (size_t)(P + N));
}

struct Inputs {
  std::vector<float> x, dt, A, B, C, D, bias;
  std::vector<uint8_t> past;
  float dt_min = -INFINITY, dt_max = INFINITY;
  std::vector<float> row_step = {}, column_step = {};  // of Static operators, [H, P] and [G, N]
  // Those of one head, [P] and [N].
  std::vector<float> step_of(const Sizes& s, int head) const {
    std::vector<float> v;
    if (row_step.empty()) return v;
    const int h = head % s.H, g = h / (s.H / s.G);
    v.assign(row_step.begin() + (long)h * s.P, row_step.begin() + (long)(h + 1) * s.P);
    v.insert(v.end(), column_step.begin() + (long)g * s.N, column_step.begin() + (long)(g + 1) * s.N);
    return v;
  }
};

inline uint16_t u16(const uint8_t* p) { return (uint16_t)(p[0] | p[1] << 8); }

inline int code_at(const Op& op, const uint8_t* head, int i) {
  if (op.kind == Kind::H8) return (int8_t)head[i];
  int v = head[i / 2] >> (i % 2 * 4) & 15;
  return v >= 8 ? v - 16 : v;
}
struct Scales {
  std::vector<double> sc, ss;
};
// The scales of a Static operator, such that its step is one of theirs over qmax.
inline Scales frozen_scales(const Op& op, const float* step, int P, int N) {
  Scales s;
  s.sc.assign(step, step + P);
  for (int n = 0; n < N; n++) s.ss.push_back((double)step[P + n] * op.qmax());
  return s;
}
inline Scales scales_of(const Op& op, const uint8_t* head, int P, int N, const float* step = nullptr) {
  if (op.frozen) return frozen_scales(op, step, P, N);
  const uint8_t* p = head + (op.kind == Kind::H8 ? P * N : P * N / 2);
  Scales s;
  for (int i = 0; i < P; i++) s.sc.push_back(half_value(u16(p + 2 * i)));
  for (int i = 0; i < N; i++) s.ss.push_back(half_value(u16(p + 2 * P + 2 * i)));
  return s;
}

// One head's state as doubles.
inline std::vector<double> decode(const Op& op, const uint8_t* head, int P, int N, const float* step = nullptr) {
  std::vector<double> h((size_t)P * N);
  if (op.kind == Kind::F32) {
    for (size_t i = 0; i < h.size(); i++) {
      float f;
      memcpy(&f, head + 4 * i, 4);
      h[i] = f;
    }
  } else if (op.kind == Kind::F16) {
    for (size_t i = 0; i < h.size(); i++) h[i] = half_value(u16(head + 2 * i));
  } else {
    Scales s = scales_of(op, head, P, N, step);
    for (int p = 0; p < P; p++)
      for (int n = 0; n < N; n++) h[(size_t)p * N + n] = code_at(op, head, p * N + n) * (s.sc[p] * s.ss[n] / op.qmax());
  }
  return h;
}

inline double clamp(double v, double lo, double hi) { return v < lo ? lo : v > hi ? hi : v; }
inline Scales choose_scales(const Op& op, const std::vector<double>& h, int P, int N, const float* step = nullptr) {
  if (op.frozen) return frozen_scales(op, step, P, N);
  Scales s;
  for (int p = 0; p < P; p++) {
    double sum = 0, top = 0;
    for (int n = 0; n < N; n++) sum += fabs(h[(size_t)p * N + n]), top = fmax(top, fabs(h[(size_t)p * N + n]));
    s.sc.push_back(to_half(clamp(op.max ? top : sqrt(sum / N), ldexp(1, -14), 65504)));
  }
  for (int n = 0; n < N; n++) {
    double top = 0;
    for (int p = 0; p < P; p++) top = fmax(top, fabs(h[(size_t)p * N + n]) / s.sc[p]);
    s.ss.push_back(to_half(fmin(top, 65504)));
  }
  return s;
}
inline int code_for(const Op& op, double h, double sc, double ss) {
  double step = sc * ss / op.qmax();
  return step > 0 ? (int)clamp(nearbyint(h / step), -op.qmax(), op.qmax()) : 0;
}
inline void round_state(const Op& op, std::vector<double>& h, int P, int N, const float* step = nullptr) {
  if (op.kind == Kind::F16)
    for (double& v : h) v = to_half(v);
  if (!op.packed()) return;
  Scales s = choose_scales(op, h, P, N, step);
  for (int p = 0; p < P; p++)
    for (int n = 0; n < N; n++) {
      double& v = h[(size_t)p * N + n];
      v = code_for(op, v, s.sc[p], s.ss[n]) * (s.sc[p] * s.ss[n] / op.qmax());
    }
}

struct Result {
  std::vector<double> y, y_size;          // y and the sum of the magnitudes that make it up
  std::vector<std::vector<double>> h, h_size;  // per head: the state before its last rounding, and its magnitude
};

inline double softplus(double v) { return v > 30 ? v : log1p(exp(v)); }

inline Result scan(const Op& op, const Sizes& s, const Inputs& in) {
  Result r;
  int E = s.channels(), R = s.rates(op);
  r.y.assign((size_t)s.B * s.L * E, 0);
  r.y_size = r.y;
  size_t bytes = head_bytes(op, s.P, s.N);
  for (int b = 0; b < s.B; b++)
    for (int h = 0; h < s.H; h++) {
      std::vector<double> state = decode(op, in.past.data() + (size_t)(b * s.H + h) * bytes, s.P, s.N, in.step_of(s, h).data()), size(state);
      for (double& v : size) v = fabs(v);
      for (int l = 0; l < s.L; l++) {
        if (op.token && l > 0) round_state(op, state, s.P, s.N, in.step_of(s, h).data());
        for (int p = 0; p < s.P; p++) {
          int e = h * s.P + p, rate = op.two ? h : e, group = op.two ? h / (s.H / s.G) : e / (E / s.G);
          size_t row = (size_t)b * s.L + l;
          double d = clamp(softplus((double)in.dt[row * R + rate] + in.bias[rate]), in.dt_min, in.dt_max);
          double x = in.x[row * E + e], sum = in.D[e] * x, magnitude = fabs(sum);
          for (int n = 0; n < s.N; n++) {
            double A = op.two ? in.A[h] : in.A[(size_t)e * s.N + n], a = exp(d * A);
            double Bn = in.B[(row * s.G + group) * s.N + n], Cn = in.C[(row * s.G + group) * s.N + n];
            double& v = state[(size_t)p * s.N + n];
            double& m = size[(size_t)p * s.N + n];
            // exp is ill-conditioned: an error of one ulp in d A is |d A| ulps in the decay
            m = a * m * (1 + fabs(d * A) * 0.25) + fabs(d * x * Bn);
            v = a * v + d * x * Bn;
            sum += v * Cn;
            magnitude += m * fabs(Cn);
          }
          r.y[row * E + e] = sum;
          r.y_size[row * E + e] = magnitude;
        }
      }
      r.h.push_back(state);
      r.h_size.push_back(size);
    }
  return r;
}

struct ConvSizes {
  int B, E, L, K, W;
};
inline void conv(const ConvSizes& s, bool silu, const float* x, const float* w, const float* bias, const float* past,
                 std::vector<double>& y, std::vector<float>& present) {
  y.assign((size_t)s.B * s.E * s.L, 0);
  present.assign((size_t)s.B * s.E * s.W, 0);
  for (int row = 0; row < s.B * s.E; row++) {
    std::vector<float> stream(past + (size_t)row * s.W, past + (size_t)(row + 1) * s.W);
    stream.insert(stream.end(), x + (size_t)row * s.L, x + (size_t)(row + 1) * s.L);
    for (int l = 0; l < s.L; l++) {
      double sum = bias[row % s.E];
      for (int k = 0; k < s.K; k++) sum += (double)w[(row % s.E) * s.K + k] * stream[(size_t)(s.W + l + k - (s.K - 1))];
      y[(size_t)row * s.L + l] = silu ? sum / (1 + exp(-sum)) : sum;
    }
    for (int i = 0; i < s.W; i++) present[(size_t)row * s.W + i] = stream[(size_t)(s.L + i)];
  }
}

// [B, L, row] -> [B, E, L]: channels `first` and on of tokens in rows.
inline std::vector<float> columns_of(const ConvSizes& s, const std::vector<float>& rows, int row, int first) {
  std::vector<float> x((size_t)s.B * s.E * s.L);
  for (int b = 0; b < s.B; b++)
    for (int e = 0; e < s.E; e++)
      for (int l = 0; l < s.L; l++) x[(size_t)((b * s.E + e) * s.L + l)] = rows[(size_t)((b * s.L + l) * row + first + e)];
  return x;
}

}  // namespace reference
