/**
 * Spells out the operators that ONNX Runtime's graph optimiser puts in place of standard ones, so that an optimised graph
 * reads like the one it was made of. ONNX Runtime puts them together again when it loads the result.
 */

import { GraphBuilder } from "../ir/builder.js";
import {
  type Attribute,
  attr,
  attrFloat,
  attrInt,
  attrString,
  type Graph,
  makeNode,
  type Node,
  subgraphs,
} from "../ir/graph.js";
import type { Inference } from "../ir/infer.js";
import { f32Tensor } from "../ir/tensor.js";

const MICROSOFT = "com.microsoft";

/** Activations without parameters that a fused product or convolution may end in. */
const PLAIN_ACTIVATIONS = new Set(["Relu", "Sigmoid", "Tanh"]);

/**
 * The graph with its fused products (FusedMatMul, FusedGemm), convolutions (FusedConv) and SiLUs (QuickGelu) as standard
 * operators, subgraphs included. A transposed operand whose rank `inference` does not know stays fused,
 * and so do transposed batch axes and activations with parameters.
 */
export function unfuseGraph(graph: Graph, inference: Inference): { readonly graph: Graph; readonly changed: number } {
  const builder = new GraphBuilder("mambac.unfuse.");
  const result = unfuse(graph, inference, builder);
  const initializers = new Map([...result.graph.initializers, ...builder.initializers]);
  return { graph: { ...result.graph, initializers }, changed: result.changed };
}

function unfuse(graph: Graph, inference: Inference, builder: GraphBuilder): { graph: Graph; changed: number } {
  let changed = 0;
  const nodes = graph.nodes.flatMap((node): readonly Node[] => {
    const plain = spelledOut(node, inference, builder);
    if (plain !== null) {
      changed += 1;
      return plain;
    }
    if (subgraphs(node).length === 0) return [node];
    const attributes = new Map<string, Attribute>();
    for (const [name, attribute] of node.attributes) {
      const inner = attribute.kind === "graph" ? unfuse(attribute.value, inference, builder) : null;
      changed += inner?.changed ?? 0;
      attributes.set(name, inner === null ? attribute : attr.graph(inner.graph));
    }
    return [{ ...node, attributes }];
  });
  return { graph: changed === 0 ? graph : { ...graph, nodes }, changed };
}

/** The node as standard operators that make its result under its name; null where it is none of them, or stays as it is. */
function spelledOut(node: Node, inference: Inference, builder: GraphBuilder): readonly Node[] | null {
  if (node.domain !== MICROSOFT || node.outputs.length !== 1) return null;
  switch (node.op) {
    case "FusedMatMul":
      return product(node, inference, builder);
    case "QuickGelu":
      return quickGelu(node, builder);
    case "FusedConv":
    case "FusedGemm":
      return activated(node, builder);
    default:
      return null;
  }
}

/** alpha * op(A) op(B). */
function product(node: Node, inference: Inference, builder: GraphBuilder): readonly Node[] | null {
  if (attrInt(node, "transBatchA", 0) !== 0 || attrInt(node, "transBatchB", 0) !== 0) return null;
  const alpha = attrFloat(node, "alpha", 1);
  const nodes: Node[] = [];
  const operands: string[] = [];
  for (const [at, flag] of ["transA", "transB"].entries()) {
    const name = node.inputs[at] ?? "";
    const rank = inference.values.get(name)?.shape?.length;
    if (attrInt(node, flag, 0) === 0) {
      operands.push(name);
      continue;
    }
    if (rank === undefined) return null;
    // Of a vector there is nothing to turn around.
    if (rank < 2) {
      operands.push(name);
      continue;
    }
    const perm = Array.from({ length: rank }, (_, axis) => (axis < rank - 2 ? axis : 2 * rank - 3 - axis));
    const turned = builder.fresh("turned");
    nodes.push(makeNode("Transpose", [name], [turned], new Map([["perm", attr.ints(perm)]])));
    operands.push(turned);
  }
  if (alpha === 1) return [...nodes, makeNode("MatMul", operands, node.outputs, new Map(), { name: node.name })];
  const plain = builder.fresh("product");
  return [
    ...nodes,
    makeNode("MatMul", operands, [plain], new Map(), { name: node.name }),
    makeNode("Mul", [plain, scalar(builder, alpha)], node.outputs),
  ];
}

/** x * sigmoid(alpha * x): a SiLU where alpha is 1. */
function quickGelu(node: Node, builder: GraphBuilder): readonly Node[] {
  const alpha = attrFloat(node, "alpha", 1.702);
  const [x = ""] = node.inputs;
  const nodes: Node[] = [];
  let argument = x;
  if (alpha !== 1) {
    argument = builder.fresh("scaled");
    nodes.push(makeNode("Mul", [x, scalar(builder, alpha)], [argument]));
  }
  const gate = builder.fresh("sigmoid");
  return [
    ...nodes,
    makeNode("Sigmoid", [argument], [gate], new Map(), { name: node.name }),
    makeNode("Mul", [x, gate], node.outputs),
  ];
}

/** A convolution or a product of matrices, what is added to it (the fourth input of a convolution), and an activation. */
function activated(node: Node, builder: GraphBuilder): readonly Node[] | null {
  const activation = attrString(node, "activation", "");
  if (activation !== "" && !PLAIN_ACTIVATIONS.has(activation)) return null;
  const op = node.op.slice("Fused".length);
  const kept = [...node.attributes].filter(([name]) => !name.startsWith("activation"));
  const addend = op === "Conv" ? (node.inputs[3] ?? "") : "";
  const steps: { readonly op: string; readonly second: string | null }[] = [
    ...(addend === "" ? [] : [{ op: "Add", second: addend }]),
    ...(activation === "" ? [] : [{ op: activation, second: null }]),
  ];
  const [result = ""] = node.outputs;
  let made = steps.length === 0 ? result : builder.fresh("linear");
  const nodes = [makeNode(op, node.inputs.slice(0, 3), [made], new Map(kept), { name: node.name })];
  for (const [at, step] of steps.entries()) {
    const next = at === steps.length - 1 ? result : builder.fresh("linear");
    nodes.push(makeNode(step.op, step.second === null ? [made] : [made, step.second], [next]));
    made = next;
  }
  return nodes;
}

function scalar(builder: GraphBuilder, value: number): string {
  return builder.initializer(f32Tensor([], [value]), "factor");
}
