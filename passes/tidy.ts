/**
 * tidy: removes what the other passes leave behind.
 *
 * - two Transposes in a row become one, or none;
 * - a Reshape to the shape a value already has goes away (the shapes are inferred at two sizes);
 * - Constant nodes become initialisers, and equal small constants become one;
 * - notes of exporters (stack traces, class names, paths of the machine that exported) go away;
 * - nodes without a name get that of what they make.
 *
 * Refuses nothing. Constants of two axes and more, or of 64 elements and more, are never merged: they are weights, and
 * a later pass may want to change one of them.
 *
 *     before   Transpose(0,2,1) -> Transpose(0,2,1) -> CausalConv
 *     after    CausalConv
 */

import { attr, attrInts, type Graph, makeNode, type Node, useIndex } from "../src/ir/graph.js";
import type { Tensor } from "../src/ir/tensor.js";
import { elementCount } from "../src/ir/types.js";
import { concrete, viewGraph } from "../src/rewrite/axes.js";
import { GraphEdit, renameInputs } from "../src/rewrite/edit.js";
import { withNodeNames } from "../src/rewrite/node-names.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { mainOpset } from "../src/rewrite/trials.js";

export const tidy: Pass<Record<string, never>> = definePass({
  name: "tidy",
  summary: "cancel layout changes and merge small constants the other passes leave behind",
  exactness: "bitwise",
  requires: [],
  establishes: [],
  invalidates: [],
  run(model, _options, _context) {
    let { graph } = model;
    const before = graph.nodes.length + graph.initializers.size;
    for (;;) {
      const next = cancelTransposes(graph);
      if (next === graph) break;
      graph = next;
    }
    graph = dropReshapes(graph, mainOpset(model));
    graph = withoutExporterNotes(mergeConstants(graph));
    const changed = before - graph.nodes.length - graph.initializers.size;
    return Promise.resolve({ model: withNodeNames({ ...model, graph }), changed: Math.max(0, changed) });
  },
});

function permutationOf(node: Node | undefined): number[] | null {
  const perm = node?.op === "Transpose" && node.domain === "" ? attrInts(node, "perm") : null;
  return perm?.every((axis) => axis >= 0) === true ? perm : null;
}

function cancelTransposes(graph: Graph): Graph {
  const { producer, outputs } = useIndex(graph);
  const edit = new GraphEdit(graph);
  const touched = new Set<Node>();
  let changed = 0;
  for (const node of graph.nodes) {
    const outer = permutationOf(node);
    const first = producer.get(node.inputs[0] ?? "");
    const inner = permutationOf(first);
    const [output] = node.outputs;
    if (outer === null || inner === null || first === undefined || output === undefined || touched.has(first)) continue;
    const both = outer.map((axis) => inner[axis] ?? axis);
    const source = first.inputs[0] ?? "";
    if (both.every((axis, at) => axis === at)) {
      if (outputs.has(output)) continue;
      edit.removeNode(node);
      edit.replaceValue(output, source);
    } else {
      edit.swapNode(
        node,
        makeNode("Transpose", [source], [output], new Map([["perm", attr.ints(both)]]), { name: node.name }),
      );
    }
    touched.add(node);
    changed += 1;
  }
  return changed === 0 ? graph : edit.commit();
}

function dropReshapes(graph: Graph, opset: number): Graph {
  const view = viewGraph(graph, opset);
  if (view.second === null || view.frozenLength !== null) return graph;
  const { outputs } = useIndex(graph);
  const edit = new GraphEdit(graph);
  let changed = 0;
  for (const node of graph.nodes) {
    const [input] = node.inputs;
    const [output] = node.outputs;
    if (
      node.op !== "Reshape" ||
      node.domain !== "" ||
      input === undefined ||
      output === undefined ||
      outputs.has(output)
    )
      continue;
    const same = (values: typeof view.first.values): boolean => {
      const [from, to] = [values.get(input)?.shape, values.get(output)?.shape];
      return from != null && to != null && from.length === to.length && from.every((size, axis) => size === to[axis]);
    };
    if (!same(view.first.values) || !same(view.second.inference.values) || concrete(view, input) === null) continue;
    edit.removeNode(node);
    edit.replaceValue(output, input);
    changed += 1;
  }
  return changed === 0 ? graph : edit.commit();
}

const EXPORTER_NOTE = /^(pkg\.torch\.|namespace$)/;
/** Where a stack trace names its files. */
const TRACE = 'File "';

function withoutExporterNotes(graph: Graph): Graph {
  const clean = <Noted extends Pick<Node, "doc" | "metadata">>(noted: Noted): Noted => {
    const kept = [...noted.metadata].filter(([key]) => !EXPORTER_NOTE.test(key));
    const doc = noted.doc.includes(TRACE) ? "" : noted.doc;
    return kept.length === noted.metadata.size && doc === noted.doc
      ? noted
      : { ...noted, doc, metadata: new Map(kept) };
  };
  return {
    ...graph,
    nodes: graph.nodes.map(clean),
    inputs: graph.inputs.map(clean),
    outputs: graph.outputs.map(clean),
    valueInfo: new Map([...graph.valueInfo].map(([name, info]) => [name, clean(info)])),
  };
}

const SMALL_ELEMENTS = 64;

/** Lifts Constant nodes and merges equal small initialisers; the first in graph order keeps its name. */
function mergeConstants(graph: Graph): Graph {
  const initializers = new Map<string, Tensor>(graph.initializers);
  const outputs = new Set(graph.outputs.map((value) => value.name));
  const nodes = graph.nodes.filter((node) => {
    const value = node.attributes.get("value");
    const [output] = node.outputs;
    if (
      node.op !== "Constant" ||
      node.domain !== "" ||
      value?.kind !== "tensor" ||
      output === undefined ||
      outputs.has(output)
    )
      return true;
    initializers.set(output, value.value);
    return false;
  });
  const inputs = new Set(graph.inputs.map((value) => value.name));
  const first = new Map<string, string>();
  const renamed = new Map<string, string>();
  for (const [name, tensor] of initializers) {
    if (
      tensor.strings !== null ||
      tensor.shape.length > 1 ||
      elementCount(tensor.shape) >= SMALL_ELEMENTS ||
      inputs.has(name) ||
      outputs.has(name)
    )
      continue;
    const key = `${tensor.dtype}[${tensor.shape.join(",")}]${tensor.bytes().join(",")}`;
    const known = first.get(key);
    if (known === undefined) first.set(key, name);
    else renamed.set(name, known);
  }
  for (const name of renamed.keys()) initializers.delete(name);
  const rename = (name: string): string => renamed.get(name) ?? name;
  return { ...graph, initializers, nodes: nodes.map((node) => renameInputs(node, rename)) };
}
