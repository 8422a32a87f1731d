/** Control flow and sequences: If, Loop, Scan and the Sequence operators. */

import { attrInt, attrInts, type Graph } from "./graph.js";
import { count } from "./infer-content.js";
import {
  at,
  axisIn,
  type BodyResult,
  type Call,
  contentInput,
  describe,
  dtypeFact,
  type Fact,
  graphAttribute,
  hasInput,
  joinElements,
  joinFacts,
  joinTensors,
  type Rule,
  refuse,
  type SequenceCount,
  type SequenceFact,
  sameFact,
  scalarOf,
  type TensorFact,
  tensorFact,
  tensorInput,
  UNKNOWN,
} from "./infer-fact.js";
import { concatenate } from "./infer-movement.js";

const branch: Rule = (call) => {
  const condition = scalarOf(contentInput(call, 0));
  const [whenTrue, whenFalse] = [graphAttribute(call.node, "then_branch"), graphAttribute(call.node, "else_branch")];
  if (whenTrue === null || whenFalse === null) return [];
  if (condition !== null) {
    const taken = call.body(condition !== 0 ? whenTrue : whenFalse, []);
    for (const problem of taken.problems) call.report(problem);
    return taken.outputs;
  }
  // Either branch may be taken, so a contradiction in one of them proves nothing.
  const [a, b] = [call.body(whenTrue, []), call.body(whenFalse, [])];
  return a.outputs.map((fact, i) => joinFacts(fact, b.outputs[i] ?? UNKNOWN));
};

/** A body run at its fixed point: facts that hold in every iteration. */
interface Repeated {
  readonly entries: readonly (symbol | null)[];
  readonly outputs: readonly Fact[];
  /** Contradictions of the first iteration, which starts from the initial values. */
  readonly problems: readonly string[];
}

/**
 * Runs a body until the facts about its carried values no longer change. A sequence enters as "whatever it held", so
 * that the body's output tells how much it grows by.
 */
function repeat(
  call: Call,
  body: Graph,
  initial: readonly Fact[],
  arrange: (carried: readonly Fact[]) => readonly Fact[],
  carriedOut: (outputs: readonly Fact[], index: number) => Fact | undefined,
): Repeated {
  const entries = initial.map((fact) => (fact.kind === "sequence" ? Symbol("entry") : null));
  let state: readonly Fact[] = initial.map((fact, i) => enter(fact, entries[i] ?? null));
  let problems: readonly string[] | null = null;
  for (;;) {
    const result: BodyResult = call.body(body, arrange(state));
    problems ??= result.problems;
    const current = state;
    const next = current.map((fact, i) => carry(fact, carriedOut(result.outputs, i) ?? UNKNOWN));
    // Joining only forgets, and each value has little to forget, so this ends.
    const settled = next.every((fact, i) => sameFact(fact, current[i] ?? UNKNOWN));
    if (settled) return { entries, outputs: result.outputs, problems };
    state = next;
  }
}

function enter(fact: Fact, entry: symbol | null): Fact {
  return fact.kind === "tensor" ? fact : { ...fact, count: { entry, plus: 0 } };
}

function carry(before: Fact, after: Fact): Fact {
  if (before.kind === "tensor" || after.kind === "tensor") return joinFacts(before, after);
  return { ...before, element: joinElements(before.element, after.element) };
}

/** A carried value after `trips` iterations (null: some unknown number, perhaps none). */
function finalFact(initial: Fact, after: Fact, entry: symbol | null, trips: number | null): Fact {
  if (trips === 0) return initial;
  if (initial.kind === "tensor" || after.kind === "tensor") return trips === null ? joinFacts(initial, after) : after;
  const grown = after.count?.entry === entry ? (after.count?.plus ?? null) : null;
  const element = trips === null ? joinElements(initial.element, after.element) : after.element;
  return { kind: "sequence", element, count: grownCount(initial.count, grown, trips) };
}

function grownCount(initial: SequenceCount | null, grown: number | null, trips: number | null): SequenceCount | null {
  if (initial === null || grown === null) return null;
  if (grown === 0) return initial;
  return trips === null ? null : { entry: initial.entry, plus: initial.plus + grown * trips };
}

