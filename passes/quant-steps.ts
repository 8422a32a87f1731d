/**
 * The passes of a quantization recipe, in their order: gains into weights before the stream is rotated, smoothing after it
 * (absorbing a gain would undo it), the online rotation of out_proj after its smoothing, rounding on the transformed
 * weights, activation ranges last, on the rounded graph.
 */

import type { Model } from "../src/ir/graph.js";
import { hadamardRotation } from "../src/linalg/hadamard.js";
import { kltRotation } from "../src/linalg/klt.js";
import { type Gemm, matrixOf } from "../src/linalg/matrix.js";
import type { StatRequest } from "../src/quant/calibration.js";
import { parseWeightScheme, type WeightScheme } from "../src/quant/scheme.js";
import type { Statistics } from "../src/quant/statistics.js";
import { calibratedStep, type Step, step } from "../src/rewrite/pipeline.js";
import type { Rotation } from "../src/rewrite/rotation.js";
import { roundedInputs } from "../src/rewrite/rounded-weight.js";
import { type LinearRole, type LinearSite, sitesOf } from "../src/rewrite/sites.js";
import { smoothableInputs } from "../src/rewrite/smoothing.js";
import { Random } from "../src/support/random.js";
import { absorbNormGain } from "./absorb-norm-gain.js";
import { alignLinears } from "./align-linears.js";
import { type ClipPercentileOptions, clipPercentile, clippedInputs } from "./clip-percentile.js";
import { emitNbits } from "./emit-nbits.js";
import { insertQdq } from "./insert-qdq.js";
import {
  type ActivationTiming,
  lastRule,
  type QuantRecipe,
  type RoundingMethod,
  type WeightRule,
} from "./quant-recipes.js";
import { rotateDt } from "./rotate-dt.js";
import { rotateOutput } from "./rotate-output.js";
import { rotateResidual } from "./rotate-residual.js";
import { rotateState } from "./rotate-state.js";
import { roundClipped } from "./round-clipped.js";
import { roundEmbedding } from "./round-embedding.js";
import { roundGptq } from "./round-gptq.js";
import { roundNearest } from "./round-nearest.js";
import { roundTanh } from "./round-tanh.js";
import { smoothAwq } from "./smooth-awq.js";
import { smoothQuant } from "./smooth-quant.js";
import { sortCluster, sortedInputs } from "./sort-cluster.js";
import { tidy } from "./tidy.js";

const channelAbsMax = (value: string): StatRequest => ({ value, kind: "absmax", perChannel: true });
const channelMeanAbs = (value: string): StatRequest => ({ value, kind: "meanabs", perChannel: true });
const secondMoment = (value: string): StatRequest => ({ value, kind: "second-moment", perChannel: true });

/** What a search of alpha tries beside no smoothing. */
const SEARCHED_ALPHAS: readonly number[] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8];

/** Everything between complete states and the choice of the state format. */
export function quantSteps(recipe: QuantRecipe): Step[] {
  if (isFloat(recipe)) return [];
  return [
    step(alignLinears, {}),
    step(tidy, {}),
    ...sortSteps(recipe),
    ...residualSteps(recipe),
    ...smoothSteps(recipe),
    ...(recipe.rotate.output ? [step(rotateOutput, {})] : []),
    ...dtSteps(recipe),
    ...(recipe.rotate.state ? [step(rotateState, {})] : []),
    ...roundingSteps(recipe),
    ...scanInputSteps(recipe),
    ...activationSteps(recipe),
    ...lowBitSteps(recipe),
    ...(recipe.embedding === null ? [] : [step(roundEmbedding, { bits: recipe.embedding === "i4" ? 4 : 8 })]),
  ];
}

/** Does the recipe leave weights and activations as they are? */
function isFloat(recipe: QuantRecipe): boolean {
  const { weights, activations, smooth, embedding, scanInput } = recipe;
  const rounds = weights.length > 0 || activations.length > 0 || embedding !== null || scanInput !== null;
  return !rounds && smooth === null && !rotates(recipe);
}

function rotates({ rotate }: QuantRecipe): boolean {
  return rotate.residual !== "none" || rotate.output || rotate.dt !== "none" || rotate.state;
}

