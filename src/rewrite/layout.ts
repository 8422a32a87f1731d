/**
 * Layout of a per-token value: where its batch, length and channel axes are. Converts data and builds graph nodes between
 * a layout and the canonical [batch, length, channels].
 */

import type { GraphBuilder } from "../ir/builder.js";
import { attr, attrInt, attrInts, type Node, type UseIndex } from "../ir/graph.js";
import { invariant } from "../support/errors.js";
import { type AxisRole, axisRoles, concrete, type View } from "./axes.js";

/** `axes[i]` says what axis i is; `length` may be missing when there is one token. */
export interface Layout {
  readonly axes: readonly AxisRole[];
  /** Sizes of the fixed axes, in order. */
  readonly fixed: readonly number[];
  readonly channels: number;
}

/**
 * Layouts a value may have, likeliest first; none when it is no per-token value. There is more than one only in a graph
 * of one length, where another axis is as long as the sequence.
 */
export function layoutsOf(view: View, name: string): Layout[] {
  const roles = axisRoles(view, name);
  const shape = concrete(view, name)?.shape;
  if (roles === null || shape === null || shape === undefined) return [];
  const lengthAxis = roles.indexOf("length");
  const twins =
    lengthAxis < 0 || view.sizes.length === 1 || hasSecondLength(view)
      ? []
      : shape.flatMap((size, axis) =>
          axis > 0 && axis !== lengthAxis && roles[axis] === "fixed" && size === view.sizes.length ? [axis] : [],
        );
  const moved = twins.map((twin) =>
    roles.map((role, axis): AxisRole => (axis === twin ? "length" : axis === lengthAxis ? "fixed" : role)),
  );
  return [roles, ...moved].flatMap((axes) => layoutWith(view, axes, shape) ?? []);
}

/** The likeliest layout of a value, or null when it is not a per-token value. */
export function layoutOf(view: View, name: string): Layout | null {
  return layoutsOf(view, name)[0] ?? null;
}

function hasSecondLength(view: View): boolean {
  return view.second !== null && view.second.sizes.length !== view.sizes.length;
}

function layoutWith(view: View, axes: readonly AxisRole[], shape: readonly number[]): Layout | null {
  if (axes.filter((role) => role === "batch").length !== 1 || axes.filter((role) => role === "length").length > 1)
    return null;
  if (!axes.includes("length") && view.sizes.length !== 1) return null;
  const fixed = shape.filter((_, axis) => axes[axis] === "fixed");
  return { axes, fixed, channels: fixed.reduce((product, size) => product * size, 1) };
}

const RESHAPES = new Set(["Reshape", "Squeeze", "Unsqueeze", "Flatten"]);

/**
 * The first value that holds the same data in the same order of channels: steps back over layout changes, so that
 * whoever reads an earlier layout is served too when the value is replaced.
 */
export function aboveLayout(
  tracer: { readonly view: View; readonly index: UseIndex },
  name: string,
  layout: Layout,
): { name: string; layout: Layout } {
  let at = { name, layout };
  for (;;) {
    const node = tracer.index.producer.get(at.name);
    const input = node?.inputs[0];
    if (node === undefined || input === undefined || node.domain !== "") return at;
    const axes = axesBefore(tracer.view, node, input, at.name, at.layout.axes);
    const shape = concrete(tracer.view, input)?.shape;
    const before = axes === null || shape == null ? null : layoutWith(tracer.view, axes, shape);
    if (before === null || before.channels !== layout.channels) return at;
    at = { name: input, layout: before };
  }
}

/** Roles of the input's axes of a layout change, or null when it does more than that. */
function axesBefore(
  view: View,
  node: Node,
  input: string,
  output: string,
  axes: readonly AxisRole[],
): readonly AxisRole[] | null {
  if (node.op === "Cast" || node.op === "Identity") return axes;
  if (node.op === "Transpose") {
    const perm = attrInts(node, "perm") ?? axes.map((_, axis) => axes.length - 1 - axis);
    const fixed = perm.filter((_, axis) => axes[axis] === "fixed");
    if (fixed.some((from, at) => at > 0 && from < (fixed[at - 1] ?? 0))) return null;
    const before: AxisRole[] = [...axes];
    perm.forEach((from, to) => {
      before[from] = axes[to] ?? "fixed";
    });
    return before;
  }
  if (node.op === "Gather") {
    // One position of an axis of length 1: all there is.
    const shapes = [input, output].map((name) => concrete(view, name)?.shape);
    const axis = attrInt(node, "axis", 0);
    const at = axis < 0 ? axis + axes.length + 1 : axis;
    if (view.sizes.length !== 1 || shapes[0]?.[at] !== 1 || shapes[0].length !== axes.length + 1) return null;
    const role = axes.includes("length") ? "fixed" : "length";
    return [...axes.slice(0, at), role, ...axes.slice(at)];
  }
  if (!RESHAPES.has(node.op)) return null;
  const first = regrouped(view.first.values.get(input)?.shape, view.first.values.get(output)?.shape, axes);
  if (first === null || view.second === null) return first;
  const { values } = view.second.inference;
  const second = regrouped(values.get(input)?.shape, values.get(output)?.shape, axes);
  return second !== null && second.every((role, axis) => role === first[axis]) ? first : null;
}

