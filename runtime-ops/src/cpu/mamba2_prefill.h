// Mamba-2, many tokens of one head with its state in cache.
//
// The state is kept transposed, [N, P], so that one vector holds 16 channels and the readout needs no sums across lanes,
// and it is kept divided by the running decay: g = h / s with s the product of decays since the last rescale. A token
// then costs two multiply-adds a state value instead of three operations: g += (d x / s) B, y = s (g C). Before s leaves
// [2^-32, 2^32] the state is multiplied by it. A tile of kTileRows * 16 channels by kTileStates states stays in
// registers over a block of tokens.
#pragma once

constexpr Int kBlockTokens = 32;

struct Block {
  int tokens;
  Int pp;        // channels, rounded up to whole vectors
  float* input;  // [tokens, pp]: d x / s
  float* sums;   // [tokens, pp]: g C
  float rescale[kBlockTokens];  // the state is multiplied by this before the token
  float running[kBlockTokens];  // s at the token

  MAMBAC_MEMBER Block(Carve& c, Int channels) : pp(channels), input(c.take(kBlockTokens * channels)), sums(c.take(kBlockTokens * channels)) {}
};

template <int kRows, int kStates>
static void run_tile(const Block& k, float* state, const float* B, const float* C, Int stride, Int p0) {
  Vec g[kStates][kRows];
  for (int i = 0; i < kStates; i++)
    for (int r = 0; r < kRows; r++) g[i][r] = v_load(state + i * k.pp + p0 + 16 * r);
  for (int t = 0; t < k.tokens; t++) {
    if (k.rescale[t] != 1.0f) {
      const Vec f = v_set(k.rescale[t]);
      for (int i = 0; i < kStates; i++)
        for (int r = 0; r < kRows; r++) g[i][r] = v_mul(g[i][r], f);
    }
    Vec x[kRows], sum[kRows];
    for (int r = 0; r < kRows; r++) {
      x[r] = v_load(k.input + t * k.pp + p0 + 16 * r);
      sum[r] = v_load(k.sums + t * k.pp + p0 + 16 * r);
    }
    const float *b = B + t * stride, *c = C + t * stride;
    for (int i = 0; i < kStates; i++) {
      const Vec bi = v_set(b[i]), ci = v_set(c[i]);
      for (int r = 0; r < kRows; r++) {
        g[i][r] = v_fma(x[r], bi, g[i][r]);
        sum[r] = v_fma(g[i][r], ci, sum[r]);
      }
    }
    for (int r = 0; r < kRows; r++) v_store(k.sums + t * k.pp + p0 + 16 * r, sum[r]);
  }
  for (int i = 0; i < kStates; i++)
    for (int r = 0; r < kRows; r++) v_store(state + i * k.pp + p0 + 16 * r, g[i][r]);
}

template <int kRows>
MAMBAC_INLINE void run_rows(const Block& k, float* state, const float* B, const float* C, Int stride, Int p0, Int n) {
  Int i = 0;
  for (; i + kTileStates <= n; i += kTileStates)
    run_tile<kRows, kTileStates>(k, state + i * k.pp, B + i, C + i, stride, p0);
  for (; i < n; i++) run_tile<kRows, 1>(k, state + i * k.pp, B + i, C + i, stride, p0);
}

// Takes the decay of token t into the running one; gives it at that token.
MAMBAC_INLINE float advance(Block& k, int t, float decay, float s) {
  float next = s * decay;
  k.rescale[t] = 1.0f;
  if (!(next >= 0x1p-32f && next <= 0x1p32f)) {
    k.rescale[t] = next;
    next = 1.0f;
  }
  return k.running[t] = next;
}
MAMBAC_INLINE void run_state(const Block& k, float* state, const float* B, const float* C, Int stride, Int n) {
  Int p0 = 0;
  for (; p0 + 16 * kTileRows <= k.pp; p0 += 16 * kTileRows) run_rows<kTileRows>(k, state, B, C, stride, p0, n);
  for (; p0 < k.pp; p0 += 16) run_rows<1>(k, state, B, C, stride, p0, n);
}
// y of the block's tokens, t0 the first, from their sums.
static void finish_block(const ScanArgs& a, const Block& k, Int b, Int h, Int t0) {
  const Int p = a.head_dim, channels = a.heads * p;
  for (int t = 0; t < k.tokens; t++) {
    const Int at = (b * a.length + t0 + t) * channels + h * p;
    const Vec f = v_set(k.running[t]);
    for (Int c = 0; c < p; c += 16) {
      const int count = rows_left(c, p);
      Vec skip = v_mul(v_load_n(a.D + h * p + c, count), v_load_n(a.x + at + c, count));
      v_store_n(a.y + at + c, v_fma(f, v_load(k.sums + t * k.pp + c), skip), count);
    }
  }
}

