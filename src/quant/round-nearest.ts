/** Round to nearest (RTN): every weight to the closest point of its grid. The baseline of every other method. */

import { chooseGrid, type Quantized, quantize } from "./grid.js";
import type { Weight } from "./ranges.js";
import type { WeightScheme } from "./scheme.js";

/** A weight of any shape rounded to nearest. Throws `quant/not-finite` for NaN or infinity. */
export function roundToNearest(weight: Weight, scheme: WeightScheme): Quantized {
  return quantize(weight.data, weight.shape, chooseGrid(weight, scheme));
}
