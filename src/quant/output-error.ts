/** What errors in a weight do to the outputs of its layer, from second moments instead of the inputs themselves. */

import { block, type Gemm, type Matrix, zeros } from "../linalg/matrix.js";
import { invariant } from "../support/errors.js";

/** Numbers of a slice of columns in float64. */
const SLICE_NUMBERS = 1 << 22;

export interface WeightError {
  /** [K, N] */
  readonly weight: Float32Array;
  /** What replaces it: [K, N], each row k divided by `divisor[k]` where that is given. */
  readonly rounded: Float32Array;
  readonly divisor: Float64Array | null;
}

/**
 * For each output column the sum over samples of (x D)^2, with D = W^ - W restricted to input rows [top, bottom): the
 * diagonal of Dᵀ M D, M = sum x xᵀ [K, K] with both triangles.
 */
export async function columnErrors(
  { weight, rounded, divisor }: WeightError,
  moments: Matrix,
  gemm: Gemm,
  top: number = 0,
  bottom: number = moments.rows,
): Promise<Float64Array> {
  const outputs = moments.rows === 0 ? 0 : weight.length / moments.rows;
  invariant(rounded.length === weight.length && Number.isInteger(outputs), "weights and moments of different shapes");
  const inputs = bottom - top;
  const part = inputs === moments.rows ? moments : block(moments, top, bottom, top, bottom);
  const errors = new Float64Array(outputs);
  const width = Math.max(256, Math.floor(SLICE_NUMBERS / Math.max(inputs, 1)));
  for (let left = 0; left < outputs; left += width) {
    const used = Math.min(width, outputs - left);
    const difference = zeros(inputs, used);
    for (let k = 0; k < inputs; k++) {
      const [from, to] = [(top + k) * outputs + left, k * used];
      const factor = divisor === null ? 1 : 1 / divisor[top + k]!;
      for (let n = 0; n < used; n++) difference.data[to + n] = rounded[from + n]! * factor - weight[from + n]!;
    }
    const product = await gemm(part, difference);
    for (let k = 0; k < inputs; k++) {
      const row = k * used;
      for (let n = 0; n < used; n++) errors[left + n]! += difference.data[row + n]! * product.data[row + n]!;
    }
  }
  return errors;
}

/** || X (W^ - W) ||^2 from M = Xᵀ X. */
export async function outputError(
  weight: Float32Array,
  rounded: Float32Array,
  moments: Matrix,
  gemm: Gemm,
): Promise<number> {
  const errors = await columnErrors({ weight, rounded, divisor: null }, moments, gemm);
  return errors.reduce((sum, error) => sum + error, 0);
}
