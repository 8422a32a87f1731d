/** Compiling from code: what `mambac compile` does, with passes of one's own where they are wanted. */

import {
  passesFor,
  type QdqProfile,
  type QuantRecipe,
  type ScanTarget,
  type StateStyle,
  type Step,
  type Trust,
} from "../passes/index.js";
import {
  type CompileReport,
  type CompileOptions as DriverOptions,
  compile as drive,
  type FloatType,
  MambacError,
  readCalibration,
  type StateChoice,
  type StateFormat,
} from "../src/index.js";
import { recipeDocument, recipeOf } from "./recipes.js";

/** What is compiled, and how. Everything but the inputs has a default, which is that of the command line. */
export interface CompileOptions
  extends Pick<
    DriverOptions,
    "calibration" | "externalData" | "threads" | "onRemark" | "onProgress" | "afterPass" | "onFailure"
  > {
  /** One file, a prefill and a decode file in any order, or one folder that holds them. */
  readonly inputs: string | readonly string[];
  /** Where to write; without it nothing is written, and the report says what would be. */
  readonly output?: string;
  /** Name of a preset, path of a recipe file, or a recipe; without it weights and activations stay float. */
  readonly recipe?: string | QuantRecipe;
  /** How states are kept: a format, or what differs from the recipe's choice (without one from `h8` `dsq-max`). */
  readonly state?: StateFormat | Partial<StateChoice>;
  /** Paths of tables of `mambac calibrate`. */
  readonly tables?: readonly string[];
  /** Which graph of a pair counts where they disagree. */
  readonly trust?: Trust;
  readonly scan?: ScanTarget;
  /** Element type of weights and activations; `f32` unless given. */
  readonly float?: FloatType;
  readonly stateNames?: StateStyle;
  readonly qdqProfile?: QdqProfile;
  /**
   * Gets the passes that run once all scans are recognised, and gives those to run: with others put in (`insertStep`), left
   * out or in another order. The order is checked against what passes require before any runs.
   */
  readonly passes?: (usual: readonly Step[]) => readonly Step[];
}

const USUAL_STATE: StateChoice = { format: "h8", scale: "dsq-max", requantize: "call" };

/**
 * Compiles. Throws `MambacError`, with a code, an exit code and a message for people, for whatever its caller can mend;
 * nothing is written then.
 */
export function compile(options: CompileOptions): Promise<CompileReport> {
  const {
    inputs,
    output,
    recipe: spec,
    state: asked,
    tables,
    trust,
    scan,
    stateNames,
    passes,
    qdqProfile,
    float = "f32",
  } = options;
  const named = spec === undefined ? null : typeof spec === "string" ? recipeOf(spec) : spec;
  if (qdqProfile !== undefined && named === null) {
    throw new MambacError("usage/qdq-profile", "qdqProfile goes with a recipe, which says what is quantized");
  }
  const state = stateOf(named?.state ?? null, asked);
  const recipe = named === null ? null : { ...named, state, ...(qdqProfile === undefined ? {} : { qdqProfile }) };
  let decided = recipe;
  const library = passesFor({
    state,
    quant: recipe,
    decided: (taken) => {
      decided = taken;
    },
    float,
    ...(trust === undefined ? {} : { trust }),
    ...(scan === undefined ? {} : { target: scan }),
    ...(stateNames === undefined ? {} : { stateNames }),
  });
  return drive(
    {
      ...driverOptions(options),
      inputs: typeof inputs === "string" ? [inputs] : inputs,
      output: output ?? null,
      state,
      float,
      recipe,
      decided: () => (decided === null ? null : { recipe: decided, text: recipeDocument(decided) }),
      tables: (tables ?? []).map((path) => ({ label: path, table: readCalibration(path) })),
    },
    passes === undefined ? library : { ...library, finish: (pair) => [...passes(library.finish(pair))] },
  );
}

/** What is handed on as it is; options that are absent stay absent. */
function driverOptions(options: CompileOptions): Partial<DriverOptions> {
  const { calibration, externalData, threads, onRemark, onProgress, afterPass, onFailure } = options;
  return {
    ...(calibration === undefined ? {} : { calibration }),
    ...(externalData === undefined ? {} : { externalData }),
    ...(threads === undefined ? {} : { threads }),
    ...(onRemark === undefined ? {} : { onRemark }),
    ...(onProgress === undefined ? {} : { onProgress }),
    ...(afterPass === undefined ? {} : { afterPass }),
    ...(onFailure === undefined ? {} : { onFailure }),
  };
}

/**
 * The recipe's choice of states, changed by what was asked for. Another format begins anew: scales and roundings of a recipe
 * are for its own. A replay length goes with replay only.
 */
function stateOf(recipe: StateChoice | null, asked: CompileOptions["state"]): StateChoice {
  const changes = typeof asked === "string" ? { format: asked } : { ...asked };
  const base = recipe === null || changes.format !== undefined ? USUAL_STATE : recipe;
  const { replayLength, ...rest } = { ...base, ...changes };
  return rest.requantize === "replay" && replayLength !== undefined ? { ...rest, replayLength } : rest;
}
