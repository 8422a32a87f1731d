/**
 * search-precision: decides how many bits each projection, or each layer, gets under a budget, from what rounding it costs.
 *
 * Papers: the per-block precision of Quamba2 (W4AX, there by evolutionary search); mixed precision by sensitivity (HAWQ).
 * Algebra: the sensitivity of a part to a precision is the divergence of the model with only that part quantized from the
 * model as it is. Sensitivities are taken to add up; the best sum under the budget is found exactly
 * (`src/quant/precision-mix.ts`). What quantizes a part is given from outside, and is what will quantize it for good; the
 * pass itself changes nothing and hands the decision on. It measures once for every part and precision, and the mix once.
 * Projections that no precision rounds stay as they are.
 * Refuses: budgets that no mix meets (exit 3), and divergences that are not finite (exit 5).
 *
 *     before   layers.0 in_proj: W; layers.0 out_proj: W
 *     after    the same; decided: layers.0 in_proj w8, layers.0 out_proj w4
 */

import type { Model } from "../src/ir/graph.js";
import { elementCount } from "../src/ir/types.js";
import { storedBits } from "../src/quant/packing.js";
import { choosePrecisions, type PrecisionCost } from "../src/quant/precision-mix.js";
import { scaleLayout } from "../src/quant/scale-layout.js";
import type { WeightScheme } from "../src/quant/scheme.js";
import { definePass, type Pass, type PassContext } from "../src/rewrite/pass.js";
import { type LinearRole, type LinearSite, type Sites, sitesOf } from "../src/rewrite/sites.js";
import { EXIT, invariant, MambacError } from "../src/support/errors.js";

/** What a projection may get. */
export interface Precision {
  /** What remarks and decisions call it. */
  readonly name: string;
  /** The scheme of a projection, or null to leave it float. */
  readonly schemeFor: (site: LinearSite) => WeightScheme | null;
}

/** The decision about the projections of one role in one layer. */
export interface PrecisionChoice {
  readonly role: LinearRole;
  readonly layer: string;
  /** Name of a precision. */
  readonly precision: string;
}

export const BUDGET_KINDS = ["bits", "bytes", "divergence", "raised"] as const;

/**
 * Least divergence within so many `bits` a weight (scales included) or `bytes` of all projections, or with at most a share
 * of the weights `raised` above the first precision; or fewest bytes within a sum of `divergence`.
 */
export interface SearchBudget {
  readonly kind: (typeof BUDGET_KINDS)[number];
  readonly most: number;
}

export interface SearchPrecisionOptions {
  readonly precisions: readonly Precision[];
  /** Which projections are searched. */
  readonly includes: (site: LinearSite) => boolean;
  /** What is decided about at a time. */
  readonly each: "projection" | "layer";
  readonly budget: SearchBudget;
  /** Sequences of calibration data to measure on. */
  readonly sequences: number;
  /** The model with the projections of these choices quantized, and no others. */
  readonly quantize: (
    model: Model,
    choices: readonly PrecisionChoice[],
    tools: Pick<PassContext, "execute" | "gemm">,
  ) => Promise<Model>;
  /** Takes the decision. */
  readonly decide: (choices: readonly PrecisionChoice[]) => void;
}

/** Projections that get one precision. */
interface Part {
  readonly label: string;
  readonly members: readonly LinearSite[];
}

interface Trial {
  readonly precision: Precision;
  readonly choices: readonly PrecisionChoice[];
  readonly bytes: number;
  readonly divergence: number;
}

export const searchPrecision: Pass<SearchPrecisionOptions> = definePass({
  name: "search-precision",
  summary: "decide the precision of each projection under a budget, from measured sensitivities",
  exactness: "bitwise",
  requires: ["linears-aligned"],
  establishes: [],
  invalidates: [],
  async run(model, options, context) {
    const parts = partsOf(sitesOf(model), options);
    if (parts.length === 0) return { model, changed: 0 };
    const measure = await measurement(model, options, context, parts.length * options.precisions.length + 1);
    const trials: Trial[][] = [];
    for (const part of parts) {
      const row: Trial[] = [];
      for (const precision of options.precisions) row.push(await tried(part, precision, measure));
      trials.push(row);
    }
    const costs = parts.map(({ members }, at) =>
      (trials[at] ?? []).map((trial, precision) => costOf(options.budget, members, trial, precision)),
    );
    const { kind, most } = limitOf(options.budget, parts);
    const chosen = choosePrecisions(costs, { kind, most });
    if (chosen === null) throw beyondBudget(costs, options.budget, kind, most);
    const taken = parts.map((part, at) => {
      const trial = trials[at]?.[chosen[at] ?? 0];
      invariant(trial !== undefined, `no precision for ${part.label}`);
      return { part, trial };
    });
    const choices = taken.flatMap(({ trial }) => trial.choices);
    const whole = await measure(choices, "the mix");
    for (const { part, trial } of taken) context.report(choiceRemark(part, trial));
    context.report({
      kind: "applied",
      code: "search-precision/mix",
      where: "model",
      message: mixText(taken, whole),
    });
    options.decide(choices);
    return { model, changed: choices.length };
  },
});

type Measure = (choices: readonly PrecisionChoice[], label: string) => Promise<number>;

