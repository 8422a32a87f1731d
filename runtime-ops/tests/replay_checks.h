// The Replay operators: in double precision from runtime-ops/README.md, and every instruction set held against that.
#pragma once
#include "checks.h"
#include "runner.h"

struct Output {
  std::vector<float> y;
  std::vector<uint8_t> present;
};
inline bool same(const Output& a, const Output& b) {
  return a.present == b.present && a.y.size() == b.y.size() && same_bits(a.y.data(), b.y.data(), a.y.size());
}

constexpr double kReplayTolerance = 3e-6;

// Byte offsets inside a sequence.
struct ReplayParts {
  size_t head, u, l, b, count, bytes;
};
inline ReplayParts replay_parts(const Op& op, const Sizes& s, int R) {
  ReplayParts at;
  at.head = head_bytes(op, s.P, s.N);
  at.u = (size_t)s.H * at.head;
  at.l = at.u + 2 * (size_t)s.H * R * s.P;
  at.b = at.l + 4 * (size_t)s.H * R;
  at.count = at.b + 2 * (size_t)s.G * R * s.N;
  at.bytes = (at.count + 4 + 63) / 64 * 64;
  return at;
}
inline float f32_at(const uint8_t* p) {
  float f;
  memcpy(&f, p, 4);
  return f;
}
inline uint32_t count_at(const ReplayParts& at, const uint8_t* sequence) {
  const uint8_t* p = sequence + at.count;
  return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}
inline double half_input(double v) { return to_half(clamp(v, -65504, 65504)); }
// How far, relatively, float32 may be off in dt (+ bias), its softplus, and one product with that. The sum is rounded, and below
// zero softplus is nearly exp: the rounding grows by the sum itself. 2.5e-7 is what softplus keeps (kernels_test).
inline double float_error(double sum) {
  const double grown = softplus(sum) > 0 ? fabs(sum) / (1 + exp(-sum)) / softplus(sum) : 0;
  return 2.5e-7 + 0x1p-24 * (1 + grown);
}
// How far a half may be off because float32, `e` off, reached the other side of a tie.
inline double half_doubt(double v, double e) { return fabs(half_input(v * (1 + e)) - half_input(v * (1 - e))); }

struct ReplayResult {
  Result at;                                // y; h is the state before its last rounding, where there was one in this call
  std::vector<char> rounds;                 // per sequence: was it rounded in this call
  std::vector<int> counts;                  // per sequence, after the call
  std::vector<std::vector<double>> u, l, b;  // per sequence: what the used slots hold, before it is made a half or float
  std::vector<std::vector<double>> error;    // per sequence: how far u and l of a slot may be off, relatively; 0 where it was there before
};

// What a rounding may give when h is only known to tolerance * size: `size` grows by what a neighbouring code or scale changes.
inline void round_in_doubt(const Op& op, std::vector<double>& h, std::vector<double>& size, int P, int N, double tolerance) {
  const Scales s = choose_scales(op, h, P, N);
  std::vector<char> row(P, 0), column(N, 0);
  for (int p = 0; p < P; p++) {
    double top = 0, top_size = 0, sum = 0;
    for (int n = 0; n < N; n++) {
      const size_t j = (size_t)p * N + n;
      top = fmax(top, fabs(h[j])), top_size = fmax(top_size, size[j]), sum += fabs(h[j]);
    }
    const double raw = op.max ? top : sqrt(sum / N), doubt = top > 0 ? fmin(1, 1e-6 + tolerance * top_size / top) : 0;
    row[p] = to_half(clamp(raw * (1 + doubt), ldexp(1, -14), 65504)) != to_half(clamp(raw * (1 - doubt), ldexp(1, -14), 65504));
  }
  for (int n = 0; n < N; n++) {
    double top = 0, error = 0;
    for (int p = 0; p < P; p++) top = fmax(top, fabs(h[(size_t)p * N + n]) / s.sc[p]), error = fmax(error, tolerance * size[(size_t)p * N + n] / s.sc[p]);
    column[n] = to_half(fmin(top * (1 + 1e-6) + error, 65504)) != to_half(fmax(0, fmin(top * (1 - 1e-6) - error, 65504)));
    for (int p = 0; p < P; p++) column[n] |= row[p] && fabs(h[(size_t)p * N + n]) / s.sc[p] > 0.99 * top;
  }
  for (int p = 0; p < P; p++)
    for (int n = 0; n < N; n++) {
      const size_t j = (size_t)p * N + n;
      const double step = s.sc[p] * s.ss[n] / op.qmax(), e = tolerance * size[j] + 1e-6 * op.qmax() * step;
      const bool doubt = row[p] || column[n] || code_for(op, h[j] - e, s.sc[p], s.ss[n]) != code_for(op, h[j] + e, s.sc[p], s.ss[n]);
      h[j] = code_for(op, h[j], s.sc[p], s.ss[n]) * step;
      size[j] = fabs(h[j]) + (doubt ? (e + 1.01 * step) / tolerance : 0);
    }
}

