// Operators on rows of channels: every kernel beside a double-precision reference, and what must be refused.
#pragma once
#include "checks.h"
#include "mambac/plan.h"
#include "runner.h"

// y[t p + c] = sum over i, d of x[i p + d] factor[i, t] walsh[d, c] / sqrt(m p), block by block.
inline std::vector<double> rotated(const std::vector<float>& x, const std::vector<float>& factor, int size, int order, int power) {
  const int span = order * power;
  std::vector<double> out(x.size()), w(span);
  const double scale = 1 / sqrt((double)span);
  for (size_t at = 0; at < x.size(); at += (size_t)span) {
    for (int i = 0; i < order; i++)
      for (int c = 0; c < power; c++) {
        double sum = 0;
        for (int d = 0; d < power; d++) {
          int odd = 0;
          for (int bits = c & d; bits != 0; bits &= bits - 1) odd ^= 1;
          sum += odd ? -(double)x[at + (size_t)(i * power + d)] : (double)x[at + (size_t)(i * power + d)];
        }
        w[(size_t)(i * power + c)] = sum * scale;
      }
    for (int t = 0; t < order; t++)
      for (int c = 0; c < power; c++) {
        double sum = 0;
        for (int i = 0; i < order; i++) sum += w[(size_t)(i * power + c)] * (double)factor[(size_t)(i * order + t)];
        out[at + (size_t)(t * power + c)] = sum;
      }
  }
  (void)size;
  return out;
}

inline void hadamard_case(const std::vector<const char*>& isas, int rows, int blocks, int order, int power, uint64_t seed, double scale) {
  Random r(seed);
  const int span = order * power, size = blocks * span;
  std::vector<float> x = r.normals((size_t)rows * size, scale), factor((size_t)order * order);
  for (float& f : factor) f = r.below(2) ? 1.0f : -1.0f;  // any signs: the kernel must not rely on orthogonality
  const std::vector<double> want = rotated(x, factor, size, order, power);
  std::vector<float> first;
  for (const char* isa : isas)
    for (int alias = 0; alias < 2; alias++) {
      char text[120];
      snprintf(text, sizeof text, "%s rotate rows %d size %d = %d x %d x %d alias %d", isa, rows, size, blocks, order, power, alias);
      g_where = text;
      std::vector<float> y = alias ? x : std::vector<float>(x.size(), NAN);
      mambac_rotate call = {rows, size, order, power, alias ? y.data() : x.data(), factor.data(), y.data()};
      char error[320] = "";
      const int status = g_runner.rotate(isa, &call, error, sizeof error);
      CHECK(status == 0, "%s", error);
      // Roundings: one for the scale and one for its product, one a stage of butterflies, one a term of the factor's sums. What
      // is rounded is at most the block's norm |x| each time: a scaled partial transform |x|, a sum of m of them with signs
      // sqrt(m) times the norm of a column, which is |x| / sqrt(m).
      int stages = 0;
      while (1 << stages < power) stages++;
      for (size_t at = 0; at < y.size(); at += (size_t)span) {
        double norm = 0;
        for (int i = 0; i < span; i++) norm += (double)x[at + (size_t)i] * (double)x[at + (size_t)i];
        const double most = (2 + stages + order) * 0x1p-24 * sqrt(norm) * 1.001;
        for (size_t i = at; i < at + (size_t)span; i++)
          CHECK(fabs(y[i] - want[i]) <= most, "y[%zu] = %.9g, expected %.9g within %.3g", i, (double)y[i], want[i], most);
      }
      if (strcmp(isa, "portable") == 0) continue;
      if (first.empty()) first = y;
      CHECK(same_bits(first.data(), y.data(), y.size()), "other bits");
    }
}

// out = y silu(z), with an RMS norm of groups behind it or before it; group 0: none, -1: factors inside the sigmoid instead.
inline std::vector<double> gated_rows(const std::vector<float>& y, const std::vector<float>& z, const std::vector<float>& weight, int channels,
                                      int group, bool before, double epsilon) {
  std::vector<double> out(y.size());
  for (size_t i = 0; i < y.size(); i++) {
    const double slope = group < 0 ? (double)weight[i % (size_t)channels] : 1;
    const double gate = (double)z[i] / (1 + exp(-(double)z[i] * slope));
    out[i] = before ? (double)y[i] : (double)y[i] * gate;
  }
  for (size_t at = 0; group > 0 && at < out.size(); at += (size_t)group) {
    double sum = 0;
    for (int i = 0; i < group; i++) sum += out[at + (size_t)i] * out[at + (size_t)i];
    const double scale = 1 / sqrt(sum / group + epsilon);
    for (int i = 0; i < group; i++) out[at + (size_t)i] *= scale * (double)weight[(at + (size_t)i) % (size_t)channels];
  }
  for (size_t i = 0; before && i < out.size(); i++) out[i] *= (double)z[i] / (1 + exp(-(double)z[i]));
  return out;
}

