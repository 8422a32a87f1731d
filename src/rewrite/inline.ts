/** Inlines model-local functions, so that recognition sees operators only. */

import { type Attribute, type FunctionDef, type Graph, type Model, makeNode, type Node } from "../ir/graph.js";
import { EXIT, MambacError } from "../support/errors.js";

/** Functions that exporters ship beside an operator ONNX Runtime knows itself; the operator is recognised by name. */
const KNOWN_OPERATORS = new Set([
  "LinearAttention",
  "CausalConvWithState",
  "GatedRMSNorm",
  "SkipSimplifiedLayerNormalization",
]);

const MAX_NODES = 2_000_000;

/** The model with every function call expanded, except calls of operators that are known by name. */
export function inlineFunctions(model: Model): { readonly model: Model; readonly inlined: number } {
  const functions = new Map(model.functions.map((def) => [key(def.domain, def.name, def.overload), def]));
  const isCall = (node: Node): FunctionDef | undefined =>
    KNOWN_OPERATORS.has(node.op) ? undefined : functions.get(key(node.domain, node.op, node.overload));
  let inlined = 0;
  let total = 0;
  const expand = (nodes: readonly Node[], depth: number): Node[] => {
    if (depth > 32) throw tooDeep();
    return nodes.flatMap((original) => {
      const node = mapSubgraphs(original, (graph) => ({ ...graph, nodes: expand(graph.nodes, depth) }));
      const def = isCall(node);
      total += 1;
      if (total > MAX_NODES) throw tooDeep();
      if (def === undefined) return [node];
      inlined += 1;
      return expand(instantiate(node, def, inlined), depth + 1);
    });
  };
  const graph = { ...model.graph, nodes: expand(model.graph.nodes, 0) };
  if (inlined === 0) return { model, inlined };
  const opsets = new Map(model.opsets);
  for (const def of model.functions)
    for (const [domain, version] of def.opsets) if (!opsets.has(domain)) opsets.set(domain, version);
  return {
    model: { ...model, graph, opsets, functions: model.functions.filter((def) => KNOWN_OPERATORS.has(def.name)) },
    inlined,
  };
}

function tooDeep(): MambacError {
  return new MambacError(
    "normalise/functions",
    "the model's local functions call each other without end",
    EXIT.unsupported,
  );
}

function key(domain: string, name: string, overload: string): string {
  return `${domain}:${name}:${overload}`;
}

function mapSubgraphs(node: Node, map: (graph: Graph) => Graph): Node {
  let attributes: Map<string, Attribute> | null = null;
  for (const [name, attribute] of node.attributes) {
    if (attribute.kind !== "graph") continue;
    attributes ??= new Map(node.attributes);
    attributes.set(name, { kind: "graph", value: map(attribute.value) });
  }
  return attributes === null ? node : { ...node, attributes };
}

/** The body of a function with its formal names replaced by the call's and its own names made unique. */
function instantiate(call: Node, def: FunctionDef, serial: number): Node[] {
  const names = new Map<string, string>();
  def.inputs.forEach((name, at) => names.set(name, call.inputs[at] ?? ""));
  def.outputs.forEach((name, at) => {
    const actual = call.outputs[at];
    if (actual !== undefined && actual !== "" && !names.has(name)) names.set(name, actual);
  });
  const rename = (name: string): string => {
    if (name === "") return "";
    const known = names.get(name);
    if (known !== undefined) return known;
    const fresh = `${call.name || call.op}.${serial}.${name}`;
    names.set(name, fresh);
    return fresh;
  };
  const body = def.nodes.map((node) => bind(node, call, def, rename));
  // An output that is a formal input needs a node to carry it.
  def.outputs.forEach((name, at) => {
    const actual = call.outputs[at];
    const value = names.get(name);
    if (actual !== undefined && actual !== "" && value !== actual)
      body.push(makeNode("Identity", [value ?? ""], [actual]));
  });
  return body;
}

function bind(node: Node, call: Node, def: FunctionDef, rename: (name: string) => string): Node {
  const attributes = new Map<string, Attribute>();
  for (const [name, attribute] of node.attributes) {
    if (attribute.kind === "ref") {
      const actual = call.attributes.get(attribute.name) ?? def.attributeDefaults.get(attribute.name);
      if (actual !== undefined) attributes.set(name, actual);
    } else if (attribute.kind === "graph") {
      const inner = attribute.value;
      attributes.set(name, {
        kind: "graph",
        value: {
          ...inner,
          inputs: inner.inputs.map((input) => ({ ...input, name: rename(input.name) })),
          outputs: inner.outputs.map((output) => ({ ...output, name: rename(output.name) })),
          initializers: new Map([...inner.initializers].map(([key_, tensor]) => [rename(key_), tensor])),
          valueInfo: new Map(),
          nodes: inner.nodes.map((child) => bind(child, call, def, rename)),
        },
      });
    } else attributes.set(name, attribute);
  }
  return { ...node, attributes, inputs: node.inputs.map(rename), outputs: node.outputs.map(rename) };
}
