import { describe, expect, test } from "vitest";
import { roundClipped } from "../../passes/round-clipped.js";
import { roundNearest } from "../../passes/round-nearest.js";
import type { Model } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { roundedInputs } from "../../src/rewrite/rounded-weight.js";
import { linearsOf, madeUpMagnitudes } from "../support/exact-steps.js";
import { aligned, foldSample } from "../support/fold-runs.js";
import { runPass } from "../support/pass-runs.js";
import { PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";
import { roundedWeights, roundingError } from "../support/rounded-weights.js";

const SPELLING: RaisedSpelling = { ...PLAIN, dModel: 24, heads: 6, layers: 2 };

/** Second moments of channels that depend on each other, over decades. */
function momentsOf(model: Model): (value: string) => { size: number; count: number; matrix: Float64Array } {
  const magnitudes = madeUpMagnitudes(model, 2);
  return (value) => {
    const sizes = magnitudes(value);
    const matrix = new Float64Array(sizes.length ** 2);
    sizes.forEach((a, i) => {
      sizes.forEach((b, j) => {
        matrix[i * sizes.length + j] = a * b * (i === j ? 1 : 0.3);
      });
    });
    return { size: sizes.length, count: 100, matrix };
  };
}

/** Error on the outputs of every rounded weight, by name. */
function errorsOf(before: Model, after: Model): Map<string, number> {
  const moment = momentsOf(before);
  return new Map(
    roundedWeights(after.graph).map((weight) => {
      const site = linearsOf(before).find(({ weight: name }) => name === weight.name);
      const { matrix } = moment(site?.input ?? "");
      return [weight.name, roundingError(weight, before.graph, matrix)];
    }),
  );
}

describe("round-clipped", () => {
  for (const family of ["mamba1", "mamba2"] as const) {
    for (const text of ["i4:g8", "i4:channel", "i3:g8:span", "i4:tensor"]) {
      test(`${family}, ${text}: no weight is worse than rounded to nearest, and all together are better`, async () => {
        const { model } = await aligned(await foldSample({ ...SPELLING, family }));
        const scheme = parseWeightScheme(text);
        const schemeFor = (): typeof scheme => scheme;
        const clipped = await runPass(roundClipped, model, { schemeFor, secondMoment: momentsOf(model) });
        const nearest = await runPass(roundNearest, model, { schemeFor });
        expect(clipped.changed).toBe(linearsOf(model).length);
        const [with_, without] = [errorsOf(model, clipped.model), errorsOf(model, nearest.model)];
        expect([...with_.keys()].sort()).toEqual([...without.keys()].sort());
        let [sum, whole] = [0, 0];
        for (const [name, error] of with_) {
          expect(error, name).toBeLessThanOrEqual((without.get(name) ?? 0) * (1 + 1e-9));
          sum += error;
          whole += without.get(name) ?? 0;
        }
        expect(sum).toBeLessThan(0.97 * whole);
      });
    }
  }

  test("without any input nothing is clipped", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const scheme = parseWeightScheme("i4:g8");
    const schemeFor = (): typeof scheme => scheme;
    const zero = (value: string) => {
      const { size } = momentsOf(model)(value);
      return { size, count: 1, matrix: new Float64Array(size * size) };
    };
    const clipped = await runPass(roundClipped, model, { schemeFor, secondMoment: zero });
    const nearest = await runPass(roundNearest, model, { schemeFor });
    const bytes = ({ graph }: Model): string[] => roundedWeights(graph).map(({ values }) => values.join());
    expect(bytes(clipped.model)).toEqual(bytes(nearest.model));
  });

  test("asks for the moments it uses, and leaves the rest to other passes", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const scheme = parseWeightScheme("i4:g8");
    const schemeFor = ({ role }: { readonly role: string }) => (role === "in_proj" ? scheme : null);
    const used = new Set<string>();
    const moments = momentsOf(model);
    const { changed } = await runPass(roundClipped, model, {
      schemeFor,
      secondMoment: (value) => {
        used.add(value);
        return moments(value);
      },
    });
    expect(changed).toBe(2);
    expect([...used].sort()).toEqual(roundedInputs(model, schemeFor).sort());
  });

  test("refuses weights that are not numbers", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const scheme = parseWeightScheme("i4:g8");
    const site = linearsOf(model)[0];
    const tensor = model.graph.initializers.get(site?.weight ?? "");
    if (site === undefined || tensor === undefined) throw new Error("there is a projection");
    const bad = f32Tensor(tensor.shape, new Float32Array(tensor.byteLength / 4).fill(Number.NaN));
    const initializers = new Map([...model.graph.initializers, [site.weight, bad]]);
    const broken = { ...model, graph: { ...model.graph, initializers } };
    await expect(
      runPass(roundClipped, broken, { schemeFor: () => scheme, secondMoment: momentsOf(model) }),
    ).rejects.toMatchObject({ code: "quant/not-finite" });
  });
});
