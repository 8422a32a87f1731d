// 4-bit states with measured scales and rows of 128 columns in 16-bit whole numbers: half the instructions of float lanes.
//
// A state is kept as whole numbers v of 15 bits, h = v unit_p unit_n. Units are chosen before anything is known of the new
// state, so that no number can pass kWhole: those of columns are the old scales, or more where the input is larger; those of rows
// what the old row and the input can reach. The numbers are made from old codes by rounded products of 16 bits, measured,
// brought to rows divided by their channel scale, and rounded to codes by two more products. When the scales are known, so is
// what that cost: a code's step is 1 / lambda numbers, and its mean error half of lambda at the most. A head whose lambda is too
// large, or that does not fit in another way, is left to float lanes. y does not suffer: it is read from the old codes,
// exactly (dot.h).
#pragma once

constexpr float kWhole = 28670.0f;             // the largest number; 8/7 of it fits 16 bits, which an old code of -8 needs
constexpr float kShort = 32768.0f / 32767.0f;  // 32767 stands for one, and products are divided by 32768
constexpr float kWeights = 2047.0f;            // the largest weight of a mean: 32 products of numbers and weights fit 32 bits
constexpr float kLeastRow = 4096, kLeastMean = 256, kLeastColumn = 2048;  // a scale needs at least so large a maximum or mean
constexpr float kMeanLambda = 4.0f / 4096.0f;  // at the most: 0.04 % of codes are a neighbour then
constexpr float kNoScale = 1e-20f;             // stands for an old scale of zero
constexpr float kPlainReach = 2.0f;            // units of columns are the old scales where input is at most so many times the state

MAMBAC_INLINE Vec v_top(Vec a) {  // the largest lane, in all lanes
  a = v_max(a, v_swap<8>(a));
  a = v_max(a, v_swap<4>(a));
  a = v_max(a, v_swap<2>(a));
  return v_max(a, v_swap<1>(a));
}
MAMBAC_INLINE Vec v_total(Vec a) {  // the sum of the lanes, in all lanes
  a = v_add(a, v_swap<8>(a));
  a = v_add(a, v_swap<4>(a));
  a = v_add(a, v_swap<2>(a));
  return v_add(a, v_swap<1>(a));
}
MAMBAC_INLINE bool v_above(Vec a, float limit) { return v_any_above(a, v_set(limit), 16); }

// What one head's numbers are made of.
struct ExactHead {
  float *scale, *input;      // [P]: decay times old Sc; d x
  float* unit_p;             // [P]
  float* factor;             // [P]: unit_p / Sc
  int32_t *worth, *given;    // [P], each twice in 32 bits: 4096ths of an old code, and the input, in numbers
  int32_t* ratio;            // [P], the same: factor over the largest so far
  int16_t* numbers;          // [P, 128]: v, then v times ratio
  float *sums, *sizes;       // [P, 8]: what y and the channel scales are summed up from
  uint16_t* sc;              // [P]: the new channel scales
  Vec unit[8];               // of columns, in the order of StridedI4's vectors
  Words old[4], fed[4];      // what the old code and the input count in a column
  Words weight[4];           // unit_n over the largest
  Vec weighs;                // what one of those is worth
  Vec least;                 // statistics of rows below this come from float lanes
  MAMBAC_MEMBER ExactHead(float* room, Int p)
      : scale(room), input(room + p), unit_p(room + 2 * p), factor(room + 3 * p), worth((int32_t*)(room + 4 * p)),
        given((int32_t*)(room + 5 * p)), ratio((int32_t*)(room + 6 * p)), numbers((int16_t*)(room + 16 * p)), sums(room + 80 * p), sizes(room + 88 * p), sc((uint16_t*)(room + 7 * p)) {}
};
MAMBAC_INLINE void join_words(Words* out, const Vec* in, Vec by) {
  for (int j = 0; j < 4; j++) out[j] = w_join(v_mul(in[j], by), v_mul(in[j + 4], by));
}

