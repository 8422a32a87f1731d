/**
 * Integer grids: choosing scales and zero points, quantizing, dequantizing. The arithmetic is that of ONNX
 * QuantizeLinear and DequantizeLinear in float32: q = clamp(round_half_even(x / s) + z), x^ = (q - z) s.
 */

import { float16ToNumber, numberToFloat16 } from "../ir/tensor.js";
import { elementCount } from "../ir/types.js";
import { invariant } from "../support/errors.js";
import type { CodeRoom } from "./code-room.js";
import { clippedRanges } from "./mse-clip.js";
import { codeRange, exactStep, type Ranges, rangesOf, type Weight } from "./ranges.js";
import { ROUND, roundingLoops } from "./rounding-loops.js";
import { scaleLayout } from "./scale-layout.js";
import type { Bits, Granularity, WeightScheme } from "./scheme.js";

export interface Grid {
  readonly bits: Bits;
  readonly granularity: Granularity;
  readonly scaleType: "f32" | "f16";
  /** One a scale of the layout, positive. */
  readonly scales: Float32Array;
  /** Null for symmetric grids: zero is code 0 and codes are signed. */
  readonly zeroPoints: Uint8Array | null;
}

/** A quantized tensor, one code an element: Int8Array for symmetric grids, Uint8Array for others. */
export interface Quantized extends Grid {
  readonly shape: readonly number[];
  readonly codes: Int8Array | Uint8Array;
}

/** Smallest positive normal float32: below it, a scale would lose its digits. */
const MIN_SCALE = 2 ** -126;
const MIN_HALF_SCALE = 2 ** -24;
const MAX_HALF_SCALE = 65504;

/** The grid of a weight. Throws `quant/not-finite` when the weight holds NaN or infinity. */
export function chooseGrid(weight: Weight, scheme: WeightScheme): Grid {
  const layout = scaleLayout(weight.shape, scheme.granularity);
  const full = rangesOf(weight, layout);
  return gridOfRanges(
    scheme.clip.kind === "none" ? full : clippedRanges(weight, layout, full, scheme, scheme.clip),
    scheme,
  );
}

/** Scales and zero points of ranges. Where a range is empty the scale is 1, so that zeros stay zeros. */
export function gridOfRanges(
  ranges: Ranges,
  scheme: Pick<WeightScheme, "bits" | "granularity" | "zero" | "scaleType">,
): Grid {
  const count = ranges.low.length;
  const scales = new Float32Array(count);
  const zeroPoints = scheme.zero.kind === "symmetric" ? null : new Uint8Array(count);
  const round = scheme.scaleType === "f32" ? roundScale : roundHalfScale;
  for (let i = 0; i < count; i++) {
    const scale = round(exactStep(ranges.low[i]!, ranges.high[i]!, scheme.bits, scheme.zero));
    scales[i] = scale;
    if (zeroPoints !== null) zeroPoints[i] = zeroPoint(ranges.low[i]!, scale, scheme.bits);
  }
  const { bits, granularity, scaleType } = scheme;
  return { bits, granularity, scaleType, scales, zeroPoints };
}

/** Code of zero on an asymmetric grid that starts at `low`. */
export function zeroPoint(low: number, scale: number, bits: Bits): number {
  return Math.min(Math.fround(-low / scale) + ROUND - ROUND, (1 << bits) - 1);
}

function roundScale(step: number): number {
  return step === 0 ? 1 : Math.max(Math.fround(step), MIN_SCALE);
}

function roundHalfScale(step: number): number {
  if (step === 0) return 1;
  return Math.min(Math.max(float16ToNumber(numberToFloat16(step)), MIN_HALF_SCALE), MAX_HALF_SCALE);
}

/** Codes of the values on a grid of the same shape; they are in the room where there is one. */
export function quantize(
  data: Float32Array,
  shape: readonly number[],
  grid: Grid,
  room: CodeRoom | null = null,
): Quantized {
  const { scales, zeroPoints, bits } = grid;
  const layout = scaleLayout(shape, grid.granularity);
  invariant(data.length === elementCount(shape) && scales.length === layout.count, "the grid is for another shape");
  const [lowest, highest] = codeRange(bits, zeroPoints === null ? "symmetric" : "asymmetric");
  // Bytes are written through one kind of view, signed or not: the low eight bits are the same.
  const codes =
    room === null ? new Int8Array(data.length) : new Int8Array(room.take("codes", data.length).buffer, 0, data.length);
  roundingLoops().round(data, layout, { scales, zeroPoints, lowest, highest }, codes);
  return { ...grid, shape, codes: zeroPoints === null ? codes : new Uint8Array(codes.buffer, 0, codes.length) };
}

/** The values that the codes stand for. */
export function dequantize(quantized: Quantized): Float32Array {
  const { scales, zeroPoints, codes } = quantized;
  const bytes = new Int8Array(codes.buffer, codes.byteOffset, codes.length);
  const values = new Float32Array(codes.length);
  scaleLayout(quantized.shape, quantized.granularity).forEachRun((start, length, scale, step) => {
    for (let i = 0; i < length; i++) {
      const at = scale + step * i;
      const code = zeroPoints === null ? bytes[start + i]! : (bytes[start + i]! & 255) - zeroPoints[at]!;
      values[start + i] = code * scales[at]!;
    }
  });
  return values;
}

/** One value on a grid, in the same arithmetic as whole tensors: its code. */
export function codeOf(value: number, scale: number, zero: number, lowest: number, highest: number): number {
  const ratio = Math.fround(value / scale);
  const [low, high] = [lowest - zero, highest - zero];
  return (ratio < low ? low : ratio > high ? high : ratio) + ROUND - ROUND + zero;
}