inline ReplayResult replay(const Op& op, const Sizes& s, int R, const Inputs& in) {
  ReplayResult r;
  const ReplayParts at = replay_parts(op, s, R);
  const int E = s.channels();
  r.at.y.assign((size_t)s.B * s.L * E, 0);
  r.at.y_size = r.at.y;
  for (int b = 0; b < s.B; b++) {
    const uint8_t* past = in.past.data() + b * at.bytes;
    const int before = (int)count_at(at, past);
    std::vector<double> us((size_t)s.H * R * s.P, 0), ls((size_t)s.H * R, 0), bs((size_t)s.G * R * s.N, 0), es(ls);
    auto clear = [&] { us.assign(us.size(), 0), ls.assign(ls.size(), 0), bs.assign(bs.size(), 0), es.assign(es.size(), 0); };
    for (size_t i = 0; i < us.size(); i++) us[i] = half_value(u16(past + at.u + 2 * i));
    for (size_t i = 0; i < ls.size(); i++) ls[i] = f32_at(past + at.l + 4 * i);
    for (size_t i = 0; i < bs.size(); i++) bs[i] = half_value(u16(past + at.b + 2 * i));
    int count = before;
    std::vector<std::vector<double>> state(s.H), size(s.H), last(s.H), last_size(s.H);
    for (int h = 0; h < s.H; h++) {
      state[h] = decode(op, past + h * at.head, s.P, s.N);
      for (double v : state[h]) size[h].push_back(fabs(v));
    }
    auto step = [&](int h, double l, double decay, int p, int n, double u, double doubt, double bn) {
      const size_t j = (size_t)p * s.N + n;
      size[h][j] = decay * size[h][j] * (1 + fabs(l) * 0.25) + fabs(u * bn) + doubt * fabs(bn) / kReplayTolerance;
      state[h][j] = decay * state[h][j] + u * bn;
    };
    for (int j = 0; j < count; j++)
      for (int h = 0; h < s.H; h++) {
        const double l = ls[(size_t)h * R + j], decay = exp(l);
        for (int p = 0; p < s.P; p++)
          for (int n = 0; n < s.N; n++)
            step(h, l, decay, p, n, us[((size_t)h * R + j) * s.P + p], 0, bs[((size_t)(h / (s.H / s.G)) * R + j) * s.N + n]);
      }
    bool rounded = false;
    for (int t = 0; t < s.L; t++) {
      const size_t row = (size_t)b * s.L + t;
      for (int i = 0; i < s.G * s.N; i++) bs[((size_t)(i / s.N) * R + count) * s.N + i % s.N] = half_input(in.B[row * s.G * s.N + i]);
      for (int h = 0; h < s.H; h++) {
        const int group = h / (s.H / s.G);
        const double dt = (double)in.dt[row * s.H + h] + in.bias[h], error = float_error(dt);
        const double d = clamp(softplus(dt), in.dt_min, in.dt_max), l = d * in.A[h], decay = exp(l);
        ls[(size_t)h * R + count] = l;
        es[(size_t)h * R + count] = error;
        for (int p = 0; p < s.P; p++) {
          const double x = in.x[row * E + h * s.P + p], v = d * x;
          us[((size_t)h * R + count) * s.P + p] = v;
          const double u = half_input(v), doubt = half_doubt(v, error);
          double sum = in.D[h * s.P + p] * x, magnitude = fabs(sum);
          for (int n = 0; n < s.N; n++) {
            step(h, l, decay, p, n, u, doubt, bs[((size_t)group * R + count) * s.N + n]);
            const double C = in.C[(row * s.G + group) * s.N + n];
            sum += state[h][(size_t)p * s.N + n] * C;
            magnitude += size[h][(size_t)p * s.N + n] * fabs(C);
          }
          r.at.y[row * E + h * s.P + p] = sum;
          r.at.y_size[row * E + h * s.P + p] = magnitude;
        }
      }
      if (++count < R) continue;
      for (int h = 0; h < s.H; h++) {
        last[h] = state[h];
        last_size[h] = size[h];
        round_in_doubt(op, state[h], size[h], s.P, s.N, kReplayTolerance);
      }
      clear();
      count = 0;
      rounded = true;
    }
    for (int h = 0; h < s.H; h++) {
      r.at.h.push_back(last[h]);
      r.at.h_size.push_back(last_size[h]);
    }
    r.rounds.push_back(rounded);
    r.counts.push_back(count);
    r.u.push_back(us), r.l.push_back(ls), r.b.push_back(bs), r.error.push_back(es);
  }
  return r;
}

