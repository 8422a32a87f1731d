/** Models of one convolution in any layout, random inputs, and what they must give. */

import { f32Tensor, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { tensorType } from "../../src/ir/types.js";
import { type ConvLayout } from "../../src/ops/names.js";
import { type ConvRows, convNode } from "../../src/ops/nodes.js";
import { causalConvReference } from "../../src/ops/reference.js";
import { Noise, oneNodeModel } from "./scan-case.js";

export interface ConvSizes {
  readonly batch: number;
  readonly channels: number;
  readonly length: number;
  readonly kernelSize: number;
  readonly stateWidth: number;
}

export interface ConvCase {
  readonly model: Uint8Array;
  readonly feeds: Map<string, Tensor>;
  /** Names of the outputs that hold channels, in their order. */
  readonly parts: readonly string[];
  /** The parts joined, [B,E,L], and the state. */
  readonly expected: { readonly y: Float64Array; readonly state: Float64Array };
}

/** Other channels of x around those that a convolution of rows reads. */
const AROUND = { before: 3, behind: 2 } as const;

/** `free` leaves batch and length of the model open. */
export function convCase(
  layout: ConvLayout,
  activation: "none" | "silu",
  sizes: ConvSizes,
  seed: number,
  free: boolean = false,
): ConvCase {
  const { batch, channels, length, kernelSize, stateWidth } = sizes;
  const noise = new Noise(seed);
  const x = noise.normals(batch * channels * length, 2);
  const weight = noise.normals(channels * kernelSize);
  const bias = noise.normals(channels);
  const past = noise.normals(batch * channels * stateWidth);
  const rows = layout === "channels" ? null : rowsOf(layout, channels);
  const parts = rows?.parts ?? [channels];
  const width = rows === null ? channels : AROUND.before + channels + AROUND.behind;
  const feeds = new Map([
    ["x", rows === null ? f32Tensor([batch, channels, length], x) : inRows(noise, x, sizes, width)],
    ["weight", f32Tensor([channels, 1, kernelSize], weight)],
    ["bias", f32Tensor([channels], bias)],
    ["past", f32Tensor([batch, channels, stateWidth], past)],
  ]);
  const [b, l] = free ? ["b", "l"] : [batch, length];
  const names = parts.length === 1 ? ["y"] : ["y", "y2", "y3"];
  const types = new Map([
    ["x", tensorType("f32", rows === null ? [b, channels, l] : [b, l, width])],
    ["weight", tensorType("f32", [channels, 1, kernelSize])],
    ["bias", tensorType("f32", [channels])],
    ["past", tensorType("f32", [b, channels, stateWidth])],
    ["present", tensorType("f32", [b, channels, stateWidth])],
  ]);
  names.forEach((name, at) => {
    types.set(name, tensorType("f32", rows === null ? [b, channels, l] : [b, l, parts[at] ?? 0]));
  });
  const params = { activation, channels, kernelSize, stateWidth, ...(rows === null ? {} : { rows }) };
  const [y = "", ...more] = names;
  const outputs = [y, "present", ...more];
  const node = convNode(params, [...feeds.keys()], outputs);
  return {
    model: oneNodeModel(node, [...feeds.keys()], outputs, types),
    feeds,
    parts: names,
    expected: causalConvReference({ ...sizes, activation, x, weight, bias, past }),
  };
}

function rowsOf(layout: "rows" | "split", channels: number): ConvRows {
  if (layout === "rows") return { first: AROUND.before, parts: null };
  const one = Math.max(1, Math.floor(channels / 2));
  const two = Math.max(1, Math.floor((channels - one) / 3));
  return { first: AROUND.before, parts: [one, two, channels - one - two] };
}

/** [B,E,L] -> [B,L,width], noise in the other channels. */
function inRows(noise: Noise, x: ArrayLike<number>, { batch, channels, length }: ConvSizes, width: number): Tensor {
  const values = Float32Array.from(noise.normals(batch * length * width));
  for (let b = 0; b < batch; b++) {
    for (let e = 0; e < channels; e++) {
      for (let l = 0; l < length; l++)
        values[(b * length + l) * width + AROUND.before + e] = x[(b * channels + e) * length + l] ?? 0;
    }
  }
  return f32Tensor([batch, length, width], values);
}

/** The parts of an outcome joined as the reference has them, [B,E,L]. */
export function joinedParts(
  outputs: ReadonlyMap<string, Tensor>,
  { parts }: ConvCase,
  layout: ConvLayout,
  { batch, channels, length }: ConvSizes,
): Float64Array {
  const tensors = parts.map((name) => {
    const tensor = outputs.get(name);
    if (tensor === undefined) throw new Error(`no output ${name}`);
    return tensor;
  });
  const [first] = tensors;
  if (layout === "channels" && first !== undefined) return Float64Array.from(toNumbers(first));
  const joined = new Float64Array(batch * channels * length).fill(Number.NaN);
  let from = 0;
  for (const tensor of tensors) {
    const size = tensor.shape[2] ?? 0;
    toNumbers(tensor).forEach((value, at) => {
      const [row, e] = [Math.floor(at / size), from + (at % size)];
      joined[(Math.floor(row / length) * channels + e) * length + (row % length)] = value;
    });
    from += size;
  }
  return joined;
}
