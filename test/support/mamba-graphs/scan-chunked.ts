/** The chunked form of a Mamba-2 scan (SSD): chunks in parallel, their states in a small scan of chunk totals. */

import { boolTensor } from "../../../src/ir/tensor.js";
import { zeroState } from "./layer-parts.js";
import { readoutVector, type ScanInputs, type ScanResult, withSkip } from "./recurrence.js";
import type { Axed, ShapeDim, Writer } from "./writer.js";

interface Padding {
  /** [b l' ..] cut into chunks [b k q ..]. */
  chunked(value: Axed): Axed;
  /** Zeros behind the last token. */
  padded(value: Axed): Axed;
  /** [b l' ..] without the padding. */
  cut(value: Axed): Axed;
}

function paddingOf(w: Writer): Padding {
  const { chunk, heads, headDim, dState } = w.sizes;
  const { length, padding, claimsFreeLength } = w.spelling;
  const fixed = length !== null && padding === "static" && !claimsFreeLength;
  const sizeOf = (axis: string): ShapeDim =>
    axis === "b" ? "b" : axis === "h" ? heads : axis === "p" ? headDim : axis === "n" ? dState : 1;
  let amount: string | null = null;
  const missing = fixed ? (chunk - (length % chunk)) % chunk : null;
  const padded = (value: Axed): Axed => {
    if (missing === 0) return value;
    const rank = value.axes.length;
    const at = value.axes.indexOf("l");
    if (missing !== null) {
      const pads: number[] = Array.from({ length: 2 * rank }, () => 0);
      pads[rank + at] = missing;
      return { name: w.op("Pad", [value.name, w.ints(pads), w.float(0)], { mode: "constant" }), axes: value.axes };
    }
    if (amount === null) {
      const q = w.ints([chunk]);
      const rest = w.op("Mod", [w.dim("l"), q], { fmod: 0 });
      amount = w.op("Mod", [w.op("Sub", [q, rest]), q], { fmod: 0 });
    }
    const zero = w.ints([0]);
    const ends = Array.from({ length: 2 * rank }, (_, i) => (i === rank + at ? (amount ?? "") : zero));
    const pads = w.op("Concat", ends, { axis: 0 });
    return { name: w.op("Pad", [value.name, pads, w.float(0)], { mode: "constant" }), axes: value.axes };
  };
  const chunked = (value: Axed): Axed => {
    const axes = value.axes.replace("l", "kq");
    const dims = Array.from(axes).map((axis) => (axis === "k" ? -1 : axis === "q" ? chunk : sizeOf(axis)));
    return { name: w.reshape(padded(value).name, dims), axes };
  };
  const cut = (value: Axed): Axed => {
    if (missing === 0) return value;
    const end = fixed ? w.ints([length]) : w.dim("l");
    return { name: w.op("Slice", [value.name, w.ints([0]), end, w.ints([value.axes.indexOf("l")])]), axes: value.axes };
  };
  return { chunked, padded, cut };
}

/** exp of sums over i < j <= l: [.., q] -> [.., q, s], lower triangular. */
function segmentDecay(w: Writer, value: Axed, size: number | null): Axed {
  const last = value.axes.at(-1) ?? "q";
  const other = last === "q" ? "s" : "y";
  const axes = `${value.axes}${other}`;
  const masked = (name: string, diagonal: number, fill: number): string => {
    const keep = triangle(w, name, size, diagonal);
    return w.op("Where", [keep, name, w.float(fill)]);
  };
  if (w.spelling.segments === "difference") {
    const sums = w.op("CumSum", [value.name, w.scalar(-1)]);
    const rows = w.op("Unsqueeze", [sums, w.ints([-1])]);
    const columns = w.op("Unsqueeze", [sums, w.ints([-2])]);
    const difference = w.op("Sub", [rows, columns]);
    return { name: w.op("Exp", [masked(difference, 0, Number.NEGATIVE_INFINITY)]), axes };
  }
  const column = w.op("Unsqueeze", [value.name, w.ints([-1])]);
  const shape = w.op("Shape", [value.name]);
  const tail = w.op("Slice", [shape, w.ints([-1]), w.ints([Number.MAX_SAFE_INTEGER]), w.ints([0])]);
  const square = w.op("Expand", [column, w.op("Concat", [shape, tail], { axis: 0 })]);
  const sums = w.op("CumSum", [masked(square, -1, 0), w.scalar(-2)]);
  return { name: w.op("Exp", [masked(sums, 0, Number.NEGATIVE_INFINITY)]), axes };
}

/** A lower triangle of ones as wide as the last two axes of `name`. */
function triangle(w: Writer, name: string, size: number | null, diagonal: number): string {
  if (size !== null) {
    const data = Array.from({ length: size * size }, (_, at) => (at % size) - Math.floor(at / size) <= diagonal);
    return w.builder.constant(boolTensor([size, size], data));
  }
  const shape = w.op("Shape", [name]);
  const tail = w.op("Slice", [shape, w.ints([-2]), w.ints([Number.MAX_SAFE_INTEGER]), w.ints([0])]);
  const ones = w.op("Expand", [w.builder.constant(boolTensor([], [true])), tail]);
  return w.op("Trilu", [ones, w.scalar(diagonal)], { upper: 0 });
}