// `rings_only`: nothing that depends on how the state was rounded.
inline void check_replay_state(const Op& op, const Sizes& s, int R, const Inputs& in, const ReplayResult& want, const std::vector<uint8_t>& present,
                               bool rings_only = false) {
  const ReplayParts at = replay_parts(op, s, R);
  const Sizes one = {1, s.L, s.H, s.P, s.N, s.G};
  for (int b = 0; b < s.B; b++) {
    const uint8_t *got = present.data() + b * at.bytes, *past = in.past.data() + b * at.bytes;
    const int count = want.counts[b];
    CHECK((int)count_at(at, got) == count, "sequence %d: count %d, expected %d", b, (int)count_at(at, got), count);
    if (want.rounds[b] && !rings_only) {
      Result heads;
      heads.h.assign(want.at.h.begin() + b * s.H, want.at.h.begin() + (b + 1) * s.H);
      heads.h_size.assign(want.at.h_size.begin() + b * s.H, want.at.h_size.begin() + (b + 1) * s.H);
      check_state(op, one, heads, std::vector<uint8_t>(got, got + at.u), kReplayTolerance);
    } else if (!want.rounds[b]) {
      CHECK(memcmp(got, past, at.u) == 0, "sequence %d: the checkpoint changed", b);
    }
    for (int i = 0; i < s.H * R * s.P; i++) {
      const double v = want.u[b][(size_t)i], u = half_value(u16(got + at.u + 2 * i));
      if (i / s.P % R >= count)
        CHECK(u16(got + at.u + 2 * i) == 0, "u[%d] is not cleared", i);
      else
        CHECK(fabs(u - half_input(v)) <= half_doubt(v, want.error[b][(size_t)i / s.P]), "u[%d] = %.9g, expected %.9g", i, u, half_input(v));
    }
    for (int i = 0; i < s.H * R; i++)
      CHECK(fabs(f32_at(got + at.l + 4 * i) - want.l[b][(size_t)i]) <= want.error[b][(size_t)i] * fabs(want.l[b][(size_t)i]), "l[%d] = %.9g, expected %.9g", i,
            f32_at(got + at.l + 4 * i), want.l[b][(size_t)i]);
    for (int i = 0; i < s.G * R * s.N; i++)
      CHECK(u16(got + at.b + 2 * i) == half_bits(want.b[b][(size_t)i]), "b[%d] = %.9g, expected %.9g", i, half_value(u16(got + at.b + 2 * i)), want.b[b][(size_t)i]);
    for (size_t i = at.count + 4; i < at.bytes; i++) CHECK(got[i] == 0, "padding");
  }
}

// Inputs as make_inputs gives them, and a state with rings filled to a count of each sequence's own.
inline Inputs replay_inputs(const Op& op, const Sizes& s, int R, Random& r, double scale, bool zero_state, bool every_count = false) {
  Inputs in = make_inputs(op, s, r, scale, zero_state);
  const ReplayParts at = replay_parts(op, s, R);
  std::vector<uint8_t> past((size_t)s.B * at.bytes, 0);
  for (int b = 0; b < s.B && !zero_state; b++) {
    uint8_t* q = past.data() + b * at.bytes;
    memcpy(q, in.past.data() + (size_t)b * at.u, at.u);
    const int count = every_count ? b % R : r.below(3) == 0 ? R - 1 : r.below(R);
    for (int i = 0; i < s.H * R * s.P; i++) {
      const uint16_t half = half_bits(clamp(0.1 * scale * r.normal(), -65504, 65504));
      if (i / s.P % R < count) memcpy(q + at.u + 2 * i, &half, 2);
    }
    for (int i = 0; i < s.H * R; i++) {
      const float l = (float)-fabs(0.2 * r.normal());
      if (i % R < count) memcpy(q + at.l + 4 * i, &l, 4);
    }
    for (int i = 0; i < s.G * R * s.N; i++) {
      const uint16_t half = half_bits(r.normal());
      if (i / s.N % R < count) memcpy(q + at.b + 2 * i, &half, 2);
    }
    q[at.count] = (uint8_t)count;
  }
  in.past = past;
  return in;
}

