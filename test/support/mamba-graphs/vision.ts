/**
 * Models of pictures around selective scans: tokens are patches, every scan starts from zeros, and only the classes come out.
 *
 * - `vim`: each block scans forwards and backwards, with parameters of its own for each direction.
 * - `ss2d`: VMamba; one scan over rows, columns and both in reverse, whose B and C are its own for each direction.
 * - `mamba-vision`: x and z are convolved over both neighbours, only x is scanned, and both are projected; in windows.
 */

import { typed } from "../../../src/ir/builder.js";
import { type Model, makeModel } from "../../../src/ir/graph.js";
import { decayRate, gain, linear, rmsNorm, silu, skipWeight, splitLast, stepSizes } from "./layer-parts.js";
import { mixer, runScan } from "./mixer.js";
import type { MambaSizes, Spelling } from "./spelling.js";
import { type Axed, attr, Writer } from "./writer.js";

export const VISION_KINDS = ["vim", "ss2d", "mamba-vision"] as const;
export type VisionKind = (typeof VISION_KINDS)[number];

/** What is wrong with an `ss2d` model: the last direction reads B of another, or gives what the first gives. */
export type VisionSabotage = "other-b" | "state-of-steps";

export interface VisionOptions {
  readonly kind: VisionKind;
  /** Patches a side. */
  readonly side: number;
  readonly sabotage?: VisionSabotage;
  /** The norm before each block; default with a mean. */
  readonly norm?: "layer" | "rms";
}

/** Directions of `ss2d`. */
const DIRECTIONS = 4;
const PATCH = 2;
const COLORS = 3;

/** A classifier of pictures [b, 3, 2 side, 2 side]; `sizes.heads` are the channels of one direction. */
export function visionModel(sizes: MambaSizes, changes: Spelling, options: VisionOptions, seed: number): Model {
  const { kind, side } = options;
  const tokens = kind === "mamba-vision" ? (side * side) / 4 : side * side;
  const spelling: Spelling = { ...changes, length: tokens, claimsFreeLength: false, states: "none" };
  const w = new Writer(sizes, spelling, seed);
  w.scope = "model";
  const { dModel } = sizes;
  const batch = spelling.batch ?? "batch_size";
  w.readDims("pixels");
  const patches = w.op(
    "Conv",
    ["pixels", w.weight("patch", [dModel, COLORS, PATCH, PATCH], (normal) => 0.3 * normal())],
    { kernel_shape: [PATCH, PATCH], strides: [PATCH, PATCH] },
  );
  const flat = w.reshape(patches, ["b", dModel, side * side]);
  let hidden = w.op("Add", [
    w.op("Transpose", [flat], { perm: [0, 2, 1] }),
    w.weight("position", [side * side, dModel], (normal) => 0.2 * normal()),
  ]);
  for (let layer = 0; layer < sizes.layers; layer++) {
    w.scope = `layers.${layer}`;
    const normed =
      options.norm === "rms" ? rmsNorm(w, hidden, gain(w, "norm", dModel)) : layerNorm(w, hidden, dModel, "norm");
    const result =
      kind === "vim"
        ? bothWays(w, normed, layer)
        : kind === "ss2d"
          ? fourWays(w, normed, options)
          : windows(w, normed, side);
    w.scope = `layers.${layer}`;
    hidden = w.op("Add", [hidden, result]);
  }
  w.scope = "model";
  const pooled = w.op(
    "ReduceMean",
    spelling.opset >= 18 ? [rmsNorm(w, hidden, gain(w, "final", dModel)), w.ints([1])] : [hidden],
    spelling.opset >= 18 ? { keepdims: 0 } : { keepdims: 0, axes: [1] },
  );
  w.builder.op("MatMul", [pooled, w.weight("head", [dModel, 7], (normal) => normal())], {}, "classes");
  const pixels = typed("pixels", "f32", [batch, COLORS, PATCH * side, PATCH * side]);
  return makeModel(w.main.graph("vision", [pixels], [typed("classes", "f32", [batch, 7])]), {
    opsets: new Map([["", spelling.opset]]),
    functions: w.functions,
  });
}

