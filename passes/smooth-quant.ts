/**
 * smooth-quant: moves activation outliers into the weights, channel by channel, so that both quantize well.
 *
 * Paper: SmoothQuant (Xiao et al. 2023), with the pairs that are legal in Mamba blocks.
 * Algebra: (x / s)(diag(s) W) = x W, with s_j = max|x_j|^alpha / max_i|W_ji|^(1-alpha). Where 1/s goes: gains of
 * norms, gate and dt columns (the table in `src/rewrite/smoothing.ts`). Alpha is one number for all, or searched for each
 * activation by the error that its rounded projections would make; a search may also leave an activation as it is.
 * Channels calibration never saw moving, and channels no weight reads, keep s = 1.
 * Refuses: inputs that something else reads too (x of Mamba-1 feeds x_proj and the scan); the gate of Mamba-2, which
 * feeds a norm.
 *
 *     before   Mul(gamma, n) -> MatMul(W)
 *     after    Mul(gamma / s, n) -> MatMul(diag(s) W)
 */

import { matrixOf } from "../src/linalg/matrix.js";
import type { WeightScheme } from "../src/quant/scheme.js";
import { inputPeaks, searchSmoothing, smoothingScales } from "../src/quant/smooth.js";
import type { Statistics } from "../src/quant/statistics.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import type { LinearRole, LinearSite } from "../src/rewrite/sites.js";
import { smoothModel } from "../src/rewrite/smoothing.js";

/** Searches alpha for each activation. */
export interface AlphaSearch {
  readonly alphas: readonly number[];
  /** How each weight will be rounded; null: not at all. */
  readonly schemeFor: (site: LinearSite) => WeightScheme | null;
  /** Mean of x x^T of an activation. */
  readonly secondMoment: Statistics["secondMoment"];
}

export interface SmoothQuantOptions {
  /** 0 leaves the weights alone, 1 flattens the activations. */
  readonly alpha: number | AlphaSearch;
  /** Projections whose inputs are smoothed. */
  readonly roles: ReadonlySet<LinearRole>;
  /** Largest magnitude of each channel (last axis) of an activation, from calibration. */
  readonly channelAbsMax: (value: string) => Float64Array;
}

export const smoothQuant: Pass<SmoothQuantOptions> = definePass({
  name: "smooth-quant",
  summary: "move activation outliers into the weights of the projections that read them",
  exactness: "real-exact",
  requires: ["linears-aligned"],
  establishes: [],
  invalidates: [],
  run(model, { alpha, roles, channelAbsMax }, context) {
    return smoothModel(
      model,
      {
        pass: "smooth-quant",
        roles,
        scalesFor: async ({ input, readers, weights }) => {
          const peaks = channelAbsMax(input);
          if (typeof alpha === "number") return smoothingScales(peaks, inputPeaks(weights), alpha);
          const { size, matrix } = alpha.secondMoment(input);
          const choice = await searchSmoothing(
            {
              weights: weights.map((weight, at) => {
                const reader = readers[at];
                return { weight, scheme: reader === undefined ? null : alpha.schemeFor(reader) };
              }),
              peaks,
              moments: matrixOf(size, size, matrix),
              activationBits: 8,
              alphas: alpha.alphas,
            },
            context.gemm,
          );
          return choice.alpha === null ? null : choice.scales;
        },
      },
      (remark) => context.report(remark),
    );
  },
});
