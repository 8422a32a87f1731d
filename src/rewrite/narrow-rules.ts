/**
 * Which operators work in float16. What is not named here stays in float32, with casts around it: statistics, exponentials,
 * cumulative sums and whatever nobody has looked at.
 */

import { type Node, qualifiedOp, subgraphs } from "../ir/graph.js";
import { activationInputs } from "../ops/functions.js";
import { OP_DOMAIN, parseOpName } from "../ops/names.js";
import { EXIT, MambacError } from "../support/errors.js";

/** Element type a float value is kept in. */
export type Float = "f32" | "f16";

/** What is known of an input: its type where it is computed, `constant` for an initialiser, null for anything but floats. */
export type FloatInput = Float | "constant" | null;

/** What else decides about a node. */
export interface NodeSurroundings {
  /** Can the constant at this input be halves without loss of range? */
  readonly fits: (index: number) => boolean;
  /** Is what it makes read by products alone? */
  readonly feedsProducts: () => boolean;
}

/** Types a node takes its float inputs in and gives its float outputs in; null: the type the value has. */
export interface NodeFloats {
  readonly inputs: (index: number) => Float | null;
  readonly outputs: (index: number) => Float;
}

/** Products: their weights are what float16 is for, and their sums are float32 inside the kernels that have them. */
const PRODUCTS = set("MatMul Gemm Conv com.microsoft.MatMulNBits");

/** These move values; their type is that of what they move. */
const MOVES = set(
  "Identity Reshape Flatten Transpose Squeeze Unsqueeze Slice Split Expand Tile Pad Gather GatherElements GatherND Trilu",
);

/** One value in, one rounding out; in float16 where all they read is. */
const ELEMENTWISE = set(
  "Mul Div Neg Abs Relu Sigmoid Tanh Clip Min Max LeakyRelu HardSigmoid HardSwish Gelu com.microsoft.QuickGelu com.microsoft.FastGelu",
);

/** Look at a value of any type, or at its shape only. */
const ANY_TYPE = set("Cast Shape Size");

/** Sums of computed values are the residual stream and what is like it: rounding it at every layer would add up. */
const SUMS = set("Add Sub Sum");

const QUANTIZED_ACTIVATIONS = /^(QuantizeLinear|DynamicQuantizeLinear|MatMulInteger|ConvInteger|QLinear\w+)$/;

function set(names: string): ReadonlySet<string> {
  return new Set(names.split(" "));
}

/** Does the node multiply in float16 whatever it reads? */
export function isProduct(node: Node): boolean {
  return PRODUCTS.has(qualifiedOp(node));
}

/** Does the node only move values? */
export function isMove(node: Node): boolean {
  return MOVES.has(qualifiedOp(node));
}

/**
 * Types of a node's floats; `inputs` are its inputs as the nodes before it give them. Throws `narrow-floats/quantized` for
 * quantized activations.
 */
export function nodeFloats(
  node: Node,
  inputs: readonly FloatInput[],
  { fits, feedsProducts }: NodeSurroundings,
): NodeFloats {
  const name = qualifiedOp(node);
  if (QUANTIZED_ACTIVATIONS.test(name)) throw quantized(node);
  const spec = node.domain === OP_DOMAIN ? parseOpName(node.op) : null;
  if (spec !== null) {
    if ((spec.kind === "rotation" || spec.kind === "gate") && spec.codes) throw quantized(node);
    const activations = new Set(activationInputs(spec));
    const state = spec.kind === "scan" ? 1 : -1;
    return {
      inputs: (index) => (activations.has(index) ? "f16" : "f32"),
      outputs: (index) => (index === state ? "f32" : "f16"),
    };
  }
  if (subgraphs(node).length > 0) return all("f32");
  if (isProduct(node)) return all("f16");
  if (ANY_TYPE.has(name)) return { inputs: () => null, outputs: () => "f32" };
  const computed = inputs.filter((input) => input === "f16" || input === "f32");
  const constants = inputs.flatMap((input, index) => (input === "constant" ? [index] : []));
  // A table that tokens look up, and weights behind codes or turned for a product, are what float16 is for, too.
  if (name === "Gather" && computed.length === 0) return all("f16");
  if (isMove(node) && computed.length === 0) return all(feedsProducts() ? "f16" : "f32");
  if (name === "DequantizeLinear") return all(constants.length > 0 ? "f16" : "f32");
  // Stretches of one sequence: a cache and what is new.
  if (name === "Concat") return all(computed.includes("f16") && constants.every(fits) ? "f16" : "f32");
  const sum = SUMS.has(name) && computed.length === 1;
  if (!isMove(node) && !ELEMENTWISE.has(name) && !sum) return all("f32");
  const narrow = computed.length > 0 && computed.every((input) => input === "f16") && constants.every(fits);
  return all(narrow ? "f16" : "f32");
}

function all(type: Float): NodeFloats {
  return { inputs: () => type, outputs: () => type };
}

function quantized(node: Node): MambacError {
  return new MambacError(
    "narrow-floats/quantized",
    `${node.name || node.outputs[0]} (${node.op}) quantizes activations, which float16 does not go with: leave out ` +
      "--float f16, or take a recipe for weights alone, such as awq-w4a16",
    EXIT.unsupported,
  );
}
