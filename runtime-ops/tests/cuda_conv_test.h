// The CUDA kernels of the convolutions, run on the host, against the double reference.
#pragma once
#include "checks.h"
#include "mambac/cuda.h"
#include "../src/cuda/launch.h"

using mambac::cuda::emulation;

// Tokens in rows among other channels, as one output or three.
inline void conv_rows_case(const ConvSizes& s, bool silu, bool split, uint64_t seed) {
  char text[120];
  snprintf(text, sizeof text, "conv rows silu %d split %d B%d E%d L%d K%d W%d", silu, split, s.B, s.E, s.L, s.K, s.W);
  g_where = text;
  Random r(seed);
  const int first = 3, row = first + s.E + 2, one = split ? (s.E + 1) / 3 : s.E, two = split ? s.E / 3 : 0, sizes[3] = {one, two, s.E - one - two};
  std::vector<float> wide = r.normals((size_t)s.B * s.L * row, 1), w = r.normals((size_t)s.E * s.K, 1), bias = r.normals(s.E, 1),
                     past = r.normals((size_t)s.B * s.E * s.W, 1), expected, x = columns_of(s, wide, row, first);
  std::vector<double> want;
  conv(s, silu, x.data(), w.data(), bias.data(), past.data(), want, expected);
  const char* const names[2][2] = {{"CausalConvRows", "CausalConvSiluRows"}, {"CausalConvSplit", "CausalConvSiluSplit"}};
  for (int alias = 0; alias < 2; alias++)
    for (emulation.order = 0; emulation.order < 3; emulation.order++) {
      std::vector<float> y[3], present = alias ? past : std::vector<float>(past.size(), NAN);
      for (int p = 0; p < 3; p++) y[p].assign((size_t)s.B * s.L * sizes[p], NAN);
      const mambac_conv call = {s.B, s.E, s.L, s.K, s.W, wide.data(), w.data(), bias.data(), alias ? present.data() : past.data(), y[0].data(),
                                present.data(), 0, row, first, one, two, y[1].data(), y[2].data()};
      char error[320] = "";
      CHECK(mambac_cuda_conv_launch(names[split][silu], &call, nullptr, error, sizeof error) == 0, "%s", error);
      CHECK(present == expected, "state differs");
      for (int p = 0, from = 0; p < 3; from += sizes[p++])
        for (size_t i = 0; i < y[p].size(); i++) {
          const size_t token = i / (size_t)sizes[p], e = (size_t)from + i % (size_t)sizes[p], b = token / (size_t)s.L;
          const double right = want[(b * (size_t)s.E + e) * (size_t)s.L + token % (size_t)s.L];
          CHECK(fabs(y[p][i] - right) <= 1e-6 * s.K + 1e-6 * fabs(right), "part %d [%zu] = %.9g, expected %.9g", p, i, (double)y[p][i], right);
        }
    }
  emulation.order = 0;
}

inline void conv_case(const ConvSizes& s, bool silu, uint64_t seed) {
  char text[120];
  snprintf(text, sizeof text, "conv silu %d B%d E%d L%d K%d W%d", silu, s.B, s.E, s.L, s.K, s.W);
  g_where = text;
  Random r(seed);
  std::vector<float> x = r.normals((size_t)s.B * s.E * s.L, 1), w = r.normals((size_t)s.E * s.K, 1), bias = r.normals(s.E, 1),
                     past = r.normals((size_t)s.B * s.E * s.W, 1), expected;
  std::vector<double> want;
  conv(s, silu, x.data(), w.data(), bias.data(), past.data(), want, expected);
  for (int alias = 0; alias < 2; alias++)
    for (emulation.order = 0; emulation.order < 3; emulation.order++) {
      std::vector<float> y(want.size(), NAN), present = alias ? past : std::vector<float>(past.size(), NAN);
      const mambac_conv call = {s.B, s.E, s.L, s.K, s.W, x.data(), w.data(), bias.data(), alias ? present.data() : past.data(),
                                y.data(), present.data()};
      char error[320] = "";
      CHECK(mambac_cuda_conv_launch(silu ? "CausalConvSilu" : "CausalConv", &call, nullptr, error, sizeof error) == 0, "%s", error);
      CHECK(present == expected, "state differs, alias %d order %d", alias, emulation.order);
      for (size_t i = 0; i < y.size(); i++)
        CHECK(fabs(y[i] - want[i]) <= 2e-6 * s.K + 1e-6 * fabs(want[i]), "y[%zu] = %.9g, expected %.9g", i, (double)y[i], want[i]);
    }
  emulation.order = 0;
}
