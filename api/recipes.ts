/** Recipes by name, by file or as objects, and as the document that lies beside a compiled model. */

import { formatRecipe, PRESETS, type QuantRecipe, readRecipe, recipeSchema } from "../passes/index.js";
import { type RecipeLibrary, resolveRecipe, VERSION } from "../src/index.js";

export const RECIPES: RecipeLibrary<QuantRecipe> = {
  presets: PRESETS,
  read: readRecipe,
  format: formatRecipe,
  schema: recipeSchema,
};

/** The preset of a name, or what a file (FILE.yaml) says. Throws `recipe/unknown`, `recipe/file` and `document/invalid`. */
export function recipeOf(spec: string): QuantRecipe {
  return resolveRecipe(spec, RECIPES);
}

/** What is written beside a compiled model; `why` says who chose it, if not the one who compiled. */
export function recipeDocument(recipe: QuantRecipe, why: string | null = null): string {
  const first = `The recipe this model was compiled by, in full (mambac ${VERSION}).`;
  return formatRecipe(recipe, why === null ? first : `${first}\n${why.trimEnd()}`);
}
