/** Scores of the next token, and where they lie. */

import { float16ToNumber, type Tensor, toNumbers } from "../ir/tensor.js";
import { invariant } from "../support/errors.js";

/** Scores of the next token: `data` is [batch, length, vocabulary], row-major. */
export interface Logits {
  readonly batch: number;
  readonly length: number;
  readonly vocabulary: number;
  readonly data: Float32Array;
}

/** The row of one slot and position (default: the last). A view, not a copy. */
export function logitsRow(logits: Logits, slot: number = 0, position: number = logits.length - 1): Float32Array {
  const start = (slot * logits.length + position) * logits.vocabulary;
  return logits.data.subarray(start, start + logits.vocabulary);
}

/** Logarithm of the sum of exponentials of a row, its best index, and whether all of it is finite. */
export function summarise(row: Float32Array): {
  readonly logSum: number;
  readonly best: number;
  readonly finite: boolean;
} {
  let best = 0;
  let top = row[0] ?? Number.NaN;
  let finite = true;
  let at = 0;
  for (const value of row) {
    if (!Number.isFinite(value)) finite = false;
    if (value > top) [top, best] = [value, at];
    at += 1;
  }
  let sum = 0;
  for (const value of row) sum += Math.exp(value - top);
  return { logSum: top + Math.log(sum), best, finite };
}

/** Kullback-Leibler divergence of the distribution of `actual` from that of `expected`, in bits, from what `summarise` says of both. */
export function klBits(
  expected: Float32Array,
  expectedLogSum: number,
  actual: Float32Array,
  actualLogSum: number,
): number {
  let kl = 0;
  let at = 0;
  for (const score of expected) {
    const logP = score - expectedLogSum;
    const p = Math.exp(logP);
    if (p > 0) kl += p * (logP - ((actual[at] ?? Number.NaN) - actualLogSum));
    at += 1;
  }
  return kl / Math.LN2;
}

/** Elements of a float tensor as float32. */
export function toFloats(tensor: Tensor): Float32Array {
  if (tensor.dtype === "f32") return new Float32Array(tensor.bytes().slice().buffer);
  if (tensor.dtype === "f16") {
    const bits = new Uint16Array(tensor.bytes().slice().buffer);
    return Float32Array.from(bits, float16ToNumber);
  }
  return Float32Array.from(toNumbers(tensor));
}

/** Joins logits of consecutive calls. */
export function concatenate(parts: readonly Logits[]): Logits {
  const [first] = parts;
  invariant(first, "nothing to join");
  const { batch, vocabulary } = first;
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const data = new Float32Array(batch * length * vocabulary);
  let start = 0;
  for (const part of parts) {
    for (let b = 0; b < batch; b++) {
      const rows = part.data.subarray(b * part.length * vocabulary, (b + 1) * part.length * vocabulary);
      data.set(rows, (b * length + start) * vocabulary);
    }
    start += part.length;
  }
  return { batch, length, vocabulary, data };
}
