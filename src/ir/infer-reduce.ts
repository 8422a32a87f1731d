/** Reductions, arg-reductions and running sums. */

import { attrInt } from "./graph.js";
import { isWholeNumber, storeAs, stridedOffsets, stridesOf } from "./infer-content.js";
import {
  at,
  axesIn,
  axisIn,
  type Call,
  contentInput,
  dtypeFact,
  type Rule,
  scalarOf,
  type TensorFact,
  tensorFact,
  tensorInput,
} from "./infer-fact.js";
import { axesOf } from "./infer-movement.js";
import { type DType, elementCount } from "./types.js";

/** Combines the elements of one group; NaN from integers means "cannot be told". */
type Fold = (values: readonly number[], whole: boolean) => number;

const sum: Fold = (values, whole) =>
  guarded(
    values,
    values.reduce((a, b) => a + b, 0),
    whole,
  );

function guarded(values: readonly number[], result: number, whole: boolean): number {
  if (!whole) return result;
  return Number.isSafeInteger(result) && values.every(Number.isSafeInteger) ? result : Number.NaN;
}

/** The extreme of nothing is infinite, which integers cannot say. */
function extreme(choose: (a: number, b: number) => number, ofNothing: number): Fold {
  return (values, whole) => {
    if (values.length > 0) return values.reduce((a, b) => choose(a, b));
    return whole ? Number.NaN : ofNothing;
  };
}

const REDUCTIONS: Readonly<Record<string, Fold | null>> = {
  ReduceSum: sum,
  ReduceMean: (values, whole) => {
    const mean = sum(values, whole) / values.length;
    return whole ? Math.trunc(mean) : mean;
  },
  ReduceMax: extreme(Math.max, Number.NEGATIVE_INFINITY),
  ReduceMin: extreme(Math.min, Number.POSITIVE_INFINITY),
  ReduceProd: (values, whole) =>
    guarded(
      values,
      values.reduce((a, b) => a * b, 1),
      whole,
    ),
  ReduceSumSquare: (values, whole) =>
    guarded(
      values,
      values.reduce((a, b) => a + b * b, 0),
      whole,
    ),
  ReduceL1: (values, whole) =>
    guarded(
      values,
      values.reduce((a, b) => a + Math.abs(b), 0),
      whole,
    ),
  ReduceL2: null,
  ReduceLogSum: null,
  ReduceLogSumExp: null,
};

function reduceRule(fold: Fold | null): Rule {
  return (call) => {
    const x = tensorInput(call, 0);
    const listed = axesOf(call, 1);
    if (x.shape === null || listed === "unknown") return [dtypeFact(x.dtype)];
    const none = listed === "absent" || listed.length === 0;
    if (none && attrInt(call.node, "noop_with_empty_axes", 0) !== 0) return [x];
    const axes = new Set(none ? x.shape.keys() : axesIn(listed, x.shape.length));
    const keep = attrInt(call.node, "keepdims", 1) !== 0;
    const shape = reducedShape(x.shape, axes, keep);
    return [tensorFact(x.dtype, shape, fold === null ? null : foldContent(x, axes, fold))];
  };
}

function reducedShape(from: readonly number[], axes: ReadonlySet<number>, keep: boolean): number[] {
  return keep ? from.map((dim, axis) => (axes.has(axis) ? 1 : dim)) : from.filter((_, axis) => !axes.has(axis));
}

/** The offsets of the groups that are reduced, and of the elements within one group. */
function groups(shape: readonly number[], axes: ReadonlySet<number>): { outer: number[]; inner: number[] } {
  const strides = stridesOf(shape);
  const only = (inside: boolean): number[] =>
    stridedOffsets(
      shape.map((dim, axis) => (axes.has(axis) === inside ? dim : 1)),
      strides,
    );
  return { outer: only(false), inner: only(true) };
}

function foldContent(x: TensorFact, axes: ReadonlySet<number>, fold: Fold): readonly number[] | null {
  if (x.content === null || x.shape === null || x.dtype === null) return null;
  const { content } = x;
  const whole = isWholeNumber(x.dtype);
  const { outer, inner } = groups(x.shape, axes);
  return storeAs(
    x.dtype,
    outer.map((start) =>
      fold(
        inner.map((offset) => at(content, start + offset)),
        whole,
      ),
    ),
  );
}

function argRule(better: (candidate: number, best: number) => boolean): Rule {
  return (call) => {
    const x = tensorInput(call, 0);
    if (x.shape === null) return [dtypeFact("i64")];
    const axis = axisIn(attrInt(call.node, "axis", 0), x.shape.length);
    const axes = new Set([axis]);
    const shape = reducedShape(x.shape, axes, attrInt(call.node, "keepdims", 1) !== 0);
    const { content } = x;
    if (content === null || elementCount(x.shape) === 0) return [tensorFact("i64", shape)];
    const last = attrInt(call.node, "select_last_index", 0) !== 0;
    const { outer, inner } = groups(x.shape, axes);
    const winner = (start: number): number => {
      let best = 0;
      for (let i = 1; i < inner.length; i++) {
        const [candidate, current] = [at(content, start + at(inner, i)), at(content, start + at(inner, best))];
        if (better(candidate, current) || (last && candidate === current)) best = i;
      }
      return best;
    };
    return [tensorFact("i64", shape, outer.map(winner))];
  };
}

const cumSum: Rule = (call) => {
  const x = tensorInput(call, 0);
  return [tensorFact(x.dtype, x.shape, runningSums(call, x))];
};

function runningSums(call: Call, x: TensorFact): readonly number[] | null {
  const given = scalarOf(contentInput(call, 1));
  if (x.content === null || x.shape === null || x.dtype === null || given === null) return null;
  const axis = axisIn(given, x.shape.length);
  const exclusive = attrInt(call.node, "exclusive", 0) !== 0;
  const { outer, inner } = groups(x.shape, new Set([axis]));
  if (attrInt(call.node, "reverse", 0) !== 0) inner.reverse();
  const out = [...x.content];
  for (const start of outer) {
    let total = 0;
    for (const offset of inner) {
      const value = at(x.content, start + offset);
      const next = rounded(x.dtype, total + value);
      out[start + offset] = exclusive ? total : next;
      total = next;
    }
  }
  return storeAs(x.dtype, out);
}

/** A partial sum as the element type keeps it; NaN once an integer can no longer be told. */
function rounded(dtype: DType, value: number): number {
  if (isWholeNumber(dtype) && !Number.isSafeInteger(value)) return Number.NaN;
  return storeAs(dtype, [value])?.[0] ?? Number.NaN;
}

/** Every reducing operator by qualified name. */
export const REDUCE_RULES: ReadonlyMap<string, Rule> = new Map<string, Rule>([
  ...Object.entries(REDUCTIONS).map(([op, fold]): [string, Rule] => [op, reduceRule(fold)]),
  ["ArgMax", argRule((candidate, best) => candidate > best)],
  ["ArgMin", argRule((candidate, best) => candidate < best)],
  ["CumSum", cumSum],
]);
