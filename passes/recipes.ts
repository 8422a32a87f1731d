/** Named ordered lists of passes. The facts on each pass are checked before a list runs. */

import type { Model } from "../src/ir/graph.js";
import type { FloatType } from "../src/ops/names.js";
import { type Step, step } from "../src/rewrite/pipeline.js";
import { FLOAT_STATE, type StateChoice } from "../src/rewrite/semantic.js";
import { MambacError } from "../src/support/errors.js";
import { completeStates } from "./complete-states.js";
import { divideNorm } from "./divide-norm.js";
import { freeLength } from "./free-length.js";
import { fuseConv } from "./fuse-conv.js";
import { fuseGate } from "./fuse-gate.js";
import { fuseQuantize } from "./fuse-quantize.js";
import { requireHalves } from "./half-recipes.js";
import { lower, type ScanTarget } from "./lower.js";
import { mergePair, type Trust } from "./merge-pair.js";
import { narrowFloats } from "./narrow-floats.js";
import { normalise } from "./normalise.js";
import type { QuantRecipe } from "./quant-recipes.js";
import { quantSteps } from "./quant-steps.js";
import { quantizeState } from "./quantize-state.js";
import { raiseAttention } from "./raise-attention.js";
import { raiseConv } from "./raise-conv.js";
import { raiseScan } from "./raise-scan.js";
import { renameStates, type StateStyle } from "./rename-states.js";
import { stateStep } from "./state-steps.js";
import { tidy } from "./tidy.js";
import { widenHalves } from "./widen-halves.js";

/** Source graph to semantic operators. Convolutions first: then every scan region ends at a raised convolution. */
export function raiseRecipe(): Step[] {
  return [step(widenHalves, {}), step(normalise, {}), step(raiseConv, {}), step(raiseScan, {})];
}

interface FinishOptions {
  /** The raised decode graph of a pair, and how to compare the two sources by running them. */
  readonly pair: { readonly decode: Model; readonly measure: () => Promise<number | null> } | null;
  readonly trust: Trust | null;
  /** How to quantize weights and activations; null leaves them float. */
  readonly quant: QuantRecipe | null;
  /** Gets the recipe once its search, if it has one, is over. */
  readonly decided: (recipe: QuantRecipe) => void;
  readonly state: StateChoice;
  readonly stateNames: StateStyle | null;
  readonly target: ScanTarget;
  /** Element type of weights and activations. */
  readonly float: FloatType;
}

/**
 * Semantic operators to the graph to write. Attention is raised so that a prefill graph of a hybrid can read a cache; a
 * graph that reads one already keeps its attention. The length is freed before states are added, so that new states get the free batch. Renaming comes after all states exist, fusing, lowering and tidying last.
 */
function finishRecipe(options: FinishOptions): Step[] {
  const names = new Map<string, string>();
  const merge = options.pair === null ? [] : [step(mergePair, { ...options.pair, trust: options.trust, names })];
  return [
    step(raiseAttention, {}),
    ...merge,
    step(freeLength, {}),
    step(completeStates, { names }),
    ...(options.quant === null ? [] : quantSteps(options.quant, options.decided)),
    step(divideNorm, {}),
    stateStep(options.state),
    ...(options.stateNames === null ? [] : [step(renameStates, { style: options.stateNames })]),
    ...(options.target === "mambac" ? [step(fuseGate, {}), step(fuseConv, {})] : []),
    step(lower, { target: options.target }),
    ...(givesCodes(options) ? [step(fuseQuantize, {})] : []),
    ...(options.float === "f16" ? [step(narrowFloats, {})] : []),
    step(tidy, {}),
  ];
}

/** May operators of mambac round what they give? Other profiles than ONNX Runtime's want the pairs as they are. */
function givesCodes({ target, quant }: FinishOptions): boolean {
  return target === "mambac" && quant !== null && (quant.qdqProfile ?? "ort-cpu") === "ort-cpu";
}

/** A model between two passes as something that runs: float states, operators with their functions, names kept. */
export function executableRecipe(): Step[] {
  return [step(quantizeState, FLOAT_STATE), step(lower, { target: "mambac" })];
}

/** What a compilation is asked for; everything but the state has a default. */
export interface PassChoices extends Partial<Omit<FinishOptions, "pair">> {
  readonly state: StateChoice;
}

/** All that the compiler driver needs to know of passes. */
export interface RecipePasses {
  readonly raise: () => Step[];
  readonly finish: (pair: FinishOptions["pair"]) => Step[];
  readonly executable: () => Step[];
  readonly measurable: () => Step[];
}

/** The passes of one compilation. Without further choices: float weights, names of the source, mambac's operators. */
export function passesFor(choices: PassChoices): RecipePasses {
  const options = {
    trust: null,
    quant: null,
    decided: () => undefined,
    stateNames: null,
    target: "mambac",
    float: "f32",
    ...choices,
  } as const;
  if (options.float === "f16" && options.target !== "mambac") {
    throw new MambacError("usage/float", "float16 is for mambac's own operators: leave out --scan linear-attention");
  }
  if (options.float === "f16" && options.quant !== null) requireHalves(options.quant);
  const narrow = options.float === "f16" ? [step(narrowFloats, {})] : [];
  return {
    raise: raiseRecipe,
    finish: (pair) => finishRecipe({ ...options, pair }),
    executable: executableRecipe,
    measurable: () => [...executableRecipe(), ...narrow],
  };
}
