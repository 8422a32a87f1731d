/** One-node models with float16 activations, made from those with float32 ones, and tensors for them. */

import { numberToFloat16, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import { tensorType } from "../../src/ir/types.js";
import { readModelBytes } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { activationInputs, opFunction } from "../../src/ops/functions.js";
import { parseOpName } from "../../src/ops/names.js";

/** The names of the activations of a one-node model. */
function activationsOf(model: Uint8Array): Set<string> {
  const [node] = readModelBytes(model).model.graph.nodes;
  const spec = parseOpName(node?.op ?? "");
  if (node === undefined || spec === null) throw new Error("no node of ours");
  // The state of a scan has a format of its own.
  const results = spec.kind === "scan" ? node.outputs.slice(0, 1) : node.outputs;
  return new Set([...activationInputs(spec).map((at) => node.inputs[at] ?? ""), ...results]);
}

/** The model with float16 activations; of `only` those where it is given. */
export function halfModel(model: Uint8Array, only?: readonly string[]): Uint8Array {
  const activations = only === undefined ? activationsOf(model) : new Set(only);
  const { graph, functions, ...rest } = readModelBytes(model).model;
  const narrow = <Value extends (typeof graph.inputs)[number]>(value: Value): Value =>
    activations.has(value.name) && value.type?.kind === "tensor"
      ? { ...value, type: tensorType("f16", value.type.shape) }
      : value;
  return encodeModel({
    ...rest,
    graph: { ...graph, inputs: graph.inputs.map(narrow), outputs: graph.outputs.map(narrow) },
    functions: functions.map(({ name }) => opFunction(name, "f16")),
  });
}

/** Nearest halves. */
export function toHalves(tensor: Tensor): Tensor {
  const halves = Uint16Array.from(toNumbers(tensor), numberToFloat16);
  return tensorFromBytes("f16", tensor.shape, new Uint8Array(halves.buffer));
}

/** The activations among these feeds as halves. */
export function halfFeeds(model: Uint8Array, feeds: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  const activations = activationsOf(model);
  return new Map([...feeds].map(([name, tensor]) => [name, activations.has(name) ? toHalves(tensor) : tensor]));
}

/** Float16 tensors as float32 ones of the same values. */
export function widenedFeeds(feeds: ReadonlyMap<string, Tensor>, like: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  return new Map(
    [...feeds].map(([name, tensor]) => {
      if (like.get(name)?.dtype !== "f32" || tensor.dtype !== "f16") return [name, tensor];
      const floats = Float32Array.from(toNumbers(tensor));
      return [name, tensorFromBytes("f32", tensor.shape, new Uint8Array(floats.buffer))];
    }),
  );
}
