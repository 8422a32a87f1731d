/**
 * 8-bit codes on a tanh curve, after the PTQ-SSM reference code: fine steps near the mean, coarse ones far out. Values
 * beyond 2.65 standard deviations are lost, because the codes end at atanh(0.99). For completeness; no paper backs it.
 */

import type { Quantized } from "./grid.js";
import type { Weight } from "./ranges.js";
import { roundToNearest } from "./round-nearest.js";

/** Deviations that are kept before the curve. */
const CLIP = 3;

/** Largest |tanh| that is inverted. */
const MAX_TANH = 0.99;

/** Below this standard deviation the curve is undefined. */
const MIN_DEVIATION = 1e-8;

export type TanhQuantized =
  /** Value = table[code], codes 0 .. 255 standing for -128 .. 127. */
  | {
      readonly kind: "table";
      readonly shape: readonly number[];
      readonly codes: Uint8Array;
      readonly table: Float32Array;
    }
  /** The fallback for constant tensors and single numbers: plain symmetric 8 bits. */
  | { readonly kind: "affine"; readonly quantized: Quantized };

/** Rounds a weight on the curve of its mean and standard deviation. Throws `quant/not-finite` for NaN or infinity. */
export function roundTanh(weight: Weight): TanhQuantized {
  const affine = roundToNearest(weight, {
    bits: 8,
    granularity: { kind: "tensor" },
    zero: { kind: "symmetric", step: "peak" },
    clip: { kind: "none" },
    scaleType: "f32",
  });
  const { data, shape } = weight;
  const { mean, deviation } = moments(data);
  if (data.length < 2 || deviation < MIN_DEVIATION) return { kind: "affine", quantized: affine };
  let peak = 0;
  for (let i = 0; i < data.length; i++) peak = Math.max(peak, Math.abs(data[i]! - mean));
  const gain = 127 / Math.tanh(Math.min(peak / deviation, CLIP));
  const codes = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i++) {
    const normal = Math.min(Math.max((data[i]! - mean) / deviation, -CLIP), CLIP);
    codes[i] = 128 + Math.round(gain * Math.tanh(normal));
  }
  const table = Float32Array.from({ length: 256 }, (_, code) => {
    const tanh = Math.min(Math.max((code - 128) / gain, -MAX_TANH), MAX_TANH);
    return deviation * Math.atanh(tanh) + mean;
  });
  return { kind: "table", shape, codes, table };
}

/** Mean and standard deviation (of a sample, n - 1). */
function moments(data: Float32Array): { mean: number; deviation: number } {
  let sum = 0;
  for (let i = 0; i < data.length; i++) sum += data[i]!;
  const mean = sum / data.length;
  let squares = 0;
  for (let i = 0; i < data.length; i++) squares += (data[i]! - mean) ** 2;
  return { mean, deviation: Math.sqrt(squares / (data.length - 1)) };
}

/** The values that the codes stand for. */
export function dequantizeTanh(quantized: Extract<TanhQuantized, { kind: "table" }>): Float32Array {
  const { codes, table } = quantized;
  const values = new Float32Array(codes.length);
  for (let i = 0; i < codes.length; i++) values[i] = table[codes[i]!]!;
  return values;
}
