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
import { viewGraph } from "../src/rewrite/axes.js";
import { calibratedStep, type Step, step } from "../src/rewrite/pipeline.js";
import type { Rotation } from "../src/rewrite/rotation.js";
import { roundedInputs } from "../src/rewrite/rounded-weight.js";
import { type LinearRole, type LinearSite, Sites } from "../src/rewrite/sites.js";
import { smoothableInputs } from "../src/rewrite/smoothing.js";
import { mainOpset } from "../src/rewrite/trials.js";
import { Random } from "../src/support/random.js";
import { absorbNormGain } from "./absorb-norm-gain.js";
import { alignLinears } from "./align-linears.js";
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
import { roundGptq } from "./round-gptq.js";
import { roundNearest } from "./round-nearest.js";
import { smoothQuant } from "./smooth-quant.js";
import { tidy } from "./tidy.js";

const channelAbsMax = (value: string): StatRequest => ({ value, kind: "absmax", perChannel: true });
const secondMoment = (value: string): StatRequest => ({ value, kind: "second-moment", perChannel: true });

/** Everything between complete states and the choice of the state format. */
export function quantSteps(recipe: QuantRecipe): Step[] {
  if (recipe.weights.length === 0 && recipe.activations.length === 0 && recipe.smooth === null && !rotates(recipe))
    return [];
  return [
    step(alignLinears, {}),
    step(tidy, {}),
    ...residualSteps(recipe),
    ...smoothSteps(recipe),
    ...(recipe.rotate.output ? [step(rotateOutput, {})] : []),
    ...dtSteps(recipe),
    ...(recipe.rotate.state ? [step(rotateState, {})] : []),
    ...roundingSteps(recipe),
    ...activationSteps(recipe),
    ...lowBitSteps(recipe),
  ];
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

function smoothSteps({ smooth }: QuantRecipe): Step[] {
  if (smooth === null) return [];
  const roles = new Set<LinearRole>(smooth.roles);
  return [
    calibratedStep(
      smoothQuant,
      (model) => smoothableInputs(model, roles).map(channelAbsMax),
      (statistics) => ({ alpha: smooth.alpha, roles, channelAbsMax: (value) => statistics.channelAbsMax(value) }),
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

function schemeOf(recipe: QuantRecipe, site: LinearSite, method: RoundingMethod): WeightScheme | null {
  const rule = lastRule(recipe.weights, site);
  if (rule === undefined || rule.scheme === null || rule.method !== method) return null;
  const scheme = parseWeightScheme(rule.scheme);
  // A projection with fewer inputs than a group has is one group: one scale an output channel.
  const { granularity } = scheme;
  return granularity.kind === "group" && granularity.size >= site.inFeatures
    ? { ...scheme, granularity: { kind: "channel", axis: 1 } }
    : scheme;
}

function roundingSteps(recipe: QuantRecipe): Step[] {
  if (recipe.weights.length === 0) return [];
  const gptqScheme = (site: LinearSite): WeightScheme | null => schemeOf(recipe, site, "gptq");
  const usesGptq = recipe.weights.some(({ method }) => method === "gptq");
  return [
    ...(usesGptq
      ? [
          calibratedStep(
            roundGptq,
            (model) => roundedInputs(model, gptqScheme).map(secondMoment),
            (statistics) => ({
              schemeFor: gptqScheme,
              secondMoment: (value: string) => statistics.secondMoment(value),
            }),
          ),
        ]
      : []),
    step(roundNearest, { schemeFor: (site) => schemeOf(recipe, site, "nearest") }),
  ];
}

/** Of one activation with several readers the first reader's rule decides, as one pair of nodes serves them all. */
function activationSteps({ activations, weights }: QuantRecipe): Step[] {
  const roles = new Set<LinearRole>(activations.flatMap((rule) => rule.roles));
  const uses = (timing: ActivationTiming): boolean => activations.some((rule) => rule.timing === timing);
  const has = (site: LinearSite, timing: ActivationTiming): boolean => lastRule(activations, site)?.timing === timing;
  const shares = new Map<string, number>();
  const request = (value: string, share: number): StatRequest => ({
    value,
    kind: share === 1 ? "absmax" : "percentile",
    perChannel: false,
  });
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
              return [...shares].map(([value, share]) => request(value, share));
            },
            (statistics) => ({
              roles,
              includes: (site: LinearSite) => has(site, "static"),
              timing: "static" as const,
              range: (value: string) => {
                const share = shares.get(value) ?? 1;
                return share === 1 ? statistics.absMax(value) : statistics.percentile(value, share);
              },
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

function sitesOf(model: Model): Sites {
  return new Sites(viewGraph(model.graph, mainOpset(model)));
}
