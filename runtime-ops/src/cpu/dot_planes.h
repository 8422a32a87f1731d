// Coefficients of sums over 4-bit codes, as integers: sum_n q_n c_n is exact until it is made a float.
#pragma once

// 128 coefficients of 24 bits in signed bytes, c = 65536 c[2] + 256 c[1] + c[0]; [.][0] those of even columns, [.][1] of odd
// ones, as the nibbles of a byte lie. NibbleDot::row gives sums of eight neighbouring columns a lane.
struct DotPlanes {
  int8_t c[3][2][64];
};

// 64 whole numbers within +-0x7f7f7f of each kind into planes.
static inline void split_whole(DotPlanes& k, const int32_t* even, const int32_t* odd) {
  const int32_t* whole[2] = {even, odd};
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 64; j++) {
      const int32_t c = whole[i][j], high = (c + 128) >> 8;
      k.c[0][i][j] = (int8_t)c;
      k.c[1][i][j] = (int8_t)high;
      k.c[2][i][j] = (int8_t)((high + 128) >> 8);
    }
}
