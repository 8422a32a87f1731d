/** `mambac recipe`: lists, shows and checks recipes, and prints the JSON Schema of recipe files. */

import { readFileSync } from "node:fs";
import { closestWord } from "../support/closest-word.js";
import { EXIT, type ExitCode, MambacError } from "../support/errors.js";
import { fileProblem } from "../support/file-problem.js";
import type { Terminal } from "./terminal.js";

/** The recipes of a set of passes, and how they are read and written. */
export interface RecipeLibrary<Recipe extends { readonly name: string; readonly summary: string }> {
  readonly presets: readonly Recipe[];
  /** Throws `document/invalid`; `label` names the text. */
  readonly read: (source: string, label: string) => Recipe;
  readonly format: (recipe: Recipe, comment: string | null) => string;
  readonly schema: () => object;
}

/**
 * A preset by its name, or the recipe in a file: whatever ends in .yaml, .yml or .json, or has a folder in it. Throws
 * `recipe/unknown`, `recipe/file` and `document/invalid`.
 */
export function resolveRecipe<Recipe extends { readonly name: string; readonly summary: string }>(
  spec: string,
  library: RecipeLibrary<Recipe>,
): Recipe {
  if (!/\.(ya?ml|json)$|[/\\]/i.test(spec)) {
    const found = library.presets.find(({ name }) => name === spec);
    if (found !== undefined) return found;
    const names = library.presets.map(({ name }) => name);
    const near = closestWord(spec, names);
    const holding = names.filter((name) => spec !== "" && name.includes(spec.toLowerCase()));
    const meant = near !== null ? near : holding.length > 0 ? holding.join(" or ") : null;
    throw new MambacError(
      "recipe/unknown",
      `there is no recipe ${spec}; ${meant === null ? "" : `did you mean ${meant}? `}recipes: ${names.join(", ")}, or a file: FILE.yaml`,
    );
  }
  let source: string;
  try {
    source = readFileSync(spec, "utf8");
  } catch (cause) {
    throw new MambacError("recipe/file", `cannot read the recipe ${spec}: ${fileProblem(cause)}`, EXIT.usage, {
      cause,
    });
  }
  return library.read(source, spec);
}

/** Lists the presets. */
export function recipeListCommand<Recipe extends { readonly name: string; readonly summary: string }>(
  library: RecipeLibrary<Recipe>,
  options: { readonly json: boolean },
  terminal: Terminal,
): ExitCode {
  const rows = library.presets.map(({ name, summary }) => ({ name, summary }));
  if (options.json) terminal.out(`${JSON.stringify(rows, null, 2)}\n`);
  else {
    const width = Math.max(...rows.map(({ name }) => name.length));
    for (const { name, summary } of rows) terminal.out(`${name.padEnd(width)}  ${summary}\n`);
  }
  return EXIT.ok;
}

/** Prints a preset or a file, with everything it leaves out: YAML that reads back as the same recipe. */
export function recipeShowCommand<Recipe extends { readonly name: string; readonly summary: string }>(
  spec: string,
  library: RecipeLibrary<Recipe>,
  options: { readonly json: boolean },
  terminal: Terminal,
): ExitCode {
  const recipe = resolveRecipe(spec, library);
  terminal.out(options.json ? `${JSON.stringify(recipe, null, 2)}\n` : library.format(recipe, null));
  return EXIT.ok;
}

/** Prints the JSON Schema. */
export function recipeSchemaCommand(library: Pick<RecipeLibrary<never>, "schema">, terminal: Terminal): ExitCode {
  terminal.out(`${JSON.stringify(library.schema(), null, 2)}\n`);
  return EXIT.ok;
}