function residualSteps({ rotate }: QuantRecipe): Step[] {
  if (rotate.residual === "none") return [];
  if (rotate.residual === "hadamard") {
    const rotationFor = (size: number): Rotation => ({
      kind: "hadamard",
      rotation: hadamardRotation(size, new Random(0).split("rotate-residual")),
    });
    return [step(absorbNormGain, {}), step(rotateResidual, { rotationFor })];
  }
  // K from the normalised input of the first block, one matrix for the whole stream.
  const first = (model: Model): string | null => sitesOf(model).blocks[0]?.inProj?.input ?? null;
  let site: string | null = null;
  return [
    step(absorbNormGain, {}),
    calibratedStep(
      rotateResidual,
      (model) => {
        site = first(model);
        return site === null ? [] : [secondMoment(site)];
      },
      async (statistics, gemm) => {
        const rotation = site === null ? null : await kltOf(statistics, site, gemm);
        return { rotationFor: (size) => rotation ?? { kind: "hadamard", rotation: hadamardRotation(size) } };
      },
    ),
  ];
}

async function kltOf(statistics: Statistics, value: string, gemm: Gemm): Promise<Rotation> {
  const { size, matrix, count } = statistics.secondMoment(value);
  const { matrix: rotation } = await kltRotation(matrixOf(size, size, matrix), count, hadamardRotation(size), gemm);
  return { kind: "dense", size, matrix: rotation.data };
}

function smoothSteps(recipe: QuantRecipe): Step[] {
  const { smooth } = recipe;
  if (smooth === null) return [];
  const roles = new Set<LinearRole>(smooth.roles);
  const schemeFor = (site: LinearSite): WeightScheme | null => schemeOf(recipe, site, null);
  const inputs = (model: Model): string[] => smoothableInputs(model, roles);
  switch (smooth.method ?? "fixed") {
    case "awq":
      return [
        calibratedStep(
          smoothAwq,
          (model) => inputs(model).flatMap((value) => [secondMoment(value), channelMeanAbs(value)]),
          (statistics) => ({
            roles,
            schemeFor,
            channelMeanAbs: (value) => statistics.channelMeanAbs(value),
            secondMoment: (value) => statistics.secondMoment(value),
          }),
        ),
      ];
    case "search":
      return [
        calibratedStep(
          smoothQuant,
          (model) => inputs(model).flatMap((value) => [secondMoment(value), channelAbsMax(value)]),
          (statistics) => ({
            alpha: {
              alphas: SEARCHED_ALPHAS,
              schemeFor,
              secondMoment: (value: string) => statistics.secondMoment(value),
            },
            roles,
            channelAbsMax: (value) => statistics.channelAbsMax(value),
          }),
        ),
      ];
    default:
      return [
        calibratedStep(
          smoothQuant,
          (model) => inputs(model).map(channelAbsMax),
          (statistics) => ({ alpha: smooth.alpha, roles, channelAbsMax: (value) => statistics.channelAbsMax(value) }),
        ),
      ];
  }
}

/** Sorting comes before anything rotates what is sorted. */
function sortSteps({ scanInput }: QuantRecipe): Step[] {
  if (scanInput?.clusters !== true) return [];
  return [
    calibratedStep(
      sortCluster,
      (model) => sortedInputs(sitesOf(model)).map(channelMeanAbs),
      (statistics) => ({ channelSizes: (value) => statistics.channelMeanAbs(value) }),
    ),
  ];
}

function scanInputSteps({ scanInput }: QuantRecipe): Step[] {
  if (scanInput === null) return [];
  const { share, clusters } = scanInput;
  return [
    calibratedStep(
      clipPercentile,
      (model) =>
        clippedInputs(model, clusters ? "cluster" : "tensor").map((value) =>
          clusters ? channelAbsMax(value) : rangeRequest(value, share),
        ),
      (statistics): ClipPercentileOptions => ({
        range: clusters
          ? { of: "cluster", peaks: (value: string) => statistics.channelAbsMax(value) }
          : { of: "tensor", peak: (value: string) => rangeOf(statistics, value, share) },
      }),
    ),
  ];
}

const rangeRequest = (value: string, share: number): StatRequest => ({
  value,
  kind: share === 1 ? "absmax" : "percentile",
  perChannel: false,
});

function rangeOf(statistics: Statistics, value: string, share: number): number {
  return share === 1 ? statistics.absMax(value) : statistics.percentile(value, share);
}

function dtSteps({ rotate }: QuantRecipe): Step[] {
  if (rotate.dt === "none") return [];
  if (rotate.dt === "hadamard") return [step(rotateDt, { rotationFor: null })];
  let inputs: string[] = [];
  return [
    calibratedStep(
      rotateDt,
      (model) => {
        inputs = sitesOf(model).blocks.flatMap(({ dtProj }) => dtProj?.input ?? []);
        return inputs.map(secondMoment);
      },
      async (statistics, gemm) => {
        const rotations = new Map<string, Rotation>();
        for (const value of inputs) rotations.set(value, await kltOf(statistics, value, gemm));
        return {
          rotationFor: (activation, rank) =>
            rotations.get(activation) ?? { kind: "hadamard", rotation: hadamardRotation(rank) },
        };
      },
    ),
  ];
}

