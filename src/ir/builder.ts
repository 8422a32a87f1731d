/** Builds graphs and function bodies by hand with little noise. Names are fresh and dense, so output is deterministic. */

import {
  type Attribute,
  attr,
  type FunctionDef,
  type Graph,
  makeGraph,
  makeNode,
  makeValue,
  type Node,
  type ValueInfo,
} from "./graph.js";
import { f32Tensor, i64Tensor, type Tensor } from "./tensor.js";
import { tensorType, type ValueType } from "./types.js";

export type AttributeInput = Attribute | number | string | readonly number[];

/**
 * Collects nodes and constants. `op` returns the first output's name, `ops` all of them. Numbers given as attributes
 * are ints, number arrays are ints, strings are strings; floats must be given as `attr.float(...)`.
 */
export class GraphBuilder {
  readonly nodes: Node[] = [];
  readonly initializers: Map<string, Tensor> = new Map();
  readonly #prefix: string;
  #next = 0;

  constructor(prefix: string) {
    this.#prefix = prefix;
  }

  /** A fresh value name. */
  fresh(hint: string = "v"): string {
    this.#next += 1;
    return `${this.#prefix}${hint}_${this.#next}`;
  }

  op(
    op: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, AttributeInput>> = {},
    output?: string,
  ): string {
    const name = output ?? this.fresh(op.toLowerCase());
    this.nodes.push(makeNode(op, inputs, [name], toAttributes(attributes)));
    return name;
  }

  ops(
    op: string,
    inputs: readonly string[],
    outputs: number | readonly string[],
    attributes: Readonly<Record<string, AttributeInput>> = {},
    domain: string = "",
  ): string[] {
    const names =
      typeof outputs === "number" ? Array.from({ length: outputs }, () => this.fresh(op.toLowerCase())) : [...outputs];
    this.nodes.push(makeNode(op, inputs, names, toAttributes(attributes), { domain }));
    return names;
  }

  /** An initialiser; for main graphs and subgraphs only, function bodies have none. */
  initializer(tensor: Tensor, hint: string = "const"): string {
    const name = this.fresh(hint);
    this.initializers.set(name, tensor);
    return name;
  }

  /** A Constant node, usable in function bodies. */
  constant(tensor: Tensor): string {
    return this.op("Constant", [], { value: attr.tensor(tensor) });
  }

  ints(values: readonly number[]): string {
    return this.constant(i64Tensor([values.length], values));
  }

  int(value: number): string {
    return this.constant(i64Tensor([], [value]));
  }

  float(value: number): string {
    return this.constant(f32Tensor([], [value]));
  }

  graph(name: string, inputs: readonly ValueInfo[], outputs: readonly ValueInfo[]): Graph {
    return makeGraph({ name, inputs, outputs, nodes: this.nodes, initializers: this.initializers });
  }
}

function toAttributes(record: Readonly<Record<string, AttributeInput>>): Map<string, Attribute> {
  const out = new Map<string, Attribute>();
  for (const [name, value] of Object.entries(record)) {
    if (typeof value === "number") out.set(name, attr.int(value));
    else if (typeof value === "string") out.set(name, attr.string(value));
    else if (isNumberList(value)) out.set(name, attr.ints(value));
    else out.set(name, value);
  }
  return out;
}

function isNumberList(value: AttributeInput): value is readonly number[] {
  return Array.isArray(value);
}

/** A value whose type the runtime may infer; enough for subgraph inputs and outputs. */
export function untyped(name: string): ValueInfo {
  return makeValue(name, null);
}

export function typed(
  name: string,
  dtype: Parameters<typeof tensorType>[0],
  shape: Parameters<typeof tensorType>[1],
): ValueInfo {
  const type: ValueType = tensorType(dtype, shape);
  return makeValue(name, type);
}

/** A model-local function over the nodes of a builder. */
export function makeFunction(
  domain: string,
  name: string,
  signature: {
    readonly inputs: readonly string[];
    readonly outputs: readonly string[];
    readonly attributes: readonly string[];
  },
  nodes: readonly Node[],
  opsets: ReadonlyMap<string, number>,
  doc: string,
): FunctionDef {
  return {
    domain,
    name,
    overload: "",
    inputs: signature.inputs,
    outputs: signature.outputs,
    attributes: signature.attributes,
    attributeDefaults: new Map(),
    nodes,
    opsets,
    valueInfo: new Map(),
    doc,
    metadata: new Map(),
  };
}
