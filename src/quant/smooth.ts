/**
 * SmoothQuant: factors s that move outliers from activations into weights, (x / s)(diag(s) W) = x W.
 * Source: G. Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large language models"
 * (2023).
 */

import { type Gemm, type Matrix, matrixOf } from "../linalg/matrix.js";
import { invariant } from "../support/errors.js";
import { dequantize } from "./grid.js";
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

export interface SmoothingSearch {
  /** All weights [K, N_i] that read the activation. */
  readonly weights: readonly Weight[];
  /** Largest magnitude of each channel over all calibration data. */
  readonly peaks: ArrayLike<number>;
  /** Some rows of the activation [T, K]. */
  readonly samples: Matrix<Float32Array>;
  readonly weightScheme: WeightScheme;
  readonly activation: { readonly bits: Bits; readonly scale: "tensor" | "token" };
  readonly alphas?: readonly number[];
  readonly bounds?: SmoothingBounds;
}

export interface SmoothingChoice {
  /** Null when no smoothing was best. */
  readonly alpha: number | null;
  readonly scales: Float64Array;
  /** Squared error of the quantized outputs over their squared size, for no smoothing (null) and each alpha. */
  readonly trials: readonly { readonly alpha: number | null; readonly error: number }[];
}

const ALPHAS: readonly number[] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8];

/**
 * The alpha with the least error of the outputs on the samples when both sides are rounded to nearest; of equals, the
 * first, and no smoothing before any.
 */
export async function searchSmoothing(search: SmoothingSearch, gemm: Gemm): Promise<SmoothingChoice> {
  const { weights, peaks, samples, alphas = ALPHAS, bounds = BOUNDS } = search;
  const inputs = inputPeaks(weights);
  invariant(samples.cols === inputs.length, `samples of ${samples.cols} channels for ${inputs.length} inputs`);
  const candidates = [
    { alpha: null, scales: new Float64Array(inputs.length).fill(1) },
    ...alphas.map((alpha) => ({ alpha, scales: smoothingScales(peaks, inputs, alpha, bounds) })),
  ];
  const errors = candidates.map(() => 0);
  let size = 0;
  for (const weight of weights) {
    const exact = (await gemm(samples, matrixOf(inputs.length, weight.shape[1]!, weight.data))).data;
    size += squares(exact);
    for (const [i, { scales }] of candidates.entries()) {
      const product = await gemm(roundedSamples(search, scales), roundedWeight(weight, search.weightScheme, scales));
      for (let at = 0; at < exact.length; at++) errors[i]! += (product.data[at]! - exact[at]!) ** 2;
    }
  }
  const trials = candidates.map(({ alpha }, i) => ({ alpha, error: size === 0 ? 0 : errors[i]! / size }));
  let best = 0;
  for (let i = 1; i < trials.length; i++) if (trials[i]!.error < trials[best]!.error) best = i;
  return { alpha: candidates[best]!.alpha, scales: candidates[best]!.scales, trials };
}

function roundedSamples({ samples, activation }: SmoothingSearch, scales: Float64Array): Matrix<Float32Array> {
  const data = new Float32Array(samples.data.length);
  for (let at = 0; at < data.length; at++) data[at] = samples.data[at]! / scales[at % scales.length]!;
  const rounded = roundToNearest(
    { label: "calibration samples", shape: [samples.rows, samples.cols], data },
    {
      bits: activation.bits,
      granularity: activation.scale === "tensor" ? { kind: "tensor" } : { kind: "channel", axis: 0 },
      zero: { kind: "symmetric", step: "peak" },
      clip: { kind: "none" },
      scaleType: "f32",
    },
  );
  return matrixOf(samples.rows, samples.cols, dequantize(rounded));
}

function roundedWeight(weight: Weight, scheme: WeightScheme, scales: Float64Array): Matrix<Float32Array> {
  const data = scaledRows(weight, scales);
  return matrixOf(scales.length, weight.shape[1]!, dequantize(roundToNearest({ ...weight, data }, scheme)));
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

function squares(values: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i]! ** 2;
  return sum;
}