/** Measures quantized models against the model as it is; counts for people. */
async function measurement(
  model: Model,
  options: SearchPrecisionOptions,
  context: PassContext,
  runs: number,
): Promise<Measure> {
  const from = await context.divergence(model, options.sequences);
  let run = 0;
  return async (choices, label) => {
    run += 1;
    const found = await from(await options.quantize(model, choices, context), `${label} (${run} of ${runs})`);
    if (Number.isFinite(found)) return found;
    throw new MambacError(
      "search-precision/divergence",
      `the divergence of the model with ${label} quantized is ${found}: the model or the data to measure it on are broken`,
      EXIT.calibration,
    );
  };
}

async function tried(part: Part, precision: Precision, measure: Measure): Promise<Trial> {
  const choices = part.members.map(({ role, layer }) => ({ role, layer, precision: precision.name }));
  const bytes = part.members.reduce((sum, site) => sum + bytesOf(site, precision.schemeFor(site)), 0);
  const divergence = part.members.every((site) => precision.schemeFor(site) === null)
    ? 0
    : await measure(choices, `${part.label} as ${precision.name}`);
  return { precision, choices, bytes, divergence };
}

/** Projections by layer and role, or by layer; only what some precision rounds. */
function partsOf(sites: Sites, { precisions, includes, each }: SearchPrecisionOptions): Part[] {
  const parts = new Map<string, LinearSite[]>();
  for (const site of sites.linears) {
    if (!sites.graph.initializers.has(site.weight) || !includes(site)) continue;
    if (precisions.every(({ schemeFor }) => schemeFor(site) === null)) continue;
    const label = site.layer === "" ? site.role : each === "layer" ? site.layer : `${site.layer} ${site.role}`;
    parts.set(label, [...(parts.get(label) ?? []), site]);
  }
  return [...parts].map(([label, members]) => ({ label, members }));
}

const weightsOf = (members: readonly LinearSite[]): number =>
  members.reduce((sum, { inFeatures, outFeatures }) => sum + inFeatures * outFeatures, 0);

/** What the budget counts of a precision, as the `bytes` of a mix. */
function costOf(budget: SearchBudget, members: readonly LinearSite[], trial: Trial, precision: number): PrecisionCost {
  const bytes = budget.kind === "raised" ? (precision === 0 ? 0 : weightsOf(members)) : trial.bytes;
  return { bytes, loss: trial.divergence };
}

function limitOf(
  { kind, most }: SearchBudget,
  parts: readonly Part[],
): { readonly kind: "bytes" | "loss"; readonly most: number } {
  const weights = parts.reduce((sum, { members }) => sum + weightsOf(members), 0);
  switch (kind) {
    case "bits":
      return { kind: "bytes", most: (most * weights) / 8 };
    case "raised":
      return { kind: "bytes", most: most * weights };
    case "divergence":
      return { kind: "loss", most };
    default:
      return { kind: "bytes", most };
  }
}

/** Bytes of codes, scales and zero points, or of what stays float32. */
function bytesOf({ inFeatures, outFeatures }: LinearSite, scheme: WeightScheme | null): number {
  const shape = [inFeatures, outFeatures];
  if (scheme === null) return 4 * elementCount(shape);
  const bits = storedBits(scheme.bits);
  const { count } = scaleLayout(shape, scheme.granularity);
  const zeros = scheme.zero.kind === "asymmetric" ? Math.ceil((count * bits) / 8) : 0;
  return Math.ceil((elementCount(shape) * bits) / 8) + count * (scheme.scaleType === "f16" ? 2 : 4) + zeros;
}

function choiceRemark({ label }: Part, { precision, bytes, divergence }: Trial): Parameters<PassContext["report"]>[0] {
  return {
    kind: "applied",
    code: "search-precision/choice",
    where: label,
    message: `${precision.name}: ${bytes} bytes, divergence ${divergence.toExponential(2)} bits`,
  };
}

function mixText(taken: readonly { readonly part: Part; readonly trial: Trial }[], whole: number): string {
  const weights = taken.reduce((sum, { part }) => sum + weightsOf(part.members), 0);
  const bytes = taken.reduce((sum, { trial }) => sum + trial.bytes, 0);
  const sum = taken.reduce((total, { trial }) => total + trial.divergence, 0);
  return (
    `${((8 * bytes) / weights).toFixed(2)} bits a weight, ${bytes} bytes; ` +
    `divergence ${whole.toExponential(2)} bits, ${sum.toExponential(2)} as the sum of its parts`
  );
}

function beyondBudget(
  costs: readonly (readonly PrecisionCost[])[],
  budget: SearchBudget,
  kind: "bytes" | "loss",
  most: number,
): MambacError {
  const least = costs.reduce((sum, row) => sum + Math.min(...row.map((cost) => cost[kind])), 0);
  // In the budget's own unit.
  const best = kind === "loss" ? least : (least * budget.most) / most;
  return new MambacError(
    "search-precision/budget",
    `no mix of the given precisions keeps to ${budget.kind} ${budget.most}: the least is ${Number(best.toPrecision(6))}; ` +
      `raise the budget or offer ${kind === "bytes" ? "fewer" : "more"} bits`,
    EXIT.belowGate,
  );
}