function layerNorm(w: Writer, x: string, size: number, label: string): string {
  const bias = w.weight(`${label}_bias`, [size], (normal) => 0.1 * normal());
  return w.op("LayerNormalization", [x, gain(w, label, size), bias], { axis: -1, epsilon: attr.float(1e-5) });
}

function turned(w: Writer, value: string, axis: number): string {
  return w.op("Slice", [value, w.ints([-1]), w.ints([-Number.MAX_SAFE_INTEGER]), w.ints([axis]), w.ints([-1])]);
}

function bothWays(w: Writer, hidden: string, layer: number): string {
  const none = { conv: null, ssm: null };
  const forward = mixer(w, hidden, none).out;
  w.scope = `layers.${layer}.back`;
  return w.op("Add", [forward, turned(w, mixer(w, turned(w, hidden, 1), none).out, 1)]);
}

/** hidden [b, side * side, dModel]. */
function fourWays(w: Writer, hidden: string, { side, sabotage }: VisionOptions): string {
  const { heads: channels, dModel, dState, dtRank } = w.sizes;
  const tokens = side * side;
  const [stream = "", z = ""] = splitLast(w, linear(w, "in_proj", hidden, dModel, 2 * channels), [channels, channels]);
  const picture = w.reshape(w.op("Transpose", [stream], { perm: [0, 2, 1] }), ["b", channels, side, side]);
  const taps = w.weight("conv2d", [channels, 1, 3, 3], (normal) => 0.4 * normal());
  const mixed = silu(w, w.op("Conv", [picture, taps], { group: channels, kernel_shape: [3, 3], pads: [1, 1, 1, 1] }));
  const rows = w.reshape(mixed, ["b", channels, tokens]);
  const columns = w.reshape(w.op("Transpose", [mixed], { perm: [0, 1, 3, 2] }), ["b", channels, tokens]);
  const one = (value: string): string => w.op("Unsqueeze", [value, w.ints([1])]);
  const two = w.op("Concat", [one(rows), one(columns)], { axis: 1 });
  const xs = w.op("Concat", [two, turned(w, two, 3)], { axis: 1 }); // [b, 4, channels, l]
  const width = dtRank + 2 * dState;
  const scale = 1 / Math.sqrt(channels);
  const projected = w.op(
    "Einsum",
    [xs, w.weight("x_proj", [DIRECTIONS, width, channels], (normal) => scale * normal())],
    { equation: "bkdl,kcd->bkcl" },
  );
  const [low = "", b = "", C = ""] = splitLast(w, projected, [dtRank, dState, dState], 2);
  const steps = w.op(
    "Einsum",
    [low, w.weight("dt_proj", [DIRECTIONS, channels, dtRank], (normal) => normal() / Math.sqrt(dtRank))],
    { equation: "bkrl,kdr->bkdl" },
  );
  const B = sabotage === "other-b" ? w.op("Gather", [b, w.ints([0, 1, 2, 0])], { axis: 1 }) : b;
  const y = w.wide(DIRECTIONS, () => {
    const wide = DIRECTIONS * channels;
    const grouped = (name: string): Axed => {
      const column = w.op("Unsqueeze", [name, w.ints([2])]);
      const repeated = w.op("Expand", [column, w.shape(["b", DIRECTIONS, channels, dState, "l"])]);
      const value: Axed = { name: w.reshape(repeated, ["b", wide, dState, "l"]), axes: "bhnl" };
      return w.transposed(value, w.order("bhnl"));
    };
    const perToken = (name: string): Axed =>
      w.transposed({ name: w.reshape(name, ["b", wide, "l"]), axes: "bhl" }, w.order("bhl"));
    const dt = stepSizes(w, perToken(steps), false);
    const inputs = { x: perToken(xs), steps: dt, B: grouped(B), C: grouped(C), A: decayRate(w), D: skipWeight(w) };
    // A matrix product would need C without the channels.
    const readout = w.spelling.readout === "matmul" ? "mul-sum" : w.spelling.readout;
    const result = w.as({ readout }, false, () => runScan(w, { ...inputs, past: null }));
    const given = sabotage === "state-of-steps" ? w.add(result.y, dt) : result.y;
    return w.reshape(w.exactly(given, "bhl"), ["b", DIRECTIONS, channels, "l"]);
  });
  // Back to rows: the second half turned around again, and columns transposed.
  const half = (from: number, to: number): string => w.op("Slice", [y, w.ints([from]), w.ints([to]), w.ints([1])]);
  const sum = w.op("Add", [half(0, 2), turned(w, half(2, 4), 3)]);
  const part = (at: number): string => w.op("Gather", [sum, w.scalar(at)], { axis: 1 });
  const upright = w.op("Transpose", [w.reshape(part(1), ["b", channels, side, side])], { perm: [0, 1, 3, 2] });
  const merged = w.op("Add", [part(0), w.reshape(upright, ["b", channels, tokens])]);
  const normed = layerNorm(w, w.op("Transpose", [merged], { perm: [0, 2, 1] }), channels, "out_norm");
  return linear(w, "out_proj", w.op("Mul", [normed, silu(w, z)]), channels, dModel);
}

