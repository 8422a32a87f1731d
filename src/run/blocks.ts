/**
 * Cuts a language-model graph at values of its residual stream, so that each part runs in a session of its own and memory
 * does not depend on the depth.
 */

import { dependencies, type Graph, type Model, makeValue, type Node, useIndex } from "../ir/graph.js";
import { type DType, tensorType } from "../ir/types.js";
import { EXIT, invariant, MambacError } from "../support/errors.js";
import type { Signature, StatePair } from "./signature.js";

/** A part of a model. It reads tokens and the other inputs of the model as far as it needs them. */
export interface Block {
  readonly model: Model;
  /** The value it takes from the block before; null for the first. */
  readonly input: string | null;
  /** The value it gives to the next block; null for the last. */
  readonly output: string | null;
  /** Watched values it makes, in graph order. */
  readonly values: readonly string[];
  /** States it carries from call to call. */
  readonly states: readonly StatePair[];
}

export interface CutOptions {
  readonly signature: Signature;
  /** Values to be looked at; blocks after the last of them are left out. */
  readonly values: ReadonlySet<string>;
  /** Where to cut, in graph order; [] keeps the graph whole. */
  readonly boundaries: readonly string[];
  /** Told when a boundary is dropped because the parts on both sides share state. */
  readonly onNotice?: (message: string) => void;
}

/**
 * The blocks that make the watched values. A value that a later block needs besides its input is computed there again
 * (positions, masks, embeddings). Throws `calibrate/value` for names that are no results of main-graph nodes.
 */
export function cutModel(model: Model, options: CutOptions): Block[] {
  const { graph } = model;
  const { producer, position } = useIndex(graph);
  for (const name of [...options.values, ...options.boundaries]) {
    if (!producer.has(name)) {
      throw new MambacError(
        "calibrate/value",
        graph.initializers.has(name) || graph.inputs.some((input) => input.name === name)
          ? `${name} is an input of the graph; statistics are taken of what nodes make`
          : `the graph makes no value ${name}`,
        EXIT.calibration,
      );
    }
  }
  const place = (name: string): number => {
    const node = producer.get(name);
    return node === undefined ? -1 : (position.get(node) ?? -1);
  };
  const byPlace = (a: string, b: string): number => place(a) - place(b);
  let boundaries = [...new Set(options.boundaries)].sort(byPlace);
  for (;;) {
    const cut = new Cut(model, options.signature, boundaries);
    const shared = cut.sharedBoundary();
    if (shared === null) return cut.blocks([...options.values].sort(byPlace));
    options.onNotice?.(`not cutting the model at ${shared}: the parts on both sides of it share state`);
    boundaries = boundaries.filter((name) => name !== shared);
  }
}

class Cut {
  readonly #model: Model;
  readonly #signature: Signature;
  readonly #boundaries: readonly string[];
  /** Block that makes each node output. */
  readonly #blockOf: ReadonlyMap<string, number>;

  constructor(model: Model, signature: Signature, boundaries: readonly string[]) {
    this.#model = model;
    this.#signature = signature;
    this.#boundaries = boundaries;
    this.#blockOf = blockOfValues(model.graph, boundaries);
  }

