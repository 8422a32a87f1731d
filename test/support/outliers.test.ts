import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { passesFor } from "../../passes/index.js";
import { rotateOutput } from "../../passes/rotate-output.js";
import { compile } from "../../src/compile.js";
import { type Model, makeValue } from "../../src/ir/graph.js";
import { tensorType } from "../../src/ir/types.js";
import { FLOAT_STATE } from "../../src/rewrite/semantic.js";
import { sitesOf } from "../../src/rewrite/sites.js";
import { type LoadedPackage, loadPackage } from "../../src/run/stateful.js";
import { fixture } from "./fixture-models.js";
import { relative } from "./fixture-row.js";
import { aligned, fold, foldSample, spoiled, valuesOf } from "./fold-runs.js";
import { injectOutliers, OUTLIERS, outlierFactors, withOutliers } from "./outliers.js";
import { expectSame, expectTold, forMost, outputsOf, runPass, type Sample } from "./pass-runs.js";
import { arbitraryRaised, PLAIN } from "./raised-spelling.js";
import { DEMO } from "./state-quality.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-outliers-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Compiles in f32, with outliers or without, and loads the result for one sequence. */
async function load(source: string, outliers: boolean): Promise<LoadedPackage> {
  const output = join(folder, outliers ? "outliers.onnx" : "plain.onnx");
  const passes = passesFor({ state: FLOAT_STATE });
  await compile(
    { inputs: [source], output, state: FLOAT_STATE },
    outliers ? { ...passes, finish: (pair) => withOutliers(passes.finish(pair)) } : passes,
  );
  return loadPackage(output, { library: "none" });
}

/** Largest magnitude over the median of the channels' largest, of a value [batch, length, channels]. */
async function spread(sample: Sample, model: Model, value: string, channels: number): Promise<number> {
  const output = makeValue(value, tensorType("f32", null));
  const seen: Model = { ...model, graph: { ...model.graph, outputs: [...model.graph.outputs, output] } };
  const values = (await outputsOf(seen, sample.feeds, sample.batch)).get(value);
  if (values === undefined) throw new Error(`${value} is not an output`);
  const largest = new Float64Array(channels);
  for (const [i, x] of values.entries()) largest[i % channels] = Math.max(largest[i % channels] ?? 0, Math.abs(x));
  largest.sort();
  return (largest.at(-1) ?? 0) / (largest[channels >> 1] ?? 1);
}

describe("injected outliers", () => {
  test("leave random models as they are", async () => {
    await forMost(arbitraryRaised(), 14, async (spelling) => {
      const sample = await aligned(await foldSample(spelling));
      const outcome = await fold(sample, injectOutliers, OUTLIERS);
      await expectSame(sample, outcome.model);
      return outcome.changed >= 2 * spelling.layers;
    });
  });

  for (const [label, source] of [
    ["the demo model", join(DEMO, "prefill.onnx")],
    ["a Mamba-1 fixture", fixture("forms/mamba_torchscript_dynamic_axes.onnx")],
  ] as const) {
    test(`leave the logits of ${label} as they are`, async () => {
      const tokens = Array.from("And it came to pass in those days", (letter) => letter.charCodeAt(0) % 90);
      await using plain = await load(source, false);
      const expected = (await plain.prefill(tokens)).data.slice();
      await using grown = await load(source, true);
      expect(relative((await grown.prefill(tokens)).data, expected)).toBeLessThan(1e-4);
      expect(grown.model.graph.initializers.size).toBeGreaterThan(0);
    });
  }

  for (const family of ["mamba1", "mamba2"] as const) {
    test(`stand out in front of in_proj and out_proj, and a rotation spreads them: ${family}`, async () => {
      const sample = await aligned(await foldSample({ ...PLAIN, family, dModel: 20, heads: 8, headDim: 8 }));
      const { model } = await fold(sample, injectOutliers, OUTLIERS);
      for (const role of ["inProj", "outProj"] as const) {
        const [before, after] = [sample.model, model].map((one) => sitesOf(one).blocks[0]?.[role]);
        if (before == null || after == null) throw new Error("the block has projections");
        const plain = await spread(sample, sample.model, before.input, before.inFeatures);
        const grown = await spread(sample, model, after.input, after.inFeatures);
        expect(grown).toBeGreaterThan(Math.max(10, 4 * plain));
      }
      const { model: rotated } = await runPass(rotateOutput, model, {});
      const out = sitesOf(rotated).blocks[0]?.outProj;
      if (out == null) throw new Error("the block has an out_proj");
      expect(await spread(sample, rotated, out.input, out.inFeatures)).toBeLessThan(5);
    });
  }

  test("are told from outliers that the weights do not undo", async () => {
    const sample = await aligned(await foldSample(PLAIN));
    const { model } = await fold(sample, injectOutliers, OUTLIERS);
    await expectTold(
      sample,
      spoiled(model, /out_proj\.weight\.smooth$/, () => valuesOf(sample.model, /out_proj\.weight$/)),
      "weights as they were",
    );
  });

  test("factors are within bounds and depend on seed and value", () => {
    const factors = outlierFactors("x", 256, OUTLIERS);
    const chosen = [...factors].filter((factor) => factor !== 1);
    expect(chosen.length).toBeGreaterThanOrEqual(2);
    expect(chosen.length).toBeLessThanOrEqual(4);
    for (const factor of chosen) expect(factor >= 30 && factor <= 100).toBe(true);
    expect(outlierFactors("x", 256, OUTLIERS)).toEqual(factors);
    expect(outlierFactors("y", 256, OUTLIERS)).not.toEqual(factors);
    expect(outlierFactors("x", 256, { ...OUTLIERS, seed: 2 })).not.toEqual(factors);
  });
});
