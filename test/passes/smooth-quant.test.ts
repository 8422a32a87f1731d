import { describe, expect, test } from "vitest";
import { absorbNormGain } from "../../passes/absorb-norm-gain.js";
import { smoothQuant } from "../../passes/smooth-quant.js";
import type { Model } from "../../src/ir/graph.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { sitesOf } from "../../src/rewrite/sites.js";
import { smoothableInputs } from "../../src/rewrite/smoothing.js";
import { ALL_ROLES, madeUpMagnitudes, smoothMadeUp } from "../support/exact-steps.js";
import { aligned, fold, foldSample, shifted, shiftedRows, spoiled, valuesOf } from "../support/fold-runs.js";
import { expectSame, expectTold, forMost, golden, type Outcome, runPass, type Sample } from "../support/pass-runs.js";
import { arbitraryRaised, type Decoy, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const MAMBA1: RaisedSpelling = { ...PLAIN, family: "mamba1" };
const SMOOTH = smoothMadeUp(0.5, 3);

describe("smooth-quant", () => {
  describe("goldens", () => {
    const cases: readonly (readonly [string, string, RaisedSpelling])[] = [
      ["mamba1", "Norms, the gate and the low-rank dt take the factors.", { ...MAMBA1, channelsFirst: true }],
      ["mamba2", "Norms and the gated norm take the factors.", PLAIN],
      ["gainless", "Norms without a gain get one.", { ...PLAIN, norm: "bare", gatedNorm: "grouped" }],
    ];
    for (const [name, about, spelling] of cases) {
      test(name, async () => {
        const { model } = await aligned(await foldSample(spelling));
        const text = golden(about, model, await runPass(SMOOTH, model, {}));
        await expect(text).toMatchFileSnapshot(`smooth-quant/${name}.irtxt`);
      });
    }
  });

  describe("the model computes the same", () => {
    for (const family of ["mamba1", "mamba2"] as const) {
      test(family, async () => {
        await forMost(arbitraryRaised({ family }), 14, async (spelling) => {
          const sample = await aligned(await foldSample(spelling));
          const outcome = await fold(sample, SMOOTH, {});
          await expectSame(sample, outcome.model);
          return outcome.changed > 0;
        });
      });
    }

    test("after gains were absorbed, and when run again", async () => {
      for (const spelling of [MAMBA1, { ...PLAIN, gatedNorm: "grouped" }] as const) {
        const sample = await aligned(await foldSample(spelling));
        const bare = await fold(sample, absorbNormGain, {});
        const once = await runPass(SMOOTH, bare.model, {});
        const twice = await runPass(SMOOTH, once.model, {});
        expect([once.changed, twice.changed].every((changed) => changed >= 3)).toBe(true);
        await expectSame(sample, once.model);
        await expectSame(sample, twice.model);
      }
    });
  });

  test("asks for the statistics it uses, and for no others", async () => {
    for (const spelling of [MAMBA1, PLAIN, { ...MAMBA1, decoy: "gate-reader" } as const]) {
      const { model } = await aligned(await foldSample(spelling));
      const asked = smoothableInputs(model, ALL_ROLES);
      const used = new Set<string>();
      const magnitudes = madeUpMagnitudes(model, 1);
      const channelAbsMax = (value: string): Float64Array => {
        used.add(value);
        return magnitudes(value);
      };
      await runPass(smoothQuant, model, { alpha: 0.5, roles: ALL_ROLES, channelAbsMax });
      expect([...used].sort()).toEqual([...asked].sort());
    }
  });

  test("roles choose the projections", async () => {
    const { model } = await aligned(await foldSample(MAMBA1));
    const count = async (...roles: readonly ("in_proj" | "out_proj" | "dt_proj" | "lm_head")[]): Promise<number> => {
      const options = { alpha: 0.5, roles: new Set(roles), channelAbsMax: madeUpMagnitudes(model, 1) };
      return (await runPass(smoothQuant, model, options)).changed;
    };
    expect(await count()).toBe(0);
    expect(await count("in_proj")).toBe(1);
    expect(await count("out_proj", "dt_proj")).toBe(2);
    expect(await count("in_proj", "out_proj", "dt_proj", "lm_head")).toBe(4);
  });

  describe("a search of alpha", () => {
    const searched = async (outlier: number) => {
      const sample = await aligned(await foldSample(MAMBA1));
      const widths = new Map(sitesOf(sample.model).linears.map((site) => [site.input, site.inFeatures]));
      const peaks = (value: string): Float64Array =>
        Float64Array.from({ length: widths.get(value) ?? 0 }, (_, channel) => (channel === 1 ? outlier : 1));
      const secondMoment = (value: string) => {
        const size = widths.get(value) ?? 0;
        const matrix = new Float64Array(size * size);
        peaks(value).forEach((peak, k) => {
          matrix[k * size + k] = peak ** 2 / 3;
        });
        return { size, count: 1, matrix };
      };
      const schemeFor = () => parseWeightScheme("i8:channel");
      const alpha = { alphas: [0.5, 0.9], schemeFor, secondMoment };
      return { sample, outcome: await fold(sample, smoothQuant, { alpha, roles: ALL_ROLES, channelAbsMax: peaks }) };
    };

    test("smooths outliers, with the model computing the same", async () => {
      const { sample, outcome } = await searched(1000);
      expect(outcome.changed).toBeGreaterThanOrEqual(3);
      await expectSame(sample, outcome.model);
    });

    test("never does worse than leaving the activation alone", async () => {
      // Weights of which one row is tiny: dividing by it can only make its channel larger.
      const { sample, outcome } = await searched(1e-7);
      expect(outcome.changed).toBeLessThanOrEqual(4);
      await expectSame(sample, outcome.model);
    });
  });

  test("a gate that was smoothed before takes the factors into the same product", async () => {
    for (const channelsFirst of [false, true]) {
      const sample = await aligned(await foldSample({ ...MAMBA1, channelsFirst }));
      const once = await fold(sample, SMOOTH, {});
      const twice = await fold({ ...sample, model: once.model }, smoothMadeUp(0.5, 4), {});
      expect(twice.changed).toBe(once.changed);
      expect(twice.remarks).toEqual([]);
      expect(twice.model.graph.nodes.length).toBe(once.model.graph.nodes.length);
      await expectSame(sample, twice.model);
      const wrong = spoiled(twice.model, /smooth_scale\.2$/, () => valuesOf(once.model, /smooth_scale$/));
      await expectTold(sample, wrong, "the new factors alone");
    }
  });

  describe("what something else reads is left alone", () => {
    const cases: readonly (readonly [Decoy, RaisedSpelling["family"], number, RegExp | null])[] = [
      ["norm-output", "mamba2", 2, /something other than a projection reads the norm/],
      ["norm-reader", "mamba2", 2, /something other than a projection reads the norm/],
      ["gate-reader", "mamba1", 3, /the gate does not come straight from in_proj, or has another reader/],
      ["in-bias", "mamba1", 3, /the gate does not come straight from in_proj/],
      ["out-reader", "mamba1", 3, /has another reader, so out_proj keeps its outliers/],
      ["dt-reader", "mamba1", 3, null],
      ["x-bias", "mamba1", 3, null],
    ];
    for (const [decoy, family, changed, remark] of cases) {
      test(`${decoy}, ${family}`, async () => {
        const sample = await aligned(await foldSample({ ...PLAIN, family, decoy }));
        const outcome = await fold(sample, SMOOTH, {});
        expect(outcome.changed).toBe(changed);
        const told = outcome.remarks.map(({ message }) => message).join("\n");
        if (remark === null) expect(told).toBe("");
        else expect(told).toMatch(remark);
        await expectSame(sample, outcome.model);
      });
    }

    test("a gain of one number becomes one a channel", async () => {
      const sample = await aligned(await foldSample({ ...PLAIN, decoy: "scalar-gain" }));
      const outcome = await fold(sample, SMOOTH, {});
      expect(outcome.changed).toBe(3);
      await expectSame(sample, outcome.model);
    });
  });

  describe("a wrong smoothing is noticed", () => {
    const wrongs: Readonly<Record<string, readonly [RaisedSpelling, (sample: Sample, outcome: Outcome) => Model]>> = {
      "inverse forgotten in the gain": [
        PLAIN,
        ({ model }, after) => spoiled(after.model, gatedGain(after.model), () => valuesOf(model, /gated_norm/)),
      ],
      "factors forgotten in the weight": [
        PLAIN,
        ({ model }, after) =>
          spoiled(after.model, /out_proj\.weight\.smooth$/, () => valuesOf(model, /out_proj\.weight$/)),
      ],
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
      "gate columns beside the gate": [
        MAMBA1,
        (_sample, after) => spoiled(after.model, /in_proj\.weight\.smooth\.gate$/, shifted),
      ],
      "dt columns beside dt": [MAMBA1, (_sample, after) => spoiled(after.model, /x_proj\.weight\.dt$/, shifted)],
    };
    for (const [label, [spelling, make]] of Object.entries(wrongs)) {
      test(label, async () => {
        const sample = await aligned(await foldSample(spelling));
        const outcome = await fold(sample, SMOOTH, {});
        await expectSame(sample, outcome.model);
        await expectTold(sample, make(sample, outcome), label);
      });
    }
  });
});

/** Matches the gain of the norm before out_proj. */
function gatedGain(model: Model): RegExp {
  return new RegExp(`^${sitesOf(model).blocks[0]?.outputGain?.gain ?? "none"}$`);
}
