import { describe, expect, test } from "vitest";
import { type SmoothAwqOptions, smoothAwq } from "../../passes/smooth-awq.js";
import type { Model } from "../../src/ir/graph.js";
import { matrixOf } from "../../src/linalg/matrix.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { weightErrors } from "../../src/quant/smooth.js";
import { sitesOf } from "../../src/rewrite/sites.js";
import { smoothableInputs } from "../../src/rewrite/smoothing.js";
import { weightValues } from "../../src/rewrite/weights.js";
import { ALL_ROLES, linearsOf, madeUpMagnitudes } from "../support/exact-steps.js";
import { aligned, fold, foldSample, shifted, shiftedRows, spoiled } from "../support/fold-runs.js";
import { loopGemm } from "../support/loop-gemm.js";
import { expectSame, expectTold, forMost, golden, type Outcome, runPass, type Sample } from "../support/pass-runs.js";
import { arbitraryRaised, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const MAMBA1: RaisedSpelling = { ...PLAIN, family: "mamba1" };
const SCHEME = parseWeightScheme("i3:g4");

/** Made-up statistics: magnitudes over decades, channels independent of each other. */
function madeUp(
  model: Model,
  magnitude: (value: string) => Float64Array = madeUpMagnitudes(model, 5),
): SmoothAwqOptions {
  return {
    roles: ALL_ROLES,
    schemeFor: () => SCHEME,
    channelMeanAbs: magnitude,
    secondMoment: (value) => {
      const means = magnitude(value);
      const matrix = new Float64Array(means.length ** 2);
      means.forEach((mean, k) => {
        matrix[k * (means.length + 1)] = (Math.PI / 2) * mean ** 2;
      });
      return { size: means.length, count: 100, matrix };
    },
    points: 8,
  };
}

const run = (model: Model): Promise<Outcome> => runPass(smoothAwq, model, madeUp(model));

describe("smooth-awq", () => {
  describe("goldens", () => {
    const cases: readonly (readonly [string, string, RaisedSpelling])[] = [
      ["mamba1", "Norms, the gate and the low-rank dt take the factors.", { ...MAMBA1, channelsFirst: true }],
      ["mamba2", "Norms and the gated norm take the factors.", PLAIN],
    ];
    for (const [name, about, spelling] of cases) {
      test(name, async () => {
        const { model } = await aligned(await foldSample(spelling));
        await expect(golden(about, model, await run(model))).toMatchFileSnapshot(`smooth-awq/${name}.irtxt`);
      });
    }
  });

  for (const family of ["mamba1", "mamba2"] as const) {
    test(`the model computes the same: ${family}`, async () => {
      await forMost(arbitraryRaised({ family }), 12, async (spelling) => {
        const sample = await aligned(await foldSample(spelling));
        const outcome = await fold(sample, smoothAwq, madeUp(sample.model));
        await expectSame(sample, outcome.model);
        return outcome.changed > 0;
      });
    });
  }

  test("the error of rounding falls wherever factors were folded in", async () => {
    const { model } = await aligned(await foldSample({ ...PLAIN, dModel: 20, heads: 6 }));
    const options = madeUp(model);
    const { model: after, changed } = await runPass(smoothAwq, model, options);
    let compared = 0;
    for (const [at, before] of linearsOf(model).entries()) {
      const scaled = linearsOf(after)[at];
      const [old, fresh] = [model, after].map((one) =>
        one.graph.initializers.get((one === model ? before : scaled)?.weight ?? ""),
      );
      if (old === undefined || fresh === undefined) throw new Error("weights stay initialisers");
      const [from, to] = [weightValues(old), weightValues(fresh)];
      const scales = Float64Array.from({ length: before.inFeatures }, (_, k) => {
        const row = k * before.outFeatures;
        return (to[row] ?? 0) / (from[row] ?? 1);
      });
      if (scales.every((scale) => scale === 1)) continue;
      const { size, matrix } = options.secondMoment(before.input);
      const moments = matrixOf(size, size, matrix);
      const weights = [{ weight: { label: "w", shape: old.shape, data: from }, scheme: SCHEME }];
      const nearest = await weightErrors(weights, new Float64Array(size).fill(1), moments, loopGemm);
      expect(await weightErrors(weights, scales, moments, loopGemm)).toBeLessThan(nearest);
      compared += 1;
    }
    expect(compared).toBe(changed);
    expect(compared).toBeGreaterThanOrEqual(2);
  });

  test("asks for the statistics it uses, and for no others", async () => {
    for (const spelling of [MAMBA1, PLAIN]) {
      const { model } = await aligned(await foldSample(spelling));
      const used = new Set<string>();
      const magnitudes = madeUpMagnitudes(model, 1);
      const seen = (value: string): Float64Array => {
        used.add(value);
        return magnitudes(value);
      };
      await runPass(smoothAwq, model, madeUp(model, seen));
      expect([...used].sort()).toEqual(smoothableInputs(model, ALL_ROLES).sort());
    }
  });

  test("leaves alone what stays float, and what has no role", async () => {
    const { model } = await aligned(await foldSample(MAMBA1));
    const options = madeUp(model);
    expect((await runPass(smoothAwq, model, { ...options, schemeFor: () => null })).changed).toBe(0);
    expect((await runPass(smoothAwq, model, { ...options, roles: new Set([]) })).changed).toBe(0);
  });

  test("dead channels keep their weights; a dead activation is an error of the calibration", async () => {
    const sample = await aligned(await foldSample(MAMBA1));
    const magnitudes = madeUpMagnitudes(sample.model, 5);
    const half = (value: string): Float64Array => magnitudes(value).map((size, k) => (k % 2 === 0 ? 0 : size));
    const { model, changed } = await fold(sample, smoothAwq, madeUp(sample.model, half));
    expect(changed).toBeGreaterThan(0);
    await expectSame(sample, model);
    const before = sitesOf(sample.model).blocks[0]?.outProj;
    const after = sitesOf(model).blocks[0]?.outProj;
    if (before == null || after == null) throw new Error("the block has an out_proj");
    const row = (of: Model, name: string): Float32Array => {
      const tensor = of.graph.initializers.get(name);
      return tensor === undefined ? new Float32Array() : weightValues(tensor).slice(0, before.outFeatures);
    };
    expect(row(model, after.weight)).toEqual(row(sample.model, before.weight));
    const dead = (value: string): Float64Array => new Float64Array(magnitudes(value).length);
    await expect(fold(sample, smoothAwq, madeUp(sample.model, dead))).rejects.toMatchObject({
      code: "awq/no-samples",
      exitCode: 5,
    });
  });

  describe("a wrong fold is noticed", () => {
    const wrongs: Readonly<Record<string, readonly [RaisedSpelling, (sample: Sample, outcome: Outcome) => Model]>> = {
      "factors on the wrong channels": [
        PLAIN,
        (_sample, after) => spoiled(after.model, /out_proj\.weight\.smooth$/, shiftedRows),
      ],
      "gate restored on the wrong channels": [
        MAMBA1,
        (_sample, after) => spoiled(after.model, /smooth_scale$/, shifted),
      ],
      "gate not restored": [
        MAMBA1,
        (_sample, after) => spoiled(after.model, /smooth_scale$/, (values) => values.map(() => 1)),
      ],
    };
    for (const [label, [spelling, make]] of Object.entries(wrongs)) {
      test(label, async () => {
        const sample = await aligned(await foldSample(spelling));
        const outcome = await fold(sample, smoothAwq, madeUp(sample.model));
        await expectSame(sample, outcome.model);
        await expectTold(sample, make(sample, outcome), label);
      });
    }
  });
});
