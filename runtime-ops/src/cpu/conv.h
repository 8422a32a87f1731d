// Causal depthwise convolution over the stream (past, x), with SiLU where asked.
#pragma once

// y[l] without its activation for l < K - 1, where the window still reaches into the past.
MAMBAC_INLINE float conv_early(const ConvArgs& a, const float* w, float bias, const float* x, const float* past, Int l) {
  float sum = bias;
  for (Int k = 0; k < a.kernel; k++) {
    const Int j = l + k - (a.kernel - 1);
    sum += w[k] * (j < 0 ? past[a.width + j] : x[j]);
  }
  return sum;
}

// The last `width` columns of (past, x). Forward, so that past and present may be one buffer.
MAMBAC_INLINE void conv_shift(const ConvArgs& a, const float* x, const float* past, float* present) {
  const Int kept = a.width > a.length ? a.width - a.length : 0;
  for (Int i = 0; i < kept; i++) present[i] = past[i + a.length];
  for (Int i = kept; i < a.width; i++) present[i] = x[a.length - a.width + i];
}

// Where the output of channel e of token l of sequence b lies, which in rows also depends on the part it is in.
MAMBAC_INLINE float* conv_out(const ConvArgs& a, Int b, Int l, Int e) {
  if (a.row == 0) return a.y + b * a.channels + e;  // one token
  Int part = 0;
  while (part < 2 && e >= a.part[part]) e -= a.part[part++];
  return (part == 0 ? a.y : a.more[part - 1]) + (b * a.length + l) * a.part[part] + e;
}

// One token of up to 64 neighbouring channels of one output; kWidth is W when known at compile time (then K is 4), else 0.
template <int kWidth>
static void conv_token(const ConvArgs& a, Int b, Int e0, Int count) {
  float y[kConvBlock];
  const Int width = kWidth > 0 ? kWidth : a.width;
  for (Int i = 0; i < count; i++) {
    const Int e = e0 + i, row = (b * a.channels + e) * width;
    const float *w = a.weight + e * a.kernel, *past = a.past + row;
    float* present = a.present + row;
    const float x = a.x[b * (a.row > 0 ? a.row : a.channels) + a.first + e];
    if (kWidth > 0) {
      const float s0 = past[width - 3], s1 = past[width - 2], s2 = past[width - 1];
      y[i] = a.bias[e] + w[0] * s0 + w[1] * s1 + w[2] * s2 + w[3] * x;
      for (Int j = 0; j + 3 < width; j++) present[j] = past[j + 1];
      present[width - 3] = s1;
      present[width - 2] = s2;
      present[width - 1] = x;
    } else {
      y[i] = conv_early(a, w, a.bias[e], &x, past, 0);
      if (width > 0) conv_shift(a, &x, past, present);
    }
  }
  float* out = conv_out(a, b, 0, e0);
  for (Int i = 0; i < count; i += 16) {
    const int n = rows_left(i, count);
    Vec v = v_load_n(y + i, n);
    v_store_n(out + i, a.silu ? v_silu(v) : v, n);
  }
}

template <bool kSilu, int kKernel>
static void conv_channel(const ConvArgs& a, Int row, Int e) {
  const Int kernel = kKernel > 0 ? kKernel : a.kernel, early = kernel - 1 < a.length ? kernel - 1 : a.length;
  const float *w = a.weight + e * kernel, *x = a.x + row * a.length, *past = a.past + row * a.width;
  float *y = a.y + row * a.length, *present = a.present + row * a.width;
  const float bias = a.bias[e];
  for (Int l = 0; l < early; l++) y[l] = conv_early(a, w, bias, x, past, l);
  for (Int l = 0; kSilu && l < early; l += 16) {
    const int n = rows_left(l, early);
    v_store_n(y + l, v_silu(v_load_n(y + l, n)), n);
  }
  for (Int l = early; l < a.length; l += 16) {
    const int n = rows_left(l, a.length);
    Vec sum = v_set(bias);
    if (n == 16) {
      for (Int k = 0; k < kernel; k++) sum = v_fma(v_set(w[k]), v_load(x + l + k - (kernel - 1)), sum);
      v_store(y + l, kSilu ? v_silu(sum) : sum);
    } else {
      for (Int k = 0; k < kernel; k++) sum = v_fma(v_set(w[k]), v_load_n(x + l + k - (kernel - 1), n), sum);
      v_store_n(y + l, kSilu ? v_silu(sum) : sum, n);
    }
  }
  conv_shift(a, x, past, present);
}

static void conv_token_any(const ConvArgs& a, Int b, Int e0, Int count) {
  if (a.kernel == 4 && a.width == 3)
    conv_token<3>(a, b, e0, count);
  else if (a.kernel == 4 && a.width == 4)
    conv_token<4>(a, b, e0, count);
  else
    conv_token<0>(a, b, e0, count);
}

// Columns j < 0 of the stream, which are those of past, of 16 channels.
MAMBAC_INLINE Vec conv_past(const ConvArgs& a, const float* past, Int j, int n) {
  float s[16] = {0};
  for (int i = 0; i < n; i++) s[i] = past[i * a.width + a.width + j];
  return v_load(s);
}