inline void gate_case(const std::vector<const char*>& isas, int rows, int channels, int group, bool before, float epsilon, uint64_t seed, double scale) {
  Random r(seed);
  std::vector<float> y = r.normals((size_t)rows * channels, scale), z = r.normals((size_t)rows * channels, seed % 3 == 0 ? 20 : 2),
                     weight = r.normals((size_t)channels, 1);
  const std::vector<double> want = gated_rows(y, z, weight, channels, group, before, epsilon);
  std::vector<float> first;
  for (const char* isa : isas)
    for (int alias = 0; alias < 3; alias++) {  // nowhere, over y, over z
      char text[120];
      snprintf(text, sizeof text, "%s gate rows %d channels %d group %d before %d alias %d", isa, rows, channels, group, before, alias);
      g_where = text;
      std::vector<float> out = alias == 1 ? y : alias == 2 ? z : std::vector<float>(y.size(), NAN);
      mambac_gate call = {rows, channels, group < 0 ? 0 : group, before, epsilon, alias == 1 ? out.data() : y.data(), alias == 2 ? out.data() : z.data(),
                          weight.data(), out.data(), group < 0 ? weight.data() : nullptr};
      char error[320] = "";
      const int status = g_runner.gate(isa, &call, error, sizeof error);
      CHECK(status == 0, "%s", error);
      // SiLU 2.5e-7 and two products; a norm adds its sum (half of one rounding for each addition to one of 64 running sums, and the
      // error of its terms), its own rounding and two products.
      const double ulp = 0x1p-24, most = 2.5e-7 + ulp + (group > 0 ? 2.5e-7 + ulp * (5 + 0.5 * (2 + group / 64.0 + 4)) : 0);
      // A slope adds the rounding of its product, which the exponential takes with the product's size. And what underflows: the
      // exponential is infinite from 2^128 on.
      for (size_t i = 0; i < out.size(); i++) {
        const double product = group < 0 ? fabs((double)z[i] * (double)weight[i % (size_t)channels]) : 0, lost = fabs((double)y[i] * (double)z[i]) * 0x1p-128;
        CHECK(fabs(out[i] - want[i]) <= (most + ulp * product) * fabs(want[i]) + (group < 0 ? lost : 0) + 1e-37, "out[%zu] = %.9g, expected %.9g within %.3g", i, (double)out[i], want[i], most);
      }
      if (strcmp(isa, "portable") == 0) continue;
      if (first.empty()) first = out;
      CHECK(same_bits(first.data(), out.data(), out.size()), "other bits");
    }
}

