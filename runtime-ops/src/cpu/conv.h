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

// One token of up to 64 neighbouring channels; kWidth is W when known at compile time (then K is 4), else 0.
template <int kWidth>
static void conv_token(const ConvArgs& a, Int b, Int e0, Int count) {
  float y[kConvBlock];
  const Int width = kWidth > 0 ? kWidth : a.width;
  for (Int i = 0; i < count; i++) {
    const Int e = e0 + i, row = (b * a.channels + e) * width;
    const float *w = a.weight + e * a.kernel, *past = a.past + row;
    float* present = a.present + row;
    const float x = a.x[b * a.channels + e];
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
  float* out = a.y + b * a.channels + e0;
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

static void conv_task(const ConvArgs& a, int64_t task) {
  const Int blocks = (a.channels + kConvBlock - 1) / kConvBlock, b = task / blocks, e0 = task % blocks * kConvBlock;
  const Int count = a.channels - e0 < kConvBlock ? a.channels - e0 : kConvBlock;
  if (a.length == 1) {
    if (a.kernel == 4 && a.width == 3)
      conv_token<3>(a, b, e0, count);
    else if (a.kernel == 4 && a.width == 4)
      conv_token<4>(a, b, e0, count);
    else
      conv_token<0>(a, b, e0, count);
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
