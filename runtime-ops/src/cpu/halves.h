// Tensors of IEEE halves as floats, and back.
#pragma once

static void widen_halves(const uint16_t* from, float* to, int64_t count) {
  Int i = 0;
  for (; i + 16 <= count; i += 16) v_store(to + i, h_widen(h_load(from + i)));
  if (i == count) return;
  uint16_t last[16] = {0};
  memcpy(last, from + i, sizeof(uint16_t) * (size_t)(count - i));
  v_store_n(to + i, h_widen(h_load(last)), (int)(count - i));
}

static void narrow_halves(const float* from, uint16_t* to, int64_t count) {
  Int i = 0;
  for (; i + 16 <= count; i += 16) h_store(to + i, h_round(v_load(from + i)));
  if (i == count) return;
  uint16_t last[16];
  h_store(last, h_round(v_load_n(from + i, (int)(count - i))));
  memcpy(to + i, last, sizeof(uint16_t) * (size_t)(count - i));
}