// Rows of 16 kVecs channels of one output, kernel 4: the last three tokens stay in registers.
template <bool kSilu, int kVecs>
static void conv_rows4(const ConvArgs& a, Int b, Int e0, int n) {
  float taps[4][16 * kVecs], biases[16 * kVecs];
  Vec s[3][kVecs];
  for (int i = 0; i < 16 * kVecs; i++) {
    const bool in = kVecs > 1 || i < n;
    for (int k = 0; k < 4; k++) taps[k][i] = in ? a.weight[(e0 + i) * 4 + k] : 0.0f;
    biases[i] = in ? a.bias[e0 + i] : 0.0f;
  }
  for (int j = 0; j < 3; j++)
    for (int v = 0; v < kVecs; v++) s[j][v] = conv_past(a, a.past + (b * a.channels + e0 + 16 * v) * a.width, j - 3, n);
  const float* x = a.x + b * a.length * a.row + a.first + e0;
  float* y = conv_out(a, b, 0, e0);
  const Int step = conv_out(a, b, 1, e0) - y;
  for (Int l = 0; l < a.length; l++, x += a.row, y += step) {
    for (int v = 0; v < kVecs; v++) {
      if (l + 8 < a.length) MAMBAC_PREFETCH_READ((const char*)(x + 8 * a.row + 16 * v));
      const Vec in = kVecs > 1 ? v_load(x + 16 * v) : v_load_n(x, n);
      Vec sum = v_fma(v_load(taps[0] + 16 * v), s[0][v], v_load(biases + 16 * v));
      sum = v_fma(v_load(taps[1] + 16 * v), s[1][v], sum);
      sum = v_fma(v_load(taps[2] + 16 * v), s[2][v], sum);
      sum = v_fma(v_load(taps[3] + 16 * v), in, sum);
      s[0][v] = s[1][v];
      s[1][v] = s[2][v];
      s[2][v] = in;
      if (kSilu) sum = v_silu(sum);
      if (kVecs > 1)
        v_store(y + 16 * v, sum);
      else
        v_store_n(y, sum, n);
    }
  }
}

// Rows of up to 16 channels of one output, any kernel.
static void conv_rows(const ConvArgs& a, Int b, Int e0, int n) {
  const float *x = a.x + b * a.length * a.row + a.first + e0, *past = a.past + (b * a.channels + e0) * a.width;
  for (Int l = 0; l < a.length; l++) {
    Vec sum = v_load_n(a.bias + e0, n);
    for (Int k = 0; k < a.kernel; k++) {
      float tap[16] = {0};
      for (int i = 0; i < n; i++) tap[i] = a.weight[(e0 + i) * a.kernel + k];
      const Int j = l + k - (a.kernel - 1);
      sum = v_fma(v_load(tap), j < 0 ? conv_past(a, past, j, n) : v_load_n(x + j * a.row, n), sum);
    }
    v_store_n(conv_out(a, b, l, e0), a.silu ? v_silu(sum) : sum, n);
  }
}

// Channels e0 to e1 of sequence b, with tokens in rows: outputs one after the other, past last, as present may be past.
static void conv_block_rows(const ConvArgs& a, Int b, Int e0, Int e1) {
  Int end = 0, e = e0;
  for (int part = 0; part < 3 && e < e1; part++) {
    end += a.part[part];
    const Int to = end < e1 ? end : e1;
    if (a.length == 1 && e < to) {
      conv_token_any(a, b, e, to - e);
      e = to;
    }
    while (e < to) {
      const int n = rows_left(e, to);
      if (a.kernel != 4) {
        conv_rows(a, b, e, n);
        e += n;
      } else if (to - e >= 64) {
        a.silu ? conv_rows4<true, 4>(a, b, e, 16) : conv_rows4<false, 4>(a, b, e, 16);
        e += 64;
      } else {
        a.silu ? conv_rows4<true, 1>(a, b, e, n) : conv_rows4<false, 1>(a, b, e, n);
        e += n;
      }
    }
  }
  if (a.length == 1) return;
  const Int kept = a.width > a.length ? a.width - a.length : 0;
  const float* x = a.x + b * a.length * a.row + a.first;
  for (e = e0; e < e1; e++) {
    const float* past = a.past + (b * a.channels + e) * a.width;
    float* present = a.present + (b * a.channels + e) * a.width;
    for (Int i = 0; i < kept; i++) present[i] = past[i + a.length];
    for (Int i = kept; i < a.width; i++) present[i] = x[(a.length - a.width + i) * a.row + e];
  }
}

static void conv_task(const ConvArgs& a, int64_t task) {
  const Int blocks = (a.channels + kConvBlock - 1) / kConvBlock, b = task / blocks, e0 = task % blocks * kConvBlock;
  const Int count = a.channels - e0 < kConvBlock ? a.channels - e0 : kConvBlock;
  if (a.row > 0) {
    conv_block_rows(a, b, e0, e0 + count);
    return;
  }
  if (a.length == 1) {
    conv_token_any(a, b, e0, count);
    return;
  }
  for (Int e = e0; e < e0 + count; e++) {
    const Int row = b * a.channels + e;
    if (a.kernel == 4)
      a.silu ? conv_channel<true, 4>(a, row, e) : conv_channel<false, 4>(a, row, e);
    else
      a.silu ? conv_channel<true, 0>(a, row, e) : conv_channel<false, 0>(a, row, e);
  }
}
