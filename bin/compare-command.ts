/** `mambac compare`: parsing only. */

import { type Command, Option } from "commander";
import { recipeOf } from "../api/recipes.js";
import { PRESETS, TRUSTS, type Trust } from "../passes/index.js";
import { compareCommand, type Terminal } from "../src/index.js";
import { type CalibrationFlags, calibrationOf, withCalibration } from "./calibration-flags.js";
import { positiveInteger } from "./flag-values.js";
import { candidateOf, floatCandidate } from "./recipe-command.js";

interface CompareFlags extends CalibrationFlags {
  readonly recipe: string;
  readonly calibTable?: string[];
  readonly text: string[];
  readonly windows: number;
  readonly window: number;
  readonly trust?: Trust;
  readonly library: string;
  readonly threads: number;
  readonly csv?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

/** Adds the command. */
export function addCompare(program: Command, terminal: Terminal, outcome: { code: number }): void {
  const command = program
    .command("compare")
    .description("compile by several recipes and measure all in the same way: loss, KL, agreement, bytes, kernels")
    .argument("<in...>", "what compile takes")
    .requiredOption("--recipe <list>", "names and files, with commas between; or 'all' that ship with mambac")
    .requiredOption("--text <file...>", "texts to measure on; none of them should be calibration data");
  withCalibration(command)
    .option("--calib-table <file...>", "tables of `mambac calibrate` to take statistics from instead of data")
    .option("--windows <n>", "windows from the start of each text, each from zero state", positiveInteger, 12)
    .option("--window <n>", "tokens a window", positiveInteger, 512)
    .addOption(new Option("--trust <graph>", "which graph of a pair counts where they disagree").choices(TRUSTS))
    .option("--library <file>", "the op library: auto, none or a path", "auto")
    .option("--threads <n>", "threads inside one operator", positiveInteger, 1)
    .addOption(new Option("--csv", "a line a recipe and text, numbers in full").conflicts("json"))
    .option("--json", "one JSON document on stdout")
    .option("-q, --quiet", "nothing but the table, warnings and errors")
    .action(async (inputs: string[], flags: CompareFlags) => {
      const { windows, window, library, threads, trust = null } = flags;
      const recipes = flags.recipe === "all" ? PRESETS : flags.recipe.split(",").map(recipeOf);
      const calibration = calibrationOf(flags);
      outcome.code = await compareCommand(
        {
          inputs,
          texts: flags.text,
          windows,
          window,
          tokenizer: flags.tokenizer ?? null,
          ...(calibration === undefined ? {} : { calibration }),
          tables: flags.calibTable ?? [],
          library,
          threads,
          csv: flags.csv ?? false,
          json: flags.json ?? false,
          quiet: flags.quiet ?? false,
        },
        floatCandidate(trust),
        recipes.filter(({ name }) => name !== "float").map((recipe) => candidateOf(recipe, trust)),
        terminal,
      );
    });
}
