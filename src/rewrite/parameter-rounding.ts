/** Parameters of scans and convolutions put on an integer grid and back, to see what that would cost. */

import { type Graph, type Model, useIndex } from "../ir/graph.js";
import { f32Tensor } from "../ir/tensor.js";
import { dequantize } from "../quant/grid.js";
import { roundToNearest } from "../quant/round-nearest.js";
import type { WeightScheme } from "../quant/scheme.js";
import { dataFree } from "./axes.js";
import { CONV_INPUT, SCAN_INPUT, semanticOps } from "./semantic.js";
import { weightValues } from "./weights.js";

export const ROUNDED_PARAMETERS = ["conv1d", "A", "D"] as const;
export type RoundedParameter = (typeof ROUNDED_PARAMETERS)[number];

/**
 * A raised model with one kind of parameter rounded to nearest and made float again. Where it is computed from others,
 * such as A from its logarithm, those are rounded, as they are what a file holds. Throws `quant/not-finite` (exit code 5).
 */
export function roundParameter(
  model: Model,
  kind: RoundedParameter,
  scheme: WeightScheme,
): { readonly model: Model; readonly changed: number } {
  const { graph } = model;
  const names = new Set(
    semanticOps(graph.nodes).flatMap((op) => {
      if (op.kind === "conv" && kind === "conv1d") return sources(graph, op.node.inputs[CONV_INPUT.weight] ?? "");
      if (op.kind === "scan" && kind !== "conv1d") return sources(graph, op.node.inputs[SCAN_INPUT[kind]] ?? "");
      return [];
    }),
  );
  const initializers = new Map(graph.initializers);
  for (const name of names) {
    const tensor = graph.initializers.get(name);
    if (tensor === undefined) continue;
    const weight = { label: name, shape: tensor.shape, data: weightValues(tensor) };
    initializers.set(name, f32Tensor(tensor.shape, dequantize(roundToNearest(weight, scheme))));
  }
  return { model: { ...model, graph: { ...graph, initializers } }, changed: names.size };
}

/** Float initialisers of two elements or more that a value is computed from, and from nothing else. */
function sources(graph: Graph, value: string): string[] {
  const { producer } = useIndex(graph);
  const free = dataFree(graph);
  const found: string[] = [];
  const walk = (name: string): void => {
    const tensor = graph.initializers.get(name);
    if (tensor !== undefined) {
      if (tensor.dtype === "f32" && tensor.byteLength > 4) found.push(name);
      return;
    }
    if (free.has(name)) for (const input of producer.get(name)?.inputs ?? []) walk(input);
  };
  walk(value);
  return found;
}
