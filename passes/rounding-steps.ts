/**
 * The last passes of a quantization recipe: roundings of weights, then what becomes of activations. The rules are asked for
 * while the passes run, as a search may decide them on the way; which passes there are depends on every rule there may be.
 */

import type { StatRequest } from "../src/quant/calibration.js";
import { parseWeightScheme, type WeightScheme } from "../src/quant/scheme.js";
import type { Statistics } from "../src/quant/statistics.js";
import { calibratedStep, type Step, step } from "../src/rewrite/pipeline.js";
import type { ValueRange } from "../src/rewrite/qdq-pair.js";
import { profileRules, type QdqProfile } from "../src/rewrite/qdq-profile.js";
import { roundedInputs } from "../src/rewrite/rounded-weight.js";
import type { LinearRole, LinearSite } from "../src/rewrite/sites.js";
import { emitNbits } from "./emit-nbits.js";
import { insertQdq, quantizedValues } from "./insert-qdq.js";
import type { PrecisionRules } from "./precision-rules.js";
import { type ActivationTiming, lastRule, type RoundingMethod, type WeightRule } from "./quant-recipes.js";
import { roundClipped } from "./round-clipped.js";
import { roundGptq } from "./round-gptq.js";
import { roundNearest } from "./round-nearest.js";
import { roundTanh } from "./round-tanh.js";

/** Rules that may still change, and all that there may be. */
export interface RulesInPlay {
  readonly now: () => PrecisionRules;
  readonly possible: PrecisionRules;
}

/** Rules that do not change. */
export function settled(rules: PrecisionRules): RulesInPlay {
  return { now: () => rules, possible: rules };
}

export const secondMoment = (value: string): StatRequest => ({ value, kind: "second-moment", perChannel: true });

export const rangeRequest = (value: string, share: number): StatRequest => ({
  value,
  kind: share === 1 ? "absmax" : "percentile",
  perChannel: false,
});

export function rangeOf(statistics: Statistics, value: string, share: number): number {
  return share === 1 ? statistics.absMax(value) : statistics.percentile(value, share);
}

function spanRequests(value: string, share: number, symmetric: boolean): StatRequest[] {
  const peaks = share === 1 && !symmetric ? [] : [rangeRequest(value, share)];
  return symmetric ? peaks : [...peaks, { value, kind: "minmax", perChannel: false }];
}

/** Magnitude for both signs, or both ends; a share below 1 cuts either end that is beyond it. */
function spanOf(statistics: Statistics, value: string, share: number, symmetric: boolean): number | ValueRange {
  if (symmetric) return rangeOf(statistics, value, share);
  const { low, high } = statistics.range(value);
  const peak = share === 1 ? Number.POSITIVE_INFINITY : statistics.percentile(value, share);
  return { low: Math.max(low, -peak), high: Math.min(high, peak) };
}

/** How a projection is rounded by a method, or by any of them (null). */
export function schemeOf(
  { weights }: PrecisionRules,
  site: LinearSite,
  method: RoundingMethod | null,
): WeightScheme | null {
  const rule = lastRule(weights, site);
  if (rule === undefined || rule.scheme === null || (method !== null && rule.method !== method)) return null;
  const scheme = parseWeightScheme(rule.scheme);
  // A projection with fewer inputs than a group has is one group: one scale an output channel.
  const { granularity } = scheme;
  return granularity.kind === "group" && granularity.size >= site.inFeatures
    ? { ...scheme, granularity: { kind: "channel", axis: 1 } }
    : scheme;
}

