/**
 * Concrete views of a graph: inference at chosen batch and length, and what each axis of a value means.
 *
 * Exporters disagree about names and ranks, so the meaning of an axis is found by changing the batch and the length and
 * watching which sizes follow.
 */

import type { Graph, ValueInfo } from "../ir/graph.js";
import { dependencies as allDependencies, useIndex } from "../ir/graph.js";
import { type ConcreteValue, type Inference, type InputShape, inferConcrete } from "../ir/infer.js";
import type { DType, Shape } from "../ir/types.js";

/** Sizes at which a graph is looked at. `past` is the length of attention caches, `width` that of conv states. */
export interface Sizes {
  readonly batch: number;
  readonly length: number;
  readonly past: number;
}

export type AxisRole = "batch" | "length" | "fixed";

/** A dimension as a number when it is one, also when it is spelled as a string such as "32". */
export function dimNumber(dim: Shape[number]): number | null {
  if (typeof dim === "number") return dim;
  return dim !== null && /^\d+$/.test(dim) ? Number(dim) : null;
}

/** The input that carries token ids: the first integer input of rank 2 that is no mask and no position; else the first input that is neither. */
export function tokenInput(graph: Graph): ValueInfo | null {
  const real = graph.inputs.filter((input) => !graph.initializers.has(input.name));
  const integer = real.filter(
    (input) =>
      input.type?.kind === "tensor" &&
      (input.type.dtype === "i64" || input.type.dtype === "i32") &&
      input.type.shape?.length === 2,
  );
  return (
    integer.find((input) => input.name.endsWith("ids") && !/position/.test(input.name)) ??
    integer.find((input) => !/mask|position/.test(input.name)) ??
    real.find((input) => !/mask|position/.test(input.name)) ??
    real[0] ??
    null
  );
}

/** Does the graph take token ids? Graphs of pictures and sounds do not. */
export function hasTokenIds(graph: Graph): boolean {
  const type = tokenInput(graph)?.type;
  return type?.kind === "tensor" && (type.dtype === "i64" || type.dtype === "i32") && type.shape?.length === 2;
}

/** Is the sequence length of the graph free, as far as its declared input says? */
export function declaredLength(graph: Graph): number | null {
  const token = tokenInput(graph);
  const dim = token?.type?.kind === "tensor" ? token.type.shape?.[1] : null;
  return dim === undefined ? null : dimNumber(dim ?? null);
}

/** The batch size the graph insists on, or null when it is free. */
export function declaredBatch(graph: Graph): number | null {
  const token = tokenInput(graph);
  const dim = token?.type?.kind === "tensor" ? token.type.shape?.[0] : null;
  return dim === undefined ? null : dimNumber(dim ?? null);
}

/** Widths of depthwise 1-D convolutions in the graph; conv states with a symbolic width get it. */
function convWidth(graph: Graph): number {
  for (const node of graph.nodes) {
    if (node.op !== "Conv" && node.op !== "CausalConvWithState") continue;
    const weight = graph.initializers.get(node.inputs[1] ?? "");
    const taps = weight?.shape[2];
    if (weight?.shape.length === 3 && weight.shape[1] === 1 && taps !== undefined) return taps;
  }
  return 4;
}

/** Concrete input shapes for the chosen sizes. */
export function bindInputs(graph: Graph, sizes: Sizes): Map<string, InputShape> {
  const token = tokenInput(graph);
  const width = convWidth(graph);
  const hasCache = graph.inputs.some((input) => isAttentionCache(input));
  const out = new Map<string, InputShape>();
  for (const input of graph.inputs) {
    if (graph.initializers.has(input.name) || input.type?.kind !== "tensor") continue;
    const { dtype, shape } = input.type;
    const concrete = (shape ?? []).map((dim, axis) => {
      const known = dimNumber(dim);
      if (known !== null) return known;
      if (axis === 0) return sizes.batch;
      if (input.name === token?.name) return sizes.length;
      if (dtype === "i64" || dtype === "i32" || dtype === "bool") {
        return /mask/.test(input.name) && hasCache ? sizes.past + sizes.length : sizes.length;
      }
      if (isAttentionCache(input)) return sizes.past;
      return width;
    });
    out.set(input.name, { dtype, shape: concrete });
  }
  return out;
}

/** An attention key/value cache: float, rank 4, with a symbolic axis 2. */
export function isAttentionCache(input: ValueInfo): boolean {
  if (input.type?.kind !== "tensor" || input.type.shape?.length !== 4 || !isFloating(input.type.dtype)) return false;
  return dimNumber(input.type.shape[2] ?? null) === null;
}

function isFloating(dtype: DType): boolean {
  return dtype === "f32" || dtype === "f16" || dtype === "bf16";
}

/** A graph looked at one or two sizes. `second` is null when the length or the batch is frozen in the file. */
export interface View {
  readonly graph: Graph;
  readonly sizes: Sizes;
  readonly first: Inference;
  readonly second: { readonly sizes: Sizes; readonly inference: Inference } | null;
  /** Length the file works for, when it works for one only. */
  readonly frozenLength: number | null;
  readonly frozenBatch: number | null;
}

