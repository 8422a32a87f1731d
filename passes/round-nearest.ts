/**
 * round-nearest: rounds the weights of projections to an integer grid, each to the nearest point.
 *
 * Papers: the naive schemes of PTQ-SSM, and the baseline of every other method.
 * Algebra: W = s (q - z), q = clamp(round_half_even(W / s) + z); one s for a tensor, an output channel, or a group of
 * inputs of one output.
 * Emits DequantizeLinear(codes, scales) in front of the MatMul, codes in [K, N]: the form ONNX Runtime multiplies with
 * integer kernels.
 * Refuses: weights with NaN or infinity (exit 5), and schemes whose axis a weight does not have.
 *
 *     before   MatMul(x, W f32[K, N])
 *     after    MatMul(x, DequantizeLinear(codes i8[K, N], scales f32[N]))
 */

import { roundToNearest } from "../src/quant/round-nearest.js";
import type { WeightScheme } from "../src/quant/scheme.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { replaceWeight } from "../src/rewrite/rounded-weight.js";
import { type LinearSite, sitesOf } from "../src/rewrite/sites.js";
import { withWeightValues } from "../src/rewrite/weights.js";

export interface RoundNearestOptions {
  /** The scheme of a projection, or null to leave it float. */
  readonly schemeFor: (site: LinearSite) => WeightScheme | null;
}

export const roundNearest: Pass<RoundNearestOptions> = definePass({
  name: "round-nearest",
  summary: "round the weights of projections to the nearest point of an integer grid",
  exactness: "lossy",
  requires: ["linears-aligned"],
  establishes: ["weights-rounded"],
  invalidates: [],
  run(model, options, _context) {
    const sites = sitesOf(model);
    const edit = new GraphEdit(model.graph);
    let changed = 0;
    for (const site of sites.linears) {
      const tensor = model.graph.initializers.get(site.weight);
      const scheme = tensor === undefined ? null : options.schemeFor(site);
      if (tensor === undefined || scheme === null) continue;
      replaceWeight(edit, site, scheme, {
        weight: tensor,
        round: (room) =>
          withWeightValues(tensor, (data) =>
            roundToNearest({ label: site.weight, shape: tensor.shape, data }, scheme, room),
          ),
      });
      changed += 1;
    }
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});
