/** Recipes against the runtimes their files are for: what a profile has not is refused before any work. */

import { parseWeightScheme } from "../src/quant/scheme.js";
import { profileRules } from "../src/rewrite/qdq-profile.js";
import { MambacError } from "../src/support/errors.js";
import type { QuantRecipe } from "./quant-recipes.js";

/** Refuses a recipe that its profile cannot take (`recipe/qdq-profile`, exit code 2). */
export function requireProfile(recipe: QuantRecipe): void {
  const profile = recipe.qdqProfile ?? "ort-cpu";
  if (profile === "ort-cpu") return;
  const { refuses } = profileRules(profile);
  const refuse = (what: string, why: string): never => {
    throw new MambacError(
      "recipe/qdq-profile",
      `recipe ${recipe.name}: ${what} does not fit the profile ${profile}: ${why}`,
    );
  };
  for (const { scheme, method } of recipe.weights) {
    if (method === "tanh") refuse("rounding on a curve", "codes stand for multiples of a scale there");
    const why = scheme === null ? null : refuses(parseWeightScheme(scheme));
    if (why !== null) refuse(`the weight scheme ${scheme}`, why);
  }
  if (recipe.activations.some(({ timing }) => timing === "dynamic")) {
    refuse("a scale measured in every call", "scales are constants there: write timing: static");
  }
  if (recipe.scanInput !== null) refuse("a quantized input of recurrences", "recurrences run in float there");
}
