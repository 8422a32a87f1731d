/** Contractions: matrix products, Einsum, convolutions and pooling. Content is never computed, only shapes. */

import { attrInt, attrInts, attrString, type Node } from "./graph.js";
import { broadcastShapes } from "./infer-content.js";
import {
  at,
  type Call,
  contentInput,
  describe,
  dtypeFact,
  hasInput,
  type Rule,
  refuse,
  tensorFact,
  tensorInput,
} from "./infer-fact.js";
import type { DType } from "./types.js";

/** numpy matmul of two shapes. Throws `Contradiction` when they do not fit. */
function matmulShape(a: readonly number[], b: readonly number[]): number[] {
  const misfit = (): never => refuse(`matrix product of ${describe(a)} and ${describe(b)}`);
  if (a.length === 0 || b.length === 0) misfit();
  const left = a.length === 1 ? [1, ...a] : a;
  const right = b.length === 1 ? [...b, 1] : b;
  if (left.at(-1) !== right.at(-2)) misfit();
  const batch = broadcastShapes([left.slice(0, -2), right.slice(0, -2)]);
  const rows = a.length === 1 ? [] : left.slice(-2, -1);
  const columns = b.length === 1 ? [] : right.slice(-1);
  return [...batch, ...rows, ...columns];
}

function swapped(shape: readonly number[], swap: boolean): readonly number[] {
  if (!swap || shape.length < 2) return shape;
  return [...shape.slice(0, -2), at(shape, shape.length - 1), at(shape, shape.length - 2)];
}

/** A matrix product whose second operand is input `second`. */
function matmulRule(second: number, dtypeOf: (call: Call) => DType | null): Rule {
  return (call) => {
    const [a, b] = [tensorInput(call, 0).shape, tensorInput(call, second).shape];
    const dtype = dtypeOf(call);
    if (a === null || b === null) return [dtypeFact(dtype)];
    const left = swapped(a, attrInt(call.node, "transA", 0) !== 0);
    return [tensorFact(dtype, matmulShape(left, swapped(b, attrInt(call.node, "transB", 0) !== 0)))];
  };
}

function typeOfInput(index: number, fallback: DType | null = null): (call: Call) => DType | null {
  return (call) => tensorInput(call, index).dtype ?? fallback;
}

const gemm: Rule = (call) => {
  const [a, b, c] = [tensorInput(call, 0), tensorInput(call, 1), tensorInput(call, 2)];
  if (a.shape === null || b.shape === null) return [dtypeFact(a.dtype ?? b.dtype)];
  if (a.shape.length !== 2 || b.shape.length !== 2) refuse(`gemm of ${describe(a.shape)} and ${describe(b.shape)}`);
  const left = swapped(a.shape, attrInt(call.node, "transA", 0) !== 0);
  const shape = matmulShape(left, swapped(b.shape, attrInt(call.node, "transB", 0) !== 0));
  if (c.shape !== null && describe(broadcastShapes([shape, c.shape])) !== describe(shape)) {
    refuse(`gemm adds ${describe(c.shape)} to ${describe(shape)}`);
  }
  return [tensorFact(a.dtype ?? b.dtype, shape)];
};

/** Weights [N, K] packed in blocks; N and K are attributes. */
const matmulNBits: Rule = (call) => {
  const a = tensorInput(call, 0);
  if (a.shape === null) return [dtypeFact(a.dtype)];
  const [inner, columns] = [attrInt(call.node, "K", -1), attrInt(call.node, "N", -1)];
  if (a.shape.at(-1) !== inner) refuse(`product of ${describe(a.shape)} with ${inner} rows`);
  return [tensorFact(a.dtype, a.shape.with(-1, columns))];
};

const einsum: Rule = (call) => {
  const dtype = tensorInput(call, 0).dtype;
  const shapes = call.inputs.map((_, index) => tensorInput(call, index).shape);
  const known = shapes.filter((shape) => shape !== null);
  if (known.length < shapes.length) return [dtypeFact(dtype)];
  return [tensorFact(dtype, einsumShape(attrString(call.node, "equation", ""), known))];
};

