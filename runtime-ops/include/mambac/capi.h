/* The kernels without ONNX Runtime, for tests, benchmarks and other hosts. Plain C. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MAMBAC_EXPORT __declspec(dllexport)
#else
#define MAMBAC_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Sizes and buffers of one call; shapes as in runtime-ops/README.md. Mamba-1: heads * head_dim channels. */
typedef struct {
  int64_t batch, length, heads, head_dim, d_state, groups;
  float dt_min, dt_max;
  const float *x, *dt, *A, *B, *C, *D, *dt_bias;
  const void* past;
  float* y;
  void* present;
  int64_t replay_length; /* of Replay operators, otherwise unused */
  const float *row_step, *column_step; /* of Static operators, otherwise unused */
  int half; /* 1: x, dt, B, C and y are IEEE halves behind these pointers */
} mambac_scan;

typedef struct {
  int64_t batch, channels, length, kernel, width;
  const float *x, *weight, *bias, *past;
  float *y, *present;
  int half; /* 1: x, past, y and present are IEEE halves */
  int64_t row, first;              /* of Rows and Split operators: channels of a token of x, and the first that is read */
  int64_t first_size, second_size; /* of Split operators: channels of y and y2; the others are those of y3 */
  float *y2, *y3;
} mambac_conv;

/* Where operators on rows give 8-bit codes instead of floats, their ...Q8 forms: round_half_even(value / scale) + zero_point,
   saturated. All zeros otherwise. */
typedef struct {
  void* to;               /* as many codes as there are values */
  const float* scale;     /* one */
  const void* zero_point; /* one, of the type of the codes */
  int is_signed;          /* 1: int8, 0: uint8 */
} mambac_codes;

/* HadamardRotate: rows of blocks of order * power channels. y may be x; unused where there are codes. */
typedef struct {
  int64_t rows, size, order, power;
  const float *x, *factor; /* factor [order, order] */
  float* y;
  int half; /* 1: x and y are IEEE halves */
  mambac_codes codes;
} mambac_rotate;

/* SiluGate (group_size 0), SlopedSiluGate (a slope besides) and GatedRMSNorm. out may be y or z; unused where there are
   codes. */
typedef struct {
  int64_t rows, channels, group_size, norm_before_gate;
  float epsilon;
  const float *y, *z, *weight;
  float* out;
  const float* slope; /* [channels], or null; unused beside a norm */
  int half; /* 1: y, z and out are IEEE halves */
  mambac_codes codes;
} mambac_gate;

/* Runs one operator on the calling thread. `isa` is "portable", "avx2" or "avx512", or null for the best one.
   Returns 0; or 1 with a message in `error` (always terminated when room > 0). */
MAMBAC_EXPORT int mambac_scan_run(const char* op, const char* isa, const mambac_scan* call, char* error, size_t room);
MAMBAC_EXPORT int mambac_conv_run(const char* op, const char* isa, const mambac_conv* call, char* error, size_t room);
MAMBAC_EXPORT int mambac_rotate_run(const char* isa, const mambac_rotate* call, char* error, size_t room);
MAMBAC_EXPORT int mambac_gate_run(const char* isa, const mambac_gate* call, char* error, size_t room);

/* Bytes of past and of present for one batch row; 0 for an unknown operator or sizes out of range. The first for every
   operator but Replay ones, the second for those. */
MAMBAC_EXPORT int64_t mambac_state_bytes(const char* op, int64_t heads, int64_t head_dim, int64_t d_state);
MAMBAC_EXPORT int64_t mambac_replay_bytes(const char* op, int64_t heads, int64_t head_dim, int64_t d_state, int64_t groups,
                                          int64_t replay_length);

/* The instruction set in use. */
MAMBAC_EXPORT const char* mambac_isa(void);

#ifdef __cplusplus
}
#endif
