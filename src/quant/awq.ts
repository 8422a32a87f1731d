/**
 * AWQ: weights of inputs that are large on average are scaled up before rounding, so that they lose less; then ranges are
 * clipped group by group. Weights only.
 * Source: J. Lin et al., "AWQ: activation-aware weight quantization for on-device LLM compression and acceleration" (2023).
 */

import type { Gemm, Matrix } from "../linalg/matrix.js";
import { EXIT, invariant, MambacError } from "../support/errors.js";
import { dequantize, gridOfRanges, type Quantized, quantize } from "./grid.js";
import { columnErrors, outputError } from "./output-error.js";
import { type Ranges, rangesOf, type Weight } from "./ranges.js";
import { roundToNearest } from "./round-nearest.js";
import { scaleLayout } from "./scale-layout.js";
import type { WeightScheme } from "./scheme.js";
import { type Reader, weightErrors } from "./smooth.js";

/** The scales found, and the squared output error they were found by. */
export interface AwqChoice {
  /** [K]: the activation must be divided by these, where it comes from. */
  readonly scales: Float64Array;
  /** 0 when no scales were best. */
  readonly beta: number;
  /** Sum of squared output errors: rounded to nearest, and with the scales. */
  readonly errors: { readonly nearest: number; readonly scaled: number };
}

/** Mean magnitudes below this count as a dead input, whose weights are left alone. */
const DEAD = 1e-8;

const SMALLEST_SCALE = 1e-4;

/**
 * Scales for all weights [K, N_i] that read one activation, given its mean magnitudes [K] and M, any positive multiple of
 * sum x xᵀ [K, K] (both triangles) over calibration data: of the exponents 0, 1/points, ... below 1 the one with the least
 * error. Never worse than rounding to nearest in the error on M.
 * Throws `awq/no-samples` (exit code 5) when the activation was always zero, and `quant/not-finite`.
 */
export async function searchAwqScales(
  readers: readonly Reader[],
  meanAbs: ArrayLike<number>,
  moments: Matrix,
  gemm: Gemm,
  points: number = 20,
): Promise<AwqChoice> {
  for (const { weight } of readers) requireMatrix(weight, moments);
  if (!Array.from(meanAbs).some((mean) => mean >= DEAD)) {
    throw new MambacError(
      "awq/no-samples",
      `${readers[0]?.weight.label}: calibration saw no input other than zero, so AWQ has nothing to go by; ` +
        "calibrate with text that reaches this layer, or round it to nearest",
      EXIT.calibration,
    );
  }
  let nearest = 0;
  let best = { beta: 0, scales: awqScales(meanAbs, 0), error: Number.POSITIVE_INFINITY };
  for (let i = 0; i < points; i++) {
    const beta = i / points;
    const scales = awqScales(meanAbs, beta);
    const error = await weightErrors(readers, scales, moments, gemm);
    if (i === 0) nearest = error;
    if (error < best.error) best = { beta, scales, error };
  }
  return { scales: best.scales, beta: best.beta, errors: { nearest, scaled: best.error } };
}

function requireMatrix({ label, shape }: Weight, moments: Matrix): void {
  invariant(shape.length === 2 && shape[0] === moments.rows, `${label} is not a matrix of ${moments.rows} inputs`);
}

/** a^beta over the geometric mean of its extremes; 1 for dead inputs. */
export function awqScales(meanAbs: ArrayLike<number>, beta: number): Float64Array {
  let [least, most] = [Number.POSITIVE_INFINITY, 0];
  for (let k = 0; k < meanAbs.length; k++) {
    if (meanAbs[k]! < DEAD) continue;
    least = Math.min(least, meanAbs[k]! ** beta);
    most = Math.max(most, meanAbs[k]! ** beta);
  }
  const middle = Math.sqrt(least * most);
  return Float64Array.from(meanAbs, (mean) => (mean < DEAD ? 1 : Math.max(mean ** beta / middle, SMALLEST_SCALE)));
}

/**
 * Rounds a weight [K, N] to nearest, with the share of each scale's range (1, 1 - 0.5/steps, ... above 0.5) that has the
 * least error of outputs on M. Never worse on M than with whole ranges. Throws `quant/not-finite`.
 */
export async function roundClipped(
  weight: Weight,
  moments: Matrix,
  scheme: WeightScheme,
  gemm: Gemm,
  steps: number = 20,
): Promise<{ readonly quantized: Quantized; readonly errors: { readonly nearest: number; readonly clipped: number } }> {
  requireMatrix(weight, moments);
  const totalOf = (quantized: Quantized): Promise<number> =>
    outputError(weight.data, dequantize(quantized), moments, gemm);
  const errorsOf = (quantized: Quantized): Promise<Float64Array> =>
    errorsByScale({ weight: weight.data, rounded: dequantize(quantized), divisor: null }, moments, scheme, gemm);
  const whole = roundToNearest(weight, scheme);
  const nearest = await totalOf(whole);
  if (!isSearchable(scheme)) return { quantized: whole, errors: { nearest, clipped: nearest } };
  const full = rangesOf(weight, scaleLayout(weight.shape, scheme.granularity));
  const shares = new Float64Array(full.low.length).fill(1);
  const roundedAt = (share: number | Float64Array): Quantized =>
    quantize(weight.data, weight.shape, gridOfRanges(shrunk(full, share), scheme));
  const best = await errorsOf(roundedAt(1));
  for (let step = 1; step < steps; step++) {
    const share = 1 - (0.5 * step) / steps;
    const errors = await errorsOf(roundedAt(share));
    for (let i = 0; i < errors.length; i++) {
      if (errors[i]! >= best[i]!) continue;
      best[i] = errors[i]!;
      shares[i] = share;
    }
  }
  const quantized = roundedAt(shares);
  const clipped = await totalOf(quantized);
  // Groups are searched apart, and their errors may add up worse than alone.
  return clipped < nearest
    ? { quantized, errors: { nearest, clipped } }
    : { quantized: whole, errors: { nearest, clipped: nearest } };
}

/** Are there errors of outputs that belong to one scale each? */
function isSearchable({ granularity }: WeightScheme): boolean {
  return granularity.kind === "tensor" || granularity.axis === (granularity.kind === "channel" ? 1 : 0);
}

/** The error of outputs that each scale is answerable for, as if all other weights were exact. */
async function errorsByScale(
  error: Parameters<typeof columnErrors>[0],
  moments: Matrix,
  { granularity }: WeightScheme,
  gemm: Gemm,
): Promise<Float64Array> {
  if (granularity.kind !== "group") {
    const errors = await columnErrors(error, moments, gemm);
    return granularity.kind === "tensor" ? Float64Array.of(sum(errors)) : errors;
  }
  const groups: Float64Array[] = [];
  for (let top = 0; top < moments.rows; top += granularity.size) {
    groups.push(await columnErrors(error, moments, gemm, top, Math.min(top + granularity.size, moments.rows)));
  }
  const all = new Float64Array(groups.reduce((count, group) => count + group.length, 0));
  groups.forEach((group, g) => all.set(group, g * group.length));
  return all;
}

function shrunk({ low, high }: Ranges, share: number | Float64Array): Ranges {
  const at = (i: number): number => (typeof share === "number" ? share : share[i]!);
  return { low: low.map((value, i) => value * at(i)), high: high.map((value, i) => value * at(i)) };
}

function sum(values: Float64Array): number {
  return values.reduce((total, value) => total + value, 0);
}
