/** Operators that only move elements: shapes, joins and cuts. */

import { attrInt, attrInts, attrString } from "./graph.js";
import { broadcastShapes, count, gridOffsets, stridedOffsets, stridesOf } from "./infer-content.js";
import {
  at,
  axesIn,
  axisIn,
  type Call,
  CONTENT_LIMIT,
  contentInput,
  describe,
  dtypeFact,
  hasInput,
  type Rule,
  refuse,
  scalarOf,
  type TensorFact,
  tensorFact,
  tensorInput,
} from "./infer-fact.js";
import { elementCount } from "./types.js";

/** The elements of `x` at `offsets` (NaN reads `fill`), in a new shape. */
export function pick(
  x: TensorFact,
  shape: readonly number[],
  offsets: () => readonly number[],
  fill: number | null = 0,
): TensorFact {
  const { content } = x;
  if (content === null || fill === null || elementCount(shape) > CONTENT_LIMIT) return tensorFact(x.dtype, shape);
  return tensorFact(
    x.dtype,
    shape,
    offsets().map((offset) => (Number.isNaN(offset) ? fill : at(content, offset))),
  );
}

/** Axes as an input (new operator sets) or an attribute (old); 'unknown' when the input's content is. */
export function axesOf(call: Call, index: number): readonly number[] | "absent" | "unknown" {
  if (hasInput(call, index)) return contentInput(call, index) ?? "unknown";
  return attrInts(call.node, "axes") ?? "absent";
}

const reshape: Rule = (call) => {
  const x = tensorInput(call, 0);
  const target = contentInput(call, 1, attrInts(call.node, "shape"));
  if (target === null) return [dtypeFact(x.dtype)];
  const shape = reshaped(x.shape, target, attrInt(call.node, "allowzero", 0) !== 0);
  return [tensorFact(x.dtype, shape, x.content)];
};

function reshaped(from: readonly number[] | null, target: readonly number[], allowZero: boolean): number[] | null {
  if (target.some((dim) => dim < -1)) refuse(`cannot reshape to ${describe(target)}`);
  const free = target.indexOf(-1);
  if (free !== target.lastIndexOf(-1)) refuse(`reshape to ${describe(target)} leaves two dimensions free`);
  const copies = !allowZero && target.includes(0);
  if (from === null) return free >= 0 || copies ? null : [...target];
  const shape = target.map((dim, axis) => {
    if (dim !== 0 || allowZero) return dim;
    return from[axis] ?? refuse(`reshape of ${describe(from)} to ${describe(target)} copies a missing dimension`);
  });
  const elements = elementCount(from);
  if (free >= 0) {
    // With allowzero, 0 and -1 together are outside the standard.
    if (allowZero && target.includes(0)) return null;
    const rest = -elementCount(shape);
    if (rest === 0 || elements % rest !== 0) refuse(`cannot reshape ${describe(from)} to ${describe(target)}`);
    shape[free] = elements / rest;
  }
  if (elementCount(shape) !== elements) refuse(`cannot reshape ${describe(from)} to ${describe(target)}`);
  return shape;
}

const flatten: Rule = (call) => {
  const x = tensorInput(call, 0);
  if (x.shape === null) return [dtypeFact(x.dtype)];
  const axis = attrInt(call.node, "axis", 1);
  const split = axis === x.shape.length ? axis : axisIn(axis, Math.max(1, x.shape.length));
  const shape = [elementCount(x.shape.slice(0, split)), elementCount(x.shape.slice(split))];
  return [tensorFact(x.dtype, shape, x.content)];
};

const squeeze: Rule = (call) => {
  const x = tensorInput(call, 0);
  const axes = axesOf(call, 1);
  if (x.shape === null || axes === "unknown") return [dtypeFact(x.dtype)];
  const from = x.shape;
  const given = axes === "absent" || axes.length === 0 ? null : new Set(axesIn(axes, from.length));
  const dropped = (dim: number, axis: number): boolean => (given === null ? dim === 1 : given.has(axis));
  for (const axis of given ?? []) if (from[axis] !== 1) refuse(`squeeze of axis ${axis} of ${describe(from)}`);
  const shape = from.filter((dim, axis) => !dropped(dim, axis));
  return [tensorFact(x.dtype, shape, x.content)];
};

const unsqueeze: Rule = (call) => {
  const x = tensorInput(call, 0);
  const axes = axesOf(call, 1);
  if (x.shape === null || typeof axes === "string") return [dtypeFact(x.dtype)];
  const rank = x.shape.length + axes.length;
  const added = new Set(axesIn(axes, rank));
  const old = x.shape.values();
  const shape = count(rank, (axis) => (added.has(axis) ? 1 : (old.next().value ?? 1)));
  return [tensorFact(x.dtype, shape, x.content)];
};

