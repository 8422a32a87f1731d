/**
 * raise-conv: replaces every proved causal depthwise convolution by one `CausalConv`.
 *
 * Purpose: Conv with padding and a cut, Mul + ReduceSum over a rolled state and CausalConvWithState become one operator
 * that works for any length and carries its own state.
 * Algebra: y[c, t] = act(bias[c] + sum_k w[c, k] s[c, t + k - (K-1)]) over the stream s = (past, x).
 * Refuses: convolutions that look backwards and forwards (vision), strided ones, whatever does not reproduce to 1e-4, and
 * graphs that turn their tokens around.
 *
 *     before   Concat(past, x) -> Conv -> Slice -> Sigmoid -> Mul; Slice -> present
 *     after    CausalConv(x, weight, bias, past) -> (y, present)
 */

import { GraphBuilder } from "../src/ir/builder.js";
import { attr } from "../src/ir/graph.js";
import { f32Tensor } from "../src/ir/tensor.js";
import { dtypeNumber } from "../src/ir/types.js";
import { concrete } from "../src/rewrite/axes.js";
import { backwardRead } from "../src/rewrite/causality.js";
import { findConvRegions, type ProvedConv, proveConv } from "../src/rewrite/conv-region.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { emitCast, emitFromCanonical, emitToCanonical } from "../src/rewrite/layout.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { findScanRegions } from "../src/rewrite/scan-region.js";
import { convNode, layerLabel } from "../src/rewrite/semantic.js";
import type { Tracer } from "../src/rewrite/trace.js";
import { proofTrials } from "../src/rewrite/trials.js";

export const raiseConv: Pass<Record<string, never>> = definePass({
  name: "raise-conv",
  summary: "replace proved causal depthwise convolutions by one CausalConv each",
  exactness: "real-exact",
  requires: ["normalised"],
  establishes: ["conv-raised"],
  invalidates: [],
  async run(model, _options, context) {
    const { tracer, trials } = proofTrials(model);
    const labels = new Set<string>();
    const edit = new GraphEdit(model.graph);
    // Its scans carry no state, and neither must its convolutions. What may be a scan can be summed up backwards.
    if (backwardRead(tracer) !== null && backwardRead(tracer, findScanRegions(tracer).regions) !== null)
      return { model, changed: 0 };
    let changed = 0;
    for (const [at, region] of findConvRegions(tracer).entries()) {
      const layer = layerLabel(
        [region.presentState ?? "", region.weight, region.anchor.name, ...region.biases, region.x],
        at,
        labels,
      );
      const result = await proveConv(tracer, region, trials, (graph, feeds) =>
        context.execute({ ...model, graph }, feeds),
      );
      if (result.kind === "proved") {
        replaceConv(tracer, edit, result.conv, layer, at);
        changed += 1;
        continue;
      }
      const measured = result.error === null ? "" : `; smallest relative error ${result.error.toExponential(1)}`;
      context.report({
        kind: "missed",
        code: "raise-conv/not-proved",
        where: `${layer}: ${region.anchor.name || region.anchor.outputs[0]}`,
        message: `looks like a causal convolution but is left as it is: ${result.reason}${measured}`,
      });
    }
    return { model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed };
  },
});

function replaceConv(tracer: Tracer, edit: GraphEdit, conv: ProvedConv, layer: string, at: number): void {
  const { region } = conv;
  const builder = new GraphBuilder(`mambac.conv${at}.`);
  const f32 = dtypeNumber("f32");
  const dtypeOf = (name: string): number => dtypeNumber(concrete(tracer.view, name)?.dtype ?? "f32");
  const tokensFirst = emitToCanonical(builder, conv.x.layout, conv.x.name, [region.channels]);
  const x = builder.op("Transpose", [emitCast(builder, tokensFirst, dtypeOf(conv.x.name), f32)], {
    perm: attr.ints([0, 2, 1]),
  });
  const weight = builder.initializer(f32Tensor([region.channels, 1, region.kernelSize], conv.weight), "weight");
  const bias = builder.initializer(
    f32Tensor([region.channels], conv.bias ?? new Float64Array(region.channels)),
    "bias",
  );
  const y = builder.fresh("y");
  const present = region.presentState === null ? "" : builder.fresh("present");
  builder.nodes.push(
    convNode(
      {
        layer,
        form: region.form,
        channels: region.channels,
        kernelSize: region.kernelSize,
        stateWidth: conv.stateWidth ?? region.kernelSize - 1,
        activation: conv.activation,
        error: conv.error,
      },
      [x, weight, bias, region.pastState ?? ""],
      [y, present],
    ),
  );
  const back = builder.op("Transpose", [emitCast(builder, y, f32, dtypeOf(conv.y.name))], {
    perm: attr.ints([0, 2, 1]),
  });
  const result = emitFromCanonical(builder, conv.y.layout, back, [region.channels]);
  edit.addNodes(builder.nodes);
  edit.addInitializers(builder.initializers);
  edit.replaceValue(conv.y.name, result);
  if (region.presentState !== null) edit.replaceValue(region.presentState, present);
}
