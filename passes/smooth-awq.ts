/**
 * smooth-awq: scales up the weights of inputs that are large on average, so that rounding them loses less. For weight-only
 * quantization; activations stay float.
 *
 * Paper: AWQ (Lin et al. 2023), with the pairs that are legal in Mamba blocks.
 * Algebra: (x / s)(diag(s) W) = x W, with s_j = mean|x_j|^beta over the geometric mean of its extremes. Beta is the point of
 * a grid in [0, 1) with the least error || X W - (X / s) Q(diag(s) W) ||^2 over calibration data, computed from X^T X; beta 0
 * leaves the activation alone, so no projection gets worse in that error. Where 1/s goes: gains of norms, gate and dt columns
 * (the table in `src/rewrite/smoothing.ts`). Channels calibration never saw moving keep s = 1.
 * Refuses: inputs that something else reads too; activations that were always zero (exit 5).
 *
 *     before   Mul(gamma, n) -> MatMul(W)
 *     after    Mul(gamma / s, n) -> MatMul(diag(s) W)
 */

import { matrixOf } from "../src/linalg/matrix.js";
import { searchAwqScales } from "../src/quant/awq.js";
import type { WeightScheme } from "../src/quant/scheme.js";
import type { Statistics } from "../src/quant/statistics.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import type { LinearRole, LinearSite } from "../src/rewrite/sites.js";
import { smoothModel } from "../src/rewrite/smoothing.js";

export interface SmoothAwqOptions {
  /** Projections whose inputs may be scaled. */
  readonly roles: ReadonlySet<LinearRole>;
  /** How each weight will be rounded; null: not at all. */
  readonly schemeFor: (site: LinearSite) => WeightScheme | null;
  /** Mean magnitude of each channel of an activation, and the mean of x x^T, from calibration. */
  readonly channelMeanAbs: Statistics["channelMeanAbs"];
  readonly secondMoment: Statistics["secondMoment"];
  /** Exponents tried: 0, 1/points, ... below 1; 20 unless given. */
  readonly points?: number;
}

export const smoothAwq: Pass<SmoothAwqOptions> = definePass({
  name: "smooth-awq",
  summary: "scale up the weights of inputs that are large on average, against the error of rounding them",
  exactness: "real-exact",
  requires: ["linears-aligned"],
  establishes: [],
  invalidates: [],
  run(model, { roles, schemeFor, channelMeanAbs, secondMoment, points }, context) {
    return smoothModel(
      model,
      {
        pass: "smooth-awq",
        roles,
        scalesFor: async ({ input, readers, weights }) => {
          const rounded = weights.map((weight, at) => {
            const reader = readers[at];
            return { weight, scheme: reader === undefined ? null : schemeFor(reader) };
          });
          if (rounded.every(({ scheme }) => scheme === null)) return null;
          const { size, matrix } = secondMoment(input);
          const moments = matrixOf(size, size, matrix);
          const { beta, scales } = await searchAwqScales(rounded, channelMeanAbs(input), moments, context.gemm, points);
          return beta === 0 ? null : scales;
        },
      },
      (remark) => context.report(remark),
    );
  },
});
