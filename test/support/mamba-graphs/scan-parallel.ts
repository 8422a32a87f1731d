/**
 * Scans without steps: cumulative sums that are divided again (`cumsum`), and trees of an associative product
 * (`associative`). All tokens are computed at once, so every value keeps the axis l.
 */

import { i64Tensor } from "../../../src/ir/tensor.js";
import { inputTermOf, readoutOf, readoutVector, type ScanInputs, type ScanResult, withSkip } from "./recurrence.js";
import type { Axed, Writer } from "./writer.js";

const END = Number.MAX_SAFE_INTEGER;

/** Positions [from, to) of the axis l. */
function cut(w: Writer, value: Axed, from: number, to: number = END, step: number = 1): Axed {
  const axis = value.axes.indexOf("l");
  const bounds = [w.ints([from]), w.ints([to]), w.ints([axis]), w.ints([step])];
  return { name: w.op("Slice", [value.name, ...bounds]), axes: value.axes };
}

function joined(w: Writer, parts: readonly Axed[]): Axed {
  const axes = parts[0]?.axes ?? "";
  if (parts.length === 1) return parts[0] ?? { name: "", axes };
  return {
    name: w.op(
      "Concat",
      parts.map((part) => w.exactly(part, axes)),
      { axis: axes.indexOf("l") },
    ),
    axes,
  };
}

/** The last token, without the axis l. */
function lastOf(w: Writer, value: Axed): Axed {
  const axis = value.axes.indexOf("l");
  return { name: w.op("Gather", [value.name, w.scalar(-1)], { axis }), axes: value.axes.replace("l", "") };
}

/** d A, whose exponential is the decay. */
function rateOf(w: Writer, inputs: ScanInputs): Axed {
  const rate = w.mul(inputs.steps, inputs.A);
  if (w.spelling.sabotage === "token-dependent-a") return w.mul(rate, w.unary("Sigmoid", inputs.steps));
  if (w.spelling.sabotage === "decay-twice") return w.add(rate, rate);
  return rate;
}

/** y and the last state of all states h. */
function finished(w: Writer, states: Axed, inputs: ScanInputs): ScanResult {
  const { family, sabotage } = w.spelling;
  const tokens = family === "mamba1" ? "blhn" : "blhpn";
  const h = w.transposed(states, tokens);
  const start = w.op("Mul", [cut(w, h, 0, 1).name, w.float(0)]);
  const read = sabotage === "late-readout" ? joined(w, [{ name: start, axes: tokens }, cut(w, h, 0, -1)]) : h;
  const y = readoutOf(w, read, readoutVector(w, inputs));
  const state = w.exactly(lastOf(w, h), tokens.replace("l", ""));
  return { y: withSkip(w, y, inputs), state };
}

function cumulated(w: Writer, value: Axed): Axed {
  return { name: w.op("CumSum", [value.name, w.scalar(value.axes.indexOf("l"))]), axes: value.axes };
}

function turned(w: Writer, value: Axed): Axed {
  return cut(w, value, -1, -END, -1);
}

/** h_t = (sum over s <= t of P_s u_s) / P_t with cumulated decays P. */
export function cumsumScan(w: Writer, inputs: ScanInputs): ScanResult {
  const { parallel, sabotage } = w.spelling;
  const rate = rateOf(w, inputs);
  const past: Axed | null =
    inputs.past === null ? null : { name: inputs.past, axes: w.spelling.family === "mamba1" ? "bhn" : "bhpn" };
  let fed = inputTermOf(w, inputs);
  if (sabotage === "other-start" && past !== null) {
    fed = w.add(fed, w.mul(w.unary("Exp", cut(w, rate, 0, 1)), past));
  }
  if (parallel === "chunks") return chunks(w, inputs, rate, fed);
  const unlike = sabotage === "other-sum";
  let states: Axed;
  if (parallel === "negated") {
    const sums = cumulated(w, unlike ? w.mul(rate, rate) : rate);
    const grown = cumulated(w, w.mul(fed, w.unary("Exp", w.unary("Neg", sums))));
    states = w.mul(grown, w.unary("Exp", sums));
  } else {
    // P_t: the decay of everything behind token t.
    const at = rate.axes.indexOf("l");
    const pads = Array.from({ length: 2 * rate.axes.length }, (_, i) => (i === rate.axes.length + at ? 1 : 0));
    const behind: Axed = unlike
      ? rate
      : {
          name: w.op("Pad", [cut(w, rate, 1).name, w.ints(pads), w.float(0)], { mode: "constant" }),
          axes: rate.axes,
        };
    const decay =
      parallel === "suffix"
        ? turned(w, w.unary("Exp", cumulated(w, turned(w, behind))))
        : w.unary("Exp", { name: w.op("CumSum", [behind.name, w.scalar(at)], { reverse: 1 }), axes: behind.axes });
    const sum = cumulated(w, w.mul(fed, decay));
    const safe: Axed = { name: w.op("Add", [decay.name, w.float(1e-12)]), axes: decay.axes };
    states = { name: w.op("Div", [sum.name, w.align(safe, sum.axes)]), axes: sum.axes };
  }
  if (past !== null && sabotage !== "other-start") {
    states = w.add(states, w.mul(w.unary("Exp", cumulated(w, rate)), past));
  }
  return finished(w, states, inputs);
}

