/** How far one array is from another, and how heavy its tails are. */

import { invariant } from "../support/errors.js";

/** ||a - b|| / ||a||; 0 when both are zero, infinite when only `a` is. */
export function relativeL2(expected: ArrayLike<number>, actual: ArrayLike<number>): number {
  const { signal, noise } = energies(expected, actual);
  return noise === 0 ? 0 : Math.sqrt(noise / signal);
}

/** Signal to quantization noise in decibels: 10 log10(||a||^2 / ||a - b||^2); infinite when nothing differs. */
export function sqnr(expected: ArrayLike<number>, actual: ArrayLike<number>): number {
  const { signal, noise } = energies(expected, actual);
  return noise === 0 ? Number.POSITIVE_INFINITY : 10 * Math.log10(signal / noise);
}

function energies(expected: ArrayLike<number>, actual: ArrayLike<number>): { signal: number; noise: number } {
  invariant(expected.length === actual.length, `${expected.length} numbers against ${actual.length}`);
  let [signal, noise] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    const difference = expected[i]! - actual[i]!;
    signal += expected[i]! ** 2;
    noise += difference ** 2;
  }
  return { signal, noise };
}

/** Fourth central moment over the squared variance: 3 for normal numbers, more with heavy tails. NaN for a constant. */
export function kurtosis(values: ArrayLike<number>): number {
  let mean = 0;
  for (let i = 0; i < values.length; i++) mean += values[i]! / values.length;
  let [second, fourth] = [0, 0];
  for (let i = 0; i < values.length; i++) {
    const square = (values[i]! - mean) ** 2;
    second += square;
    fourth += square * square;
  }
  return second === 0 ? Number.NaN : (values.length * fourth) / (second * second);
}