/** Four windows of a quarter of the tokens each; the batch of the scan is four times that of the pictures. */
function windows(w: Writer, hidden: string, side: number): string {
  const { heads: channels, dModel, dState, dtRank, kernel } = w.sizes;
  const half = side / 2;
  const tokens = half * half;
  const cut = w.reshape(hidden, ["b", 2, half, 2, half, dModel]);
  const inWindows = w.reshape(w.op("Transpose", [cut], { perm: [0, 1, 3, 2, 4, 5] }), [-1, tokens, dModel]);
  const [stream = "", z = ""] = splitLast(w, linear(w, "in_proj", inWindows, dModel, 2 * channels), [
    channels,
    channels,
  ]);
  const convolved = (value: string, label: string): string => {
    const taps = w.weight(label, [channels, 1, kernel], (normal) => 0.6 * normal());
    const left = Math.floor((kernel - 1) / 2);
    const pads = [left, kernel - 1 - left];
    const wide = w.op("Conv", [w.op("Transpose", [value], { perm: [0, 2, 1] }), taps], {
      group: channels,
      kernel_shape: [kernel],
      pads,
    });
    return silu(w, wide);
  };
  const [x, side_] = [convolved(stream, "conv_x"), convolved(z, "conv_z")];
  const rows = w.reshape(w.op("Transpose", [x], { perm: [0, 2, 1] }), [-1, channels]);
  const projected = w.reshape(
    w.op("MatMul", [rows, w.weight("x_proj", [channels, dtRank + 2 * dState], (n) => n() / Math.sqrt(channels))]),
    [-1, tokens, dtRank + 2 * dState],
  );
  const [low = "", B = "", C = ""] = splitLast(w, projected, [dtRank, dState, dState]);
  const dt = w.op("MatMul", [low, w.weight("dt_proj", [dtRank, channels], (n) => n() / Math.sqrt(dtRank))]);
  const ordered = (name: string, axes: string): Axed => w.transposed({ name, axes }, w.order(axes));
  const result = w.inWindows(4, () =>
    runScan(w, {
      x: ordered(x, "bhl"),
      steps: stepSizes(w, ordered(dt, "blh"), false),
      B: ordered(B, "bln"),
      C: ordered(C, "bln"),
      A: decayRate(w),
      D: skipWeight(w),
      past: null,
    }),
  );
  const both = w.op("Concat", [w.exactly(result.y, "blh"), w.op("Transpose", [side_], { perm: [0, 2, 1] })], {
    axis: 2,
  });
  const out = w.reshape(linear(w, "out_proj", both, 2 * channels, dModel), ["b", 2, 2, half, half, dModel]);
  return w.reshape(w.op("Transpose", [out], { perm: [0, 1, 3, 2, 4, 5] }), ["b", side * side, dModel]);
}
