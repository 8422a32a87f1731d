/** Reads back what a rounding pass made of each weight of a graph. */

import { attrInt, type Graph } from "../../src/ir/graph.js";
import { toNumbers } from "../../src/ir/tensor.js";
import { unpackCodes } from "../../src/quant/packing.js";
import { weightValues } from "../../src/rewrite/weights.js";

export interface RoundedWeight {
  /** Name of the float weight. */
  readonly name: string;
  readonly shape: readonly [number, number];
  /** codes * scale, independent of the pass. Symmetric codes only. */
  readonly values: Float64Array;
}

/** Every DequantizeLinear of symmetric codes [K, N], with scales for a tensor, for columns, or for groups of rows. */
export function roundedWeights(graph: Graph): RoundedWeight[] {
  return graph.nodes.flatMap((node) => {
    const codes = graph.initializers.get(node.inputs[0] ?? "");
    const scales = graph.initializers.get(node.inputs[1] ?? "");
    if (node.op !== "DequantizeLinear" || codes === undefined || scales === undefined) return [];
    const [rows = 0, cols = 0] = codes.shape;
    const bits = codes.dtype === "i4" ? 4 : 8;
    const integers = unpackCodes(codes.bytes(), rows * cols, bits, true);
    const factors = toNumbers(scales);
    const block = attrInt(node, "block_size", 0);
    const scaleAt = (k: number, n: number): number =>
      factors.length === 1
        ? (factors[0] ?? 0)
        : block === 0
          ? (factors[n] ?? 0)
          : (factors[Math.floor(k / block) * cols + n] ?? 0);
    const values = Float64Array.from(integers, (code, at) => code * scaleAt(Math.floor(at / cols), at % cols));
    return [{ name: (node.inputs[0] ?? "").replace(/_quantized$/, ""), shape: [rows, cols] as const, values }];
  });
}

/** tr(E^T H E) for E = rounded - original; H = I where `moment` is null. */
export function roundingError(rounded: RoundedWeight, original: Graph, moment: Float64Array | null): number {
  const tensor = original.initializers.get(rounded.name);
  if (tensor === undefined) throw new Error(`${rounded.name} is no weight of the original graph`);
  const weight = weightValues(tensor);
  const [rows, cols] = rounded.shape;
  const error = rounded.values.map((value, at) => value - (weight[at] ?? 0));
  let sum = 0;
  for (let i = 0; i < rows; i++) {
    for (let j = moment === null ? i : 0; j < (moment === null ? i + 1 : rows); j++) {
      const factor = moment === null ? 1 : (moment[i * rows + j] ?? 0);
      for (let n = 0; n < cols; n++) sum += factor * (error[i * cols + n] ?? 0) * (error[j * cols + n] ?? 0);
    }
  }
  return sum;
}
