import { describe, expect, test } from "vitest";
import { absorbNormGain } from "../../passes/absorb-norm-gain.js";
import { rotateResidual } from "../../passes/rotate-residual.js";
import type { Model } from "../../src/ir/graph.js";
import type { Rotation } from "../../src/rewrite/rotation.js";
import { denseRotation, hadamard } from "../support/exact-steps.js";
import { aligned, flipped, fold, foldSample, spoiled, timesLeft, timesRight, valuesOf } from "../support/fold-runs.js";
import { expectSame, expectTold, forMost, golden, runPass, type Sample } from "../support/pass-runs.js";
import { arbitraryRaised, type Decoy, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const DENSE = { rotationFor: (size: number): Rotation => denseRotation(size, 3) };
const HADAMARD = { rotationFor: (size: number): Rotation => hadamard(size, 3) };

/** Aligned and without gains. */
async function bareSample(spelling: RaisedSpelling): Promise<Sample> {
  const sample = await aligned(await foldSample(spelling));
  return { ...sample, model: (await runPass(absorbNormGain, sample.model, {})).model };
}

describe("rotate-residual", () => {
  describe("goldens", () => {
    const cases: readonly (readonly [string, string, RaisedSpelling])[] = [
      ["mamba2", "Table, projections, bias and head turn.", { ...PLAIN, outBias: true, scaled: true, mlp: "after" }],
      ["refused", "Something that is no projection reads the stream.", { ...PLAIN, decoy: "stream-tanh" }],
    ];
    for (const [name, about, spelling] of cases) {
      test(name, async () => {
        const { model } = await bareSample(spelling);
        const text = golden(about, model, await runPass(rotateResidual, model, HADAMARD));
        await expect(text).toMatchFileSnapshot(`rotate-residual/${name}.irtxt`);
      });
    }
  });

  describe("the model computes the same", () => {
    for (const [label, options] of Object.entries({ hadamard: HADAMARD, dense: DENSE })) {
      test(label, async () => {
        await forMost(arbitraryRaised(), 16, async (spelling) => {
          const sample = await bareSample(spelling);
          const outcome = await fold(sample, rotateResidual, options);
          await expectSame(sample, outcome.model);
          // All or nothing, and nothing has a reason.
          expect(outcome.remarks.length).toBe(outcome.changed > 0 ? 0 : 1);
          if (outcome.changed === 0) expect(outcome.model).toBe(sample.model);
          return outcome.changed > 0;
        });
      });
    }

    test("after a second rotation", async () => {
      const sample = await bareSample({ ...PLAIN, outBias: true, layers: 2 });
      const once = await fold(sample, rotateResidual, DENSE);
      const twice = await runPass(rotateResidual, once.model, HADAMARD);
      expect(twice.changed).toBe(once.changed);
      await expectSame(sample, twice.model);
    });
  });

  test("turns what reads and writes the stream, and nothing else", async () => {
    const { model } = await bareSample({ ...PLAIN, outBias: true, mlp: "parallel" });
    const { model: after, changed } = await runPass(rotateResidual, model, DENSE);
    const turned = [...after.graph.initializers.keys()].filter((name) => name.endsWith("rotated_residual"));
    expect(turned.map((name) => name.replace(/\.weight.*/, "")).sort()).toEqual([
      "embedding",
      "head",
      "layers.0.down",
      "layers.0.gate",
      "layers.0.in_proj",
      "layers.0.out_bias",
      "layers.0.out_proj",
      "layers.0.up",
    ]);
    expect(changed).toBe(7);
    expect(after.graph.nodes.length).toBe(model.graph.nodes.length);
  });

  describe("refuses, changes nothing and says why", () => {
    const cases: readonly (readonly [Decoy, RegExp])[] = [
      ["norm-output", /a norm with a gain, or with a reader that is no projection/],
      ["norm-reader", /a norm with a gain, or with a reader that is no projection/],
      ["scalar-gain", /a norm with a gain/],
      ["stream-output", /is an output of the graph|Identity reads it/],
      ["stream-tanh", /Tanh reads it/],
      ["stream-constant", /something that is no projection is added to it/],
      ["stream-reciprocal", /Add reads it|something that is no projection is added to it/],
      ["stream-square", /Pow reads it/],
      ["foreign-scale", /Tanh reads it/],
      ["writer-reader", /something that is no projection is added to it/],
      ["scalar-bias", /something that is no projection is added to it/],
    ];
    for (const [decoy, reason] of cases) {
      test(decoy, async () => {
        const free = decoy === "stream-square" || decoy === "foreign-scale" || decoy === "stream-reciprocal";
        const sample = await bareSample({ ...PLAIN, decoy, ...(free ? { norm: "bare" } : {}) });
        const outcome = await fold(sample, rotateResidual, DENSE);
        expect(outcome.model).toBe(sample.model);
        expect(outcome.changed).toBe(0);
        expect(outcome.remarks.map(({ code }) => code)).toEqual(["rotate-residual/stream"]);
        expect(outcome.remarks[0]?.message).toMatch(reason);
      });
    }
  });

  describe("a wrong rotation is noticed", () => {
    const size = PLAIN.dModel;
    const { matrix } = denseRotation(size, 3) as Extract<Rotation, { kind: "dense" }>;
    const reader = /in_proj\.weight.*rotated_residual$/;
    const writer = /out_proj\.weight.*rotated_residual$/;
    const wrongs: Readonly<Record<string, (before: Model, after: Model) => Model>> = {
      "reader not turned": (before, after) => spoiled(after, reader, () => valuesOf(before, /in_proj\.weight/)),
      "reader turned the wrong way": (before, after) =>
        spoiled(after, reader, () => timesLeft(matrix, valuesOf(before, /in_proj\.weight/), size)),
      "writer not turned": (before, after) => spoiled(after, writer, () => valuesOf(before, /out_proj\.weight/)),
      "writer turned the wrong way": (before, after) =>
        spoiled(after, writer, () => timesRight(valuesOf(before, /out_proj\.weight/), flipped(matrix, size), size)),
      "writer turned on the wrong side": (before, after) =>
        spoiled(after, writer, () => timesLeft(matrix, valuesOf(before, /out_proj\.weight/), size)),
      "table not turned": (before, after) =>
        spoiled(after, /^embedding.*rotated/, () => valuesOf(before, /^embedding\.weight$/)),
      "bias not turned": (before, after) => spoiled(after, /out_bias.*rotated/, () => valuesOf(before, /out_bias/)),
      "head not turned": (before, after) => spoiled(after, /^head.*rotated/, () => valuesOf(before, /^head/)),
    };
    for (const [label, make] of Object.entries(wrongs)) {
      test(label, async () => {
        const sample = await bareSample({ ...PLAIN, outBias: true });
        const outcome = await fold(sample, rotateResidual, DENSE);
        await expectSame(sample, outcome.model);
        await expectTold(sample, make(sample.model, outcome.model), label);
      });
    }
  });
});
