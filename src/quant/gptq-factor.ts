/** What GPTQ needs of the second moments of a layer's inputs. */

import { inverseUpperFactor } from "../linalg/cholesky.js";
import { type Gemm, type Matrix, zeros } from "../linalg/matrix.js";
import { EXIT, invariant, MambacError } from "../support/errors.js";

/** Damping is raised tenfold until H is positive definite, up to this share of the mean of the diagonal. */
const MAX_DAMPING = 0.1;

/** Flags of inputs k with H_kk = 0. Throws `gptq/no-samples` when that is all of them, `gptq/not-finite` for NaN. */
export function deadInputs(label: string, hessian: Matrix): Uint8Array {
  const size = hessian.rows;
  const dead = new Uint8Array(size);
  let alive = 0;
  for (let k = 0; k < size; k++) {
    const value = hessian.data[k * (size + 1)]!;
    if (!(value >= 0 && value < Number.POSITIVE_INFINITY)) {
      throw new MambacError(
        "gptq/not-finite",
        `${label}: the second moment of input ${k} is ${value}; the calibration produced values that are not finite`,
        EXIT.calibration,
      );
    }
    if (value === 0) dead[k] = 1;
    else alive += 1;
  }
  if (alive === 0 && size > 0) {
    throw new MambacError(
      "gptq/no-samples",
      `${label}: calibration saw no input other than zero, so GPTQ has nothing to go by; ` +
        "calibrate with text that reaches this layer, or round it to nearest",
      EXIT.calibration,
    );
  }
  return dead;
}

/** Inputs by descending H_kk; of equals, the lower first. */
export function descendingDiagonal(hessian: Matrix): Int32Array {
  const diagonal = (k: number): number => hessian.data[k * (hessian.cols + 1)]!;
  return Int32Array.from({ length: hessian.rows }, (_, k) => k).sort((a, b) => diagonal(b) - diagonal(a) || a - b);
}

/**
 * U upper triangular with Uᵀ U = inv(H + damping m I), rows and columns in the given order, where m is the mean H_kk of
 * inputs that are not dead; dead ones get H_kk = m, so that the scale of H does not matter. Throws `gptq/singular`.
 */
export async function dampedFactor(
  label: string,
  hessian: Matrix,
  dead: Uint8Array,
  order: Int32Array | null,
  gemm: Gemm,
  damping: number,
): Promise<{ readonly factor: Matrix; readonly damping: number }> {
  invariant(damping >= 0, `damping ${damping}`);
  const size = hessian.rows;
  let [trace, alive] = [0, 0];
  for (let k = 0; k < size; k++) {
    trace += hessian.data[k * (size + 1)]!;
    if (dead[k] === 0) alive += 1;
  }
  const mean = trace / alive;
  for (let tried = damping; ; tried = tried === 0 ? 0.001 : Math.min(tried * 10, MAX_DAMPING)) {
    const factor = ordered(hessian, order);
    for (let i = 0; i < size; i++) {
      const at = i * (size + 1);
      factor.data[at] = (dead[order === null ? i : order[i]!] === 1 ? mean : factor.data[at]!) + tried * mean;
    }
    const result = await inverseUpperFactor(factor, gemm);
    if (result.kind === "factored") return { factor, damping: tried };
    if (tried >= MAX_DAMPING) {
      throw new MambacError(
        "gptq/singular",
        `${label}: the second moments of its inputs are not positive definite even with damping ${tried} (pivot ` +
          `${result.pivot} is ${result.value}); calibrate with more text, or round this layer to nearest`,
        EXIT.calibration,
      );
    }
  }
}

/** A copy of the upper triangle in another order of inputs. */
function ordered(hessian: Matrix, order: Int32Array | null): Matrix {
  const size = hessian.rows;
  if (order === null) return { rows: size, cols: size, data: hessian.data.slice() };
  const result = zeros(size, size);
  for (let i = 0; i < size; i++) {
    for (let j = i; j < size; j++) {
      const [a, b] = [order[i]!, order[j]!];
      result.data[i * size + j] = hessian.data[Math.min(a, b) * size + Math.max(a, b)]!;
    }
  }
  return result;
}
