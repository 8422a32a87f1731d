// Packed states: exact dynamic scales per channel and per state, int8 or int4 codes (layout and rule: README.md).
#pragma once

// Rounding by magic numbers: the sum of a small float and 1.5 * 2^(23 + d) is rounded, to nearest even, to a multiple of 2^d,
// and its lowest bits are the number of those multiples. For codes that need no clamp: neither NaN nor beyond the largest.
constexpr float kMagic = 0x1.8p23f;

// Four codes a lane, rounded products a b, as digits of base 16: the lowest 16 bits of the result are the codes plus 8. The
// b of vector j are scaled by 16^j. Every difference is exact: the numbers of all digits so far fit the mantissa.
MAMBAC_INLINE Vec four_digits(const Vec* a, const Vec* b) {
  const float magic3 = 0x1.8p35f, magic2 = 0x1.8p31f, magic1 = 0x1.1p27f, offset = 0x8888;
  Vec c = v_fma(a[3], b[3], v_set(magic3));
  c = v_fma(a[2], b[2], v_sub(c, v_set(magic3 - magic2)));
  c = v_fma(a[1], b[1], v_sub(c, v_set(magic2 - magic1)));
  return v_fma(a[0], b[0], v_sub(c, v_set(magic1 - kMagic - offset)));
}

// How codes of a row map to vectors. Columns of a row keep their order in `Plain` and `Block`; in `Strided` (4 bit, whole blocks of
// 128 columns) vector k of a block holds columns 8 d + k, because that is what one shift of a register of nibbles gives.
struct PlainI8 {
  typedef I8 Decoder;
  enum { kGroup = 1, kLimit = 127 };
  static MAMBAC_MEMBER Int row_bytes(Int n) { return n; }
  static MAMBAC_MEMBER Vec load(const Decoder& d, const uint8_t* row, Int k) { return d.load(row + 16 * k); }
  static MAMBAC_MEMBER void store(uint8_t* row, Int k, const Vec* v) { i8_store(row + 16 * k, v[0]); }
};
struct BlockI8 {  // rows of whole 64 columns
  typedef I8 Decoder;
  enum { kGroup = 4, kLimit = 127 };
  static MAMBAC_MEMBER Int row_bytes(Int n) { return n; }
  static MAMBAC_MEMBER Vec load(const Decoder& d, const uint8_t* row, Int k) { return d.load(row + 16 * k); }
  static MAMBAC_MEMBER Vec codes(const uint8_t* row, Int k) { return i8_codes(row + 16 * k); }
  static MAMBAC_MEMBER void store(uint8_t* row, Int k, const Vec* v) { i8_store4(row + 16 * k, v); }
  static MAMBAC_MEMBER float digit(Int) { return 1.0f; }
  static MAMBAC_MEMBER void store_products(uint8_t* row, Int k, const Vec* a, const Vec* b) {
    Vec c[4];
    for (int g = 0; g < 4; g++) c[g] = v_fma(a[g], b[g], v_set(kMagic));
    i8_store_low4(row + 16 * k, c);
  }
};
struct PlainI4 {
  typedef I4 Decoder;
  enum { kGroup = 1, kLimit = 7 };
  static MAMBAC_MEMBER Int row_bytes(Int n) { return n / 2; }
  static MAMBAC_MEMBER Vec load(const Decoder& d, const uint8_t* row, Int k) { return d.load(row + 8 * k); }
  static MAMBAC_MEMBER Vec codes(const uint8_t* row, Int k) { return i4_codes(row + 8 * k); }
  static MAMBAC_MEMBER void store(uint8_t* row, Int k, const Vec* v) { i4_store(row + 8 * k, v[0]); }
};
struct StridedI4 {
  typedef I4 Decoder;
  enum { kGroup = 8, kLimit = 7 };
  static MAMBAC_MEMBER Int row_bytes(Int n) { return n / 2; }
  static MAMBAC_MEMBER Vec load(const Decoder& d, const uint8_t* row, Int k) {
    return d.load_strided(row + 64 * (k / 8), (int)(k % 8));
  }
  static MAMBAC_MEMBER Vec codes(const uint8_t* row, Int k) { return i4_codes_strided(row + 64 * (k / 8), (int)(k % 8)); }
  static MAMBAC_MEMBER void store(uint8_t* row, Int k, const Vec* v) { i4_store_strided(row + 8 * k, v); }
  static MAMBAC_MEMBER float digit(Int k) { return (float)(1 << (4 * (k % 4))); }
  static MAMBAC_MEMBER void store_products(uint8_t* row, Int k, const Vec* a, const Vec* b) {
    i4_store_low(row + 8 * k, four_digits(a, b), four_digits(a + 4, b + 4));
  }
};