/** How a projection is rounded by a method, or by any of them (null). */
function schemeOf(recipe: QuantRecipe, site: LinearSite, method: RoundingMethod | null): WeightScheme | null {
  const rule = lastRule(recipe.weights, site);
  if (rule === undefined || rule.scheme === null || (method !== null && rule.method !== method)) return null;
  const scheme = parseWeightScheme(rule.scheme);
  // A projection with fewer inputs than a group has is one group: one scale an output channel.
  const { granularity } = scheme;
  return granularity.kind === "group" && granularity.size >= site.inFeatures
    ? { ...scheme, granularity: { kind: "channel", axis: 1 } }
    : scheme;
}

function roundingSteps(recipe: QuantRecipe): Step[] {
  if (recipe.weights.length === 0) return [];
  const uses = (method: RoundingMethod): boolean => recipe.weights.some((rule) => rule.method === method);
  const calibrated = (pass: typeof roundGptq | typeof roundClipped, method: RoundingMethod): Step => {
    const schemeFor = (site: LinearSite): WeightScheme | null => schemeOf(recipe, site, method);
    return calibratedStep(
      pass,
      (model) => roundedInputs(model, schemeFor).map(secondMoment),
      (statistics) => ({ schemeFor, secondMoment: (value: string) => statistics.secondMoment(value) }),
    );
  };
  return [
    ...(uses("gptq") ? [calibrated(roundGptq, "gptq")] : []),
    ...(uses("clipped") ? [calibrated(roundClipped, "clipped")] : []),
    step(roundNearest, { schemeFor: (site) => schemeOf(recipe, site, "nearest") }),
    ...(uses("tanh") ? [step(roundTanh, { includes: (site) => schemeOf(recipe, site, "tanh") !== null })] : []),
  ];
}

/** Of one activation with several readers the first reader's rule decides, as one pair of nodes serves them all. */
function activationSteps({ activations, weights }: QuantRecipe): Step[] {
  const roles = new Set<LinearRole>(activations.flatMap((rule) => rule.roles));
  const uses = (timing: ActivationTiming): boolean => activations.some((rule) => rule.timing === timing);
  const has = (site: LinearSite, timing: ActivationTiming): boolean => lastRule(activations, site)?.timing === timing;
  const shares = new Map<string, number>();
  return [
    ...(uses("static")
      ? [
          calibratedStep(
            insertQdq,
            (model) => {
              shares.clear();
              for (const site of sitesOf(model).linears) {
                const rule = lastRule(activations, site);
                if (rule?.timing === "static" && !shares.has(site.input)) shares.set(site.input, rule.share);
              }
              return [...shares].map(([value, share]) => rangeRequest(value, share));
            },
            (statistics) => ({
              roles,
              includes: (site: LinearSite) => has(site, "static"),
              timing: "static" as const,
              range: (value: string) => rangeOf(statistics, value, shares.get(value) ?? 1),
            }),
          ),
        ]
      : []),
    ...(uses("dynamic")
      ? [
          step(insertQdq, {
            roles,
            includes: (site: LinearSite) => has(site, "dynamic") && !isLowBit(weights, site),
            timing: "dynamic" as const,
            range: () => 0,
          }),
        ]
      : []),
  ];
}

function isLowBit(weights: readonly WeightRule[], site: LinearSite): boolean {
  return lastRule(weights, site)?.scheme?.startsWith("i4") === true;
}

/**
 * 4-bit projections say in the file what becomes of their activations: float, or 8 bits with a scale for each block that the
 * operator measures itself.
 */
function lowBitSteps({ weights, activations }: QuantRecipe): Step[] {
  if (!weights.some(({ scheme }) => scheme?.startsWith("i4") === true)) return [];
  const timing = (site: LinearSite): ActivationTiming => lastRule(activations, site)?.timing ?? "float";
  const emit = (accuracyLevel: 1 | 4, of: ActivationTiming): Step =>
    step(emitNbits, { accuracyLevel, includes: (site) => isLowBit(weights, site) && timing(site) === of });
  return [emit(1, "float"), ...(activations.some((rule) => rule.timing === "dynamic") ? [emit(4, "dynamic")] : [])];
}
