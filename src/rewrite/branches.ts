/**
 * Graphs whose layers choose by an If between a step for one token and a scan of many (onnx-community packages), or by a
 * flag between a graph with and one without a cache (merged decoders). Such a file is a prefill and a decode graph in
 * one; taken apart, both are recognised and joined again like a pair of files.
 */

import { type Graph, type Model, makeNode, type Node, subgraphs, useIndex } from "../ir/graph.js";
import { type InputShape, inferConcrete } from "../ir/infer.js";
import type { Tensor } from "../ir/tensor.js";
import { bindInputs, declaredLength, dimNumber, tokenInput } from "./axes.js";
import { pruned, renameInputs, sorted } from "./edit.js";
import { inlineFunctions } from "./inline.js";

/** A way to run the graph: how many tokens, and what its flags say. */
interface Scenario {
  readonly length: number;
  readonly batch: number;
  readonly flag: boolean;
}

/** Long ones too: a choice such as "more than 4096 tokens" must not look decided. */
const MANY: readonly Scenario[] = [5, 7, 300, 5_000, 200_000].map((length) => ({
  length,
  batch: 1 + (length % 3),
  flag: false,
}));
const ONE: readonly Scenario[] = [1, 2, 3].map((batch) => ({ length: 1, batch, flag: true }));

/** An If nested deeper than this stays. */
const MAX_DEPTH = 16;

/** The prefill and the decode graph in a file, or null when no If in it chooses between them. */
export function splitBranches(source: Model): { readonly prefill: Model; readonly decode: Model } | null {
  if (!mentionsIf(source)) return null;
  const { model } = inlineFunctions(source);
  const prefill = decided(model.graph, model, MANY);
  const decode = decided(model.graph, model, ONE);
  if (prefill === null || decode === null) return null;
  if (![...prefill.taken].some(([name, choice]) => decode.taken.get(name) === !choice)) return null;
  const single = withOneToken(decode.graph);
  if (single === null) return null;
  return {
    prefill: { ...model, graph: withoutUnusedInputs(prefill.graph, model.graph) },
    decode: { ...model, graph: withoutUnusedInputs(single, model.graph) },
  };
}

/** The graph with each If whose condition is the same at all sizes replaced by the branch it takes. */
export function inlineDecidedBranches(model: Model): { readonly graph: Graph; readonly changed: number } {
  if (!model.graph.nodes.some(isIf)) return { graph: model.graph, changed: 0 };
  const flags = [true, false].flatMap((flag) => [...MANY, ...ONE].map((scenario) => ({ ...scenario, flag })));
  const result = decided(model.graph, model, flags);
  return result === null || result.taken.size === 0
    ? { graph: model.graph, changed: 0 }
    : { graph: result.graph, changed: result.taken.size };
}

function mentionsIf(model: Model): boolean {
  return model.graph.nodes.some(isIf) || model.functions.some((def) => def.nodes.some(isIf));
}

function isIf(node: Node): boolean {
  return node.op === "If" && node.domain === "";
}

interface Decided {
  readonly graph: Graph;
  /** What every If that was decided decided, by its outputs. */
  readonly taken: ReadonlyMap<string, boolean>;
}

/** Inlines every If that all scenarios agree on. Null when the graph does not bear any of them. */
function decided(graph: Graph, model: Model, scenarios: readonly Scenario[]): Decided | null {
  let current = graph;
  const taken = new Map<string, boolean>();
  for (let depth = 0; depth < MAX_DEPTH; depth++) {
    const choices = scenarios.map((scenario) => conditions(current, model, scenario));
    const [first] = choices;
    if (first === undefined) return null;
    const inlined = new Map<Node, Graph>();
    for (const [node, choice] of first) {
      if (!choices.every((other) => other.get(node) === choice)) continue;
      const branch = node.attributes.get(choice ? "then_branch" : "else_branch");
      if (branch?.kind !== "graph") continue;
      inlined.set(node, branch.value);
      taken.set(node.outputs.join(), choice);
    }
    if (inlined.size === 0) break;
    current = pruned(sorted(inlineBranches(current, inlined)));
  }
  return { graph: current, taken };
}