// Units, and what goes with them; `states` are old scales of columns. 0: whole numbers do not fit; 1: a column counts what its old
// code is; 2: `old` counts too.
template <bool kMax>
MAMBAC_INLINE int exact_units(ExactHead& e, const Token& t, const Vec* states, const uint8_t* sc, Int p) {
  Vec b[8], top = v_zero(), wide = v_zero(), sum = v_zero();
  for (int v = 0; v < 8; v++) {
    b[v] = v_div(v_load(t.ordered_b + 16 * v), v_max(states[v], v_set(kNoScale)));
    wide = v_max_abs(wide, b[v]);
    top = v_max(top, states[v]);
    sum = v_add(sum, states[v]);
    e.unit[v] = states[v];
  }
  top = v_top(top);
  wide = v_top(wide);
  sum = v_total(sum);
  if (v_above(sum, 1e7f) || !(fabsf(t.product) < 1e30f)) return 0;  // NaN and infinities, too: in `all` those of rows
  Vec most = v_zero(), beyond = v_zero();
  for (Int i = 0; i < p; i += 16) {
    const Vec s = v_mul(t.decay, h_widen(h_load(sc + 2 * i))), z = v_mul(t.delta, v_load(t.x + i));
    beyond = v_max(beyond, v_sub(v_mul(v_abs(z), wide), v_mul(s, v_set(kPlainReach))));
    v_store(e.scale + i, s);
    v_store(e.input + i, z);
  }
  Vec tall = v_set(1.0f);
  int way = 1;
  if (v_above(beyond, 0.0f)) {
    way = 2;
    for (Int i = 0; i < p; i += 16)
      most = v_max(most, v_div(v_abs(v_load(e.input + i)), v_max(v_load(e.scale + i), v_set(kNoScale))));
    most = v_top(most);
    const Vec inverse_top = v_if_gt0(top, v_div(v_set(1.0f), top));
    Vec largest = v_zero(), share, old[8];
    for (int v = 0; v < 8; v++) largest = v_max_abs(largest, v_load(t.ordered_b + 16 * v));
    largest = v_top(largest);
    share = v_if_gt0(largest, v_div(v_set(1.0f), largest));
    if (v_above(top, 0.0f)) share = v_min(share, v_mul(most, inverse_top));
    wide = tall = top = sum = v_zero();
    for (int v = 0; v < 8; v++) {
      const Vec given = v_load(t.ordered_b + 16 * v), u = v_max(v_mul(states[v], inverse_top), v_mul(v_abs(given), share));
      const Vec inverse = v_if_gt0(u, v_div(v_set(1.0f), u));
      e.unit[v] = u;
      old[v] = v_mul(states[v], inverse);
      b[v] = v_mul(given, inverse);
      wide = v_max_abs(wide, b[v]);
      tall = v_max(tall, old[v]);
      top = v_max(top, u);
      sum = v_add(sum, u);
    }
    wide = v_top(wide);
    tall = v_top(tall);
    top = v_top(top);
    sum = v_total(sum);
    if (v_above(wide, 1e25f)) return 0;
    join_words(e.old, old, v_if_gt0(tall, v_div(v_set(32767.0f), tall)));
  }
  Vec every = v_zero();
  for (Int i = 0; i < p; i += 16) {
    const Vec s = v_mul(v_load(e.scale + i), tall), z = v_mul(v_load(e.input + i), wide), all = v_add(s, v_abs(z));
    const Vec inverse = v_if_gt0(all, v_div(v_set(kWhole * kShort), all));
    every = v_add(every, all);
    v_store(e.unit_p + i, v_mul(all, v_set(1.0f / kWhole)));
    fixed_twice(e.worth + i, v_mul(v_mul(s, inverse), v_set(8.0f / 7.0f)));
    fixed_twice(e.given + i, v_mul(z, inverse));
  }
  if (v_above(every, 1e30f)) return 0;
  join_words(e.fed, b, v_if_gt0(wide, v_div(v_set(32767.0f), wide)));
  const Vec each = v_div(v_set(kMax ? 32767.0f : kWeights), top);
  join_words(e.weight, e.unit, each);
  e.weighs = v_mul(top, v_set(kMax ? kShort : 1.0f / kWeights));
  e.least = kMax ? v_set(kLeastRow) : v_mul(v_mul(sum, v_set(kLeastMean)), each);
  return way;
}

