/**
 * Readable text of graphs (`.irtxt`): one node a line, types where known, weights as type, hash and first values.
 *
 *     graph(%0 input_ids: i64[B,L]) -> (%3 logits: f32[B,L,96]) opset 20
 *       $0: f32[96,16] #1f00a3c2 0.125 -0.5 2 ...
 *       %1 = Gather($0, %0) : f32[B,L,16]
 *
 * With dense names, values are numbered in the order of their definition and weights in the order of their first use,
 * so the text does not change when a value is renamed. Text is for people and golden tests; nothing reads it back.
 */

import { assertNever } from "../support/errors.js";
import {
  type Attribute,
  dependencies,
  type FunctionDef,
  type Graph,
  type Model,
  type Node,
  qualifiedOp,
} from "./graph.js";
import { isFloat, isInteger, type Tensor, tensorFromBytes, toNumbers } from "./tensor.js";
import { bytesHash } from "./tensor-hash.js";
import { elementCount, formatType, type ValueType } from "./types.js";

export interface TextOptions {
  /** Number the values instead of printing their names; default true. */
  readonly dense?: boolean;
  /** Print node names, value names and metadata as comments behind `;`; default false. */
  readonly comments?: boolean;
}

/** First values of a weight that are printed. */
const SAMPLE = 3;

/** Up to this many elements a tensor is printed whole. */
const WHOLE = 8;

/** The text of a whole model: header, main graph, functions. */
export function formatModel(model: Model, options: TextOptions = {}): string {
  const printer = new Printer(options);
  printer.line(0, `model ir ${model.irVersion} ${opsetText(model.opsets)}`);
  if (printer.comments)
    for (const [key, value] of model.metadata) printer.line(0, `; ${key} = ${JSON.stringify(value)}`);
  printer.graph(model.graph, 0, "graph");
  for (const fn of model.functions) printer.fn(fn);
  return printer.text();
}

/** The text of one graph. */
export function formatGraph(graph: Graph, options: TextOptions = {}): string {
  const printer = new Printer(options);
  printer.graph(graph, 0, "graph");
  return printer.text();
}

/** The text of one function. */
export function formatFunction(fn: FunctionDef, options: TextOptions = {}): string {
  const printer = new Printer(options);
  printer.fn(fn);
  return printer.text();
}

/** `f32[2,3] #hash 1 2 3 ...`: a tensor in one line. */
export function formatTensor(tensor: Tensor): string {
  const type = `${tensor.dtype}[${tensor.shape.join(",")}]`;
  const count = elementCount(tensor.shape);
  if (count === 0) return `${type} ()`;
  if (tensor.strings !== null) {
    const texts = tensor.strings.slice(0, WHOLE).map(quoteBytes);
    return `${type} (${texts.join(", ")}${count > WHOLE ? ", ..." : ""})`;
  }
  if (!isFloat(tensor.dtype) && !isInteger(tensor.dtype)) return `${type} #${hashText(tensor)}`;
  if (count <= WHOLE) return `${type} (${numberTexts(tensor, count).join(", ")})`;
  return `${type} #${hashText(tensor)} ${numberTexts(tensor, SAMPLE).join(" ")} ...`;
}

class Printer {
  readonly comments: boolean;
  readonly #dense: boolean;
  readonly #lines: string[] = [];
  #scope = new Map<string, string>();
  #values = 0;
  #weights = 0;

  constructor(options: TextOptions) {
    this.#dense = options.dense ?? true;
    this.comments = options.comments ?? false;
  }

  text(): string {
    return `${this.#lines.join("\n")}\n`;
  }

  line(depth: number, text: string): void {
    this.#lines.push("  ".repeat(depth) + text);
  }

