// Every kernel of every instruction set this machine has, against the double reference. Exit status 0: all agree.
// Usage: kernels_test [quick | isa]
#include "checks.h"
#include "half_checks.h"
#include "mambac/capi.h"
#include "mambac/plan.h"
#include "replay_checks.h"
#include "codes_checks.h"
#include "row_checks.h"

static std::vector<const char*> g_isas;

static Output run(const Op& op, const Sizes& s, const Inputs& in, const char* isa, bool alias) {
  Output out;
  out.y.assign((size_t)s.B * s.L * s.channels(), NAN);
  out.present = alias ? in.past : std::vector<uint8_t>(in.past.size(), 0xa5);
  mambac_scan call = {s.B, s.L, s.H, s.P, s.N, s.G, in.dt_min, in.dt_max, in.x.data(), in.dt.data(), in.A.data(), in.B.data(),
                      in.C.data(), in.D.data(), in.bias.data(), alias ? out.present.data() : in.past.data(), out.y.data(),
                      out.present.data(), 0, in.row_step.data(), in.column_step.data()};
  char error[320] = "";
  int status = mambac_scan_run(op.name.c_str(), isa, &call, error, sizeof error);
  CHECK(status == 0, "%s", error);
  return out;
}

static void one_case(const Op& op, const Sizes& s, uint64_t seed, double scale, bool zero_state) {
  Random r(seed);
  Inputs in = make_inputs(op, s, r, scale, zero_state, (int)(seed % 8));
  Result want = scan(op, s, in);
  const double tolerance = 3e-6;
  Output first;
  for (const char* isa : g_isas) {
    char text[160];
    snprintf(text, sizeof text, "%s %s B%d L%d H%d P%d N%d G%d seed %llu scale %g", isa, op.name.c_str(), s.B, s.L, s.H, s.P, s.N,
             s.G, (unsigned long long)seed, scale);
    g_where = text;
    Output out = run(op, s, in, isa, false);
    // A Token state over several tokens may round differently near ties and go its own way: it is checked as steps.
    if (!op.token || s.L == 1) {
      check_y(want, out.y, tolerance);
      check_state(op, s, want, out.present, tolerance, code_doubt(op, s), &in);
    }
    CHECK(same(out, run(op, s, in, isa, true)), "one buffer as past and present gives other bits");
    if (strcmp(isa, "avx2") == 0) first = out;
    if (strcmp(isa, "avx512") == 0 && !first.y.empty()) CHECK(same(first, out), "avx512 and avx2 differ");
    if (!op.token || s.L == 1) continue;
    Inputs step = in;  // the same tokens as single calls
    Sizes one = s;
    one.L = 1;
    for (int l = 0; l < s.L; l++) {
      auto slice = [&](const std::vector<float>& v, size_t width) {
        std::vector<float> o;
        for (int b = 0; b < s.B; b++) o.insert(o.end(), v.begin() + (long)((b * s.L + l) * width), v.begin() + (long)((b * s.L + l + 1) * width));
        return o;
      };
      step.x = slice(in.x, s.channels());
      step.dt = slice(in.dt, s.rates(op));
      step.B = slice(in.B, (size_t)s.G * s.N);
      step.C = slice(in.C, (size_t)s.G * s.N);
      Output o = run(op, one, step, isa, false);
      std::vector<float> y = slice(out.y, s.channels());
      CHECK(same_bits(y.data(), o.y.data(), y.size()), "token %d alone gives another y", l);
      step.past = o.present;
    }
    CHECK(step.past == out.present, "tokens alone give another state");
  }
}

