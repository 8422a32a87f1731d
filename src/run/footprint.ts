/** Where the bytes of a model are: weights by what they are for, and the state of its sequences. */

import { type Graph, type Model, type Node, useIndex } from "../ir/graph.js";
import { packedBytes } from "../ir/types.js";
import { OP_DOMAIN, parseOpName } from "../ops/names.js";
import type { Signature } from "./signature.js";

export const FOOTPRINT_CLASSES = [
  "projections",
  "embedding",
  "head",
  "conv",
  "scan",
  "norms",
  "rotations",
  "scales",
  "other",
] as const;
export type FootprintClass = (typeof FOOTPRINT_CLASSES)[number];

export interface Footprint {
  /** Bytes of all initialisers, by class. A tensor with several uses counts once, as what comes first in the list. */
  readonly weights: Readonly<Record<FootprintClass, number>>;
  readonly weightBytes: number;
  /** Bytes of the state of one sequence; a cache that grows with its tokens counts as empty. */
  readonly stateBytes: number;
}

/** Operators that carry a weight to where it is used. */
const CARRIERS = new Set(["DequantizeLinear", "Transpose", "Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze"]);

const PRODUCTS = new Set(["MatMul", "Gemm", "MatMulInteger", "MatMulNBits", "GatherBlockQuantized", "Gather"]);

/** Reads it off the graph. */
export function footprint(model: Model, signature: Signature): Footprint {
  const { graph } = model;
  const head = headNode(graph, signature.logits.name);
  const weights = Object.fromEntries(FOOTPRINT_CLASSES.map((name) => [name, 0])) as Record<FootprintClass, number>;
  for (const [name, tensor] of graph.initializers) weights[classOf(graph, name, head)] += tensor.byteLength;
  const stateBytes = signature.states.reduce((sum, { dtype, shape, growthAxis }) => {
    const dims = shape.map((dim, axis) =>
      axis === 0 ? 1 : axis === growthAxis ? 0 : typeof dim === "number" ? dim : 0,
    );
    return sum + (packedBytes(dtype, dims) ?? 0);
  }, 0);
  return { weights, weightBytes: Object.values(weights).reduce((sum, bytes) => sum + bytes, 0), stateBytes };
}

function classOf(graph: Graph, name: string, head: Node | null): FootprintClass {
  const found = new Set(usesOf(graph, name, head));
  return FOOTPRINT_CLASSES.find((entry) => found.has(entry)) ?? "other";
}

/** What a value is used for, followed over operators that only carry it. */
function usesOf(graph: Graph, name: string, head: Node | null): FootprintClass[] {
  return (useIndex(graph).users.get(name) ?? []).flatMap((node): FootprintClass[] => {
    const at = node.inputs.indexOf(name);
    if (/^(Quantize|Dequantize)Linear$/.test(node.op) && at > 0) return ["scales"];
    if (node.domain === "" && CARRIERS.has(node.op) && at === 0) return usesOf(graph, node.outputs[0] ?? "", head);
    return [useIn(graph, node, at, name, head)];
  });
}

function useIn(graph: Graph, node: Node, at: number, name: string, head: Node | null): FootprintClass {
  if (node.domain === OP_DOMAIN) {
    const spec = parseOpName(node.op);
    const kind = spec?.kind;
    // The grid of the codes comes last.
    const codes = (spec?.kind === "rotation" || spec?.kind === "gate") && spec.codes;
    if (codes && at >= node.inputs.length - 2) return "scales";
    return kind === "rotation" ? "rotations" : kind === "gate" ? "norms" : kind === "conv" ? "conv" : "scan";
  }
  if (node.op === "CausalConvWithState") return "conv";
  if (node.op === "LinearAttention") return "scan";
  if (PRODUCTS.has(node.op)) {
    if (at >= 2) return "scales";
    if (node.op.startsWith("Gather")) return at === 0 && (rankOf(graph, name) ?? 2) === 2 ? "embedding" : "other";
    if (node.metadata.get("mambac.role") === "rotation" || /\.(walsh|hadamard)\d+_/.test(name)) return "rotations";
    return node === head ? "head" : "projections";
  }
  if (/LayerNormalization|RMSNormalization/.test(node.op)) return "norms";
  // What multiplies or is added along the channels is a gain or a bias.
  if ((node.op === "Mul" || node.op === "Add" || node.op === "Div") && rankOf(graph, name) === 1) return "norms";
  return "other";
}

function rankOf(graph: Graph, name: string): number | null {
  return graph.initializers.get(name)?.shape.length ?? null;
}

/** The product that makes the logits, found from the output back. */
function headNode(graph: Graph, logits: string): Node | null {
  const { producer } = useIndex(graph);
  let at = logits;
  for (let hops = 0; hops < 8; hops++) {
    const node = producer.get(at);
    if (node === undefined) return null;
    if (/^(MatMul|Gemm|MatMulInteger|MatMulNBits)$/.test(node.op)) return node;
    at = node.inputs.find((input) => !graph.initializers.has(input)) ?? "";
  }
  return null;
}
