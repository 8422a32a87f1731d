/**
 * AWQ: weights of inputs that are large on average are scaled up before rounding, so that they lose less; then ranges are
 * clipped group by group. Weights only.
 * Source: J. Lin et al., "AWQ: activation-aware weight quantization for on-device LLM compression and acceleration" (2023).
 */

import type { Gemm, Matrix } from "../linalg/matrix.js";
import { EXIT, invariant, MambacError } from "../support/errors.js";
import { dequantize, gridOfRanges, type Quantized, quantize } from "./grid.js";
import { columnErrors } from "./output-error.js";
import { type Ranges, rangesOf, type Weight } from "./ranges.js";
import { roundToNearest } from "./round-nearest.js";
import { scaleLayout } from "./scale-layout.js";
import type { WeightScheme } from "./scheme.js";
import { scaledRows } from "./smooth.js";

export interface AwqOptions {
  /** Exponents tried: 0, 1/points, ... below 1. */
  readonly points?: number;
  /** Shares of the range tried: 1, 1 - 0.5/steps, ... above 0.5; 0 leaves ranges alone. */
  readonly clipSteps?: number;
}

export interface AwqResult {
  /** [K]: the activation must be divided by these, where it comes from. */
  readonly scales: Float64Array;
  readonly beta: number;
  /** Rounded diag(scales) W_i, in the order given. */
  readonly quantized: readonly Quantized[];
  /** Sum of squared output errors: rounded to nearest, with the scales, and with clipped ranges too. */
  readonly errors: { readonly nearest: number; readonly scaled: number; readonly clipped: number };
}

/** Mean magnitudes below this count as a dead input, whose weights are left alone. */
const DEAD = 1e-8;

const SMALLEST_SCALE = 1e-4;

/**
 * Scales and rounded weights for all weights [K, N_i] that read one activation, given its mean magnitudes [K] and
 * M = sum x xᵀ [K, K] (both triangles) over calibration data. Never worse than rounding to nearest in the error on M.
 * Throws `awq/no-samples` (exit code 5) when the activation was always zero, and `quant/not-finite`.
 */
export async function awq(
  weights: readonly Weight[],
  meanAbs: ArrayLike<number>,
  moments: Matrix,
  scheme: WeightScheme,
  gemm: Gemm,
  options: AwqOptions = {},
): Promise<AwqResult> {
  for (const { label, shape } of weights) {
    invariant(shape.length === 2 && shape[0] === moments.rows, `${label} is not a matrix of ${moments.rows} inputs`);
  }
  if (!Array.from(meanAbs).some((mean) => mean >= DEAD)) {
    throw new MambacError(
      "awq/no-samples",
      `${weights[0]?.label}: calibration saw no input other than zero, so AWQ has nothing to go by; ` +
        "calibrate with text that reaches this layer, or round it to nearest",
      EXIT.calibration,
    );
  }
  const points = options.points ?? 20;
  const trials: { beta: number; scales: Float64Array; error: number }[] = [];
  for (let i = 0; i < points; i++) {
    const beta = i / points;
    const scales = awqScales(meanAbs, beta);
    let error = 0;
    for (const weight of weights) {
      const rounded = dequantize(roundToNearest({ ...weight, data: scaledRows(weight, scales) }, scheme));
      error += sum(await columnErrors({ weight: weight.data, rounded, divisor: scales }, moments, gemm));
    }
    trials.push({ beta, scales, error });
  }
  const best = trials.reduce((a, b) => (b.error < a.error ? b : a));
  const results: { quantized: Quantized; error: number }[] = [];
  for (const weight of weights) {
    results.push(await clipped(weight, best.scales, moments, scheme, gemm, options.clipSteps ?? 20));
  }
  return {
    scales: best.scales,
    beta: best.beta,
    quantized: results.map(({ quantized }) => quantized),
    errors: {
      nearest: trials[0]!.error,
      scaled: best.error,
      clipped: results.reduce((total, { error }) => total + error, 0),
    },
  };
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

/** Rounds diag(scales) W with the share of each scale's range that has the least error of outputs. */
async function clipped(
  weight: Weight,
  scales: Float64Array,
  moments: Matrix,
  scheme: WeightScheme,
  gemm: Gemm,
  steps: number,
): Promise<{ quantized: Quantized; error: number }> {
  const scaled: Weight = { ...weight, data: scaledRows(weight, scales) };
  const errorsOf = (quantized: Quantized): Promise<Float64Array> => {
    const rounded = dequantize(quantized);
    return errorsByScale({ weight: weight.data, rounded, divisor: scales }, moments, scheme, gemm);
  };
  const totalOf = async (quantized: Quantized): Promise<number> =>
    sum(await columnErrors({ weight: weight.data, rounded: dequantize(quantized), divisor: scales }, moments, gemm));
  const nearest = roundToNearest(scaled, scheme);
  const unclipped = { quantized: nearest, error: await totalOf(nearest) };
  if (steps === 0 || !isSearchable(scheme)) return unclipped;
  const full = rangesOf(scaled, scaleLayout(weight.shape, scheme.granularity));
  const shares = new Float64Array(full.low.length).fill(1);
  const best = await errorsOf(quantize(scaled.data, weight.shape, gridOfRanges(full, scheme)));
  for (let step = 1; step < steps; step++) {
    const share = 1 - (0.5 * step) / steps;
    const errors = await errorsOf(quantize(scaled.data, weight.shape, gridOfRanges(shrunk(full, share), scheme)));
    for (let i = 0; i < errors.length; i++) {
      if (errors[i]! >= best[i]!) continue;
      best[i] = errors[i]!;
      shares[i] = share;
    }
  }
  const quantized = quantize(scaled.data, weight.shape, gridOfRanges(shrunk(full, shares), scheme));
  const error = await totalOf(quantized);
  // Groups are searched apart, and their errors may add up worse than alone.
  return error < unclipped.error ? { quantized, error } : unclipped;
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
