/**
 * Householder reduction of a symmetric matrix to tridiagonal form, A = Q T Qᵀ.
 * Source: G. Golub, C. Van Loan, "Matrix Computations", 4th ed., 8.3.1 and 5.1.7 (compact WY form).
 */

import { block, type Gemm, identity, type Matrix, subtractBlock, zeros } from "./matrix.js";

export interface Tridiagonal {
  /** [n] */
  readonly diagonal: Float64Array;
  /** [n]: entry i couples i and i + 1; the last is 0. */
  readonly offDiagonal: Float64Array;
  /** Row k holds the reflector v_k in columns k + 1 and up: H_k = I - tau_k v vᵀ, Q = H_0 H_1 ... */
  readonly reflectors: Matrix;
  readonly tau: Float64Array;
}

/**
 * Reduces A, reading its upper triangle only and overwriting it with the reflectors. The rank-two update of one step and
 * the matrix-vector product of the next share one pass over the matrix, because memory is what this waits for.
 */
export function tridiagonalise(matrix: Matrix): Tridiagonal {
  const { rows: n, data } = matrix;
  const [diagonal, offDiagonal, tau] = [new Float64Array(n), new Float64Array(n), new Float64Array(n)];
  // The pending update of the trailing matrix: A -= v wᵀ + w vᵀ.
  const [v, w, nextV, p] = [new Float64Array(n), new Float64Array(n), new Float64Array(n), new Float64Array(n)];
  for (let k = 0; k < n; k++) {
    const row = k * n;
    for (let j = k; j < n; j++) data[row + j]! -= v[k]! * w[j]! + w[k]! * v[j]!;
    diagonal[k] = data[row + k]!;
    if (k === n - 1) break;
    const reflection = reflector(data, row + k + 1, row + n);
    offDiagonal[k] = reflection.value;
    tau[k] = reflection.tau;
    for (let j = k + 1; j < n; j++) nextV[j] = data[row + j]!;
    updateAndMultiply(data, n, k + 1, v, w, nextV, p);
    // w = tau (p - (tau/2) (pᵀ v) v)
    let inner = 0;
    for (let j = k + 1; j < n; j++) inner += p[j]! * nextV[j]!;
    const half = (reflection.tau * inner) / 2;
    for (let j = k + 1; j < n; j++) {
      v[j] = nextV[j]!;
      w[j] = reflection.tau * (p[j]! - half * nextV[j]!);
    }
  }
  return { diagonal, offDiagonal, reflectors: matrix, tau };
}

/** Replaces x = data[start, end) by v with v_0 = 1 and (I - tau v vᵀ) x = value e_0. */
function reflector(data: Float64Array, start: number, end: number): { value: number; tau: number } {
  let scale = 0;
  for (let i = start + 1; i < end; i++) scale = Math.max(scale, Math.abs(data[i]!));
  const first = data[start]!;
  data[start] = 1;
  if (scale === 0) return { value: first, tau: 0 };
  scale = Math.max(scale, Math.abs(first));
  let squares = (first / scale) ** 2;
  for (let i = start + 1; i < end; i++) squares += (data[i]! / scale) ** 2;
  const value = (first > 0 ? -1 : 1) * scale * Math.sqrt(squares);
  const pivot = first - value;
  for (let i = start + 1; i < end; i++) data[i]! /= pivot;
  return { value, tau: -pivot / value };
}

/** Trailing matrix from `top`: A -= v wᵀ + w vᵀ, then p = A x, over the upper triangle. */
function updateAndMultiply(
  data: Float64Array,
  n: number,
  top: number,
  v: Float64Array,
  w: Float64Array,
  x: Float64Array,
  p: Float64Array,
): void {
  p.fill(0);
  for (let i = top; i < n; i++) {
    const [row, vi, wi, xi] = [i * n, v[i]!, w[i]!, x[i]!];
    const corner = data[row + i]! - 2 * vi * wi;
    data[row + i] = corner;
    let sum = corner * xi;
    for (let j = i + 1; j < n; j++) {
      const a = data[row + j]! - (vi * w[j]! + wi * v[j]!);
      data[row + j] = a;
      sum += a * x[j]!;
      p[j]! += a * xi;
    }
    p[i]! += sum;
  }
}

/** Reflectors multiplied together at a time. */
const PANEL = 64;

/** Q of a reduction, as a dense matrix. Each panel of reflectors is I - V T Vᵀ, so that the work is products. */
export async function orthogonalFactor({ reflectors, tau }: Tridiagonal, gemm: Gemm): Promise<Matrix> {
  const n = reflectors.rows;
  const q = identity(n);
  const count = Math.max(n - 1, 0);
  for (let start = Math.floor(Math.max(count - 1, 0) / PANEL) * PANEL; start >= 0; start -= PANEL) {
    const end = Math.min(start + PANEL, count);
    if (end <= start) break;
    // Rows of `vt` are the reflectors of the panel; they are zero up to column `start`, like that part of q - I.
    const vt = zeros(end - start, n - start - 1);
    for (let k = start; k < end; k++) {
      vt.data.set(reflectors.data.subarray(k * n + k + 1, (k + 1) * n), (k - start) * vt.cols + k - start);
    }
    const t = triangularFactor(await gemm(vt, vt, { transposeB: true }), tau.subarray(start, end));
    const trailing = block(q, start + 1, n, start + 1, n);
    const projected = await gemm(t, await gemm(vt, trailing));
    subtractBlock(q, start + 1, start + 1, await gemm(vt, projected, { transposeA: true }));
  }
  return q;
}

/** T with H_0 H_1 ... = I - V T Vᵀ, from the Gram matrix of the reflectors. */
function triangularFactor(gram: Matrix, tau: Float64Array): Matrix {
  const size = gram.rows;
  const t = zeros(size, size);
  for (let j = 0; j < size; j++) {
    t.data[j * size + j] = tau[j]!;
    for (let i = 0; i < j; i++) {
      let sum = 0;
      for (let k = i; k < j; k++) sum += t.data[i * size + k]! * gram.data[k * size + j]!;
      t.data[i * size + j] = -tau[j]! * sum;
    }
  }
  return t;
}
