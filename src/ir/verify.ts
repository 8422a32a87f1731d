/**
 * Structural rules every model obeys, whoever made it: run after reading and after rewriting.
 *
 * Nothing here knows what operators mean; types and shapes of values are inferred elsewhere.
 */

import { type FunctionDef, type Graph, type Model, type Node, qualifiedOp, type ValueInfo } from "./graph.js";
import type { Tensor } from "./tensor.js";
import { topologicalOrder } from "./topological-order.js";
import { elementCount, formatType, packedBytes, type ValueType } from "./types.js";

/** The rules by name, each with what it asks. */
export const VERIFY_RULES = {
  "unique-names": "a value is defined once, and no subgraph hides a value of the graphs around it",
  order: "nodes come after the nodes they read from",
  cycle: "no node depends on its own outputs",
  dangling: "every value a node reads is an input, an initialiser or an earlier output",
  captures: "every value a subgraph reads exists there or in a graph around it",
  outputs: "every graph output is produced",
  "tensor-size": "a tensor has as many bytes as its type and shape say",
  "initializer-type": "an initialiser has the type its value declares",
  opsets: "the operator set of every domain in use is imported",
  calls: "a node of a function's domain finds its function",
  functions: "functions are unique, close over nothing and do not call themselves",
  references: "an attribute reference names an attribute of its function",
} as const;

export type VerifyRule = keyof typeof VERIFY_RULES;

/** One broken rule. `warning` is for what may be right in a setting the model does not show. */
export interface Diagnostic {
  readonly rule: VerifyRule;
  readonly severity: "error" | "warning";
  readonly where: string;
  readonly message: string;
}

/** Domains whose operators are built into runtimes rather than defined by the model. */
const BUILT_IN_DOMAINS: ReadonlySet<string> = new Set([
  "",
  "ai.onnx.ml",
  "ai.onnx.preview",
  "ai.onnx.preview.training",
  "ai.onnx.training",
  "com.microsoft",
  "com.microsoft.experimental",
  "com.microsoft.nchwc",
  "com.ms.internal.nhwc",
  "org.pytorch.aten",
]);

/** Checks every rule. An empty list means the model is sound. */
export function verifyModel(model: Model): Diagnostic[] {
  const verifier = new Verifier(model);
  verifier.graph(model.graph, { where: "the main graph", outer: null, opsets: model.opsets, parameters: null });
  verifier.functions();
  return verifier.found;
}

/** `rule: where: message`, for people. */
export function formatDiagnostic(diagnostic: Diagnostic): string {
  return `${diagnostic.where}: ${diagnostic.message} [${diagnostic.rule}]`;
}

interface Scope {
  readonly where: string;
  /** Names of the graphs around; null for the main graph and functions. */
  readonly outer: ReadonlySet<string> | null;
  readonly opsets: ReadonlyMap<string, number>;
  /** Attributes of the function around; null outside functions. */
  readonly parameters: ReadonlySet<string> | null;
}

interface Body {
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly initializers: ReadonlyMap<string, Tensor>;
  readonly nodes: readonly Node[];
}

class Verifier {
  readonly found: Diagnostic[] = [];
  readonly #model: Model;
  readonly #functions = new Map<string, FunctionDef>();

  constructor(model: Model) {
    this.#model = model;
    for (const fn of model.functions) {
      const key = functionKey(fn);
      if (this.#functions.has(key)) this.#report("functions", functionLabel(fn), "is defined twice");
      this.#functions.set(key, fn);
    }
  }

  graph(graph: Graph, scope: Scope): void {
    const { initializers, nodes } = graph;
    const inputs = graph.inputs.map((input) => input.name);
    this.#body({ inputs, outputs: graph.outputs.map((output) => output.name), initializers, nodes }, scope);
    const declared = new Map<string, ValueInfo>(graph.valueInfo);
    for (const value of [...graph.inputs, ...graph.outputs]) declared.set(value.name, value);
    for (const [name, tensor] of initializers) {
      this.#tensor(tensor, scope.where, `initialiser "${name}"`);
      const type = declared.get(name)?.type ?? null;
      if (type !== null && !fits(tensor, type)) {
        const has = `${tensor.dtype}[${tensor.shape.join(",")}]`;
        this.#report(
          "initializer-type",
          scope.where,
          `initialiser "${name}" is ${has} but declared ${formatType(type)}`,
        );
      }
    }
  }

  functions(): void {
    for (const fn of this.#model.functions) {
      const where = functionLabel(fn);
      const parameters = new Set([...fn.attributes, ...fn.attributeDefaults.keys()]);
      const { inputs, outputs, nodes, opsets } = fn;
      this.#body({ inputs, outputs, initializers: new Map(), nodes }, { where, outer: null, opsets, parameters });
    }
    this.#recursion();
  }

