/**
 * Random sound models: every attribute kind, value type and element type, subgraphs with captures, functions.
 *
 * A model is grown from a tape of random numbers; where the tape ends, everything is the simplest choice. So fast-check
 * shrinks a failing model by shortening its tape.
 */

import fc from "fast-check";
import type { Attribute, FunctionDef, Graph, Model, Node, ValueInfo } from "../../src/ir/graph.js";
import { stringTensor, type Tensor, tensorFromBytes } from "../../src/ir/tensor.js";
import { type Dim, DTYPES, elementCount, packedBytes, type Shape, type ValueType } from "../../src/ir/types.js";

/** A random model. Every initialiser has the type its value declares. */
export const arbitraryModel: fc.Arbitrary<Model> = fc
  .array(fc.nat(0xffffffff), { minLength: 200, maxLength: 3000, size: "max" })
  .map((tape) => new Grower(tape).model());

const TEXTS = ["", "a", "x/y.z", "日本", "é ", "\u{1f40d}", '"quoted"\n', "\u0000", "aten::mul", "\ufeffbom"];
const INTS = [
  0n,
  1n,
  -1n,
  127n,
  128n,
  -128n,
  2n ** 31n,
  -(2n ** 31n) - 1n,
  2n ** 53n + 1n,
  2n ** 63n - 1n,
  -(2n ** 63n),
];
const FLOATS = [0, -0, 1, -1.5, 2 ** -149, 3.4028234663852886e38, Number.NaN, Infinity, -Infinity, Math.fround(0.1)];

class Grower {
  readonly #tape: readonly number[];
  #at = 0;
  #names = 0;

  constructor(tape: readonly number[]) {
    this.#tape = tape;
  }

