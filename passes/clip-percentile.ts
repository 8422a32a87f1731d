/**
 * clip-percentile: quantizes the SSM input x to 8 bits, with a range that leaves out its rarest peaks.
 *
 * Papers: Quamba (one scale, percentile), Quamba2 (a scale for each cluster of like channels, after sort-cluster).
 * Algebra: x^ = s clamp(round(x / s), -128, 127), s = range / 127; what is beyond the range saturates in QuantizeLinear, at
 * no cost. The scan and x_proj (Mamba-1) read the same x^, or B, C, dt and x would disagree. One scale for the tensor, or
 * one for each cluster, written channel by channel. An x that calibration saw as zero only has scale 1.
 * Refuses: scans whose x comes from no node, and clusters where sort-cluster made none (with a remark); ranges that are
 * negative or not finite (exit 5).
 *
 *     before   x -> x_proj, SelectiveScan
 *     after    x -> QuantizeLinear -> DequantizeLinear -> x_proj, SelectiveScan
 */

import { GraphBuilder } from "../src/ir/builder.js";
import type { Model } from "../src/ir/graph.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { addPair } from "../src/rewrite/qdq-pair.js";
import { CLUSTERS_KEY, readSemantic, SCAN_INPUT, type ScanOp } from "../src/rewrite/semantic.js";

export interface ClipPercentileOptions {
  /** Magnitude that must be representable: a percentile of the whole x, or one of each of its channels. */
  readonly range:
    | { readonly of: "tensor"; readonly peak: (value: string) => number }
    | { readonly of: "cluster"; readonly peaks: (value: string) => Float64Array };
}

export const clipPercentile: Pass<ClipPercentileOptions> = definePass({
  name: "clip-percentile",
  summary: "quantize the SSM input x to 8 bits, clipped at a percentile",
  exactness: "lossy",
  requires: ["scan-raised"],
  establishes: [],
  invalidates: [],
  run(model, { range }, context) {
    const edit = new GraphEdit(model.graph);
    const builder = new GraphBuilder("mambac.clip.");
    let changed = 0;
    for (const { scan, value } of scanInputs(model, range.of)) {
      const missed = (message: string): void =>
        context.report({ kind: "missed", code: "clip-percentile/form", where: scan.layer, message });
      if (value === null) {
        missed("its x is no result of a node, so it stays float");
        continue;
      }
      const clusters = range.of === "cluster" ? clustersOf(scan) : null;
      if (range.of === "cluster" && clusters === null) {
        missed("its channels are not sorted into clusters, so its x stays float");
        continue;
      }
      const ranges = range.of === "tensor" ? range.peak(value) : clusterRanges(range.peaks(value), clusters ?? []);
      edit.replaceValue(value, addPair(builder, value, ranges, "clip-percentile"));
      changed += 1;
    }
    edit.addNodes(builder.nodes);
    edit.addInitializers(builder.initializers);
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});

/** The activations whose range must be calibrated; for clusters with channels last. */
export function clippedInputs(model: Model, of: ClipPercentileOptions["range"]["of"]): string[] {
  return scanInputs(model, of).flatMap(({ value }) => value ?? []);
}

/**
 * Every scan with its x, for clusters before heads are taken apart; null where no node makes it. One scale goes right in
 * front of the scan: ONNX Runtime 1.30 moves such pairs past a Reshape, and dies where the Reshape's reader is an If, as
 * in the scan's function.
 */
function scanInputs(
  { graph }: Model,
  of: ClipPercentileOptions["range"]["of"],
): { readonly scan: ScanOp; readonly value: string | null }[] {
  const producer = new Map(graph.nodes.flatMap((node) => node.outputs.map((name) => [name, node] as const)));
  return graph.nodes.flatMap((node) => {
    const scan = readSemantic(node);
    if (scan?.kind !== "scan") return [];
    const x = node.inputs[SCAN_INPUT.x] ?? "";
    const made = producer.get(x);
    const apart = of === "cluster" && made?.op === "Reshape" && made.domain === "" && scan.headDim > 1;
    const value = apart ? (made.inputs[0] ?? "") : x;
    return [{ scan, value: producer.has(value) ? value : null }];
  });
}

function clustersOf(scan: ScanOp): readonly number[] | null {
  const text = scan.node.metadata.get(CLUSTERS_KEY);
  return text === undefined ? null : (JSON.parse(text) as readonly number[]);
}

/** For each channel the largest range of its cluster. */
function clusterRanges(peaks: Float64Array, clusters: readonly number[]): Float64Array {
  const largest = new Map<number, number>();
  clusters.forEach((cluster, channel) => {
    largest.set(cluster, Math.max(largest.get(cluster) ?? 0, peaks[channel] ?? 0));
  });
  return Float64Array.from(clusters, (cluster) => largest.get(cluster) ?? 0);
}