/** Output shape of an Einsum equation. Throws `Contradiction` when the shapes do not fit it. */
function einsumShape(equation: string, shapes: readonly (readonly number[])[]): number[] {
  const [left = "", right] = equation.replaceAll(/\s/g, "").split("->");
  const terms = left.split(",");
  if (terms.length !== shapes.length) refuse(`'${equation}' has ${terms.length} operands, not ${shapes.length}`);
  const dims = new Map<string, number>();
  const uses = new Map<string, number>();
  const ellipses: number[][] = [];
  for (const [i, shape] of shapes.entries()) {
    const { labels, ellipsis } = bindTerm(terms[i] ?? "", shape, equation);
    if (ellipsis !== null) ellipses.push(ellipsis);
    for (const [label, dim] of labels) {
      uses.set(label, (uses.get(label) ?? 0) + 1);
      const old = dims.get(label) ?? 1;
      if (old !== 1 && dim !== 1 && old !== dim) refuse(`'${label}' is ${old} and ${dim} in '${equation}'`);
      dims.set(label, old === 1 ? dim : old);
    }
  }
  const batch = broadcastShapes(ellipses);
  const implicit = [...uses].flatMap(([label, times]) => (times === 1 ? [label] : [])).toSorted();
  const output = right ?? `...${implicit.join("")}`;
  const place = (label: string): number =>
    dims.get(label) ?? refuse(`'${label}' is only in the output of '${equation}'`);
  const [before = "", after] = output.split("...");
  const front = letters(before).map(place);
  return after === undefined ? front : [...front, ...batch, ...letters(after).map(place)];
}

/** Subscripts are single ASCII letters. */
function letters(term: string): string[] {
  return term.split("");
}

/** Splits one operand's dimensions among the letters of its term and its ellipsis. */
function bindTerm(
  term: string,
  shape: readonly number[],
  equation: string,
): { labels: [string, number][]; ellipsis: number[] | null } {
  const dots = term.indexOf("...");
  const subscripts = letters(term.replace("...", ""));
  const covered = shape.length - subscripts.length;
  if (covered < 0 || (dots < 0 && covered > 0)) refuse(`'${term}' of '${equation}' for ${describe(shape)}`);
  const front = dots < 0 ? subscripts.length : dots;
  const labels = subscripts.map((letter, i): [string, number] => [letter, at(shape, i < front ? i : i + covered)]);
  return { labels, ellipsis: dots < 0 ? null : shape.slice(front, front + covered) };
}

interface Window {
  readonly kernel: readonly number[];
  readonly strides: readonly number[];
  readonly dilations: readonly number[];
  readonly pads: readonly number[];
  readonly autoPad: string;
}

function windowOf(node: Node, kernel: readonly number[]): Window {
  const ones = kernel.map(() => 1);
  return {
    kernel,
    strides: attrInts(node, "strides") ?? ones,
    dilations: attrInts(node, "dilations") ?? ones,
    pads: attrInts(node, "pads") ?? [...kernel, ...kernel].map(() => 0),
    autoPad: attrString(node, "auto_pad", "NOTSET"),
  };
}

function slidingSize(window: Window, axis: number, size: number, ceil: boolean): number {
  const stride = at(window.strides, axis);
  const extent = (at(window.kernel, axis) - 1) * at(window.dilations, axis) + 1;
  if (window.autoPad.startsWith("SAME")) return Math.ceil(size / stride);
  const rank = window.kernel.length;
  const explicit = window.autoPad === "NOTSET";
  const begin = explicit ? at(window.pads, axis) : 0;
  const padded = size + begin + (explicit ? at(window.pads, axis + rank) : 0);
  if (padded < extent) refuse(`a window of ${extent} on a padded axis of ${padded}`);
  const steps = (padded - extent) / stride;
  if (!ceil) return Math.floor(steps) + 1;
  // The last window must start inside the input or its left padding.
  const last = Math.ceil(steps);
  return last * stride >= size + begin ? last : last + 1;
}

/** Convolution of inputs (x, weight at `second`); `dtype` null keeps the type of x. */
function convRule(second: number, dtypeOf: (call: Call) => DType | null): Rule {
  return (call) => {
    const [x, weight] = [tensorInput(call, 0).shape, tensorInput(call, second).shape];
    const dtype = dtypeOf(call);
    if (x === null || weight === null) return [dtypeFact(dtype)];
    if (x.length < 3 || x.length !== weight.length) refuse(`convolution of ${describe(x)} with ${describe(weight)}`);
    const group = attrInt(call.node, "group", 1);
    if (at(x, 1) !== at(weight, 1) * group || at(weight, 0) % group !== 0) {
      refuse(`convolution of ${describe(x)} with ${describe(weight)} in ${group} groups`);
    }
    const window = windowOf(call.node, attrInts(call.node, "kernel_shape") ?? weight.slice(2));
    const spatial = x.slice(2).map((size, axis) => slidingSize(window, axis, size, false));
    return [tensorFact(dtype, [at(x, 0), at(weight, 0), ...spatial])];
  };
}