  model(): Model {
    const functions = this.#list(2, (i) => this.#function(i));
    return {
      irVersion: 3 + this.#nat(10),
      producerName: this.#text(),
      producerVersion: this.#text(),
      domain: this.#text(),
      modelVersion: this.#among(INTS),
      doc: this.#text(),
      opsets: new Map([
        ["", 7 + this.#nat(20)],
        ["test.domain", 1],
      ]),
      graph: this.#graph([], 2, functions),
      functions,
      metadata: this.#metadata(),
    };
  }

  #graph(outer: readonly string[], depth: number, functions: readonly FunctionDef[]): Graph {
    const inputs = this.#list(2, () => this.#value(this.#fresh()));
    const initializers = new Map(this.#list(2, () => [this.#fresh(), this.#tensor()]));
    const local = [...inputs.map((value) => value.name), ...initializers.keys()];
    const { nodes, names } = this.#nodes([...outer, ...local], depth, functions, []);
    const produced = [...inputs.map((value) => value.name), ...names];
    return {
      name: this.#text(),
      doc: this.#text(),
      inputs,
      outputs: produced.length === 0 ? [] : this.#list(2, () => this.#value(this.#among(produced))),
      nodes,
      initializers,
      valueInfo: new Map(names.filter(() => this.#nat(1) === 1).map((name) => [name, this.#value(name)])),
      metadata: this.#metadata(),
    };
  }

  #nodes(
    visible: readonly string[],
    depth: number,
    functions: readonly FunctionDef[],
    parameters: readonly string[],
  ): { nodes: Node[]; names: string[] } {
    const names: string[] = [];
    const nodes = this.#list(5, () => {
      const callee = functions.length > 0 && this.#nat(3) === 3 ? this.#among(functions) : null;
      const scope = [...visible, ...names];
      const node: Node = {
        name: this.#text(),
        domain: callee?.domain ?? "",
        op: callee?.name ?? "Op",
        overload: callee?.overload ?? "",
        inputs: this.#list(3, () => this.#among(["", ...scope])),
        outputs: this.#list(2, () => (this.#nat(4) === 4 ? "" : this.#fresh())),
        attributes: new Map(this.#list(2, () => [this.#fresh(), this.#attribute(scope, depth, functions, parameters)])),
        doc: this.#text(),
        metadata: this.#metadata(),
      };
      names.push(...node.outputs.filter((name) => name !== ""));
      return node;
    });
    return { nodes, names };
  }

  #attribute(
    visible: readonly string[],
    depth: number,
    functions: readonly FunctionDef[],
    parameters: readonly string[],
  ): Attribute {
    const choice = this.#nat(12);
    switch (choice) {
      case 0:
        return { kind: "int", value: this.#among(INTS) };
      case 1:
        return { kind: "float", value: this.#among(FLOATS) };
      case 2:
        return { kind: "string", value: this.#bytes(this.#nat(5)) };
      case 3:
        return { kind: "ints", value: this.#list(4, () => this.#among(INTS)) };
      case 4:
        return { kind: "floats", value: this.#list(4, () => this.#among(FLOATS)) };
      case 5:
        return { kind: "strings", value: this.#list(3, () => this.#bytes(this.#nat(5))) };
      case 6: {
        const name = this.#text();
        return name === ""
          ? { kind: "tensor", value: this.#tensor() }
          : { kind: "tensor", value: this.#tensor(), name };
      }
      case 7:
        return { kind: "tensors", value: this.#list(2, () => this.#tensor()) };
      case 8:
        return { kind: "type", value: this.#type(3) };
      case 9:
        return { kind: "types", value: this.#list(2, () => this.#type(3)) };
      case 10:
        if (parameters.length === 0) return { kind: "int", value: 0n };
        return {
          kind: "ref",
          name: this.#among(parameters),
          type: this.#among(["float", "int", "string", "tensor", "graph", "floats", "ints", "types"] as const),
        };
      case 11:
        if (depth === 0) return { kind: "float", value: 0 };
        return { kind: "graph", value: this.#graph(visible, depth - 1, functions) };
      default:
        if (depth === 0) return { kind: "graphs", value: [] };
        return { kind: "graphs", value: this.#list(2, () => this.#graph(visible, depth - 1, functions)) };
    }
  }

  #function(index: number): FunctionDef {
    const inputs = this.#list(2, () => this.#fresh());
    const attributes = this.#list(2, () => this.#fresh());
    const defaults = this.#list(2, () => this.#fresh());
    const { nodes, names } = this.#nodes(inputs, 1, [], [...attributes, ...defaults]);
    return {
      domain: "test.domain",
      name: `Function${index}`,
      overload: this.#text(),
      inputs,
      outputs: names.slice(0, this.#nat(2)),
      attributes,
      attributeDefaults: new Map(defaults.map((name) => [name, this.#attribute([], 0, [], [])])),
      nodes,
      opsets: new Map([["", 20]]),
      valueInfo: new Map(names.map((name) => [name, this.#value(name)])),
      doc: this.#text(),
      metadata: this.#metadata(),
    };
  }

  #tensor(): Tensor {
    const dtype = this.#among(DTYPES);
    const shape = this.#list(3, () => this.#nat(3));
    const doc = this.#text();
    const metadata = this.#metadata();
    const size = packedBytes(dtype, shape);
    if (size !== null) return tensorFromBytes(dtype, shape, this.#bytes(size), doc, metadata);
    return stringTensor(
      shape,
      Array.from({ length: elementCount(shape) }, () => this.#bytes(this.#nat(3))),
      doc,
      metadata,
    );
  }

  #type(depth: number): ValueType | null {
    const type = this.#plainType(depth);
    const denotation = this.#nat(5) === 5 ? "IMAGE" : "";
    return type === null || denotation === "" ? type : { ...type, denotation };
  }

  #plainType(depth: number): ValueType | null {
    const dtype = this.#among(DTYPES);
    switch (this.#nat(depth === 0 ? 4 : 7)) {
      case 0:
        return null;
      case 1:
        return { kind: "tensor", dtype, shape: this.#shape() };
      case 2:
        return { kind: "tensor", dtype, shape: [this.#dim(), 2], denotations: ["DATA_BATCH", this.#text()] };
      case 3:
        return { kind: "sparse", dtype, shape: this.#shape() };
      case 4:
        return { kind: "opaque", domain: this.#text(), name: this.#text() };
      case 5:
        return { kind: "sequence", element: this.#type(depth - 1) };
      case 6:
        return { kind: "optional", element: this.#type(depth - 1) };
      default:
        return { kind: "map", key: dtype, value: this.#type(depth - 1) };
    }
  }

  #shape(): Shape | null {
    return this.#nat(4) === 4 ? null : this.#list(3, () => this.#dim());
  }

  #dim(): Dim {
    return this.#among<Dim>([1, 0, null, "batch", "seq + 1", 2 ** 31, 2 ** 52]);
  }

  #value(name: string): ValueInfo {
    return { name, type: this.#type(3), doc: this.#text(), metadata: this.#metadata() };
  }

  #metadata(): Map<string, string> {
    return this.#nat(3) === 3 ? new Map(this.#list(3, (i) => [`${i}${this.#text()}`, this.#text()])) : new Map();
  }

  #bytes(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => this.#nat(255));
  }

  #text(): string {
    return this.#nat(2) === 2 ? this.#among(TEXTS) : "";
  }

  #fresh(): string {
    this.#names += 1;
    return `n${this.#names}`;
  }

  #list<T>(max: number, make: (index: number) => T): T[] {
    return Array.from({ length: this.#nat(max) }, (_, i) => make(i));
  }

  #among<T>(choices: readonly T[]): T {
    const choice = choices[this.#nat(choices.length - 1)];
    if (choice === undefined) throw new Error("a choice among nothing");
    return choice;
  }

  #nat(max: number): number {
    const drawn = this.#tape[this.#at++] ?? 0;
    return drawn % (max + 1);
  }
}
