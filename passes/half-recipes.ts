/** Which recipes go with float16. */

import { parseWeightScheme } from "../src/quant/scheme.js";
import { EXIT, MambacError } from "../src/support/errors.js";
import { possibleRecipe } from "./precision-rules.js";
import type { QuantRecipe } from "./quant-recipes.js";

/** Does the recipe ask for activations on integers? Weights below 8 bits measure theirs inside their operator. */
export function quantizesActivations(recipe: QuantRecipe): boolean {
  const { weights, activations, scanInput } = possibleRecipe(recipe);
  const bytes = new Set(
    weights.flatMap(({ scheme, roles }) => (scheme !== null && parseWeightScheme(scheme).bits >= 8 ? roles : [])),
  );
  const quantized = activations.some(
    ({ timing, roles }) => timing === "static" || (timing === "dynamic" && roles.some((role) => bytes.has(role))),
  );
  return scanInput !== null || quantized;
}

/** Refuses a recipe that float16 does not go with, before anything is measured for it. */
export function requireHalves(recipe: QuantRecipe): void {
  if (!quantizesActivations(recipe)) return;
  throw new MambacError(
    "narrow-floats/quantized",
    `the recipe ${recipe.name} quantizes activations, which float16 does not go with: leave out --float f16, ` +
      "or take a recipe for weights alone, such as awq-w4a16",
    EXIT.unsupported,
  );
}