inline int call_replay(const Op& op, const Sizes& s, int R, const Inputs& in, const char* isa, bool alias, Output* out, char* error, size_t room) {
  out->y.assign((size_t)s.B * s.L * s.channels(), NAN);
  out->present = alias ? in.past : std::vector<uint8_t>(in.past.size(), 0xa5);
  mambac_scan call = {s.B, s.L, s.H, s.P, s.N, s.G, in.dt_min, in.dt_max, in.x.data(), in.dt.data(), in.A.data(), in.B.data(),
                      in.C.data(), in.D.data(), in.bias.data(), alias ? out->present.data() : in.past.data(), out->y.data(),
                      out->present.data(), R, nullptr, nullptr};
  return g_runner.scan(op.name.c_str(), isa, &call, error, room);
}
inline Output run_replay(const Op& op, const Sizes& s, int R, const Inputs& in, const char* isa, bool alias) {
  Output out;
  char error[320] = "";
  CHECK(call_replay(op, s, R, in, isa, alias, &out, error, sizeof error) == 0, "%s", error);
  return out;
}

// Tokens t .. t + count - 1 of every sequence.
inline Inputs tokens_from(const Sizes& s, const Inputs& in, int t, int count) {
  Inputs out = in;
  auto slice = [&](const std::vector<float>& v, int width) {
    std::vector<float> o;
    for (int b = 0; b < s.B; b++) o.insert(o.end(), v.begin() + (long)(b * s.L + t) * width, v.begin() + (long)(b * s.L + t + count) * width);
    return o;
  };
  out.x = slice(in.x, s.channels());
  out.dt = slice(in.dt, s.H);
  out.B = slice(in.B, s.G * s.N);
  out.C = slice(in.C, s.G * s.N);
  return out;
}

// `every_count`: sequence b has b % R tokens in its rings; otherwise they have any number.
inline void replay_case(const Op& op, const std::vector<const char*>& isas, const Sizes& s, int R, uint64_t seed, double scale, bool zero_state, bool every_count = false) {
  Random r(seed);
  const Inputs in = replay_inputs(op, s, R, r, scale, zero_state, every_count);
  const ReplayResult want = replay(op, s, R, in);
  const ReplayParts at = replay_parts(op, s, R);
  // After many roundings two runs have parted at some tie and go their own ways: those are checked in pieces.
  const bool many = s.L > 2 * R;
  Output first;
  for (const char* isa : isas) {
    char text[160];
    snprintf(text, sizeof text, "%s %s R%d B%d L%d H%d P%d N%d G%d seed %llu scale %g", isa, op.name.c_str(), R, s.B, s.L, s.H, s.P, s.N,
             s.G, (unsigned long long)seed, scale);
    g_where = text;
    const Output out = run_replay(op, s, R, in, isa, false);
    if (!many) check_y(want.at, out.y, kReplayTolerance);
    check_replay_state(op, s, R, in, want, out.present, many);
    CHECK(same(out, run_replay(op, s, R, in, isa, true)), "one buffer as past and present gives other bits");
    if (strcmp(isa, "avx2") == 0) first = out;
    if (strncmp(isa, "avx512", 6) == 0 && !first.y.empty()) CHECK(same(first, out), "avx512 and avx2 differ");
    if (s.L < 2 || strcmp(isa, "avx512-base") == 0) continue;
    // The same tokens in calls of any size: sums in another order, but the same rings, bit for bit.
    g_where += " in pieces";
    Inputs rest = in;
    for (int t = 0; t < s.L;) {
      const int left = s.L - t, most = left < 2 * R ? left : 2 * R, some = r.below(2) ? 1 : 1 + r.below(most);
      Inputs now = tokens_from(s, in, t, some);
      now.past = rest.past;
      Sizes few = s;
      few.L = some;
      const Output o = run_replay(op, few, R, now, isa, r.below(2) == 0);
      const ReplayResult piece = replay(op, few, R, now);
      check_y(piece.at, o.y, kReplayTolerance);
      check_replay_state(op, few, R, now, piece, o.present);
      if (!many) {  // and against the whole call's y
        Result part = piece.at;
        for (size_t i = 0; i < part.y.size(); i++) {
          const size_t e = (size_t)s.channels(), row = i / e / some * s.L + t + i / e % some;
          part.y[i] = want.at.y[row * e + i % e];
          part.y_size[i] = want.at.y_size[row * e + i % e];
        }
        check_y(part, o.y, kReplayTolerance);
      }
      rest.past = o.present;
      t += some;
    }
    for (int b = 0; b < s.B; b++) {
      const size_t from = b * at.bytes + at.u;
      CHECK(memcmp(rest.past.data() + from, out.present.data() + from, at.bytes - at.u) == 0, "other rings than in one call");
    }
  }
}