// Many tokens through one packed state from zero. Two roundings of one trajectory drift apart at every tie, so the kernel
// is held to the reference in two ways: each token from the kernel's own last state, and its distance from the unrounded
// recurrence over the whole run, which must be that of the reference.
static void long_run(const Op& op, int tokens) {
  Sizes s = {1, tokens, 2, 16, 128, 1};
  Random r(77);
  Inputs in = make_inputs(op, s, r, 1, true);
  Op exact = parse(op.two ? "Mamba2ScanF32" : "Mamba1ScanF32");
  Inputs zero = in;
  zero.past.assign((size_t)s.H * head_bytes(exact, s.P, s.N), 0);
  Result rounded = scan(op, s, in), unrounded = scan(exact, s, zero);
  double rounding = 0;
  for (size_t i = 0; i < rounded.y.size(); i++) rounding += pow(rounded.y[i] - unrounded.y[i], 2);
  for (const char* isa : g_isas) {
    g_where = std::string(isa) + " " + op.name + " long run";
    Output out = run(op, s, in, isa, true);
    double error = 0;
    for (size_t i = 0; i < out.y.size(); i++) error += pow(out.y[i] - unrounded.y[i], 2);
    CHECK(fabs(sqrt(error / rounding) - 1) < 0.1, "error %.4g, the reference's %.4g", sqrt(error), sqrt(rounding));
    Sizes one = s;
    one.L = 1;
    std::vector<uint8_t> state = in.past;
    for (int l = 0; l < tokens; l++) {
      Inputs step = token_of(op, s, in, l);
      step.past = state;
      Output o = run(op, one, step, isa, false);
      CHECK(same_bits(o.y.data(), out.y.data() + (size_t)l * s.channels(), o.y.size()), "token %d alone gives another y", l);
      if (l % 16 == 0 || l + 50 > tokens) {
        Result want = scan(op, one, step);
        check_y(want, o.y, 3e-6);
        check_state(op, one, want, o.present, 3e-6, code_doubt(op, one), &step);
      }
      state = o.present;
    }
    CHECK(state == out.present, "tokens alone give another state");
  }
}

// One input that is not a number: it shows in y and ends as the lowest code, in its own row alone.
static void not_a_number(const Op& op) {
  const int row = 5;
  for (int n : {64, 100, 128, 256})
    for (int tokens : {1, 2}) {
      Sizes s = {1, tokens, 2, 16, n, 1}, one = {1, 1, 2, 16, n, 1};
      const bool fixed = op.frozen || (whole_numbers(op, one) && (tokens == 1 || op.token));  // such a head is worked out in floats instead
      Random r(123);
      Inputs in = make_inputs(op, s, r, 1, false, 0), broken = in;
      const size_t at = (size_t)((tokens - 1) * s.channels() + row);  // of the last token
      broken.x[at] = NAN;
      for (const char* isa : g_isas) {
        g_where = std::string(isa) + " " + op.name + " not a number, N = " + std::to_string(n);
        Output good = run(op, s, in, isa, false), bad = run(op, s, broken, isa, true);
        for (size_t i = 0; i < good.y.size(); i++)
          CHECK(i == at ? bad.y[i] != bad.y[i] : fixed ? fabs(good.y[i] - bad.y[i]) <= 1e-5 * fabs(good.y[i]) + 1e-4 : same_bits(&good.y[i], &bad.y[i], 1),
                "y[%zu] = %.9g, without it %.9g", i, (double)bad.y[i], (double)good.y[i]);
        for (int i = 0; i < s.P * n; i++) {
          int code = code_at(op, bad.present.data(), i);
          CHECK(i / n == row ? code == -op.qmax() : abs(code) <= op.qmax(), "code %d of row %d: %d", i % n, i / n, code);
        }
      }
    }
}

static void conv_case(const ConvSizes& s, bool silu, uint64_t seed, double scale) {
  Random r(seed);
  std::vector<float> x = r.normals((size_t)s.B * s.E * s.L, scale), w = r.normals((size_t)s.E * s.K, 1), bias = r.normals(s.E, 1),
                     past = r.normals((size_t)s.B * s.E * s.W, scale), expected;
  std::vector<double> want;
  conv(s, silu, x.data(), w.data(), bias.data(), past.data(), want, expected);
  for (const char* isa : g_isas)
    for (int alias = 0; alias < 2; alias++) {
      char text[120];
      snprintf(text, sizeof text, "%s conv silu %d B%d E%d L%d K%d W%d alias %d", isa, silu, s.B, s.E, s.L, s.K, s.W, alias);
      g_where = text;
      std::vector<float> y(want.size(), NAN), present = alias ? past : std::vector<float>(past.size(), NAN);
      mambac_conv call = {s.B, s.E, s.L, s.K, s.W, x.data(), w.data(), bias.data(), alias ? present.data() : past.data(), y.data(),
                          present.data()};
      char error[320] = "";
      int status = mambac_conv_run(silu ? "CausalConvSilu" : "CausalConv", isa, &call, error, sizeof error);
      CHECK(status == 0, "%s", error);
      CHECK(present == expected, "state differs");
      for (size_t i = 0; i < y.size(); i++)
        CHECK(fabs(y[i] - want[i]) <= 2e-6 * scale * s.K + 1e-6 * fabs(want[i]), "y[%zu] = %.9g, expected %.9g", i, (double)y[i], want[i]);
    }
}

