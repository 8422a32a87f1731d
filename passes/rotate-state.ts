/**
 * rotate-state: rotates B and C of Mamba-2 along the state axis, so that the stored state has no outlier columns.
 *
 * Purpose: with a rotated state a per-channel scale is enough; a baseline for quantized states, and for hard models.
 * Algebra (F12): h C = (h H)(H^T C), and h H obeys the same recurrence with B H, because Mamba-2's decay is one number a
 * head. Any state given from outside must be in the rotated basis too; the zero state is.
 * Refuses: Mamba-1 (its decay differs along the state axis).
 *
 *     before   SelectiveScan(x, dt, A, B, C, ...)
 *     after    SelectiveScan(x, dt, A, B H, C H, ...)
 */

import { GraphBuilder } from "../src/ir/builder.js";
import { hadamardRotation } from "../src/linalg/hadamard.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { emitRotation } from "../src/rewrite/rotation.js";
import { readSemantic, SCAN_INPUT } from "../src/rewrite/semantic.js";

export const rotateState: Pass<Record<string, never>> = definePass({
  name: "rotate-state",
  summary: "rotate B and C of Mamba-2 along the state axis",
  exactness: "real-exact",
  requires: ["scan-raised"],
  establishes: [],
  invalidates: [],
  run(model, _options, context) {
    const edit = new GraphEdit(model.graph);
    let changed = 0;
    for (const node of model.graph.nodes) {
      const op = readSemantic(node);
      if (op?.kind !== "scan") continue;
      if (op.family === "mamba1") {
        context.report({
          kind: "missed",
          code: "rotate-state/mamba1",
          where: op.layer,
          message: "A differs along the state axis, so the state cannot be rotated",
        });
        continue;
      }
      const builder = new GraphBuilder(`mambac.rotate_state${changed}.`);
      const inputs = [...node.inputs];
      const rotation = hadamardRotation(op.dState);
      for (const at of [SCAN_INPUT.B, SCAN_INPUT.C])
        inputs[at] = emitRotation(builder, node.inputs[at] ?? "", rotation, [op.groups]);
      edit.addNodes(builder.nodes);
      edit.addInitializers(builder.initializers);
      edit.swapNode(node, { ...node, inputs });
      changed += 1;
    }
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});
