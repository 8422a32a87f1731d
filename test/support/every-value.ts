/** Runs a model so that every tensor in its graph can be seen, and makes inputs of a given batch and length for it. */

import { type Model, makeValue, type Node } from "../../src/ir/graph.js";
import type { InputShape } from "../../src/ir/infer.js";
import { f32Tensor, i64Tensor, isFloat, type Tensor } from "../../src/ir/tensor.js";
import { type Dim, elementCount } from "../../src/ir/types.js";
import { encodeModel } from "../../src/onnx/write.js";
import { openSession } from "../../src/run/session.js";

const SEQUENCE_OPS: ReadonlySet<string> = new Set(["SequenceEmpty", "SequenceConstruct", "SequenceInsert", "Loop"]);

/** Names of the tensors that the nodes of the main graph make; Loop outputs are left out, they may be sequences. */
export function madeTensors(model: Model): string[] {
  const made = model.graph.nodes.filter((node) => !SEQUENCE_OPS.has(node.op)).flatMap((node) => node.outputs);
  return made.filter((name) => name !== "");
}

/** All tensors of `madeTensors` by name. Throws as the session does. */
export async function runEveryValue(model: Model, feeds: ReadonlyMap<string, Tensor>): Promise<Map<string, Tensor>> {
  const outputs = madeTensors(model).map((name) => makeValue(name, null));
  const nodes = model.graph.nodes.map(withPlainPermutation);
  const session = await openSession(encodeModel({ ...model, graph: { ...model.graph, nodes, outputs } }));
  try {
    return await session.run(feeds);
  } finally {
    await session.release();
  }
}

/** The TorchScript exporter writes permutations with negative axes, which ONNX Runtime refuses to load. */
function withPlainPermutation(node: Node): Node {
  const perm = node.attributes.get("perm");
  if (perm?.kind !== "ints") return node;
  const rank = BigInt(perm.value.length);
  const value = perm.value.map((axis) => (axis < 0n ? axis + rank : axis));
  return { ...node, attributes: new Map(node.attributes).set("perm", { kind: "ints", value }) };
}

/** The sizes that symbolic dimensions stand for. */
export interface Sizes {
  readonly batch: number;
  readonly length: number;
}

/** Shapes for every graph input: symbolic dimensions by what the input is for, a conv state of 4 and a cache of 3. */
export function concreteInputs(model: Model, sizes: Sizes): Map<string, InputShape> {
  const shapes = new Map<string, InputShape>();
  for (const { name, type } of model.graph.inputs) {
    if (type?.kind !== "tensor" || type.shape === null) throw new Error(`input ${name} has no shape`);
    const shape = type.shape.map((dim, axis) => concreteDim(name, dim, axis, sizes));
    shapes.set(name, { dtype: type.dtype, shape });
  }
  return shapes;
}

function concreteDim(name: string, dim: Dim, axis: number, { batch, length }: Sizes): number {
  if (typeof dim === "number") return dim;
  if (dim !== null && /^\d+$/.test(dim)) return Number(dim);
  if (axis === 0) return batch;
  if (name.includes("conv_state")) return 4;
  return /\.(keys|values)$/.test(name) ? 3 : length;
}

/** Token ids below 30, positions 0, 1, ..., and smooth floats. */
export function feedsFor(shapes: ReadonlyMap<string, InputShape>): Map<string, Tensor> {
  const feeds = new Map<string, Tensor>();
  for (const [name, { dtype, shape }] of shapes) {
    const places = Array.from({ length: elementCount(shape) }, (_, i) => i);
    if (isFloat(dtype)) feeds.set(name, f32Tensor(shape, places.map(Math.sin)));
    else feeds.set(name, i64Tensor(shape, places.map(name === "position_ids" ? (i) => i % (shape[1] ?? 1) : tokenAt)));
  }
  return feeds;
}

function tokenAt(index: number): number {
  return (index * 7 + 3) % 30;
}