// The same with tokens in rows among other channels, as one output (parts 1) or three.
static void conv_rows_case(const ConvSizes& s, bool silu, int parts, uint64_t seed, double scale) {
  Random r(seed);
  const int first = (int)r.below(5), row = first + s.E + (int)r.below(3);
  std::vector<float> wide = r.normals((size_t)s.B * s.L * row, scale), w = r.normals((size_t)s.E * s.K, 1), bias = r.normals(s.E, 1),
                     past = r.normals((size_t)s.B * s.E * s.W, scale), expected, x = columns_of(s, wide, row, first);
  std::vector<double> want;
  conv(s, silu, x.data(), w.data(), bias.data(), past.data(), want, expected);
  const int one = parts == 3 ? 1 + (int)r.below(s.E - 2) : s.E, two = parts == 3 ? 1 + (int)r.below(s.E - one - 1) : 0;
  const int sizes[3] = {one, two, s.E - one - two};
  const char* const names[2][2] = {{"CausalConvRows", "CausalConvSiluRows"}, {"CausalConvSplit", "CausalConvSiluSplit"}};
  for (const char* isa : g_isas)
    for (int alias = 0; alias < 2; alias++) {
      char text[160];
      snprintf(text, sizeof text, "%s conv rows silu %d B%d E%d = %d + %d + %d L%d K%d W%d row %d first %d alias %d", isa, silu, s.B, s.E, one, two, sizes[2], s.L, s.K,
               s.W, row, first, alias);
      g_where = text;
      std::vector<float> y[3], present = alias ? past : std::vector<float>(past.size(), NAN);
      for (int p = 0; p < 3; p++) y[p].assign((size_t)s.B * s.L * sizes[p], NAN);
      mambac_conv call = {s.B, s.E, s.L, s.K, s.W, wide.data(), w.data(), bias.data(), alias ? present.data() : past.data(), y[0].data(),
                          present.data(), 0, row, first, one, two, y[1].data(), y[2].data()};
      char error[320] = "";
      CHECK(mambac_conv_run(names[parts == 3][silu], isa, &call, error, sizeof error) == 0, "%s", error);
      CHECK(present == expected, "state differs");
      for (int p = 0, from = 0; p < 3; from += sizes[p++])
        for (int b = 0; b < s.B; b++)
          for (int l = 0; l < s.L; l++)
            for (int e = 0; e < sizes[p]; e++) {
              const double got = y[p][(size_t)((b * s.L + l) * sizes[p] + e)], right = want[(size_t)((b * s.E + from + e) * s.L + l)];
              CHECK(fabs(got - right) <= 2e-6 * scale * s.K + 1e-6 * fabs(right), "part %d [%d, %d, %d] = %.9g, expected %.9g", p, b, l, e, got, right);
            }
    }
}

// What rows must be refused for.
static void conv_refusals() {
  g_where = "refusals of convolutions of rows";
  char error[320];
  const mambac_conv good = {0, 12, 3, 4, 3, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 20, 8, 4, 4, nullptr, nullptr};
  CHECK(mambac_conv_run("CausalConvSplit", nullptr, &good, error, sizeof error) == 0, "%s", error);
  auto refused = [&](const char* name, const char* why, void (*change)(mambac_conv&)) {
    mambac_conv call = good;
    change(call);
    CHECK(mambac_conv_run(name, nullptr, &call, error, sizeof error) == 1 && strncmp(error, name, strlen(name)) == 0 && strstr(error, why), "%s", error);
  };
  refused("CausalConvRows", "at least first + channels = 20", [](mambac_conv& c) { c.row = 19; });
  refused("CausalConvSiluRows", "attribute first is -1", [](mambac_conv& c) { c.first = -1; });
  refused("CausalConvSplit", "attribute first_size is 0", [](mambac_conv& c) { c.first_size = 0; });
  refused("CausalConvSiluSplit", "attribute second_size is -4", [](mambac_conv& c) { c.second_size = -4; });
  refused("CausalConvSplit", "must leave some of channels = 12", [](mambac_conv& c) { c.second_size = 8; });
  refused("CausalConvSplit", "must be between 0 and 2^30", [](mambac_conv& c) { c.first = INT64_MAX; });
  refused("CausalConvSplit", "must leave some", [](mambac_conv& c) { c.first_size = c.second_size = 1 << 30; });
}

