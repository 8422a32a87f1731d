/**
 * complete-states: gives every scan, convolution and merged attention a state input and a state output.
 *
 * Purpose: a graph exported as a plain forward pass, or as a prefill without caches, becomes a graph that generates:
 * zeros in, and what comes out goes in again with the next tokens.
 * Algebra: the zero state is what the source started from, so with zero inputs nothing changes.
 * Names: those of the source where it has any (`names`, from a decode graph, or derived from its outputs), else
 * `past_conv.N`, `past_ssm.N` -> `present_conv.N`, `present_ssm.N`. States present already are left alone.
 * A graph with a scan that carries no state gets none at all: its convolutions start from zeros, too.
 * A mask of padding, which the source wants of its one call, is cut to the tokens of the call: what a driver gives for
 * everything seen so far is then right, too.
 * Refuses nothing: a name that is taken gets a suffix.
 *
 *     before   SelectiveScan(..., '') -> (y, '')
 *     after    SelectiveScan(..., past_ssm.0) -> (y, present_ssm.0)
 */

import { GraphBuilder } from "../src/ir/builder.js";
import { type Graph, type Model, type Node, useIndex, type ValueInfo } from "../src/ir/graph.js";
import { type Dim, tensorType } from "../src/ir/types.js";
import { isAttentionCache, tokenInput } from "../src/rewrite/axes.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import {
  CONV_INPUT,
  convNode,
  readSemantic,
  SCAN_INPUT,
  type Stateless,
  scanNode,
  semanticOps,
} from "../src/rewrite/semantic.js";
import { defaultStateNames, pastNameFor, type StateSlot, slotType, stateSlots } from "../src/rewrite/states.js";

export interface CompleteStatesOptions {
  /** Input name by output name, as a decode graph pairs them. */
  readonly names: ReadonlyMap<string, string>;
}

export const completeStates: Pass<CompleteStatesOptions> = definePass({
  name: "complete-states",
  summary: "give every scan, convolution and merged attention a state input and output",
  exactness: "bitwise",
  requires: ["scan-raised", "conv-raised"],
  establishes: ["states-complete"],
  invalidates: [],
  run(model, options, _context) {
    const { graph } = model;
    const stateless = statelessOf(graph);
    if (stateless !== null) return Promise.resolve(withoutStates(model, stateless));
    const edit = new GraphEdit(graph);
    const type = tokenInput(graph)?.type;
    const batch: Dim = type?.kind === "tensor" ? (type.shape?.[0] ?? "batch_size") : "batch_size";
    const outputs = new Set(graph.outputs.map((output) => output.name));
    const taken = valueNames(graph);
    const counters = new Map<StateSlot["kind"], number>();
    let changed = 0;
    for (const node of graph.nodes) {
      const op = readSemantic(node);
      if (op === null) continue;
      let current: Node = node;
      for (const slot of stateSlots(op)) {
        const number = counters.get(slot.kind) ?? 0;
        counters.set(slot.kind, number + 1);
        const names = defaultStateNames(slot.kind, number);
        const oldPresent = current.outputs[slot.output] ?? "";
        const present = outputs.has(oldPresent) ? oldPresent : unused(names.present, taken);
        const oldPast = current.inputs[slot.input] ?? "";
        const wanted = options.names.get(present) ?? pastNameFor(present) ?? names.past;
        const past = oldPast !== "" ? oldPast : unused(wanted, taken);
        if (oldPast === "") {
          edit.addInput(slotType(slot, batch, past));
          current = { ...current, inputs: replaced(current.inputs, slot.input, past) };
          changed += 1;
        }
        if (!outputs.has(oldPresent)) {
          edit.addOutput(slotType(slot, batch, present));
          if (oldPresent !== "") edit.replaceValue(oldPresent, present);
          current = { ...current, outputs: replaced(current.outputs, slot.output, present) };
          changed += 1;
        }
      }
      if (current !== node) edit.swapNode(node, current);
    }
    const completed = changed === 0 ? graph : retyped(edit.commit(), batch);
    const masked = cutMasks(completed);
    if (masked === null) return Promise.resolve({ model: { ...model, graph: completed }, changed });
    return Promise.resolve({ model: { ...model, graph: masked }, changed: changed + 1 });
  },
});

