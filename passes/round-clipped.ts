/**
 * round-clipped: rounds the weights of projections to nearest on ranges that are clipped against the error of the outputs.
 *
 * Paper: the clipping search of AWQ (Lin et al. 2023); run it after smooth-awq for the whole method.
 * Algebra: for each scale the share 1, 0.975, ... 0.525 of its range with the least || X (W - Q(W)) ||^2 over calibration
 * data, computed from X^T X, other scales apart; whole ranges where all together would be worse. So the error is never
 * above that of round-nearest with the same scheme. Inputs that were always zero cost nothing and do not matter.
 * Refuses: schemes with a scale an input (they stay as in round-nearest), weights with NaN or infinity (exit 5).
 *
 *     before   MatMul(x, W f32[K, N])
 *     after    MatMul(x, DequantizeLinear(codes i4[K, N], scales f32[K/128, N]))
 */

import { matrixOf } from "../src/linalg/matrix.js";
import { roundClipped as roundWeight } from "../src/quant/awq.js";
import type { WeightScheme } from "../src/quant/scheme.js";
import type { Statistics } from "../src/quant/statistics.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { replaceWeight } from "../src/rewrite/rounded-weight.js";
import { type LinearSite, sitesOf } from "../src/rewrite/sites.js";
import { weightValues } from "../src/rewrite/weights.js";

export interface RoundClippedOptions {
  /** The scheme of a projection, or null to leave it to another pass. */
  readonly schemeFor: (site: LinearSite) => WeightScheme | null;
  /** Mean of x x^T of an activation. */
  readonly secondMoment: Statistics["secondMoment"];
  /** Shares tried; 20 unless given. */
  readonly steps?: number;
}

export const roundClipped: Pass<RoundClippedOptions> = definePass({
  name: "round-clipped",
  summary: "round the weights of projections to nearest, with ranges clipped against the error on calibration data",
  exactness: "lossy",
  requires: ["linears-aligned"],
  establishes: ["weights-rounded"],
  invalidates: [],
  async run(model, { schemeFor, secondMoment, steps }, context) {
    const sites = sitesOf(model);
    const edit = new GraphEdit(model.graph);
    let changed = 0;
    for (const site of sites.linears) {
      const tensor = model.graph.initializers.get(site.weight);
      const scheme = tensor === undefined ? null : schemeFor(site);
      if (tensor === undefined || scheme === null) continue;
      const { size, matrix } = secondMoment(site.input);
      const weight = { label: site.weight, shape: tensor.shape, data: weightValues(tensor) };
      const { quantized } = await roundWeight(weight, matrixOf(size, size, matrix), scheme, context.gemm, steps);
      replaceWeight(edit, site, scheme, { round: () => quantized });
      changed += 1;
    }
    return { model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed };
  },
});