const transpose: Rule = (call) => {
  const x = tensorInput(call, 0);
  if (x.shape === null) return [dtypeFact(x.dtype)];
  const from = x.shape;
  const rank = from.length;
  const perm = attrInts(call.node, "perm") ?? count(rank, (axis) => rank - 1 - axis);
  if (perm.length !== rank) refuse(`perm [${perm.join(",")}] does not fit ${describe(from)}`);
  const order = axesIn(perm, rank);
  const shape = order.map((axis) => at(from, axis));
  const strides = stridesOf(from);
  return [
    pick(x, shape, () =>
      stridedOffsets(
        shape,
        order.map((axis) => at(strides, axis)),
      ),
    ),
  ];
};

const expand: Rule = (call) => {
  const x = tensorInput(call, 0);
  const target = contentInput(call, 1);
  if (x.shape === null || target === null) return [dtypeFact(x.dtype)];
  if (target.some((dim) => dim < 0)) refuse(`cannot expand to ${describe(target)}`);
  const from = x.shape;
  const shape = broadcastShapes([from, target]);
  const strides = stridesOf(from);
  const shift = shape.length - from.length;
  const view = shape.map((_, axis) => (axis < shift || from[axis - shift] === 1 ? 0 : at(strides, axis - shift)));
  return [pick(x, shape, () => stridedOffsets(shape, view))];
};

const tile: Rule = (call) => {
  const x = tensorInput(call, 0);
  const repeats = contentInput(call, 1);
  if (x.shape === null || repeats === null) return [dtypeFact(x.dtype)];
  const from = x.shape;
  if (repeats.length !== from.length) refuse(`${repeats.length} repeats for ${describe(from)}`);
  if (repeats.some((times) => times < 0)) refuse(`negative repeats [${repeats.join(",")}]`);
  const shape = from.map((dim, axis) => dim * at(repeats, axis));
  const strides = stridesOf(from);
  const axes = (): number[][] => shape.map((dim, a) => count(dim, (i) => (i % at(from, a)) * at(strides, a)));
  return [pick(x, shape, () => gridOffsets(axes()))];
};

const pad: Rule = (call) => {
  const x = tensorInput(call, 0);
  const pads = contentInput(call, 1, attrInts(call.node, "pads") ?? attrInts(call.node, "paddings"));
  const listed = contentInput(
    call,
    3,
    count(x.shape?.length ?? 0, (axis) => axis),
  );
  if (x.shape === null || pads === null || listed === null) return [dtypeFact(x.dtype)];
  const from = x.shape;
  const axes = axesIn(listed, from.length);
  if (pads.length !== 2 * axes.length) refuse(`${pads.length} pads for ${axes.length} axes of ${describe(from)}`);
  const begin = from.map(() => 0);
  const shape = [...from];
  for (const [i, axis] of axes.entries()) {
    begin[axis] = at(pads, i);
    shape[axis] = at(from, axis) + at(pads, i) + at(pads, i + axes.length);
  }
  if (shape.some((dim) => dim < 0)) refuse(`pads [${pads.join(",")}] leave nothing of ${describe(from)}`);
  const mode = attrString(call.node, "mode", "constant");
  const strides = stridesOf(from);
  const lists = (): number[][] =>
    shape.map((dim, axis) =>
      count(dim, (i) => padSource(mode, i - at(begin, axis), at(from, axis)) * at(strides, axis)),
    );
  return [pick(x, shape, () => gridOffsets(lists()), mode === "constant" ? padFill(call) : 0)];
};

function padFill(call: Call): number | null {
  return hasInput(call, 2) ? scalarOf(contentInput(call, 2)) : 0;
}

/** Index in the unpadded axis of `size` elements, NaN outside it in constant mode. */
function padSource(mode: string, index: number, size: number): number {
  if (index >= 0 && index < size) return index;
  if (mode === "edge") return index < 0 ? 0 : size - 1;
  if (mode === "wrap") return ((index % size) + size) % size;
  if (mode !== "reflect") return Number.NaN;
  const period = Math.max(1, 2 * (size - 1));
  const folded = ((index % period) + period) % period;
  return folded < size ? folded : period - folded;
}

const concat: Rule = (call) => {
  const parts = call.inputs.map((_, index) => tensorInput(call, index));
  const dtype = parts.find((part) => part.dtype !== null)?.dtype ?? null;
  return [concatenate(parts, attrInt(call.node, "axis", 1), dtype)];
};

/** Joins tensors along an axis. Throws `Contradiction` when their other dimensions differ. */
export function concatenate(parts: readonly TensorFact[], axisGiven: number, dtype: TensorFact["dtype"]): TensorFact {
  const shapes = parts.flatMap((part) => (part.shape === null ? [] : [part.shape]));
  const [first] = shapes;
  if (first === undefined) return dtypeFact(dtype);
  const axis = axisIn(axisGiven, first.length);
  let odd = false;
  for (const shape of shapes) {
    const fits = shape.length === first.length && shape.every((dim, a) => a === axis || dim === first[a]);
    if (fits) continue;
    // ONNX Runtime lets empty tensors of any other size through.
    odd = shape.length === first.length && (shape.includes(0) || first.includes(0));
    if (!odd) refuse(`concat of ${describe(first)} and ${describe(shape)} on axis ${axis}`);
  }
  if (odd || shapes.length < parts.length) return dtypeFact(dtype);
  const shape = [...first];
  shape[axis] = shapes.reduce((sum, each) => sum + at(each, axis), 0);
  return tensorFact(dtype, shape, joinContent(parts, shape, axis));
}

