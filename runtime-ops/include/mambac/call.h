// Calls of the C interface as kernels take them, checked.
#pragma once
#include "mambac/capi.h"
#include "mambac/plan.h"

namespace mambac {

// False, with a message, where there is no such operator or its sizes do not fit. Pointers are taken over unread.
bool scan_args(const char* name, const mambac_scan* call, ScanArgs* args, Message* message);
bool conv_args(const char* name, const mambac_conv* call, ConvArgs* args, Message* message);

}  // namespace mambac
