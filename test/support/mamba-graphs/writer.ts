/**
 * Writes nodes over values whose axes have letters, so that one formula gives many spellings.
 *
 * Letters: b batch, l length, h heads (Mamba-1: channels), p head dim, n state, g groups, k chunks, q and s positions in a
 * chunk, z and y chunk states, c channels of a flat value, r anything else.
 */

import { type AttributeInput, GraphBuilder, typed } from "../../../src/ir/builder.js";
import { attr, type FunctionDef, type Graph, type Node, type ValueInfo } from "../../../src/ir/graph.js";
import { f32Tensor, i64Tensor, type Tensor } from "../../../src/ir/tensor.js";
import { elementCount } from "../../../src/ir/types.js";
import { Sampler } from "../../../src/rewrite/sampler.js";
import type { MambaSizes, Spelling } from "./spelling.js";

export interface Axed {
  readonly name: string;
  readonly axes: string;
}

/** A dimension of a shape: a number, or the batch or length of the call. */
export type ShapeDim = number | "b" | "l";

export class Writer {
  #sizes: MambaSizes;
  #spelling: Spelling;
  readonly main: GraphBuilder = new GraphBuilder("");
  readonly functions: FunctionDef[] = [];
  /** Prefix of node names, such as `layers.0`. */
  scope = "";
  /** One token: no value has the axis l. */
  single = false;
  #builder: GraphBuilder = this.main;
  readonly #seed: number;
  readonly #noise: Sampler;
  readonly #shared = new Map<string, string>();
  #subgraphs = 0;
  #dims: Readonly<Record<"b" | "l", string>> = { b: "", l: "" };

  constructor(sizes: MambaSizes, spelling: Spelling, seed: number) {
    this.#sizes = sizes;
    this.#spelling = spelling;
    this.#seed = seed;
    this.#noise = new Sampler(`${seed}/noise`);
  }

  get builder(): GraphBuilder {
    return this.#builder;
  }

  get sizes(): MambaSizes {
    return this.#sizes;
  }

  /** Writes with so many times the heads. */
  wide<T>(times: number, write: () => T): T {
    const before = this.#sizes;
    this.#sizes = { ...before, heads: times * before.heads };
    try {
      return write();
    } finally {
      this.#sizes = before;
    }
  }

  /** Writes with so many times the batch. */
  inWindows<T>(times: number, write: () => T): T {
    const { batch } = this.#spelling;
    const dims = this.#dims;
    this.#dims = { ...dims, b: this.#builder.op("Mul", [dims.b, this.ints([times])]) };
    try {
      return this.as({ batch: batch === null ? null : times * batch }, this.single, write);
    } finally {
      this.#dims = dims;
    }
  }

  get spelling(): Spelling {
    return this.#spelling;
  }

