/** The sizes a graph's regions are proved at. */

import type { Model } from "../ir/graph.js";
import { inferConcrete } from "../ir/infer.js";
import { bindInputs, type Sizes, type View, viewGraph } from "./axes.js";
import type { Trial } from "./scan-proof.js";
import { Tracer } from "./trace.js";

/** Opset of the main domain. */
export function mainOpset(model: Model): number {
  return model.opsets.get("") ?? 21;
}

/**
 * A tracer over the model's graph, and the sizes to prove at: the two the axes were read from and, where the graph pads to
 * chunks, one that crosses a chunk boundary.
 */
export function proofTrials(model: Model): { readonly tracer: Tracer; readonly trials: readonly Trial[] } {
  const opset = mainOpset(model);
  const view = viewGraph(model.graph, opset);
  const trials: Trial[] = [{ sizes: view.sizes, inference: view.first }];
  if (view.second !== null) trials.push({ sizes: view.second.sizes, inference: view.second.inference });
  const chunk = view.frozenLength === null ? paddedLength(view) : null;
  if (chunk !== null) {
    const sizes: Sizes = { batch: view.frozenBatch ?? 1, length: chunk + 3, past: 3 };
    const inference = inferConcrete(model.graph, bindInputs(model.graph, sizes), { opset });
    if (inference.failures.length === 0) trials.push({ sizes, inference });
  }
  return { tracer: new Tracer(view), trials };
}

/** The chunk length: the longest axis that a Pad makes of the sequence. */
function paddedLength(view: View): number | null {
  let longest: number | null = null;
  for (const node of view.graph.nodes) {
    if (node.op !== "Pad") continue;
    const from = view.first.values.get(node.inputs[0] ?? "")?.shape;
    const to = view.first.values.get(node.outputs[0] ?? "")?.shape;
    if (from == null || to == null) continue;
    from.forEach((size, axis) => {
      const padded = to[axis] ?? 0;
      if (size === view.sizes.length && padded > size) longest = Math.max(longest ?? 0, padded);
    });
  }
  return longest;
}
