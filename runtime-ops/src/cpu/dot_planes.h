// Coefficients of sums over 4-bit codes, as integers: sum_n q_n c_n is exact until it is made a float.
#pragma once

// 128 coefficients of 24 bits in signed bytes, c = 65536 c[2] + 256 c[1] + c[0]; [.][0] those of even columns, [.][1] of odd
// ones, as the nibbles of a byte lie. NibbleDot::read gives sums of eight neighbouring columns a lane.
struct DotPlanes {
  int8_t c[3][2][64];
};
