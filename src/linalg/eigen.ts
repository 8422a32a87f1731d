/**
 * Symmetric eigendecomposition: Householder reduction, then implicit QL with Wilkinson's shift.
 * Source: G. Golub, C. Van Loan, "Matrix Computations", 4th ed., 8.3.
 */

import { invariant, MambacError } from "../support/errors.js";
import { type Gemm, type Matrix, transpose, zeros } from "./matrix.js";
import { orthogonalFactor, tridiagonalise } from "./tridiagonal.js";

export interface Eigen {
  /** [n], descending. */
  readonly values: Float64Array;
  /** [n, n]; column j belongs to value j and has unit length, its largest |entry| (the first such) positive. */
  readonly vectors: Matrix;
}

/** Sweeps allowed for one eigenvalue; the average is below two. */
const MAX_SWEEPS = 60;

/**
 * A = V diag(values) Vᵀ of a symmetric matrix [n, n], of which the upper triangle is read. Order and signs are fixed, so
 * equal input gives equal output. Throws `linalg/not-finite` when entries are NaN or infinite.
 */
export async function symmetricEigen(matrix: Matrix, gemm: Gemm): Promise<Eigen> {
  const n = matrix.rows;
  invariant(matrix.cols === n, `a square matrix is needed, not [${n},${matrix.cols}]`);
  if (!matrix.data.every(Number.isFinite)) {
    throw new MambacError(
      "linalg/not-finite",
      `a symmetric matrix [${n},${n}] has entries that are not finite numbers; check the statistics it was made from`,
    );
  }
  const reduced = tridiagonalise({ rows: n, cols: n, data: matrix.data.slice() });
  const rows = transpose(await orthogonalFactor(reduced, gemm));
  const { diagonal } = reduced;
  implicitQl(diagonal, reduced.offDiagonal, new Rotations(rows));
  const order = Array.from(diagonal, (_, i) => i).sort((i, j) => diagonal[j]! - diagonal[i]! || i - j);
  const sorted = zeros(n, n);
  order.forEach((from, to) => sorted.data.set(rows.data.subarray(from * n, (from + 1) * n), to * n));
  for (let i = 0; i < n; i++) fixSign(sorted.data.subarray(i * n, (i + 1) * n));
  return { values: Float64Array.from(order, (i) => diagonal[i]!), vectors: transpose(sorted) };
}

function fixSign(vector: Float64Array): void {
  let largest = 0;
  for (const value of vector) if (Math.abs(value) > Math.abs(largest)) largest = value;
  if (largest < 0) for (let i = 0; i < vector.length; i++) vector[i] = -vector[i]!;
}

/** Plane rotations of neighbouring rows, put off and then applied strip by strip, so that a strip stays in the cache. */
class Rotations {
  readonly #rows: Matrix;
  readonly #index: Int32Array = new Int32Array(1 << 16);
  readonly #cosine: Float64Array = new Float64Array(1 << 16);
  readonly #sine: Float64Array = new Float64Array(1 << 16);
  #count = 0;

  constructor(rows: Matrix) {
    this.#rows = rows;
  }

  /** (row i, row i+1) -> (c row_i - s row_{i+1}, s row_i + c row_{i+1}). */
  push(index: number, cosine: number, sine: number): void {
    if (this.#count === this.#index.length) this.flush();
    this.#index[this.#count] = index;
    this.#cosine[this.#count] = cosine;
    this.#sine[this.#count] = sine;
    this.#count += 1;
  }

  flush(): void {
    const { cols, data } = this.#rows;
    const strip = 64;
    for (let left = 0; left < cols; left += strip) {
      const width = Math.min(strip, cols - left);
      for (let r = 0; r < this.#count; r++) {
        const [c, s] = [this.#cosine[r]!, this.#sine[r]!];
        const upper = this.#index[r]! * cols + left;
        const lower = upper + cols;
        for (let j = 0; j < width; j++) {
          const a = data[upper + j]!;
          const b = data[lower + j]!;
          data[upper + j] = c * a - s * b;
          data[lower + j] = s * a + c * b;
        }
      }
    }
    this.#count = 0;
  }
}

/** Diagonalises (d, e) in place: d becomes the eigenvalues, unsorted; rotations go to `rotations`. */
function implicitQl(d: Float64Array, e: Float64Array, rotations: Rotations): void {
  const n = d.length;
  // Couplings are judged against the whole matrix: between two eigenvalues near zero none would ever be small.
  let norm = 0;
  for (let i = 0; i < n; i++) norm = Math.max(norm, Math.abs(d[i]!) + Math.abs(e[i] ?? 0));
  for (let l = 0; l < n; l++) {
    for (let sweeps = 0; ; sweeps++) {
      const m = firstSplit(d, e, l, norm);
      if (m === l) break;
      invariant(sweeps < MAX_SWEEPS, `eigenvalue ${l} of ${n} does not converge`);
      sweep(d, e, l, m, rotations);
    }
  }
  rotations.flush();
}

/** The first m >= l whose coupling to m + 1 is negligible. */
function firstSplit(d: Float64Array, e: Float64Array, l: number, norm: number): number {
  let m = l;
  for (; m < d.length - 1; m++) {
    if (Math.abs(e[m]!) <= Number.EPSILON * norm) break;
  }
  return m;
}

function sweep(d: Float64Array, e: Float64Array, l: number, m: number, rotations: Rotations): void {
  const ratio = (d[l + 1]! - d[l]!) / (2 * e[l]!);
  const root = Math.hypot(ratio, 1);
  let g = d[m]! - d[l]! + e[l]! / (ratio + (ratio >= 0 ? root : -root));
  let [s, c, p] = [1, 1, 0];
  for (let i = m - 1; i >= l; i--) {
    const f = s * e[i]!;
    const b = c * e[i]!;
    const r = Math.hypot(f, g);
    e[i + 1] = r;
    if (r === 0) {
      // The matrix has split on the way: what is left of the sweep starts anew.
      d[i + 1]! -= p;
      e[m] = 0;
      return;
    }
    s = f / r;
    c = g / r;
    g = d[i + 1]! - p;
    const t = (d[i]! - g) * s + 2 * c * b;
    p = s * t;
    d[i + 1] = g + p;
    g = c * t - b;
    rotations.push(i, c, s);
  }
  d[l]! -= p;
  e[l] = g;
  e[m] = 0;
}
