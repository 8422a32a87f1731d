// CUDA kernels inside ONNX Runtime: launched on the compute stream of the node, never waited for.
#pragma once
#include "../ort/abi.h"
#include "mambac/scan.h"

namespace mambac {
namespace ort {

// `name` is the operator's, for messages. Null for success.
Status* cuda_scan(const Api* api, KernelContext* context, const char* name, const ScanArgs& args);
Status* cuda_conv(const Api* api, KernelContext* context, const char* name, const ConvArgs& args);
Status* cuda_hadamard(const Api* api, KernelContext* context, const char* name, const HadamardArgs& args);
Status* cuda_gate(const Api* api, KernelContext* context, const char* name, const GateArgs& args);

}  // namespace ort
}  // namespace mambac
