/** What grids are made from: the weight, the ranges its scales must span, and the step of a range. */

import { elementCount } from "../ir/types.js";
import { EXIT, invariant, MambacError } from "../support/errors.js";
import { roundingLoops } from "./rounding-loops.js";
import type { ScaleLayout } from "./scale-layout.js";
import type { Bits, Zero } from "./scheme.js";

/** Numbers to quantize; `label` names them in messages. */
export interface Weight {
  readonly label: string;
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** Ranges that scales are made of, one a scale: low <= 0 <= high. */
export interface Ranges {
  readonly low: Float32Array;
  readonly high: Float32Array;
}

/** Lowest and highest code. */
export function codeRange(bits: Bits, zero: Zero["kind"]): readonly [number, number] {
  return zero === "symmetric" ? [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] : [0, 2 ** bits - 1];
}

/** Step of the grid over [low, high] before it is rounded for storage; 0 for an empty range. */
export function exactStep(low: number, high: number, bits: Bits, zero: Zero): number {
  // Shifts, as powers cost more than all the rest for weights of many groups.
  if (zero.kind === "asymmetric") return (high - low) / ((1 << bits) - 1);
  const peak = Math.max(-low, high);
  return zero.step === "peak" ? peak / ((1 << (bits - 1)) - 1) : (2 * peak) / ((1 << bits) - 1);
}

/** Smallest and largest value for each scale, zero included. Throws `quant/not-finite` (exit code 5). */
export function rangesOf(weight: Weight, layout: ScaleLayout): Ranges {
  const { data } = weight;
  invariant(data.length === elementCount(weight.shape), `${weight.label} has ${data.length} elements`);
  const [low, high] = [new Float32Array(layout.count), new Float32Array(layout.count)];
  roundingLoops().widen(data, layout, low, high);
  // Minimum and maximum hand NaN on, so the ranges tell of every bad element.
  for (let i = 0; i < layout.count; i++) if (!Number.isFinite(high[i]! - low[i]!)) refuseBadElement(weight);
  return { low, high };
}

function refuseBadElement(weight: Weight): void {
  const at = weight.data.findIndex((value) => !Number.isFinite(value));
  // A range may overflow although all elements are finite: 3e38 - (-3e38).
  if (at < 0) return;
  const index: number[] = [];
  for (let rest = at, axis = weight.shape.length - 1; axis >= 0; axis--) {
    const dim = weight.shape[axis]!;
    index.unshift(rest % dim);
    rest = Math.floor(rest / dim);
  }
  throw new MambacError(
    "quant/not-finite",
    `${weight.label} has the value ${weight.data[at]} at [${index.join(",")}] and cannot be quantized; check how the model was exported`,
    EXIT.calibration,
  );
}
