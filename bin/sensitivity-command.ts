/** `mambac sensitivity`: parsing, and which recipes it measures. */

import { type Command, Option } from "commander";
import { presetNamed, type QuantRecipe, TRUSTS, type Trust } from "../passes/index.js";
import { type SensitivityPlan, sensitivityCommand, type Terminal } from "../src/index.js";
import { type CalibrationFlags, calibrationOf, withCalibration } from "./calibration-flags.js";
import { positiveInteger } from "./flag-values.js";
import { candidateOf, floatCandidate } from "./recipe-command.js";

interface SensitivityFlags extends CalibrationFlags {
  readonly text: string;
  readonly windows: number;
  readonly window: number;
  readonly calibTable?: string[];
  readonly bits: "4" | "8";
  readonly trust?: Trust;
  readonly library: string;
  readonly threads: number;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

/** Adds the command. */
export function addSensitivity(program: Command, terminal: Terminal, outcome: { code: number }): void {
  const command = program
    .command("sensitivity")
    .description(
      "what rounding one kind of weight, or one layer, costs; with --calib or --calib-table, where outlier channels are",
    )
    .argument("<in...>", "what compile takes")
    .requiredOption("--text <file>", "the text to measure on");
  withCalibration(command)
    .option(
      "--calib-table <file...>",
      "tables of `mambac calibrate --second-moments` to take statistics from instead of data",
    )
    .addOption(new Option("--bits <bits>", "bits of what is rounded").choices(["4", "8"]).default("4"))
    .option("--windows <n>", "windows from the start of the text, each from zero state", positiveInteger, 8)
    .option("--window <n>", "tokens a window", positiveInteger, 256)
    .addOption(new Option("--trust <graph>", "which graph of a pair counts where they disagree").choices(TRUSTS))
    .option("--library <file>", "the op library: auto, none or a path", "auto")
    .option("--threads <n>", "threads inside one operator", positiveInteger, 1)
    .option("--json", "one JSON document on stdout")
    .option("-q, --quiet", "nothing but the tables, warnings and errors")
    .action(async (inputs: string[], flags: SensitivityFlags) => {
      const { text, windows, window, library, threads, bits, trust = null } = flags;
      outcome.code = await sensitivityCommand(
        {
          inputs,
          text,
          windows,
          window,
          tokenizer: flags.tokenizer ?? null,
          parameterScheme: `i${bits}:tensor`,
          calibration: calibrationOf(flags) ?? null,
          tables: flags.calibTable ?? [],
          library,
          threads,
          json: flags.json ?? false,
          quiet: flags.quiet ?? false,
        },
        planOf(`i${bits}`, trust),
        terminal,
      );
    });
}

const FLOAT: QuantRecipe = presetNamed("float");
const BLOCK = ["in_proj", "x_proj", "dt_proj", "out_proj", "other"] as const;
const SMOOTH: QuantRecipe["smooth"] = { alpha: 0.5, roles: BLOCK };

function planOf(format: "i4" | "i8", trust: Trust | null): SensitivityPlan {
  const scheme = `${format}:channel`;
  const one = (name: string, parts: Partial<QuantRecipe>): ReturnType<typeof candidateOf> =>
    candidateOf({ ...FLOAT, ...parts, name }, trust);
  const rounded = (
    roles: QuantRecipe["weights"][number]["roles"],
    layers?: readonly string[],
  ): Partial<QuantRecipe> => ({
    weights: [{ roles, scheme, method: "nearest", ...(layers === undefined ? {} : { layers }) }],
  });
  return {
    reference: floatCandidate(trust),
    types: [
      ...BLOCK.map((role) => one(`${role} ${scheme}`, rounded([role]))),
      one(`head ${scheme}`, rounded(["lm_head"])),
      one(`embedding ${format}, a scale a row`, { embedding: format }),
    ],
    layer: (label) => one(label, rounded([...BLOCK], [label])),
    transforms: [
      // A rule for no layer: projections are brought into one form, and nothing is rounded.
      one("none", rounded([...BLOCK], ["-"])),
      one("smooth", { smooth: SMOOTH }),
      one("rotate", { rotate: { ...FLOAT.rotate, residual: "hadamard", output: true } }),
      one("rotate KLT", { rotate: { ...FLOAT.rotate, residual: "klt", output: true, dt: "klt" } }),
      one("smooth + rotate", {
        smooth: { alpha: 0.5, roles: ["out_proj", "dt_proj"] },
        rotate: { ...FLOAT.rotate, residual: "hadamard", output: true },
      }),
    ],
  };
}
