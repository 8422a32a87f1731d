/**
 * Concrete inference: given the shapes of a graph's inputs, the shape and element type of every value and the content of
 * small values, computed without a runtime and without reading large weights. Rules live in `infer-*.ts`, one file for a
 * family of operators.
 */

import type { Attribute, FunctionDef, Graph, Node } from "./graph.js";
import { ATTENTION_RULES } from "./infer-attention.js";
import { CONTRACT_RULES } from "./infer-contract.js";
import { CONTROL_RULES } from "./infer-control.js";
import { CREATE_RULES } from "./infer-create.js";
import { ELEMENTWISE_RULES } from "./infer-elementwise.js";
import {
  type BodyResult,
  type Call,
  Contradiction,
  constantFact,
  dtypeFact,
  type Fact,
  nodeLabel,
  type Rule,
  tensorFact,
  UNKNOWN,
} from "./infer-fact.js";
import { INDEX_RULES } from "./infer-index.js";
import { MOVEMENT_RULES } from "./infer-movement.js";
import { NN_RULES } from "./infer-nn.js";
import { REDUCE_RULES } from "./infer-reduce.js";
import { SEMANTIC_RULES } from "./infer-semantic.js";
import type { DType, ValueType } from "./types.js";

/**
 * What is known about one value; null fields are unknown. `content` lists the elements of tensors up to 4096 elements in
 * row-major order: bool as 0 and 1, integers exactly up to 2^53 (INT64_MAX reads 2^63), floats rounded to their type but
 * possibly one unit in the last place away from what a runtime computes.
 */
export interface ConcreteValue {
  readonly dtype: DType | null;
  readonly shape: readonly number[] | null;
  readonly content: readonly number[] | null;
}

/** A node of the graph that cannot run on these inputs; contradictions in its subgraphs are reported on it. */
export interface InferenceFailure {
  readonly node: Node;
  readonly reason: string;
}

export interface Inference {
  /** Every value of the graph itself: inputs, initialisers and node outputs; not those of subgraphs. */
  readonly values: ReadonlyMap<string, ConcreteValue>;
  readonly failures: readonly InferenceFailure[];
}

/** A graph input; its content when that decides shapes further on. */
export interface InputShape {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly content?: readonly number[];
}

export interface InferenceOptions {
  /** Version of the main operator set; 21 unless given. */
  readonly opset?: number;
  /** Values of the scopes around the graph. */
  readonly outer?: ReadonlyMap<string, ConcreteValue>;
  /** Model-local functions; a call of one is inferred through its body unless its operator has a rule. */
  readonly functions?: readonly FunctionDef[];
}

const RULES: ReadonlyMap<string, Rule> = new Map([
  ...ATTENTION_RULES,
  ...CONTRACT_RULES,
  ...CONTROL_RULES,
  ...CREATE_RULES,
  ...ELEMENTWISE_RULES,
  ...INDEX_RULES,
  ...MOVEMENT_RULES,
  ...NN_RULES,
  ...REDUCE_RULES,
  ...SEMANTIC_RULES,
]);

/** Functions may not recurse in ONNX; a file that does so anyway stops being inferred here. */
const MAX_DEPTH = 64;

/** One level of names, and what the nodes of that level need to be understood. */
interface Scope {
  readonly facts: Map<string, Fact>;
  readonly parent: Scope | null;
  readonly outer: ReadonlyMap<string, ConcreteValue> | null;
  readonly opset: number;
  readonly functions: ReadonlyMap<string, FunctionDef>;
  /** Attributes of the call whose function body this is. */
  readonly attributes: ReadonlyMap<string, Attribute>;
  readonly depth: number;
}

type Report = (node: Node, reason: string) => void;

/**
 * Infers a graph. Inputs without an entry in `inputs` count with their declared type as far as its dimensions are
 * numbers. Operators without a rule give unknown outputs; a node whose inputs contradict each other is listed in
 * `failures`, its outputs are unknown, and inference goes on. Never throws for what a model contains.
 */
export function inferConcrete(
  graph: Graph,
  inputs: ReadonlyMap<string, InputShape>,
  options: InferenceOptions = {},
): Inference {
  const scope: Scope = {
    facts: new Map(),
    parent: null,
    outer: options.outer ?? null,
    opset: options.opset ?? 21,
    functions: new Map((options.functions ?? []).map((def) => [functionKey(def, def.name), def])),
    attributes: new Map(),
    depth: 0,
  };
  for (const input of graph.inputs) scope.facts.set(input.name, declaredFact(input.type));
  const failures: InferenceFailure[] = [];
  inferGraph(graph, scope, (node, reason) => failures.push({ node, reason }), inputs);
  const values = new Map<string, ConcreteValue>();
  for (const [name, fact] of scope.facts) values.set(name, concrete(fact));
  return { values, failures };
}

function concrete(fact: Fact): ConcreteValue {
  const { dtype, shape, content } = fact.kind === "tensor" ? fact : UNKNOWN;
  return { dtype, shape, content };
}