// All rows: their new numbers, sums of old codes times the planes, and statistics of the numbers. Rows r and r + 8 of 16 share a
// vector of sums, and one of statistics.
template <class Row, bool kMax, bool kPlain>
MAMBAC_INLINE void exact_rows(const ExactHead& e, const Row& row, const uint8_t* past, Int p) {
  const Int head = 64 * p + 2 * (p + 128);
  Words old[4], fed[4], weight[4];  // in registers, which stores of numbers cannot change
  for (int j = 0; j < 4; j++) old[j] = e.old[j], fed[j] = e.fed[j], weight[j] = e.weight[j];
  const int32_t *worth = e.worth, *given = e.given;
  int16_t* numbers = e.numbers;
  float *sums = e.sums, *sizes = e.sizes;
  for (Int p0 = 0; p0 < p; p0 += 16, sums += 128, sizes += 128) {
    for (Int r = 0; r < 8; r++) {
      v_store(sums + 16 * r, row.read(past + 64 * (p0 + r)));
      Vec size[2];
      for (int k = 0; k < 2; k++) {
        const Int i = p0 + r + 8 * k;
        MAMBAC_PREFETCH(past + 64 * i + head);
        const typename Row::Codes q(past + 64 * i, worth + i);
        const Words z = w_set(given + i);
        Words v[4];
        for (int j = 0; j < 4; j++) {
          v[j] = q.nibbles(j);
          if (!kPlain) v[j] = w_product(v[j], old[j]);
          v[j] = w_add(v[j], w_product(z, fed[j]));
          w_store(numbers + 128 * i + 32 * j, v[j]);
          if (kMax) v[j] = w_product(v[j], weight[j]);
        }
        if (kMax) {
          const Words high = w_max(w_max(v[0], v[1]), w_max(v[2], v[3])), low = w_min(w_min(v[0], v[1]), w_min(v[2], v[3]));
          size[k] = w_lanes(w_max(high, w_minus(low)));
        } else {
          for (int j = 0; j < 4; j++) v[j] = w_abs(v[j]);
          size[k] = Row::weighed(v, weight);
        }
      }
      v_store(sizes + 16 * r, kMax ? w_larger_of(size[0], size[1]) : w_sum_of(size[0], size[1]));
    }
  }
}

// sum |h| or max |h| of those of 16 rows whose size in numbers is too small to tell.
template <bool kMax>
MAMBAC_APART void exact_sizes(const ExactHead& e, const Token& t, const uint8_t* past, const uint8_t* ss, Int p0, Vec size, Vec* raw) {
  float few[16], least[16], exact[16];
  Vec states[8];
  v_store(few, size);
  v_store(least, e.least);
  v_store(exact, *raw);
  h_split128(ss, states);
  for (int r = 0; r < 16; r++) {
    if (few[r] >= least[r]) continue;
    Vec sum = v_zero();
    for (int v = 0; v < 8; v++) {
      const Vec old = v_mul(v_mul(v_set(e.scale[p0 + r] / 7.0f), StridedI4::codes(past + 64 * (p0 + r), v)), states[v]);
      const Vec h = v_fma(v_set(e.input[p0 + r]), v_load(t.ordered_b + 16 * v), old);
      sum = kMax ? v_max_abs(sum, h) : v_add(sum, v_abs(h));
    }
    float all[16];
    v_store(all, kMax ? v_top(sum) : v_total(sum));
    exact[r] = all[0];
  }
  *raw = v_load(exact);
}

// Into registers once, where a compiler would read them again for every use.
MAMBAC_INLINE void load_parts(Vec* part, const float* from) {
  for (int r = 0; r < 8; r++) {
    part[r] = v_load(from + 16 * r);
    v_now(part[r]);
  }
}

// y of rows `from` to `to`, called where long chains of instructions leave room for it.
MAMBAC_INLINE void exact_outputs(const ExactHead& e, const Token& t, Vec read, Int from, Int to) {
  const Vec shared = v_set(t.product);
  for (Int p0 = from; p0 < to; p0 += 16) {
    Vec part[8];
    load_parts(part, e.sums + 8 * p0);
    const Vec x = v_load(t.x + p0), rest = v_fma(v_load(e.input + p0), shared, v_mul(x, v_load(t.D + p0)));
    v_store(t.y + p0, v_fma(v_mul(v_load(e.scale + p0), read), w_sum16(part), rest));
  }
}