  graph(graph: Graph, depth: number, head: string): void {
    const outer = this.#scope;
    this.#scope = new Map(outer);
    const types = new Map<string, ValueType | null>();
    for (const value of [...graph.valueInfo.values(), ...graph.outputs, ...graph.inputs]) {
      if (value.type !== null) types.set(value.name, value.type);
    }
    const inputs = graph.inputs.map((input) => this.#typed(this.#define(input.name), input.name, types));
    const weights = [...new Set([...graph.nodes.flatMap(dependencies), ...graph.initializers.keys()])].flatMap(
      (name) => {
        const tensor = graph.initializers.get(name);
        return tensor === undefined ? [] : [{ name, tensor }];
      },
    );
    for (const { name } of weights) this.#defineWeight(name);
    for (const node of graph.nodes) for (const name of node.outputs) if (name !== "") this.#define(name);
    const outputs = graph.outputs.map((output) => this.#typed(this.#use(output.name), output.name, types));
    this.line(depth, `${head}(${inputs.join(", ")}) -> (${outputs.join(", ")})`);
    for (const { name, tensor } of weights) {
      this.line(depth + 1, `${this.#use(name)}: ${formatTensor(tensor)}${this.#comment(this.#dense ? name : "")}`);
    }
    for (const node of graph.nodes) this.#node(node, depth + 1, types);
    this.#scope = outer;
  }

  fn(fn: FunctionDef): void {
    const outer = this.#scope;
    this.#scope = new Map();
    this.#values = 0;
    const types = new Map([...fn.valueInfo.values()].map((value) => [value.name, value.type]));
    const inputs = fn.inputs.map((name) => this.#define(name));
    for (const node of fn.nodes) for (const name of node.outputs) if (name !== "") this.#define(name);
    const outputs = fn.outputs.map((name) => this.#use(name));
    const defaults = [...fn.attributeDefaults].map(([name, value]) => `${name}=${this.#attribute(value) ?? "graph"}`);
    const attributes = [...fn.attributes, ...defaults];
    const name = `${fn.domain}.${fn.name}${fn.overload === "" ? "" : `:${fn.overload}`}`;
    const parameters = attributes.length === 0 ? "" : ` {${attributes.join(", ")}}`;
    this.line(
      0,
      `function ${name}(${inputs.join(", ")})${parameters} -> (${outputs.join(", ")}) ${opsetText(fn.opsets)}`,
    );
    for (const node of fn.nodes) this.#node(node, 1, types);
    this.#scope = outer;
  }

  #node(node: Node, depth: number, types: ReadonlyMap<string, ValueType | null>): void {
    const outputs = node.outputs.map((name) => this.#use(name)).join(", ");
    const inputs = node.inputs.map((name) => this.#use(name)).join(", ");
    const inline: string[] = [];
    const graphs: { readonly head: string; readonly graph: Graph }[] = [];
    for (const [name, attribute] of node.attributes) {
      if (attribute.kind === "graph") graphs.push({ head: `${name} = graph`, graph: attribute.value });
      else if (attribute.kind === "graphs") {
        attribute.value.forEach((graph, i) => graphs.push({ head: `${name}[${i}] = graph`, graph }));
      } else inline.push(`${name}=${this.#attribute(attribute) ?? ""}`);
    }
    const attributes = inline.length === 0 ? "" : ` {${inline.join(", ")}}`;
    const overload = node.overload === "" ? "" : `:${node.overload}`;
    const known = node.outputs.some((name) => types.get(name) != null);
    const outputTypes = known ? ` : ${node.outputs.map((name) => formatType(types.get(name) ?? null)).join(", ")}` : "";
    const origin = [node.name, ...[...node.metadata].map(([key, value]) => `${key}=${JSON.stringify(value)}`)];
    const comment = this.#comment(origin.filter((part) => part !== "").join(" "));
    this.line(depth, `${outputs} = ${qualifiedOp(node)}${overload}(${inputs})${attributes}${outputTypes}${comment}`);
    for (const { head, graph } of graphs) this.graph(graph, depth + 1, head);
  }

  /** Text of an attribute; null for graphs, which get lines of their own. */
  #attribute(attribute: Attribute): string | null {
    switch (attribute.kind) {
      case "float":
        return floatText(attribute.value);
      case "int":
        return String(attribute.value);
      case "string":
        return quoteBytes(attribute.value);
      case "tensor":
        return formatTensor(attribute.value);
      case "type":
        return formatType(attribute.value);
      case "floats":
        return listText(attribute.value.map(floatText));
      case "ints":
        return listText(attribute.value.map(String));
      case "strings":
        return listText(attribute.value.map(quoteBytes));
      case "tensors":
        return listText(attribute.value.map(formatTensor));
      case "types":
        return listText(attribute.value.map(formatType));
      case "ref":
        return `@${attribute.name}`;
      case "graph":
      case "graphs":
        return null;
      default:
        return assertNever(attribute);
    }
  }

  #define(name: string): string {
    const text = this.#dense ? `%${this.#values++}` : `%${name}`;
    this.#scope.set(name, text);
    return text;
  }

  #defineWeight(name: string): void {
    // A default of an input is already called by the input's number.
    if (this.#dense && this.#scope.has(name)) return;
    this.#scope.set(name, this.#dense ? `$${this.#weights++}` : `$${name}`);
  }

  #use(name: string): string {
    return name === "" ? "_" : (this.#scope.get(name) ?? `?${name}`);
  }

  #typed(text: string, name: string, types: ReadonlyMap<string, ValueType | null>): string {
    const label = this.comments && this.#dense ? `${text} ${name}` : text;
    return `${label}: ${formatType(types.get(name) ?? null)}`;
  }

  #comment(text: string): string {
    return this.comments && text !== "" ? `  ; ${text}` : "";
  }
}

function opsetText(opsets: ReadonlyMap<string, number>): string {
  const parts = [...opsets].map(([domain, version]) => (domain === "" ? `opset ${version}` : `${domain} ${version}`));
  return parts.join(", ");
}

function listText(parts: readonly string[]): string {
  return `[${parts.join(", ")}]`;
}

const decoder = new TextDecoder();

function quoteBytes(bytes: Uint8Array): string {
  return JSON.stringify(decoder.decode(bytes));
}

/** The shortest decimal that is the same float32; numbers that are none keep all their digits. */
function floatText(value: number): string {
  if (Object.is(value, -0)) return "-0";
  if (!Number.isFinite(value) || Math.fround(value) !== value) return String(value);
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return String(short);
  }
  return String(Number(value.toPrecision(9)));
}

function numberTexts(tensor: Tensor, count: number): string[] {
  const width = tensor.byteLength / elementCount(tensor.shape);
  const head = tensorFromBytes(tensor.dtype, [count], tensor.slice(0, count * width));
  if (tensor.dtype === "i64" || tensor.dtype === "u64") return wideTexts(head);
  return Array.from(toNumbers(head), (value) => (tensor.dtype === "f64" ? String(value) : floatText(value)));
}

/** 64-bit integers beyond the reach of float64, exactly. */
function wideTexts(head: Tensor): string[] {
  const bytes = head.bytes();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: head.shape[0] ?? 0 }, (_, i) =>
    String(head.dtype === "i64" ? view.getBigInt64(i * 8, true) : view.getBigUint64(i * 8, true)),
  );
}

function hashText(tensor: Tensor): string {
  return bytesHash(tensor).toString(16).padStart(8, "0");
}
