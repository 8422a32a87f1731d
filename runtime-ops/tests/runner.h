// Who runs the operators under test: the library's CPU kernels, or, in tests that set another runner, kernels elsewhere. All
// memory of a call is the host's.
#pragma once
#include "mambac/capi.h"

struct Runner {
  int (*scan)(const char* op, const char* isa, const mambac_scan* call, char* error, size_t room);
  int (*rotate)(const char* isa, const mambac_rotate* call, char* error, size_t room);
  int (*gate)(const char* isa, const mambac_gate* call, char* error, size_t room);
};
inline Runner g_runner = {mambac_scan_run, mambac_rotate_run, mambac_gate_run};
