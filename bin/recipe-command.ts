/** `mambac recipe`: parsing only. */

import type { Command } from "commander";
import { RECIPES } from "../api/recipes.js";
import { passesFor, presetNamed, type QuantRecipe, type Trust } from "../passes/index.js";
import {
  type Candidate,
  type FloatType,
  recipeListCommand,
  recipeSchemaCommand,
  recipeShowCommand,
  type Terminal,
} from "../src/index.js";

/** A recipe as something to compile and measure. */
export function candidateOf(recipe: QuantRecipe, trust: Trust | null, float: FloatType = "f32"): Candidate {
  const { name, state } = recipe;
  return {
    name,
    state,
    float,
    passes: passesFor({ state, quant: recipe, trust, float }),
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
      outcome.code = recipeListCommand(RECIPES, { json: flags.json ?? false }, terminal);
    });
  command
    .command("show")
    .description("print one in full, as YAML that --recipe reads; also checks a file")
    .argument("<recipe>", "a name or a file")
    .option("--json", json)
    .action((spec: string, flags: { json?: boolean }) => {
      outcome.code = recipeShowCommand(spec, RECIPES, { json: flags.json ?? false }, terminal);
    });
  command
    .command("schema")
    .description("print the JSON Schema of recipe files")
    .action(() => {
      outcome.code = recipeSchemaCommand(RECIPES, terminal);
    });
}
