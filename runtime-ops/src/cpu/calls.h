#pragma once
#include "mambac/scan.h"

namespace mambac {

// run_scan of a call whose activations are halves.
bool run_half_scan(const Kernels& kernels, const ScanArgs& args, const char* name, const Spread& spread, char* error, size_t room);

}  // namespace mambac