template <class Row, bool kMax, bool kPlain>
MAMBAC_INLINE bool exact_numbers(ExactHead& e, const Row& row, Vec read, const Token& t, const uint8_t* past,
                                 uint8_t* present, Int p) {
  const uint8_t* ss = past + 66 * p;
  exact_rows<Row, kMax, kPlain>(e, row, past, p);

  // Channel scales.
  Vec over = v_zero(), coarsest = v_zero();
  for (Int p0 = 0; p0 < p; p0 += 16) {
    Vec part[8], size;
    load_parts(part, e.sizes + 8 * p0);
    if (kMax) {
      const Words both = w_larger16(part);
      size = v_max(w_even(both), w_odd(both));
    } else {
      size = w_sum16(part);
    }
    const Vec unit = v_load(e.unit_p + p0);
    Vec raw = v_mul(v_mul(size, unit), e.weighs);
    if (v_above(v_if_gt0(unit, v_sub(e.least, size)), 0.0f)) exact_sizes<kMax>(e, t, past, ss, p0, size, &raw);
    if (!kMax) raw = v_sqrt(v_mul(raw, v_set(1.0f / 128)));
    over = v_max(over, raw);
    const HalfVec h = h_round(v_max(v_min(raw, v_set(65504.0f)), v_set(0x1p-14f)));
    h_store(e.sc + p0, h);
    const Vec factor = v_div(unit, h_widen(h));
    coarsest = v_max(coarsest, factor);
    v_store(e.factor + p0, factor);
  }
  // Column maxima; rows are written back, as this loop has units to spare for it and the one that makes codes has not.
  coarsest = v_top(coarsest);
  if (!v_above(coarsest, 0.0f) || v_above(over, 65504.0f)) return false;
  const Vec to_ratio = v_div(v_set(32767.0f), coarsest);
  for (Int i = 0; i < p; i += 16) fixed_twice(e.ratio + i, v_mul(v_load(e.factor + i), to_ratio));
  const Int half = p / 32 * 16;
  exact_outputs(e, t, read, 0, half);
  const int32_t* ratio = e.ratio;
  int16_t* numbers = e.numbers;
  Words tops[4], lows[4];
  for (int j = 0; j < 4; j++) tops[j] = lows[j] = w_zero();
  MAMBAC_UNROLL
  for (int j0 = 0; j0 < 4; j0 += kMaximaWords) {
    for (Int i = 0; i < p; i++) {
      const Words by = w_set(ratio + i);
      for (int j = j0; j < j0 + kMaximaWords; j++) {
        int16_t* at = numbers + 128 * i + 32 * j;
        const Words v = w_product(w_load(at), by);
        w_store(at, v);
        tops[j] = w_max(tops[j], v);
        lows[j] = w_min(lows[j], v);
      }
    }
  }

  // State scales, and how many numbers a step of theirs is.
  HalfVec h[8];
  Vec first[8], second[8], lambda = v_zero(), missing = v_zero(), beyond = v_zero();
  for (int v = 0; v < 8; v++) {
    const Words top = w_max(tops[v % 4], w_minus(lows[v % 4]));
    const Vec unit = v_mul(v_mul(e.unit[v], coarsest), v_set(kShort)), number = v < 4 ? w_even(top) : w_odd(top), raw = v_mul(number, unit);
    h[v] = h_round(v_min(raw, v_set(65504.0f)));
    const Vec s = h_widen(h[v]), each = v_if_gt0(s, v_div(v_mul(unit, v_set(7.0f)), s));  // lambda
    first[v] = v_min(v_set(32767.0f), v_mul(v_mantissa(each), v_set(16384.0f)));
    second[v] = v_power(each);
    lambda = v_add(lambda, each);
    beyond = v_max(beyond, raw);
    missing = v_max(missing, v_if_gt0(unit, v_max(v_sub(v_set(kLeastColumn), number), v_sub(v_set(0x1p-14f), s))));
  }
  if (v_above(beyond, 65504.0f) || v_above(missing, 0.0f) || v_above(v_total(lambda), 128 * kMeanLambda)) return false;
  const WordSteps steps(first, second);
  exact_outputs(e, t, read, half, p);
  for (Int i = 0; i < p; i++) {
    Words n[4];
    for (int j = 0; j < 4; j++) n[j] = w_load(numbers + 128 * i + 32 * j);
    steps.pack(present + 64 * i, n);
  }
  for (Int i = 0; i < p; i += 16) h_store((uint16_t*)(present + 64 * p) + i, h_load(e.sc + i));
  h_join128((uint16_t*)(present + 66 * p), h);
  return true;
}

// One token of a head. False: the state is as it was, and float lanes have to do all of it, y too.
template <class Row, bool kMax>
MAMBAC_APART bool exact_token(float* room, const Token& t, const uint8_t* past, uint8_t* present, Int p) {
  const uint8_t* sc = past + 64 * p;
  Vec states[8], read[8], most = v_zero(), total = v_zero();
  h_split128(sc + 2 * p, states);
  for (int v = 0; v < 8; v++) {
    read[v] = v_mul(v_load(t.ordered_c + 16 * v), states[v]);
    most = v_max_abs(most, read[v]);
    total = v_add(total, v_abs(read[v]));
  }
  most = v_top(most);
  total = v_total(total);
  // A few coefficients that outgrow the others: rounding to the largest would show.
  if (v_any_above(v_set(1e-25f), most, 16) || v_above(most, 1e25f) || v_any_above(v_mul(most, v_set(128.0f / 32)), total, 16)) return false;
  ExactHead e(room, p);
  const int way = exact_units<kMax>(e, t, states, sc, p);
  if (way == 0) return false;
  const Row row(read, v_div(v_set(kDotLimit), most));
  most = v_mul(most, v_set(1.0f / (7.0f * kDotLimit)));
  return way == 1 ? exact_numbers<Row, kMax, true>(e, row, most, t, past, present, p)
                  : exact_numbers<Row, kMax, false>(e, row, most, t, past, present, p);
}
