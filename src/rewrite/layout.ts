/**
 * Layout of a per-token value: where its batch, length and channel axes are. Converts data and builds graph nodes between
 * a layout and the canonical [batch, length, channels].
 */

import type { GraphBuilder } from "../ir/builder.js";
import { attr } from "../ir/graph.js";
import { invariant } from "../support/errors.js";
import { type AxisRole, axisRoles, concrete, type View } from "./axes.js";
import type { Tracer } from "./trace.js";

/** `axes[i]` says what axis i is; `length` may be missing when there is one token. */
export interface Layout {
  readonly axes: readonly AxisRole[];
  /** Sizes of the fixed axes, in order. */
  readonly fixed: readonly number[];
  readonly channels: number;
}

/** Layout of a value, or null when it is not a per-token value. */
export function layoutOf(view: View, name: string): Layout | null {
  const axes = axisRoles(view, name);
  const shape = concrete(view, name)?.shape;
  if (axes === null || shape === null || shape === undefined) return null;
  if (axes.filter((role) => role === "batch").length !== 1 || axes.filter((role) => role === "length").length > 1)
    return null;
  if (!axes.includes("length") && view.sizes.length !== 1) return null;
  const fixed = shape.filter((_, axis) => axes[axis] === "fixed");
  return { axes, fixed, channels: fixed.reduce((product, size) => product * size, 1) };
}

const LAYOUT_OPS = new Set(["Transpose", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"]);

/**
 * The first value that holds the same data: steps back over layout changes, so that whoever reads an earlier layout is
 * served too when the value is replaced.
 */
export function aboveLayout(tracer: Tracer, name: string, channels: number): string {
  let at = name;
  for (;;) {
    const node = tracer.index.producer.get(at);
    const input = node?.inputs[0];
    if (node === undefined || input === undefined || !LAYOUT_OPS.has(node.op) || node.domain !== "") return at;
    if (layoutOf(tracer.view, input)?.channels !== channels) return at;
    at = input;
  }
}

/** Data of a value in its layout -> [batch, length, channels]. */
export function toCanonical(layout: Layout, data: ArrayLike<number>, batch: number, length: number): Float64Array {
  const { order, sizes } = permutation(layout, batch, length);
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
