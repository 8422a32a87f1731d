/** The parts of a Mamba layer around the scan: projections, norms, step sizes, gate. */

import { f32Tensor, i64Tensor } from "../../../src/ir/tensor.js";
import { type Axed, attr, type Writer } from "./writer.js";

/** x [.., in] -> [.., out]. */
export function linear(w: Writer, label: string, x: string, from: number, to: number): string {
  const scale = 1 / Math.sqrt(from);
  const values = (normal: () => number): number => scale * normal();
  switch (w.spelling.projection) {
    case "transposed": {
      // Stored as [out, in] would hold other numbers; every spelling must be the same model.
      const stored = w.weight(label, [from, to], values);
      const twice = w.op("Transpose", [w.op("Transpose", [stored], { perm: [1, 0] })], { perm: [1, 0] });
      return w.op("MatMul", [x, twice]);
    }
    case "gemm": {
      const flat = w.op("Reshape", [x, w.ints([-1, from])], { allowzero: 0 });
      const product = w.op("Gemm", [flat, w.weight(label, [from, to], values)]);
      return w.reshape(product, w.single ? ["b", 1, to] : ["b", "l", to]);
    }
    default:
      return w.op("MatMul", [x, w.weight(label, [from, to], values)]);
  }
}

/** Cuts the last axis of [b, l, sum] into parts. */
export function splitLast(w: Writer, x: string, sizes: readonly number[], axis: number = 2): string[] {
  if (w.spelling.split === "split") return w.ops("Split", [x, w.ints(sizes)], sizes.length, { axis });
  let start = 0;
  return sizes.map((size) => {
    const part = w.op("Slice", [x, w.ints([start]), w.ints([start + size]), w.ints([axis])]);
    start += size;
    return part;
  });
}

/** RMS norm over the last axis; `gain` null leaves the weight out. */
export function rmsNorm(w: Writer, x: string, gain: string | null): string {
  if (w.spelling.norm === "simplified" && gain !== null) {
    return w.op("SimplifiedLayerNormalization", [x, gain], { axis: -1, epsilon: attr.float(1e-5) });
  }
  const square = w.op("Pow", [x, w.float(2)]);
  const mean =
    w.spelling.opset >= 18
      ? w.op("ReduceMean", [square, w.ints([-1])], { keepdims: 1 })
      : w.op("ReduceMean", [square], { keepdims: 1, axes: [-1] });
  const root = w.op("Sqrt", [w.op("Add", [mean, w.float(1e-5)])]);
  const scale = w.spelling.norm === "div" ? w.op("Div", [w.float(1), root]) : w.op("Reciprocal", [root]);
  const normed = w.op("Mul", [x, scale]);
  return gain === null ? normed : w.op("Mul", [gain, normed]);
}

/** A learned gain around 1; equal in all layers where weights are to be shared. */
export function gain(w: Writer, label: string, size: number): string {
  if (w.spelling.shareWeights) return w.initializer(f32Tensor([size], new Float32Array(size).fill(0.75)), label);
  return w.weight(label, [size], (normal) => 1 + 0.3 * normal());
}

/** log(1 + exp(v)). */
export function softplus(w: Writer, value: Axed): Axed {
  const v = value.name;
  const one = (): string => w.float(1);
  switch (w.spelling.softplus) {
    case "plain":
      return w.unary("Softplus", value);
    case "where": {
      const soft = w.op("Softplus", [v]);
      const large = w.op("Greater", [v, w.float(20)]);
      return { name: w.op("Where", [large, v, soft]), axes: value.axes };
    }
    case "log-exp":
      return { name: w.op("Log", [w.op("Add", [one(), w.op("Exp", [v])])]), axes: value.axes };
    case "log-add-exp":
      return { name: w.op("Log", [w.op("Add", [w.op("Exp", [v]), one()])]), axes: value.axes };
    default: {
      const small = w.op("Exp", [w.op("Neg", [w.op("Abs", [v])])]);
      const log = w.op("Log", [w.op("Add", [one(), small])]);
      return { name: w.op("Add", [w.op("Max", [v, w.float(0)]), log]), axes: value.axes };
    }
  }
}