function statelessOf(graph: Graph): Stateless | null {
  for (const op of semanticOps(graph.nodes)) if (op.kind === "scan" && op.stateless !== undefined) return op.stateless;
  return null;
}

/** Marks everything that would carry a state, but for what the source itself gave one. */
function withoutStates(model: Model, stateless: Stateless): { readonly model: Model; readonly changed: number } {
  let changed = 0;
  const nodes = model.graph.nodes.map((node) => {
    const op = readSemantic(node);
    if (op === null || op.kind === "attention" || op.stateless !== undefined) return node;
    if ((node.inputs[op.kind === "scan" ? SCAN_INPUT.past : CONV_INPUT.past] ?? "") !== "") return node;
    changed += 1;
    const marked = { ...op, stateless };
    return marked.kind === "scan"
      ? scanNode(marked, node.inputs, node.outputs)
      : convNode(marked, node.inputs, node.outputs);
  });
  return changed === 0 ? { model, changed } : { model: { ...model, graph: { ...model.graph, nodes } }, changed };
}

function valueNames(graph: Graph): Set<string> {
  const nodes = graph.nodes.flatMap((node) => node.outputs);
  return new Set([...graph.inputs.map((input) => input.name), ...graph.initializers.keys(), ...nodes]);
}

/** The name, or the name with a number behind it where the graph has such a value already. */
function unused(name: string, taken: Set<string>): string {
  let free = name;
  for (let twin = 2; taken.has(free); twin++) free = `${name}.${twin}`;
  taken.add(free);
  return free;
}

function replaced(names: readonly string[], at: number, name: string): string[] {
  const out = [...names];
  while (out.length <= at) out.push("");
  out[at] = name;
  return out;
}

/**
 * The graph with masks of padding [B, L] cut to the tokens of the call, so that drivers may give them as they are used to: of
 * everything seen so far. Null where there is none, where attention wants all of it, and where it is cut already.
 */
function cutMasks(graph: Graph): Graph | null {
  const tokens = tokenInput(graph);
  const caches = graph.inputs.some((input) => isAttentionCache(input));
  const scans = semanticOps(graph.nodes).some(({ kind }) => kind === "scan");
  const mask = graph.inputs.find(({ name }) => name === "attention_mask" && !graph.initializers.has(name));
  if (tokens === null || caches || !scans || mask?.type?.kind !== "tensor" || mask.type.shape?.length !== 2)
    return null;
  const readers = useIndex(graph).users.get(mask.name) ?? [];
  if (!readers.some(({ outputs }) => outputs[0] !== CUT_MASK)) return null;
  const builder = new GraphBuilder("mambac.mask.");
  const length = builder.op("Shape", [tokens.name], { start: 1, end: 2 });
  const edit = new GraphEdit(graph);
  edit.replaceValue(mask.name, CUT_MASK);
  const end = builder.ints([Number.MAX_SAFE_INTEGER]);
  builder.op("Slice", [mask.name, builder.op("Neg", [length]), end, builder.ints([1])], {}, CUT_MASK);
  edit.addNodes(builder.nodes);
  const { dtype, shape } = mask.type;
  const type = tensorType(dtype, [shape[0] ?? null, "total_sequence_length"]);
  const next = edit.commit();
  return { ...next, inputs: next.inputs.map((input) => (input === mask ? { ...mask, type } : input)) };
}

const CUT_MASK = "mambac.mask.cut";

/** State outputs of merged attention grow with the cache: their declared length is that of the cache. */
function retyped(graph: Graph, batch: Dim): Graph {
  const types = new Map<string, ValueInfo>();
  for (const node of graph.nodes) {
    const op = readSemantic(node);
    if (op === null) continue;
    for (const slot of stateSlots(op)) {
      for (const name of [node.inputs[slot.input], node.outputs[slot.output]]) {
        if (name !== undefined && name !== "") types.set(name, slotType(slot, batch, name));
      }
    }
  }
  const update = (value: ValueInfo): ValueInfo => types.get(value.name) ?? value;
  return { ...graph, inputs: graph.inputs.map(update), outputs: graph.outputs.map(update) };
}
