/** Which way of writing a scan a region uses. Only a name for people, and how far the source's own numbers can be trusted. */

import { dependencies, type Node } from "../ir/graph.js";
import type { Tracer } from "./trace.js";

export type ScanForm =
  | "step"
  | "unrolled"
  | "chunked"
  | "linear-attention"
  | "loop"
  | "scan"
  /** Sums of the inputs of all tokens, divided by decays cumulated over as many. */
  | "cumsum"
  /** A tree of products of pairs (decay, state). */
  | "associative";

/** The form of a region that starts at `dt`, or null when it has no decay. */
export function scanForm(tracer: Tracer, dt: string, nodes: readonly Node[]): ScanForm | null {
  const ops = new Set(nodes.map((node) => node.op));
  if (ops.has("LinearAttention")) return "linear-attention";
  if (ops.has("Loop")) return "loop";
  if (ops.has("Scan")) return "scan";
  if (!ops.has("Exp")) return null;
  const { driven, decays } = flow(tracer, dt, nodes);
  const sums = nodes.filter((node) => node.op === "CumSum");
  if (sums.some((node) => driven.has(node.outputs[0] ?? ""))) return "cumsum";
  if (sums.length > 0) return "chunked";
  if (nodes.some((node) => node.op === "Mul" && node.inputs.every((name) => decays.has(name)))) return "associative";
  return tracer.view.sizes.length === 1 ? "step" : "unrolled";
}

/** Values of the region that depend on dt alone, in the order of the graph: the step sizes are among them. */
export function valuesOfDt(tracer: Tracer, dt: string, nodes: readonly Node[]): string[] {
  const { driven } = flow(tracer, dt, nodes);
  return nodes.flatMap((node) => node.outputs.filter((name) => name !== "" && !driven.has(name)));
}

/** Values that depend on more than dt, and those that are made of an exponential of dt alone. */
function flow(
  tracer: Tracer,
  dt: string,
  nodes: readonly Node[],
): { readonly driven: ReadonlySet<string>; readonly decays: ReadonlySet<string> } {
  const plain = new Set<string>([dt]);
  const driven = new Set<string>();
  const decays = new Set<string>();
  for (const node of nodes) {
    const reads = dependencies(node).filter((name) => !tracer.free.has(name));
    const isPlain = reads.every((name) => plain.has(name));
    const decaying = isPlain && (node.op === "Exp" || reads.some((name) => decays.has(name)));
    for (const output of node.outputs) {
      if (isPlain) plain.add(output);
      else driven.add(output);
      if (decaying) decays.add(output);
    }
  }
  return { driven, decays };
}
