/** Round to nearest (RTN): every weight to the closest point of its grid. The baseline of every other method. */

import type { CodeRoom } from "./code-room.js";
import { chooseGrid, type Quantized, quantize } from "./grid.js";
import type { Weight } from "./ranges.js";
import type { WeightScheme } from "./scheme.js";

/** A weight of any shape rounded to nearest; codes are in the room where there is one. Throws `quant/not-finite` for NaN or infinity. */
export function roundToNearest(weight: Weight, scheme: WeightScheme, room: CodeRoom | null = null): Quantized {
  return quantize(weight.data, weight.shape, chooseGrid(weight, scheme), room);
}
