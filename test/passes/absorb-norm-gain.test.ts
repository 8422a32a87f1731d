import { describe, expect, test } from "vitest";
import { absorbNormGain } from "../../passes/absorb-norm-gain.js";
import type { Model } from "../../src/ir/graph.js";
import { toNumbers } from "../../src/ir/tensor.js";
import { sitesOf } from "../../src/rewrite/sites.js";
import { aligned, fold, foldSample, shifted, spoiled, valuesOf } from "../support/fold-runs.js";
import { expectSame, expectSettled, expectTold, forMost, golden, runPass } from "../support/pass-runs.js";
import { arbitraryRaised, type Decoy, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

describe("absorb-norm-gain", () => {
  describe("goldens", () => {
    const cases: readonly (readonly [string, string, RaisedSpelling])[] = [
      ["gain", "Gains of a norm, of a gated norm and of the last norm.", PLAIN],
      [
        "operator",
        "Norm operators keep a gain of ones.",
        { ...PLAIN, norm: "operator", gatedNorm: "none", mlp: "parallel" },
      ],
    ];
    for (const [name, about, spelling] of cases) {
      test(name, async () => {
        const { model } = await aligned(await foldSample(spelling));
        const text = golden(about, model, await runPass(absorbNormGain, model, {}));
        await expect(text).toMatchFileSnapshot(`absorb-norm-gain/${name}.irtxt`);
      });
    }
  });

  test("norms lose their gains and the model computes the same", async () => {
    await forMost(arbitraryRaised(), 20, async (spelling) => {
      const sample = await aligned(await foldSample(spelling));
      const outcome = await fold(sample, absorbNormGain, {});
      await expectSame(sample, outcome.model);
      expect(gainsLeft(outcome.model)).toBe(outcome.remarks.length);
      return outcome.changed > 0;
    });
  });

  test("a second run changes nothing", async () => {
    for (const norm of ["gain-left", "gain-right", "operator"] as const) {
      const { model } = await aligned(await foldSample({ ...PLAIN, norm, layers: 2, mlp: "after" }));
      const once = await runPass(absorbNormGain, model, {});
      expect(once.changed).toBe(7);
      await expectSettled(absorbNormGain, model, once.model, {});
      expect((await runPass(absorbNormGain, once.model, {})).changed).toBe(0);
    }
  });

  describe("a gain that more than projections see stays", () => {
    const cases: readonly (readonly [Decoy, string])[] = [
      ["norm-output", "something other than a projection reads the norm, so its gain stays"],
      ["norm-reader", "something other than a projection reads the norm, so its gain stays"],
      ["scalar-gain", "the gain is not one factor a channel of the projection"],
    ];
    for (const [decoy, message] of cases) {
      test(decoy, async () => {
        const sample = await aligned(await foldSample({ ...PLAIN, decoy }));
        const outcome = await fold(sample, absorbNormGain, {});
        expect(outcome.changed).toBe(2);
        expect(outcome.remarks.map((remark) => remark.message)).toEqual([message]);
        await expectSame(sample, outcome.model);
      });
    }
  });

  describe("a wrong fold is noticed", () => {
    const gain = /^layers\.0\.gated_norm\.weight$/;
    const weight = /out_proj\.weight\.absorbed$/;
    const wrongs: Readonly<Record<string, (before: Model, after: Model) => Model>> = {
      "gain forgotten": (before, after) => spoiled(after, weight, () => valuesOf(before, /out_proj\.weight$/)),
      "gain on the outputs": (before, after) => {
        const factors = valuesOf(before, gain);
        const plain = valuesOf(before, /out_proj\.weight$/);
        return spoiled(after, weight, () => plain.map((value, at) => value * (factors[at % 12] ?? 0)));
      },
      "gain on the wrong channels": (before, after) => {
        const factors = shifted(valuesOf(before, gain));
        const plain = valuesOf(before, /out_proj\.weight$/);
        return spoiled(after, weight, () => plain.map((value, at) => value * (factors[Math.floor(at / 12)] ?? 0)));
      },
      "gain twice": (before, after) => {
        const factors = valuesOf(before, gain);
        return spoiled(after, weight, (values) =>
          values.map((value, at) => value * (factors[Math.floor(at / 12)] ?? 0)),
        );
      },
    };
    for (const [label, make] of Object.entries(wrongs)) {
      test(label, async () => {
        const sample = await aligned(await foldSample(PLAIN));
        const outcome = await fold(sample, absorbNormGain, {});
        await expectSame(sample, outcome.model);
        await expectTold(sample, make(sample.model, outcome.model), label);
      });
    }
  });
});

/** Norms in front of projections that still have a gain other than one. */
function gainsLeft(model: Model): number {
  const sites = sitesOf(model);
  const left = new Set<string>();
  for (const site of sites.linears) {
    const gain = sites.gainOf(site.input);
    const tensor = gain === null ? undefined : model.graph.initializers.get(gain.gain);
    if (gain !== null && tensor !== undefined && toNumbers(tensor).some((value) => value !== 1)) left.add(gain.output);
  }
  return left.size;
}
