/** A Mamba-1 or Mamba-2 mixer in any form, and the If that holds two of them. */

import { attr } from "../../../src/ir/graph.js";
import { convolution } from "./convolution.js";
import {
  decayRate,
  gain,
  gated,
  linear,
  perHead,
  repeatGroups,
  rmsNorm,
  skipWeight,
  splitLast,
  stepSizes,
} from "./layer-parts.js";
import type { ScanInputs, ScanResult } from "./recurrence.js";
import { chunkedScan } from "./scan-chunked.js";
import { linearAttention, loopScan, onnxScan, stepScan, unrolledScan } from "./scan-forms.js";
import { associativeScan, cumsumScan } from "./scan-parallel.js";
import { type Axed, float, type Writer } from "./writer.js";

export interface Pasts {
  readonly conv: string | null;
  readonly ssm: string | null;
}

export interface MixerResult {
  /** [b, l, dModel]. */
  readonly out: string;
  readonly conv: string | null;
  readonly ssm: string;
}

/** Channels between the projections. */
export function channelsOf(w: Writer): number {
  return w.sizes.heads * w.sizes.headDim;
}

/** Channels that pass through the convolution. */
export function convChannelsOf(w: Writer): number {
  const { groups, dState } = w.sizes;
  return w.spelling.family === "mamba1" ? channelsOf(w) : channelsOf(w) + 2 * groups * dState;
}

/** hidden [b, l, dModel]. */
export function mixer(w: Writer, hidden: string, pasts: Pasts): MixerResult {
  if (w.spelling.form === "branches" && w.spelling.branch === "mixer") {
    const [out = "", conv = "", ssm = ""] = branches(w, pasts, (inner) => {
      const result = mixer(w, hidden, inner);
      return [result.out, result.conv ?? "", result.ssm];
    });
    return { out, conv, ssm };
  }
  const { family } = w.spelling;
  const { groups, dState, heads, dModel } = w.sizes;
  const channels = channelsOf(w);
  const mamba1 = family === "mamba1";
  const convChannels = convChannelsOf(w);
  const widths = mamba1 ? [channels, channels] : [channels, channels + 2 * groups * dState, heads];
  const projected = linear(
    w,
    "in_proj",
    hidden,
    dModel,
    widths.reduce((a, b) => a + b, 0),
  );
  const parts = splitLast(w, projected, widths);
  const [z = "", stream = ""] = mamba1 ? [parts[1], parts[0]] : parts;
  const dtRaw = mamba1 ? null : (parts[2] ?? "");
  const scanOf = (x: string, past: string | null): { y: string; state: string } =>
    mamba1 ? mamba1Scan(w, x, past) : mamba2Scan(w, x, dtRaw ?? "", past);
  let y: string;
  let convState: string | null;
  let state: string;
  if (w.spelling.form === "branches" && w.spelling.branch === "conv-and-scan") {
    const results = branches(w, pasts, (inner) => {
      const conv = convolution(w, stream, convChannels, inner.conv);
      const scan = scanOf(conv.y, inner.ssm);
      return [scan.y, conv.state ?? "", scan.state];
    });
    [y = "", convState = "", state = ""] = results;
  } else {
    const conv = convolution(w, stream, convChannels, pasts.conv);
    convState = conv.state;
    if (w.spelling.form === "branches") {
      [y = "", state = ""] = branches(w, pasts, (inner) => {
        const scan = scanOf(conv.y, inner.ssm);
        return [scan.y, scan.state];
      });
    } else ({ y, state } = scanOf(conv.y, pasts.ssm));
  }
  const out = linear(w, "out_proj", gated(w, y, w.spelling.gate === "none" ? null : z, channels), channels, dModel);
  return { out, conv: convState, ssm: state };
}

/** An If: one token, or many. */
function branches(w: Writer, pasts: Pasts, write: (pasts: Pasts) => readonly string[]): string[] {
  const { branchTest, branchForgets, branchLong } = w.spelling;
  const graphOf = (name: string, write_: () => readonly string[]) =>
    w.subgraph(name, [], () => write_().map((value) => float(value)));
  const one = (): readonly string[] => w.as({ form: "step" }, true, () => write(pasts));
  const many = (): readonly string[] =>
    w.as({ form: branchLong, states: branchForgets ? "present" : "both" }, false, () =>
      write(branchForgets ? { conv: null, ssm: null } : pasts),
    );
  const length = w.op("Squeeze", [w.dim("l"), w.ints([0])]);
  const [test, then, otherwise] =
    branchTest === "input"
      ? (["use_cache_branch", one, many] as const)
      : branchTest === "greater"
        ? ([w.op("Greater", [length, w.scalar(1)]), many, one] as const)
        : ([w.op("Equal", [length, w.scalar(1)]), one, many] as const);
  const thenBranch = graphOf("then", then);
  const elseBranch = graphOf("else", otherwise);
  return w.ops("If", [test], thenBranch.outputs.length, {
    then_branch: attr.graph(thenBranch),
    else_branch: attr.graph(elseBranch),
  });
}

/** Removes the length axis where there is one token, and brings the rest into this model's order. */
function tokenValue(w: Writer, name: string, axes: string): Axed {
  if (!w.single) return w.transposed({ name, axes }, w.order(axes));
  const at = axes.indexOf("l");
  const single = axes.replace("l", "");
  return w.spelling.selector === "gather"
    ? { name: w.op("Gather", [name, w.scalar(0)], { axis: at }), axes: single }
    : { name: w.op("Squeeze", [name, w.ints([at])]), axes: single };
}

