/** `mambac recipe`: parsing only. */

import type { Command } from "commander";
import {
  formatRecipe,
  PRESETS,
  passesFor,
  presetNamed,
  type QuantRecipe,
  readRecipe,
  recipeSchema,
  type Trust,
} from "../passes/index.js";
import {
  type Candidate,
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

/** What is written beside a compiled model; `why` says who chose it, if not the one who compiled. */
export function recipeDocument(recipe: QuantRecipe, why: string | null = null): string {
  const first = `The recipe this model was compiled by, in full (mambac ${VERSION}).`;
  return formatRecipe(recipe, why === null ? first : `${first}\n${why.trimEnd()}`);
}

/** A recipe as something to compile and measure. */
export function candidateOf(recipe: QuantRecipe, trust: Trust | null): Candidate {
  const { name, state } = recipe;
  return {
    name,
    state,
    passes: passesFor({ state, quant: recipe, trust }),
  };
}

/** What every recipe is measured against. */
export function floatCandidate(trust: Trust | null): Candidate {
  return candidateOf(presetNamed("float"), trust);
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