const loop: Rule = (call) => {
  const body = graphAttribute(call.node, "body");
  if (body === null) return [];
  const limit = hasInput(call, 0) ? scalarOf(contentInput(call, 0)) : Number.POSITIVE_INFINITY;
  const start = hasInput(call, 1) ? scalarOf(contentInput(call, 1)) : 1;
  const initial = call.inputs.slice(2).map((fact) => fact ?? UNKNOWN);
  const never = (limit !== null && limit <= 0) || start === 0;
  const index = tensorFact("i64", [], limit === 1 ? [0] : null);
  const condition = tensorFact("bool", [], [1]);
  const { entries, outputs, problems } = repeat(
    call,
    body,
    initial,
    (carried) => [index, condition, ...carried],
    (made, i) => made[i + 1],
  );
  const certain = !never && limit !== null && start !== null;
  if (certain) for (const problem of problems) call.report(problem);
  const again = tensorContent(outputs[0]);
  const trips = never ? 0 : certain ? tripCount(limit, again) : null;
  const carried = initial.map((fact, i) => finalFact(fact, outputs[i + 1] ?? UNKNOWN, entries[i] ?? null, trips));
  const scanned = outputs.slice(initial.length + 1).map((fact) => stacked(fact, trips, 0));
  return [...carried, ...scanned];
};

function tensorContent(fact: Fact | undefined): number | null {
  return fact?.kind === "tensor" ? scalarOf(fact.content) : null;
}

/** Iterations of a loop that starts; `again` is the condition that every iteration computes, if known. */
function tripCount(limit: number, again: number | null): number | null {
  if (again === 0 || limit === 1) return 1;
  return again === null || !Number.isFinite(limit) ? null : limit;
}

/** A scan output: one slice for each iteration, along a new axis. */
function stacked(fact: Fact, trips: number | null, axisGiven: number): TensorFact {
  if (fact.kind === "sequence") return UNKNOWN;
  if (trips === null || fact.shape === null) return dtypeFact(fact.dtype);
  return tensorFact(fact.dtype, fact.shape.toSpliced(axisIn(axisGiven, fact.shape.length + 1), 0, trips));
}

const scan: Rule = (call) => {
  const body = graphAttribute(call.node, "body");
  // Scan of opset 8 had a batch axis and an optional length in front.
  if (body === null || call.opset < 9) return [];
  const slices = attrInt(call.node, "num_scan_inputs", 0);
  const states = call.inputs.length - slices;
  const initial = call.inputs.slice(0, states).map((fact) => fact ?? UNKNOWN);
  const axes = attrInts(call.node, "scan_input_axes") ?? [];
  const sequences = count(slices, (i) => tensorInput(call, states + i));
  const trips = scanLength(sequences, axes);
  const elements = sequences.map((fact, i) => withoutAxis(fact, axes[i] ?? 0));
  const { entries, outputs, problems } = repeat(
    call,
    body,
    initial,
    (carried) => [...carried, ...elements],
    (made, i) => made[i],
  );
  if (trips !== null && trips > 0) for (const problem of problems) call.report(problem);
  const carried = initial.map((fact, i) => finalFact(fact, outputs[i] ?? UNKNOWN, entries[i] ?? null, trips));
  const outAxes = attrInts(call.node, "scan_output_axes") ?? [];
  const scanned = outputs.slice(states).map((fact, i) => stacked(fact, trips, outAxes[i] ?? 0));
  return [...carried, ...scanned];
};

function scanLength(sequences: readonly TensorFact[], axes: readonly number[]): number | null {
  let length: number | null = null;
  for (const [i, { shape }] of sequences.entries()) {
    if (shape === null) continue;
    const own = at(shape, axisIn(axes[i] ?? 0, shape.length));
    if (length !== null && own !== length) refuse(`scan inputs of ${length} and ${own} steps`);
    length = own;
  }
  return length;
}

function withoutAxis(fact: TensorFact, axis: number): TensorFact {
  if (fact.shape === null) return dtypeFact(fact.dtype);
  return tensorFact(fact.dtype, fact.shape.toSpliced(axisIn(axis, fact.shape.length), 1));
}

function sequenceInput(call: Call): SequenceFact | null {
  const fact = call.inputs[0];
  return fact?.kind === "sequence" ? fact : null;
}

