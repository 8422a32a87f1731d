/** Rotations that follow the data (Karhunen-Loeve), after MambaQuant. */

import { invariant } from "../support/errors.js";
import { symmetricEigen } from "./eigen.js";
import { type HadamardRotation, rotateRows } from "./hadamard.js";
import type { Gemm, Matrix } from "./matrix.js";

/** Below this share of the largest eigenvalue, the smallest one counts as zero. */
const MIN_CONDITION = 1e-8;

/** What is then added to the diagonal, as a share of the mean variance. */
const RIDGE = 1e-6;

export interface KltRotation {
  /** K H, orthogonal [m, m]: x -> x K H on row vectors. */
  readonly matrix: Matrix;
  /** Variances along the principal axes, descending, ridge included. */
  readonly variances: Float64Array;
  /** Was the covariance too poor to trust its smallest axes? */
  readonly regularised: boolean;
}

/**
 * K H: project on the eigenvectors K of the covariance [m, m], then mix by a Hadamard rotation of size m. Where the
 * rotation has entries of one size, every channel of x K H has the variance tr(covariance) / m, because the diagonal of
 * Hᵀ diag(variances) H is their mean. `samples` is the number of vectors behind the covariance: with fewer than m, or
 * with a near-singular covariance, 1e-6 of the mean variance is added to each axis.
 */
export async function kltRotation(
  covariance: Matrix,
  samples: number,
  rotation: HadamardRotation,
  gemm: Gemm,
): Promise<KltRotation> {
  const size = covariance.rows;
  invariant(rotation.size === size, `a rotation of ${rotation.size} for a covariance of ${size}`);
  const { values, vectors } = await symmetricEigen(covariance, gemm);
  const [largest, smallest] = [values[0] ?? 0, values[size - 1] ?? 0];
  const regularised = samples < size || smallest < MIN_CONDITION * largest;
  const ridge = regularised ? (RIDGE * values.reduce((sum, value) => sum + value, 0)) / size : 0;
  rotateRows(vectors.data, rotation, "forward");
  // Adding a multiple of the identity moves all eigenvalues by it and no eigenvector.
  return { matrix: vectors, variances: values.map((value) => Math.max(value, 0) + ridge), regularised };
}
