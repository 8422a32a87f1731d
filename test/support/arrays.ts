/** Seeded numbers and distances between arrays. */

import { type Matrix, matrixOf } from "../../src/linalg/matrix.js";
import { Random } from "../../src/support/random.js";

/** Standard normal numbers. */
export function normals(count: number, seed: number): Float64Array {
  const random = new Random(seed);
  return Float64Array.from({ length: count }, () => random.normal());
}

/** A standard normal matrix. */
export function normalMatrix(rows: number, cols: number, seed: number): Matrix {
  return matrixOf(rows, cols, normals(rows * cols, seed));
}

/** Largest |a - b|; NaN when any difference is NaN. */
export function maxDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) throw new Error(`${a.length} against ${b.length} numbers`);
  let largest = 0;
  for (let i = 0; i < a.length; i++) largest = Math.max(largest, Math.abs((a[i] ?? 0) - (b[i] ?? 0)));
  return largest;
}

/** Largest |a|. */
export function maxAbs(a: ArrayLike<number>): number {
  return maxDifference(a, new Float64Array(a.length));
}
