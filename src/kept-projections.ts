/** Projections that a compiled model still multiplies in float, by the names people know, and why. */

import { type Graph, type Model, type Node, qualifiedOp, useIndex } from "./ir/graph.js";
import type { Remark } from "./rewrite/pass.js";
import { type LinearRole, sitesOf } from "./rewrite/sites.js";
import type { FloatProjection, KernelCensus } from "./run/kernel-census.js";

export interface KeptProjection {
  /** '' outside the layers. */
  readonly layer: string;
  readonly role: LinearRole;
  /** The node of the file. */
  readonly node: string;
  readonly why: string;
}

/** Remarks that say why a projection could not become what the recipe asks for. */
const REASONS: ReadonlySet<string> = new Set(["align-linears/form", "insert-qdq/blocks", "emit-nbits/form"]);

/**
 * What `census` found in float in `compiled`. `aligned` is the model before anything was rounded: there projections have
 * layers and roles.
 */
export function keptProjections(
  { float }: KernelCensus,
  { aligned, compiled }: { readonly aligned: Model; readonly compiled: Model },
  remarks: readonly Remark[],
): KeptProjection[] {
  const sites = new Map(sitesOf(aligned).linears.map((site) => [nameOf(site.node), site]));
  const nodes = new Map(compiled.graph.nodes.map((node) => [nameOf(node), node]));
  const reasons = new Map(remarks.flatMap(({ code, where, message }) => (REASONS.has(code) ? [[where, message]] : [])));
  return float.map((found) => {
    // What ONNX Runtime fuses is named after a node: `NAME/MatMulAddFusion`.
    const node = nodes.get(found.node) ?? nodes.get(found.node.slice(0, found.node.lastIndexOf("/")));
    const name = node === undefined ? found.node : nameOf(node);
    const { layer, role } = sites.get(name) ?? { layer: "", role: "other" };
    const told = reasons.get(name) ?? reasons.get(`${layer} ${role}`);
    return { layer, role, node: name, why: told ?? reasonOf(compiled.graph, node, found) };
  });
}

/** As nodes are named in the file. */
function nameOf(node: Node): string {
  return node.name || (node.outputs[0] ?? "");
}

function reasonOf(graph: Graph, node: Node | undefined, { op }: FloatProjection): string {
  if (node === undefined) return `ONNX Runtime makes ${op} of what is around it`;
  if (node.op === "Einsum") return "an Einsum over several weights at once";
  const makers = node.inputs.map((input) => useIndex(graph).producer.get(input));
  const weight = node.inputs.findIndex((input, at) => graph.initializers.has(input) || isConstant(graph, makers[at]));
  if (makers[weight]?.op === "DequantizeLinear") {
    return op === node.op
      ? "its weight is quantized in the file, but ONNX Runtime has no kernel for it as it is"
      : `it is quantized in the file, but ONNX Runtime makes ${op} of it, which multiplies floats`;
  }
  if (makers[weight] !== undefined && makers[weight].op !== "Transpose")
    return "its weight is unpacked to floats in the graph";
  return node.op === "MatMul" && weight === 1
    ? "the recipe leaves it float"
    : `its form is not that of activations times a weight [K, N] (${qualifiedOp(node)})`;
}

/** Nodes between a weight and its product, at most. */
const UNPACKING = 4;

/** Is it computed from weights alone, in a few steps? */
function isConstant(graph: Graph, node: Node | undefined, steps: number = UNPACKING): boolean {
  if (node === undefined || steps === 0) return false;
  return node.inputs.every((input) => {
    if (input === "" || graph.initializers.has(input)) return true;
    return isConstant(graph, useIndex(graph).producer.get(input), steps - 1);
  });
}