/** Cumulated sums start anew every few tokens; the state goes from chunk to chunk. */
function chunks(w: Writer, inputs: ScanInputs, rate: Axed, fed: Axed): ScanResult {
  const { length, sabotage } = w.spelling;
  if (length === null) throw new Error("chunks of cumulative sums need a length");
  const tokens = w.spelling.family === "mamba1" ? "bhn" : "bhpn";
  let carried: Axed | null = inputs.past === null ? null : { name: inputs.past, axes: tokens };
  const parts: Axed[] = [];
  for (let start = 0; start < length; start += w.sizes.chunk) {
    const end = Math.min(length, start + w.sizes.chunk);
    const decay = w.unary("Exp", cumulated(w, cut(w, rate, start, end)));
    const input = cut(w, fed, start, end);
    const scaled: Axed = { name: w.op("Div", [input.name, w.align(decay, input.axes)]), axes: input.axes };
    const own = w.mul(cumulated(w, scaled), decay);
    const states: Axed = carried === null || sabotage === "other-sum" ? own : w.add(own, w.mul(decay, carried));
    parts.push(states);
    carried = lastOf(w, states);
  }
  return finished(w, joined(w, parts), inputs);
}

/** A decay and a state, as large as each other: what a run of tokens does to the state before it. */
interface Run {
  readonly a: Axed;
  readonly b: Axed;
}

/** The first run, and then the second. */
function combined(w: Writer, first: Run, second: Run): Run {
  const axes = second.b.axes;
  const carried = w.op("Mul", [w.spelling.sabotage === "other-sum" ? first.a.name : second.a.name, first.b.name]);
  return {
    a: { name: w.op("Mul", [first.a.name, second.a.name]), axes },
    b: { name: w.op("Add", [carried, second.b.name]), axes },
  };
}

function cutRun(w: Writer, run: Run, from: number, to: number = END, step: number = 1): Run {
  return { a: cut(w, run.a, from, to, step), b: cut(w, run.b, from, to, step) };
}

function joinedRuns(w: Writer, runs: readonly Run[]): Run {
  return {
    a: joined(
      w,
      runs.map((run) => run.a),
    ),
    b: joined(
      w,
      runs.map((run) => run.b),
    ),
  }; // prettier-ignore
}

/** A tree of products over the tokens. */
export function associativeScan(w: Writer, inputs: ScanInputs): ScanResult {
  const { length, parallel, family } = w.spelling;
  if (length === null) throw new Error("an associative scan needs a length");
  const b = inputTermOf(w, inputs);
  const wide = w.shape(Array.from(b.axes).map((axis) => sizeOf(w, axis)));
  const decay = w.exactly(w.unary("Exp", rateOf(w, inputs)), b.axes);
  const run: Run = { a: { name: w.op("Expand", [decay, wide]), axes: b.axes }, b };
  const whole =
    parallel === "doubling"
      ? doubled(w, run, length)
      : parallel === "in-place"
        ? scattered(w, run, length)
        : oddEven(w, run, length);
  let states = whole.b;
  if (inputs.past !== null) {
    states = w.add(states, w.mul(whole.a, { name: inputs.past, axes: family === "mamba1" ? "bhn" : "bhpn" }));
  }
  return finished(w, states, inputs);
}