/** A declared type; exporters also write fixed dimensions as numeric strings. */
function declaredFact(type: ValueType | null): Fact {
  if (type?.kind !== "tensor") return UNKNOWN;
  const dims = type.shape?.map((dim) => (typeof dim === "string" && /^\d+$/.test(dim) ? Number(dim) : dim)) ?? null;
  const known = dims?.filter((dim) => typeof dim === "number") ?? null;
  return known !== null && known.length === dims?.length ? tensorFact(type.dtype, known) : dtypeFact(type.dtype);
}

/** Facts of initialisers, then `given` inputs (which override initialisers of their name), then nodes in order. */
function inferGraph(graph: Graph, scope: Scope, report: Report, given: ReadonlyMap<string, InputShape>): void {
  for (const [name, tensor] of graph.initializers) scope.facts.set(name, constantFact(tensor));
  for (const [name, { dtype, shape, content }] of given)
    scope.facts.set(name, tensorFact(dtype, shape, content ?? null));
  inferNodes(graph.nodes, scope, report);
}

function inferNodes(nodes: readonly Node[], scope: Scope, report: Report): void {
  for (const node of nodes) {
    const facts = inferNode(node, scope, (reason) => report(node, reason));
    for (const [i, name] of node.outputs.entries()) if (name !== "") scope.facts.set(name, facts[i] ?? UNKNOWN);
  }
}

function inferNode(written: Node, scope: Scope, report: (reason: string) => void): readonly Fact[] {
  const node = withCallAttributes(written, scope.attributes);
  const call: Call = {
    node,
    opset: scope.opset,
    inputs: node.inputs.map((name) => (name === "" ? null : lookUp(name, scope))),
    body: (graph, inputs) => inferBody(graph, inputs, scope),
    report,
  };
  try {
    const rule = RULES.get(node.domain === "" ? node.op : `${node.domain}.${node.op}`);
    if (rule !== undefined) return rule(call);
    const def = scope.functions.get(functionKey(node, node.op));
    return def === undefined ? [] : inferFunction(def, call, scope);
  } catch (error) {
    if (!(error instanceof Contradiction)) throw error;
    report(error.message);
    return [];
  }
}

function lookUp(name: string, scope: Scope): Fact {
  for (let level: Scope | null = scope; level !== null; level = level.parent) {
    const fact = level.facts.get(name);
    if (fact !== undefined) return fact;
    const value = level.outer?.get(name);
    if (value !== undefined) return tensorFact(value.dtype, value.shape, value.content);
  }
  return UNKNOWN;
}

/** A subgraph sees the scopes around it. */
function inferBody(graph: Graph, inputs: readonly Fact[], parent: Scope): BodyResult {
  const scope: Scope = { ...parent, facts: new Map(), parent, outer: null, depth: parent.depth + 1 };
  for (const [i, input] of graph.inputs.entries()) {
    const fact = inputs[i] ?? UNKNOWN;
    scope.facts.set(input.name, fact === UNKNOWN ? declaredFact(input.type) : fact);
  }
  const problems: string[] = [];
  if (scope.depth > MAX_DEPTH) return { outputs: graph.outputs.map(() => UNKNOWN), problems };
  inferGraph(graph, scope, (node, reason) => problems.push(`${nodeLabel(node)}: ${reason}`), new Map());
  return { outputs: graph.outputs.map((output) => lookUp(output.name, scope)), problems };
}

/** A function body sees only its parameters, and brings its own operator sets. */
function inferFunction(def: FunctionDef, call: Call, caller: Scope): readonly Fact[] {
  if (caller.depth >= MAX_DEPTH) return [];
  const scope: Scope = {
    facts: new Map(),
    parent: null,
    outer: null,
    opset: def.opsets.get("") ?? caller.opset,
    functions: caller.functions,
    attributes: new Map([...def.attributeDefaults, ...call.node.attributes]),
    depth: caller.depth + 1,
  };
  for (const [i, name] of def.inputs.entries()) scope.facts.set(name, call.inputs[i] ?? UNKNOWN);
  inferNodes(def.nodes, scope, (node, reason) => call.report(`${nodeLabel(node)} in ${def.name}: ${reason}`));
  return def.outputs.map((name) => lookUp(name, scope));
}

/** Puts the caller's attributes in place of references; a reference to nothing leaves the attribute out. */
function withCallAttributes(node: Node, given: ReadonlyMap<string, Attribute>): Node {
  let referring = false;
  for (const attribute of node.attributes.values()) if (attribute.kind === "ref") referring = true;
  if (!referring) return node;
  const attributes = new Map<string, Attribute>();
  for (const [name, attribute] of node.attributes) {
    const value = attribute.kind === "ref" ? given.get(attribute.name) : attribute;
    if (value !== undefined) attributes.set(name, value);
  }
  return { ...node, attributes };
}

function functionKey(owner: { readonly domain: string; readonly overload: string }, name: string): string {
  return `${owner.domain}\u0000${name}\u0000${owner.overload}`;
}
