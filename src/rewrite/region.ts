/** Cuts a region out of a graph at its leaves, so that it can be run on its own. */

import { dependencies, type Graph, makeGraph, makeValue, type Node, useIndex } from "../ir/graph.js";
import type { Inference } from "../ir/infer.js";
import { asBytes, i64Tensor, numberToFloat16, type Tensor, tensorFromBytes } from "../ir/tensor.js";
import { type DType, tensorType } from "../ir/types.js";
import { MambacError } from "../support/errors.js";

/** A region as a graph of its own, or why it cannot be cut there. */
export type Region =
  | { readonly kind: "region"; readonly graph: Graph; readonly leaves: readonly Leaf[] }
  | { readonly kind: "open"; readonly reason: string };

/** Runs a graph of its own. */
export type ExecuteGraph = (graph: Graph, feeds: ReadonlyMap<string, Tensor>) => Promise<Map<string, Tensor>>;

export interface Leaf {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/**
 * The nodes between `leaves` and `outputs`, with all shape arithmetic replaced by the constants it has in `inference`.
 * Leaves that no output needs are left out. A region that reads other run-time data is `open`.
 */
export function cutRegion(
  graph: Graph,
  inference: Inference,
  leaves: readonly string[],
  outputs: readonly string[],
): Region {
  const index = useIndex(graph);
  const stop = new Set(leaves);
  const initializers = new Map<string, Tensor>();
  const nodes = new Set<Node>();
  const used = new Set<string>();
  const seen = new Set<string>();
  const stack = [...outputs];
  for (let name = stack.pop(); name !== undefined; name = stack.pop()) {
    if (seen.has(name)) continue;
    seen.add(name);
    if (stop.has(name)) {
      used.add(name);
      continue;
    }
    const weight = graph.initializers.get(name);
    if (weight !== undefined) {
      initializers.set(name, weight);
      continue;
    }
    const value = inference.values.get(name);
    if (value?.content != null && value.shape !== null && value.dtype !== null && isExact(value.dtype)) {
      initializers.set(name, tensorFromNumbers(value.dtype, value.shape, value.content));
      continue;
    }
    const producer = index.producer.get(name);
    if (producer === undefined) return { kind: "open", reason: `it also depends on the input ${name}` };
    if (nodes.has(producer)) continue;
    nodes.add(producer);
    stack.push(...dependencies(producer));
  }
  const inputs: Leaf[] = [];
  for (const name of leaves) {
    if (!used.has(name)) continue;
    const value = inference.values.get(name);
    if (value?.shape == null || value.dtype === null)
      return { kind: "open", reason: `the shape of ${name} is unknown` };
    inputs.push({ name, dtype: value.dtype, shape: value.shape });
  }
  const ordered = [...nodes].sort((a, b) => (index.position.get(a) ?? 0) - (index.position.get(b) ?? 0));
  const region: Graph = makeGraph({
    name: "region",
    inputs: inputs.map((leaf) => makeValue(leaf.name, tensorType(leaf.dtype, leaf.shape))),
    outputs: outputs.map((name) => makeValue(name, tensorType(inference.values.get(name)?.dtype ?? "f32", null))),
    nodes: ordered,
    initializers,
  });
  return { kind: "region", graph: region, leaves: inputs };
}

function isExact(dtype: DType): boolean {
  return dtype === "i64" || dtype === "i32" || dtype === "bool";
}

/** A tensor of numbers in any real or integer dtype of at least 8 bits. */
export function tensorFromNumbers(dtype: DType, shape: readonly number[], data: ArrayLike<number>): Tensor {
  switch (dtype) {
    case "f32":
      return tensorFromBytes("f32", shape, asBytes(new Float32Array(data)));
    case "f64":
      return tensorFromBytes("f64", shape, asBytes(new Float64Array(data)));
    case "f16":
      return tensorFromBytes("f16", shape, asBytes(Uint16Array.from(data, numberToFloat16)));
    case "i64":
      return i64Tensor(shape, Array.from(data, toInt64));
    case "i32":
      return tensorFromBytes("i32", shape, asBytes(new Int32Array(data)));
    case "bool":
      return tensorFromBytes("bool", shape, new Uint8Array(data));
    default:
      throw new MambacError("region/dtype", `cannot make test data of type ${dtype}`);
  }
}

function toInt64(value: number): bigint {
  if (value >= 2 ** 63) return 2n ** 63n - 1n;
  if (value <= -(2 ** 63)) return -(2n ** 63n);
  return BigInt(value);
}

/** Evaluates data-free values (weight cones) by running them; initialisers are returned as they are. */
export async function evaluateConstants(
  graph: Graph,
  inference: Inference,
  names: readonly string[],
  run: ExecuteGraph,
): Promise<Map<string, Tensor>> {
  const out = new Map<string, Tensor>();
  const computed: string[] = [];
  for (const name of names) {
    const weight = graph.initializers.get(name);
    if (weight !== undefined) out.set(name, weight);
    else computed.push(name);
  }
  if (computed.length === 0) return out;
  const region = cutRegion(graph, inference, [], computed);
  if (region.kind === "open") return out;
  for (const [name, tensor] of await run(region.graph, new Map())) out.set(name, tensor);
  return out;
}