// As long_run: every token against the reference from the kernel's own last state, and what the format costs over all of them.
inline void replay_long_run(const Op& op, const std::vector<const char*>& isas, int R, int tokens, int stride) {
  const Sizes s = {1, tokens, 2, 16, 128, 1};
  Random r(78);
  const Inputs in = replay_inputs(op, s, R, r, 1, true);
  const ReplayParts at = replay_parts(op, s, R);
  const Op exact = parse("Mamba2ScanF32");
  Inputs zero = in;
  zero.past.assign((size_t)s.H * head_bytes(exact, s.P, s.N), 0);
  const std::vector<double> rounded = replay(op, s, R, in).at.y, unrounded = scan(exact, s, zero).y;
  double rounding = 0, size = 0;
  for (size_t i = 0; i < rounded.size(); i++) rounding += pow(rounded[i] - unrounded[i], 2), size += pow(unrounded[i], 2);
  for (const char* isa : isas) {
    g_where = std::string(isa) + " " + op.name + " long run";
    const Output whole = run_replay(op, s, R, in, isa, true);
    Output stepped = whole;
    Inputs step = in;
    Sizes one = s;
    one.L = 1;
    for (int t = 0; t < tokens; t++) {
      std::vector<uint8_t> past = step.past;
      step = tokens_from(s, in, t, 1);
      step.past = past;
      const Output o = run_replay(op, one, R, step, isa, true);
      memcpy(stepped.y.data() + (size_t)t * s.channels(), o.y.data(), (size_t)s.channels() * 4);
      if (t % stride == 0 || t + 40 > tokens) {
        const ReplayResult want = replay(op, one, R, step);
        check_y(want.at, o.y, kReplayTolerance);
        check_replay_state(op, one, R, step, want, o.present);
      }
      step.past = o.present;
    }
    CHECK(memcmp(step.past.data() + at.u, whole.present.data() + at.u, at.bytes - at.u) == 0, "other rings than in one call");
    for (const Output* out : {&whole, (const Output*)&stepped}) {
      double error = 0;
      for (size_t i = 0; i < out->y.size(); i++) error += pow(out->y[i] - unrounded[i], 2);
      CHECK(fabs(sqrt(error / rounding) - 1) < 0.1, "error %.4g, the reference's %.4g", sqrt(error), sqrt(rounding));
    }
  }
  printf("%s, R = %d, %d tokens in place: rounding costs y %.3g\n", op.name.c_str(), R, tokens, sqrt(rounding / size));
}