// Copies n floats into vector order, zeros behind them.
template <class Codec>
MAMBAC_INLINE void to_vector_order(float* out, const float* in, Int n) {
  if (Codec::kGroup == 8) {
    for (Int block = 0; block < n; block += 128) split128(out + block, in + block);
    return;
  }
  Int whole = n & ~(Int)15;
  for (Int i = 0; i < whole; i += 16) v_store(out + i, v_load(in + i));
  if (whole < n) v_store(out + whole, v_load_n(in + whole, (int)(n - whole)));
}

// The last, partial vector of a row (n not a multiple of 16) through a whole one.
template <class Codec>
MAMBAC_INLINE Vec load_tail(const typename Codec::Decoder& d, const uint8_t* row, Int k, Int n) {
  uint8_t t[16] = {0};
  memcpy(t, row + Codec::row_bytes(16 * k), (size_t)(Codec::row_bytes(n) - Codec::row_bytes(16 * k)));
  return Codec::load(d, t, 0);
}
template <class Codec>
MAMBAC_INLINE void store_tail(uint8_t* row, Int k, Int n, const Vec* v) {
  uint8_t t[16 * Codec::kGroup];
  Codec::store(t, 0, v);
  memcpy(row + Codec::row_bytes(16 * k), t, (size_t)(Codec::row_bytes(n) - Codec::row_bytes(16 * k)));
}

// Scratch of packing one head. `columns` and `step` are in vector order.
struct Packing {
  float* rows;      // [round16(P), np]: the new state
  float* columns;   // [np]: max over rows of |h| / Sc, in units of the column
  float* ratio;     // [np]: qmax / Ss, times the unit of the column
  float* inverse;   // [round16(P)]: 1 / Sc, times the unit of the row
  uint16_t* sc;     // [round16(P)]
  uint16_t* ss;     // [np], state order
  float* step;      // [np]: old Ss / qmax
  float* units;     // [round16(P)]: units of rows, where the new state has some
  bool wild;        // some scale met its upper bound, or is a half of few bits: codes must be clamped before they are converted
  MAMBAC_MEMBER Packing(Carve& c, Int p, Int np)
      : rows(c.take(round16(p) * np)), columns(c.take(np)), ratio(c.take(np)), inverse(c.take(round16(p))),
        sc((uint16_t*)c.take(round16(p) / 2 + 8)), ss((uint16_t*)c.take(np / 2 + 8)), step(c.take(np)), units(nullptr), wild(false) {}
};

// Channel scales of 16 rows from their statistic (sum or max of |h|), of which `count` rows are real.
template <bool kMax>
MAMBAC_INLINE void channel_scales(Packing& k, Int p0, int count, Vec statistic, float n) {
  Vec raw = kMax ? statistic : v_sqrt(v_div(statistic, v_set(n)));
  const Vec top = v_set(65504.0f);
  k.wild |= v_any_above(raw, top, count);
  HalfVec h = h_round(v_max(v_min(raw, top), v_set(0x1p-14f)));  // NaN becomes 65504
  h_store(k.sc + p0, h);
  v_store(k.inverse + p0, v_div(v_set(1.0f), h_widen(h)));
}

// Folds rows p0 .. p0 + count - 1, stored from `rows` on, into the column maxima. kVectors: vectors a row when known at
// compile time, else 0.
template <int kVectors>
MAMBAC_INLINE void column_maxima(Packing& k, const float* rows, Int p0, int count, Int vectors) {
  const Int np = 16 * vectors;
  if (kVectors > 0 && kVectors <= 8) {
    Vec m[kVectors > 0 ? kVectors : 1];
    for (int v = 0; v < kVectors; v++) m[v] = v_load(k.columns + 16 * v);
    for (int r = 0; r < count; r++) {
      const float* row = rows + r * np;
      Vec inverse = v_set(k.inverse[p0 + r]);
      for (int v = 0; v < kVectors; v++) m[v] = v_max_abs(m[v], v_mul(v_load(row + 16 * v), inverse));
    }
    for (int v = 0; v < kVectors; v++) v_store(k.columns + 16 * v, m[v]);
    return;
  }
  for (Int v = 0; v < vectors; v++) {
    Vec m = v_load(k.columns + 16 * v);
    for (int r = 0; r < count; r++)
      m = v_max_abs(m, v_mul(v_load(rows + r * np + 16 * v), v_set(k.inverse[p0 + r])));
    v_store(k.columns + 16 * v, m);
  }
}

