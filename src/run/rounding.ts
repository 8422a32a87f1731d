/** What a compiled model rounds besides its states, and so how closely it can agree with its source and with itself. */

import { attrInt, type Model } from "../ir/graph.js";

export interface Rounding {
  /** Weights or activations are not those of the source. */
  readonly lossy: boolean;
  /** Activations are rounded in every call, so a difference in the last bit can become one of a whole step. */
  readonly activations: boolean;
  /** Name of the recipe the model was compiled by, where it says so. */
  readonly recipe: string | null;
}

/** Operators that make or take codes. */
const CODES = new Set([
  "DequantizeLinear",
  "DynamicQuantizeLinear",
  "MatMulInteger",
  "MatMulNBits",
  "QLinearMatMul",
  "QuantizeLinear",
]);

/** Accuracy level of MatMulNBits at which blocks of activations become 8-bit codes. */
export const ROUNDS_ACTIVATIONS = 4;

/**
 * Read from the operators and from the recipe in the metadata, for weights can be rounded and stored as floats. 8-bit
 * weights count as rounded activations: ONNX Runtime may multiply them with an operator that rounds both.
 */
export function roundingOf(model: Model): Rounding {
  const { nodes } = model.graph;
  const recipe = recipeIn(model.metadata.get("mambac.recipe"));
  const listed = ["weights", "activations"].some((key) => isList(recipe[key]) && recipe[key].length > 0);
  const single = ["embedding", "scanInput"].some((key) => (recipe[key] ?? null) !== null);
  const { name } = recipe;
  return {
    lossy: listed || single || nodes.some(({ op }) => CODES.has(op)),
    activations: nodes.some((node) =>
      node.op === "MatMulNBits" ? attrInt(node, "accuracy_level", 0) === ROUNDS_ACTIVATIONS : CODES.has(node.op),
    ),
    recipe: typeof name === "string" ? name : null,
  };
}

function isList(value: unknown): value is readonly unknown[] {
  return Array.isArray(value);
}

/** Metadata can be edited by anyone: what is no object says nothing. */
function recipeIn(text: string | undefined): Readonly<Record<string, unknown>> {
  if (text === undefined) return {};
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? { ...value } : {};
  } catch {
    return {};
  }
}