function sizeOf(w: Writer, axis: string): "b" | "l" | number {
  const { heads, headDim, dState } = w.sizes;
  return axis === "b" || axis === "l" ? axis : axis === "h" ? heads : axis === "p" ? headDim : dState;
}

/** Pairs are combined, their scan gives every second result, and those give the rest. */
function oddEven(w: Writer, run: Run, length: number): Run {
  if (length < 2) return run;
  const pairs = combined(w, cutRun(w, run, 0, -1, 2), cutRun(w, run, 1, END, 2));
  const half = Math.floor(length / 2);
  const odd = oddEven(w, pairs, half);
  if (length === 2) return joinedRuns(w, [cutRun(w, run, 0, 1), odd]);
  const before = length % 2 === 0 ? cutRun(w, odd, 0, -1) : odd;
  const even = joinedRuns(w, [cutRun(w, run, 0, 1), combined(w, before, cutRun(w, run, 2, END, 2))]);
  return { a: interleaved(w, even.a, odd.a, half), b: interleaved(w, even.b, odd.b, half) };
}

/** even_0, odd_0, even_1, ...; `even` may be longer by one. */
function interleaved(w: Writer, even: Axed, odd: Axed, half: number): Axed {
  const at = odd.axes.indexOf("l");
  const lone = (value: Axed): string => w.op("Unsqueeze", [value.name, w.ints([at + 1])]);
  const pairs = w.op("Concat", [lone(cut(w, even, 0, half)), lone(odd)], { axis: at + 1 });
  const dims = Array.from(odd.axes).map((axis) => (axis === "l" ? 2 * half : sizeOf(w, axis)));
  return joined(w, [{ name: w.reshape(pairs, dims), axes: odd.axes }, cut(w, even, half)]);
}

/** Every token takes in the one before it, then the one two before, then four. */
function doubled(w: Writer, run: Run, length: number): Run {
  let whole = run;
  for (let reach = 1; reach < length; reach *= 2) {
    const taken = combined(w, cutRun(w, whole, 0, -reach), cutRun(w, whole, reach));
    whole = joinedRuns(w, [cutRun(w, whole, 0, reach), taken]);
  }
  return whole;
}

/** Up and down a tree of powers of two, writing into the same tensor. */
function scattered(w: Writer, run: Run, length: number): Run {
  const first = `l${run.b.axes.replace("l", "")}`;
  let size = 1;
  while (size < length) size *= 2;
  const padded = (value: Axed): Axed => {
    const pads = Array.from({ length: 2 * first.length }, (_, i) => (i === first.length ? size - length : 0));
    const name = w.exactly(value, first);
    return { name: w.op("Pad", [name, w.ints(pads), w.float(0)], { mode: "constant" }), axes: first };
  };
  let whole: Run = { a: padded(run.a), b: padded(run.b) };
  const sweep = (left: readonly number[], right: readonly number[]): void => {
    if (right.length === 0) return;
    const rows = (value: Axed, at: readonly number[]): Axed => ({
      name: w.op("Gather", [value.name, w.ints(at)], { axis: 0 }),
      axes: first,
    });
    const taken = combined(
      w,
      { a: rows(whole.a, left), b: rows(whole.b, left) },
      { a: rows(whole.a, right), b: rows(whole.b, right) },
    );
    const places = w.builder.constant(i64Tensor([right.length, 1], right));
    const written = (value: Axed, update: Axed): Axed => ({
      name: w.op("ScatterND", [value.name, places, update.name]),
      axes: first,
    });
    whole = { a: written(whole.a, taken.a), b: written(whole.b, taken.b) };
  };
  const every = (from: number, step: number): number[] =>
    Array.from({ length: Math.max(0, Math.ceil((size - from) / step)) }, (_, i) => from + i * step);
  for (let reach = 1; reach < size; reach *= 2) {
    const right = every(2 * reach - 1, 2 * reach);
    sweep(
      right.map((at) => at - reach),
      right,
    );
  }
  for (let reach = size / 4; reach >= 1; reach /= 2) {
    const right = every(3 * reach - 1, 2 * reach);
    sweep(
      right.map((at) => at - reach),
      right,
    );
  }
  return size === length ? whole : cutRun(w, whole, 0, length);
}