// State scales of the codec's columns that belong together, 128 or 16: halves to vectors in vector order, and back.
template <class Codec>
MAMBAC_INLINE void load_scales(const uint8_t* ss, Vec* out) {
  if (Codec::kGroup == 8)
    h_split128(ss, out);
  else
    out[0] = h_widen(h_load(ss));
}
template <class Codec>
MAMBAC_INLINE void store_scales(uint16_t* ss, const HalfVec* h) {
  if (Codec::kGroup == 8)
    h_join128(ss, h);
  else
    h_store(ss, h[0]);
}

// State scales from the column maxima. kSteps: the unit of a column is its old step.
template <class Codec, bool kSteps>
MAMBAC_INLINE void state_scales(Packing& k, Int vectors) {
  enum { kTogether = Codec::kGroup == 8 ? 8 : 1 };
  // From this lower bound of Ss on, rounding it to a half leaves every product below the largest code plus a half.
  const Vec top = v_set(65504.0f), limit = v_set((float)Codec::kLimit);
  const Vec most = v_set(Codec::kLimit == 7 ? 7 * 0x1p21f : 127 * 0x1p17f);
  const float *columns = k.columns, *step = k.step;
  float* ratio = k.ratio;
  bool wild = k.wild;
  for (Int v = 0; v < vectors; v += kTogether) {
    HalfVec h[kTogether];
    for (int i = 0; i < kTogether; i++) {
      const Int at = 16 * (v + i);
      Vec raw = v_load(columns + at);
      if (kSteps) raw = v_mul(raw, v_load(step + at));
      wild |= v_any_above(raw, top, 16);
      h[i] = h_round(v_min(raw, top));
      const Vec ss = h_widen(h[i]), each = v_if_gt0(ss, v_div(limit, ss));
      wild |= v_any_above(each, most, 16);
      v_store(ratio + at, kSteps ? v_mul(each, v_load(step + at)) : each);
    }
    store_scales<Codec>(k.ss + 16 * v, h);
  }
  k.wild = wild;
}

template <class Codec, bool kWild>
MAMBAC_INLINE Vec code_vector(const float* row, Vec inverse, const float* ratio, Int v) {
  Vec c = v_mul(v_mul(v_load(row + 16 * v), inverse), v_load(ratio + 16 * v));
  if (kWild) c = v_min(v_set((float)Codec::kLimit), v_max(v_set(-(float)Codec::kLimit), c));
  return c;
}

// Codes of the rows in k.rows. kVectors: vectors a row when known at compile time (then all are whole), else 0.
template <class Codec, int kVectors, bool kWild>
static void write_codes(const Packing& k, uint8_t* out, Int p, Int n) {
  const Int vectors = kVectors > 0 ? kVectors : round16(n) / 16, whole = kVectors > 0 ? kVectors : n / 16;
  const Int bytes = Codec::row_bytes(n);
  const float* ratio = k.ratio;
  if constexpr (Codec::kGroup > 1 && !kWild) {
    constexpr int kHeld = kVectors > 0 ? kVectors : Codec::kGroup;
    Vec held[kHeld];
    for (int v = 0; kVectors > 0 && v < kHeld; v++) held[v] = v_mul(v_load(ratio + 16 * v), v_set(Codec::digit(v)));
    for (Int r = 0; r < p; r++) {
      const float* row = k.rows + r * 16 * vectors;
      const Vec inverse = v_set(k.inverse[r]);
      MAMBAC_UNROLL
      for (Int v = 0; v < whole; v += Codec::kGroup) {
        Vec u[Codec::kGroup];
        for (int g = 0; g < Codec::kGroup; g++) {
          u[g] = v_mul(v_load(row + 16 * (v + g)), inverse);
          if (kVectors == 0) held[g] = v_mul(v_load(ratio + 16 * (v + g)), v_set(Codec::digit(g)));
        }
        Codec::store_products(out + r * bytes, v, u, held + (kVectors > 0 ? v : 0));
      }
    }
    return;
  }
  for (Int r = 0; r < p; r++) {
    const float* row = k.rows + r * 16 * vectors;
    const Vec inverse = v_set(k.inverse[r]);
    MAMBAC_UNROLL
    for (Int v = 0; v < whole; v += Codec::kGroup) {
      Vec c[Codec::kGroup];
      for (int g = 0; g < Codec::kGroup; g++) c[g] = code_vector<Codec, kWild>(row, inverse, ratio, v + g);
      Codec::store(out + r * bytes, v, c);
    }
    if (Codec::kGroup == 1 && kVectors == 0 && whole < vectors) {
      Vec c[Codec::kGroup];
      c[0] = code_vector<Codec, kWild>(row, inverse, ratio, whole);
      store_tail<Codec>(out + r * bytes, whole, n, c);
    }
  }
}
// From the column maxima to the packed head.
template <class Codec, int kVectors, bool kSteps = false>
MAMBAC_INLINE void finish_packing(Packing& k, uint8_t* out, Int p, Int n) {
  state_scales<Codec, kSteps>(k, kVectors > 0 ? kVectors : round16(n) / 16);
  if (k.wild)
    write_codes<Codec, kVectors, true>(k, out, p, n);
  else
    write_codes<Codec, kVectors, false>(k, out, p, n);
  if (kSteps) return;  // the scales were written where they belong
  memcpy(out + p * Codec::row_bytes(n), k.sc, (size_t)(2 * p));
  memcpy(out + p * Codec::row_bytes(n) + 2 * p, k.ss, (size_t)(2 * n));
}
// `wild`: nothing tells whether there are NaNs, which only a clamp makes codes of.
MAMBAC_INLINE void start_packing(Packing& k, Int vectors, bool wild) {
  k.wild = wild;
  for (Int v = 0; v < vectors; v++) v_store(k.columns + 16 * v, v_zero());
}

