// exp, softplus and SiLU on vectors, relative error about 1e-7. The polynomials are minimax fits made for this file.
#pragma once

constexpr float kLog2E = 1.44269504f;

// e^r = 1 + r + r^2 q(r) for |r| <= ln(2)/2; infinite above 88.73, 0 below -104 (-87.3 where subnormals are flushed).
MAMBAC_INLINE Vec v_exp(Vec x) {
  x = v_min(v_set(100.0f), v_max(v_set(-110.0f), x));  // NaN passes
  Vec n = v_round(v_mul(x, v_set(kLog2E)));
  Vec r = v_fma(n, v_set(-0.693359375f), x);
  r = v_fma(n, v_set(2.12194440e-4f), r);
  Vec q = v_set(1.381461043e-03f);
  q = v_fma(q, r, v_set(8.368710056e-03f));
  q = v_fma(q, r, v_set(4.166838899e-02f));
  q = v_fma(q, r, v_set(1.666652113e-01f));
  q = v_fma(q, r, v_set(4.999999404e-01f));
  Vec p = v_add(v_fma(v_mul(r, r), q, r), v_set(1.0f));
  return v_scale2(p, n);
}

// 2^x; as v_exp, five operations cheaper.
MAMBAC_INLINE Vec v_exp2(Vec x) {
  x = v_min(v_set(140.0f), v_max(v_set(-160.0f), x));
  Vec n = v_round(x), r = v_sub(x, n);
  Vec q = v_set(1.535336050e-04f);
  q = v_fma(q, r, v_set(1.339887502e-03f));
  q = v_fma(q, r, v_set(9.618436918e-03f));
  q = v_fma(q, r, v_set(5.550332367e-02f));
  q = v_fma(q, r, v_set(2.402264774e-01f));
  q = v_fma(q, r, v_set(6.931471825e-01f));
  return v_scale2(v_fma(q, r, v_set(1.0f)), n);
}

// max(x, 0) + log(1 + e), e = exp(-|x|); log(1 + e) = e q(e) keeps its relative accuracy for small e.
MAMBAC_INLINE Vec v_softplus(Vec x) {
  Vec e = v_exp(v_sub(v_zero(), v_abs(x)));
  Vec q = v_set(-3.243980929e-03f);
  q = v_fma(q, e, v_set(1.985126361e-02f));
  q = v_fma(q, e, v_set(-5.695915967e-02f));
  q = v_fma(q, e, v_set(1.060361713e-01f));
  q = v_fma(q, e, v_set(-1.530556977e-01f));
  q = v_fma(q, e, v_set(1.967593133e-01f));
  q = v_fma(q, e, v_set(-2.495413274e-01f));
  q = v_fma(q, e, v_set(3.332996368e-01f));
  q = v_fma(q, e, v_set(-4.999990165e-01f));
  q = v_fma(q, e, v_set(1.0f));
  return v_fma(q, e, v_max(v_zero(), x));
}

MAMBAC_INLINE Vec v_silu(Vec x) { return v_div(x, v_add(v_set(1.0f), v_exp(v_sub(v_zero(), x)))); }

// clip(softplus(dt + bias), low, high); NaN passes.
MAMBAC_INLINE Vec v_delta(Vec dt, Vec bias, float low, float high) {
  return v_min(v_set(high), v_max(v_set(low), v_softplus(v_add(dt, bias))));
}