/** A sequence with one tensor more (or fewer) and elements that also cover `added`. */
function resized(sequence: SequenceFact, by: number, added: TensorFact | null): SequenceFact {
  const { count: held } = sequence;
  const element = joinElements(sequence.element, added);
  return { kind: "sequence", element, count: held === null ? null : { entry: held.entry, plus: held.plus + by } };
}

/** Number of tensors in a sequence, when it is known outright. */
function lengthOf(sequence: SequenceFact | null): number | null {
  return sequence?.count?.entry === null ? sequence.count.plus : null;
}

const sequenceEmpty: Rule = () => [{ kind: "sequence", element: null, count: { entry: null, plus: 0 } }];

const sequenceConstruct: Rule = (call) => {
  const parts = call.inputs.map((_, index) => tensorInput(call, index));
  const element = parts.reduce((a, b) => joinTensors(a, b), parts[0] ?? UNKNOWN);
  return [{ kind: "sequence", element, count: { entry: null, plus: parts.length } }];
};

const sequenceInsert: Rule = (call) => {
  const sequence = sequenceInput(call);
  return sequence === null ? [] : [resized(sequence, 1, tensorInput(call, 1))];
};

const sequenceErase: Rule = (call) => {
  const sequence = sequenceInput(call);
  return sequence === null ? [] : [resized(sequence, -1, null)];
};

const sequenceAt: Rule = (call) => [sequenceInput(call)?.element ?? UNKNOWN];

const sequenceLength: Rule = (call) => {
  const length = lengthOf(sequenceInput(call));
  return [tensorFact("i64", [], length === null ? null : [length])];
};

const concatFromSequence: Rule = (call) => {
  const sequence = sequenceInput(call);
  const element = sequence?.element ?? UNKNOWN;
  const length = lengthOf(sequence);
  if (element.shape === null || length === null || length === 0) return [dtypeFact(element.dtype)];
  const axis = attrInt(call.node, "axis", 0);
  if (attrInt(call.node, "new_axis", 0) !== 0) return [stacked(element, length, axis)];
  return [
    concatenate(
      count(length, () => element),
      axis,
      element.dtype,
    ),
  ];
};

const splitToSequence: Rule = (call) => {
  const x = tensorInput(call, 0);
  const unknown: SequenceFact = { kind: "sequence", element: dtypeFact(x.dtype), count: null };
  if (x.shape === null) return [unknown];
  const axis = axisIn(attrInt(call.node, "axis", 0), x.shape.length);
  const dim = at(x.shape, axis);
  const listed = contentInput(call, 1, [1]);
  if (listed === null) return [unknown];
  const uniform = scalarOf(listed);
  const sizes = uniform !== null && tensorInput(call, 1).shape?.length !== 1 ? chunks(dim, uniform) : listed;
  if (sizes.reduce((sum, size) => sum + size, 0) !== dim)
    refuse(`split of ${describe(x.shape)} into [${sizes.join(",")}]`);
  const keep = hasInput(call, 1) || attrInt(call.node, "keepdims", 1) !== 0;
  const from = x.shape;
  const pieces = sizes.map((size) => tensorFact(x.dtype, keep ? from.with(axis, size) : from.toSpliced(axis, 1)));
  const element = pieces.reduce<TensorFact | null>((a, b) => joinElements(a, b), null);
  return [{ kind: "sequence", element, count: { entry: null, plus: sizes.length } }];
};

/** Sizes of equal pieces with a smaller last one. */
function chunks(dim: number, size: number): number[] {
  if (size <= 0) refuse(`pieces of ${size}`);
  return count(Math.ceil(dim / size), (i) => Math.min(size, dim - i * size));
}

/** Every control flow and sequence operator by qualified name. */
export const CONTROL_RULES: ReadonlyMap<string, Rule> = new Map<string, Rule>([
  ["If", branch],
  ["Loop", loop],
  ["Scan", scan],
  ["SequenceEmpty", sequenceEmpty],
  ["SequenceConstruct", sequenceConstruct],
  ["SequenceInsert", sequenceInsert],
  ["SequenceErase", sequenceErase],
  ["SequenceAt", sequenceAt],
  ["SequenceLength", sequenceLength],
  ["ConcatFromSequence", concatFromSequence],
  ["SplitToSequence", splitToSequence],
]);
