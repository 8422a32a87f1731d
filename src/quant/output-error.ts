/** What an error in a weight does to the outputs of its layer. */

import { type Gemm, type Matrix, matrixOf } from "../linalg/matrix.js";
import { invariant } from "../support/errors.js";

/**
 * || X (W^ - W) ||^2 = tr(Dᵀ M D) with D = W^ - W [K, N] and M = Xᵀ X [K, K] (both triangles), without X itself. `perColumn`
 * gives the N terms of the trace.
 */
export async function outputError(
  weight: Float32Array,
  rounded: Float32Array,
  moments: Matrix,
  gemm: Gemm,
): Promise<{ readonly total: number; readonly perColumn: Float64Array }> {
  const inputs = moments.rows;
  const outputs = weight.length / inputs;
  invariant(rounded.length === weight.length && Number.isInteger(outputs), "weights and moments of different shapes");
  const difference = new Float64Array(weight.length);
  for (let i = 0; i < difference.length; i++) difference[i] = rounded[i]! - weight[i]!;
  const product = await gemm(moments, matrixOf(inputs, outputs, difference));
  const perColumn = new Float64Array(outputs);
  for (let k = 0; k < inputs; k++) {
    for (let n = 0; n < outputs; n++) perColumn[n]! += difference[k * outputs + n]! * product.data[k * outputs + n]!;
  }
  return { total: perColumn.reduce((sum, value) => sum + value, 0), perColumn };
}
