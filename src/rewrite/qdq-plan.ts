/** Where quantized activations begin and end around the projections that read them. */

import type { Node } from "../ir/graph.js";
import type { LinearSite, Sites } from "./sites.js";

/** Operators that hand on the values of their first input as they are; integer hardware runs them on codes. */
const MOVEMENTS = new Set(["Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"]);

/** A vector that is added to the result of a projection, and nothing else is done with it. */
export interface BiasSite {
  readonly node: Node;
  /** Initialiser. */
  readonly bias: string;
  readonly output: string;
}

export interface QdqPlan {
  /** Values that projections read in float as yet, in the order of their first reader. */
  readonly inputs: readonly string[];
  /** Results that get a pair which all their readers see; empty unless results are asked for. */
  readonly results: readonly string[];
  readonly biases: readonly BiasSite[];
  /** Values on the grid of another that they are parts or views of; each comes after the one it follows. */
  readonly moved: ReadonlyMap<string, string>;
}

/**
 * Pairs for these projections. With `results`, operators are complete: the result of a projection gets a pair too, so does
 * that of its bias, and as long as a result is only moved about, every value on its way has the grid it started with.
 */
export function qdqPlan(sites: Sites, chosen: readonly LinearSite[], results: boolean): QdqPlan {
  const inputs = [...new Set(chosen.map(({ input }) => input))];
  if (!results) return { inputs, results: [], biases: [], moved: new Map() };
  const biases = new Map(
    chosen.flatMap(({ output }) => biasOf(sites, output) ?? []).map((site) => [site.output, site]),
  );
  const made = new Set([...chosen.map(({ output }) => output), ...biases.keys()]);
  const moved = new Map<string, string>();
  for (const result of made) moves(sites, result, result, moved);
  return {
    inputs: inputs.filter((input) => !made.has(input) && !moved.has(input)),
    results: [...made],
    biases: [...biases.values()],
    moved,
  };
}

function biasOf(sites: Sites, product: string): BiasSite | null {
  const [node, ...others] = sites.index.users.get(product) ?? [];
  const [output] = node?.outputs ?? [];
  if (node?.op !== "Add" || node.domain !== "" || others.length > 0 || output === undefined) return null;
  if (sites.index.outputs.has(product)) return null;
  const bias = node.inputs.find((input) => input !== product) ?? "";
  return sites.graph.initializers.get(bias)?.dtype === "f32" ? { node, bias, output } : null;
}

/** Notes everything that is `value` moved about, which began as `result`. */
function moves(sites: Sites, value: string, result: string, moved: Map<string, string>): void {
  for (const node of sites.index.users.get(value) ?? []) {
    if (node.domain !== "" || !MOVEMENTS.has(node.op) || node.inputs[0] !== value) continue;
    for (const output of node.outputs) {
      if (output === "" || moved.has(output)) continue;
      moved.set(output, result);
      moves(sites, output, result, moved);
    }
  }
}