/** What each If of the graph decides at these sizes, where that is known. */
function conditions(graph: Graph, model: Model, scenario: Scenario): Map<Node, boolean> {
  const { length, batch, flag } = scenario;
  const inputs = new Map<string, InputShape>();
  for (const [name, input] of bindInputs(graph, { batch, length, past: 3 })) {
    const isFlag = input.dtype === "bool" && input.shape.every((size) => size === 1);
    inputs.set(name, isFlag ? { ...input, content: [flag ? 1 : 0] } : input);
  }
  const { values } = inferConcrete(graph, inputs, { opset: model.opsets.get("") ?? 21, functions: model.functions });
  const out = new Map<Node, boolean>();
  for (const node of graph.nodes) {
    if (!isIf(node)) continue;
    const content = values.get(node.inputs[0] ?? "")?.content;
    if (content?.length === 1) out.set(node, content[0] !== 0);
  }
  return out;
}

/** Puts branches in the place of their Ifs. Names inside a branch that the graph has already are changed. */
function inlineBranches(graph: Graph, branches: ReadonlyMap<Node, Graph>): Graph {
  const taken = new Set<string>([...graph.inputs.map((input) => input.name), ...graph.initializers.keys()]);
  for (const node of graph.nodes) for (const output of node.outputs) taken.add(output);
  // Branches may use the same names; where one of them stays or both are inlined, only one may keep its own.
  const nested = new Map<string, number>();
  for (const node of graph.nodes) {
    for (const name of new Set(subgraphs(node).flatMap(namesWithin))) nested.set(name, (nested.get(name) ?? 0) + 1);
  }
  for (const [name, count] of nested) if (count > 1) taken.add(name);
  const initializers = new Map<string, Tensor>(graph.initializers);
  const nodes = graph.nodes.flatMap((node) => {
    const branch = branches.get(node);
    if (branch === undefined) return [node];
    const names = new Map<string, string>();
    const declare = (name: string): string => {
      let free = name;
      for (let twin = 2; taken.has(free); twin++) free = `${name}.${twin}`;
      taken.add(free);
      names.set(name, free);
      return free;
    };
    for (const [name, tensor] of branch.initializers) initializers.set(declare(name), tensor);
    for (const inner of branch.nodes) for (const name of inner.outputs) if (name !== "") declare(name);
    const rename = (name: string): string => names.get(name) ?? name;
    const body = branch.nodes.map((inner) => ({
      ...renameInputs(inner, rename),
      outputs: inner.outputs.map((name) => (name === "" ? name : rename(name))),
    }));
    const results = node.outputs.flatMap((output, at) => {
      const value = branch.outputs[at];
      return output === "" || value === undefined ? [] : [makeNode("Identity", [rename(value.name)], [output])];
    });
    return [...body, ...results];
  });
  return { ...graph, nodes, initializers, valueInfo: new Map() };
}

/** Every name a graph and the graphs in it define. */
function namesWithin(graph: Graph): string[] {
  return [
    ...graph.inputs.map((input) => input.name),
    ...graph.initializers.keys(),
    ...graph.nodes.flatMap((node) => [...node.outputs, ...subgraphs(node).flatMap(namesWithin)]),
  ];
}

/** The graph declared for one token; null when it is declared for another number. */
function withOneToken(graph: Graph): Graph | null {
  const length = declaredLength(graph);
  if (length !== null) return length === 1 ? graph : null;
  const token = tokenInput(graph);
  const symbol = token?.type?.kind === "tensor" ? token.type.shape?.[1] : null;
  return {
    ...graph,
    inputs: graph.inputs.map((input) => {
      const isToken = input.name === token?.name;
      if (input.type?.kind !== "tensor" || input.type.shape === null) return input;
      const shape = input.type.shape.map((dim, axis) =>
        axis > 0 && ((isToken && axis === 1) || (typeof dim === "string" && dim === symbol && dimNumber(dim) === null))
          ? 1
          : dim,
      );
      return { ...input, type: { ...input.type, shape } };
    }),
  };
}

/** Without the inputs that only the other branches read. */
function withoutUnusedInputs(graph: Graph, source: Graph): Graph {
  const before = useIndex(source).users;
  const { users, outputs } = useIndex(graph);
  const inputs = graph.inputs.filter(
    ({ name }) => users.has(name) || outputs.has(name) || graph.initializers.has(name) || !before.has(name),
  );
  return inputs.length === graph.inputs.length ? graph : { ...graph, inputs };
}
