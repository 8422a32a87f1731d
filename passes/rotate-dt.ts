/**
 * rotate-dt: rotates the low-rank dt between x_proj and dt_proj of Mamba-1, offline.
 *
 * Paper: MambaQuant R5 (KLT-enhanced rotation of the low-rank path); with the plain Hadamard matrix QuaRot-like.
 * Algebra (F8): (delta R)(R^T W_dt) = delta W_dt; both factors are weights, so nothing is left at run time.
 * Refuses: blocks with a norm or a bias between the two (Jamba, Falcon-Mamba: an RMSNorm with gain does not commute), dt
 * columns with a second reader, and Mamba-2, which has no low-rank dt.
 *
 *     before   x_proj [E, R + 2N] -> delta -> dt_proj [R, E]
 *     after    x_proj with its dt columns times R -> R^T dt_proj
 */

import { f32Tensor } from "../src/ir/tensor.js";
import { hadamardRotation } from "../src/linalg/hadamard.js";
import { onlyReaders } from "../src/rewrite/column-uses.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { reweight } from "../src/rewrite/reweight.js";
import { type Rotation, rotateReader, rotateWriter } from "../src/rewrite/rotation.js";
import { sitesOf } from "../src/rewrite/sites.js";
import { lazyWeight, weightValues } from "../src/rewrite/weights.js";

export interface RotateDtOptions {
  /** The rotation for a block, given the activation and its rank; null takes the Hadamard matrix. */
  readonly rotationFor: ((activation: string, rank: number) => Rotation) | null;
}

export const rotateDt: Pass<RotateDtOptions> = definePass({
  name: "rotate-dt",
  summary: "rotate the low-rank dt of Mamba-1 between x_proj and dt_proj",
  exactness: "real-exact",
  requires: ["linears-aligned"],
  establishes: [],
  invalidates: [],
  run(model, options, context) {
    const sites = sitesOf(model);
    const edit = new GraphEdit(model.graph);
    let changed = 0;
    for (const block of sites.blocks) {
      const { xProj, dtProj } = block;
      if (block.scan.family === "mamba2") continue;
      const columns = dtProj === null ? null : sites.source(dtProj.input);
      const [reader, writer] = [
        model.graph.initializers.get(dtProj?.weight ?? ""),
        model.graph.initializers.get(xProj?.weight ?? ""),
      ];
      if (
        dtProj === null ||
        xProj === null ||
        columns?.linear.node !== xProj.node ||
        !onlyReaders(sites, xProj, columns.from, columns.to, [dtProj.node]) ||
        reader === undefined ||
        writer === undefined
      ) {
        context.report({
          kind: "missed",
          code: "rotate-dt/no-low-rank",
          where: block.layer,
          message: "dt does not come straight from x_proj, or something else reads it",
        });
        continue;
      }
      const rank = dtProj.inFeatures;
      const rotation: Rotation = options.rotationFor?.(dtProj.input, rank) ?? {
        kind: "hadamard",
        rotation: hadamardRotation(rank),
      };
      const [k, n, from] = [xProj.inFeatures, xProj.outFeatures, columns.from];
      const turned = lazyWeight([k, n], () => {
        const values = weightValues(writer).slice();
        const part = new Float32Array(k * rank);
        for (let i = 0; i < k; i++) for (let j = 0; j < rank; j++) part[i * rank + j] = values[i * n + from + j] ?? 0;
        const after = weightValues(rotateWriter(f32Tensor([k, rank], part), rotation));
        for (let i = 0; i < k; i++) for (let j = 0; j < rank; j++) values[i * n + from + j] = after[i * rank + j] ?? 0;
        return values;
      });
      reweight(edit, xProj, "rotated_dt", turned);
      reweight(edit, dtProj, "rotated", rotateReader(reader, rotation));
      changed += 1;
    }
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});
