// Floats to 8-bit codes on a grid of one step, bit for bit as ONNX Runtime's QuantizeLinear rounds them.
#pragma once

// Codes are worked out as int8; `flip` makes uint8 of them, whose values lie 128 higher.
struct Grid8 {
  Vec scale, low, high, shift;
  uint64_t flip;
  explicit Grid8(const CodesOut& c) {
    const int zero = c.is_signed ? *(const int8_t*)c.zero : *(const uint8_t*)c.zero - 128;
    scale = v_set(*c.scale);
    low = v_set((float)(-128 - zero));
    high = v_set((float)(127 - zero));
    shift = v_set((float)zero);
    flip = c.is_signed ? 0 : 0x8080808080808080u;
  }
  // The code is the lowest byte: 1.5 * 2^23 leaves no bits behind the point, and so rounds to the nearest even. A NaN is the
  // lowest code.
  MAMBAC_MEMBER Vec code(Vec v) const {
    v = v_min(v_max(v_div(v, scale), low), high);
    return v_add(v_add(v, v_set(12582912.0f)), shift);
  }
};

// 64 of them.
MAMBAC_INLINE void encode_block(const Grid8& grid, const float* from, uint8_t* to) {
  Vec v[4];
  MAMBAC_UNROLL16
  for (int k = 0; k < 4; k++) v[k] = grid.code(v_load(from + 16 * k));
  uint8_t codes[64];
  i8_store_low4(codes, v);
  uint64_t words[8];
  memcpy(words, codes, 64);
  for (int k = 0; k < 8; k++) words[k] ^= grid.flip;
  memcpy(to, words, 64);
}

// `count` codes from number `first` on.
static void encode_codes(const float* from, const CodesOut& c, int64_t first, int64_t count) {
  const Grid8 grid(c);
  uint8_t* to = (uint8_t*)c.to + first;
  Int i = 0;
  for (; i + 64 <= count; i += 64) encode_block(grid, from + i, to + i);
  if (i == count) return;
  float last[64] = {0};
  uint8_t codes[64];
  memcpy(last, from + i, sizeof(float) * (size_t)(count - i));
  encode_block(grid, last, codes);
  memcpy(to + i, codes, (size_t)(count - i));
}
