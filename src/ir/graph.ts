/**
 * The graph IR: ONNX, typed and immutable.
 *
 * Values are strings, unique within a graph and its subgraphs, as in ONNX; '' is an omitted input. Everything here is
 * read-only: a rewrite makes a new graph (see `src/rewrite/edit.ts`), so a refused rewrite leaves no trace.
 */

import type { Tensor } from "./tensor.js";
import type { ValueType } from "./types.js";

/** Wire bytes of ONNX fields the IR does not model; the reader reports them, the writer writes them back as they were. */
export interface WithExtras {
  readonly extras?: Uint8Array;
}

export type Attribute = (
  | { readonly kind: "float"; readonly value: number }
  | { readonly kind: "int"; readonly value: bigint }
  | { readonly kind: "string"; readonly value: Uint8Array }
  /** `name` is the name ONNX tensors carry themselves; it means nothing. */
  | { readonly kind: "tensor"; readonly value: Tensor; readonly name?: string }
  | { readonly kind: "graph"; readonly value: Graph }
  | { readonly kind: "type"; readonly value: ValueType | null }
  | { readonly kind: "floats"; readonly value: readonly number[] }
  | { readonly kind: "ints"; readonly value: readonly bigint[] }
  | { readonly kind: "strings"; readonly value: readonly Uint8Array[] }
  | { readonly kind: "tensors"; readonly value: readonly Tensor[] }
  | { readonly kind: "graphs"; readonly value: readonly Graph[] }
  | { readonly kind: "types"; readonly value: readonly (ValueType | null)[] }
  /** Inside a function body: the value of the caller's attribute `name`. */
  | { readonly kind: "ref"; readonly name: string; readonly type: AttributeKind }
) &
  WithExtras;

export type AttributeKind = Exclude<Attribute["kind"], "ref">;

export interface Node extends WithExtras {
  readonly name: string;
  /** '' is the main ONNX domain ('ai.onnx' is read as ''). */
  readonly domain: string;
  readonly op: string;
  readonly overload: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: ReadonlyMap<string, Attribute>;
  readonly doc: string;
  readonly metadata: ReadonlyMap<string, string>;
}

export interface ValueInfo extends WithExtras {
  readonly name: string;
  readonly type: ValueType | null;
  readonly doc: string;
  readonly metadata: ReadonlyMap<string, string>;
}

export interface Graph extends WithExtras {
  readonly name: string;
  readonly doc: string;
  readonly inputs: readonly ValueInfo[];
  readonly outputs: readonly ValueInfo[];
  /** Topological order. */
  readonly nodes: readonly Node[];
  readonly initializers: ReadonlyMap<string, Tensor>;
  /** Types of intermediate values, as far as known. */
  readonly valueInfo: ReadonlyMap<string, ValueInfo>;
  readonly metadata: ReadonlyMap<string, string>;
}

export interface FunctionDef extends WithExtras {
  readonly domain: string;
  readonly name: string;
  readonly overload: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** Attributes without a default. */
  readonly attributes: readonly string[];
  readonly attributeDefaults: ReadonlyMap<string, Attribute>;
  readonly nodes: readonly Node[];
  readonly opsets: ReadonlyMap<string, number>;
  readonly valueInfo: ReadonlyMap<string, ValueInfo>;
  readonly doc: string;
  readonly metadata: ReadonlyMap<string, string>;
}

export interface Model extends WithExtras {
  readonly irVersion: number;
  readonly producerName: string;
  readonly producerVersion: string;
  readonly domain: string;
  readonly modelVersion: bigint;
  readonly doc: string;
  readonly opsets: ReadonlyMap<string, number>;
  readonly graph: Graph;
  readonly functions: readonly FunctionDef[];
  readonly metadata: ReadonlyMap<string, string>;
}

const EMPTY: ReadonlyMap<string, string> = new Map();

/** A graph with the rarely used fields filled in. */
export function makeGraph(parts: Pick<Graph, "inputs" | "outputs" | "nodes"> & Partial<Graph>): Graph {
  return { name: "main", doc: "", initializers: new Map(), valueInfo: new Map(), metadata: EMPTY, ...parts };
}

/** A model around a graph: IR 10 and opset 21 unless `parts` says otherwise. */
export function makeModel(graph: Graph, parts: Partial<Omit<Model, "graph">> = {}): Model {
  return {
    irVersion: 10,
    producerName: "",
    producerVersion: "",
    domain: "",
    modelVersion: 0n,
    doc: "",
    opsets: new Map([["", 21]]),
    functions: [],
    metadata: EMPTY,
    ...parts,
    graph,
  };
}

/** A node with the rarely used fields filled in. */
export function makeNode(
  op: string,
  inputs: readonly string[],
  outputs: readonly string[],
  attributes: ReadonlyMap<string, Attribute> = new Map(),
  rest: { readonly domain?: string; readonly name?: string; readonly metadata?: ReadonlyMap<string, string> } = {},
): Node {
  return {
    name: rest.name ?? "",
    domain: rest.domain ?? "",
    op,
    overload: "",
    inputs,
    outputs,
    attributes,
    doc: "",
    metadata: rest.metadata ?? EMPTY,
  };
}

