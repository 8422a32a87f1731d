/**
 * Raises the main operator set of a graph to 21, the version mambac emits, where that only needs attributes moved to
 * inputs. Between 13 and 21 these operators changed form: ReduceMean and its siblings (axes, 18) and Split (num_outputs,
 * 18). Everything else that exporters write for Mamba models reads the same in both versions.
 */

import { GraphBuilder } from "../ir/builder.js";
import { type Attribute, attr, type Graph, type Node } from "../ir/graph.js";
import { i64Tensor, type Tensor } from "../ir/tensor.js";

export const TARGET_OPSET = 21;

/** Operators whose meaning or form changed between 13 and 21 in ways not handled here. */
const CHANGED = new Set(
  "BatchNormalization Resize GroupNormalization GridSample Col2Im AveragePool Optional OptionalHasElement OptionalGetElement".split(
    " ",
  ),
);

const AXES_TO_INPUT = new Set(
  "ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare".split(" "),
);

/** The first operator that keeps a graph of this opset from being raised, or null. */
export function upgradeObstacle(graph: Graph, opset: number): string | null {
  if (opset < 13 || opset > TARGET_OPSET) return `opset ${opset}`;
  for (const node of graph.nodes) {
    if (node.domain === "" && CHANGED.has(node.op)) return node.op;
    for (const attribute of node.attributes.values()) {
      const inner = attribute.kind === "graph" ? upgradeObstacle(attribute.value, opset) : null;
      if (inner !== null) return inner;
    }
  }
  return null;
}

/** The graph in opset 21; `upgradeObstacle` must be null. Subgraphs included. */
export function upgradeGraph(graph: Graph, opset: number): Graph {
  if (opset >= 18) return graph;
  const initializers = new Map<string, Tensor>(graph.initializers);
  const builder = new GraphBuilder("mambac.upgrade.");
  const nodes = graph.nodes.map((node) => upgradeNode(node, opset, builder));
  for (const [name, tensor] of builder.initializers) initializers.set(name, tensor);
  return { ...graph, nodes, initializers };
}

function upgradeNode(node: Node, opset: number, builder: GraphBuilder): Node {
  const attributes = new Map<string, Attribute>();
  for (const [name, attribute] of node.attributes) {
    attributes.set(name, attribute.kind === "graph" ? attr.graph(upgradeGraph(attribute.value, opset)) : attribute);
  }
  if (node.domain !== "") return { ...node, attributes };
  const axes = attributes.get("axes");
  if (AXES_TO_INPUT.has(node.op) && axes?.kind === "ints" && node.inputs.length === 1) {
    attributes.delete("axes");
    const name = builder.initializer(i64Tensor([axes.value.length], axes.value), "axes");
    return { ...node, attributes, inputs: [node.inputs[0] ?? "", name] };
  }
  const hasSizes = node.inputs[1] !== undefined && node.inputs[1] !== "";
  if (node.op === "Split" && !hasSizes && !attributes.has("num_outputs"))
    attributes.set("num_outputs", attr.int(node.outputs.length));
  return { ...node, attributes };
}
