/**
 * Does a graph read its tokens backwards, or look ahead? Vision models scan in several directions, and convolve over both
 * neighbours; a state carried from one call to the next means nothing there, since a token's result depends on tokens that
 * come after it.
 */

import { attrInt, attrInts, attrString, type Node } from "../ir/graph.js";
import { concrete, isLengthAxis } from "./axes.js";
import type { Tracer } from "./trace.js";

/**
 * The first node that turns the sequence of tokens around, or shuffles it, or null. Nodes of regions in `inside` do not count, but for a
 * Scan that runs backwards: a scan may be computed from sums that do, and what it is can be seen by running it.
 */
export function backwardRead(tracer: Tracer, inside: readonly { readonly nodes: readonly Node[] }[] = []): Node | null {
  const known = new Set(inside.flatMap(({ nodes }) => nodes));
  return (
    tracer.graph.nodes.find((node) => (!known.has(node) || node.op === "Scan") && turnsAround(tracer, node)) ?? null
  );
}

/** The first convolution whose result for a token reads tokens after it, or null. */
export function lookAhead(tracer: Tracer): Node | null {
  return tracer.graph.nodes.find((node) => looksAhead(tracer, node)) ?? null;
}

/** Why nothing in the graph may carry a state, for remarks. */
export function backwardReason(node: Node): string {
  const what = node.op === "Conv" ? "looks at later tokens" : "turns its tokens around";
  return (
    `the graph ${what} (${node.op} ${node.name || node.outputs[0]}), so a token's result depends on later ` +
    "tokens and no state can be carried from call to call"
  );
}

/** As many columns out as in, and some of the padding behind the last. */
function looksAhead(tracer: Tracer, node: Node): boolean {
  const [input, weight] = node.inputs;
  const [output] = node.outputs;
  if (node.op !== "Conv" || node.domain !== "" || input === undefined || weight === undefined || output === undefined)
    return false;
  const from = concrete(tracer.view, input)?.shape;
  const to = concrete(tracer.view, output)?.shape;
  const taps = concrete(tracer.view, weight)?.shape;
  if (from == null || to == null || taps == null || tracer.free.has(input)) return false;
  const pads = attrInts(node, "pads");
  const same = attrString(node, "auto_pad", "NOTSET").startsWith("SAME");
  return from.some((size, axis) => {
    if (axis < 2 || size !== to[axis] || (taps[axis] ?? 1) < 2 || !isLongAxis(tracer, input, axis)) return false;
    return same || (pads?.[axis - 2 + from.length - 2] ?? 0) > 0;
  });
}

function turnsAround(tracer: Tracer, node: Node): boolean {
  const [input] = node.inputs;
  if (node.op === "Scan" && node.domain === "") return (attrInts(node, "scan_input_directions") ?? []).includes(1);
  if (node.domain !== "" || input === undefined || tracer.free.has(input)) return false;
  switch (node.op) {
    case "Slice": {
      const steps = contentOf(tracer, node.inputs[4]);
      if (steps?.some((step) => step < 0) !== true) return false;
      const axes = contentOf(tracer, node.inputs[3]) ?? steps.map((_, axis) => axis);
      return steps.some((step, at) => step < 0 && isLongAxis(tracer, input, axes[at] ?? 0));
    }
    case "Gather": {
      const picks = contentOf(tracer, node.inputs[1]);
      if (picks === null || picks.length < 2 || !isLongAxis(tracer, input, attrInt(node, "axis", 0))) return false;
      return picks.some((pick, at) => at > 0 && pick < (picks[at - 1] ?? 0));
    }
    case "ReverseSequence":
      return true;
    default:
      return false;
  }
}

function isLongAxis(tracer: Tracer, name: string, axis: number): boolean {
  const shape = concrete(tracer.view, name)?.shape;
  const size = shape?.at(axis) ?? 1;
  return size > 1 && isLengthAxis(tracer.view, name, axis);
}

function contentOf(tracer: Tracer, name: string | undefined): readonly number[] | null {
  return name === undefined || name === "" ? null : (concrete(tracer.view, name)?.content ?? null);
}