// One block of tokens of head h of batch b; `s` carries the running decay from block to block.
static void run_block(const ScanArgs& a, Block& k, float* state, Int b, Int h, Int t0, float* carried) {
  const Int p = a.head_dim, n = a.d_state, channels = a.heads * p, stride = a.groups * n;
  const Int group = h / (a.heads / a.groups);
  float s = *carried;
  for (int i = 0; i < k.tokens; i += 16) {
    const int count = k.tokens - i < 16 ? k.tokens - i : 16;
    Vec delta, decay;
    float d[16], e[16];
    mamba2_deltas(a, b, h, t0 + i, count, &delta, &decay);
    v_store(d, delta);
    v_store(e, decay);
    for (int j = 0; j < count; j++) {
      const int t = i + j;
      s = advance(k, t, e[j], s);
      const float* x = a.x + (b * a.length + t0 + t) * channels + h * p;
      // Rows of one head lie far apart: they are fetched a block ahead, and what this block writes while it computes.
      for (Int c = 0; c < p; c += 16) {
        if (t0 + t + kBlockTokens < a.length) MAMBAC_PREFETCH_READ((const char*)(x + kBlockTokens * channels + c));
        MAMBAC_PREFETCH((const char*)(a.y + (x - a.x) + c));
      }
      const Vec f = v_set(d[j] / s);
      for (Int c = 0; c < p; c += 16) {
        v_store(k.input + t * k.pp + c, v_mul(f, v_load_n(x + c, rows_left(c, p))));
        v_store(k.sums + t * k.pp + c, v_zero());
      }
    }
  }
  *carried = s;
  const float* B = a.B + (b * a.length + t0) * stride + group * n;
  const float* C = a.C + (b * a.length + t0) * stride + group * n;
  run_state(k, state, B, C, stride, n);
  finish_block(a, k, b, h, t0);
}

// 16 rows of a stored state, [P, N], to and from the transposed one, [round16(N), pp]; columns n .. are zero.
template <class Rows>
MAMBAC_INLINE void transpose_in(const typename Rows::Element* rows, Int row_stride, float* state, Int pp, Int p, Int n) {
  for (Int p0 = 0; p0 < p; p0 += 16)
    for (Int n0 = 0; n0 < n; n0 += 16) {
      const int count = rows_left(p0, p), width = rows_left(n0, n);
      Vec v[16];
      for (int r = 0; r < 16; r++)
        v[r] = r >= count ? v_zero()
               : width == 16 ? Rows::load(rows + (p0 + r) * row_stride + n0)
                             : Rows::load_n(rows + (p0 + r) * row_stride + n0, width);
      v_transpose16(v);
      for (int r = 0; r < width; r++) v_store(state + (n0 + r) * pp + p0, v[r]);
    }
}
template <class Rows>
MAMBAC_INLINE void transpose_out(typename Rows::Element* rows, Int row_stride, const float* state, Int pp, Int p, Int n,
                                 float scale, bool pad) {
  for (Int p0 = 0; p0 < p; p0 += 16)
    for (Int n0 = 0; n0 < n; n0 += 16) {
      const int count = rows_left(p0, p), width = rows_left(n0, n);
      Vec v[16];
      for (int r = 0; r < 16; r++) v[r] = r < width ? v_mul(v_load(state + (n0 + r) * pp + p0), v_set(scale)) : v_zero();
      v_transpose16(v);
      for (int r = 0; r < count; r++) {
        if (pad || width == 16)
          Rows::store(rows + (p0 + r) * row_stride + n0, v[r]);
        else
          Rows::store_n(rows + (p0 + r) * row_stride + n0, v[r], width);
      }
    }
}

