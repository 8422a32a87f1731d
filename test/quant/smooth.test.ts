import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Matrix, matrixOf } from "../../src/linalg/matrix.js";
import { dequantize } from "../../src/quant/grid.js";
import { relativeL2 } from "../../src/quant/metrics.js";
import { roundToNearest } from "../../src/quant/round-nearest.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { inputPeaks, scaledRows, searchSmoothing, smoothingScales } from "../../src/quant/smooth.js";
import { normals } from "../support/arrays.js";
import { loopGemm } from "../support/loop-gemm.js";
import { heavyWeight } from "./weights.js";

function samplesWith(outlier: number, rows: number, cols: number, seed: number): Matrix<Float32Array> {
  const data = Float32Array.from(normals(rows * cols, seed), (value, i) => (i % cols === 2 ? value * outlier : value));
  return matrixOf(rows, cols, data);
}

const peaksOf = ({ data, cols }: Matrix<Float32Array>): Float64Array => {
  const peaks = new Float64Array(cols);
  data.forEach((value, i) => {
    peaks[i % cols] = Math.max(peaks[i % cols] ?? 0, Math.abs(value));
  });
  return peaks;
};

describe("smoothingScales", () => {
  it("is the published formula, one for dead sides, within bounds", () => {
    expect([...smoothingScales([4, 9, 0, 1e-9, 5], [1, 4, 1, 1, 0], 0.5)]).toEqual([2, 1.5, 1, 1, 1]);
    expect([...smoothingScales([8], [2], 0)]).toEqual([0.5]);
    expect([...smoothingScales([8], [2], 1)]).toEqual([8]);
    expect([...smoothingScales([1e8, 1e-6], [1e-4, 1e6], 0.5)]).toEqual([1e4, 1e-5]);
    const bounds = { smallest: 1e-2, largest: 1e2 };
    expect([...smoothingScales([1e8, 1e-6], [1e-4, 1e6], 0.5, bounds)]).toEqual([1e2, 1e-2]);
  });

  it("at one half makes both sides equally large", () => {
    fc.assert(
      fc.property(fc.nat(), (seed) => {
        const weight = heavyWeight([12, 5], seed);
        const samples = samplesWith(30, 9, 12, seed);
        const [activation, inputs] = [peaksOf(samples), inputPeaks([weight])];
        const scales = smoothingScales(activation, inputs, 0.5);
        const after = inputPeaks([{ ...weight, data: scaledRows(weight, scales) }]);
        scales.forEach((scale, k) => {
          if ((inputs[k] ?? 0) > 0) expect(after[k]).toBeCloseTo((activation[k] ?? 0) / scale, 4);
        });
      }),
      { seed: 16, numRuns: 40 },
    );
  });

  it("takes the largest of all weights that read the activation", () => {
    const a = { label: "a", shape: [2, 2], data: Float32Array.of(1, -3, 0.5, 0.25) };
    const b = { label: "b", shape: [2, 1], data: Float32Array.of(2, -4) };
    expect([...inputPeaks([a, b])]).toEqual([3, 4]);
  });
});

describe("searchSmoothing", () => {
  const search = (outlier: number, scale: "tensor" | "token") => {
    const samples = samplesWith(outlier, 64, 24, 1);
    return {
      weights: [heavyWeight([24, 10], 2), heavyWeight([24, 6], 3)],
      peaks: peaksOf(samples),
      samples,
      weightScheme: parseWeightScheme("i8:channel"),
      activation: { bits: 8 as const, scale },
    };
  };

  it.each(["tensor", "token"] as const)("smooths outliers and says by how much it helps, by %s", async (scale) => {
    const choice = await searchSmoothing(search(200, scale), loopGemm);
    expect(choice.alpha).not.toBeNull();
    const errorAt = (alpha: number | null): number => choice.trials.find((t) => t.alpha === alpha)?.error ?? Number.NaN;
    expect(errorAt(choice.alpha)).toBeLessThan(errorAt(null) / 2);
    expect(Math.min(...choice.trials.map((t) => t.error))).toBe(errorAt(choice.alpha));
    expect(choice.trials.map((t) => t.alpha)).toEqual([null, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]);
  });

  it("leaves alone what smoothing would harm", async () => {
    const harmless = { ...search(1, "token"), weightScheme: parseWeightScheme("i4:tensor"), alphas: [0.99] };
    const spread = { ...harmless, peaks: harmless.peaks.map((peak, k) => peak * 10 ** (k % 4)) };
    const choice = await searchSmoothing(spread, loopGemm);
    expect(choice.alpha).toBeNull();
    expect(choice.scales.every((scale) => scale === 1)).toBe(true);
  });

  it("measures the error of the layer as it would run", async () => {
    const { weights, samples, peaks, ...rest } = search(50, "tensor");
    const [weight] = weights;
    if (weight === undefined) throw new Error("no weight");
    const choice = await searchSmoothing({ ...rest, weights: [weight], samples, peaks, alphas: [0.5] }, loopGemm);
    const scales = smoothingScales(peaks, inputPeaks([weight]), 0.5);
    const divided = samples.data.map((value, i) => value / (scales[i % 24] ?? 1));
    const x = dequantize(
      roundToNearest({ label: "x", shape: [64, 24], data: divided }, parseWeightScheme("i8:tensor")),
    );
    const w = dequantize(roundToNearest({ ...weight, data: scaledRows(weight, scales) }, rest.weightScheme));
    const exact = await loopGemm(samples, matrixOf(24, 10, weight.data));
    const actual = await loopGemm(matrixOf(64, 24, x), matrixOf(24, 10, w));
    expect(choice.trials[1]?.error).toBeCloseTo(relativeL2(exact.data, actual.data) ** 2, 10);
  });
});
