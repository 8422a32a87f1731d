/** Random orthogonal matrices. */

import { MambacError } from "../support/errors.js";
import type { Random } from "../support/random.js";
import { cholesky, invertLower } from "./cholesky.js";
import { type Gemm, type Matrix, zeros } from "./matrix.js";

/**
 * A float64 orthogonal matrix [size, size], uniform over the orthogonal group: Q of the QR factorisation with positive
 * diagonal R of a Gaussian matrix. Q is found by Cholesky factors of AᵀA, three times over, each pass squaring away the
 * loss of the one before, so that the work is products.
 * Source: F. Mezzadri, "How to generate random matrices from the classical compact groups" (2007); Y. Yamamoto et al.,
 * "Roundoff error analysis of the CholeskyQR2 algorithm" (2015).
 */
export async function randomOrthogonal(size: number, random: Random, gemm: Gemm): Promise<Matrix> {
  let q = zeros(size, size);
  for (let i = 0; i < q.data.length; i++) q.data[i] = random.normal();
  for (let pass = 0; pass < 3; pass++) {
    const gram = await gemm(q, q, { transposeA: true });
    const factored = await cholesky(gram, gemm);
    if (factored.kind === "not-positive") {
      throw new MambacError(
        "rotation/degenerate",
        `the random matrix [${size},${size}] of this seed is nearly singular; use another seed`,
      );
    }
    await invertLower(gram, gemm);
    q = await gemm(q, gram, { transposeB: true });
  }
  return q;
}