/** Chunks in parallel; the state goes from chunk to chunk. */
export function chunkedScan(w: Writer, inputs: ScanInputs): ScanResult {
  const { chunk, heads, headDim, dState } = w.sizes;
  const { contraction, skipOnPadded, sabotage, length, padding, claimsFreeLength } = w.spelling;
  const pad = paddingOf(w);
  const fed = sabotage === "input-without-dt" ? inputs.x : w.mul(inputs.x, inputs.steps);
  let rate = w.mul(inputs.steps, inputs.A);
  if (sabotage === "token-dependent-a") rate = w.mul(rate, w.unary("Sigmoid", inputs.steps));
  if (sabotage === "decay-twice") rate = w.add(rate, w.mul(rate, rate));
  const x = pad.chunked(w.transposed(fed, "blhp"));
  const a = w.transposed(pad.chunked(w.transposed(rate, "blh")), "bhkq");
  const B = pad.chunked(w.transposed(inputs.B, "blhn"));
  const C = pad.chunked(w.transposed(readoutVector(w, inputs), "blhn"));
  const B_: Axed = { name: B.name, axes: "bkshn" };
  const x_: Axed = { name: x.name, axes: "bkshp" };
  const sums: Axed = { name: w.op("CumSum", [a.name, w.scalar(-1)]), axes: "bhkq" };
  const fixed = length !== null && padding === "static" && !claimsFreeLength;
  const L = segmentDecay(w, a, fixed ? chunk : null);
  const last = w.op("Slice", [sums.name, w.ints([-1]), w.ints([Number.MAX_SAFE_INTEGER]), w.ints([-1])]);
  const rest = w.op("Exp", [w.op("Sub", [last, sums.name])]);
  const decayStates: Axed = { name: rest, axes: "bhkq" };
  const style = contraction === "mul-sum" ? "mul-sum" : "einsum";
  let diagonal: Axed;
  let states: Axed;
  if (contraction === "minimal") {
    diagonal = w.contract([C, B_, L, x_], "bkqhp", "einsum");
    states = w.contract([B, decayStates, x], "bkhpn", "einsum");
  } else {
    const scores = w.contract([C, B_], "bkqsh", style);
    const weighted = w.product(scores, w.transposed(L, "bkqsh"));
    diagonal = w.contract([weighted, x_], "bkqhp", style);
    const faded = w.product(B, w.transposed({ ...decayStates, axes: "bhkq" }, "bkqh"), "bkqhn");
    states = w.contract([faded, x], "bkhpn", style);
  }
  const start =
    inputs.past === null
      ? w.op("Unsqueeze", [zeroState(w, [heads, headDim, dState]), w.ints([1])])
      : w.op("Unsqueeze", [inputs.past, w.ints([1])]);
  const all: Axed = { name: w.op("Concat", [start, states.name], { axis: 1 }), axes: "byhpn" };
  const totals = w.op("Squeeze", [last, w.ints([-1])]);
  const shifted = w.op("Pad", [totals, w.ints([0, 0, 1, 0, 0, 0]), w.float(0)], { mode: "constant" });
  const chunkCount = fixed ? Math.ceil(length / chunk) + 1 : null;
  const between = segmentDecay(w, { name: shifted, axes: "bhz" }, chunkCount);
  const carried = sabotage === "state-not-carried" ? all : { ...w.contract([between, all], "bzhpn", style) };
  const before = w.op("Slice", [carried.name, w.ints([0]), w.ints([-1]), w.ints([1])]);
  const state = w.op("Gather", [carried.name, w.scalar(-1)], { axis: 1 });
  const entering: Axed = { name: before, axes: "bkhpn" };
  const outDecay: Axed = { name: w.op("Exp", [sums.name]), axes: "bhkq" };
  let offDiagonal: Axed;
  if (contraction === "minimal") offDiagonal = w.contract([C, entering, outDecay], "bkqhp", "einsum");
  else {
    const read = w.contract([C, entering], "bkqhp", style);
    offDiagonal = w.product(read, w.transposed(outDecay, "bkqh"), "bkqhp");
  }
  const sum = w.op("Add", [diagonal.name, offDiagonal.name]);
  const long: Axed = { name: w.reshape(sum, ["b", -1, heads, headDim]), axes: "blhp" };
  const tokensFirst = { ...inputs, x: w.transposed(inputs.x, "blhp") };
  if (skipOnPadded && inputs.D !== null && sabotage !== "skip-on-input-term") {
    return { y: pad.cut(withSkip(w, long, { ...tokensFirst, x: pad.padded(tokensFirst.x) })), state };
  }
  return { y: withSkip(w, pad.cut(long), tokensFirst), state };
}
