/**
 * Dimensions of a compiled model's inputs and outputs as those who feed it by hand need them: fixed where the operators
 * fix them, and under the usual names where an exporter made names up.
 */

import type { Graph, Model, ValueInfo } from "../ir/graph.js";
import type { Dim } from "../ir/types.js";
import { tokenInput } from "./axes.js";
import type { SemanticOp } from "./semantic.js";
import { slotType, stateSlots } from "./states.js";

/** Names PyTorch's exporter makes up. */
const MADE_UP = /^s\d+$/;

/** Names of the first two dimensions of token ids. */
const USUAL = ["batch_size", "sequence_length"] as const;

/**
 * The model with plain dimensions. `ops`: the semantic operators it was lowered from, which know the sizes of states. Names
 * that someone chose stay.
 */
export function withPlainDims(model: Model, ops: readonly SemanticOp[]): Model {
  const { graph } = model;
  const fixed = new Map<string, readonly (Dim | null)[]>();
  for (const slot of ops.flatMap(stateSlots)) {
    for (const name of [slot.op.node.inputs[slot.input], slot.op.node.outputs[slot.output]]) {
      const type = slotType(slot, "batch", name ?? "").type;
      if (name !== undefined && type?.kind === "tensor") fixed.set(name, type.shape ?? []);
    }
  }
  const renamed = usualNames(graph);
  const plain = (value: ValueInfo): ValueInfo => {
    if (value.type?.kind !== "tensor" || value.type.shape == null) return value;
    const sizes = fixed.get(value.name);
    const shape = value.type.shape.map((dim, axis) => {
      const size = sizes?.[axis];
      if (typeof dim === "string" && typeof size === "number") return size;
      return typeof dim === "string" ? (renamed.get(dim) ?? dim) : dim;
    });
    return { ...value, type: { ...value.type, shape } };
  };
  const valueInfo = new Map([...graph.valueInfo].map(([name, value]) => [name, plain(value)]));
  return {
    ...model,
    graph: { ...graph, inputs: graph.inputs.map(plain), outputs: graph.outputs.map(plain), valueInfo },
  };
}

function usualNames(graph: Graph): ReadonlyMap<string, string> {
  const type = tokenInput(graph)?.type;
  const shape = type?.kind === "tensor" ? (type.shape ?? []) : [];
  const taken = new Set(
    graph.inputs.flatMap((input) => (input.type?.kind === "tensor" ? (input.type.shape ?? []) : [])),
  );
  const names = new Map<string, string>();
  for (const [axis, name] of USUAL.entries()) {
    const dim = shape[axis];
    if (typeof dim === "string" && MADE_UP.test(dim) && !taken.has(name)) names.set(dim, name);
  }
  return names;
}