/** x [b, l, channels] after the convolution. */
function mamba1Scan(w: Writer, x: string, past: string | null): { y: string; state: string } {
  const { dtRank, dState } = w.sizes;
  const channels = channelsOf(w);
  const { innerNorms, dtLeft, dtBias } = w.spelling;
  const projected = linear(w, "x_proj", x, channels, dtRank + 2 * dState);
  const widths = [dtRank, dState, dState];
  const [low = "", b = "", c = ""] = splitLast(w, projected, widths).map((part, at) =>
    innerNorms === "none"
      ? part
      : rmsNorm(w, part, innerNorms === "learned" ? gain(w, `inner_norm_${at}`, widths[at] ?? 1) : null),
  );
  const scale = 1 / Math.sqrt(dtRank);
  const asLearned = (normal: () => number): number => scale * normal();
  let dt: Axed;
  let biased = false;
  if (dtLeft) {
    // [channels, rank] x [b, rank, l]; the same numbers as the weight on the right.
    const weight = w.op("Transpose", [w.weight("dt_proj", [dtRank, channels], asLearned)], { perm: [1, 0] });
    const product = w.op("MatMul", [weight, w.op("Transpose", [low], { perm: [0, 2, 1] })]);
    dt = w.single
      ? { name: w.op("Gather", [product, w.scalar(0)], { axis: 2 }), axes: "bh" }
      : w.transposed({ name: product, axes: "bhl" }, w.order("bhl"));
  } else if (dtBias === "gemm") {
    const flat = w.op("Reshape", [low, w.ints([-1, dtRank])], { allowzero: 0 });
    const bias = perHead(w, "dt_bias", "h", (normal) => 0.5 * normal() - 0.5);
    const product = w.op("Gemm", [flat, w.weight("dt_proj", [dtRank, channels], asLearned), bias.name]);
    const shaped = w.reshape(product, w.single ? ["b", 1, channels] : ["b", "l", channels]);
    dt = tokenValue(w, shaped, "blh");
    biased = true;
  } else dt = tokenValue(w, linear(w, "dt_proj", low, dtRank, channels), "blh");
  const inputs: ScanInputs = {
    x: tokenValue(w, x, "blh"),
    steps: stepSizes(w, dt, biased),
    B: tokenValue(w, b, "bln"),
    C: tokenValue(w, c, "bln"),
    A: decayRate(w),
    D: skipWeight(w),
    past,
  };
  return flatResult(w, runScan(w, inputs));
}

/** xBC [b, l, channels + 2 groups dState] after the convolution, dt [b, l, heads]. */
function mamba2Scan(w: Writer, stream: string, dtRaw: string, past: string | null): { y: string; state: string } {
  const { groups, dState, heads, headDim } = w.sizes;
  const channels = channelsOf(w);
  const [x = "", b = "", c = ""] = splitLast(w, stream, [channels, groups * dState, groups * dState]);
  const lead = w.single ? (["b", 1] as const) : (["b", "l"] as const);
  const grouped = (part: string): Axed => {
    const value: Axed = { name: w.reshape(part, [...lead, groups, dState]), axes: "blgn" };
    if (!w.single) {
      const repeated = repeatGroups(w, value);
      return w.transposed(repeated, w.order(repeated.axes));
    }
    const token = w.as({ selector: "slice-squeeze" }, true, () => tokenValue(w, value.name, "blgn"));
    return repeatGroups(w, token);
  };
  let dt = tokenValue(w, dtRaw, "blh");
  if (w.spelling.dtToChannels) {
    const axes = w.order(`${dt.axes}p`);
    const column = w.exactly(dt, axes);
    const sizeOf = (axis: string): "b" | "l" | number =>
      axis === "b" || axis === "l" ? axis : axis === "h" ? heads : headDim;
    dt = { name: w.op("Expand", [column, w.shape(Array.from(axes).map(sizeOf))]), axes };
  }
  const inputs: ScanInputs = {
    x: tokenValue(w, w.reshape(x, [...lead, heads, headDim]), "blhp"),
    steps: stepSizes(w, dt, false),
    B: grouped(b),
    C: grouped(c),
    A: decayRate(w),
    D: skipWeight(w),
    past,
  };
  return flatResult(w, runScan(w, inputs));
}

function flatResult(w: Writer, result: ScanResult): { y: string; state: string } {
  const { family } = w.spelling;
  const rows = family === "mamba1" ? "h" : "hp";
  if (w.single) {
    const y = w.exactly(result.y, `b${rows}`);
    return { y: w.reshape(y, ["b", 1, channelsOf(w)]), state: result.state };
  }
  const y = w.exactly(result.y, `bl${rows}`);
  return { y: family === "mamba1" ? y : w.reshape(y, ["b", "l", channelsOf(w)]), state: result.state };
}

/** The scan in the form of the spelling. */
export function runScan(w: Writer, inputs: ScanInputs): ScanResult {
  if (!w.spelling.wrapped) return scanOfForm(w, inputs);
  let axes = "";
  const [y = "", state = ""] = w.inFunction("selective_scan", () => {
    const result = scanOfForm(w, inputs);
    axes = result.y.axes;
    return [result.y.name, result.state];
  });
  return { y: { name: y, axes }, state };
}

function scanOfForm(w: Writer, inputs: ScanInputs): ScanResult {
  switch (w.spelling.form) {
    case "step":
      return stepScan(w, inputs);
    case "unrolled":
      return unrolledScan(w, inputs);
    case "chunked":
      return chunkedScan(w, inputs);
    case "linear-attention":
      return linearAttention(w, inputs);
    case "loop":
      return loopScan(w, inputs);
    case "scan":
      return onnxScan(w, inputs);
    case "cumsum":
      return cumsumScan(w, inputs);
    case "associative":
      return associativeScan(w, inputs);
    default:
      throw new Error("branches hold scans of other forms");
  }
}
