/** A lowered float32 graph as the same graph in float16, with float32 where accuracy needs it. */

import { attr, type Graph, type Model, makeNode, type Node, useIndex, type ValueInfo } from "../ir/graph.js";
import { inferConcrete } from "../ir/infer.js";
import type { Tensor } from "../ir/tensor.js";
import { type DType, dtypeNumber } from "../ir/types.js";
import { opFunction } from "../ops/functions.js";
import { OP_DOMAIN, parseOpName } from "../ops/names.js";
import { invariant } from "../support/errors.js";
import { bindInputs, isAttentionCache, viewGraph } from "./axes.js";
import { renameInputs } from "./edit.js";
import { fitsHalves, HalfTally, halfWeight } from "./half-weight.js";
import { type Float, type FloatInput, isMove, isProduct, type NodeFloats, nodeFloats } from "./narrow-rules.js";
import { mainOpset } from "./trials.js";

export interface Narrowed {
  readonly model: Model;
  /** Nodes that work in float16. */
  readonly nodes: number;
  /** What rounding takes from the weights, as far as they have been read. */
  readonly tally: HalfTally;
}

/** Constants up to this size are looked at before a node is made float16; larger ones are weights. */
const SMALL = 64;

/**
 * The model with float16 weights and activations. States keep their formats; windows of convolutions and attention caches
 * are activations and become float16. Other inputs and outputs keep their types. Throws `narrow-floats/...` for quantized
 * activations; reading the weights does for those beyond halves.
 */
export function narrowed(model: Model): Narrowed {
  const graph = withoutConstantNodes(model.graph);
  const { graph: made, nodes, tally } = new Narrowing(graph, model).run();
  const functions = model.functions.map((def) =>
    def.domain === OP_DOMAIN && parseOpName(def.name) !== null ? opFunction(def.name, "f16") : def,
  );
  return { model: { ...model, graph: made, functions }, nodes, tally };
}

/** Constant nodes as initialisers. */
function withoutConstantNodes(graph: Graph): Graph {
  const outputs = new Set(graph.outputs.map(({ name }) => name));
  const initializers = new Map<string, Tensor>(graph.initializers);
  const nodes = graph.nodes.filter((node) => {
    const value = node.attributes.get("value");
    const [output = ""] = node.outputs;
    if (node.op !== "Constant" || node.domain !== "" || value?.kind !== "tensor" || outputs.has(output)) return true;
    initializers.set(output, value.value);
    return false;
  });
  return nodes.length === graph.nodes.length ? graph : { ...graph, nodes, initializers };
}

class Narrowing {
  #narrow = 0;
  readonly #graph: Graph;
  readonly #isFloat: (name: string) => boolean;
  /** Graph inputs and outputs that become float16. */
  readonly #narrowInterface: ReadonlySet<string>;
  readonly #outputs: ReadonlySet<string>;
  /** Type each computed float value is kept in, and its name. */
  readonly #kept = new Map<string, { readonly type: Float; readonly name: string }>();
  /** Names of values in their other type, by `type name`. */
  readonly #other = new Map<string, string>();
  readonly #nodes: Node[] = [];
  readonly #names: Set<string>;
  /** Initialisers read as float32, and those read as halves with their new names. */
  readonly #whole = new Set<string>();
  readonly #halves = new Map<string, string>();

