/**
 * raise-scan: replaces every proved selective-scan region by one `SelectiveScan`.
 *
 * Purpose: no later pass needs to know which exporter wrote the graph, and a scan that was unrolled or chunked for one
 * length becomes a scan of any length.
 * Method: find candidates loosely, run each against the float64 recurrence, replace only what agrees (see
 * `src/rewrite/scan-region.ts` and `scan-proof.ts`).
 * Algebra: h_t = exp(d_t A) h_{t-1} + d_t x_t outer B_t, y_t = h_t C_t + D x_t, d_t = clip(softplus(dt_t + dt_bias)).
 * A source that divides by cumulated decays is the recurrence only while steps are small; it is proved there, and told.
 * Where a graph turns its tokens around or looks ahead (`src/rewrite/causality.ts`), scans carry no state from call to call.
 * Refuses: regions that no assignment of roles reproduces to 1e-4, and scans that carry a state in a graph that must not;
 * the remark names layer, anchor and smallest error.
 *
 *     before   Softplus, Exp, Mul, Add, Gather x L, MatMul x L, Concat ...
 *     after    SelectiveScan(x, dt, A, B, C, D, dt_bias, past) -> (y, present)
 */

import { GraphBuilder } from "../src/ir/builder.js";
import type { Graph, Model, Node } from "../src/ir/graph.js";
import { f32Tensor } from "../src/ir/tensor.js";
import { dtypeNumber } from "../src/ir/types.js";
import { concrete } from "../src/rewrite/axes.js";
import { backwardRead, backwardReason, lookAhead } from "../src/rewrite/causality.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { emitCast, emitFromCanonical, emitToCanonical } from "../src/rewrite/layout.js";
import { definePass, type Pass, type PassContext } from "../src/rewrite/pass.js";
import type { ExecuteGraph } from "../src/rewrite/region.js";
import type { ProvedScan } from "../src/rewrite/scan-proof.js";
import { type FoundScan, type RefusedRegion, type ScanSearch, searchScans } from "../src/rewrite/scan-search.js";
import { FLOAT_STATE, type Stateless, scanNode } from "../src/rewrite/semantic.js";
import { innerReadings, proofTrials, type Reading } from "../src/rewrite/trials.js";

export const raiseScan: Pass<Record<string, never>> = definePass({
  name: "raise-scan",
  summary: "replace proved selective-scan regions by one SelectiveScan each",
  exactness: "real-exact",
  requires: ["normalised"],
  establishes: ["scan-raised"],
  invalidates: [],
  async run(model, _options, context) {
    const own = proofTrials(model);
    const execute: ExecuteGraph = (graph, feeds) => context.execute({ ...model, graph }, feeds);
    const search = await searchScans([own], execute);
    if (search.proved.length > 0) return overTokens(model, own, search, context);
    const inner = await searchScans(innerReadings(own.tracer), execute);
    const found = inner.proved.length > 0 ? inner : search;
    tellRefused(context, found, backwardRead(own.tracer, search.regions));
    if (found.proved.length === 0) return { model, changed: 0 };
    tellFound(context, found);
    tellStateless(context, "the graph takes no token ids, and its scans run over what is in one call");
    return { model: { ...model, graph: replaceAll(model.graph, found.proved, "inner") }, changed: found.proved.length };
  },
});

/** Scans over the tokens of the input; a graph that also goes backwards keeps nothing between calls. */
function overTokens(
  model: Model,
  { tracer }: Reading,
  search: ScanSearch,
  context: PassContext,
): { readonly model: Model; readonly changed: number } {
  const { proved } = search;
  const regions = proved.map(({ scan }) => scan.region);
  const backwards = backwardRead(tracer, regions) ?? lookAhead(tracer);
  tellRefused(context, search, backwardRead(tracer, search.regions));
  tellFound(context, search);
  if (backwards !== null && regions.some(({ pastState }) => pastState !== null)) {
    for (const { scan, layer } of proved)
      refuse(context, { layer, anchor: scan.region.anchor, reason: backwardReason(backwards), error: null });
    return { model, changed: 0 };
  }
  if (backwards !== null) tellStateless(context, backwardReason(backwards));
  const graph = replaceAll(model.graph, proved, backwards === null ? null : "turned");
  return { model: { ...model, graph }, changed: proved.length };
}

function tellRefused(context: PassContext, { refused }: ScanSearch, turned: Node | null): void {
  for (const given of refused)
    refuse(context, turned === null || given.error === null ? given : { ...given, reason: backwardReason(turned) });
}

function refuse(context: PassContext, { layer, anchor, reason, error }: RefusedRegion): void {
  const measured = error === null ? "" : `; smallest relative error ${error.toExponential(1)}`;
  context.report({
    kind: "missed",
    code: "raise-scan/not-proved",
    where: `${layer}: ${anchor.name || anchor.outputs[0]}`,
    message: `looks like a selective scan but is left as it is: ${reason}${measured}`,
  });
}

function tellFound(context: PassContext, { proved }: ScanSearch): void {
  for (const { scan, layer } of proved)
    if (scan.region.form === "cumsum") tellDivision(context, layer, scan.region.anchor);
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

function tellStateless(context: PassContext, reason: string): void {
  context.report({
    kind: "applied",
    code: "raise-scan/stateless",
    where: "model",
    message: `${reason}: every call starts from zeros and takes whole sequences`,
  });
}

function replaceAll(graph: Graph, proved: readonly FoundScan[], stateless: Stateless | null): Graph {
  const edit = new GraphEdit(graph);
  for (const [at, { scan, layer, reading }] of proved.entries()) {
    const { parameters } = scan;
    const { view } = reading.tracer;
    const builder = new GraphBuilder(`mambac.scan${at}.`);
    const target = parameters.family === "mamba2" ? [parameters.heads, parameters.headDim] : [parameters.heads];
    const read = (part: ProvedScan["x"], sizes: readonly number[]): string =>
      emitCast(
        builder,
        emitToCanonical(builder, part.layout, part.name, sizes),
        dtypeNumber(concrete(view, part.name)?.dtype ?? "f32"),
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
          ...(stateless === null ? {} : { stateless }),
        },
        inputs,
        [y, present],
      ),
    );
    const dtype = dtypeNumber(concrete(view, scan.y.name)?.dtype ?? "f32");
    const result = emitFromCanonical(builder, scan.y.layout, emitCast(builder, y, dtypeNumber("f32"), dtype), target);
    edit.addNodes(builder.nodes);
    edit.addInitializers(builder.initializers);
    edit.replaceValue(scan.y.name, result);
    if (scan.presentState !== null) edit.replaceValue(scan.presentState, present);
  }
  return edit.commit();
}
