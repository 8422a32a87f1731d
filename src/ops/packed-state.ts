/**
 * The packed state formats H8 and H4 in float64: what kernels and function bodies are measured against.
 *
 * One head is a matrix h [P, N]. Its scale is an outer product of a channel scale Sc [P] and a state scale Ss [N], both
 * halves, rounded before use ("decoupled scales", Q-Mamba).
 */

import { float16ToNumber, numberToFloat16, roundHalfEven } from "../ir/tensor.js";
import { maxCode, packedHeadBytes, type StateScale } from "./names.js";

/** Scales that are worked out from the state at each rounding, and stored with it. */
export type MeasuredScale = Exclude<StateScale, "static">;

/** Smallest channel scale: the smallest normal half, so that no scale is subnormal or zero. */
export const MIN_CHANNEL_SCALE: number = 2 ** -14;
/** Largest finite half. */
export const MAX_HALF = 65504;

/** Nearest half as a number. */
export function roundToHalf(value: number): number {
  return float16ToNumber(numberToFloat16(value));
}

/** Packs one head h [headDim, dState] at `offset` of `out`; returns the bytes written. */
export function packHead(
  h: ArrayLike<number>,
  headDim: number,
  dState: number,
  format: "h8" | "h4",
  scale: MeasuredScale,
  out: Uint8Array,
  offset: number = 0,
): number {
  const qmax = maxCode(format);
  const channel = new Float64Array(headDim);
  const state = new Float64Array(dState);
  for (let p = 0; p < headDim; p++) {
    let sum = 0;
    let max = 0;
    for (let n = 0; n < dState; n++) {
      const magnitude = Math.abs(h[p * dState + n]!);
      sum += magnitude;
      if (magnitude > max) max = magnitude;
    }
    const raw = scale === "dsq" ? Math.sqrt(sum / dState) : max;
    channel[p] = roundToHalf(Math.min(Math.max(raw, MIN_CHANNEL_SCALE), MAX_HALF));
    for (let n = 0; n < dState; n++) {
      const ratio = Math.abs(h[p * dState + n]!) / channel[p]!;
      if (ratio > state[n]!) state[n] = ratio;
    }
  }
  for (let n = 0; n < dState; n++) state[n] = roundToHalf(Math.min(state[n]!, MAX_HALF));
  let at = offset + packCodes(h, headDim, dState, format, (p, n) => (channel[p]! * state[n]!) / qmax, out, offset);
  for (const half of [channel, state]) {
    for (const value of half) {
      const bits = numberToFloat16(value);
      out[at++] = bits & 255;
      out[at++] = bits >> 8;
    }
  }
  return at - offset;
}

/** Writes the codes of a head h [headDim, dState] with these steps at `offset` of `out`; returns the bytes written. */
export function packCodes(
  h: ArrayLike<number>,
  headDim: number,
  dState: number,
  format: "h8" | "h4",
  stepOf: (p: number, n: number) => number,
  out: Uint8Array,
  offset: number,
): number {
  const qmax = maxCode(format);
  let at = offset;
  for (let p = 0; p < headDim; p++) {
    for (let n = 0; n < dState; n++) {
      const step = stepOf(p, n);
      const exact = step > 0 ? roundHalfEven(h[p * dState + n]! / step) : 0;
      const code = Math.min(Math.max(exact, -qmax), qmax);
      if (format === "h8") out[at++] = code & 255;
      else if (n % 2 === 0) out[at] = code & 15;
      else {
        out[at] = out[at]! | ((code & 15) << 4);
        at += 1;
      }
    }
  }
  return at - offset;
}

/** Decodes one packed head at `offset` into `out` [headDim, dState] at `outOffset`. */
export function unpackHead(
  bytes: Uint8Array,
  headDim: number,
  dState: number,
  format: "h8" | "h4",
  out: Float64Array,
  outOffset: number = 0,
  offset: number = 0,
): void {
  const qmax = maxCode(format);
  const count = headDim * dState;
  const scales = offset + (format === "h8" ? count : count / 2);
  const half = (index: number): number =>
    float16ToNumber(bytes[scales + 2 * index]! | (bytes[scales + 2 * index + 1]! << 8));
  const state = Float64Array.from({ length: dState }, (_, n) => half(headDim + n) / qmax);
  for (let p = 0; p < headDim; p++) {
    const channel = half(p);
    for (let n = 0; n < dState; n++) {
      const index = p * dState + n;
      out[outOffset + index] = codeAt(bytes, offset, index, format) * channel * state[n]!;
    }
  }
}

/** The code of value `index` of a head at `offset`. */
export function codeAt(bytes: Uint8Array, offset: number, index: number, format: "h8" | "h4"): number {
  if (format === "h8") return (bytes[offset + index]! << 24) >> 24;
  const nibble = (bytes[offset + (index >> 1)]! >> (4 * (index & 1))) & 15;
  return (nibble << 28) >> 28;
}

/** Packs `heads` heads h [heads, headDim, dState] into [heads, bytes]. */
export function packState(
  h: ArrayLike<number>,
  dims: { readonly heads: number; readonly headDim: number; readonly dState: number },
  format: "h8" | "h4",
  scale: MeasuredScale,
): Uint8Array {
  const { heads, headDim, dState } = dims;
  const stride = packedHeadBytes(format, headDim, dState);
  const out = new Uint8Array(heads * stride);
  const head = new Float64Array(headDim * dState);
  for (let index = 0; index < heads; index++) {
    for (let i = 0; i < head.length; i++) head[i] = h[index * head.length + i]!;
    packHead(head, headDim, dState, format, scale, out, index * stride);
  }
  return out;
}

/** Decodes [heads, bytes] to h [heads, headDim, dState]. */
export function unpackState(
  bytes: Uint8Array,
  dims: { readonly heads: number; readonly headDim: number; readonly dState: number },
  format: "h8" | "h4",
): Float64Array {
  const { heads, headDim, dState } = dims;
  const stride = packedHeadBytes(format, headDim, dState);
  const out = new Float64Array(heads * headDim * dState);
  for (let index = 0; index < heads; index++) {
    unpackHead(bytes, headDim, dState, format, out, index * headDim * dState, index * stride);
  }
  return out;
}
