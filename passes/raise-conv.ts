/**
 * raise-conv: replaces every proved causal depthwise convolution by one `CausalConv`.
 *
 * Purpose: Conv with padding and a cut, Mul + ReduceSum over a rolled state and CausalConvWithState become one operator
 * that works for any length and carries its own state.
 * Algebra: y[c, t] = act(bias[c] + sum_k w[c, k] s[c, t + k - (K-1)]) over the stream s = (past, x).
 * In a graph without token ids the tokens may be patches inside it; every length that step sizes have there is tried.
 * Refuses: convolutions that look backwards and forwards (vision), strided ones, and whatever does not reproduce to 1e-4.
 *
 *     before   Concat(past, x) -> Conv -> Slice -> Sigmoid -> Mul; Slice -> present
 *     after    CausalConv(x, weight, bias, past) -> (y, present)
 */

import { GraphBuilder } from "../src/ir/builder.js";
import { attr, type Node } from "../src/ir/graph.js";
import { f32Tensor } from "../src/ir/tensor.js";
import { dtypeNumber } from "../src/ir/types.js";
import { concrete } from "../src/rewrite/axes.js";
import { findConvRegions, type ProvedConv, proveConv } from "../src/rewrite/conv-region.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { emitCast, emitFromCanonical, emitToCanonical } from "../src/rewrite/layout.js";
import { definePass, type Pass, type PassContext } from "../src/rewrite/pass.js";
import { convNode, layerLabel } from "../src/rewrite/semantic.js";
import type { Tracer } from "../src/rewrite/trace.js";
import { innerReadings, proofTrials } from "../src/rewrite/trials.js";

export const raiseConv: Pass<Record<string, never>> = definePass({
  name: "raise-conv",
  summary: "replace proved causal depthwise convolutions by one CausalConv each",
  exactness: "real-exact",
  requires: ["normalised"],
  establishes: ["conv-raised"],
  invalidates: [],
  async run(model, _options, context) {
    const own = proofTrials(model);
    const labels = new Set<string>();
    const edit = new GraphEdit(model.graph);
    const taken = new Set<Node>();
    const refused = new Map<Node, Refusal>();
    for (const { tracer, trials } of [own, ...innerReadings(own.tracer)]) {
      for (const [at, region] of findConvRegions(tracer).entries()) {
        const { anchor } = region;
        if (taken.has(anchor)) continue;
        const layer =
          refused.get(anchor)?.layer ??
          layerLabel([region.presentState ?? "", region.weight, anchor.name, ...region.biases, region.x], at, labels);
        const result = await proveConv(tracer, region, trials, (graph, feeds) =>
          context.execute({ ...model, graph }, feeds),
        );
        if (result.kind === "proved") {
          replaceConv(tracer, edit, result.conv, layer, taken.size);
          taken.add(anchor);
        } else if (result.error !== null || !refused.has(anchor)) {
          refused.set(anchor, { layer, reason: result.reason, error: result.error });
        }
      }
    }
    for (const [anchor, refusal] of refused) if (!taken.has(anchor)) tellRefused(context, anchor, refusal);
    return { model: taken.size === 0 ? model : { ...model, graph: edit.commit() }, changed: taken.size };
  },
});

interface Refusal {
  readonly layer: string;
  readonly reason: string;
  readonly error: number | null;
}

function tellRefused(context: PassContext, anchor: Node, { layer, reason, error }: Refusal): void {
  const measured = error === null ? "" : `; smallest relative error ${error.toExponential(1)}`;
  context.report({
    kind: "missed",
    code: "raise-conv/not-proved",
    where: `${layer}: ${anchor.name || anchor.outputs[0]}`,
    message: `looks like a causal convolution but is left as it is: ${reason}${measured}`,
  });
}

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