/** Reads the input of a reshape as the same sequence of batch, length and runs of channels as its output. */
function regrouped(
  from: readonly number[] | null | undefined,
  to: readonly number[] | null | undefined,
  axes: readonly AxisRole[],
): readonly AxisRole[] | null {
  if (from == null || to == null) return null;
  const runs: { role: AxisRole; size: number }[] = [];
  to.forEach((size, axis) => {
    const role = axes[axis] ?? "fixed";
    const last = runs.at(-1);
    if (role === "fixed" && last?.role === "fixed") last.size *= size;
    else runs.push({ role, size });
  });
  const out: AxisRole[] = [];
  for (const run of runs) {
    if (run.role === "fixed") {
      let product = 1;
      while (product < run.size && out.length < from.length) {
        product *= from[out.length] ?? 1;
        out.push("fixed");
      }
      if (product !== run.size) return null;
      continue;
    }
    // One token needs no axis.
    if (run.role === "length" && run.size === 1 && from[out.length] !== 1) continue;
    while (from[out.length] === 1 && run.size !== 1) out.push("fixed");
    if (from[out.length] !== run.size) return null;
    out.push(run.role);
  }
  while (from[out.length] === 1) out.push("fixed");
  return out.length === from.length ? out : null;
}

/** Data of a value in its layout -> [batch, length, channels]. */
export function toCanonical(layout: Layout, data: ArrayLike<number>, batch: number, length: number): Float64Array {
  const { order, sizes } = permutation(layout, batch, length);
  if (order.every((axis, at) => axis === at)) return new Float64Array(data);
  const strides = rowStrides(sizes);
  const out = new Float64Array(data.length);
  const outSizes = order.map((axis) => sizes[axis] ?? 1);
  const outStrides = order.map((axis) => strides[axis] ?? 1);
  const at = new Array<number>(order.length).fill(0);
  let from = 0;
  for (let i = 0; i < out.length; i++) {
    out[i] = data[from] ?? Number.NaN;
    for (let axis = order.length - 1; axis >= 0; axis--) {
      at[axis] = (at[axis] ?? 0) + 1;
      from += outStrides[axis] ?? 0;
      if ((at[axis] ?? 0) < (outSizes[axis] ?? 1)) break;
      from -= (outStrides[axis] ?? 0) * (outSizes[axis] ?? 1);
      at[axis] = 0;
    }
  }
  return out;
}

function permutation(layout: Layout, batch: number, length: number): { order: number[]; sizes: number[] } {
  let next = 0;
  const sizes = layout.axes.map((role) =>
    role === "batch" ? batch : role === "length" ? length : (layout.fixed[next++] ?? 1),
  );
  const order = [
    layout.axes.indexOf("batch"),
    ...layout.axes.flatMap((role, axis) => (role === "length" ? [axis] : [])),
    ...layout.axes.flatMap((role, axis) => (role === "fixed" ? [axis] : [])),
  ];
  return { order, sizes };
}

function rowStrides(sizes: readonly number[]): number[] {
  const strides = new Array<number>(sizes.length).fill(1);
  for (let axis = sizes.length - 2; axis >= 0; axis--)
    strides[axis] = (strides[axis + 1] ?? 1) * (sizes[axis + 1] ?? 1);
  return strides;
}

/** Nodes from a value in `layout` to [batch, length, ...target], where the target sizes multiply to the channels. */
export function emitToCanonical(
  builder: GraphBuilder,
  layout: Layout,
  name: string,
  target: readonly number[],
): string {
  const { order } = permutation(layout, 1, 1);
  let value = name;
  if (order.some((axis, at) => axis !== at)) value = builder.op("Transpose", [value], { perm: order });
  const hasLength = layout.axes.includes("length");
  if (!hasLength) value = builder.op("Unsqueeze", [value, builder.ints([1])]);
  if (sameSizes(layout.fixed, target)) return value;
  return builder.op("Reshape", [value, builder.ints([0, 0, ...target])], { allowzero: 0 });
}

/** Nodes from [batch, length, ...source] to a value in `layout`, named `output` when given. */
export function emitFromCanonical(
  builder: GraphBuilder,
  layout: Layout,
  name: string,
  source: readonly number[],
  output?: string,
): string {
  const { order } = permutation(layout, 1, 1);
  let value = name;
  if (!sameSizes(layout.fixed, source))
    value = builder.op("Reshape", [value, builder.ints([0, 0, ...layout.fixed])], { allowzero: 0 });
  if (!layout.axes.includes("length")) value = builder.op("Squeeze", [value, builder.ints([1])]);
  if (order.some((axis, at) => axis !== at)) {
    const inverse = order.map((_, axis) => order.indexOf(axis));
    value = builder.op("Transpose", [value], { perm: inverse });
  }
  if (output === undefined) return value;
  invariant(value !== output, "a layout change cannot be its own output");
  return builder.op("Identity", [value], {}, output);
}

/** Cast when the dtypes differ. */
export function emitCast(builder: GraphBuilder, name: string, from: number, to: number): string {
  return from === to ? name : builder.op("Cast", [name], { to: attr.int(to) });
}

function sameSizes(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, at) => size === b[at]);
}