/** Roundings of weights, each projection by the last rule that holds it. */
export function roundingSteps({ now, possible }: RulesInPlay): Step[] {
  if (possible.weights.length === 0) return [];
  const uses = (method: RoundingMethod): boolean => possible.weights.some((rule) => rule.method === method);
  const calibrated = (pass: typeof roundGptq | typeof roundClipped, method: RoundingMethod): Step => {
    const schemeFor = (site: LinearSite): WeightScheme | null => schemeOf(now(), site, method);
    return calibratedStep(
      pass,
      (model) => roundedInputs(model, schemeFor).map(secondMoment),
      (statistics) => ({ schemeFor, secondMoment: (value: string) => statistics.secondMoment(value) }),
    );
  };
  return [
    ...(uses("gptq") ? [calibrated(roundGptq, "gptq")] : []),
    ...(uses("clipped") ? [calibrated(roundClipped, "clipped")] : []),
    step(roundNearest, { schemeFor: (site) => schemeOf(now(), site, "nearest") }),
    ...(uses("tanh") ? [step(roundTanh, { includes: (site) => schemeOf(now(), site, "tanh") !== null })] : []),
  ];
}

/** Of one activation with several readers the first reader's rule decides, as one pair of nodes serves them all. */
export function activationSteps({ now, possible }: RulesInPlay, profile: QdqProfile = "ort-cpu"): Step[] {
  const roles = new Set<LinearRole>(possible.activations.flatMap((rule) => rule.roles));
  const uses = (timing: ActivationTiming): boolean => possible.activations.some((rule) => rule.timing === timing);
  const has = (site: LinearSite, timing: ActivationTiming): boolean =>
    lastRule(now().activations, site)?.timing === timing;
  const shares = new Map<string, number>();
  const symmetric = profileRules(profile).activations === "i8";
  return [
    ...(uses("static")
      ? [
          calibratedStep(
            insertQdq,
            (model) => {
              shares.clear();
              for (const { value, site } of quantizedValues(model, (site) => has(site, "static"), profile)) {
                shares.set(value, lastRule(now().activations, site)?.share ?? 1);
              }
              return [...shares].flatMap(([value, share]) => spanRequests(value, share, symmetric));
            },
            (statistics) => ({
              roles,
              includes: (site: LinearSite) => has(site, "static"),
              timing: "static" as const,
              range: (value: string) => spanOf(statistics, value, shares.get(value) ?? 1, symmetric),
              profile,
            }),
          ),
        ]
      : []),
    ...(uses("dynamic")
      ? [
          step(insertQdq, {
            roles,
            includes: (site: LinearSite) => has(site, "dynamic") && !isLowBit(now().weights, site),
            timing: "dynamic" as const,
            range: () => 0,
          }),
        ]
      : []),
  ];
}

function isLowBit(weights: readonly WeightRule[], site: LinearSite): boolean {
  return isLowBitScheme(lastRule(weights, site)?.scheme ?? null);
}

function isLowBitScheme(scheme: string | null): boolean {
  return scheme !== null && parseWeightScheme(scheme).bits < 8;
}

/**
 * Projections of less than 8 bits say in the file what becomes of their activations: float, or 8 bits with a scale for each block that the
 * operator measures itself.
 */
export function lowBitSteps({ now, possible }: RulesInPlay): Step[] {
  if (!possible.weights.some(({ scheme }) => isLowBitScheme(scheme))) return [];
  const timing = (site: LinearSite): ActivationTiming => lastRule(now().activations, site)?.timing ?? "float";
  const codeBits = (site: LinearSite): 2 | 4 => {
    const { scheme } = lastRule(now().weights, site) ?? { scheme: null };
    return scheme !== null && parseWeightScheme(scheme).bits === 2 && timing(site) === "dynamic" ? 2 : 4;
  };
  const emit = (accuracyLevel: 1 | 4, of: ActivationTiming): Step => {
    const includes = (site: LinearSite): boolean => isLowBit(now().weights, site) && timing(site) === of;
    return step(emitNbits, { accuracyLevel, includes, codeBits });
  };
  return [
    emit(1, "float"),
    ...(possible.activations.some((rule) => rule.timing === "dynamic") ? [emit(4, "dynamic")] : []),
  ];
}
