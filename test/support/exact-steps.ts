/** The passes that change weights and leave the function as it is, with made-up statistics and seeded rotations. */

import { absorbNormGain } from "../../passes/absorb-norm-gain.js";
import { alignLinears } from "../../passes/align-linears.js";
import { rotateDt } from "../../passes/rotate-dt.js";
import { rotateOutput } from "../../passes/rotate-output.js";
import { rotateResidual } from "../../passes/rotate-residual.js";
import { rotateState } from "../../passes/rotate-state.js";
import { smoothQuant } from "../../passes/smooth-quant.js";
import { tidy } from "../../passes/tidy.js";
import type { Model } from "../../src/ir/graph.js";
import { hadamardRotation, rotationMatrix } from "../../src/linalg/hadamard.js";
import { definePass, type Pass } from "../../src/rewrite/pass.js";
import { type Step, step } from "../../src/rewrite/pipeline.js";
import type { Rotation } from "../../src/rewrite/rotation.js";
import { type LinearRole, type LinearSite, sitesOf } from "../../src/rewrite/sites.js";
import { Random } from "../../src/support/random.js";

export const ALL_ROLES: ReadonlySet<LinearRole> = new Set([
  "in_proj",
  "x_proj",
  "dt_proj",
  "out_proj",
  "lm_head",
  "other",
]);

/** The projections of a raised model. */
export function linearsOf(model: Model): readonly LinearSite[] {
  return sitesOf(model).linears;
}

/** The sites of a raised model. */

/** Magnitudes of the channels of every projection's input, over four decades; a function of seed and name. */
export function madeUpMagnitudes(model: Model, seed: number): (value: string) => Float64Array {
  const widths = new Map(linearsOf(model).map((site) => [site.input, site.inFeatures]));
  return (value) => {
    const random = new Random(seed).split(value);
    return Float64Array.from({ length: widths.get(value) ?? 0 }, () => Math.exp(2 * random.normal()));
  };
}

/** smooth-quant with made-up statistics. */
export function smoothMadeUp(alpha: number, seed: number): Pass<Record<string, never>> {
  return definePass<Record<string, never>>({
    ...smoothQuant,
    run: (model, _options, context) =>
      smoothQuant.run(model, { alpha, roles: ALL_ROLES, channelAbsMax: madeUpMagnitudes(model, seed) }, context),
  });
}

/** A rotation of the kind the KLT gives: dense, without structure. */
export function denseRotation(size: number, seed: number): Rotation {
  const [first, second] = [1, 2].map(
    (part) => rotationMatrix(hadamardRotation(size, new Random(seed * 2 + part))).data,
  );
  const matrix = new Float64Array(size * size);
  // The product of two Hadamard rotations with different signs: orthogonal, not symmetric, not sparse.
  for (let i = 0; i < size; i++) {
    for (let k = 0; k < size; k++) {
      const factor = first?.[i * size + k] ?? 0;
      for (let j = 0; j < size; j++) {
        matrix[i * size + j] = (matrix[i * size + j] ?? 0) + factor * (second?.[k * size + j] ?? 0);
      }
    }
  }
  return { kind: "dense", size, matrix };
}

export function hadamard(size: number, seed: number): Rotation {
  return { kind: "hadamard", rotation: hadamardRotation(size, new Random(seed)) };
}

/** All of them, in the order recipes run them (`absorb-first`), or with smoothing before gains are absorbed. */
export function exactSteps(order: "absorb-first" | "smooth-first", rotation: "hadamard" | "dense"): Step[] {
  const smooth = step(smoothMadeUp(0.5, 7), {});
  const rotationFor = (size: number): Rotation => (rotation === "dense" ? denseRotation(size, 3) : hadamard(size, 3));
  const stream = [step(absorbNormGain, {}), step(rotateResidual, { rotationFor })];
  return [
    step(alignLinears, {}),
    step(tidy, {}),
    ...(order === "absorb-first" ? [...stream, smooth] : [smooth, ...stream]),
    step(rotateOutput, {}),
    step(rotateDt, { rotationFor: null }),
    step(rotateState, {}),
    step(tidy, {}),
  ];
}
