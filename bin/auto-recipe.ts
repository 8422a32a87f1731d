/** `compile --recipe auto`: parsing only. */

import { recipeOf } from "../api/recipes.js";
import { AUTO_CANDIDATES, type Trust } from "../passes/index.js";
import { type AutoChoice, chooseRecipe, MambacError, type Terminal } from "../src/index.js";
import { type CalibrationFlags, calibrationOf } from "./calibration-flags.js";
import { candidateOf, floatCandidate } from "./recipe-command.js";

/** The word in the place of a recipe's name. */
export const AUTO = "auto";

/** Loss allowed when no budget is given. */
const USUAL_LOSS = 0.01;

export interface AutoFlags {
  readonly recipe?: string;
  readonly candidates?: string;
  readonly maxLoss?: number;
  readonly maxSize?: number;
  readonly calibTable?: readonly string[];
}

/** Refuses the flags of a choice where nothing is chosen, and a choice without data. */
export function requireAuto({ recipe, maxLoss, maxSize, candidates, calibTable }: AutoFlags): void {
  if (recipe === AUTO && calibTable !== undefined) {
    throw new MambacError(
      "usage/auto",
      "--recipe auto measures on data that it holds out: give --calib, no --calib-table",
    );
  }
  if (recipe === AUTO || (maxLoss === undefined && maxSize === undefined && candidates === undefined)) return;
  throw new MambacError("usage/auto", "--max-loss, --max-size and --candidates go with --recipe auto");
}

/** Measures, and takes one. */
export function autoChoice(
  inputs: readonly string[],
  flags: AutoFlags & CalibrationFlags & { readonly trust?: Trust; readonly threads: number; readonly quiet?: boolean },
  terminal: Terminal,
): Promise<AutoChoice> {
  const { trust = null, threads, maxLoss, maxSize } = flags;
  const names = flags.candidates?.split(",") ?? AUTO_CANDIDATES;
  return chooseRecipe(
    {
      inputs,
      calibration: calibrationOf(flags) ?? null,
      budget: { loss: maxLoss ?? (maxSize === undefined ? USUAL_LOSS : null), bytes: maxSize ?? null },
      library: "auto",
      threads,
      quiet: flags.quiet ?? false,
    },
    floatCandidate(trust),
    names.filter((name) => name !== "float").map((name) => candidateOf(recipeOf(name), trust)),
    terminal,
  );
}