// softplus through y = d x with no decay, exp through y = exp(d A) h; relative errors, over the whole range.
static void functions() {
  const int T = 4000;
  Sizes s = {1, T, 1, 1, 1, 1};
  Op op = parse("Mamba2ScanF32");
  for (const char* isa : g_isas) {
    g_where = std::string(isa) + " functions";
    double soft = 0, expo = 0;
    for (int i = 0; i < T; i++) {
      double v = -80 + 180.0 * i / T;
      Inputs in;
      s.L = 1;
      in.dt = {(float)v};
      in.x = in.B = in.C = {1.0f};
      in.A = in.D = in.bias = {0.0f};
      in.past.assign(4, 0);
      double want = softplus((double)in.dt[0]);
      soft = fmax(soft, fabs(run(op, s, in, isa, false).y[0] - want) / want);
      in.x = {0.0f};  // d = 1 through the limits
      in.dt_min = in.dt_max = 1;
      in.A = {(float)(-86 + 172.0 * i / T)};
      float one = 1;
      memcpy(in.past.data(), &one, 4);
      want = exp((double)in.A[0]);
      expo = fmax(expo, fabs(run(op, s, in, isa, false).y[0] - want) / want);
    }
    CHECK(soft < 2.5e-7, "softplus is off by %.3g", soft);
    CHECK(expo < 2.5e-7, "exp is off by %.3g", expo);
    printf("%s: softplus %.2g, exp %.2g\n", isa, soft, expo);
  }
}

