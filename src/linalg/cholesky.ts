/**
 * Cholesky factors and triangular inverses, blocked: small blocks in JavaScript, everything else as products.
 * All matrices are square, float64, and changed in place.
 */

import { invariant } from "../support/errors.js";
import { block, type Gemm, type Matrix, setBlock, subtractBlock } from "./matrix.js";

/** Rows of the diagonal blocks. */
const BLOCK = 128;

/** Columns of a trailing update done by one product; bounds its memory and skips most of the upper triangle. */
const PANEL = 512;

/** Triangles up to this size are inverted by a loop. */
const SMALL = 64;

/** Why a matrix has no Cholesky factor: its first pivot that is not positive and finite. */
export interface NotPositive {
  readonly kind: "not-positive";
  readonly pivot: number;
  readonly value: number;
}

/**
 * A -> L with A = L Lᵀ; only the lower triangle is read, the strict upper one becomes zero. Where A is not positive
 * definite (or not finite) the result says at which pivot, and the contents are left half done.
 */
export async function cholesky(
  matrix: Matrix,
  gemm: Gemm,
  blockSize: number = BLOCK,
): Promise<{ readonly kind: "factored" } | NotPositive> {
  const size = squareSize(matrix);
  for (let k = 0; k < size; k += blockSize) {
    const end = Math.min(k + blockSize, size);
    const failure = factorDiagonal(matrix, k, end);
    if (failure !== null) return failure;
    if (end === size) break;
    // L21 = A21 inv(L11)ᵀ
    const inverse = block(matrix, k, end, k, end);
    clearUpper(inverse);
    invertSmall(inverse, 0, end - k);
    const below = await gemm(block(matrix, end, size, k, end), inverse, { transposeB: true });
    setBlock(matrix, end, k, below);
    for (let left = end; left < size; left += PANEL) {
      const right = Math.min(left + PANEL, size);
      const update = await gemm(
        block(below, left - end, size - end, 0, end - k),
        block(below, left - end, right - end, 0, end - k),
        { transposeB: true },
      );
      subtractBlock(matrix, left, left, update);
    }
  }
  clearUpper(matrix);
  return { kind: "factored" };
}

/** Unblocked factor of the diagonal block [top, end). */
function factorDiagonal(matrix: Matrix, top: number, end: number): NotPositive | null {
  const { cols, data } = matrix;
  for (let j = top; j < end; j++) {
    const rowJ = j * cols;
    for (let i = j; i < end; i++) {
      const rowI = i * cols;
      let sum = data[rowI + j]!;
      for (let k = top; k < j; k++) sum -= data[rowI + k]! * data[rowJ + k]!;
      if (i > j) {
        data[rowI + j] = sum / data[rowJ + j]!;
        continue;
      }
      if (!(sum > 0 && sum < Number.POSITIVE_INFINITY)) return { kind: "not-positive", pivot: j, value: sum };
      data[rowI + j] = Math.sqrt(sum);
    }
  }
  return null;
}

/** L -> inverse of L, for a lower triangular matrix with a non-zero diagonal. The strict upper triangle must be zero. */
export async function invertLower(matrix: Matrix, gemm: Gemm): Promise<void> {
  await invertRange(matrix, 0, squareSize(matrix), gemm);
}

/** [[A, 0], [B, C]] -> [[inv A, 0], [-inv C  B  inv A, inv C]]. */
async function invertRange(matrix: Matrix, top: number, end: number, gemm: Gemm): Promise<void> {
  if (end - top <= SMALL) {
    invertSmall(matrix, top, end);
    return;
  }
  const middle = top + Math.ceil((end - top) / 2);
  await invertRange(matrix, top, middle, gemm);
  await invertRange(matrix, middle, end, gemm);
  const right = await gemm(block(matrix, middle, end, top, middle), block(matrix, top, middle, top, middle));
  const full = await gemm(block(matrix, middle, end, middle, end), right);
  for (let i = 0; i < full.data.length; i++) full.data[i] = -full.data[i]!;
  setBlock(matrix, middle, top, full);
}

/** Row by row: row i of the inverse needs rows k < i of the inverse and row i of L. */
function invertSmall(matrix: Matrix, top: number, end: number): void {
  const { cols, data } = matrix;
  const row = new Float64Array(end - top);
  for (let i = top; i < end; i++) {
    const diagonal = 1 / data[i * cols + i]!;
    row.fill(0);
    for (let k = top; k < i; k++) {
      const factor = data[i * cols + k]!;
      for (let j = top; j <= k; j++) row[j - top]! += factor * data[k * cols + j]!;
    }
    for (let j = top; j < i; j++) data[i * cols + j] = -row[j - top]! * diagonal;
    data[i * cols + i] = diagonal;
  }
}

/**
 * H -> U, upper triangular with Uᵀ U = inv(H): what GPTQ walks along. Only the upper triangle of H is read.
 *
 * Reversing the order of rows and columns (of the flat data, that is) turns H = R Rᵀ with R upper triangular into an
 * ordinary Cholesky factorisation, and U = inv(R): one factorisation and one triangular inverse, and inv(H) itself is
 * never formed.
 */
export async function inverseUpperFactor(
  matrix: Matrix,
  gemm: Gemm,
): Promise<{ readonly kind: "factored" } | NotPositive> {
  const size = squareSize(matrix);
  matrix.data.reverse();
  const result = await cholesky(matrix, gemm);
  if (result.kind === "not-positive") return { ...result, pivot: size - 1 - result.pivot };
  await invertLower(matrix, gemm);
  matrix.data.reverse();
  return result;
}

/** Sets the strict upper triangle to zero. */
function clearUpper(matrix: Matrix): void {
  for (let i = 0; i < matrix.rows; i++) matrix.data.fill(0, i * matrix.cols + i + 1, (i + 1) * matrix.cols);
}

function squareSize(matrix: Matrix): number {
  invariant(matrix.rows === matrix.cols, `a square matrix is needed, not [${matrix.rows},${matrix.cols}]`);
  return matrix.rows;
}
