/**
 * rotate-output: rotates the input of out_proj by a Hadamard matrix at run time and undoes it in the weight.
 *
 * Papers: Quamba (Chiang et al. 2025), QuaRot; MambaQuant's R2.
 * Purpose: the gated output of the scan has outlier channels no weight can absorb; a Hadamard transform spreads each of
 * them over all channels before quantization.
 * Algebra (F11): (o H)(H^T W) = o W, H orthonormal, any size m 2^k.
 * Cost: E (log2 2^k + m) additions a token where the operator library runs it; otherwise one product with a matrix of at
 * most 64 x 64 for each Kronecker factor, O(E sum of factor sizes).
 * Other readers of o keep what they read.
 * Refuses: blocks whose out_proj was not found.
 *
 *     before   o -> MatMul(W)
 *     after    o -> mambac.ir.HadamardRotation -> MatMul(H^T W)
 */

import { GraphBuilder } from "../src/ir/builder.js";
import { hadamardRotation } from "../src/linalg/hadamard.js";
import { concrete } from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { onlineRotation } from "../src/rewrite/online-rotation.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { reweight } from "../src/rewrite/reweight.js";
import { rotateReader } from "../src/rewrite/rotation.js";
import { sitesOf } from "../src/rewrite/sites.js";

export const rotateOutput: Pass<Record<string, never>> = definePass({
  name: "rotate-output",
  summary: "rotate the input of out_proj by an online Hadamard transform",
  exactness: "real-exact",
  requires: ["linears-aligned"],
  establishes: [],
  invalidates: [],
  run(model, _options, context) {
    const sites = sitesOf(model);
    const edit = new GraphEdit(model.graph);
    let changed = 0;
    for (const block of sites.blocks) {
      const { outProj } = block;
      const tensor = outProj === null ? undefined : model.graph.initializers.get(outProj.weight);
      if (outProj === null || tensor === undefined || outProj.weightSide !== "right" || outProj.transposed) {
        context.report({
          kind: "missed",
          code: "rotate-output/no-projection",
          where: block.layer,
          message: "no out_proj was found after the scan",
        });
        continue;
      }
      const rotation = hadamardRotation(outProj.inFeatures);
      const builder = new GraphBuilder(`${edit.unused(`${outProj.weight}.rotated`)}.`);
      const rank = concrete(sites.view, outProj.input)?.shape?.length ?? 3;
      const rotated = onlineRotation(builder, outProj.input, rotation, rank);
      edit.addNodes(builder.nodes);
      reweight(edit, outProj, "rotated", rotateReader(tensor, { kind: "hadamard", rotation }), rotated);
      changed += 1;
    }
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});
