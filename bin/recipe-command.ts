/** `mambac recipe`: parsing only. */

import type { Command } from "commander";
import { formatRecipe, PRESETS, type QuantRecipe, readRecipe, recipeSchema } from "../passes/index.js";
import {
  type RecipeLibrary,
  recipeListCommand,
  recipeSchemaCommand,
  recipeShowCommand,
  resolveRecipe,
  type Terminal,
  VERSION,
} from "../src/index.js";

const LIBRARY: RecipeLibrary<QuantRecipe> = {
  presets: PRESETS,
  read: readRecipe,
  format: formatRecipe,
  schema: recipeSchema,
};

/** The recipe of a name or file, as `--recipe` takes it. */
export function recipeOf(spec: string): QuantRecipe {
  return resolveRecipe(spec, LIBRARY);
}

/** What is written beside a compiled model. */
export function recipeDocument(recipe: QuantRecipe): string {
  return formatRecipe(recipe, `The recipe this model was compiled by, in full (mambac ${VERSION}).`);
}

/** Adds the command. */
export function addRecipe(program: Command, terminal: Terminal, outcome: { code: number }): void {
  const command = program.command("recipe").description("quantization recipes: those that ship with mambac, and files");
  const json = "one JSON document on stdout";
  command
    .command("list")
    .description("name those that ship with mambac")
    .option("--json", json)
    .action((flags: { json?: boolean }) => {
      outcome.code = recipeListCommand(LIBRARY, { json: flags.json ?? false }, terminal);
    });
  command
    .command("show")
    .description("print one in full, as YAML that --recipe reads; also checks a file")
    .argument("<recipe>", "a name or a file")
    .option("--json", json)
    .action((spec: string, flags: { json?: boolean }) => {
      outcome.code = recipeShowCommand(spec, LIBRARY, { json: flags.json ?? false }, terminal);
    });
  command
    .command("schema")
    .description("print the JSON Schema of recipe files")
    .action(() => {
      outcome.code = recipeSchemaCommand(LIBRARY, terminal);
    });
}
