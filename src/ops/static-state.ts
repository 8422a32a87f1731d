/**
 * Packed states with static scales in float64: codes alone, the step of row p and column n of a head being the product of
 * the operator's inputs row_step [H, P] and column_step [G, N] at (head, p) and (its group, n).
 */

import { packedHeadBytes } from "./names.js";
import { codeAt, packCodes } from "./packed-state.js";

/** The steps of all heads, and what they are for. */
export interface StaticSteps {
  readonly heads: number;
  readonly groups: number;
  readonly headDim: number;
  readonly dState: number;
  readonly format: "h8" | "h4";
  readonly rowStep: ArrayLike<number>;
  readonly columnStep: ArrayLike<number>;
}

function stepOf(steps: StaticSteps, index: number): (p: number, n: number) => number {
  const { heads, groups, headDim, dState, rowStep, columnStep } = steps;
  const head = index % heads;
  const group = Math.floor(head / (heads / groups));
  return (p, n) => rowStep[head * headDim + p]! * columnStep[group * dState + n]!;
}

/** Packs one head h [headDim, dState], the `index`-th of a batch, at its place in `out` [B, H, bytes]. */
export function packStaticHead(h: ArrayLike<number>, steps: StaticSteps, index: number, out: Uint8Array): void {
  const { headDim, dState, format } = steps;
  const stride = packedHeadBytes(format, headDim, dState, "static");
  packCodes(h, headDim, dState, format, stepOf(steps, index), out, index * stride);
}

/** Decodes head `index` of `bytes` [B, H, bytes] to its place in `out` [B, H, headDim, dState]. */
export function unpackStaticHead(bytes: Uint8Array, steps: StaticSteps, index: number, out: Float64Array): void {
  const { headDim, dState, format } = steps;
  const stride = packedHeadBytes(format, headDim, dState, "static");
  const at = stepOf(steps, index);
  for (let p = 0; p < headDim; p++) {
    for (let n = 0; n < dState; n++) {
      const value = p * dState + n;
      out[index * headDim * dState + value] = codeAt(bytes, index * stride, value, format) * at(p, n);
    }
  }
}
