/**
 * divide-norm: writes RMS norms as x / sqrt(v) * gain, the spelling that runtimes fuse into one kernel.
 *
 * Purpose: exporters write x * rsqrt(v) as Reciprocal and Mul, and ONNX Runtime fuses only a division with a gain behind
 * it, so that one norm is six kernels. No paper.
 * Algebra: x * (1 / sqrt(v)) = x / sqrt(v), one rounding fewer; where no gain follows (it was folded into a projection), a
 * gain of ones.
 * Refuses: a factor that is not 1 / sqrt of something made of the squares of x; a factor that anything else reads.
 *
 *     before   Mul(x, Reciprocal(Sqrt(ReduceMean(x * x) + eps)))
 *     after    Mul(Div(x, Sqrt(ReduceMean(x * x) + eps)), ones)
 */

import { type Graph, makeNode, type Node, useIndex } from "../src/ir/graph.js";
import { f32Tensor, toNumbers } from "../src/ir/tensor.js";
import { elementCount } from "../src/ir/types.js";
import { concrete } from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { normalisedValue } from "../src/rewrite/rms-norm.js";
import { sitesOf } from "../src/rewrite/sites.js";

export const divideNorm: Pass<Record<string, never>> = definePass({
  name: "divide-norm",
  summary: "write RMS norms with a division and a gain, which runtimes fuse into one kernel",
  exactness: "real-exact",
  requires: [],
  establishes: [],
  invalidates: [],
  run(model) {
    const sites = sitesOf(model);
    const edit = new GraphEdit(model.graph);
    let changed = 0;
    for (const node of model.graph.nodes) {
      const norm = normOf(model.graph, node);
      if (norm === null || normalisedValue(sites, node) === null) continue;
      const [output = ""] = node.outputs;
      const width = hasGain(model.graph, output) ? null : (concrete(sites.view, output)?.shape?.at(-1) ?? null);
      if (norm.reciprocal === null && width === null) continue;
      const quotient = width === null ? output : edit.unused(`${output}.normalised`);
      const { name, metadata } = node;
      const divided = makeNode("Div", [norm.x, norm.root], [quotient], new Map(), { name, metadata });
      if (norm.reciprocal !== null) edit.removeNode(norm.reciprocal);
      if (width === null) edit.swapNode(node, divided);
      else {
        const gain = edit.unused(`${output}.unit_gain`);
        edit.addInitializers(new Map([[gain, f32Tensor([width], new Float32Array(width).fill(1))]]));
        edit.addNodes([divided]);
        edit.swapNode(node, makeNode("Mul", [quotient, gain], [output]));
      }
      changed += 1;
    }
    return Promise.resolve({ model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed });
  },
});

interface Norm {
  readonly x: string;
  readonly root: string;
  /** The node that the division makes useless; null where the norm is a division already. */
  readonly reciprocal: Node | null;
}

/** x times the reciprocal of a root that nothing else reads, or x over a root. */
function normOf(graph: Graph, node: Node): Norm | null {
  const { producer, users, outputs } = useIndex(graph);
  const made = (name: string, op: string): Node | null => {
    const by = producer.get(name);
    return by?.op === op && by.domain === "" ? by : null;
  };
  const [a = "", b = ""] = node.inputs;
  if (node.domain !== "" || (node.op !== "Mul" && node.op !== "Div")) return null;
  if (node.op === "Div") return made(b, "Sqrt") === null ? null : { x: a, root: b, reciprocal: null };
  for (const [x, factor] of [
    [a, b],
    [b, a],
  ] as const) {
    const quotient = made(factor, "Div");
    const overOne = quotient !== null && isOne(graph, quotient.inputs[0] ?? "");
    const reciprocal = overOne ? quotient : made(factor, "Reciprocal");
    const root = reciprocal?.inputs.at(-1) ?? "";
    if (reciprocal === null || made(root, "Sqrt") === null) continue;
    if (!outputs.has(factor) && users.get(factor)?.length === 1) return { x, root, reciprocal };
  }
  return null;
}

function isOne(graph: Graph, name: string): boolean {
  const tensor = graph.initializers.get(name);
  return tensor !== undefined && elementCount(tensor.shape) === 1 && toNumbers(tensor)[0] === 1;
}

/** Is `value` read by nothing but a product with one factor a channel? */
function hasGain(graph: Graph, value: string): boolean {
  const { users, outputs } = useIndex(graph);
  const readers = users.get(value) ?? [];
  const [reader] = readers;
  return (
    readers.length === 1 &&
    !outputs.has(value) &&
    reader?.op === "Mul" &&
    reader.inputs.some((input) => graph.initializers.get(input)?.shape.length === 1)
  );
}
