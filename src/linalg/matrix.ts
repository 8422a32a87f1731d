/** Dense row-major matrices, and the product that everything heavy goes through. */

import { invariant } from "../support/errors.js";

export type FloatArray = Float32Array | Float64Array;

/** Element (i, j) is `data[i * cols + j]`. */
export interface Matrix<T extends FloatArray = Float64Array> {
  readonly rows: number;
  readonly cols: number;
  readonly data: T;
}

export interface GemmOptions {
  readonly transposeA?: boolean;
  readonly transposeB?: boolean;
}

/**
 * op(A) op(B), where op transposes as asked. It is handed in from outside, because a loop in JavaScript is 30 to 60 times
 * slower than the matrix kernels of the runtime. Operands are read before the promise settles and never written.
 */
export type Gemm = <T extends FloatArray>(a: Matrix<T>, b: Matrix<T>, options?: GemmOptions) => Promise<Matrix<T>>;

/** A plain loop in float64: right for small matrices, and where no runtime is at hand. */
export const loopGemm: Gemm = (a, b, options = {}) => {
  const [rows, inner] = options.transposeA === true ? [a.cols, a.rows] : [a.rows, a.cols];
  const cols = options.transposeB === true ? b.rows : b.cols;
  const out =
    a.data.slice(0, 0).constructor === Float32Array ? new Float32Array(rows * cols) : new Float64Array(rows * cols);
  const row = new Float64Array(cols);
  for (let i = 0; i < rows; i++) {
    row.fill(0);
    for (let k = 0; k < inner; k++) {
      const factor = options.transposeA === true ? a.data[k * a.cols + i]! : a.data[i * a.cols + k]!;
      if (factor === 0) continue;
      if (options.transposeB === true) for (let j = 0; j < cols; j++) row[j]! += factor * b.data[j * b.cols + k]!;
      else for (let j = 0; j < cols; j++) row[j]! += factor * b.data[k * b.cols + j]!;
    }
    out.set(row, i * cols);
  }
  return Promise.resolve({ rows, cols, data: out as typeof a.data });
};

/** A matrix over existing numbers. */
export function matrixOf<T extends FloatArray>(rows: number, cols: number, data: T): Matrix<T> {
  invariant(data.length === rows * cols, `matrix [${rows},${cols}] over ${data.length} numbers`);
  return { rows, cols, data };
}

/** A float64 matrix of zeros. */
export function zeros(rows: number, cols: number): Matrix {
  return { rows, cols, data: new Float64Array(rows * cols) };
}

/** The float64 identity. */
export function identity(size: number): Matrix {
  const result = zeros(size, size);
  for (let i = 0; i < size; i++) result.data[i * (size + 1)] = 1;
  return result;
}

/** A copy of rows [top, bottom) and columns [left, right). */
export function block(source: Matrix, top: number, bottom: number, left: number, right: number): Matrix {
  const result = zeros(bottom - top, right - left);
  for (let i = top; i < bottom; i++) {
    result.data.set(source.data.subarray(i * source.cols + left, i * source.cols + right), (i - top) * result.cols);
  }
  return result;
}

/** Overwrites the part of `target` that starts at (top, left) with `source`. */
export function setBlock(target: Matrix, top: number, left: number, source: Matrix): void {
  for (let i = 0; i < source.rows; i++) {
    target.data.set(source.data.subarray(i * source.cols, (i + 1) * source.cols), (top + i) * target.cols + left);
  }
}

/** target[top.., left..] -= source. */
export function subtractBlock(target: Matrix, top: number, left: number, source: Matrix): void {
  const [to, from] = [target.data, source.data];
  for (let i = 0; i < source.rows; i++) {
    const shift = (top + i) * target.cols + left - i * source.cols;
    for (let k = i * source.cols, end = k + source.cols; k < end; k++) to[k + shift]! -= from[k]!;
  }
}

/** The transpose, as a new matrix. */
export function transpose(source: Matrix): Matrix {
  const result = zeros(source.cols, source.rows);
  const [rows, cols] = [source.rows, source.cols];
  // Square tiles: both sides stay within a few cache lines.
  const tile = 32;
  for (let top = 0; top < rows; top += tile) {
    for (let left = 0; left < cols; left += tile) {
      for (let i = top; i < Math.min(top + tile, rows); i++) {
        for (let j = left; j < Math.min(left + tile, cols); j++) result.data[j * rows + i] = source.data[i * cols + j]!;
      }
    }
  }
  return result;
}
