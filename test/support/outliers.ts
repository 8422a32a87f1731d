/**
 * Outlier channels in the activations of a model whose outputs stay as they are.
 *
 * Trained models of billions of parameters have a few channels tens of times larger than the rest; small ones have none.
 * Smoothing run backwards makes them: chosen channels of the input of in_proj and out_proj grow through the gain of their
 * norm (Mamba-1: through the gate), and the rows of the weight that reads them shrink. Where no norm is in front of out_proj, a
 * factor is multiplied in.
 */

import { alignLinears } from "../../passes/align-linears.js";
import { smoothQuant } from "../../passes/smooth-quant.js";
import { type Model, makeNode } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import { GraphEdit } from "../../src/rewrite/edit.js";
import { definePass, type Pass } from "../../src/rewrite/pass.js";
import { type Step, step } from "../../src/rewrite/pipeline.js";
import { reweight } from "../../src/rewrite/reweight.js";
import type { LinearRole } from "../../src/rewrite/sites.js";
import { sitesOf } from "../../src/rewrite/sites.js";
import { smoothableInputs } from "../../src/rewrite/smoothing.js";
import { scaledWeight } from "../../src/rewrite/weights.js";
import { Random } from "../../src/support/random.js";
import { linearsOf } from "./exact-steps.js";

export interface OutlierOptions {
  readonly seed: number;
  /** Share of the channels of each activation; at least one channel. */
  readonly share: number;
  /** Bounds of the factors. */
  readonly low: number;
  readonly high: number;
}

export const OUTLIERS: OutlierOptions = { seed: 1, share: 1 / 64, low: 30, high: 100 };

const ROLES: ReadonlySet<LinearRole> = new Set<LinearRole>(["in_proj", "out_proj"]);

/** Factors of the channels of an activation: `low` to `high` for the chosen, 1 for the others. */
export function outlierFactors(value: string, channels: number, options: OutlierOptions): Float64Array {
  const random = new Random(options.seed).split(value);
  const factors = new Float64Array(channels).fill(1);
  const count = Math.max(1, Math.round(channels * options.share));
  for (let i = 0; i < count; i++) {
    factors[random.integer(channels)] = options.low * (options.high / options.low) ** random.uniform();
  }
  return factors;
}

/** Needs aligned projections; leaves the function of the model as it is. */
export const injectOutliers: Pass<OutlierOptions> = definePass<OutlierOptions>({
  name: "inject-outliers",
  summary: "enlarge a few channels in front of in_proj and out_proj, and undo it in their weights",
  exactness: "real-exact",
  requires: ["linears-aligned"],
  establishes: [],
  invalidates: [],
  async run(model, options, context) {
    const widths = new Map(linearsOf(model).map((site) => [site.input, site.inFeatures]));
    const factorsOf = (value: string): Float64Array => outlierFactors(value, widths.get(value) ?? 0, options);
    const smoothed = new Set(smoothableInputs(model, ROLES));
    const missed = sitesOf(model).blocks.filter(({ outProj }) => outProj !== null && !smoothed.has(outProj.input));
    const grown = await smoothQuant.run(
      model,
      { alpha: 1, roles: ROLES, channelAbsMax: (value) => factorsOf(value).map((factor) => 1 / factor) },
      { ...context, report: () => undefined },
    );
    const rest = multiplied(grown.model, new Set(missed.map(({ layer }) => layer)), factorsOf);
    return { model: rest.model, changed: grown.changed + rest.changed };
  },
});

/** A factor in front of out_proj in layers where smoothing cannot reach it. */
function multiplied(
  model: Model,
  layers: ReadonlySet<string>,
  factorsOf: (value: string) => Float64Array,
): { readonly model: Model; readonly changed: number } {
  const edit = new GraphEdit(model.graph);
  let changed = 0;
  for (const { outProj, layer } of sitesOf(model).blocks) {
    const weight = model.graph.initializers.get(outProj?.weight ?? "");
    if (outProj === null || weight === undefined || !layers.has(layer)) continue;
    const factors = factorsOf(outProj.input);
    const [name, output] = [edit.unused(`${outProj.input}.factor`), edit.unused(`${outProj.input}.grown`)];
    edit.addInitializers(new Map([[name, f32Tensor([factors.length], factors)]]));
    edit.addNodes([makeNode("Mul", [outProj.input, name], [output])]);
    const inverse = factors.map((factor) => 1 / factor);
    reweight(edit, outProj, "outliers", scaledWeight(weight, inverse, null), output);
    changed += 1;
  }
  return { model: changed === 0 ? model : { ...model, graph: edit.commit() }, changed };
}

/** The steps of a recipe with outliers put in once states are complete, before anything is folded or rounded. */
export function withOutliers(steps: readonly Step[], options: OutlierOptions = OUTLIERS): Step[] {
  const at = steps.findIndex(({ name }) => name === "complete-states") + 1;
  return [...steps.slice(0, at), step(alignLinears, {}), step(injectOutliers, options), ...steps.slice(at)];
}
