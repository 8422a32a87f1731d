/**
 * rename-states: gives the state inputs and outputs the names a runtime expects.
 *
 * Purpose: generic drivers find states by name.
 * Styles: `hf` (transformers exporters), `genai` (ONNX Runtime GenAI), `transformersjs` (onnx-community packages),
 * `mobius`; layers are numbered as in the source.
 * Refuses: sources whose layer numbers are not unique, since two states would share a name (exit 2).
 *
 *     before   input.cache_params.layers.0.recurrent_states.0
 *     after    past_ssm.0                                       (transformersjs)
 */

import { type Graph, useIndex, type ValueInfo } from "../src/ir/graph.js";
import { GraphEdit, renameInputs } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { readSemantic } from "../src/rewrite/semantic.js";
import { defaultStateNames, layerNumber, type StateSlot, stateSlots } from "../src/rewrite/states.js";
import { MambacError } from "../src/support/errors.js";

export const STATE_STYLES = ["hf", "genai", "transformersjs", "mobius"] as const;
export type StateStyle = (typeof STATE_STYLES)[number];

export const renameStates: Pass<{ readonly style: StateStyle }> = definePass({
  name: "rename-states",
  summary: "give state inputs and outputs the names a runtime expects",
  exactness: "bitwise",
  requires: ["states-complete"],
  establishes: [],
  invalidates: [],
  run(model, options, _context) {
    const names = new Map<string, string>();
    for (const node of model.graph.nodes) {
      const op = readSemantic(node);
      if (op === null) continue;
      for (const slot of stateSlots(op)) {
        const target = styledNames(options.style, slot);
        names.set(node.inputs[slot.input] ?? "", target.past);
        names.set(node.outputs[slot.output] ?? "", target.present);
      }
    }
    names.delete("");
    const fresh = [...names.values()];
    if (new Set(fresh).size !== fresh.length) {
      throw new MambacError(
        "rename-states/clash",
        `two layers would share a state name in style ${options.style}: the source's layer numbers are not unique`,
      );
    }
    const occupied = fresh.find((name) => !names.has(name) && isUsed(model.graph, name));
    if (occupied !== undefined) {
      throw new MambacError(
        "rename-states/clash",
        `style ${options.style} needs the name ${occupied}, which another value of the graph has: choose another style`,
      );
    }
    return Promise.resolve({ model: { ...model, graph: renamed(model.graph, names) }, changed: names.size });
  },
});

function isUsed(graph: Graph, name: string): boolean {
  return (
    graph.inputs.some((input) => input.name === name) ||
    graph.initializers.has(name) ||
    useIndex(graph).producer.has(name)
  );
}

function styledNames(style: StateStyle, slot: StateSlot): { past: string; present: string } {
  const layer = layerNumber(slot.op);
  if (slot.kind === "key" || slot.kind === "value") {
    return style === "hf"
      ? {
          past: `input.past_key_values.layers.${layer}.${slot.kind}s`,
          present: `output.past_key_values.layers.${layer}.${slot.kind}s`,
        }
      : { past: `past_key_values.${layer}.${slot.kind}`, present: `present.${layer}.${slot.kind}` };
  }
  switch (style) {
    case "transformersjs":
      return defaultStateNames(slot.kind, layer);
    case "genai": {
      const name = slot.kind === "conv" ? "conv_state" : "recurrent_state";
      return { past: `past_key_values.${layer}.${name}`, present: `present.${layer}.${name}` };
    }
    case "mobius": {
      const name = slot.kind === "conv" ? "conv_state" : "ssm_state";
      return { past: `past_states.${layer}.${name}`, present: `present.${layer}.${name}` };
    }
    default: {
      const name = slot.kind === "conv" ? "conv_states" : "recurrent_states";
      return {
        past: `input.cache_params.layers.${layer}.${name}.0`,
        present: `output.cache_params.layers.${layer}.${name}.0`,
      };
    }
  }
}

function renamed(graph: Graph, names: ReadonlyMap<string, string>): Graph {
  const rename = (name: string): string => names.get(name) ?? name;
  const value = (info: ValueInfo): ValueInfo => ({ ...info, name: rename(info.name) });
  const nodes = graph.nodes.map((node) => ({ ...renameInputs(node, rename), outputs: node.outputs.map(rename) }));
  return new GraphEdit({
    ...graph,
    nodes,
    inputs: graph.inputs.map(value),
    outputs: graph.outputs.map(value),
  }).commit();
}
