/**
 * Writing function bodies. A `Body` is one level of a body: the function itself, a branch, or a loop. Constants and the
 * sizes taken from the caller's attributes are made once, at the top, and captured by the levels below.
 */

import { type AttributeInput, GraphBuilder, makeFunction, untyped } from "../ir/builder.js";
import { attr, captures, type FunctionDef, type Graph, makeNode, subgraphs } from "../ir/graph.js";
import { f32Tensor, i64Tensor, type Tensor, tensorFromBytes } from "../ir/tensor.js";
import { type DType, dtypeNumber } from "../ir/types.js";
import { invariant } from "../support/errors.js";
import { OP_DOMAIN } from "./names.js";

/** Opset of every body; with IR 10 it loads in ONNX Runtime 1.20 and later. */
const OPSETS: ReadonlyMap<string, number> = new Map([["", 21]]);

/** A size: a number (in `reshape`, 0 copies and -1 infers), or a 1-element int64 value made by `size` or arithmetic. */
export type BodyDim = number | string;

export class Body {
  readonly builder: GraphBuilder;
  readonly #root: Body;
  readonly #shared: Map<string, string> = new Map();
  #levels: number = 0;

  constructor(prefix: string = "", root?: Body) {
    this.builder = new GraphBuilder(prefix);
    this.#root = root ?? this;
  }

  op(op: string, inputs: readonly string[], attributes: Readonly<Record<string, AttributeInput>> = {}): string {
    return this.builder.op(op, inputs, attributes);
  }

