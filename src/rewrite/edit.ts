/**
 * Transactional edits: collect changes, then `commit` checks them all and gives a new graph, or throws and changes
 * nothing. Graphs are immutable, so nothing can be half done.
 */

import { dependencies, type Graph, type Node, useIndex, type ValueInfo } from "../ir/graph.js";
import type { Tensor } from "../ir/tensor.js";
import { invariant } from "../support/errors.js";

export class GraphEdit {
  readonly #graph: Graph;
  readonly #added: Node[] = [];
  readonly #initializers = new Map<string, Tensor>();
  readonly #replaced = new Map<string, string>();
  readonly #removed = new Set<Node>();
  readonly #swapped = new Map<Node, Node>();
  #inputs: ValueInfo[];
  #outputs: ValueInfo[];

  constructor(graph: Graph) {
    this.#graph = graph;
    this.#inputs = [...graph.inputs];
    this.#outputs = [...graph.outputs];
  }

  /** The name, or the name with a number behind it where the graph, or this edit, has such a value already. */
  unused(name: string): string {
    const { producer } = useIndex(this.#graph);
    const taken = (candidate: string): boolean =>
      this.#initializers.has(candidate) ||
      this.#graph.initializers.has(candidate) ||
      producer.has(candidate) ||
      this.#added.some((node) => node.outputs.includes(candidate)) ||
      this.#inputs.some((input) => input.name === candidate);
    let free = name;
    for (let twin = 2; taken(free); twin++) free = `${name}.${twin}`;
    return free;
  }

  addNodes(nodes: readonly Node[]): void {
    this.#added.push(...nodes);
  }

  addInitializers(tensors: ReadonlyMap<string, Tensor>): void {
    for (const [name, tensor] of tensors) {
      invariant(
        !this.#initializers.has(name) && !this.#graph.initializers.has(name),
        `initialiser ${name} exists already`,
      );
      this.#initializers.set(name, tensor);
    }
  }

  /** Every reader of `from` (graph outputs included: they keep their name) reads `to` instead. */
  replaceValue(from: string, to: string): void {
    invariant(!this.#replaced.has(from), `value ${from} is replaced twice`);
    this.#replaced.set(from, to);
  }

  removeNode(node: Node): void {
    this.#removed.add(node);
  }

  /** Puts `to` in the place of `from`; outputs must keep their names or be replaced. */
  swapNode(from: Node, to: Node): void {
    this.#swapped.set(from, to);
  }

  addInput(input: ValueInfo): void {
    invariant(!this.#inputs.some((existing) => existing.name === input.name), `input ${input.name} exists already`);
    this.#inputs.push(input);
  }

  addOutput(output: ValueInfo): void {
    invariant(!this.#outputs.some((existing) => existing.name === output.name), `output ${output.name} exists already`);
    this.#outputs.push(output);
  }

  setInputs(inputs: readonly ValueInfo[]): void {
    this.#inputs = [...inputs];
  }

  setOutputs(outputs: readonly ValueInfo[]): void {
    this.#outputs = [...outputs];
  }

  /** The new graph: sorted, without dead nodes and unused initialisers. */
  commit(): Graph {
    const resolve = (name: string): string => {
      let at = name;
      for (let hops = 0; this.#replaced.has(at); hops++) {
        invariant(hops <= this.#replaced.size, `replacement of ${name} runs in a circle`);
        at = this.#replaced.get(at) ?? at;
      }
      return at;
    };
    const kept = this.#graph.nodes
      .filter((node) => !this.#removed.has(node))
      .map((node) => this.#swapped.get(node) ?? node);
    const added = new Set(this.#added);
    const renamed = [...kept, ...this.#added].map((node) => (added.has(node) ? node : renameInputs(node, resolve)));
    const nodes = this.#keepOutputNames(renamed, resolve);
    const initializers = new Map([...this.#graph.initializers, ...this.#initializers]);
    const graph = { ...this.#graph, inputs: this.#inputs, outputs: this.#outputs, initializers, nodes };
    return pruned(sorted(graph));
  }

  /** A replaced graph output keeps its public name: its new producer takes the name over. */
  #keepOutputNames(nodes: readonly Node[], resolve: (name: string) => string): Node[] {
    let current = [...nodes];
    for (const output of this.#outputs) {
      const target = resolve(output.name);
      if (target === output.name) continue;
      current = current
        .filter(
          (node) =>
            !node.outputs.includes(output.name) || node.outputs.some((name) => name !== output.name && name !== ""),
        )
        .map((node) => ({
          ...renameInputs(node, (name) => (name === target ? output.name : name)),
          outputs: node.outputs.map((name) =>
            name === output.name ? `${output.name}.replaced` : name === target ? output.name : name,
          ),
        }));
    }
    return current;
  }
}

/** A node with its inputs renamed, captures of its subgraphs included. */
export function renameInputs(node: Node, rename: (name: string) => string): Node {
  const inputs = node.inputs.map((name) => (name === "" ? name : rename(name)));
  const sameInputs = inputs.every((name, at) => name === node.inputs[at]);
  let attributes = node.attributes;
  for (const [key, attribute] of node.attributes) {
    if (attribute.kind !== "graph") continue;
    const inner = renameCaptures(attribute.value, rename);
    if (inner !== attribute.value) attributes = new Map([...attributes, [key, { kind: "graph", value: inner }]]);
  }
  return sameInputs && attributes === node.attributes ? node : { ...node, inputs, attributes };
}

function renameCaptures(graph: Graph, rename: (name: string) => string): Graph {
  const local = new Set<string>([...graph.initializers.keys(), ...graph.inputs.map((input) => input.name)]);
  for (const node of graph.nodes) for (const output of node.outputs) local.add(output);
  const outer = (name: string): string => (local.has(name) ? name : rename(name));
  const nodes = graph.nodes.map((node) => renameInputs(node, outer));
  const outputs = graph.outputs.map((output) => ({ ...output, name: outer(output.name) }));
  const same =
    nodes.every((node, at) => node === graph.nodes[at]) &&
    outputs.every((output, at) => output.name === graph.outputs[at]?.name);
  return same ? graph : { ...graph, nodes, outputs };
}

/** The graph with its nodes in topological order (stable); throws on a cycle. */
export function sorted(graph: Graph): Graph {
  const producer = new Map<string, number>();
  graph.nodes.forEach((node, at) => {
    for (const output of node.outputs) {
      if (output === "") continue;
      invariant(!producer.has(output), `value ${output} is made twice`);
      producer.set(output, at);
    }
  });
  const order: Node[] = [];
  const state = new Uint8Array(graph.nodes.length); // 0 new, 1 waiting for what it reads, 2 placed
  const reads = graph.nodes.map((node) => dependencies(node));
  const stack = graph.nodes.map((_, at) => graph.nodes.length - 1 - at);
  for (let at = stack.at(-1); at !== undefined; at = stack.at(-1)) {
    const node = graph.nodes[at];
    invariant(node !== undefined, "sorting ran past the nodes");
    const pending = (reads[at] ?? [])
      .map((name) => producer.get(name))
      .filter((from) => from !== undefined && state[from] !== 2);
    if (state[at] === 2 || pending.length === 0) {
      if (state[at] !== 2) order.push(node);
      state[at] = 2;
      stack.pop();
      continue;
    }
    state[at] = 1;
    for (const from of pending.reverse()) {
      if (from === undefined) continue;
      invariant(state[from] !== 1, `the rewrite made a cycle through ${node.outputs[0]}`);
      stack.push(from);
    }
  }
  return { ...graph, nodes: order };
}

/** The graph without nodes and initialisers that no output needs. Inputs stay: they are the public interface. */
export function pruned(graph: Graph): Graph {
  const needed = new Set<string>(graph.outputs.map((output) => output.name));
  const nodes: Node[] = [];
  for (const node of [...graph.nodes].reverse()) {
    if (!node.outputs.some((output) => needed.has(output))) continue;
    nodes.push(node);
    for (const name of dependencies(node)) needed.add(name);
  }
  nodes.reverse();
  const initializers = new Map([...graph.initializers].filter(([name]) => needed.has(name)));
  const valueInfo = new Map([...graph.valueInfo].filter(([name]) => needed.has(name)));
  return { ...graph, nodes, initializers, valueInfo };
}
