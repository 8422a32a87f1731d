/** `compile --recipe auto`: parsing only. */

import { recipeOf } from "../api/recipes.js";
import { AUTO_CANDIDATES, presetNamed, type QuantRecipe, quantizesActivations, type Trust } from "../passes/index.js";
import { type AutoChoice, chooseRecipe, type FloatType, MambacError, type Terminal } from "../src/index.js";
import { type CalibrationFlags, calibrationOf } from "./calibration-flags.js";
import { candidateOf, floatCandidate } from "./recipe-command.js";

/** The word in the place of a recipe's name. */
export const AUTO = "auto";

/** The model without any recipe. */
const FLOAT: QuantRecipe = presetNamed("float");

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

type ChoiceFlags = AutoFlags &
  CalibrationFlags & {
    readonly trust?: Trust;
    readonly float: FloatType;
    readonly threads: number;
    readonly quiet?: boolean;
  };

/** Measures recipes as they would be written, and takes one; `asWritten` changes a recipe by the other flags. */
export function autoChoice(
  inputs: readonly string[],
  flags: ChoiceFlags,
  asWritten: (recipe: QuantRecipe) => QuantRecipe,
  terminal: Terminal,
): Promise<AutoChoice> {
  const { trust = null, threads, maxLoss, maxSize, float } = flags;
  const half = float === "f16";
  const usual = AUTO_CANDIDATES.filter((name) => !half || !quantizesActivations(presetNamed(name)));
  const names = (flags.candidates?.split(",") ?? usual).filter((name) => name !== FLOAT.name);
  const plain = asWritten(FLOAT);
  const referenceIsChoice = !half && plain.state.format === FLOAT.state.format;
  const recipes = [...(referenceIsChoice ? [] : [plain]), ...names.map((name) => asWritten(recipeOf(name)))];
  return chooseRecipe(
    {
      inputs,
      calibration: calibrationOf(flags) ?? null,
      budget: { loss: maxLoss ?? (maxSize === undefined ? USUAL_LOSS : null), bytes: maxSize ?? null },
      referenceIsChoice,
      note: half ? halfNote(flags.candidates === undefined) : null,
      library: "auto",
      threads,
      quiet: flags.quiet ?? false,
    },
    // Two rows must not have one name.
    { ...floatCandidate(trust), ...(referenceIsChoice ? {} : { name: "reference" }) },
    recipes.map((recipe) => candidateOf(recipe, trust, float)),
    terminal,
  );
}

function halfNote(leftOut: boolean): string {
  const note = "measured in float16 against the float32 model";
  return leftOut ? `${note}, without recipes that quantize activations` : note;
}