inline void replay_refusals(const Op& op, const std::vector<const char*>& isas) {
  const Sizes s = {3, 2, 2, 5, 6, 1};
  Random r(5);
  for (int R : {1, 16})
    for (const char* isa : isas) {
      g_where = std::string(isa) + " " + op.name + " damaged";
      Inputs in = replay_inputs(op, s, R, r, 1, false);
      const ReplayParts at = replay_parts(op, s, R);
      for (uint32_t count : {(uint32_t)R, (uint32_t)R + 1, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
        for (int i = 0; i < 4; i++) in.past[2 * at.bytes + at.count + i] = (uint8_t)(count >> 8 * i);
        for (int length : {1, 2}) {
          Inputs now = tokens_from(s, in, 0, length);
          Sizes few = s;
          few.L = length;
          Output out;
          char error[320] = "";
          CHECK(call_replay(op, few, R, now, isa, true, &out, error, sizeof error) == 1 && strncmp(error, op.name.c_str(), op.name.size()) == 0 &&
                    strstr(error, "sequence 2") != nullptr && strstr(error, "replay_length"),
                "count %u: %s", count, error);
          CHECK(out.present == in.past, "a refused call changed the state");
        }
      }
      // Whatever else is damaged gives some answer, and the bytes of other sequences are theirs alone.
      in = replay_inputs(op, s, R, r, 1, false);
      const Output good = run_replay(op, s, R, in, isa, false);
      for (size_t i = at.bytes; i < at.bytes + at.count; i++) in.past[i] = (uint8_t)r.next();
      const Output bad = run_replay(op, s, R, in, isa, false);
      CHECK(memcmp(good.present.data(), bad.present.data(), at.bytes) == 0, "sequence 0 changed");
      CHECK(memcmp(good.present.data() + 2 * at.bytes, bad.present.data() + 2 * at.bytes, at.bytes) == 0, "sequence 2 changed");
    }
  g_where = op.name + " sizes";
  const Sizes one = {1, 1, 3, 5, 6, 3};
  CHECK(mambac_replay_bytes(op.name.c_str(), 3, 5, 6, 3, 7) == (int64_t)replay_parts(op, one, 7).bytes, "bytes");
  CHECK(mambac_replay_bytes(op.name.c_str(), 3, 5, 6, 2, 7) == 0, "groups that do not divide the heads");
  CHECK(mambac_state_bytes(op.name.c_str(), 3, 5, 6) == 0, "bytes without a ring");
  for (int R : {0, -1, 65, 1 << 30}) {
    Inputs in = replay_inputs(op, one, 1, r, 1, true);
    Output out;
    char error[320] = "";
    CHECK(call_replay(op, one, R, in, nullptr, true, &out, error, sizeof error) == 1 && strstr(error, "replay_length"), "R = %d: %s", R, error);
    CHECK(mambac_replay_bytes(op.name.c_str(), 3, 5, 6, 3, R) == 0, "R = %d", R);
  }
}

inline void replay_sweep(const Op& op, const std::vector<const char*>& isas, bool quick) {
  const int ps[] = {1, 5, 16, 17, 64}, ns[] = {1, 2, 15, 16, 20, 64, 100, 128, 130, 256}, lengths[] = {1, 1, 2, 7, 40}, rs[] = {1, 2, 3, 16, 64};
  uint64_t seed = 1;
  for (int p : ps)
    for (int n : ns) {
      if (op.kind == Kind::H4 && n % 2) continue;
      for (int l : lengths) {
        seed++;
        if ((quick || p * n * l > 30000) && seed % (quick ? 7 : 3) != 0) continue;
        const int groups = (int)(seed % 3) + 1, R = rs[(seed * 7 + seed / 11) % 5];
        replay_case(op, isas, {1 + (int)(seed % 3), l, groups * 2, p, n, groups}, R, seed, 1, seed % 5 == 0);
      }
    }
  for (int R : rs)
    for (int l : {1, 70}) replay_case(op, isas, {2, l, 2, 16, 128, 1}, R, seed++, 1, false);
  for (double scale : {1e-30, 1e-9, 1e4, 1e9}) {
    replay_case(op, isas, {1, 1, 2, 17, 128, 1}, 4, 5, scale, false);
    replay_case(op, isas, {1, 6, 2, 32, 20, 1}, 4, 6, scale, false);
  }
  const Sizes empty = {0, 3, 2, 4, 6, 1}, none = {2, 0, 2, 4, 6, 1};
  replay_case(op, isas, empty, 4, 9, 1, false);
  Random r(3);
  const Inputs in = replay_inputs(op, none, 4, r, 1, false);
  for (const char* isa : isas) CHECK(run_replay(op, none, 4, in, isa, false).present == in.past, "the state changed without a token");
}

inline void replay_cases(const Op& op, const std::vector<const char*>& isas, bool quick) {
  replay_refusals(op, isas);
  replay_sweep(op, isas, quick);
  for (int R : {1, 16, 64})
    if (!quick || R == 16) replay_long_run(op, isas, R, quick ? 400 : 2000, quick ? 9 : 3);
}
