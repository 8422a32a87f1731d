// The kernels, written once over Vec; each instruction set includes them in its own anonymous namespace.
#pragma once
#include "vec_math.h"
#include "tile.h"
#include "dsq.h"
#include "dot.h"
#include "mamba2_decode.h"
#include "mamba2_prefill.h"
#include "mamba2_replay.h"
#include "mamba1.h"
#include "conv.h"
#include "hadamard.h"
#include "gate.h"