// Up to 16 halves from anywhere, zeros behind them.
MAMBAC_INLINE Vec halves_at(const uint8_t* p, int count) {
  if (count == 16) return h_widen(h_load(p));
  uint16_t t[16] = {0};
  memcpy(t, p, (size_t)(2 * count));
  return h_widen(h_load(t));
}
// Old Ss / qmax of every column into k.step.
template <class Codec>
MAMBAC_INLINE void old_steps(Packing& k, const uint8_t* ss, Int n) {
  float* plain = Codec::kGroup == 8 ? k.ratio : k.step;  // ratio is free until the new scales are known
  for (Int i = 0; i < n; i += 16)
    v_store(plain + i, v_div(halves_at(ss + 2 * i, rows_left(i, n)), v_set((float)Codec::kLimit)));
  if (Codec::kGroup == 8) to_vector_order<Codec>(k.step, plain, n);
}

// A packed head into k.rows ([P, np], columns in their order, zeros behind them).
template <class Codec>
static void unpack_head(Packing& k, const uint8_t* in, Int p, Int n) {
  const Int vectors = round16(n) / 16, whole = n / 16, bytes = Codec::row_bytes(n);
  const uint8_t* sc = in + p * bytes;
  old_steps<Codec>(k, sc + 2 * p, n);
  for (Int p0 = 0; p0 < p; p0 += 16) {
    const int count = rows_left(p0, p);
    float scale[16];
    v_store(scale, halves_at(sc + 2 * p0, count));
    for (int r = 0; r < count; r++) {
      const uint8_t* codes = in + (p0 + r) * bytes;
      float* row = k.rows + (p0 + r) * 16 * vectors;
      typename Codec::Decoder decoder;
      decoder.set(scale[r]);
      for (Int v = 0; v < whole; v++) v_store(row + 16 * v, v_mul(Codec::load(decoder, codes, v), v_load(k.step + 16 * v)));
      if (whole < vectors)
        v_store(row + 16 * whole, v_mul(load_tail<Codec>(decoder, codes, whole, n), v_load(k.step + 16 * whole)));
    }
  }
}

// k.rows (columns in their order, zeros behind them) into a packed head.
template <class Codec, bool kMax>
static void pack_head(Packing& k, uint8_t* out, Int p, Int n) {
  const Int vectors = round16(n) / 16;
  start_packing(k, vectors, kMax && Codec::kGroup > 1);
  for (Int p0 = 0; p0 < p; p0 += 16) {
    const int count = rows_left(p0, p);
    Vec statistic[16];
    for (int r = 0; r < 16; r++) {
      Vec s = v_zero();
      const float* row = k.rows + (p0 + r) * 16 * vectors;
      for (Int v = 0; r < count && v < vectors; v++) {
        Vec a = v_abs(v_load(row + 16 * v));
        s = kMax ? v_max(s, a) : v_add(s, a);
      }
      statistic[r] = s;
    }
    channel_scales<kMax>(k, p0, count, v_reduce16 < kMax ? v_max : v_add > (statistic), (float)n);
    column_maxima<0>(k, k.rows + p0 * 16 * vectors, p0, count, vectors);
  }
  finish_packing<Codec, 0>(k, out, p, n);
}
