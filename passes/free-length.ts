/**
 * free-length: makes batch and length of a graph free where only its bookkeeping was frozen.
 *
 * Purpose: exporters unroll the scan and bake the traced batch and length into shapes. Once the scans are operators, the
 * rest of a Mamba graph works for any length if its constant shapes are rewritten.
 * Method: constant targets of Reshape and Expand are rewritten to copy a dimension of their input, or to read it from
 * the token input; cuts that keep everything go away. Then shapes are inferred at three other sizes; if any node
 * contradicts or the outputs do not follow, the graph stays as it was.
 * Refuses: graphs where some other constant depends on the length (position tables, baked masks); the remark names the
 * first node that contradicts.
 *
 *     before   input_ids [2, 24]; Reshape(h, [2, 24, 4, 16])
 *     after    input_ids [batch, sequence]; Reshape(h, [0, 0, 4, 16])
 */

import { GraphBuilder } from "../src/ir/builder.js";
import { attr, type Graph, type Model, type Node, type ValueInfo } from "../src/ir/graph.js";
import { inferConcrete } from "../src/ir/infer.js";
import type { Dim } from "../src/ir/types.js";
import {
  axisRoles,
  bindInputs,
  concrete,
  dataFree,
  dimNumber,
  isAttentionCache,
  type Sizes,
  tokenInput,
  type View,
  viewGraph,
} from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { semanticOps } from "../src/rewrite/semantic.js";
import { mainOpset } from "../src/rewrite/trials.js";

const TRIED: readonly Sizes[] = [
  { batch: 2, length: 5, past: 3 },
  { batch: 3, length: 41, past: 2 },
  { batch: 1, length: 1, past: 6 },
];

export const freeLength: Pass<Record<string, never>> = definePass({
  name: "free-length",
  summary: "make batch and length free where only shapes were frozen",
  exactness: "bitwise",
  requires: ["scan-raised", "conv-raised"],
  establishes: ["length-free"],
  invalidates: [],
  run(model, _options, context) {
    const scans = semanticOps(model.graph.nodes).filter((op) => op.kind === "scan");
    // Of a picture no axis is the sequence.
    if (scans.length === 0 || scans.some(({ stateless }) => stateless === "inner"))
      return Promise.resolve({ model, changed: 0 });
    const opset = mainOpset(model);
    const view = viewGraph(model.graph, opset);
    const token = tokenInput(model.graph);
    if (token === null) return Promise.resolve({ model, changed: 0 });
    const named = withFreeInputs(model.graph, token.name, view.sizes.length);
    const trouble = contradiction(named, opset);
    if (trouble === null) return Promise.resolve({ model: { ...model, graph: named }, changed: 0 });
    const rewritten = rewriteShapes(view, token.name);
    const graph = withFreeInputs(rewritten.graph, token.name, view.sizes.length);
    const remaining = contradiction(graph, opset);
    if (remaining !== null) {
      context.report({
        kind: "warning",
        code: "free-length/frozen",
        where: remaining.where,
        message: `the file works only for batch ${view.frozenBatch ?? "any"} and length ${view.frozenLength ?? "any"}: ${remaining.reason}`,
      });
      return Promise.resolve({ model, changed: 0 });
    }
    context.report({
      kind: "applied",
      code: "free-length/freed",
      where: token.name,
      message: `the source works for length ${view.frozenLength ?? "any"} only; the result works for any batch and length`,
    });
    const next: Model = { ...model, graph };
    return Promise.resolve({ model: next, changed: rewritten.changed });
  },
});

/**
 * Public inputs and outputs with free batch and length. State inputs keep their fixed sizes, and so do outputs of one token, such
 * as logits of the last, in a graph that was seen to take more (`seen`).
 */
function withFreeInputs(graph: Graph, token: string, seen: number): Graph {
  const names = dimNames(graph, token);
  const free = (value: ValueInfo, isOutput: boolean): ValueInfo => {
    if (value.type?.kind !== "tensor" || value.type.shape === null) return value;
    const { dtype, shape } = value.type;
    const perToken = value.name === token || (!isOutput && (dtype === "i64" || dtype === "i32") && shape.length === 2);
    const dims: Dim[] = shape.map((dim, axis) => {
      if (axis === 0) return names.batch;
      if (perToken && axis === 1)
        return dimNumber(dim) === null && !isOutput && value.name !== token ? dim : names.length;
      if (axis === 2 && isCacheOutput(graph, value.name)) return "total_sequence_length";
      if (isAttentionCache(value) && axis === 2) return dim;
      return dimNumber(dim) ?? dim;
    });
    if (isOutput && !isState(graph, value.name))
      return { ...value, type: { ...value.type, shape: outputDims(dims, names.length, seen) } };
    return { ...value, type: { ...value.type, shape: dims } };
  };
  return {
    ...graph,
    inputs: graph.inputs.map((input) => (graph.initializers.has(input.name) ? input : free(input, false))),
    outputs: graph.outputs.map((output) => free(output, true)),
  };
}

function outputDims(dims: readonly Dim[], length: string, seen: number): Dim[] {
  const ofOne = (dim: Dim): boolean => seen > 1 && dimNumber(dim) === 1;
  return dims.map((dim, axis) => (axis === 1 && dims.length === 3 && !ofOne(dim) ? length : dim));
}

function isState(graph: Graph, name: string): boolean {
  return semanticOps(graph.nodes).some((op) => op.node.outputs.indexOf(name) > 0);
}

