/** The prefill and the decode graph of a source, compared by running them. */

import { vocabularyOf } from "./calibration.js";
import type { Model } from "./ir/graph.js";
import { readModel } from "./onnx/read.js";
import { viewGraph } from "./rewrite/axes.js";
import type { Remark } from "./rewrite/pass.js";
import { CONV_INPUT, semanticOps } from "./rewrite/semantic.js";
import { pastNameFor } from "./rewrite/states.js";
import { mainOpset } from "./rewrite/trials.js";
import { pairDisagreement } from "./run/pair-agreement.js";
import type { Source } from "./sources.js";

/** Models above this size are not run for comparison. */
export const MEASURED_BYTES: number = 2 ** 29;

/**
 * How far the logits of the two sources are apart on the same tokens; null, with a remark that says why, where they cannot be run.
 * `prefill` and `decode` are the raised graphs.
 */
export async function measurePair(
  sources: readonly Source[],
  prefill: Model,
  decode: Model,
  report: (remark: Remark) => void,
): Promise<number | null> {
  // One file that holds both takes one token as well as many.
  const [whole] = sources.filter(({ role }) => role === "model");
  const [first, second] = [
    sources.find(({ role }) => role === "prefill") ?? whole,
    sources.find(({ role }) => role === "decode") ?? whole,
  ];
  const notice = (message: string): void =>
    report({ pass: "merge-pair", kind: "warning", code: "merge-pair/not-measured", where: "model", message });
  if (first === undefined || second === undefined) return null;
  if (totalBytes(prefill) > MEASURED_BYTES) {
    notice("the pair is too large to be run for comparison; only its parameters were compared");
    return null;
  }
  const dims = windowWidths(prefill, decode);
  const embedding = vocabularyOf(prefill);
  const { model: source } = readModel(first.path);
  return pairDisagreement(first.path, second.path, {
    vocabulary: embedding,
    length: viewGraph(source.graph, mainOpset(source)).sizes.length,
    dims,
    onNotice: notice,
  });
}

/**
 * Lengths of the symbolic axes of the decode graph's convolution states. Of one that was not recognised there, the prefill
 * graph tells, which names it as what goes in again.
 */
function windowWidths(prefill: Model, decode: Model): Record<string, number> {
  const widths = new Map<string, number>();
  for (const { graph } of [prefill, decode]) {
    for (const op of semanticOps(graph.nodes)) {
      if (op.kind !== "conv") continue;
      const past = op.node.inputs[CONV_INPUT.past] || pastNameFor(op.node.outputs[1] ?? "");
      if (past !== null) widths.set(past, op.stateWidth);
    }
  }
  const dims: Record<string, number> = {};
  for (const { name, type } of decode.graph.inputs) {
    const [width, symbol] = [widths.get(name), type?.kind === "tensor" ? type.shape?.[2] : null];
    if (width !== undefined && typeof symbol === "string") dims[symbol] = width;
  }
  return dims;
}

/** Bytes of all weights. */
export function totalBytes(model: Model): number {
  let bytes = 0;
  for (const tensor of model.graph.initializers.values()) bytes += tensor.byteLength;
  return bytes;
}
