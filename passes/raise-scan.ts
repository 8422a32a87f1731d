/**
 * raise-scan: replaces every proved selective-scan region by one `SelectiveScan`.
 *
 * Purpose: no later pass needs to know which exporter wrote the graph, and a scan that was unrolled or chunked for one
 * length becomes a scan of any length.
 * Method: find candidates loosely, run each against the float64 recurrence, replace only what agrees (see
 * `src/rewrite/scan-region.ts` and `scan-proof.ts`).
 * Algebra: h_t = exp(d_t A) h_{t-1} + d_t x_t outer B_t, y_t = h_t C_t + D x_t, d_t = clip(softplus(dt_t + dt_bias)).
 * A source that divides by cumulated decays is the recurrence only while steps are small; it is proved there, and told.
 * Refuses: regions that no assignment of roles reproduces to 1e-4, and graphs that turn their tokens around (see
 * `src/rewrite/causality.ts`); the remark names layer, anchor and smallest error.
 *
 *     before   Softplus, Exp, Mul, Add, Gather x L, MatMul x L, Concat ...
 *     after    SelectiveScan(x, dt, A, B, C, D, dt_bias, past) -> (y, present)
 */

import { GraphBuilder } from "../src/ir/builder.js";
import type { Graph, Node } from "../src/ir/graph.js";
import { f32Tensor } from "../src/ir/tensor.js";
import { dtypeNumber } from "../src/ir/types.js";
import { concrete } from "../src/rewrite/axes.js";
import { backwardRead, backwardReason } from "../src/rewrite/causality.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { emitCast, emitFromCanonical, emitToCanonical } from "../src/rewrite/layout.js";
import { definePass, type Pass, type PassContext } from "../src/rewrite/pass.js";
import { type ProvedScan, proveScan } from "../src/rewrite/scan-proof.js";
import { findScanRegions } from "../src/rewrite/scan-region.js";
import { FLOAT_STATE, layerLabel, scanNode } from "../src/rewrite/semantic.js";
import type { Tracer } from "../src/rewrite/trace.js";
import { proofTrials } from "../src/rewrite/trials.js";

export const raiseScan: Pass<Record<string, never>> = definePass({
  name: "raise-scan",
  summary: "replace proved selective-scan regions by one SelectiveScan each",
  exactness: "real-exact",
  requires: ["normalised"],
  establishes: ["scan-raised"],
  invalidates: [],
  async run(model, _options, context) {
    const { tracer, trials } = proofTrials(model);
    const labels = new Set<string>();
    const proved: { scan: ProvedScan; layer: string }[] = [];
    const { regions, misses } = findScanRegions(tracer);
    for (const [at, miss] of misses.entries()) {
      const layer = layerLabel([miss.dt, miss.anchor.name], at, new Set());
      refuse(context, layer, miss.anchor, miss.reason, null);
    }
    for (const [at, region] of regions.entries()) {
      const layer = layerLabel(
        [region.dt, region.dtBias ?? "", ...region.roots, ...region.exits, ...region.nodes.map((node) => node.name)],
        at,
        labels,
      );
      const result = await proveScan(tracer, region, trials, (graph, feeds) =>
        context.execute({ ...model, graph }, feeds),
      );
      if (result.kind === "proved") {
        proved.push({ scan: result.scan, layer });
        if (region.form === "cumsum") tellDivision(context, layer, region.anchor);
      } else {
        const turned = backwardRead(tracer, regions);
        const reason = turned === null ? result.refused.reason : backwardReason(turned);
        refuse(context, layer, region.anchor, reason, result.refused.error);
      }
    }
    const backwards = backwardRead(
      tracer,
      proved.map(({ scan }) => scan.region),
    );
    if (backwards !== null) {
      for (const { scan, layer } of proved) refuse(context, layer, scan.region.anchor, backwardReason(backwards), null);
      return { model, changed: 0 };
    }
    if (proved.length === 0) return { model, changed: 0 };
    return { model: { ...model, graph: replaceAll(tracer, proved) }, changed: proved.length };
  },
});

function refuse(context: PassContext, layer: string, anchor: Node, reason: string, error: number | null): void {
  const measured = error === null ? "" : `; smallest relative error ${error.toExponential(1)}`;
  context.report({
    kind: "missed",
    code: "raise-scan/not-proved",
    where: `${layer}: ${anchor.name || anchor.outputs[0]}`,
    message: `looks like a selective scan but is left as it is: ${reason}${measured}`,
  });
}

function tellDivision(context: PassContext, layer: string, anchor: Node): void {
  context.report({
    kind: "applied",
    code: "raise-scan/divided",
    where: `${layer}: ${anchor.name || anchor.outputs[0]}`,
    message:
      "the source divides by cumulated decays, which float32 rounds to zero where steps are large or tokens many; " +
      "the scan does not, so results differ where those of the source are wrong",
  });
}

function replaceAll(tracer: Tracer, proved: readonly { scan: ProvedScan; layer: string }[]): Graph {
  const edit = new GraphEdit(tracer.graph);
  for (const [at, { scan, layer }] of proved.entries()) {
    const { parameters } = scan;
    const builder = new GraphBuilder(`mambac.scan${at}.`);
    const target = parameters.family === "mamba2" ? [parameters.heads, parameters.headDim] : [parameters.heads];
    const read = (part: ProvedScan["x"], sizes: readonly number[]): string =>
      emitCast(
        builder,
        emitToCanonical(builder, part.layout, part.name, sizes),
        dtypeNumber(concrete(tracer.view, part.name)?.dtype ?? "f32"),
        dtypeNumber("f32"),
      );
    const weight = (hint: string, shape: readonly number[], values: Float64Array | null): string =>
      builder.initializer(f32Tensor(shape, values ?? new Float64Array(shape.reduce((a, b) => a * b, 1))), hint);
    const inputs = [
      read(scan.x, target),
      read(scan.dt, [parameters.heads]),
      weight(
        "A",
        parameters.family === "mamba2" ? [parameters.heads] : [parameters.heads, parameters.dState],
        parameters.A,
      ),
      read(scan.B, [parameters.groups, parameters.dState]),
      read(scan.C, [parameters.groups, parameters.dState]),
      weight("D", target, parameters.D),
      weight("dt_bias", [parameters.heads], parameters.dtBias),
      scan.region.pastState ?? "",
    ];
    const y = builder.fresh("y");
    const present = scan.presentState === null ? "" : builder.fresh("present");
    builder.nodes.push(
      scanNode(
        {
          layer,
          form: scan.region.form,
          family: parameters.family,
          heads: parameters.heads,
          headDim: parameters.headDim,
          dState: parameters.dState,
          groups: parameters.groups,
          dtMin: parameters.dtMin,
          dtMax: parameters.dtMax,
          stateLayout: scan.stateLayout,
          error: scan.error,
          state: FLOAT_STATE,
        },
        inputs,
        [y, present],
      ),
    );
    const dtype = dtypeNumber(concrete(tracer.view, scan.y.name)?.dtype ?? "f32");
    const result = emitFromCanonical(builder, scan.y.layout, emitCast(builder, y, dtypeNumber("f32"), dtype), target);
    edit.addNodes(builder.nodes);
    edit.addInitializers(builder.initializers);
    edit.replaceValue(scan.y.name, result);
    if (scan.presentState !== null) edit.replaceValue(scan.presentState, present);
  }
  return edit.commit();
}