static void prefill_head(const ScanArgs& a, Int b, Int h, const void* past, void* present, Carve c) {
  const Int p = a.head_dim, n = a.d_state, np = round16(n), pp = round16(p);
  const bool packed = a.format == Format::kH8 || a.format == Format::kH4;
  Packing k(c, packed ? p : 0, packed ? np : 0);
  float* state = c.take(np * pp);
  Block block(c, pp);
  if (a.format == Format::kF32) {
    transpose_in<F32Rows>((const float*)past, n, state, pp, p, n);
  } else if (a.format == Format::kF16) {
    transpose_in<F16Rows>((const uint16_t*)past, n, state, pp, p, n);
  } else {
    if (a.format == Format::kH8)
      unpack_head<PlainI8>(k, (const uint8_t*)past, p, n);
    else
      unpack_head<PlainI4>(k, (const uint8_t*)past, p, n);
    transpose_in<F32Rows>(k.rows, np, state, pp, p, n);
  }
  float s = 1.0f;
  for (Int t0 = 0; t0 < a.length; t0 += kBlockTokens) {
    block.tokens = (int)(a.length - t0 < kBlockTokens ? a.length - t0 : kBlockTokens);
    run_block(a, block, state, b, h, t0, &s);
  }
  if (a.format == Format::kF32) {
    transpose_out<F32Rows>((float*)present, n, state, pp, p, n, s, false);
  } else if (a.format == Format::kF16) {
    transpose_out<F16Rows>((uint16_t*)present, n, state, pp, p, n, s, false);
  } else {
    transpose_out<F32Rows>(k.rows, np, state, pp, p, n, s, true);
    if (a.format == Format::kH8)
      a.max_norm ? pack_head<PlainI8, true>(k, (uint8_t*)present, p, n) : pack_head<PlainI8, false>(k, (uint8_t*)present, p, n);
    else
      a.max_norm ? pack_head<PlainI4, true>(k, (uint8_t*)present, p, n) : pack_head<PlainI4, false>(k, (uint8_t*)present, p, n);
  }
}

// Below this many tokens, token by token over the stored rows is faster than turning the state around twice.
constexpr Int kPrefillTokens = 10;

// Whether StridedI4's kernel for rows of 128 columns takes a token, and whether whole numbers may.
MAMBAC_INLINE bool wants_order(const ScanArgs& a) { return a.format == Format::kH4 && a.d_state == 128; }
MAMBAC_INLINE bool wants_exact(const ScanArgs& a) { return wants_order(a) && a.head_dim % 16 == 0; }
// Row: the instruction set's ExactRow.
template <class Row>
MAMBAC_INLINE bool exact_any(const ScanArgs& a, float* room, const Token& t, const void* past, void* present) {
  const uint8_t* in = (const uint8_t*)past;
  uint8_t* out = (uint8_t*)present;
  return a.max_norm ? exact_token<Row, true>(room, t, in, out, a.head_dim) : exact_token<Row, false>(room, t, in, out, a.head_dim);
}

// B and C in vector order, and their product.
MAMBAC_INLINE void order_inputs(float* out, const float* B, const float* C, Int n) {
  to_vector_order<StridedI4>(out, B, n);
  to_vector_order<StridedI4>(out + n, C, n);
  Vec product = v_zero();
  for (Int i = 0; i < n; i += 16) product = v_fma(v_load(B + i), v_load(C + i), product);
  v_store(out + 2 * n, v_total(product));
}
MAMBAC_INLINE void take_ordered(Token* t, const float* ordered, Int n) {
  t->ordered_b = ordered;
  t->ordered_c = ordered + n;
  t->product = ordered[2 * n];
}

// One token: step sizes of all heads, which one vector holds many of, and B and C in vector order, which heads share.
static void mamba2_prepare(const ScanArgs& a, int64_t b) {
  float* decays = a.decays + 2 * b * a.heads;
  for (Int h = 0; h < a.heads; h += 16) {
    const int some = rows_left(h, a.heads);
    const Vec delta = v_delta(v_load_n(a.dt + b * a.heads + h, some), v_load_n(a.dt_bias + h, some), a.dt_min, a.dt_max);
    v_store_n(decays + h, delta, some);
    v_store_n(decays + a.heads + h, v_exp(v_mul(delta, v_load_n(a.A + h, some))), some);
  }
  const Int n = a.d_state;
  for (Int g = b * a.groups; wants_order(a) && g < (b + 1) * a.groups; g++)
    order_inputs(a.ordered + g * ordered_floats(n), a.B + g * n, a.C + g * n, n);
}

