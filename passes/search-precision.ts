/**
 * search-precision: rounds each layer's weights to the precision it can bear, under a budget of bytes or of loss.
 *
 * Papers: the per-block precision of Quamba2 (W4AX, there by evolutionary search); mixed precision by sensitivity (HAWQ).
 * Algebra: the sensitivity of a layer to a scheme is the loss of the model with only that layer rounded to it, less the
 * loss of the model as it is. Sensitivities add up; the best sum under the budget is found exactly
 * (`src/quant/precision-mix.ts`). Rounding is to nearest. What measures the loss is given from outside, so the pass itself
 * runs nothing; it is asked once for the model and once for every layer and scheme. Layers that no projection has a scheme
 * for stay float.
 * Refuses: budgets that no mix meets (exit 3), and losses that are not finite (exit 5).
 *
 *     before   layers.0: W; layers.1: W
 *     after    layers.0: DequantizeLinear(i8); layers.1: DequantizeLinear(i4)
 */

import type { Model } from "../src/ir/graph.js";
import { elementCount } from "../src/ir/types.js";
import { storedBits } from "../src/quant/packing.js";
import { choosePrecisions, type PrecisionBudget, type PrecisionCost } from "../src/quant/precision-mix.js";
import { roundToNearest } from "../src/quant/round-nearest.js";
import { scaleLayout } from "../src/quant/scale-layout.js";
import type { WeightScheme } from "../src/quant/scheme.js";
import { GraphEdit } from "../src/rewrite/edit.js";
import { definePass, type Pass } from "../src/rewrite/pass.js";
import { replaceWeight } from "../src/rewrite/rounded-weight.js";
import type { Sites } from "../src/rewrite/sites.js";
import { type LinearSite, sitesOf } from "../src/rewrite/sites.js";
import { weightValues } from "../src/rewrite/weights.js";
import { EXIT, MambacError } from "../src/support/errors.js";

/** One precision for whole layers. */
export interface PrecisionCandidate {
  /** What remarks call it. */
  readonly name: string;
  /** The scheme of a projection, or null to leave it float. */
  readonly schemeFor: (site: LinearSite) => WeightScheme | null;
}

export interface SearchPrecisionOptions {
  readonly candidates: readonly PrecisionCandidate[];
  /** Bytes of the projections of all layers together, or loss above that of the model as it is. */
  readonly budget: PrecisionBudget;
  /** The loss of a model, such as bits per byte on held-out text. */
  readonly measure: (model: Model) => Promise<number>;
}

export const searchPrecision: Pass<SearchPrecisionOptions> = definePass({
  name: "search-precision",
  summary: "round each layer to the precision it can bear, under a budget of bytes or loss",
  exactness: "lossy",
  requires: ["linears-aligned"],
  establishes: ["weights-rounded"],
  invalidates: [],
  async run(model, { candidates, budget, measure }, context) {
    const sites = sitesOf(model);
    const layers = layersOf(sites, candidates);
    const base = await finiteLoss(measure, model, "the model before rounding");
    const costs: PrecisionCost[][] = [];
    for (const [layer, members] of layers) {
      const row: PrecisionCost[] = [];
      for (const { name, schemeFor } of candidates) {
        const schemes = schemesOf(members, schemeFor);
        const loss =
          schemes.size === 0
            ? 0
            : (await finiteLoss(measure, rounded(model, sites, schemes), `${layer} as ${name}`)) - base;
        row.push({ bytes: bytesOf(members, schemes), loss });
      }
      costs.push(row);
    }
    const chosen = choosePrecisions(costs, budget);
    if (chosen === null) throw beyondBudget(costs, budget);
    const schemes = new Map<LinearSite, WeightScheme>();
    [...layers].forEach(([layer, members], at) => {
      const candidate = candidates[chosen[at] ?? 0];
      const cost = costs[at]?.[chosen[at] ?? 0];
      if (candidate === undefined || cost === undefined) return;
      for (const [site, scheme] of schemesOf(members, candidate.schemeFor)) schemes.set(site, scheme);
      context.report({
        kind: "applied",
        code: "search-precision/choice",
        where: layer,
        message: `${candidate.name}: ${cost.bytes} bytes, loss ${cost.loss.toPrecision(3)}`,
      });
    });
    return { model: schemes.size === 0 ? model : rounded(model, sites, schemes), changed: schemes.size };
  },
});

/** Projections by layer, those outside layers by role; only what some candidate rounds. */
function layersOf(sites: Sites, candidates: readonly PrecisionCandidate[]): Map<string, LinearSite[]> {
  const layers = new Map<string, LinearSite[]>();
  for (const site of sites.linears) {
    if (!sites.graph.initializers.has(site.weight)) continue;
    if (candidates.every(({ schemeFor }) => schemeFor(site) === null)) continue;
    const label = site.layer === "" ? site.role : site.layer;
    layers.set(label, [...(layers.get(label) ?? []), site]);
  }
  return layers;
}

function schemesOf(
  members: readonly LinearSite[],
  schemeFor: PrecisionCandidate["schemeFor"],
): Map<LinearSite, WeightScheme> {
  return new Map(
    members.flatMap((site) => {
      const scheme = schemeFor(site);
      return scheme === null ? [] : [[site, scheme] as const];
    }),
  );
}

/** Bytes of codes, scales and zero points, and of what stays float32. */
function bytesOf(members: readonly LinearSite[], schemes: ReadonlyMap<LinearSite, WeightScheme>): number {
  return members.reduce((sum, site) => {
    const shape = [site.inFeatures, site.outFeatures];
    const scheme = schemes.get(site);
    if (scheme === undefined) return sum + 4 * elementCount(shape);
    const bits = storedBits(scheme.bits);
    const { count } = scaleLayout(shape, scheme.granularity);
    const zeros = scheme.zero.kind === "asymmetric" ? Math.ceil((count * bits) / 8) : 0;
    return sum + Math.ceil((elementCount(shape) * bits) / 8) + count * (scheme.scaleType === "f16" ? 2 : 4) + zeros;
  }, 0);
}

function rounded(model: Model, sites: Sites, schemes: ReadonlyMap<LinearSite, WeightScheme>): Model {
  const edit = new GraphEdit(model.graph);
  for (const [site, scheme] of schemes) {
    const tensor = sites.graph.initializers.get(site.weight);
    if (tensor === undefined) continue;
    replaceWeight(edit, site, scheme, () =>
      roundToNearest({ label: site.weight, shape: tensor.shape, data: weightValues(tensor) }, scheme),
    );
  }
  return { ...model, graph: edit.commit() };
}

async function finiteLoss(measure: SearchPrecisionOptions["measure"], model: Model, what: string): Promise<number> {
  const loss = await measure(model);
  if (Number.isFinite(loss)) return loss;
  throw new MambacError(
    "search-precision/loss",
    `the loss of ${what} is ${loss}: the model or the data to measure it on are broken`,
    EXIT.calibration,
  );
}

function beyondBudget(costs: readonly (readonly PrecisionCost[])[], { kind, most }: PrecisionBudget): MambacError {
  const least = costs.reduce((sum, row) => sum + Math.min(...row.map((cost) => cost[kind])), 0);
  return new MambacError(
    "search-precision/budget",
    `no mix of the given precisions keeps to ${most} ${kind === "bytes" ? "bytes" : "of loss"}: the least is ${least}; ` +
      `raise the budget or offer ${kind === "bytes" ? "fewer" : "more"} bits`,
    EXIT.belowGate,
  );
}
