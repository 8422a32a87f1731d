/**
 * absorb-norm-gain: folds the gain of a norm into the projections that read it, so that the norm has none.
 *
 * Purpose: precondition of rotating the residual stream, since only a norm without gain commutes with a rotation.
 * Algebra (F1): (u * gamma) W = u (diag(gamma) W).
 * Refuses: a gain whose output has a reader that is not a projection; a gain on a norm operator that cannot go without.
 *
 *     before   Mul(gamma, normalised) -> MatMul(W)
 *     after    normalised -> MatMul(diag(gamma) W)
 */

import type { Node } from "../src/ir/graph.js";
import { f32Tensor, toNumbers } from "../src/ir/tensor.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { reweight } from "../src/rewrite/reweight.js";
import { sitesOf } from "../src/rewrite/sites.js";
import { scaledWeight } from "../src/rewrite/weights.js";

export const absorbNormGain: Pass<Record<string, never>> = definePass({
  name: "absorb-norm-gain",
  summary: "fold the gain of a norm into the projections that read it",
  exactness: "real-exact",
  requires: ["linears-aligned"],
  establishes: ["norm-gain-absorbed"],
  invalidates: [],
  run(model, _options, context) {
    const sites = sitesOf(model);
    const edit = new GraphEdit(model.graph);
    const handled = new Set<string>();
    let changed = 0;
    for (const site of sites.linears) {
      const gain = sites.gainOf(site.input);
      if (gain === null || handled.has(gain.output)) continue;
      handled.add(gain.output);
      const readers = sites.readersOf(gain.output);
      const tensor = model.graph.initializers.get(gain.gain);
      const missed = (message: string): void =>
        context.report({
          kind: "missed",
          code: "absorb-norm-gain/reader",
          where: gain.node.name || gain.output,
          message,
        });
      if (tensor === undefined || tensor.shape.length !== 1 || tensor.shape[0] !== site.inFeatures) {
        missed("the gain is not one factor a channel of the projection");
        continue;
      }
      if (readers === null) {
        missed("something other than a projection reads the norm, so its gain stays");
        continue;
      }
      const values = toNumbers(tensor);
      // A norm operator keeps a gain of ones; there is nothing to fold then.
      if (gain.normalised === null && values.every((value) => value === 1)) continue;
      for (const reader of readers) {
        const weight = model.graph.initializers.get(reader.weight);
        if (weight !== undefined) reweight(edit, reader, "absorbed", scaledWeight(weight, values, null));
      }
      if (gain.normalised === null)
        edit.swapNode(gain.node, withUnitGain(edit, gain.node, gain.gainInput, values.length));
      else {
        edit.removeNode(gain.node);
        edit.replaceValue(gain.output, gain.normalised);
      }
      changed += 1;
    }
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});

/** Norm operators need a gain input; theirs becomes ones. */
function withUnitGain(edit: GraphEdit, node: Node, input: number, channels: number): Node {
  const name = `${node.outputs[0]}.unit_gain`;
  edit.addInitializers(new Map([[name, f32Tensor([channels], new Float32Array(channels).fill(1))]]));
  return { ...node, inputs: node.inputs.map((old, at) => (at === input ? name : old)) };
}
