/**
 * normalise: brings a graph into the one spelling recognition expects. Nothing is computed and no weight is touched;
 * only fused operators that are spelled out may round differently.
 *
 * - model-local functions are inlined (operators known by name keep theirs);
 * - an If whose condition is the same for any number of tokens becomes the branch it takes;
 * - Constant nodes become initialisers; Identity nodes and Casts to the type a value already has disappear;
 * - weights that are listed among the inputs, as files of old do, are no inputs;
 * - numeric dimension names ("32") become numbers; recorded shapes of intermediate values are dropped, they may be stale;
 * - operators that ONNX Runtime's optimiser fused (FusedMatMul, FusedConv, FusedGemm, QuickGelu) are spelled out again;
 * - negative entries of Transpose.perm, which TorchScript writes and ONNX Runtime refuses to load, are made positive;
 * - the main operator set is raised to 21 where that only moves attributes to inputs.
 *
 * Refuses nothing; what it cannot raise to opset 21 keeps its opset, with a remark.
 *
 *     before   Constant -> Cast(f32 -> f32) -> Identity -> MatMul
 *     after    MatMul, with an initialiser
 */

import { attr, attrInts, type Graph, type Model, type Node, useIndex, type ValueInfo } from "../src/ir/graph.js";
import { type Inference, inferConcrete } from "../src/ir/infer.js";
import { f32Tensor, i64Tensor, type Tensor } from "../src/ir/tensor.js";
import { dtypeNumber } from "../src/ir/types.js";
import { bindInputs, dimNumber } from "../src/rewrite/axes.js";
import { inlineDecidedBranches } from "../src/rewrite/branches.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { inlineFunctions } from "../src/rewrite/inline.js";
import { definePass, type Pass, type PassContext } from "../src/rewrite/pass.js";
import { mainOpset } from "../src/rewrite/trials.js";
import { unfuseGraph } from "../src/rewrite/unfuse.js";
import { TARGET_OPSET, upgradeGraph, upgradeObstacle } from "../src/rewrite/upgrade.js";

export const normalise: Pass<Record<string, never>> = definePass({
  name: "normalise",
  summary: "inline functions, lift constants, drop no-ops, repair what exporters wrote wrongly, raise to opset 21",
  exactness: "real-exact",
  requires: [],
  establishes: ["normalised"],
  invalidates: [],
  run(model, _options, context) {
    const { model: flat, inlined } = inlineFunctions(model);
    const branches = inlineDecidedBranches(flat);
    const lifted = liftConstants(branches.graph);
    const repaired = repairTransposes(lifted.graph, context);
    let graph: Graph = {
      ...repaired.graph,
      inputs: numericDims(repaired.graph.inputs.filter(({ name }) => !repaired.graph.initializers.has(name))),
      outputs: numericDims(repaired.graph.outputs),
      valueInfo: new Map(),
    };
    const opset = mainOpset(flat);
    const obstacle = upgradeObstacle(graph, opset);
    let opsets = flat.opsets;
    if (obstacle === null) {
      graph = upgradeGraph(graph, opset);
      opsets = new Map([...opsets, ["", TARGET_OPSET]]);
    } else if (opset < TARGET_OPSET) {
      context.report({
        kind: "warning",
        code: "normalise/opset",
        where: "model",
        message: `the opset stays ${opset}: ${obstacle} cannot be raised to ${TARGET_OPSET}`,
      });
    }
    const plain = unfuseGraph(graph, inferenceOf(graph, opsets.get("") ?? TARGET_OPSET));
    graph = plain.graph;
    const dropped = dropNoOps(graph, opsets.get("") ?? TARGET_OPSET);
    const next: Model = { ...flat, opsets, irVersion: Math.max(flat.irVersion, 10), graph: dropped.graph };
    return Promise.resolve({
      model: next,
      changed: inlined + branches.changed + lifted.changed + repaired.changed + plain.changed + dropped.changed,
    });
  },
});

function inferenceOf(graph: Graph, opset: number): Inference {
  return inferConcrete(graph, bindInputs(graph, { batch: 2, length: 5, past: 3 }), { opset });
}

function liftConstants(graph: Graph): { graph: Graph; changed: number } {
  const initializers = new Map<string, Tensor>(graph.initializers);
  const nodes: Node[] = [];
  for (const node of graph.nodes) {
    const value = node.op === "Constant" && node.domain === "" ? constantOf(node) : null;
    const output = node.outputs[0];
    if (value !== null && output !== undefined && !graph.outputs.some((out) => out.name === output))
      initializers.set(output, value);
    else nodes.push(node);
  }
  return { graph: { ...graph, nodes, initializers }, changed: graph.nodes.length - nodes.length };
}

function constantOf(node: Node): Tensor | null {
  for (const [name, attribute] of node.attributes) {
    if (attribute.kind === "tensor" && name === "value") return attribute.value;
    if (attribute.kind === "int") return i64Tensor([], [attribute.value]);
    if (attribute.kind === "ints") return i64Tensor([attribute.value.length], attribute.value);
    if (attribute.kind === "float") return f32Tensor([], [attribute.value]);
    if (attribute.kind === "floats") return f32Tensor([attribute.value.length], attribute.value);
  }
  return null;
}

function repairTransposes(graph: Graph, context: PassContext): { graph: Graph; changed: number } {
  let changed = 0;
  const nodes = graph.nodes.map((node) => {
    const perm = node.op === "Transpose" && node.domain === "" ? attrInts(node, "perm") : null;
    if (perm === null || perm.every((axis) => axis >= 0)) return node;
    changed += 1;
    context.report({
      kind: "applied",
      code: "normalise/negative-perm",
      where: node.name || (node.outputs[0] ?? ""),
      message: "the exporter wrote a Transpose with negative axes, which ONNX Runtime refuses to load; repaired",
    });
    return {
      ...node,
      attributes: new Map([
        ...node.attributes,
        ["perm", attr.ints(perm.map((axis) => (axis < 0 ? axis + perm.length : axis)))],
      ]),
    };
  });
  return { graph: { ...graph, nodes }, changed };
}

function numericDims(values: readonly ValueInfo[]): ValueInfo[] {
  return values.map((value) => {
    if (value.type?.kind !== "tensor" || value.type.shape === null) return value;
    return { ...value, type: { ...value.type, shape: value.type.shape.map((dim) => dimNumber(dim) ?? dim) } };
  });
}

/**
 * Drops Identity nodes and Casts that change nothing. One that only names an output of the graph goes too: what it reads
 * takes the name, unless that has a public name itself or is no result of a node.
 */
function dropNoOps(graph: Graph, opset: number): { graph: Graph; changed: number } {
  const inference = inferenceOf(graph, opset);
  const { outputs, producer } = useIndex(graph);
  const named = new Set<string>();
  const edit = new GraphEdit(graph);
  let changed = 0;
  for (const node of graph.nodes) {
    const [input] = node.inputs;
    const [output] = node.outputs;
    if (node.domain !== "" || input === undefined || output === undefined) continue;
    const from = inference.values.get(input)?.dtype;
    const to = node.attributes.get("to");
    const noCast = node.op === "Cast" && from != null && to?.kind === "int" && Number(to.value) === dtypeNumber(from);
    if (node.op !== "Identity" && !noCast) continue;
    if (outputs.has(output)) {
      if (outputs.has(input) || named.has(input) || !producer.has(input)) continue;
      named.add(input);
    }
    edit.removeNode(node);
    edit.replaceValue(output, input);
    changed += 1;
  }
  return { graph: changed === 0 ? graph : edit.commit(), changed };
}
