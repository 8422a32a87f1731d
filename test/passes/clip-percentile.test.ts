import { describe, expect, test } from "vitest";
import { type ClipPercentileOptions, clipPercentile, clippedInputs } from "../../passes/clip-percentile.js";
import { insertQdq } from "../../passes/insert-qdq.js";
import { roundNearest } from "../../passes/round-nearest.js";
import { sortCluster } from "../../passes/sort-cluster.js";
import { type Model, makeValue } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import { tensorType } from "../../src/ir/types.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { step } from "../../src/rewrite/pipeline.js";
import { CLUSTERS_KEY } from "../../src/rewrite/semantic.js";
import { sitesOf } from "../../src/rewrite/sites.js";
import { ALL_ROLES } from "../support/exact-steps.js";
import { aligned, foldSample } from "../support/fold-runs.js";
import { difference, golden, outputsOf, runAll, runPass, type Sample } from "../support/pass-runs.js";
import { PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const MAMBA1: RaisedSpelling = { ...PLAIN, family: "mamba1" };
const tensor = (peak: number): ClipPercentileOptions => ({ range: { of: "tensor", peak: () => peak } });

/** What named values of a model are for a sample. */
async function seen(sample: Sample, model: Model, names: readonly string[]): Promise<Float64Array[]> {
  const outputs = [...model.graph.outputs, ...names.map((name) => makeValue(name, tensorType("f32", null)))];
  const values = await outputsOf({ ...model, graph: { ...model.graph, outputs } }, sample.feeds, sample.batch);
  return names.map((name) => values.get(name) ?? new Float64Array());
}

/** s clamp(round_half_even(x / s)) in float32, as ONNX defines it. */
function onGrid(x: number, range: number): number {
  const scale = Math.fround(range === 0 ? 1 : range / 127);
  const ratio = Math.fround(x / scale);
  const [low, rest] = [Math.floor(ratio), ratio - Math.floor(ratio)];
  const whole = rest === 0.5 ? low + (low % 2 === 0 ? 0 : 1) : Math.round(ratio);
  // Codes know no negative zero.
  return Math.fround(Math.max(-128, Math.min(127, whole)) * scale) + 0;
}

describe("clip-percentile", () => {
  for (const [name, spelling] of [
    ["mamba1", MAMBA1],
    ["mamba2", PLAIN],
  ] as const) {
    test(`golden: ${name}`, async () => {
      const { model } = await aligned(await foldSample(spelling));
      const outcome = await runPass(clipPercentile, model, tensor(1.5));
      await expect(golden("One pair serves all readers of x.", model, outcome)).toMatchFileSnapshot(
        `clip-percentile/${name}.irtxt`,
      );
    });

    for (const peak of [0, 0.05, 2, 1e4]) {
      test(`${name}: x is on the grid of a range of ${peak}, peaks saturate`, async () => {
        const sample = await aligned(await foldSample(spelling));
        const [value = ""] = clippedInputs(sample.model, "tensor");
        const { model, changed } = await runPass(clipPercentile, sample.model, tensor(peak));
        expect(changed).toBe(1);
        const [x, rounded] = await seen(sample, model, [value, `${value}_DequantizeLinear_Output`]);
        expect([...(rounded ?? [])]).toEqual([...(x ?? [])].map((number) => onGrid(number, peak)));
        const readers = model.graph.nodes.filter(({ inputs }) => inputs.includes(value)).map(({ op }) => op);
        expect(readers).toEqual(["QuantizeLinear"]);
      });
    }

    test(`${name}: a wide range loses little, a clipped one more`, async () => {
      const sample = await aligned(await foldSample(spelling));
      const [value = ""] = clippedInputs(sample.model, "tensor");
      const [x = new Float64Array()] = await seen(sample, sample.model, [value]);
      const peak = x.reduce((most, number) => Math.max(most, Math.abs(number)), 0);
      const loss = async (range: number): Promise<number> => {
        const { model } = await runPass(clipPercentile, sample.model, tensor(range));
        return difference(await outputsOf(model, sample.feeds, sample.batch), sample.expected);
      };
      const [whole, half] = [await loss(peak), await loss(peak / 8)];
      expect(whole).toBeGreaterThan(0);
      expect(whole).toBeLessThan(0.05);
      expect(half).toBeGreaterThan(2 * whole);
    });
  }

  test("clusters have a scale each, the largest range among their channels", async () => {
    const spelling: RaisedSpelling = { ...PLAIN, heads: 6, headDim: 5 };
    const sample = await aligned(await foldSample(spelling));
    const sizes = Float64Array.from({ length: 30 }, (_, channel) => 1 + ((channel * 7) % 30));
    const { model: sorted } = await runPass(sortCluster, sample.model, { channelSizes: () => sizes });
    const [value = ""] = clippedInputs(sorted, "cluster");
    const peaks = Float64Array.from({ length: 30 }, (_, channel) => (channel === 4 ? 0 : 0.1 + channel / 30));
    const { model, changed } = await runPass(clipPercentile, sorted, { range: { of: "cluster", peaks: () => peaks } });
    expect(changed).toBe(1);
    const clusters = JSON.parse(
      sitesOf(sorted).blocks[0]?.scan.node.metadata.get(CLUSTERS_KEY) ?? "[]",
    ) as readonly number[];
    expect(new Set(clusters).size).toBeGreaterThan(8);
    const [x, rounded] = await seen(sample, model, [value, `${value}_DequantizeLinear_Output`]);
    const expected = [...(x ?? [])].map((number, at) => {
      const mine = clusters[at % 30];
      const range = Math.max(...peaks.filter((_, channel) => clusters[channel] === mine));
      return onGrid(number, range);
    });
    expect([...(rounded ?? [])]).toEqual(expected);
  });

  test("x_proj keeps the pair and gets no second one", async () => {
    const sample = await aligned(await foldSample(MAMBA1));
    const { model } = await runAll(sample.model, [
      step(clipPercentile, tensor(2)),
      step(roundNearest, { schemeFor: () => parseWeightScheme("i8:channel") }),
      step(insertQdq, { roles: ALL_ROLES, timing: "static", range: () => 3 }),
    ]);
    const site = sitesOf(model).blocks[0]?.xProj;
    const [value = ""] = clippedInputs(sample.model, "tensor");
    expect(site?.input).toBe(`${value}_DequantizeLinear_Output`);
    const pairs = model.graph.nodes.filter(({ op }) => op === "QuantizeLinear");
    expect(new Set(pairs.map(({ inputs }) => inputs[0])).size).toBe(pairs.length);
    expect(pairs.length).toBe(5);
  });

  test("refuses clusters that were not made, and ranges that are no numbers", async () => {
    const sample = await aligned(await foldSample(PLAIN));
    const peaks = (): Float64Array => new Float64Array(12).fill(1);
    const outcome = await runPass(clipPercentile, sample.model, { range: { of: "cluster", peaks } });
    expect(outcome.changed).toBe(0);
    expect(outcome.remarks[0]?.message).toMatch(/not sorted into clusters/);
    for (const range of [Number.NaN, Number.POSITIVE_INFINITY, -1]) {
      await expect(runPass(clipPercentile, sample.model, tensor(range))).rejects.toMatchObject({
        code: "clip-percentile/range",
        exitCode: 5,
      });
    }
  });

  test("a wrong scale would show", async () => {
    const sample = await aligned(await foldSample(PLAIN));
    const { model } = await runPass(clipPercentile, sample.model, tensor(2));
    const [name = ""] = [...model.graph.initializers.keys()].filter((candidate) => candidate.startsWith("mambac.clip"));
    const initializers = new Map([...model.graph.initializers, [name, f32Tensor([], [0.5])]]);
    const wrong = { ...model, graph: { ...model.graph, initializers } };
    const [value = ""] = clippedInputs(sample.model, "tensor");
    const [x, rounded] = await seen(sample, wrong, [value, `${value}_DequantizeLinear_Output`]);
    expect([...(rounded ?? [])]).not.toEqual([...(x ?? [])].map((number) => onGrid(number, 2)));
  });
});