function joinContent(parts: readonly TensorFact[], shape: readonly number[], axis: number): number[] | null {
  if (elementCount(shape) > CONTENT_LIMIT || parts.some((part) => part.content === null)) return null;
  const outer = elementCount(shape.slice(0, axis));
  const out: number[] = [];
  for (let row = 0; row < outer; row++) {
    for (const part of parts) {
      const block = elementCount((part.shape ?? []).slice(axis));
      for (const value of (part.content ?? []).slice(row * block, (row + 1) * block)) out.push(value);
    }
  }
  return out;
}

const split: Rule = (call) => {
  const x = tensorInput(call, 0);
  const outputs = call.node.outputs.length;
  const listed = contentInput(call, 1, attrInts(call.node, "split"));
  if (x.shape === null || (listed === null && hasInput(call, 1))) {
    return call.node.outputs.map(() => dtypeFact(x.dtype));
  }
  const axis = axisIn(attrInt(call.node, "axis", 0), x.shape.length);
  const sizes = listed ?? evenSplit(call, at(x.shape, axis), outputs);
  const total = sizes.reduce((sum, size) => sum + size, 0);
  if (sizes.length !== outputs || total !== at(x.shape, axis) || sizes.some((size) => size < 0)) {
    refuse(`split of ${describe(x.shape)} on axis ${axis} into [${sizes.join(",")}] for ${outputs} outputs`);
  }
  return splitAt(x, x.shape, axis, sizes);
};

/** Consecutive pieces of a tensor along one axis. */
function splitAt(x: TensorFact, from: readonly number[], axis: number, sizes: readonly number[]): TensorFact[] {
  const strides = stridesOf(from);
  let start = 0;
  return sizes.map((size) => {
    const shape = from.with(axis, size);
    const base = start * at(strides, axis);
    start += size;
    return pick(x, shape, () => stridedOffsets(shape, strides, base));
  });
}

function evenSplit(call: Call, dim: number, outputs: number): number[] {
  const parts = attrInt(call.node, "num_outputs", outputs);
  const uneven = call.node.attributes.has("num_outputs");
  if (!uneven && dim % parts !== 0) refuse(`${dim} does not split into ${parts} equal parts`);
  const chunk = Math.ceil(dim / parts);
  return count(parts, (i) => (i === parts - 1 ? dim - chunk * (parts - 1) : chunk));
}

const slice: Rule = (call) => {
  const x = tensorInput(call, 0);
  const starts = contentInput(call, 1, attrInts(call.node, "starts"));
  const ends = contentInput(call, 2, attrInts(call.node, "ends"));
  if (x.shape === null || starts === null || ends === null) return [dtypeFact(x.dtype)];
  const from = x.shape;
  const listed = contentInput(call, 3, attrInts(call.node, "axes") ?? starts.map((_, axis) => axis));
  const steps = contentInput(
    call,
    4,
    starts.map(() => 1),
  );
  if (listed === null || steps === null) return [dtypeFact(x.dtype)];
  const n = starts.length;
  if (ends.length !== n || listed.length !== n || steps.length !== n) refuse("slice bounds differ in length");
  const shape = [...from];
  const strides = stridesOf(from);
  let base = 0;
  for (const [i, axis] of axesIn(listed, from.length).entries()) {
    const range = sliceRange(at(starts, i), at(ends, i), at(steps, i), at(from, axis));
    shape[axis] = range.size;
    base += range.start * at(strides, axis);
    strides[axis] = at(strides, axis) * at(steps, i);
  }
  return [pick(x, shape, () => stridedOffsets(shape, strides, base))];
};

/** First index and number of elements of a numpy slice; bounds may lie far outside the axis. */
function sliceRange(start: number, end: number, step: number, dim: number): { start: number; size: number } {
  if (step === 0) refuse("slice step is 0");
  const [low, high] = step > 0 ? [0, dim] : [-1, dim - 1];
  const bound = (value: number, least: number): number =>
    Math.min(high, Math.max(least, value < 0 ? value + dim : value));
  // Unlike numpy, ONNX moves a start before the axis to its first element even for negative steps.
  const first = bound(start, 0);
  // ONNX Runtime reads the largest integers as "to the end", also when the end is the front.
  const last = end === 2 ** 63 || end === 2 ** 31 - 1 ? (step > 0 ? dim : -1) : bound(end, low);
  return { start: first, size: Math.max(0, Math.ceil((last - first) / step)) };
}

/** Every data movement operator by qualified name. */
export const MOVEMENT_RULES: ReadonlyMap<string, Rule> = new Map([
  ["Reshape", reshape],
  ["Flatten", flatten],
  ["Squeeze", squeeze],
  ["Unsqueeze", unsqueeze],
  ["Transpose", transpose],
  ["Expand", expand],
  ["Tile", tile],
  ["Pad", pad],
  ["Concat", concat],
  ["Split", split],
  ["Slice", slice],
]);
