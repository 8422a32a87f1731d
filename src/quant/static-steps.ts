/**
 * Steps for recurrent states whose scales are frozen: one number a row of each head and one a column of each group, from the
 * largest magnitudes of the state over calibration data.
 */

import { invariant } from "../support/errors.js";

export interface StateSizes {
  readonly heads: number;
  /** G; divides `heads`. */
  readonly groups: number;
  /** P */
  readonly headDim: number;
  /** N */
  readonly dState: number;
}

/** Steps of rows [H, P] and of columns [G, N]; that of a value is the product of its two. */
export interface GivenSteps {
  readonly rows: Float32Array;
  readonly columns: Float32Array;
}

/**
 * Largest representable value over the largest one seen (in the geometric mean of a row and a column). 8 bits have room for
 * states that calibration has not met. With 4 bits what lies below half a step, neither adding up nor decaying, costs more
 * than large values clipped. Measured on a trained model: see `runtime-ops/BENCH.md`.
 */
const RANGE: Readonly<Record<"h8" | "h4", number>> = { h8: 2, h4: 0.5 };

/** What never moved in calibration must not divide by zero. */
const LEAST = 2 ** -40;

/**
 * `magnitudes` are the largest |h|, [H, P, N]. The steps are their best fit by rows and columns in logarithms: geometric
 * means, which one outlier does not move.
 */
export function staticSteps(magnitudes: ArrayLike<number>, sizes: StateSizes, format: "h8" | "h4"): GivenSteps {
  const { heads, groups, headDim, dState } = sizes;
  invariant(magnitudes.length === heads * headDim * dState, "staticSteps: magnitudes do not fit the sizes");
  const rowsPerGroup = (heads / groups) * headDim;
  const rows = new Float64Array(heads * headDim);
  const columns = new Float64Array(groups * dState);
  for (let row = 0; row < rows.length; row++) {
    const group = Math.floor(row / rowsPerGroup);
    for (let n = 0; n < dState; n++) {
      const log = Math.log(Math.max(magnitudes[row * dState + n]!, LEAST));
      rows[row]! += log / dState;
      columns[group * dState + n]! += log / rowsPerGroup;
    }
  }
  const unit = Math.log(RANGE[format] / (format === "h8" ? 127 : 7));
  for (let group = 0; group < groups; group++) {
    const own = columns.subarray(group * dState, (group + 1) * dState);
    const mean = own.reduce((sum, value) => sum + value, 0) / dState;
    for (let n = 0; n < dState; n++) own[n]! += unit - mean;
  }
  return { rows: Float32Array.from(rows, Math.exp), columns: Float32Array.from(columns, Math.exp) };
}