  /** A boundary that does not separate: the block after it needs a state of a block before, or is not after it at all. */
  sharedBoundary(): string | null {
    for (let block = 1; block <= this.#boundaries.length; block++) {
      const input = this.#boundaries[block - 1] ?? "";
      if (this.#blockOf.get(input) !== block - 1) return input;
      const { states } = this.#part(block, this.#targets(block, []));
      if (states.some(({ output }) => this.#block(output) !== block)) return input;
    }
    return null;
  }

  blocks(values: readonly string[]): Block[] {
    const last = Math.max(-1, ...values.map((name) => this.#block(name)));
    return Array.from({ length: last + 1 }, (_, block) => {
      const own = values.filter((name) => this.#block(name) === block);
      const output = block < last ? (this.#boundaries[block] ?? null) : null;
      const targets = [...own, ...(output === null ? [] : [output])];
      const { nodes, inputs, states } = this.#part(block, targets);
      const input = block === 0 ? null : (this.#boundaries[block - 1] ?? null);
      return { model: this.#partModel({ nodes, inputs, states, targets, input }), input, output, values: own, states };
    });
  }

  #block(name: string): number {
    return this.#blockOf.get(name) ?? 0;
  }

  /** What a block has to make at least: its boundary, and the states that end in it. */
  #targets(block: number, values: readonly string[]): string[] {
    const output = this.#boundaries[block];
    const states = this.#signature.states.map((state) => state.output).filter((name) => this.#block(name) === block);
    return [...values, ...(output === undefined ? [] : [output]), ...states];
  }

  /** Nodes that make `targets` from the block's input and the inputs of the model, and the states they carry. */
  #part(
    block: number,
    targets: readonly string[],
  ): {
    readonly nodes: ReadonlySet<Node>;
    readonly inputs: ReadonlySet<string>;
    readonly states: readonly StatePair[];
  } {
    const { producer } = useIndex(this.#model.graph);
    const input = block === 0 ? null : this.#boundaries[block - 1];
    const nodes = new Set<Node>();
    const inputs = new Set<string>();
    const states = new Set<StatePair>();
    const queue = [...targets];
    for (let name = queue.pop(); name !== undefined; name = queue.pop()) {
      const node = name === input ? undefined : producer.get(name);
      if (node === undefined) {
        inputs.add(name);
        const state = this.#signature.states.find((pair) => pair.input === name);
        if (state === undefined || states.has(state)) continue;
        states.add(state);
        queue.push(state.output);
      } else if (!nodes.has(node)) {
        nodes.add(node);
        queue.push(...dependencies(node));
      }
    }
    return { nodes, inputs, states: [...states] };
  }

  #partModel(part: {
    readonly nodes: ReadonlySet<Node>;
    readonly inputs: ReadonlySet<string>;
    readonly states: readonly StatePair[];
    readonly targets: readonly string[];
    readonly input: string | null;
  }): Model {
    const { graph } = this.#model;
    const nodes = graph.nodes.filter((node) => part.nodes.has(node));
    const declared = graph.inputs.filter((input) => part.inputs.has(input.name) && !graph.initializers.has(input.name));
    const { input } = part;
    const own = input === null ? [] : [makeValue(input, tensorType(this.#dtype(input), null))];
    const outputs = [...new Set([...part.targets, ...part.states.map((state) => state.output)])];
    return {
      ...this.#model,
      graph: {
        ...graph,
        inputs: [...declared, ...own],
        outputs: outputs.map((name) => makeValue(name, null)),
        nodes,
        initializers: new Map([...graph.initializers].filter(([name]) => part.inputs.has(name))),
        valueInfo: new Map(),
      },
    };
  }

  #dtype(name: string): DType {
    const type = this.#model.graph.valueInfo.get(name)?.type;
    return type?.kind === "tensor" ? type.dtype : "f32";
  }
}

/** The block of a value is the number of the last boundary it depends on. */
function blockOfValues(graph: Graph, boundaries: readonly string[]): ReadonlyMap<string, number> {
  const number = new Map(boundaries.map((name, at) => [name, at + 1]));
  const blocks = new Map<string, number>();
  for (const node of graph.nodes) {
    let block = 0;
    for (const name of dependencies(node)) block = Math.max(block, number.get(name) ?? blocks.get(name) ?? 0);
    for (const output of node.outputs) if (output !== "") blocks.set(output, block);
  }
  return blocks;
}

/**
 * Values through which everything flows from one stateful layer to the next: one before each operator that carries
 * state, but the first. Values that cost little and need no state (shapes, masks, positions, embeddings) may pass beside
 * them. Empty for graphs that have none.
 */
export function findBoundaries(model: Model, signature: Signature): string[] {
  const { graph } = model;
  const { users, position } = useIndex(graph);
  const cheap = cheapValues(graph, signature);
  const stateInputs = new Set(signature.states.map((state) => state.input));
  const outputs = new Set(graph.outputs.map((output) => output.name));
  const lastUse = (name: string): number =>
    Math.max(...(users.get(name) ?? []).map((node) => position.get(node) ?? -1), -1);
  /** Values that are still needed, with their last reader. */
  const live = new Map<string, number>();
  const found: string[] = [];
  let candidate: string | null = null;
  let carried = false;
  graph.nodes.forEach((node, at) => {
    // The cut belongs before the layer whose state comes next.
    if (node.inputs.some((name) => stateInputs.has(name))) {
      if (carried && candidate !== null) found.push(candidate);
      carried = true;
      candidate = null;
    }
    for (const [name, last] of live) if (last <= at) live.delete(name);
    for (const name of node.outputs) {
      if (name === "" || cheap.has(name) || (outputs.has(name) && lastUse(name) < 0)) continue;
      if (lastUse(name) > at) live.set(name, lastUse(name));
    }
    const [only] = live.keys();
    if (live.size === 1 && only !== undefined && node.outputs.includes(only) && carried) candidate = only;
  });
  return found;
}

/** Values made without state and without a product with weights. */
function cheapValues(graph: Graph, signature: Signature): ReadonlySet<string> {
  const dear = new Set(signature.states.map((state) => state.input));
  const cheap = new Set<string>();
  for (const node of graph.nodes) {
    // Rotary positions are products too, but of computed values.
    const product = /^(MatMul|Gemm|Conv)/.test(node.op) && node.inputs.some((name) => graph.initializers.has(name));
    const costs = product || node.domain !== "" || dependencies(node).some((name) => dear.has(name));
    for (const output of node.outputs) {
      if (output === "") continue;
      if (costs) dear.add(output);
      else cheap.add(output);
    }
  }
  return cheap;
}

/** Bytes of a model's weights. */
export function weightBytes(model: Model): number {
  let bytes = 0;
  for (const tensor of model.graph.initializers.values()) bytes += tensor.byteLength;
  invariant(Number.isSafeInteger(bytes), "more weights than can be counted");
  return bytes;
}
