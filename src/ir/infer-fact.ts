/**
 * What inference knows about a value, and how a rule states it. Shapes are known completely or not at all: with concrete
 * graph inputs a partly known shape is rare and would cost every rule a case.
 */

import { invariant } from "../support/errors.js";
import { type Attribute, type Graph, type Node, qualifiedOp } from "./graph.js";
import { isFloat, isInteger, type Tensor, toNumbers } from "./tensor.js";
import { type DType, elementCount } from "./types.js";

/** Largest number of elements whose content is tracked, and largest float tensor whose bytes are ever read. */
export const CONTENT_LIMIT = 4096;

/**
 * A tensor. `content` holds the elements in row-major order: bool as 0 or 1, integers exactly up to 2^53 in magnitude and
 * rounded to the nearest double above it (so INT64_MAX reads 2^63).
 */
export interface TensorFact {
  readonly kind: "tensor";
  readonly dtype: DType | null;
  readonly shape: readonly number[] | null;
  readonly content: readonly number[] | null;
}

/** Number of tensors in a sequence; inside a loop body it counts on from what the sequence held on `entry`. */
export interface SequenceCount {
  readonly entry: symbol | null;
  readonly plus: number;
}

/** A tensor sequence. `element` is what all its tensors have in common, null while it is known to be empty. */
export interface SequenceFact {
  readonly kind: "sequence";
  readonly element: TensorFact | null;
  readonly count: SequenceCount | null;
}

export type Fact = TensorFact | SequenceFact;

/** What running a subgraph gave: its outputs and the contradictions in it. */
export interface BodyResult {
  readonly outputs: readonly Fact[];
  readonly problems: readonly string[];
}

/** One node with the facts about its inputs; null is an omitted input. */
export interface Call {
  readonly node: Node;
  /** Version of the main operator set. */
  readonly opset: number;
  readonly inputs: readonly (Fact | null)[];
  /** Infers a subgraph of the node; the facts bind to the subgraph's inputs in order. */
  body(graph: Graph, inputs: readonly Fact[]): BodyResult;
  /** Notes a contradiction without giving up on the node's outputs. */
  report(reason: string): void;
}

/** Facts about the outputs in order; missing ones are unknown. Throws `Contradiction` where the inputs cannot fit. */
export type Rule = (call: Call) => readonly Fact[];

/** The inputs of a node cannot occur together in any run that succeeds. */
export class Contradiction extends Error {
  constructor(message: string) {
    super(message);
    this.name = "Contradiction";
  }
}

export function refuse(reason: string): never {
  throw new Contradiction(reason);
}

export const UNKNOWN: TensorFact = { kind: "tensor", dtype: null, shape: null, content: null };

/** A tensor fact. Content over the limit is dropped, and a tensor without elements always has known content. */
export function tensorFact(
  dtype: DType | null,
  shape: readonly number[] | null,
  content: readonly number[] | null = null,
): TensorFact {
  if (shape === null) return dtype === null ? UNKNOWN : { kind: "tensor", dtype, shape: null, content: null };
  const count = elementCount(shape);
  if (count === 0) return { kind: "tensor", dtype, shape, content: [] };
  const kept = count > CONTENT_LIMIT ? null : content;
  invariant(kept === null || kept.length === count, `content of ${kept?.length} elements for [${shape.join(",")}]`);
  return { kind: "tensor", dtype, shape, content: kept };
}

/** A tensor of which only the element type is known. */
export function dtypeFact(dtype: DType | null): TensorFact {
  return tensorFact(dtype, null);
}

/** The fact of a stored tensor. Bytes are read only up to the content limit. */
export function constantFact(tensor: Tensor): TensorFact {
  return tensorFact(tensor.dtype, tensor.shape, storedContent(tensor));
}

// Region after region of one model is inferred; each small constant is decoded once.
const decoded = new WeakMap<Tensor, readonly number[]>();

function storedContent(tensor: Tensor): readonly number[] | null {
  if (elementCount(tensor.shape) > CONTENT_LIMIT) return null;
  // What a pass has yet to compute is a weight, and no shape depends on it.
  if (tensor.residence === "lazy") return null;
  if (!isFloat(tensor.dtype) && !isInteger(tensor.dtype)) return null;
  const cached = decoded.get(tensor);
  if (cached !== undefined) return cached;
  const content = Array.from(toNumbers(tensor));
  decoded.set(tensor, content);
  return content;
}