const convTranspose: Rule = (call) => {
  const { dtype, shape: x } = tensorInput(call, 0);
  const weight = tensorInput(call, 1).shape;
  if (x === null || weight === null) return [dtypeFact(dtype)];
  if (x.length < 3 || x.length !== weight.length || at(x, 1) !== at(weight, 0)) {
    refuse(`transposed convolution of ${describe(x)} with ${describe(weight)}`);
  }
  const window = windowOf(call.node, attrInts(call.node, "kernel_shape") ?? weight.slice(2));
  const rank = window.kernel.length;
  const extra = attrInts(call.node, "output_padding") ?? window.kernel.map(() => 0);
  const forced = attrInts(call.node, "output_shape");
  const spatial = x.slice(2).map((size, axis) => {
    const stride = at(window.strides, axis);
    if (window.autoPad.startsWith("SAME")) return size * stride;
    const pads = window.autoPad === "NOTSET" ? at(window.pads, axis) + at(window.pads, axis + rank) : 0;
    const extent = (at(window.kernel, axis) - 1) * at(window.dilations, axis) + 1;
    return stride * (size - 1) + at(extra, axis) + extent - pads;
  });
  const channels = at(weight, 1) * attrInt(call.node, "group", 1);
  return [tensorFact(dtype, [at(x, 0), channels, ...(forced?.slice(-rank) ?? spatial)])];
};

const pool: Rule = (call) => {
  const { dtype, shape } = tensorInput(call, 0);
  const kernel = attrInts(call.node, "kernel_shape");
  if (shape === null || kernel === null) return [dtypeFact(dtype), dtypeFact("i64")];
  if (shape.length !== kernel.length + 2) refuse(`a window of ${describe(kernel)} on ${describe(shape)}`);
  const window = windowOf(call.node, kernel);
  const ceil = attrInt(call.node, "ceil_mode", 0) !== 0;
  const spatial = shape.slice(2).map((size, axis) => slidingSize(window, axis, size, ceil));
  const out = [...shape.slice(0, 2), ...spatial];
  return [tensorFact(dtype, out), tensorFact("i64", out)];
};

const globalPool: Rule = (call) => {
  const { dtype, shape } = tensorInput(call, 0);
  return [tensorFact(dtype, shape?.map((dim, axis) => (axis < 2 ? dim : 1)) ?? null)];
};

const resize: Rule = (call) => {
  const { dtype, shape } = tensorInput(call, 0);
  const plain =
    !call.node.attributes.has("axes") && attrString(call.node, "keep_aspect_ratio_policy", "stretch") === "stretch";
  if (shape === null || !plain) return [dtypeFact(dtype)];
  const sizes = contentInput(call, 3);
  if (hasInput(call, 3) && sizes?.length === shape.length) return [tensorFact(dtype, sizes)];
  const scales = contentInput(call, call.node.op === "Upsample" || call.opset < 11 ? 1 : 2);
  if (hasInput(call, 3) || scales?.length !== shape.length) return [dtypeFact(dtype)];
  return [
    tensorFact(
      dtype,
      shape.map((dim, axis) => Math.floor(dim * at(scales, axis))),
    ),
  ];
};

const zeroPointOfQLinear = typeOfInput(7);

/** Every contracting operator by qualified name. */
export const CONTRACT_RULES: ReadonlyMap<string, Rule> = new Map<string, Rule>([
  ["MatMul", matmulRule(1, typeOfInput(0))],
  ["MatMulInteger", matmulRule(1, () => "i32")],
  ["QLinearMatMul", matmulRule(3, zeroPointOfQLinear)],
  ["com.microsoft.FusedMatMul", matmulRule(1, typeOfInput(0))],
  ["com.microsoft.MatMulIntegerToFloat", matmulRule(1, typeOfInput(2))],
  ["com.microsoft.DynamicQuantizeMatMul", matmulRule(1, typeOfInput(0))],
  ["com.microsoft.MatMulNBits", matmulNBits],
  ["Gemm", gemm],
  ["Einsum", einsum],
  ["Conv", convRule(1, typeOfInput(0))],
  ["com.microsoft.FusedConv", convRule(1, typeOfInput(0))],
  ["ConvInteger", convRule(1, () => "i32")],
  ["QLinearConv", convRule(3, zeroPointOfQLinear)],
  ["ConvTranspose", convTranspose],
  ["MaxPool", pool],
  ["AveragePool", pool],
  ["LpPool", pool],
  ["GlobalAveragePool", globalPool],
  ["GlobalMaxPool", globalPool],
  ["GlobalLpPool", globalPool],
  ["Resize", resize],
  ["Upsample", resize],
]);
