import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { rotateDt } from "../../passes/rotate-dt.js";
import type { Model } from "../../src/ir/graph.js";
import type { Rotation } from "../../src/rewrite/rotation.js";
import { denseRotation } from "../support/exact-steps.js";
import { aligned, fold, foldSample, shifted, spoiled, timesLeft, valuesOf } from "../support/fold-runs.js";
import { expectSame, expectTold, forMost, golden, runPass } from "../support/pass-runs.js";
import { arbitraryRaised, type Decoy, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const MAMBA1: RaisedSpelling = { ...PLAIN, family: "mamba1", dtRank: 12 };
const DENSE = { rotationFor: (_value: string, rank: number): Rotation => denseRotation(rank, 5) };

describe("rotate-dt", () => {
  test("golden", async () => {
    const { model } = await aligned(await foldSample({ ...MAMBA1, dtLeft: true }));
    const text = golden(
      "Columns of x_proj and rows of dt_proj turn.",
      model,
      await runPass(rotateDt, model, { rotationFor: null }),
    );
    await expect(text).toMatchFileSnapshot("rotate-dt/mamba1.irtxt");
  });

  test("the model computes the same", async () => {
    // Some spellings give x_proj a bias, which is refused; the plain ones are drawn more often.
    const spellings = fc.oneof(
      arbitraryRaised({ family: "mamba1" }),
      arbitraryRaised({ family: "mamba1", projection: "matmul" }),
      arbitraryRaised({ family: "mamba1", projection: "gemm" }),
    );
    await forMost(spellings, 18, async (spelling) => {
      const sample = await aligned(await foldSample(spelling));
      const outcome = await fold(sample, rotateDt, spelling.seed % 2 === 0 ? DENSE : { rotationFor: null });
      await expectSame(sample, outcome.model);
      return outcome.changed > 0;
    });
  });

  test("after a second rotation", async () => {
    const sample = await aligned(await foldSample(MAMBA1));
    const once = await fold(sample, rotateDt, DENSE);
    const twice = await runPass(rotateDt, once.model, { rotationFor: null });
    expect([once.changed, twice.changed]).toEqual([1, 1]);
    await expectSame(sample, twice.model);
  });

  test("asks for a rotation by the activation and its rank", async () => {
    const asked: [string, number][] = [];
    const { model } = await aligned(await foldSample({ ...MAMBA1, layers: 2, dtRank: 3 }));
    await runPass(rotateDt, model, {
      rotationFor: (value, rank) => {
        asked.push([value, rank]);
        return denseRotation(rank, 1);
      },
    });
    expect(asked.map(([, rank]) => rank)).toEqual([3, 3]);
    expect(new Set(asked.map(([value]) => value)).size).toBe(2);
  });

  describe("refuses what is not a plain product of two weights", () => {
    for (const decoy of ["dt-reader", "x-bias", "dt-norm"] as const satisfies readonly Decoy[]) {
      test(decoy, async () => {
        const sample = await aligned(await foldSample({ ...MAMBA1, decoy }));
        const outcome = await fold(sample, rotateDt, DENSE);
        expect(outcome.model).toBe(sample.model);
        expect(outcome.changed).toBe(0);
        expect(outcome.remarks.map(({ code }) => code)).toEqual(["rotate-dt/no-low-rank"]);
      });
    }

    test("Mamba-2 has none", async () => {
      const sample = await aligned(await foldSample(PLAIN));
      expect((await fold(sample, rotateDt, DENSE)).changed).toBe(0);
    });
  });

  describe("a wrong rotation is noticed", () => {
    const rank = MAMBA1.dtRank;
    const { matrix } = denseRotation(rank, 5) as Extract<Rotation, { kind: "dense" }>;
    const reader = /dt_proj\.weight\.rotated$/;
    const writer = /x_proj\.weight\.rotated_dt$/;
    const wrongs: Readonly<Record<string, (before: Model, after: Model) => Model>> = {
      "reader not turned": (before, after) => spoiled(after, reader, () => valuesOf(before, /dt_proj\.weight$/)),
      "reader turned the wrong way": (before, after) =>
        spoiled(after, reader, () => timesLeft(matrix, valuesOf(before, /dt_proj\.weight$/), rank)),
      "writer not turned": (before, after) => spoiled(after, writer, () => valuesOf(before, /x_proj\.weight$/)),
      "columns beside dt": (_before, after) => spoiled(after, writer, shifted),
    };
    for (const [label, make] of Object.entries(wrongs)) {
      test(label, async () => {
        const sample = await aligned(await foldSample(MAMBA1));
        const outcome = await fold(sample, rotateDt, DENSE);
        await expectSame(sample, outcome.model);
        await expectTold(sample, make(sample.model, outcome.model), label);
      });
    }
  });
});