// Attributes and shapes nobody should send: every answer is yes or a message that names the operator.
static void refusals(int rounds) {
  Random r(99);
  g_where = "refusals";
  const int64_t odd[] = {0, -1, 1, 2, 3, 4, 5, 7, 8, 64, 1 << 30, (1ll << 30) + 1, INT64_MAX, INT64_MIN, 1ll << 32};
  auto any = [&] { return r.below(3) ? (int64_t)(1 + r.below(4)) : odd[r.below(15)]; };
  long accepted = 0;
  for (int i = 0; i < rounds; i++) {
    const mambac::ScanOp& op = mambac::scan_ops()[r.below(mambac::kScanOps)];
    mambac::Message m;
    memset(m.text, 'x', sizeof m.text);
    const float limits[] = {-INFINITY, INFINITY, NAN, 0, 1};
    mambac::ScanAttributes a = {any(), any(), any(), any(), any(), any(), any(), limits[r.below(5)], limits[r.below(5)]};
    bool good = mambac::check_scan_attributes(op, a, &m);
    if (good) {
      const bool two = op.family == mambac::Family::kMamba2;
      const int64_t p = a.head_dim, h = two ? a.num_heads : a.channels / p, e = h * p, n = a.d_state, g = a.num_groups, b = any(), l = any(), d = two ? h : e;
      const bool rows = op.format == mambac::Format::kF32 || op.format == mambac::Format::kF16;
      mambac::Shape in[10] = {two ? mambac::Shape{{b, l, h, p}, 4} : mambac::Shape{{b, l, e}, 3}, {{b, l, d}, 3}, two ? mambac::Shape{{h}, 1} : mambac::Shape{{e, n}, 2},
                             {{b, l, g, n}, 4}, {{b, l, g, n}, 4}, two ? mambac::Shape{{h, p}, 2} : mambac::Shape{{e}, 1}, {{d}, 1},
                             op.replay ? mambac::Shape{{b, mambac::replay_bytes(op, a)}, 2} : !rows ? mambac::Shape{{b, h, mambac::packed_bytes(op, p, n)}, 3} : two ? mambac::Shape{{b, h, p, n}, 4} : mambac::Shape{{b, e, n}, 3}, {{h, p}, 2}, {{g, n}, 2}};
      bool intact = true;
      if (r.below(3)) {
        mambac::Shape& s = in[r.below(mambac::scan_inputs(op))];
        const size_t at = (size_t)r.below((int)s.rank);
        if (r.below(2)) {
          const int64_t v = any();
          intact = v == s.dims[at];
          s.dims[at] = v;
        } else {
          s.rank = (size_t)r.below(9);
          for (size_t k = 4; k < s.rank; k++) s.dims[k] = any();
          intact = false;  // the same rank again is accepted, which is right too
        }
      }
      mambac::ScanArgs args;
      good = mambac::plan_scan(op, a, in, &args, &m);
      if (good) {
        accepted++;
        CHECK(args.batch == in[0].dims[0] && args.heads * args.head_dim == e && args.d_state == n, "sizes");
      } else {
        CHECK(!intact || b < 0 || l < 0 || b > 4 || l > 4 || e > 64 || n > 64 || p > 64, "refused without a reason: %s", m.text);
      }
    }
    if (!good) CHECK(memchr(m.text, 0, sizeof m.text) != nullptr && strncmp(m.text, op.name, strlen(op.name)) == 0, "no message");
    mambac_scan call = {any(), any(), any(), any(), any(), any(), -INFINITY, INFINITY, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, any(), nullptr, nullptr};
    if (call.groups > 0 && call.heads > 0 && call.head_dim > 0 && call.d_state > 0) call.d_state = -call.d_state;  // never valid: there is no data
    char error[64];
    CHECK(mambac_scan_run(op.name, nullptr, &call, error, sizeof error) == 1 && memchr(error, 0, sizeof error) != nullptr, "accepted nonsense");
    mambac_conv conv = {any(), any(), any(), any(), -1 - any() % 3, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 0, 0, 0, 0, nullptr, nullptr};
    if (conv.kernel < 1 || conv.width >= conv.kernel - 1) conv.kernel = 0;
    CHECK(mambac_conv_run("CausalConv", nullptr, &conv, error, sizeof error) == 1, "accepted nonsense");
  }
  CHECK(accepted > rounds / 100, "only %ld accepted: the test tests nothing", accepted);
  char error[64];
  CHECK(mambac_scan_run("Mamba3Scan", nullptr, nullptr, error, sizeof error) == 1, "null");
  mambac_scan none = {};
  CHECK(mambac_scan_run("Mamba3Scan", nullptr, &none, error, sizeof error) == 1 && strstr(error, "Mamba3Scan"), "%s", error);
  none.heads = none.head_dim = none.d_state = none.groups = 1;  // and no batch: nothing to compute
  CHECK(mambac_scan_run("Mamba2ScanF32", nullptr, &none, error, sizeof error) == 0, "%s", error);
  CHECK(mambac_scan_run("Mamba2ScanF32", "mmx", &none, error, sizeof error) == 1 && strstr(error, "mmx"), "%s", error);
  CHECK(mambac_state_bytes("Mamba2ScanH4", 2, 64, 128) == 2 * (64 * 64 + 2 * 64 + 2 * 128), "state bytes");
}

