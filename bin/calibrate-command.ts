/** `mambac calibrate` and `mambac calibrate merge`: parsing only. */

import { type Command, InvalidArgumentError, Option } from "commander";
import { recipeOf } from "../api/recipes.js";
import { passesFor, presetNamed, type QuantRecipe, TRUSTS, type Trust } from "../passes/index.js";
import {
  type CompilerPasses,
  calibrateCommand,
  calibrateMergeCommand,
  calibrateRecipeCommand,
  FLOAT_STATE,
  MambacError,
  type Terminal,
} from "../src/index.js";
import { integer, positiveInteger } from "./flag-values.js";

interface ReportFlags {
  readonly json?: boolean;
  readonly quiet?: boolean;
}

interface CalibrateFlags extends ReportFlags {
  readonly data?: string[];
  readonly output?: string;
  readonly shard?: { readonly index: number; readonly count: number };
  readonly numSamples: number | "all";
  readonly seqLen: number;
  readonly seed: number;
  readonly tokenizer?: string;
  readonly secondMoments?: boolean;
  readonly recipe?: string;
  readonly calibTable?: string[];
  readonly trust?: Trust;
  readonly threads: number;
}

/** Adds both commands. */
export function addCalibrate(program: Command, terminal: Terminal, outcome: { code: number }): void {
  const command = program
    .command("calibrate")
    .description("statistics of a model's activations over data, as a table; shards of it can be made apart and merged")
    .argument("<in...>", "what compile takes")
    // Flags after `merge` are those of merge; so none of these can be required by the parser.
    .enablePositionalOptions();
  withReport(command.option("-o, --output <file>", "the table; its numbers go to <file>.bin (required)"))
    .option(
      "--data <file...>",
      "text, JSONL, npy, npz, safetensors, Parquet, folders of them, or 'random' for made-up tokens (required)",
    )
    .option("--num-samples <n>", "sequences drawn from the data, or 'all'", sampleCount, 128)
    .option("--seq-len <n>", "tokens of a sequence", positiveInteger, 512)
    .option("--seed <n>", "seed of the choice of sequences", integer, 0)
    .option("--shard <i/n>", "take every n-th sequence, from the i-th on", shard)
    .option("--tokenizer <file>", "tokenizer.json or its folder, or 'bytes' (default for a vocabulary of 256)")
    .option("--second-moments", "also x x^T of what projections read (for GPTQ and KLT); large")
    .option("--recipe <recipe>", "a name or a file: what its passes ask for, instead of the usual statistics")
    .option("--calib-table <file...>", "with --recipe: tables that hold the first of them, from the same data")
    .addOption(new Option("--trust <graph>", "which graph of a pair counts where they disagree").choices(TRUSTS))
    .option("--threads <n>", "threads inside one operator", positiveInteger, 1)
    .action(async (inputs: string[], flags: CalibrateFlags) => {
      const { trust = null, calibTable: tables = [] } = flags;
      const options = {
        inputs,
        data: flags.data ?? command.error("error: required option '--data <file...>' not specified"),
        output: flags.output ?? command.error("error: required option '-o, --output <file>' not specified"),
        shard: flags.shard ?? null,
        samples: flags.numSamples === "all" ? null : flags.numSamples,
        sequenceLength: flags.seqLen,
        seed: flags.seed,
        tokenizer: flags.tokenizer ?? null,
        secondMoments: flags.secondMoments ?? false,
        threads: flags.threads,
        json: flags.json ?? false,
        quiet: flags.quiet ?? false,
      };
      if (flags.recipe === undefined) {
        if (tables.length > 0) throw new MambacError("usage/calib-table", "--calib-table goes with --recipe here");
        outcome.code = await calibrateCommand(options, alignedPasses(trust), terminal);
        return;
      }
      const recipe = recipeOf(flags.recipe);
      requireDecided(recipe);
      const passes = passesFor({ state: recipe.state, quant: recipe, trust });
      outcome.code = await calibrateRecipeCommand({ ...options, recipe, tables }, passes, terminal);
    });
  const merge = command
    .command("merge")
    .description("join shards of one calibration; all of them make the table of the whole")
    .argument("<table...>", "the tables of the shards")
    .requiredOption("-o, --output <file>", "the table to write");
  withReport(merge).action((tables: string[], flags: ReportFlags & { output: string }) => {
    const { output, json = false, quiet = false } = flags;
    outcome.code = calibrateMergeCommand({ tables, output, json, quiet }, terminal);
  });
}

function withReport(command: Command): Command {
  return command
    .option("--json", "one JSON document on stdout")
    .option("-q, --quiet", "nothing but warnings and errors");
}

/** Projections are brought into one form, and nothing is rounded. */
function alignedPasses(trust: Trust | null): CompilerPasses {
  const nothing = [{ roles: ["other"], layers: ["-"], scheme: null, method: "nearest" }] as const;
  return passesFor({ state: FLOAT_STATE, quant: { ...presetNamed("float"), weights: nothing }, trust });
}

function requireDecided({ name, search }: QuantRecipe): void {
  if (search === undefined) return;
  throw new MambacError(
    "usage/search",
    `the recipe ${name} searches on data: compile by it once, and calibrate for the recipe it leaves beside the result`,
  );
}

function sampleCount(text: string): number | "all" {
  return text === "all" ? text : positiveInteger(text);
}

function shard(text: string): { readonly index: number; readonly count: number } {
  const [, index = "", count = ""] = /^(\d+)\/(\d+)$/.exec(text) ?? [];
  const parsed = { index: Number(index), count: Number(count) };
  if (parsed.index >= 1 && parsed.index <= parsed.count) return parsed;
  throw new InvalidArgumentError("It must be like 2/4: the second of four.");
}