  constructor(graph: Graph, model: Model) {
    this.#graph = graph;
    const opset = mainOpset(model);
    const { sizes } = viewGraph(graph, opset);
    const { values } = inferConcrete(graph, bindInputs(graph, sizes), { opset, functions: model.functions });
    const dtypeOf = (name: string): DType | null => values.get(name)?.dtype ?? declared(graph.valueInfo.get(name));
    this.#isFloat = (name) => dtypeOf(name) === "f32";
    this.#narrowInterface = narrowInterface(graph);
    this.#outputs = new Set(graph.outputs.map(({ name }) => name));
    this.#names = new Set([
      ...graph.initializers.keys(),
      ...graph.inputs.map(({ name }) => name),
      ...graph.nodes.flatMap(({ outputs }) => outputs),
    ]);
  }

  run(): { readonly graph: Graph; readonly nodes: number; readonly tally: HalfTally } {
    const graph = this.#graph;
    for (const { name, type } of graph.inputs) {
      if (type?.kind !== "tensor" || type.dtype !== "f32" || graph.initializers.has(name)) continue;
      this.#kept.set(name, { type: this.#narrowInterface.has(name) ? "f16" : "f32", name });
    }
    for (const node of graph.nodes) this.#node(node);
    for (const { name } of graph.outputs) this.#output(name);
    return { ...this.#finished(), nodes: this.#narrow };
  }

  #node(written: Node): void {
    const node = this.#isNoCast(written) ? { ...written, op: "Identity", attributes: new Map() } : written;
    const floats = this.#floatsOf(node);
    const inputs = node.inputs.map((name, index) => this.#read(name, floats.inputs(index)));
    const outputs = node.outputs.map((name, index) => {
      if (name === "" || !this.#isFloat(name)) return name;
      const type = floats.outputs(index);
      const own = this.#outputs.has(name) && type !== this.#outputType(name) ? this.#unused(`${name}.${type}`) : name;
      this.#kept.set(name, { type, name: own });
      return own;
    });
    if (outputs.some((_, index) => this.#kept.get(node.outputs[index] ?? "")?.type === "f16")) this.#narrow += 1;
    // What subgraphs capture stays float32.
    const renamed = renameInputs({ ...node, inputs: [] }, (name) => this.#read(name, "f32"));
    this.#nodes.push({ ...renamed, inputs, outputs });
  }

  #floatsOf(node: Node): NodeFloats {
    const inputs = node.inputs.map((name): FloatInput => {
      if (name === "" || !this.#isFloat(name)) return null;
      return this.#kept.get(name)?.type ?? (this.#graph.initializers.has(name) ? "constant" : null);
    });
    const fits = (index: number): boolean => {
      const tensor = this.#graph.initializers.get(node.inputs[index] ?? "");
      return tensor === undefined || tensor.byteLength > 4 * SMALL || fitsHalves(tensor);
    };
    return nodeFloats(node, inputs, { fits, feedsProducts: () => this.#feedsProducts(node) });
  }

  #feedsProducts(node: Node): boolean {
    return node.outputs.every((output) => {
      const users = useIndex(this.#graph).users.get(output) ?? [];
      if (users.length === 0 || this.#outputs.has(output)) return false;
      return users.every((user) => isProduct(user) || (isMove(user) && this.#feedsProducts(user)));
    });
  }

  /** A cast of float32 to itself. */
  #isNoCast(node: Node): boolean {
    const to = node.attributes.get("to");
    const [input = ""] = node.inputs;
    if (node.op !== "Cast" || node.domain !== "" || to?.kind !== "int") return false;
    return this.#isFloat(input) && Number(to.value) === dtypeNumber("f32");
  }

  /** The name of a value in a type; null leaves it in the type it has. */
  #read(name: string, type: Float | null): string {
    if (name === "" || !this.#isFloat(name)) return name;
    const kept = this.#kept.get(name);
    if (kept === undefined) return type === "f16" ? this.#half(name) : this.#asWhole(name);
    if (type === null || kept.type === type) return kept.name;
    const key = `${type} ${name}`;
    const known = this.#other.get(key);
    if (known !== undefined) return known;
    const made = this.#outputs.has(name) && kept.name !== name ? name : this.#unused(`${name}.${type}`);
    this.#other.set(key, made);
    this.#nodes.push(makeNode("Cast", [kept.name], [made], new Map([["to", attr.int(dtypeNumber(type))]])));
    return made;
  }

  #half(name: string): string {
    const known = this.#halves.get(name);
    if (known !== undefined) return known;
    invariant(this.#graph.initializers.has(name), `narrowed: nobody makes ${name}`);
    const made = this.#unused(`${name}.f16`);
    this.#halves.set(name, made);
    return made;
  }

  #asWhole(name: string): string {
    this.#whole.add(name);
    return name;
  }

  #outputType(name: string): Float {
    return this.#narrowInterface.has(name) ? "f16" : "f32";
  }

  #output(name: string): void {
    if (this.#kept.has(name)) this.#read(name, this.#outputType(name));
  }

  #unused(name: string): string {
    let free = name;
    for (let twin = 2; this.#names.has(free); twin++) free = `${name}.${twin}`;
    this.#names.add(free);
    return free;
  }

  #finished(): { readonly graph: Graph; readonly tally: HalfTally } {
    const graph = this.#graph;
    const tally = new HalfTally();
    const initializers = new Map<string, Tensor>();
    const back = new Map<string, string>();
    for (const [name, tensor] of graph.initializers) {
      const half = this.#halves.get(name);
      if (half === undefined || this.#whole.has(name) || this.#outputs.has(name)) initializers.set(name, tensor);
      if (half === undefined) continue;
      // A weight that nothing reads in float32 keeps its name.
      if (!initializers.has(name)) back.set(half, name);
      initializers.set(back.get(half) ?? half, halfWeight(tensor, name, tally));
    }
    const rename = (name: string): string => back.get(name) ?? name;
    const retyped = (value: ValueInfo): ValueInfo =>
      this.#narrowInterface.has(value.name) && value.type?.kind === "tensor"
        ? { ...value, type: { ...value.type, dtype: "f16" } }
        : value;
    const valueInfo = [...graph.valueInfo].filter(
      ([name]) => this.#kept.get(name)?.type !== "f16" || this.#outputs.has(name),
    );
    const made: Graph = {
      ...graph,
      inputs: graph.inputs.map(retyped),
      outputs: graph.outputs.map(retyped),
      nodes: this.#nodes.map((node) => renameInputs(node, rename)),
      initializers,
      valueInfo: new Map(valueInfo.map(([name, value]) => [name, retyped(value)])),
    };
    return { graph: made, tally };
  }
}

function declared(value: ValueInfo | undefined): DType | null {
  return value?.type?.kind === "tensor" ? value.type.dtype : null;
}

/**
 * Inputs and outputs that are activations of earlier tokens: windows of convolutions, and caches that the new keys or values
 * are joined to. Both ends of a state or none, or it would have two types.
 */
function narrowInterface(graph: Graph): Set<string> {
  const inputs = new Map(graph.inputs.map((input) => [input.name, input]));
  const outputs = new Set(graph.outputs.map(({ name }) => name));
  const found = new Set<string>();
  for (const { domain, op, inputs: read, outputs: made } of graph.nodes) {
    const isConv = domain === OP_DOMAIN && parseOpName(op)?.kind === "conv";
    const [past, present = ""] = isConv ? [inputs.get(read[3] ?? ""), made[1]] : [inputs.get(read[0] ?? ""), made[0]];
    if (past === undefined || !outputs.has(present) || declared(past) !== "f32") continue;
    if (isConv || (domain === "" && op === "Concat" && isAttentionCache(past))) found.add(past.name).add(present);
  }
  return found;
}