  #report(rule: VerifyRule, where: string, message: string, severity: "error" | "warning" = "error"): void {
    this.found.push({ rule, severity, where, message });
  }

  #body(body: Body, scope: Scope): void {
    const local = this.#definitions(body, scope);
    this.#order(body.nodes, scope);
    const visible = scope.outer === null ? local : new Set([...scope.outer, ...local]);
    body.nodes.forEach((node, at) => {
      const label = nodeLabel(node, at);
      for (const name of node.inputs) {
        if (name === "" || visible.has(name)) continue;
        const rule = scope.outer === null ? "dangling" : "captures";
        this.#report(rule, scope.where, `${label} reads "${name}", which nothing defines`);
      }
      this.#node(node, label, visible, scope);
    });
    for (const name of body.outputs) {
      if (!local.has(name)) this.#report("outputs", scope.where, `the output "${name}" is not produced`);
    }
  }

  /** Names the body defines; reports the ones defined twice or hidden. */
  #definitions(body: Body, scope: Scope): Set<string> {
    const names = new Set<string>();
    const define = (name: string, what: string): void => {
      if (names.has(name)) this.#report("unique-names", scope.where, `${what} "${name}" is already defined`);
      if (scope.outer?.has(name)) this.#report("unique-names", scope.where, `${what} "${name}" hides a value outside`);
      names.add(name);
    };
    for (const name of body.inputs) define(name, "the input");
    // An initialiser that is also an input is that input's default.
    for (const name of body.initializers.keys()) if (!names.has(name)) define(name, "the initialiser");
    body.nodes.forEach((node, at) => {
      for (const name of node.outputs) if (name !== "") define(name, `the output of ${nodeLabel(node, at)},`);
    });
    return names;
  }

  #order(nodes: readonly Node[], scope: Scope): void {
    const sorted = topologicalOrder(nodes);
    if (sorted === nodes) return;
    if (sorted === null) this.#report("cycle", scope.where, "the nodes depend on each other in a circle");
    else this.#report("order", scope.where, "a node comes before a node it reads from");
  }

  #node(node: Node, label: string, visible: ReadonlySet<string>, scope: Scope): void {
    if (!scope.opsets.has(node.domain)) {
      const domain = node.domain === "" ? "the main domain" : `"${node.domain}"`;
      this.#report("opsets", scope.where, `${label} needs the operator set of ${domain}, which is not imported`);
    }
    this.#call(node, label, scope);
    for (const [name, attribute] of node.attributes) {
      const inner = { ...scope, outer: visible, where: `${scope.where}, "${name}" of ${label}` };
      if (attribute.kind === "graph") this.graph(attribute.value, inner);
      else if (attribute.kind === "graphs") for (const graph of attribute.value) this.graph(graph, inner);
      else if (attribute.kind === "tensor") this.#tensor(attribute.value, scope.where, `"${name}" of ${label}`);
      else if (attribute.kind === "tensors") {
        for (const tensor of attribute.value) this.#tensor(tensor, scope.where, `"${name}" of ${label}`);
      } else if (attribute.kind === "ref" && !scope.parameters?.has(attribute.name)) {
        const problem = scope.parameters === null ? "outside a function" : "its function does not have";
        this.#report("references", scope.where, `"${name}" of ${label} refers to "${attribute.name}", ${problem}`);
      }
    }
  }

  #call(node: Node, label: string, scope: Scope): void {
    if (this.#functions.has(callKey(node))) return;
    if (node.overload !== "") {
      this.#report("calls", scope.where, `${label} asks for the overload "${node.overload}", which no function has`);
    } else if (!BUILT_IN_DOMAINS.has(node.domain)) {
      const message = `${label}: ${qualifiedOp(node)} has no function in the model; it needs an operator library`;
      this.#report("calls", scope.where, message, "warning");
    }
  }

  #tensor(tensor: Tensor, where: string, label: string): void {
    const expected = packedBytes(tensor.dtype, tensor.shape);
    const good =
      expected === null ? tensor.strings?.length === elementCount(tensor.shape) : tensor.byteLength === expected;
    if (good) return;
    const has = tensor.strings === null ? `${tensor.byteLength} bytes` : `${tensor.strings.length} strings`;
    this.#report("tensor-size", where, `${label}: ${tensor.dtype}[${tensor.shape.join(",")}] cannot have ${has}`);
  }

  /** Functions are expanded in place, so they must not reach themselves. */
  #recursion(): void {
    const done = new Set<string>();
    const open = new Set<string>();
    const visit = (fn: FunctionDef): void => {
      const key = functionKey(fn);
      if (open.has(key)) this.#report("functions", functionLabel(fn), "calls itself");
      if (open.has(key) || done.has(key)) return;
      open.add(key);
      for (const node of allNodes(fn.nodes)) {
        const callee = this.#functions.get(callKey(node));
        if (callee !== undefined) visit(callee);
      }
      open.delete(key);
      done.add(key);
    };
    for (const fn of this.#model.functions) visit(fn);
  }
}

/** Nodes and the nodes in their subgraphs. */
function allNodes(nodes: readonly Node[]): Node[] {
  return nodes.flatMap((node) => {
    const inner = [...node.attributes.values()].flatMap((attribute) => {
      if (attribute.kind === "graph") return allNodes(attribute.value.nodes);
      return attribute.kind === "graphs" ? attribute.value.flatMap((graph) => allNodes(graph.nodes)) : [];
    });
    return [node, ...inner];
  });
}

function fits(tensor: Tensor, type: ValueType): boolean {
  if (type.kind !== "tensor" || type.dtype !== tensor.dtype) return false;
  if (type.shape === null) return true;
  if (type.shape.length !== tensor.shape.length) return false;
  return type.shape.every((dim, axis) => typeof dim !== "number" || dim === tensor.shape[axis]);
}

function functionKey(fn: FunctionDef): string {
  return JSON.stringify([fn.domain, fn.name, fn.overload]);
}

function callKey(node: Node): string {
  return JSON.stringify([node.domain, node.op, node.overload]);
}

function functionLabel(fn: FunctionDef): string {
  return `function ${fn.domain}.${fn.name}${fn.overload === "" ? "" : `:${fn.overload}`}`;
}

function nodeLabel(node: Node, at: number): string {
  return `node ${at} (${qualifiedOp(node)}${node.name === "" ? "" : ` "${node.name}"`})`;
}
