/**
 * SmoothQuant: factors s that move outliers from activations into weights, (x / s)(diag(s) W) = x W.
 * Source: G. Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large language models"
 * (2023).
 */

import type { Gemm, Matrix } from "../linalg/matrix.js";
import { invariant } from "../support/errors.js";
import { dequantize } from "./grid.js";
import { columnErrors, outputError } from "./output-error.js";
import type { Weight } from "./ranges.js";
import { roundToNearest } from "./round-nearest.js";
import type { Bits, WeightScheme } from "./scheme.js";

export interface SmoothingBounds {
  readonly smallest: number;
  readonly largest: number;
}

const BOUNDS: SmoothingBounds = { smallest: 1e-5, largest: 1e4 };

/** Channels or weight rows below this are left alone: a factor would only inflate the other side. */
const DEAD = 1e-8;

/** Largest |W_kn| of each input k over weights [K, N_i] that read the same activation. */
export function inputPeaks(weights: readonly Weight[]): Float64Array {
  const peaks = new Float64Array(weights[0]?.shape[0] ?? 0);
  for (const { label, shape, data } of weights) {
    invariant(shape.length === 2 && shape[0] === peaks.length, `${label} is not a matrix of ${peaks.length} inputs`);
    const outputs = shape[1]!;
    for (let k = 0; k < peaks.length; k++) {
      let peak = peaks[k]!;
      for (let i = k * outputs; i < (k + 1) * outputs; i++) peak = Math.max(peak, Math.abs(data[i]!));
      peaks[k] = peak;
    }
  }
  return peaks;
}

/** s_k = activation_k^alpha / weight_k^(1 - alpha) within bounds; 1 where either is dead. */
export function smoothingScales(
  activation: ArrayLike<number>,
  weight: ArrayLike<number>,
  alpha: number,
  bounds: SmoothingBounds = BOUNDS,
): Float64Array {
  invariant(activation.length === weight.length, `${activation.length} channels for ${weight.length} inputs`);
  return Float64Array.from(activation, (peak, k) => {
    if (peak < DEAD || weight[k]! < DEAD) return 1;
    return Math.min(Math.max(peak ** alpha / weight[k]! ** (1 - alpha), bounds.smallest), bounds.largest);
  });
}

/** A weight [K, N] that reads the activation, and how it will be rounded; null: not at all. */
export interface Reader {
  readonly weight: Weight;
  readonly scheme: WeightScheme | null;
}

export interface SmoothingSearch {
  /** All weights that read the activation. */
  readonly weights: readonly Reader[];
  /** Largest magnitude of each channel over all calibration data. */
  readonly peaks: ArrayLike<number>;
  /** Mean of x xᵀ [K, K], both triangles. */
  readonly moments: Matrix;
  /** Bits of the activation with one static scale; null: it stays float. */
  readonly activationBits: Bits | null;
  readonly alphas: readonly number[];
  readonly bounds?: SmoothingBounds;
}

export interface SmoothingChoice {
  /** Null when no smoothing was best. */
  readonly alpha: number | null;
  readonly scales: Float64Array;
  /** Squared error of the quantized outputs over their squared size, for no smoothing (null) and each alpha. */
  readonly trials: readonly { readonly alpha: number | null; readonly error: number }[];
}

/**
 * The alpha with the least expected error of the outputs when both sides are rounded to nearest; of equals, the first,
 * and no smoothing before any. The error of weights is exact on the moments; that of the activation is taken as noise of
 * step^2 / 12 that is independent from channel to channel, and never more than the channel itself (small channels round
 * to zero).
 */
export async function searchSmoothing(search: SmoothingSearch, gemm: Gemm): Promise<SmoothingChoice> {
  const { weights, peaks, moments, alphas, bounds = BOUNDS } = search;
  const inputs = inputPeaks(weights.map(({ weight }) => weight));
  invariant(moments.rows === inputs.length, `moments of ${moments.rows} channels for ${inputs.length} inputs`);
  const candidates = [
    { alpha: null, scales: new Float64Array(inputs.length).fill(1) },
    ...alphas.map((alpha) => ({ alpha, scales: smoothingScales(peaks, inputs, alpha, bounds) })),
  ];
  let size = 0;
  for (const { weight } of weights)
    size += await outputError(new Float32Array(weight.data.length), weight.data, moments, gemm);
  const trials: { alpha: number | null; error: number }[] = [];
  for (const { alpha, scales } of candidates) {
    const error = (await weightErrors(weights, scales, moments, gemm)) + activationError(search, scales);
    trials.push({ alpha, error: size === 0 ? 0 : error / size });
  }
  let best = 0;
  for (let i = 1; i < trials.length; i++) if (trials[i]!.error < trials[best]!.error) best = i;
  return { alpha: candidates[best]!.alpha, scales: candidates[best]!.scales, trials };
}

/** Mean squared error of all outputs together when diag(scales) W is rounded to nearest and x / scales is exact. */
export async function weightErrors(
  weights: readonly Reader[],
  scales: Float64Array,
  moments: Matrix,
  gemm: Gemm,
): Promise<number> {
  let total = 0;
  for (const { weight, scheme } of weights) {
    if (scheme === null) continue;
    const rounded = dequantize(roundToNearest({ ...weight, data: scaledRows(weight, scales) }, scheme));
    const errors = await columnErrors({ weight: weight.data, rounded, divisor: scales }, moments, gemm);
    total += errors.reduce((sum, error) => sum + error, 0);
  }
  return total;
}

/** Expected squared error of all outputs together when x / scales is rounded and weights are exact. */
function activationError({ weights, peaks, moments, activationBits }: SmoothingSearch, scales: Float64Array): number {
  if (activationBits === null) return 0;
  let peak = 0;
  for (let k = 0; k < scales.length; k++) peak = Math.max(peak, peaks[k]! / scales[k]!);
  const noise = (peak / (2 ** (activationBits - 1) - 1)) ** 2 / 12;
  let total = 0;
  for (const { weight } of weights) {
    const outputs = weight.shape[1]!;
    for (let k = 0; k < scales.length; k++) {
      let squares = 0;
      for (let i = k * outputs; i < (k + 1) * outputs; i++) squares += weight.data[i]! ** 2;
      total += Math.min(noise * scales[k]! ** 2, moments.data[k * (moments.cols + 1)]!) * squares;
    }
  }
  return total;
}

/** diag(scales) W. */
export function scaledRows({ shape, data }: Weight, scales: Float64Array): Float32Array {
  const outputs = shape[1]!;
  const result = new Float32Array(data.length);
  for (let k = 0; k < scales.length; k++) {
    const scale = scales[k]!;
    for (let i = k * outputs; i < (k + 1) * outputs; i++) result[i] = data[i]! * scale;
  }
  return result;
}