inline void gate_refusals(int rounds) {
  Random r(97);
  g_where = "refusals of gates";
  const int64_t odd[] = {0, -1, 1, 2, 3, 4, 5, 7, 8, 12, 64, 1 << 30, (1ll << 30) + 1, INT64_MAX, INT64_MIN, 1ll << 32};
  auto any = [&] { return r.below(3) ? (int64_t)(1 + r.below(4)) : odd[r.below(16)]; };
  long accepted = 0;
  for (int i = 0; i < rounds; i++) {
    const mambac::RowOp& op = mambac::row_ops()[1 + r.below(3)];
    const bool norm = op.kind == mambac::RowKind::kGatedNorm, three = op.inputs == 3;
    mambac::Message m;
    memset(m.text, 'x', sizeof m.text);
    const float epsilons[] = {0, 1e-5f, -1e-5f, NAN, INFINITY};
    mambac::RowAttributes a = {0, 0, 0, any(), any(), r.below(8) ? r.below(2) : any(), epsilons[r.below(3) ? 1 : r.below(5)]};
    if (a.group_size > 0 && a.group_size < 100 && r.below(2)) a.channels = a.group_size * (1 + r.below(3));
    const bool right = a.channels >= 1 && a.channels <= 1 << 30 &&
                       (!norm || (a.group_size >= 1 && a.group_size <= 1 << 30 && a.channels % a.group_size == 0 && (a.norm_before_gate & ~1ll) == 0 &&
                                  a.epsilon >= 0 && a.epsilon < INFINITY));
    bool good = mambac::check_row_attributes(op, a, &m);
    CHECK(good == right, "%s: %s", op.name, good ? "accepted" : m.text);
    if (good) {
      const int64_t b = any(), l = any(), p = a.channels % 2 == 0 ? 2 : 1;
      mambac::Shape in[3] = {r.below(2) ? mambac::Shape{{b, l, a.channels}, 3} : mambac::Shape{{b, l, a.channels / p, p}, 4}, {{b, l, a.channels}, 3}, {{a.channels}, 1}};
      if (r.below(3)) {
        mambac::Shape& s = in[r.below(three ? 3 : 2)];
        if (r.below(2)) {
          s.dims[r.below((int)s.rank)] = any();
        } else {
          s.rank = (size_t)r.below(10);
          for (size_t k = 3; k < s.rank && k < mambac::kMaxRank; k++) s.dims[k] = any();
        }
      }
      double counts[2] = {1, 1};
      bool intact = in[0].rank <= mambac::kMaxRank && in[1].rank <= mambac::kMaxRank && in[1].rank >= 1;
      for (int s = 0; s < 2; s++)
        for (size_t k = 0; k < in[s].rank && k < mambac::kMaxRank; k++) {
          counts[s] *= (double)in[s].dims[k];
          intact = intact && in[s].dims[k] >= 0;
        }
      intact = intact && counts[0] == counts[1] && in[1].dims[in[1].rank - 1] == a.channels && counts[1] < 1e18;
      intact = intact && (!three || (in[2].rank == 1 && in[2].dims[0] == a.channels));
      mambac::GateArgs args;
      good = mambac::plan_gate(op, a, in, &args, &m);
      CHECK(good == intact, "%s: %s", op.name, good ? "accepted a wrong shape" : m.text);
      if (good) {
        accepted++;
        CHECK((double)args.rows * (double)a.channels == counts[1] && args.group == (norm ? a.group_size : 0), "sizes");
      }
    }
    if (!good) CHECK(memchr(m.text, 0, sizeof m.text) != nullptr && strncmp(m.text, op.name, strlen(op.name)) == 0, "no message");
  }
  CHECK(accepted > rounds / 20, "only %ld accepted: the test tests nothing", accepted);
  char error[80];
  CHECK(mambac_gate_run(nullptr, nullptr, error, sizeof error) == 1 && strstr(error, "null"), "null");
  mambac_gate none = {0, 12, 6, 0, 1e-5f, nullptr, nullptr, nullptr, nullptr, nullptr};
  CHECK(mambac_gate_run(nullptr, &none, error, sizeof error) == 0, "%s", error);
  none.group_size = 5;
  CHECK(mambac_gate_run(nullptr, &none, error, sizeof error) == 1 && strstr(error, "GatedRMSNorm: attribute group_size"), "%s", error);
  none.group_size = 0;
  CHECK(mambac_gate_run("mmx", &none, error, sizeof error) == 1 && strstr(error, "mmx"), "%s", error);
  none.channels = 0;
  CHECK(mambac_gate_run(nullptr, &none, error, sizeof error) == 1 && strstr(error, "SiluGate: attribute channels"), "%s", error);
}

