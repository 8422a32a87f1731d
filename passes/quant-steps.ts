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
import type { WeightScheme } from "../src/quant/scheme.js";
import type { Statistics } from "../src/quant/statistics.js";
import { calibratedStep, type Step, step } from "../src/rewrite/pipeline.js";
import { profileRules } from "../src/rewrite/qdq-profile.js";
import type { Rotation } from "../src/rewrite/rotation.js";
import { type LinearRole, type LinearSite, sitesOf } from "../src/rewrite/sites.js";
import { smoothableInputs } from "../src/rewrite/smoothing.js";
import { Random } from "../src/support/random.js";
import { absorbNormGain } from "./absorb-norm-gain.js";
import { alignLinears } from "./align-linears.js";
import { type ClipPercentileOptions, clipPercentile, clippedInputs } from "./clip-percentile.js";
import { decidedRecipe, possibleRecipe } from "./precision-rules.js";
import { requireProfile } from "./qdq-profiles.js";
import type { QuantRecipe } from "./quant-recipes.js";
import { rotateDt } from "./rotate-dt.js";
import { rotateOutput } from "./rotate-output.js";
import { rotateResidual } from "./rotate-residual.js";
import { rotateState } from "./rotate-state.js";
import { roundEmbedding } from "./round-embedding.js";
import {
  activationSteps,
  lowBitSteps,
  type RulesInPlay,
  rangeOf,
  rangeRequest,
  roundingSteps,
  schemeOf,
  secondMoment,
} from "./rounding-steps.js";
import { searchStep } from "./search-step.js";
import { smoothAwq } from "./smooth-awq.js";
import { smoothQuant } from "./smooth-quant.js";
import { sortCluster, sortedInputs } from "./sort-cluster.js";
import { tidy } from "./tidy.js";

const channelAbsMax = (value: string): StatRequest => ({ value, kind: "absmax", perChannel: true });
const channelMeanAbs = (value: string): StatRequest => ({ value, kind: "meanabs", perChannel: true });

/** What a search of alpha tries beside no smoothing. */
const SEARCHED_ALPHAS: readonly number[] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8];

/**
 * Everything between complete states and the choice of the state format. `decided` gets the recipe once its search, if it
 * has one, is over.
 */
export function quantSteps(recipe: QuantRecipe, decided: (recipe: QuantRecipe) => void = () => undefined): Step[] {
  const possible = possibleRecipe(recipe);
  if (isFloat(possible)) return [];
  requireProfile(possible);
  const profile = recipe.qdqProfile ?? "ort-cpu";
  let now = possible;
  const rules: RulesInPlay = { now: () => now, possible };
  return [
    step(alignLinears, {}),
    step(tidy, {}),
    ...sortSteps(recipe),
    ...residualSteps(recipe),
    ...smoothSteps(possible),
    ...(recipe.rotate.output ? [step(rotateOutput, {})] : []),
    ...dtSteps(recipe),
    ...(recipe.rotate.state ? [step(rotateState, {})] : []),
    ...(recipe.search === undefined
      ? []
      : [
          searchStep(recipe.search, (choices) => {
            now = decidedRecipe(recipe, choices);
            decided(now);
          }),
        ]),
    ...roundingSteps(rules),
    ...scanInputSteps(recipe),
    ...activationSteps(rules, profile),
    ...(profileRules(profile).ownOperators ? lowBitSteps(rules) : []),
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
