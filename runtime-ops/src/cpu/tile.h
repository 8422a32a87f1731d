// Sizes, scratch and row access shared by the kernels.
#pragma once

typedef long long Int;  // sizes inside kernels

MAMBAC_INLINE Int round16(Int n) { return (n + 15) & ~(Int)15; }
MAMBAC_INLINE int rows_left(Int p0, Int p) { return p - p0 < 16 ? (int)(p - p0) : 16; }

// Hands out aligned pieces of a task's scratch; scan_scratch_bytes counts the same pieces.
struct Carve {
  float* next;
  MAMBAC_MEMBER explicit Carve(void* scratch) : next((float*)scratch) {}
  MAMBAC_MEMBER float* take(Int floats) {
    float* p = next;
    next += round16(floats);
    return p;
  }
};

// `count` floats followed by zeros up to a whole vector: the source itself where it is whole already.
MAMBAC_INLINE const float* padded(const float* source, Int count, float* room) {
  if (count % 16 == 0) return source;
  Int whole = count & ~(Int)15;
  for (Int i = 0; i < whole; i += 16) v_store(room + i, v_load(source + i));
  v_store(room + whole, v_load_n(source + whole, (int)(count - whole)));
  return room;
}

// Rows of a state stored as floats or halves. `n` is 16 except in the last vector of a row.
struct F32Rows {
  typedef float Element;
  static MAMBAC_MEMBER Vec load(const float* p) { return v_load(p); }
  static MAMBAC_MEMBER Vec load_n(const float* p, int n) { return v_load_n(p, n); }
  static MAMBAC_MEMBER void store(float* p, Vec a) { v_store(p, a); }
  static MAMBAC_MEMBER void store_n(float* p, Vec a, int n) { v_store_n(p, a, n); }
};
struct F16Rows {
  typedef uint16_t Element;
  static MAMBAC_MEMBER Vec load(const uint16_t* p) { return h_widen(h_load(p)); }
  static MAMBAC_MEMBER Vec load_n(const uint16_t* p, int n) {
    uint16_t t[16] = {0};
    for (int i = 0; i < n; i++) t[i] = p[i];
    return load(t);
  }
  static MAMBAC_MEMBER void store(uint16_t* p, Vec a) { h_store(p, h_round(a)); }
  static MAMBAC_MEMBER void store_n(uint16_t* p, Vec a, int n) {
    uint16_t t[16];
    store(t, a);
    for (int i = 0; i < n; i++) p[i] = t[i];
  }
};

// d and exp(d * A) of Mamba-2 tokens t0 .. t0 + n - 1 of one head; n <= 16. One token fills all lanes.
MAMBAC_INLINE void mamba2_deltas(const ScanArgs& s, Int b, Int h, Int t0, int n, Vec* delta, Vec* decay) {
  const float* dt = s.dt + (b * s.length + t0) * s.heads + h;
  Vec raw = v_set(dt[0]);
  if (n > 1) {
    float t[16] = {0};
    for (int i = 0; i < n; i++) t[i] = dt[i * s.heads];
    raw = v_load(t);
  }
  *delta = v_delta(raw, v_set(s.dt_bias[h]), s.dt_min, s.dt_max);
  *decay = v_exp(v_mul(*delta, v_set(s.A[h])));
}

// What one token of one head reads and writes. B and C hold whole vectors, zero behind column n.
struct Token {
  Vec decay, delta;  // the same in all lanes
  const float *x, *D, *B, *C;
  const float *ordered_b, *ordered_c;  // B and C in the order of StridedI4's vectors; states of 4 bits with N = 128
  float product;                       // B C, of the same states
  float* y;
};
