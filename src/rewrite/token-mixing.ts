/**
 * Where a graph with states may still look beyond the tokens of its call: attention that reads no cache, shifts and sums over
 * tokens, positions that are counted inside the graph. Such a graph gives other results when its tokens come in several
 * calls.
 */

import { attrInt, attrInts, type Node } from "../ir/graph.js";
import { axisRoles } from "./axes.js";
import { readSemantic } from "./semantic.js";
import type { Tracer } from "./trace.js";

/** Operators outside the standard that work on each token alone. */
const TOKENWISE = new Set(
  "QuickGelu Gelu FastGelu BiasGelu SkipLayerNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization MatMulNBits FusedMatMul DequantizeLinear QuantizeLinear".split(
    " ",
  ),
);

/** Standard operators that may mix what lies along the axis named, or along any of them. */
const ALONG_AXIS = new Set("Softmax LogSoftmax Hardmax CumSum ArgMax ArgMin TopK Concat Slice Pad Gather".split(" "));
const ALONG_ANY = new Set(
  "ConvTranspose Attention RNN GRU LSTM MaxPool AveragePool InstanceNormalization LpNormalization If Loop Scan Trilu ReverseSequence Einsum Compress NonZero".split(
    " ",
  ),
);

/** Windows and recurrences: what mixes tokens wherever it is found along them. */
const ALWAYS = new Set("Conv ConvInteger QLinearConv RNN GRU LSTM Attention".split(" "));

/** Does a node that may mix tokens do so for certain? */
export function mixesTokens({ op, domain }: Node): boolean {
  return domain === "" && ALWAYS.has(op);
}

/** The nodes that may mix tokens, in graph order. None means that every token's result is its own and the states'. */
export function mayMixTokens(tracer: Tracer): Node[] {
  return tracer.graph.nodes.filter((node) => readSemantic(node) === null && mayMix(tracer, node));
}

/**
 * The first attention without a cache: a softmax over scores of tokens against the tokens of the same call, which no later call
 * can look back at. Null where there is none, whatever `mayMixTokens` says.
 */
export function attentionWithoutCache(tracer: Tracer): Node | null {
  const { view } = tracer;
  const isScores = ({ op, domain, outputs: [scores = ""] }: Node): boolean => {
    if (op !== "Softmax" || domain !== "") return false;
    // Where the file works for one length only, two axes of that size one after the other tell.
    const shape = view.first.values.get(scores)?.shape;
    const frozen = view.frozenLength ?? 1;
    if (frozen > 1) return shape?.at(-1) === frozen && shape.at(-2) === frozen;
    const roles = axisRoles(view, scores);
    return roles !== null && roles.at(-1) === "length" && roles.slice(0, -1).includes("length");
  };
  return tracer.graph.nodes.find(isScores) ?? null;
}

function mayMix(tracer: Tracer, node: Node): boolean {
  const { free } = tracer;
  const [output = ""] = node.outputs;
  // Positions: known without any token, yet other ones for each.
  if (free.has(output)) return isFloat(tracer, output) && hasLength(tracer, output);
  const data = node.inputs.filter((name) => name !== "" && !free.has(name) && !isInteger(tracer, name));
  if (!data.some((name) => hasLength(tracer, name))) return false;
  if (node.domain !== "") return !TOKENWISE.has(node.op);
  if (node.op === "MatMul") return data.length > 1;
  if (/^(QLinear)?Conv(Integer)?$/.test(node.op)) return !isPointwise(tracer, node);
  if (ALONG_ANY.has(node.op)) return true;
  if (node.op.startsWith("Reduce")) {
    const axes = attrInts(node, "axes") ?? contentOf(tracer, node.inputs[1]);
    return axes === null || axes.some((axis) => isLength(tracer, node.inputs[0] ?? "", axis));
  }
  if (!ALONG_AXIS.has(node.op)) return false;
  const given =
    node.op === "CumSum" ? node.inputs[1] : node.op === "Slice" || node.op === "Pad" ? node.inputs[3] : null;
  const axes = given === null ? [attrInt(node, "axis", node.op === "Gather" ? 0 : -1)] : contentOf(tracer, given);
  return axes === null || axes.some((axis) => data.some((name) => isLength(tracer, name, axis)));
}

/** A convolution of one tap a channel pair, which looks at nothing around it. */
function isPointwise({ view }: Tracer, node: Node): boolean {
  const weight = view.first.values.get(node.inputs[node.op === "QLinearConv" ? 3 : 1] ?? "")?.shape;
  return weight?.slice(2).every((taps) => taps === 1) ?? false;
}

function hasLength(tracer: Tracer, name: string): boolean {
  return axisRoles(tracer.view, name)?.includes("length") ?? false;
}

function isLength(tracer: Tracer, name: string, axis: number): boolean {
  return axisRoles(tracer.view, name)?.at(axis) === "length";
}

function isFloat(tracer: Tracer, name: string): boolean {
  return tracer.view.first.values.get(name)?.dtype === "f32";
}

function isInteger(tracer: Tracer, name: string): boolean {
  const dtype = tracer.view.first.values.get(name)?.dtype;
  return dtype === "i64" || dtype === "i32" || dtype === "bool";
}

function contentOf(tracer: Tracer, name: string | undefined): readonly number[] | null {
  return name === undefined || name === "" ? null : (tracer.view.first.values.get(name)?.content ?? null);
}
