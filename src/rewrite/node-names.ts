/**
 * Names for nodes that have none. ONNX does not ask for them, but ONNX Runtime up to 1.20 names what it fuses after the nodes
 * it fused, and refuses a graph in which two such names are equal; and profiles and viewers show nothing else.
 */

import type { Attribute, FunctionDef, Graph, Model, Node } from "../ir/graph.js";

/** The model with every nameless node named after its first output, in subgraphs and functions too. */
export function withNodeNames(model: Model): Model {
  return { ...model, graph: namedGraph(model.graph), functions: model.functions.map(namedFunction) };
}

function namedFunction(fn: FunctionDef): FunctionDef {
  return { ...fn, nodes: namedNodes(fn.nodes) };
}

function namedGraph(graph: Graph): Graph {
  return { ...graph, nodes: namedNodes(graph.nodes) };
}

function namedNodes(nodes: readonly Node[]): Node[] {
  const taken = new Set(nodes.map(({ name }) => name));
  return nodes.map((node) => {
    const inner = withNamedSubgraphs(node);
    if (inner.name !== "") return inner;
    const stem = node.outputs.find((output) => output !== "") ?? node.op;
    let name = stem;
    for (let twin = 2; taken.has(name); twin++) name = `${stem}.${twin}`;
    taken.add(name);
    return { ...inner, name };
  });
}

function withNamedSubgraphs(node: Node): Node {
  let found = false;
  const attributes = new Map<string, Attribute>();
  for (const [key, attribute] of node.attributes) {
    const named = namedAttribute(attribute);
    found ||= named !== attribute;
    attributes.set(key, named);
  }
  return found ? { ...node, attributes } : node;
}

function namedAttribute(attribute: Attribute): Attribute {
  if (attribute.kind === "graph") return { ...attribute, value: namedGraph(attribute.value) };
  if (attribute.kind === "graphs") return { ...attribute, value: attribute.value.map(namedGraph) };
  return attribute;
}
