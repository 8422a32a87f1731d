import { describe, expect, test } from "vitest";
import { rotateOutput } from "../../passes/rotate-output.js";
import { smoothQuant } from "../../passes/smooth-quant.js";
import { hadamardRotation, rotationMatrix } from "../../src/linalg/hadamard.js";
import { ALL_ROLES, linearsOf, madeUpMagnitudes } from "../support/exact-steps.js";
import { aligned, flipped, fold, foldSample, spoiled, timesLeft, timesRight, valuesOf } from "../support/fold-runs.js";
import { expectSame, expectTold, forMost, golden, runPass, type Sample } from "../support/pass-runs.js";
import { arbitraryRaised, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

describe("rotate-output", () => {
  describe("goldens", () => {
    const cases: readonly (readonly [string, string, RaisedSpelling])[] = [
      ["order-12", "One product with the Hadamard matrix of order 12.", PLAIN],
      ["order-40", "Two factors: 8 by 5 blocks.", { ...PLAIN, heads: 4, headDim: 10, gatedNorm: "none" }],
    ];
    for (const [name, about, spelling] of cases) {
      test(name, async () => {
        const { model } = await aligned(await foldSample(spelling));
        const text = golden(about, model, await runPass(rotateOutput, model, {}));
        await expect(text).toMatchFileSnapshot(`rotate-output/${name}.irtxt`);
      });
    }
  });

  test("the model computes the same", async () => {
    await forMost(arbitraryRaised(), 20, async (spelling) => {
      const sample = await aligned(await foldSample(spelling));
      const outcome = await fold(sample, rotateOutput, {});
      await expectSame(sample, outcome.model);
      expect(outcome.changed).toBe(spelling.layers);
      return outcome.changed > 0;
    });
  });

  test("sizes of two factors and a large power of two", async () => {
    for (const [heads, headDim] of [
      [8, 6],
      [4, 20],
      [8, 16],
    ] as const) {
      const sample = await aligned(await foldSample({ ...PLAIN, heads, headDim }));
      await expectSame(sample, (await fold(sample, rotateOutput, {})).model);
    }
  });

  test("flattened activations that stay flattened", async () => {
    // Not aligned: the projection still reads [B*L, K] through a Gemm with a bias.
    for (const projection of ["gemm", "gemm-scaled"] as const) {
      const sample = await foldSample({ ...PLAIN, projection });
      const outcome = await fold(sample, rotateOutput, {});
      expect(outcome.changed).toBe(1);
      await expectSame(sample, outcome.model);
    }
  });

  test("a second rotation, and smoothing before it", async () => {
    const sample = await aligned(await foldSample({ ...PLAIN, family: "mamba1" }));
    const channelAbsMax = madeUpMagnitudes(sample.model, 5);
    const smooth = await fold(sample, smoothQuant, { alpha: 0.5, roles: ALL_ROLES, channelAbsMax });
    const once = await runPass(rotateOutput, smooth.model, {});
    await expectSame(sample, once.model);
    const twice = await runPass(rotateOutput, once.model, {});
    expect([once.changed, twice.changed]).toEqual([1, 1]);
    await expectSame(sample, twice.model);
  });

  test("other readers of the gated value keep what they read", async () => {
    const sample = await aligned(await foldSample({ ...PLAIN, decoy: "out-reader" }));
    const outcome = await fold(sample, rotateOutput, {});
    expect(outcome.changed).toBe(1);
    await expectSame(sample, outcome.model);
  });

  test("products of the rotation are no projections", async () => {
    const { model } = await aligned(await foldSample(PLAIN));
    const after = (await runPass(rotateOutput, model, {})).model;
    expect(linearsOf(after).length).toBe(linearsOf(model).length);
  });

  describe("a wrong rotation is noticed", () => {
    const size = PLAIN.heads * PLAIN.headDim;
    const matrix = rotationMatrix(hadamardRotation(size)).data;
    const weight = /out_proj\.weight\.rotated$/;
    const plain = ({ model }: Sample): Float64Array => valuesOf(model, /out_proj\.weight$/);
    const wrongs: Readonly<Record<string, (sample: Sample) => Float64Array>> = {
      "inverse forgotten": plain,
      "turned the wrong way": (sample) => timesLeft(matrix, plain(sample), size),
      "turned on the wrong side": (sample) => timesRight(plain(sample), matrix, size),
      "turned twice": (sample) =>
        timesLeft(flipped(matrix, size), timesLeft(flipped(matrix, size), plain(sample), size), size),
    };
    for (const [label, values] of Object.entries(wrongs)) {
      test(label, async () => {
        const sample = await aligned(await foldSample(PLAIN));
        const outcome = await fold(sample, rotateOutput, {});
        await expectSame(sample, outcome.model);
        await expectTold(
          sample,
          spoiled(outcome.model, weight, () => values(sample)),
          label,
        );
      });
    }
  });
});