/** A value with its type and nothing else. */
export function makeValue(name: string, type: ValueType | null): ValueInfo {
  return { name, type, doc: "", metadata: EMPTY };
}

/** `domain.op`, or just `op` for the main domain. */
export function qualifiedOp(node: { readonly domain: string; readonly op: string }): string {
  return node.domain === "" ? node.op : `${node.domain}.${node.op}`;
}

const decoder = new TextDecoder();
const encoder = new TextEncoder();

/** Integer attribute as a number, or `fallback` when the node has none. */
export function attrInt(node: Node, name: string, fallback: number): number {
  const attribute = node.attributes.get(name);
  return attribute?.kind === "int" ? Number(attribute.value) : fallback;
}

/** Float attribute, or `fallback`. */
export function attrFloat(node: Node, name: string, fallback: number): number {
  const attribute = node.attributes.get(name);
  return attribute?.kind === "float" ? attribute.value : fallback;
}

/** Integer list attribute as numbers, or null. */
export function attrInts(node: Node, name: string): number[] | null {
  const attribute = node.attributes.get(name);
  return attribute?.kind === "ints" ? attribute.value.map(Number) : null;
}

/** String attribute, or `fallback`. */
export function attrString(node: Node, name: string, fallback: string): string {
  const attribute = node.attributes.get(name);
  return attribute?.kind === "string" ? decoder.decode(attribute.value) : fallback;
}

/** Short constructors for attributes. */
export const attr = {
  int: (value: number | bigint): Attribute => ({ kind: "int", value: BigInt(value) }),
  ints: (value: readonly (number | bigint)[]): Attribute => ({ kind: "ints", value: value.map((v) => BigInt(v)) }),
  float: (value: number): Attribute => ({ kind: "float", value: Math.fround(value) }),
  floats: (value: readonly number[]): Attribute => ({ kind: "floats", value: value.map(Math.fround) }),
  string: (value: string): Attribute => ({ kind: "string", value: encoder.encode(value) }),
  tensor: (value: Tensor): Attribute => ({ kind: "tensor", value }),
  graph: (value: Graph): Attribute => ({ kind: "graph", value }),
  ref: (name: string, type: AttributeKind): Attribute => ({ kind: "ref", name, type }),
} as const;

/** The subgraphs in a node's attributes (If, Loop, Scan). */
export function subgraphs(node: Node): Graph[] {
  const out: Graph[] = [];
  for (const attribute of node.attributes.values()) {
    if (attribute.kind === "graph") out.push(attribute.value);
    else if (attribute.kind === "graphs") out.push(...attribute.value);
  }
  return out;
}

/** Names a graph reads from the scopes around it, in order of first use. */
export function captures(graph: Graph): string[] {
  const local = new Set<string>(graph.initializers.keys());
  for (const input of graph.inputs) local.add(input.name);
  for (const node of graph.nodes) for (const output of node.outputs) local.add(output);
  const free = new Set<string>();
  const read = (name: string): void => {
    if (name !== "" && !local.has(name)) free.add(name);
  };
  for (const node of graph.nodes) for (const name of dependencies(node)) read(name);
  for (const output of graph.outputs) read(output.name);
  return [...free];
}

/** Every value a node depends on: its inputs and what its subgraphs capture. Omitted inputs are left out. */
export function dependencies(node: Node): string[] {
  const inputs = node.inputs.filter((name) => name !== "");
  const inner = subgraphs(node);
  return inner.length === 0 ? inputs : [...new Set([...inputs, ...inner.flatMap(captures)])];
}

/** Who makes and who reads each value of one graph. Built once per graph. */
export interface UseIndex {
  /** Node that makes the value; undefined for inputs, initialisers and outer values. */
  readonly producer: ReadonlyMap<string, Node>;
  /** Nodes that read the value, subgraph captures included, in graph order. */
  readonly users: ReadonlyMap<string, readonly Node[]>;
  readonly outputs: ReadonlySet<string>;
  readonly position: ReadonlyMap<Node, number>;
}

const useIndexes = new WeakMap<Graph, UseIndex>();

/** The use index of a graph; cached, since graphs never change. */
export function useIndex(graph: Graph): UseIndex {
  const cached = useIndexes.get(graph);
  if (cached !== undefined) return cached;
  const producer = new Map<string, Node>();
  const users = new Map<string, Node[]>();
  const position = new Map<Node, number>();
  graph.nodes.forEach((node, at) => {
    position.set(node, at);
    for (const output of node.outputs) if (output !== "") producer.set(output, node);
    for (const name of new Set(dependencies(node))) {
      const list = users.get(name);
      if (list === undefined) users.set(name, [node]);
      else list.push(node);
    }
  });
  const index: UseIndex = { producer, users, outputs: new Set(graph.outputs.map((o) => o.name)), position };
  useIndexes.set(graph, index);
  return index;
}