/** A cache made by merged attention: as long as everything seen so far. */
function isCacheOutput(graph: Graph, name: string): boolean {
  return semanticOps(graph.nodes).some((op) => op.kind === "attention" && op.node.outputs.indexOf(name) > 0);
}

function dimNames(graph: Graph, token: string): { batch: string; length: string } {
  const type = graph.inputs.find((input) => input.name === token)?.type;
  const [batch, length] = type?.kind === "tensor" ? (type.shape ?? []) : [];
  return {
    batch: typeof batch === "string" && dimNumber(batch) === null ? batch : "batch_size",
    length: typeof length === "string" && dimNumber(length) === null ? length : "sequence_length",
  };
}

/** The first contradiction at other sizes, or null when the graph follows them. */
function contradiction(graph: Graph, opset: number): { where: string; reason: string } | null {
  for (const sizes of TRIED) {
    const { values, failures } = inferConcrete(graph, bindInputs(graph, sizes), { opset });
    const failure = failures[0];
    if (failure !== undefined)
      return { where: failure.node.name || (failure.node.outputs[0] ?? ""), reason: failure.reason };
    for (const output of graph.outputs) {
      const shape = values.get(output.name)?.shape;
      if (shape == null || output.type?.kind !== "tensor") continue;
      const declared = output.type.shape ?? [];
      const wanted = declared.map((dim, axis) =>
        axis === 0
          ? sizes.batch
          : axis === 1 && declared.length === 3 && !isState(graph, output.name)
            ? (dimNumber(dim) ?? sizes.length)
            : dimNumber(dim),
      );
      const wrong = wanted.some((size, axis) => size !== null && size !== shape[axis]);
      if (wrong)
        return {
          where: output.name,
          reason: `${output.name} has shape [${shape.join(", ")}] for batch ${sizes.batch} and length ${sizes.length}`,
        };
    }
  }
  return null;
}

function rewriteShapes(view: View, token: string): { graph: Graph; changed: number } {
  const { graph } = view;
  const free = dataFree(graph);
  const edit = new GraphEdit(graph);
  const builder = new GraphBuilder("mambac.free.");
  const sizeOf = sizeReader(builder, token);
  let changed = 0;
  for (const node of graph.nodes) {
    const [input, shape] = node.inputs;
    const [output] = node.outputs;
    if (node.domain !== "" || input === undefined || output === undefined) continue;
    const from = concrete(view, input)?.shape;
    const to = concrete(view, output)?.shape;
    if (from == null || to == null) continue;
    if (node.op === "Slice" && sameShape(from, to) && !free.has(input) && node.inputs[4] === undefined) {
      edit.removeNode(node);
      edit.replaceValue(output, input);
      changed += 1;
      continue;
    }
    if ((node.op !== "Reshape" && node.op !== "Expand") || shape === undefined || !free.has(shape)) continue;
    const roles = axisRoles(view, output);
    if (roles === null || (free.has(input) && node.op === "Reshape")) continue;
    const target = node.op === "Reshape" ? reshapeTarget(from, to, view) : expandTarget(to, roles);
    if (target === null || target.every((dim) => typeof dim === "number" && dim > 0)) continue;
    edit.swapNode(node, reshaped(node, builder, target, sizeOf));
    changed += 1;
  }
  edit.addNodes(builder.nodes);
  edit.addInitializers(builder.initializers);
  return { graph: edit.commit(), changed };
}

type TargetDim = number | "batch" | "length";

/** Leading dimensions that stay are copied (0); a later one that follows batch or length is read from the tokens. */
function reshapeTarget(from: readonly number[], to: readonly number[], view: View): TargetDim[] {
  const { batch, length } = view.sizes;
  // Tokens of all sequences in one axis: no other axis can hold the length.
  if (to[0] === batch * length && from[0] !== to[0]) return to.map((size, axis) => (axis === 0 ? -1 : size));
  let prefix = true;
  return to.map((size, axis): TargetDim => {
    prefix &&= from[axis] === size;
    if (prefix) return 0;
    if (axis === 0 && size === batch) return "batch";
    return axis === 1 && size === length ? "length" : size;
  });
}

function expandTarget(to: readonly number[], roles: readonly string[]): TargetDim[] {
  return to.map(
    (size, axis): TargetDim => (roles[axis] === "batch" ? "batch" : roles[axis] === "length" ? "length" : size),
  );
}

function reshaped(
  node: Node,
  builder: GraphBuilder,
  target: readonly TargetDim[],
  sizeOf: (axis: 0 | 1) => string,
): Node {
  const attributes = new Map(node.attributes);
  if (node.op === "Reshape") attributes.set("allowzero", attr.int(0));
  const plain = target.every((dim) => typeof dim === "number");
  const shape = plain
    ? builder.ints(target.map(Number))
    : builder.op(
        "Concat",
        target.map((dim) => (dim === "batch" ? sizeOf(0) : dim === "length" ? sizeOf(1) : builder.ints([dim]))),
        { axis: 0 },
      );
  return { ...node, attributes, inputs: [node.inputs[0] ?? "", shape] };
}

function sizeReader(builder: GraphBuilder, token: string): (axis: 0 | 1) => string {
  const known = new Map<number, string>();
  return (axis) => {
    const name = known.get(axis) ?? builder.op("Shape", [token], { start: axis, end: axis + 1 });
    known.set(axis, name);
    return name;
  };
}

function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis]);
}