/** Input `index` as a tensor; unknown when it is omitted or a sequence. */
export function tensorInput(call: Call, index: number): TensorFact {
  const fact = call.inputs[index];
  return fact?.kind === "tensor" ? fact : UNKNOWN;
}

/** Is input `index` present? */
export function hasInput(call: Call, index: number): boolean {
  return (call.inputs[index] ?? null) !== null;
}

/** Known elements of input `index`, `fallback` when the input is omitted, null when they are unknown. */
export function contentInput(
  call: Call,
  index: number,
  fallback: readonly number[] | null = null,
): readonly number[] | null {
  return hasInput(call, index) ? tensorInput(call, index).content : fallback;
}

/** The single element of a tensor, or null. */
export function scalarOf(content: readonly number[] | null): number | null {
  return content?.length === 1 ? (content[0] ?? null) : null;
}

/** A subgraph attribute, or null. */
export function graphAttribute(node: Node, name: string): Graph | null {
  const attribute: Attribute | undefined = node.attributes.get(name);
  return attribute?.kind === "graph" ? attribute.value : null;
}

/** Element `index`, which must exist. */
export function at(values: readonly number[], index: number): number {
  const value = values[index];
  invariant(value !== undefined, `index ${index} is outside a list of ${values.length}`);
  return value;
}

/** An axis counted from the front. Throws `Contradiction` outside [-rank, rank). */
export function axisIn(axis: number, rank: number): number {
  const front = axis < 0 ? axis + rank : axis;
  if (!Number.isInteger(front) || front < 0 || front >= rank) refuse(`axis ${axis} does not exist in rank ${rank}`);
  return front;
}

/** Several axes counted from the front, each once, in the order given. */
export function axesIn(axes: readonly number[], rank: number): number[] {
  const front = axes.map((axis) => axisIn(axis, rank));
  if (new Set(front).size !== front.length) refuse(`axes [${axes.join(",")}] repeat in rank ${rank}`);
  return front;
}

/** `f32[2,5]` or `?`, for reasons. */
export function describe(shape: readonly number[] | null): string {
  return shape === null ? "[*]" : `[${shape.join(",")}]`;
}

function sameList(a: readonly number[] | null, b: readonly number[] | null): boolean {
  if (a === b) return true;
  if (a === null || b === null || a.length !== b.length) return false;
  return a.every((value, i) => Object.is(value, b[i]));
}

/** What two facts have in common. */
export function joinTensors(a: TensorFact, b: TensorFact): TensorFact {
  const dtype = a.dtype === b.dtype ? a.dtype : null;
  if (!sameList(a.shape, b.shape)) return dtypeFact(dtype);
  return tensorFact(dtype, a.shape, sameList(a.content, b.content) ? a.content : null);
}

/** What two sequence elements have in common; null is the element of an empty sequence. */
export function joinElements(a: TensorFact | null, b: TensorFact | null): TensorFact | null {
  if (a === null) return b;
  return b === null ? a : joinTensors(a, b);
}

/** What two values have in common; a tensor and a sequence have nothing. */
export function joinFacts(a: Fact, b: Fact): Fact {
  if (a.kind === "tensor" && b.kind === "tensor") return joinTensors(a, b);
  if (a.kind === "tensor" || b.kind === "tensor") return UNKNOWN;
  const same = a.count?.entry === b.count?.entry && a.count?.plus === b.count?.plus;
  return { kind: "sequence", element: joinElements(a.element, b.element), count: same ? a.count : null };
}

/** Do two facts say the same? */
export function sameFact(a: Fact, b: Fact): boolean {
  if (a.kind === "tensor" && b.kind === "tensor") {
    return a.dtype === b.dtype && sameList(a.shape, b.shape) && sameList(a.content, b.content);
  }
  if (a.kind === "tensor" || b.kind === "tensor") return false;
  if (a.count?.entry !== b.count?.entry || a.count?.plus !== b.count?.plus) return false;
  if (a.element === null || b.element === null) return a.element === b.element;
  return sameFact(a.element, b.element);
}

/** Domain, op and name of a node, for reasons. */
export function nodeLabel(node: Node): string {
  return node.name === "" ? qualifiedOp(node) : `${qualifiedOp(node)} '${node.name}'`;
}