/** Bounds of dt after softplus, as the spelling says. */
export function clampBounds(w: Writer): { low: number; high: number } {
  const [low, high] = [0.15, 0.9].map(Math.fround);
  if (low === undefined || high === undefined) throw new Error("two bounds");
  switch (w.spelling.clamp) {
    case "clip":
      return { low, high };
    case "clip-zero-inf":
      return { low: 0, high: Number.POSITIVE_INFINITY };
    case "clip-low-inf":
    case "max":
      return { low, high: Number.POSITIVE_INFINITY };
    case "min":
      return { low: Number.NEGATIVE_INFINITY, high };
    default:
      return { low: Number.NEGATIVE_INFINITY, high: Number.POSITIVE_INFINITY };
  }
}

function clamp(w: Writer, value: Axed): Axed {
  const { low, high } = clampBounds(w);
  const bound = (x: number): string => w.initializer(f32Tensor([], [x]), "bound");
  switch (w.spelling.clamp) {
    case "clip":
    case "clip-zero-inf":
    case "clip-low-inf":
      return { name: w.op("Clip", [value.name, bound(low), bound(high)]), axes: value.axes };
    case "max":
      return { name: w.op("Max", [value.name, bound(low)]), axes: value.axes };
    case "min":
      return { name: w.op("Min", [bound(high), value.name]), axes: value.axes };
    default:
      return value;
  }
}

/** dt (before bias; Mamba-2 maybe already with axis p) -> step sizes. `biased`: the bias is in dt already. */
export function stepSizes(w: Writer, dt: Axed, biased: boolean): Axed {
  if (w.spelling.dtBias === "none" || biased) return clamp(w, softplus(w, dt));
  const axes = dt.axes.includes("p") ? "hp" : "h";
  const bias = perHead(w, "dt_bias", axes, (normal) => 0.5 * normal() - 0.5);
  if (w.spelling.sabotage === "bias-after-softplus") return clamp(w, w.add(softplus(w, dt), w.unary("Abs", bias)));
  return clamp(w, softplus(w, w.add(dt, bias)));
}

/** A per-head weight, repeated along p when the axes say so. */
export function perHead(w: Writer, label: string, axes: "h" | "hp", make: (normal: () => number) => number): Axed {
  const { heads, headDim } = w.sizes;
  const values = w.numbers(label, heads, make);
  if (axes === "h") return { name: w.initializer(f32Tensor([heads], values), label), axes };
  const wide = Float32Array.from({ length: heads * headDim }, (_, at) => values[Math.floor(at / headDim)] ?? 0);
  return { name: w.initializer(f32Tensor([heads, headDim], wide), label), axes };
}

/** A: negative, [H] or [E, N], in the spelling asked for. */
export function decayRate(w: Writer): Axed {
  const { heads, headDim, dState } = w.sizes;
  const { family, decay, broadcastA, sabotage } = w.spelling;
  const base = family === "mamba1" ? [heads, dState] : [heads];
  const count = base.reduce((a, b) => a * b, 1);
  const logs = w.numbers("A_log", count, (normal) => 0.7 * normal() - 0.4);
  const sign = sabotage === "positive-a" ? 0.05 : -1;
  const folded = logs.map((value) => Math.fround(sign * Math.fround(Math.exp(value))));
  const axes = family === "mamba1" ? "hn" : "h";
  if (family === "mamba2" && broadcastA === "folded") {
    const wide = Float32Array.from(
      { length: heads * headDim * dState },
      (_, at) => folded[Math.floor(at / (headDim * dState))] ?? 0,
    );
    return { name: w.initializer(f32Tensor([heads, headDim, dState], wide), "A"), axes: "hpn" };
  }
  let a: string;
  if (decay === "folded" || sabotage === "positive-a") a = w.initializer(f32Tensor(base, folded), "A");
  else a = w.op("Neg", [w.op("Exp", [w.initializer(f32Tensor(base, logs), "A_log")])]);
  if (family === "mamba2" && broadcastA === "expand") {
    const column = w.op("Unsqueeze", [a, w.ints([1, 2])]);
    return { name: w.op("Expand", [column, w.ints([heads, headDim, dState])]), axes: "hpn" };
  }
  return { name: a, axes };
}

