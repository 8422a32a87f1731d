import { describe, expect, test } from "vitest";
import { roundTanh } from "../../passes/round-tanh.js";
import type { Model } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import { dequantizeTanh, roundTanh as roundWeight } from "../../src/quant/round-tanh.js";
import { weightValues } from "../../src/rewrite/weights.js";
import { linearsOf } from "../support/exact-steps.js";
import { aligned, foldSample, spoiled } from "../support/fold-runs.js";
import { difference, golden, outputsOf, runPass } from "../support/pass-runs.js";
import { PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const MAMBA1: RaisedSpelling = { ...PLAIN, family: "mamba1" };
const EVERY = { includes: () => true };

/** The model with every projection's weight replaced by numbers on its curve. */
function onCurve(model: Model): Model {
  const initializers = new Map(model.graph.initializers);
  for (const { weight } of linearsOf(model)) {
    const tensor = initializers.get(weight);
    if (tensor === undefined) throw new Error(`${weight} is an initialiser`);
    const rounded = roundWeight({ label: weight, shape: tensor.shape, data: weightValues(tensor) });
    if (rounded.kind === "table") initializers.set(weight, f32Tensor(tensor.shape, dequantizeTanh(rounded)));
  }
  return { ...model, graph: { ...model.graph, initializers } };
}

const replaced = (model: Model, value: number): Model => {
  const [site] = linearsOf(model);
  const tensor = model.graph.initializers.get(site?.weight ?? "");
  if (site === undefined || tensor === undefined) throw new Error("there is a projection");
  const numbers = new Float32Array(tensor.byteLength / 4).fill(value);
  const initializers = new Map([...model.graph.initializers, [site.weight, f32Tensor(tensor.shape, numbers)] as const]);
  return { ...model, graph: { ...model.graph, initializers } };
};

describe("round-tanh", () => {
  test("golden", async () => {
    const { model } = await aligned(await foldSample(PLAIN));
    const outcome = await runPass(roundTanh, model, EVERY);
    await expect(golden("Weights become codes and a table.", model, outcome)).toMatchFileSnapshot(
      "round-tanh/mamba2.irtxt",
    );
  });

  for (const [name, spelling] of [
    ["mamba1", MAMBA1],
    ["mamba2", PLAIN],
  ] as const) {
    test(`${name}: computes what the numbers on the curve give`, async () => {
      const sample = await aligned(await foldSample(spelling));
      const { model, changed } = await runPass(roundTanh, sample.model, EVERY);
      expect(changed).toBe(linearsOf(sample.model).length);
      const expected = await outputsOf(onCurve(sample.model), sample.feeds, sample.batch);
      expect(difference(await outputsOf(model, sample.feeds, sample.batch), expected)).toBeLessThan(1e-6);
      expect(difference(expected, sample.expected)).toBeGreaterThan(1e-3);
      const shifted = spoiled(model, /in_proj\.weight_table$/, (values) =>
        values.map((_, i) => values[(i + 9) % 256] ?? 0),
      );
      expect(difference(await outputsOf(shifted, sample.feeds, sample.batch), expected)).toBeGreaterThan(1e-3);
    });
  }

  test("constant weights get plain 8 bits, zeros stay zeros", async () => {
    const sample = await aligned(await foldSample(PLAIN));
    for (const value of [0, 0.25]) {
      const flat = replaced(sample.model, value);
      const { model } = await runPass(roundTanh, flat, EVERY);
      expect(model.graph.nodes.filter(({ op }) => op === "DequantizeLinear").length).toBe(1);
      const expected = await outputsOf(onCurve(flat), sample.feeds, sample.batch);
      expect(difference(await outputsOf(model, sample.feeds, sample.batch), expected)).toBeLessThan(1e-5);
    }
  });

  test("leaves projections alone that it is not asked for, and refuses what is no number", async () => {
    const { model } = await aligned(await foldSample(PLAIN));
    const some = await runPass(roundTanh, model, { includes: ({ role }) => role === "out_proj" });
    expect(some.changed).toBe(1);
    expect(linearsOf(some.model).length).toBe(linearsOf(model).length - 1);
    await expect(runPass(roundTanh, replaced(model, Number.NaN), EVERY)).rejects.toMatchObject({
      code: "quant/not-finite",
    });
  });
});
