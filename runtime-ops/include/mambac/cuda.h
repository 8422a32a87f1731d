/* The CUDA kernels without ONNX Runtime. Plain C; present in a library built with nvcc only.
   Every pointer of a call is device memory; `stream` is a cudaStream_t. Calls only launch: nothing waits, nothing is
   allocated, nothing is read back, so they can be captured into a CUDA graph. */
#pragma once
#include "mambac/capi.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Device memory (16-byte aligned) a scan needs besides its operands; 0 for heads whose float32 state fits into shared
   memory. Negative: no such operator, or sizes out of range. */
MAMBAC_EXPORT int64_t mambac_cuda_scan_workspace(const char* op, const mambac_scan* call);

/* Launches one operator (names and meanings: runtime-ops/README.md). `workspace` may be null where none is needed.
   Returns 0; or 1 with a message in `error` (always terminated when room > 0). */
MAMBAC_EXPORT int mambac_cuda_scan_launch(const char* op, const mambac_scan* call, void* workspace, void* stream, char* error,
                                          size_t room);
MAMBAC_EXPORT int mambac_cuda_conv_launch(const char* op, const mambac_conv* call, void* stream, char* error, size_t room);

MAMBAC_EXPORT int mambac_cuda_rotate_launch(const mambac_rotate* call, void* stream, char* error, size_t room);
MAMBAC_EXPORT int mambac_cuda_gate_launch(const mambac_gate* call, void* stream, char* error, size_t room);

#ifdef __cplusplus
}
#endif