  /** Writes with another spelling, and for one token or many. */
  as<T>(changes: Partial<Spelling>, single: boolean, write: () => T): T {
    const [spelling, before] = [this.#spelling, this.single];
    this.#spelling = { ...spelling, ...changes };
    this.single = single;
    try {
      return write();
    } finally {
      this.#spelling = spelling;
      this.single = before;
    }
  }

  /** Reads batch and length of a call from its tokens [B, L]. */
  readDims(tokens: string): void {
    const shape = this.#builder.op("Shape", [tokens]);
    const one = (at: number): string => this.#builder.op("Gather", [shape, this.#builder.ints([at])], { axis: 0 });
    this.#dims = { b: one(0), l: one(1) };
  }

  /** One-element tensor of the batch or the length. */
  dim(letter: "b" | "l"): string {
    const { batch, length } = this.spelling;
    const known = letter === "b" ? batch : length;
    return known === null || (letter === "l" && this.spelling.claimsFreeLength)
      ? this.#dims[letter]
      : this.#builder.ints([known]);
  }

  /** A weight; the same label gives the same numbers in every model of these sizes and seed. */
  weight(label: string, shape: readonly number[], make: (normal: () => number) => number): string {
    const data = this.numbers(label, elementCount(shape), make);
    return this.initializer(f32Tensor(shape, data), label);
  }

  /** Random numbers; the same label gives the same in every model of this seed. */
  numbers(label: string, count: number, make: (normal: () => number) => number): Float32Array {
    const normals = new Sampler(`${this.#seed}/${this.scope}/${label}`).normal(count);
    const out = new Float32Array(count);
    let at = 0;
    const next = (): number => normals[at] ?? 0;
    for (; at < count; at++) out[at] = make(next);
    return out;
  }

  /** An initialiser of the main graph, shared with an equal one where weights are shared. */
  initializer(tensor: Tensor, label: string): string {
    if (!this.spelling.shareWeights) return this.main.initializer(tensor, `${this.scope}.${label}`);
    const key = `${tensor.dtype}[${tensor.shape.join()}]${Buffer.from(tensor.bytes()).toString("base64")}`;
    const name = this.#shared.get(key) ?? this.main.initializer(tensor, `${this.scope}.${label}`);
    this.#shared.set(key, name);
    return name;
  }

  /** A node; now and then followed by one that changes nothing. */
  op(op: string, inputs: readonly string[], attributes: Readonly<Record<string, AttributeInput>> = {}): string {
    const name = this.#builder.op(op, inputs, attributes);
    if (!NOISY.has(op) || this.#noise.uniform() >= this.spelling.noise) return name;
    return this.#noise.uniform() < 0.5
      ? this.#builder.op("Identity", [name])
      : this.#builder.op("Cast", [name], { to: 1 });
  }

  ops(
    op: string,
    inputs: readonly string[],
    outputs: number,
    attributes: Readonly<Record<string, AttributeInput>> = {},
    domain: string = "",
  ): string[] {
    return this.#builder.ops(op, inputs, outputs, attributes, domain);
  }

  ints(values: readonly number[]): string {
    return this.#builder.ints(values);
  }

  float(value: number): string {
    return this.#builder.constant(f32Tensor([], [value]));
  }

  scalar(value: number): string {
    return this.#builder.constant(i64Tensor([], [value]));
  }

  /** Axes of a set of letters in the order this model keeps them. */
  order(letters: string): string {
    const order = this.spelling.layout === "channels-first" ? "bkzyghpqslnrc" : "bkzyqslghpnrc";
    return [...new Set(letters)].sort((a, b) => order.indexOf(a) - order.indexOf(b)).join("");
  }

  /** The value with axes `axes`: transposed where the order differs, unsqueezed where it lacks one. */
  align(value: Axed, axes: string): string {
    const kept = Array.from(axes).filter((axis) => value.axes.includes(axis));
    if (kept.length !== value.axes.length) throw new Error(`cannot align ${value.axes} to ${axes}`);
    let name = value.name;
    const perm = kept.map((axis) => value.axes.indexOf(axis));
    if (perm.some((from, to) => from !== to)) name = this.op("Transpose", [name], { perm });
    const missing = Array.from(axes).flatMap((axis, at) => (value.axes.includes(axis) ? [] : [at]));
    // Leading axes need no Unsqueeze: broadcasting adds them.
    const first = Array.from(axes).findIndex((axis) => value.axes.includes(axis));
    const needed = missing.filter((at) => at > first);
    return needed.length === 0 ? name : this.op("Unsqueeze", [name, this.ints(needed.map((at) => at - first))]);
  }

  /** The value with its axes in this order, every one present. */
  exactly(value: Axed, axes: string): string {
    const name = this.align(value, axes);
    const lead = Array.from(axes).findIndex((axis) => value.axes.includes(axis));
    return lead <= 0 ? name : this.op("Unsqueeze", [name, this.ints(Array.from({ length: lead }, (_, at) => at))]);
  }

  transposed(value: Axed, axes: string): Axed {
    return { name: this.exactly(value, axes), axes };
  }

  binary(op: "Mul" | "Add" | "Sub", a: Axed, b: Axed): Axed {
    const axes = this.order(a.axes + b.axes);
    return { name: this.op(op, [this.align(a, axes), this.align(b, axes)]), axes };
  }

  mul(a: Axed, b: Axed): Axed {
    return this.binary("Mul", a, b);
  }

  /** Product with axes in the given order, `a`'s unless said otherwise. */
  product(a: Axed, b: Axed, axes: string = a.axes): Axed {
    return { name: this.op("Mul", [this.align(a, axes), this.align(b, axes)]), axes };
  }

  add(a: Axed, b: Axed): Axed {
    return this.binary("Add", a, b);
  }

  unary(op: string, a: Axed): Axed {
    return { name: this.op(op, [a.name]), axes: a.axes };
  }

  sum(value: Axed, over: string): Axed {
    const axes = Array.from(over)
      .map((axis) => value.axes.indexOf(axis))
      .sort((a, b) => a - b);
    return {
      name: this.op("ReduceSum", [value.name, this.ints(axes)], { keepdims: 0 }),
      axes: Array.from(value.axes)
        .filter((axis) => !over.includes(axis))
        .join(""),
    };
  }

  /** Sum of products over the letters that `out` lacks. */
  contract(operands: readonly Axed[], out: string, style: "einsum" | "mul-sum"): Axed {
    if (style === "einsum") {
      const equation = `${operands.map((operand) => operand.axes).join(",")}->${out}`;
      return {
        name: this.op(
          "Einsum",
          operands.map((operand) => operand.name),
          { equation },
        ),
        axes: out,
      };
    }
    const [first, ...rest] = operands;
    if (first === undefined) throw new Error("a contraction of nothing");
    const product = rest.reduce((left, right) => this.mul(left, right), first);
    const over = Array.from(product.axes)
      .filter((axis) => !out.includes(axis))
      .join("");
    const summed = this.sum(product, over);
    return this.transposed(summed, out);
  }

  /** A shape as a tensor: a constant where all of it is known, else put together at run time. */
  shape(dims: readonly ShapeDim[]): string {
    const { batch, length, claimsFreeLength } = this.spelling;
    const known = dims.map((dim) => (dim === "b" ? batch : dim === "l" ? (claimsFreeLength ? null : length) : dim));
    const plain = known.filter((dim) => dim !== null);
    if (plain.length === known.length) return this.ints(plain);
    return this.#builder.op(
      "Concat",
      dims.map((dim) => (dim === "b" || dim === "l" ? this.dim(dim) : this.ints([dim]))),
      { axis: 0 },
    );
  }

  reshape(name: string, dims: readonly ShapeDim[]): string {
    return this.op("Reshape", [name, this.shape(dims)], { allowzero: 0 });
  }

  /** Nodes written in `write` go to a subgraph. */
  subgraph(name: string, inputs: readonly ValueInfo[], write: () => readonly ValueInfo[]): Graph {
    this.#subgraphs += 1;
    const outer = this.#builder;
    this.#builder = new GraphBuilder(`${name}${this.#subgraphs}.`);
    try {
      const outputs = write();
      return this.#builder.graph(name, inputs, outputs);
    } finally {
      this.#builder = outer;
    }
  }

  /** Nodes written in `write` go to a model-local function, which is called. Gives the call's outputs. */
  inFunction(name: string, write: () => readonly string[]): string[] {
    this.#subgraphs += 1;
    const serial = this.#subgraphs;
    const outer = this.#builder;
    const inner = new GraphBuilder(`f${serial}.`);
    this.#builder = inner;
    let results: readonly string[];
    try {
      results = write();
    } finally {
      this.#builder = outer;
    }
    const made = new Set(inner.nodes.flatMap((node) => node.outputs));
    const read = [...new Set([...inner.nodes.flatMap(reads), ...results])].filter((value) => !made.has(value));
    this.functions.push({
      domain: "test.functions",
      name: `${name}${serial}`,
      overload: "",
      inputs: read,
      outputs: results,
      attributes: [],
      attributeDefaults: new Map(),
      nodes: inner.nodes,
      opsets: new Map([
        ["", this.spelling.opset],
        ["test.functions", 1],
        ["com.microsoft", 1],
      ]),
      valueInfo: new Map(),
      doc: "",
      metadata: new Map(),
    });
    return outer.ops(`${name}${serial}`, read, results.length, {}, "test.functions");
  }
}

const NOISY = new Set("Mul Add MatMul Exp Softplus Sigmoid Transpose Split Where Unsqueeze".split(" "));

function reads(node: Node): string[] {
  const own = node.inputs.filter((name) => name !== "");
  return [
    ...own,
    ...[...node.attributes.values()].flatMap((attribute) => {
      if (attribute.kind !== "graph") return [];
      const { nodes, inputs, outputs } = attribute.value;
      const local = new Set([...inputs.map((input) => input.name), ...nodes.flatMap((inner) => inner.outputs)]);
      return [...nodes.flatMap(reads), ...outputs.map((output) => output.name)].filter((name) => !local.has(name));
    }),
  ];
}

/** A float value of unknown shape, for subgraph interfaces. */
export function float(name: string): ValueInfo {
  return typed(name, "f32", null);
}

export { attr };