  #atTop(key: string, make: (builder: GraphBuilder) => string): string {
    const { builder } = this.#root;
    const known = this.#root.#shared.get(key);
    if (known !== undefined) return known;
    const name = make(builder);
    this.#root.#shared.set(key, name);
    return name;
  }

  #constant(tensor: Tensor, values: readonly number[]): string {
    const key = `${tensor.dtype}[${tensor.shape.join()}]${values.map((v) => (Object.is(v, -0) ? "-0" : v)).join()}`;
    return this.#atTop(key, (builder) => builder.constant(tensor));
  }

  /** A float32 scalar. */
  float(value: number): string {
    return this.#constant(f32Tensor([], [value]), [value]);
  }

  /** A float64 scalar. */
  double(value: number): string {
    return this.#constant(tensorFromBytes("f64", [], new Uint8Array(Float64Array.of(value).buffer)), [value]);
  }

  /** A uint8 scalar. */
  byte(value: number): string {
    return this.#constant(tensorFromBytes("u8", [], Uint8Array.of(value)), [value]);
  }

  /** An int8 scalar. */
  signedByte(value: number): string {
    return this.#constant(tensorFromBytes("i8", [], Uint8Array.of(value)), [value]);
  }

  /** An int64 scalar. */
  int(value: number): string {
    return this.#constant(i64Tensor([], [value]), [value]);
  }

  /** An int64 vector. */
  ints(...values: readonly number[]): string {
    return this.#constant(i64Tensor([values.length], values), values);
  }

  /** The caller's int attribute as an int64 vector of one element. */
  size(attribute: string): string {
    return this.#atTop(`size:${attribute}`, (builder) => {
      const scalar = builder.op("Constant", [], { value_int: attr.ref(attribute, "int") });
      return builder.op("Reshape", [scalar, builder.ints([1])]);
    });
  }

  /** The caller's float attribute as a scalar. */
  floatOf(attribute: string): string {
    return this.#atTop(`float:${attribute}`, (builder) =>
      builder.op("Constant", [], { value_float: attr.ref(attribute, "float") }),
    );
  }

  /** An int64 vector of sizes. */
  shape(...dims: readonly BodyDim[]): string {
    if (dims.every((dim) => typeof dim === "number")) return this.ints(...dims);
    return this.op(
      "Concat",
      dims.map((dim) => (typeof dim === "number" ? this.ints(dim) : dim)),
      { axis: 0 },
    );
  }

  /** Sizes start..end of a value, as an int64 vector. */
  shapeOf(value: string, start: number, end: number): string {
    return this.op("Shape", [value], { start, end });
  }

  reshape(value: string, ...dims: readonly BodyDim[]): string {
    return this.op("Reshape", [value, this.shape(...dims)]);
  }

  unsqueeze(value: string, ...axes: readonly number[]): string {
    return this.op("Unsqueeze", [value, this.ints(...axes)]);
  }

  transpose(value: string, ...perm: readonly number[]): string {
    return this.op("Transpose", [value], { perm });
  }

  /** [B,L,...] of a rank -> [L,B,1,...], so that a Scan hands out one token at a time and keeps its axis. */
  tokenMajor(value: string, rank: number): string {
    const rest = Array.from({ length: rank - 2 }, (_, axis) => axis + 3);
    return this.transpose(this.unsqueeze(value, 2), 1, 0, 2, ...rest);
  }

  cast(value: string, dtype: DType): string {
    return this.op("Cast", [value], { to: dtypeNumber(dtype) });
  }

  add(a: string, b: string): string {
    return this.op("Add", [a, b]);
  }

  sub(a: string, b: string): string {
    return this.op("Sub", [a, b]);
  }

  mul(a: string, b: string): string {
    return this.op("Mul", [a, b]);
  }

  div(a: string, b: string): string {
    return this.op("Div", [a, b]);
  }

  exp(a: string): string {
    return this.op("Exp", [a]);
  }

  matmul(a: string, b: string): string {
    return this.op("MatMul", [a, b]);
  }

  /** value[start:end] along an axis. */
  slice(value: string, axis: number, start: BodyDim, end: BodyDim): string {
    const at = (dim: BodyDim): string => (typeof dim === "number" ? this.ints(dim) : dim);
    return this.op("Slice", [value, at(start), at(end), this.ints(axis)]);
  }

  /** A level below this one, with names of its own. */
  #child(): Body {
    this.#root.#levels += 1;
    return new Body(`l${this.#root.#levels}_`, this.#root);
  }

  #graph(level: Body, name: string, inputs: readonly string[], outputs: readonly string[]): Graph {
    return level.builder.graph(name, inputs.map(untyped), outputs.map(untyped));
  }

  /** If: both branches give the same number of values, each made in the branch. */
  branch(
    condition: string,
    then: (body: Body) => readonly string[],
    otherwise: (body: Body) => readonly string[],
  ): string[] {
    const [thenBody, elseBody] = [this.#child(), this.#child()];
    const thenOutputs = then(thenBody);
    const elseOutputs = otherwise(elseBody);
    return this.builder.ops("If", [condition], thenOutputs.length, {
      then_branch: attr.graph(this.#graph(thenBody, "then", [], thenOutputs)),
      else_branch: attr.graph(this.#graph(elseBody, "else", [], elseOutputs)),
    });
  }

  /** Scan over axis 0 of `inputs`; returns the final states and the stacked outputs. */
  scan(
    states: readonly string[],
    inputs: readonly string[],
    step: (
      body: Body,
      states: readonly string[],
      inputs: readonly string[],
    ) => { readonly states: readonly string[]; readonly outputs: readonly string[] },
  ): { readonly states: readonly string[]; readonly outputs: readonly string[] } {
    const body = this.#child();
    const stateNames = states.map(() => body.builder.fresh("state"));
    const inputNames = inputs.map(() => body.builder.fresh("in"));
    const result = step(body, stateNames, inputNames);
    const outputs = [...result.states, ...result.outputs];
    const names = this.builder.ops("Scan", [...states, ...inputs], outputs.length, {
      body: attr.graph(this.#graph(body, "step", [...stateNames, ...inputNames], outputs)),
      num_scan_inputs: inputs.length,
    });
    return { states: names.slice(0, states.length), outputs: names.slice(states.length) };
  }

  /**
   * The finished function; `results` are values of the top level, in the order of `outputs`, which no branch or loop
   * captures (they are renamed).
   */
  function(
    name: string,
    signature: {
      readonly inputs: readonly string[];
      readonly outputs: readonly string[];
      readonly attributes: readonly string[];
    },
    results: readonly string[],
    doc: string,
  ): FunctionDef {
    const renamed = new Map(results.map((result, index) => [result, signature.outputs[index] ?? result]));
    const rename = (value: string): string => renamed.get(value) ?? value;
    const nodes = this.builder.nodes.map((node) =>
      makeNode(node.op, node.inputs.map(rename), node.outputs.map(rename), node.attributes),
    );
    const captured = nodes.flatMap(subgraphs).flatMap(captures);
    invariant(!captured.some((value) => renamed.has(value)), `${name}: a result is captured by a subgraph`);
    return makeFunction(OP_DOMAIN, name, signature, nodes, OPSETS, doc);
  }
}