// What a token of head h of sequence b reads and writes.
MAMBAC_INLINE Token mamba2_token(const ScanArgs& a, Int b, Int h, Int l) {
  const Int p = a.head_dim, n = a.d_state, at = b * a.length + l, group = h / (a.heads / a.groups);
  Token t;
  t.D = a.D + h * p;
  t.x = a.x + (at * a.heads + h) * p;
  t.y = a.y + (at * a.heads + h) * p;
  t.B = a.B + (at * a.groups + group) * n;
  t.C = a.C + (at * a.groups + group) * n;
  if (a.decays != nullptr) {
    t.delta = v_set(a.decays[2 * b * a.heads + h]);
    t.decay = v_set(a.decays[(2 * b + 1) * a.heads + h]);
    if (wants_order(a)) take_ordered(&t, a.ordered + (b * a.groups + group) * ordered_floats(n), n);
  }
  return t;
}

// `tried`: whole numbers did not fit this token.
template <class Row>
MAMBAC_APART void mamba2_tokens(const ScanArgs& a, int64_t task, void* scratch, bool tried) {
  const Int b = task / a.heads, h = task % a.heads, p = a.head_dim, n = a.d_state;
  const Int bytes = head_bytes(a.format, p, n);
  const void* past = (const char*)a.past + task * bytes;
  void* present = (char*)a.present + task * bytes;
  const bool packed = a.format == Format::kH8 || a.format == Format::kH4;
  if (a.length == 0) {
    if (past != present) memcpy(present, past, (size_t)bytes);
    return;
  }
  Carve c(scratch);
  const bool rounds = a.per_token || a.format == Format::kF32;  // token by token keeps the meaning
  if (!(a.length == 1 || (rounds && (a.per_token || a.length < kPrefillTokens)))) {
    prefill_head(a, b, h, past, present, c);
    return;
  }
  Packing k(c, packed ? p : 0, packed ? round16(n) : 0);
  float *order = c.take(2 * round16(n) + 2 * round16(p)), *other = order + round16(n);
  float* strided = c.take(wants_order(a) ? ordered_floats(n) : 0);
  // The state's first lines travel while the step size is worked out, a long chain of dependent operations.
  for (Int i = 0; i < 2048 && i < bytes; i += 64) MAMBAC_PREFETCH((const char*)past + i);
  for (Int l = 0; l < a.length; l++) {
    Token t = mamba2_token(a, b, h, l);
    if (a.decays == nullptr) {
      mamba2_deltas(a, b, h, l, 1, &t.delta, &t.decay);
      if (wants_order(a)) {
        order_inputs(strided, t.B, t.C, n);
        take_ordered(&t, strided, n);
      }
    }
    if (packed) {
      if (tried || !wants_exact(a) || !exact_any<Row>(a, k.rows, t, past, present)) step_packed_any(a, k, order, t, past, present);
    } else {
      t.B = padded(t.B, n, order);
      t.C = padded(t.C, n, other);
      if (a.format == Format::kF32)
        step_rows_any<F32Rows>(t, past, present, p, n);
      else
        step_rows_any<F16Rows>(t, past, present, p, n);
    }
    past = present;
  }
}

// One token in whole numbers goes straight to them.
template <class Row>
static void mamba2_task(const ScanArgs& a, int64_t task, void* scratch) {
  const bool exact = a.decays != nullptr && wants_exact(a);
  if (exact) {
    const Int b = task / a.heads, h = task % a.heads, bytes = head_bytes(a.format, a.head_dim, a.d_state);
    const Token t = mamba2_token(a, b, h, 0);
    if (exact_any<Row>(a, (float*)scratch, t, (const char*)a.past + task * bytes, (char*)a.present + task * bytes)) return;
  }
  mamba2_tokens<Row>(a, task, scratch, exact);
}
