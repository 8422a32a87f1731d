/** The sizes a graph's regions are proved at. */

import type { Model } from "../ir/graph.js";
import { inferConcrete } from "../ir/infer.js";
import { bindInputs, hasTokenIds, type Sizes, type View, viewGraph } from "./axes.js";
import type { Trial } from "./scan-proof.js";
import { softplusValues } from "./softplus.js";
import { Tracer } from "./trace.js";

/** Opset of the main domain. */
export function mainOpset(model: Model): number {
  return model.opsets.get("") ?? 21;
}

/** Reads of one graph: a tracer, and the sizes to prove at. */
export interface Reading {
  readonly tracer: Tracer;
  readonly trials: readonly Trial[];
}

/**
 * A tracer over the model's graph, and the sizes to prove at: the two the axes were read from and, where the graph pads to
 * chunks, one that crosses a chunk boundary.
 */
export function proofTrials(model: Model): Reading {
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

/**
 * Readings of a graph without token ids by the sequences inside it: of the patches of a picture, of windows of them (then
 * the batch of a scan is a multiple of the graph's), or of frames. Every axis of every step size is tried as the length.
 * None where the graph takes token ids.
 */
export function innerReadings({ view }: Tracer): readonly Reading[] {
  if (hasTokenIds(view.graph)) return [];
  const readings = new Map<string, Reading>();
  for (const { of } of softplusValues(view.graph)) {
    const shape = view.first.values.get(of)?.shape;
    const other = view.second?.inference.values.get(of)?.shape ?? null;
    const windows = (shape?.[0] ?? 0) / view.sizes.batch;
    if (shape == null || shape.length < 3 || windows < 1 || !Number.isInteger(windows)) continue;
    for (const [axis, length] of shape.entries()) {
      const key = `${windows}x${length}`;
      // A length that changes with the size of the picture is not fixed, so nothing can be proved for it.
      if (axis === 0 || length < 2 || readings.has(key) || (other !== null && other[axis] !== length)) continue;
      const sizes: Sizes = { ...view.sizes, batch: windows * view.sizes.batch, length };
      const second =
        view.second === null || view.second.sizes.batch === view.sizes.batch
          ? null
          : {
              sizes: { ...view.second.sizes, batch: windows * view.second.sizes.batch, length },
              inference: view.second.inference,
            };
      const inner: View = { ...view, sizes, second, frozenLength: length };
      const trials: Trial[] = [{ sizes, inference: view.first }, ...(second === null ? [] : [second])];
      readings.set(key, { tracer: new Tracer(inner), trials });
    }
  }
  return [...readings.values()];
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