// What nobody should send: every answer is yes or a message that names the operator.
inline void row_refusals(int rounds) {
  Random r(98);
  g_where = "refusals of operators on rows";
  const int64_t odd[] = {0, -1, 1, 2, 3, 4, 5, 7, 8, 12, 64, 256, 257, 1 << 30, (1ll << 30) + 1, INT64_MAX, INT64_MIN, 1ll << 32};
  auto any = [&] { return r.below(3) ? (int64_t)(1 + r.below(4)) : odd[r.below(18)]; };
  const mambac::RowOp& op = mambac::row_ops()[(int)mambac::RowKind::kHadamard];
  long accepted = 0;
  for (int i = 0; i < rounds; i++) {
    mambac::Message m;
    memset(m.text, 'x', sizeof m.text);
    mambac::RowAttributes a = {any(), any(), any()};
    if (r.below(2)) a.size = a.order > 0 && a.power > 0 && a.order < 300 && a.power < 300 ? a.order * a.power * (1 + r.below(3)) : any();
    bool good = mambac::check_row_attributes(op, a, &m);
    const bool right = a.size >= 1 && a.size <= 1 << 30 && a.order >= 1 && a.order <= 256 && a.power >= 1 && a.power <= 1 << 30 &&
                       (a.power & (a.power - 1)) == 0 && a.size % (a.order * a.power) == 0;
    CHECK(good == right, "size %lld order %lld power %lld: %s", (long long)a.size, (long long)a.order, (long long)a.power, good ? "accepted" : m.text);
    if (good) {
      mambac::Shape in[2] = {{{0}, (size_t)r.below(10)}, {{a.order, a.order}, 2}};
      double rows = 1;
      bool intact = in[0].rank >= 1 && in[0].rank <= mambac::kMaxRank;
      for (size_t k = 0; k < in[0].rank && k < mambac::kMaxRank; k++) {
        in[0].dims[k] = k + 1 == in[0].rank && r.below(8) ? a.size : any();
        if (k + 1 < in[0].rank) rows *= (double)in[0].dims[k];
        intact = intact && in[0].dims[k] >= 0;
      }
      intact = intact && in[0].dims[in[0].rank - 1] == a.size && rows * (double)a.size < 1e18;
      if (!r.below(6)) {
        in[1].dims[r.below(2)] = any();
        if (!r.below(3)) in[1].rank = (size_t)r.below(4);
        intact = intact && in[1].rank == 2 && in[1].dims[0] == a.order && in[1].dims[1] == a.order;
      }
      mambac::HadamardArgs args;
      good = mambac::plan_hadamard(op, a, in, &args, &m);
      CHECK(good == intact, "%s", good ? "accepted a wrong shape" : m.text);
      if (good) {
        accepted++;
        CHECK((double)args.rows == rows && args.size == a.size && args.order == a.order && args.power == a.power, "sizes");
      }
    }
    if (!good) CHECK(memchr(m.text, 0, sizeof m.text) != nullptr && strncmp(m.text, op.name, strlen(op.name)) == 0, "no message");
  }
  CHECK(accepted > rounds / 100, "only %ld accepted: the test tests nothing", accepted);
  char error[80];
  CHECK(mambac_rotate_run(nullptr, nullptr, error, sizeof error) == 1 && strstr(error, op.name), "null");
  mambac_rotate none = {0, 12, 12, 1, nullptr, nullptr, nullptr};
  CHECK(mambac_rotate_run(nullptr, &none, error, sizeof error) == 0, "%s", error);
  CHECK(mambac_rotate_run("mmx", &none, error, sizeof error) == 1 && strstr(error, "mmx"), "%s", error);
  none.rows = -1;
  CHECK(mambac_rotate_run(nullptr, &none, error, sizeof error) == 1 && strstr(error, "x has shape"), "%s", error);
  none.power = 3;
  CHECK(mambac_rotate_run(nullptr, &none, error, sizeof error) == 1 && strstr(error, "power of two"), "%s", error);
}

inline void hadamard_cases(const std::vector<const char*>& isas, bool quick) {
  uint64_t seed = 1;
  for (int order : {1, 2, 3, 5, 12, 20, 40, 44})
    for (int power : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048}) {
      if (order * power > (quick ? 2600 : 11000)) continue;
      hadamard_case(isas, seed % 4 == 0 ? 19 : 3, 1 + (int)(seed % 3), order, power, seed, seed % 5 == 0 ? 1e20 : seed % 5 == 1 ? 1e-20 : 1);
      seed++;
    }
  hadamard_case(isas, 0, 1, 12, 64, seed, 1);
  hadamard_case(isas, 1, 1, 256, 4, seed, 1);
  hadamard_case(isas, 2, 1, 256, 32, seed, 1);
}

inline void gate_cases(const std::vector<const char*>& isas) {
  uint64_t seed = 1;
  for (int channels : {1, 3, 16, 17, 64, 80, 256, 1000, 1536})
    for (int groups : {-1, 0, 1, 2, 4, 5})
      for (int before = 0; before < (groups > 0 ? 2 : 1); before++) {
        if (groups > 0 && channels % groups != 0) continue;
        const double scale = seed % 5 == 0 ? 1e-6 : seed % 5 == 1 ? 1e6 : 1;
        gate_case(isas, seed % 4 == 0 ? 19 : 3, channels, groups > 0 ? channels / groups : groups, before != 0, seed % 2 ? 1e-5f : 1e-6f, seed, scale);
        seed++;
      }
}

inline void row_cases(const std::vector<const char*>& isas, bool quick) {
  row_refusals(quick ? 20000 : 200000);
  hadamard_cases(isas, quick);
  gate_refusals(quick ? 20000 : 200000);
  gate_cases(isas);
}