/** Looks at a graph at two sizes if it lets us, else at the one it was exported with. */
export function viewGraph(graph: Graph, opset: number): View {
  const frozenBatch = declaredBatch(graph);
  const declared = declaredLength(graph);
  const look = (batch: number, length: number, past: number): { sizes: Sizes; inference: Inference } => {
    const sizes: Sizes = { batch: frozenBatch ?? batch, length: declared ?? length, past };
    return { sizes, inference: inferConcrete(graph, bindInputs(graph, sizes), { opset }) };
  };
  let fallback: View | null = null;
  for (const length of declared === null ? freeLengths(graph) : [declared]) {
    const one = look(2, length, 3);
    if (one.inference.failures.length > 0) {
      fallback ??= view(graph, one, null, declared, frozenBatch);
      continue;
    }
    const free = look(3, length + 2, 4);
    if (free.inference.failures.length === 0 && (declared === null || frozenBatch === null)) {
      return view(graph, one, free, declared, frozenBatch);
    }
    const sameLength = frozenBatch === null ? look(3, length, 4) : null;
    const second = sameLength !== null && sameLength.inference.failures.length === 0 ? sameLength : null;
    return view(graph, one, second, length, second === null ? one.sizes.batch : frozenBatch);
  }
  return fallback ?? view(graph, look(2, 5, 3), null, declared, frozenBatch);
}

function view(
  graph: Graph,
  one: { sizes: Sizes; inference: Inference },
  second: View["second"],
  frozenLength: number | null,
  frozenBatch: number | null,
): View {
  return { graph, sizes: one.sizes, first: one.inference, second, frozenLength, frozenBatch };
}

/**
 * Lengths worth trying. A file that claims a free length but was traced at one step count gives itself away by the
 * number of its step selections, so those counts are tried too, the larger ones first. Some decode graphs claim a free
 * length and take one token.
 */
function freeLengths(graph: Graph): number[] {
  const counts = new Set<number>();
  for (const node of graph.nodes) {
    if (node.op === "Concat") counts.add(node.inputs.length);
    else if (node.op === "Split") counts.add(node.outputs.length);
  }
  const steps = [...counts].filter((count) => count > 1).sort((a, b) => b - a);
  return [...new Set([5, ...steps.filter((count) => count > 8), 16, ...steps, 1])];
}

/** Role of each axis of a value, or null when its shape is unknown. */
export function axisRoles(view: View, name: string): AxisRole[] | null {
  const shape = view.first.values.get(name)?.shape;
  if (shape === null || shape === undefined) return null;
  const other = view.second?.inference.values.get(name)?.shape ?? null;
  if (view.second !== null && other !== null && other.length === shape.length) {
    const { sizes } = view.second;
    const batchFree = sizes.batch !== view.sizes.batch;
    const lengthFree = sizes.length !== view.sizes.length;
    return shape.map((size, axis) => {
      if (batchFree && size === view.sizes.batch && other[axis] === sizes.batch) return "batch";
      if (lengthFree && size === view.sizes.length && other[axis] === sizes.length) return "length";
      if (!batchFree && axis === 0 && size === view.sizes.batch) return "batch";
      if (!lengthFree && axis > 0 && size === view.sizes.length && firstOf(shape, size) === axis) return "length";
      return "fixed";
    });
  }
  return shape.map((size, axis) => {
    if (axis === 0 && size === view.sizes.batch) return "batch";
    return axis > 0 && size === view.sizes.length && firstOf(shape, size) === axis ? "length" : "fixed";
  });
}

function firstOf(shape: readonly number[], size: number): number {
  return shape.indexOf(size, 1);
}

/** Does the size of this axis follow the length, or is it the frozen length, or a single step? */
export function isLengthAxis(view: View, value: string, axis: number): boolean {
  const shape = view.first.values.get(value)?.shape;
  if (shape === null || shape === undefined) return false;
  const at = axis < 0 ? axis + shape.length : axis;
  const size = shape[at];
  if (size === undefined) return false;
  const other = view.second?.inference.values.get(value)?.shape?.[at];
  if (at === 0) {
    // Tokens come first where a source was written so; a batch that is as long cannot be told from them.
    const { batch, length } = view.sizes;
    return (
      length > 1 && size === length && length !== batch && (other ?? length) === (view.second?.sizes.length ?? length)
    );
  }
  if (size === 1) return true;
  if (view.second !== null && view.second.sizes.length !== view.sizes.length && other !== undefined)
    return size !== other;
  return size === view.sizes.length;
}

/** The concrete value at the first sizes. */
export function concrete(view: View, name: string): ConcreteValue | null {
  return view.first.values.get(name) ?? null;
}

const dataFreeCache = new WeakMap<Graph, Set<string>>();

/**
 * Values that carry no data of this run: initialisers, constants, and whatever depends on inputs only through shapes.
 * Weights, folded or not, and all shape arithmetic are data-free.
 */
export function dataFree(graph: Graph): ReadonlySet<string> {
  const cached = dataFreeCache.get(graph);
  if (cached !== undefined) return cached;
  const free = new Set<string>(graph.initializers.keys());
  const inputs = new Set(graph.inputs.map((input) => input.name));
  const index = useIndex(graph);
  for (const node of graph.nodes) {
    const shapeOnly = node.op === "Shape" || node.op === "Size";
    const random = /^(Random|Multinomial|Bernoulli)/.test(node.op);
    const ok =
      !random &&
      (shapeOnly ||
        dependenciesOf(node).every((name) => free.has(name) || !(inputs.has(name) || index.producer.has(name))));
    if (ok) for (const output of node.outputs) if (output !== "") free.add(output);
  }
  dataFreeCache.set(graph, free);
  return free;
}

function dependenciesOf(node: Graph["nodes"][number]): readonly string[] {
  return node.attributes.size === 0 ? node.inputs.filter((name) => name !== "") : allDependencies(node);
}