/** D [H] or [H, P]; null for none. */
export function skipWeight(w: Writer): Axed | null {
  const { heads, headDim } = w.sizes;
  const { family, skip } = w.spelling;
  if (skip === "none") return null;
  if (family === "mamba1" || skip === "head") {
    return { name: w.weight("D", [heads], (normal) => 0.8 * normal() + 0.3), axes: "h" };
  }
  return { name: w.weight("D", [heads, headDim], (normal) => 0.8 * normal() + 0.3), axes: "hp" };
}

/** x * sigmoid(x). */
export function silu(w: Writer, x: string): string {
  return w.op("Mul", [x, w.op("Sigmoid", [x])]);
}

/** y [b, l, channels] with its gate and norm. */
export function gated(w: Writer, y: string, z: string | null, channels: number): string {
  const { gateNorm } = w.spelling;
  const norm = (x: string): string => rmsNorm(w, x, gain(w, "gate_norm", channels));
  const gate = (x: string): string => (z === null ? x : w.op("Mul", [x, silu(w, z)]));
  switch (gateNorm) {
    case "after":
      return norm(gate(y));
    case "after-grouped": {
      const { groups } = w.sizes;
      const product = gate(y);
      const lead = w.single ? (["b", 1] as const) : (["b", "l"] as const);
      const grouped = w.reshape(product, [...lead, groups, channels / groups]);
      const flat = w.reshape(rmsNorm(w, grouped, null), [...lead, channels]);
      return w.op("Mul", [flat, gain(w, "gate_norm", channels)]);
    }
    case "before":
      return gate(norm(y));
    case "layer-norm": {
      const bias = w.weight("gate_norm_bias", [channels], (normal) => 0.1 * normal());
      return gate(
        w.op("LayerNormalization", [y, gain(w, "gate_norm", channels), bias], {
          axis: -1,
          epsilon: attr.float(1e-5),
        }),
      );
    }
    default:
      return gate(y);
  }
}

/** Zeros [b, ...dims] in the spelling asked for. */
export function zeroState(w: Writer, dims: readonly number[]): string {
  const { zeros, batch } = w.spelling;
  if (zeros === "constant" && batch !== null) {
    const size = dims.reduce((a, b) => a * b, batch);
    return w.builder.constant(f32Tensor([batch, ...dims], new Float32Array(size)));
  }
  const shape = w.shape(["b", ...dims]);
  if (zeros === "expand") return w.op("Expand", [w.float(0), shape]);
  return w.op("ConstantOfShape", [shape], { value: attr.tensor(f32Tensor([1], [0])) });
}

/** Repeats groups along the heads: [.., g, n] -> [.., h, n]. */
export function repeatGroups(w: Writer, value: Axed): Axed {
  const { heads, groups, dState } = w.sizes;
  const axes = value.axes.replace("g", "h");
  const at = value.axes.indexOf("g");
  const lead = Array.from(value.axes.slice(0, at)).map((axis) => (axis === "b" || axis === "l" ? axis : 1));
  const repeat = heads / groups;
  if (groups === 1 && w.spelling.groupRepeat === "broadcast") {
    return { name: w.op("Squeeze", [value.name, w.ints([at])]), axes: value.axes.replace("g", "") };
  }
  if (w.spelling.groupRepeat === "gather") {
    const picks = Array.from({ length: heads }, (_, head) => Math.floor(head / repeat));
    const index = w.builder.constant(i64Tensor([heads], picks));
    return { name: w.op("Gather", [value.name, index], { axis: at }), axes };
  }
  const column = w.op("Unsqueeze", [value.name, w.ints([at + 1])]);
  const wide =
    w.spelling.groupRepeat === "tile"
      ? w.op("Tile", [column, w.ints([...lead.map(() => 1), 1, repeat, 1])])
      : w.op("Expand", [column, w.shape([...lead, groups, repeat, dState])]);
  return { name: w.reshape(wide, [...lead, heads, dState]), axes };
}
