// Transposes shared by the x64 instruction sets. Included inside an instruction set's own namespace.
#pragma once

MAMBAC_INLINE void transpose8(__m256* r) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int c = 0; c < 4; c++) {
    r[c] = _mm256_permute2f128_ps(u[c], u[c + 4], 0x20);
    r[c + 4] = _mm256_permute2f128_ps(u[c], u[c + 4], 0x31);
  }
}

// [16][8] floats to [8][16].
MAMBAC_INLINE void split128(float* out, const float* in) {
  for (int half = 0; half < 2; half++) {
    __m256 r[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(in + 64 * half + 8 * i);
    transpose8(r);
    for (int i = 0; i < 8; i++) _mm256_storeu_ps(out + 16 * i + 8 * half, r[i]);
  }
}

// [8][16] halves to [16][8], in place.
MAMBAC_INLINE void join128(uint16_t* p) {
  __m128i r[16];
  for (int half = 0; half < 2; half++) {
    __m128i t[8], u[8], *a = r + 8 * half;
    for (int i = 0; i < 8; i++) a[i] = _mm_loadu_si128((const __m128i*)(p + 16 * i + 8 * half));
    for (int i = 0; i < 4; i++) {  // pairs of rows i, i + 4
      t[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
      t[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
    }
    for (int i = 0; i < 4; i++) {
      u[2 * i] = _mm_unpacklo_epi16(t[i], t[i + 4]);
      u[2 * i + 1] = _mm_unpackhi_epi16(t[i], t[i + 4]);
    }
    for (int i = 0; i < 4; i++) {
      a[2 * i] = _mm_unpacklo_epi16(u[i], u[i + 4]);
      a[2 * i + 1] = _mm_unpackhi_epi16(u[i], u[i + 4]);
    }
  }
  for (int i = 0; i < 16; i++) _mm_storeu_si128((__m128i*)(p + 8 * i), r[i]);
}