int main(int argc, char** argv) {
  if (argc > 1 && strcmp(argv[1], "isa") == 0) {
    puts(mambac_isa());
    return 0;
  }
  const bool quick = argc > 1 && strcmp(argv[1], "quick") == 0;
  for (const char* isa : {"portable", "avx2", "avx512"})
    if (mambac::kernels_named(isa) != nullptr) g_isas.push_back(isa);
  std::vector<const char*> replay_isas = g_isas;
  const mambac::Kernels *wide = mambac::kernels_named("avx512"), *base = mambac::kernels_named("avx512-base");
  if (wide != nullptr && wide != base) replay_isas.push_back("avx512-base");  // other instructions for 4-bit codes only
  functions();
  refusals(quick ? 20000 : 200000);
  row_cases(g_isas, quick);
  conversions(g_isas);
  codes_refusals();
  for (const char* isa : g_isas) {
    encode_cases(isa);
    codes_cases({mambac_rotate_run, mambac_gate_run}, isa);
  }
  for (const char* isa : g_isas) half_calls({mambac_scan_run, mambac_conv_run, mambac_rotate_run, mambac_gate_run}, isa);
  const int ps[] = {1, 5, 16, 17, 64, 80}, ns[] = {1, 2, 15, 16, 20, 64, 100, 128, 130, 256};
  const int lengths[] = {1, 2, 5, 33, 70};
  uint64_t seed = 1;
  for (int o = 0; o < mambac::kScanOps; o++) {
    Op op = parse(mambac::scan_ops()[o].name);
    if (op.replay) {
      replay_cases(op, replay_isas, quick);
      continue;
    }
    for (int p : ps)
      for (int n : ns) {
        if (op.kind == Kind::H4 && n % 2) continue;
        for (int l : lengths) {
          seed++;
          if ((quick || p * n * l > 30000) && seed % (quick ? 9 : 4) != 0) continue;
          int groups = (int)(seed % 3) + 1;
          // Mamba-1 groups need not end where pseudo-heads do
          Sizes s = {1 + (int)(seed % 2), l, op.two ? groups * 2 : 3, p, n, op.two ? groups : p % 2 == 0 && seed % 2 ? 2 : 1};
          one_case(op, s, seed, 1, seed % 5 == 0);
        }
      }
    for (double scale : {1e-30, 1e-9, 1e4, 1e9, 1e15}) {
      if (op.kind == Kind::F16 && scale > 1e3) continue;
      one_case(op, {1, 1, 2, 17, 128, 1}, 5, scale, false);
      one_case(op, {1, 6, 2, 32, 20, 1}, 6, scale, false);
    }
    Sizes none = {1, 0, 2, 4, 6, 1}, empty = {0, 3, 2, 4, 6, 1};
    one_case(op, empty, 9, 1, false);
    Random r(3);
    Inputs in = make_inputs(op, none, r, 1, false);
    for (const char* isa : g_isas) {
      g_where = std::string(isa) + " " + op.name + " no token";
      CHECK(run(op, none, in, isa, false).present == in.past, "the state changed without a token");
    }
    if (op.packed()) not_a_number(op);
    if (op.token && (!quick || op.kind == Kind::H4)) long_run(op, quick ? 400 : 2000);
  }
  for (int k : {1, 2, 3, 4, 5, 7})
    for (int extra : {0, 1, 3})
      for (int l : {1, 2, 3, 4, 16, 37})
        for (int silu = 0; silu < 2; silu++) {
          const ConvSizes s = {2, 67, l, k, k - 1 + extra};
          conv_case(s, silu, seed++, l == 16 ? 30 : 1);
          conv_rows_case(s, silu, 1, seed, l == 16 ? 30 : 1);
          conv_rows_case(s, silu, 3, seed, l == 16 ? 30 : 1);
        }
  for (int l : {1, 2, 40}) {
    conv_rows_case({2, 256, l, 4, 3}, true, 1, seed, 1);
    conv_rows_case({1, 230, l, 4, 3}, true, 3, seed++, 1);
  }
  conv_rows_case({1, 8, 0, 4, 3}, true, 1, seed, 1);
  conv_refusals();
  printf("codes %ld, off by one %ld (%.2g); scales %ld, neighbouring half %ld\n", g_tally.codes, g_tally.off,
         (double)g_tally.off / (double)g_tally.codes, g_tally.scales, g_tally.scales_off);
  CHECK((double)g_tally.off <= 1e-3 * (double)g_tally.codes, "too many codes off");
  printf("in whole numbers: codes %ld, off by one %ld (%.2g); scales %ld, neighbouring half %ld\n", g_whole_tally.codes, g_whole_tally.off,
         (double)g_whole_tally.off / (double)g_whole_tally.codes, g_whole_tally.scales, g_whole_tally.scales_off);
  CHECK((double)g_whole_tally.off <= 5e-4 * (double)g_whole_tally.codes, "too many codes off");
  printf("%ld checks, %ld failures\n", g_checks, g_failures);
  return g_failures == 0 ? 0 : 1;
}
