/** Named ordered lists of passes. The facts on each pass are checked before a list runs. */

import type { Model } from "../src/ir/graph.js";
import { type Step, step } from "../src/rewrite/pipeline.js";
import type { StateChoice } from "../src/rewrite/semantic.js";
import { completeStates } from "./complete-states.js";
import { divideNorm } from "./divide-norm.js";
import { freeLength } from "./free-length.js";
import { lower, type ScanTarget } from "./lower.js";
import { mergePair, type Trust } from "./merge-pair.js";
import { normalise } from "./normalise.js";
import type { QuantRecipe } from "./quant-recipes.js";
import { quantSteps } from "./quant-steps.js";
import { quantizeState } from "./quantize-state.js";
import { raiseAttention } from "./raise-attention.js";
import { raiseConv } from "./raise-conv.js";
import { raiseScan } from "./raise-scan.js";
import { renameStates, type StateStyle } from "./rename-states.js";
import { tidy } from "./tidy.js";
import { widenHalves } from "./widen-halves.js";

/** Source graph to semantic operators. Convolutions first: then every scan region ends at a raised convolution. */
export function raiseRecipe(): Step[] {
  return [step(widenHalves, {}), step(normalise, {}), step(raiseConv, {}), step(raiseScan, {})];
}

export interface FinishOptions {
  /** The raised decode graph of a pair, and how to compare the two sources by running them. */
  readonly pair: { readonly decode: Model; readonly measure: () => Promise<number | null> } | null;
  readonly trust: Trust | null;
  /** How to quantize weights and activations; null leaves them float. */
  readonly quant?: QuantRecipe | null;
  readonly state: StateChoice;
  readonly stateNames: StateStyle | null;
  readonly target: ScanTarget;
}

/**
 * Semantic operators to the graph to write. Attention is raised so that a prefill graph of a hybrid can read a cache; a
 * graph that reads one already keeps its attention. The length is freed before states are added, so that new states get the free batch. Renaming comes after all states exist, lowering and tidying last.
 */
export function finishRecipe(options: FinishOptions): Step[] {
  const names = new Map<string, string>();
  const merge = options.pair === null ? [] : [step(mergePair, { ...options.pair, trust: options.trust, names })];
  return [
    step(raiseAttention, {}),
    ...merge,
    step(freeLength, {}),
    step(completeStates, { names }),
    ...(options.quant == null ? [] : quantSteps(options.quant)),
    step(divideNorm, {}),
    step(quantizeState, options.state),
    ...(options.stateNames === null ? [] : [step(renameStates, { style: options.stateNames })]),
    step(lower, { target: options.target }),
    step(tidy, {}),
  ];
}

/** A model between two passes as something that runs: float states, operators with their functions, names kept. */
export function executableRecipe(): Step[] {
  return [step(quantizeState, { format: "f32", scale: "dsq", requantize: "call" }), step(lower, { target: "mambac" })];
}
