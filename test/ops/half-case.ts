/** One-node models with float16 activations, made from those with float32 ones, and tensors for them. */

import { float16ToNumber, numberToFloat16, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
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
export function widenedFeeds(
  feeds: ReadonlyMap<string, Tensor>,
  like: ReadonlyMap<string, Tensor>,
): Map<string, Tensor> {
  return new Map(
    [...feeds].map(([name, tensor]) => {
      if (like.get(name)?.dtype !== "f32" || tensor.dtype !== "f16") return [name, tensor];
      const floats = Float32Array.from(toNumbers(tensor));
      return [name, tensorFromBytes("f32", tensor.shape, new Uint8Array(floats.buffer))];
    }),
  );
}

/** A float16 tensor of these bits. */
export function halvesOf(shape: readonly number[], bits: Uint16Array): Tensor {
  return tensorFromBytes("f16", shape, new Uint8Array(bits.slice().buffer));
}

/** Half the distance to the next half: the most that one rounding moves a value. */
export function halfRounding(value: number): number {
  const exponent = Math.max(Math.floor(Math.log2(Math.abs(value))), -14);
  return 2 ** (exponent - 11);
}

/**
 * Largest error over what one rounding to halves explains, beside `arithmetic` times the largest value for the float32
 * arithmetic before it. At most 1 where all is well.
 */
export function halfError(actual: ArrayLike<number>, expected: ArrayLike<number>, arithmetic: number): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  let scale = 0;
  for (let i = 0; i < expected.length; i++) scale = Math.max(scale, Math.abs(expected[i] ?? 0));
  let worst = 0;
  for (let i = 0; i < expected.length; i++) {
    const [a, b] = [actual[i] ?? Number.NaN, expected[i] ?? 0];
    const slack = arithmetic * scale;
    const error = Math.abs(a - b) / (halfRounding(Math.abs(b) + slack) + slack);
    worst = Math.max(worst, Number.isNaN(error) ? Number.POSITIVE_INFINITY : error);
  }
  return worst;
}

/** Nearest half as a number. */
export function nearestHalf(value: number): number {
  return float16ToNumber(numberToFloat16(value));
}
