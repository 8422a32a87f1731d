import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Matrix, matrixOf, zeros } from "../../src/linalg/matrix.js";
import { dequantize } from "../../src/quant/grid.js";
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
  const search = async (outlier: number, scheme: string = "i8:channel", rows: number = 400) => {
    const samples = samplesWith(outlier, rows, 24, 1);
    const wide = matrixOf(rows, 24, Float64Array.from(samples.data));
    const sum = await loopGemm(wide, wide, { transposeA: true });
    return {
      weights: [heavyWeight([24, 10], 2), heavyWeight([24, 6], 3)].map((weight) => ({
        weight,
        scheme: parseWeightScheme(scheme),
      })),
      peaks: peaksOf(samples),
      moments: { ...sum, data: sum.data.map((value) => value / rows) },
      activationBits: 8 as const,
      alphas: [0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
      samples,
    };
  };

  it("smooths outliers and says by how much it helps", async () => {
    const choice = await searchSmoothing(await search(200), loopGemm);
    expect(choice.alpha).not.toBeNull();
    const errorAt = (alpha: number | null): number => choice.trials.find((t) => t.alpha === alpha)?.error ?? Number.NaN;
    expect(errorAt(choice.alpha)).toBeLessThan(errorAt(null) / 2);
    expect(Math.min(...choice.trials.map((t) => t.error))).toBe(errorAt(choice.alpha));
    expect(choice.trials.map((t) => t.alpha)).toEqual([null, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]);
  });

  it("leaves alone what smoothing would harm", async () => {
    const harmless = { ...(await search(1, "i4:tensor")), alphas: [0.99] };
    const spread = { ...harmless, peaks: harmless.peaks.map((peak, k) => peak * 10 ** (k % 4)), activationBits: null };
    const choice = await searchSmoothing(spread, loopGemm);
    expect(choice.alpha).toBeNull();
    expect(choice.scales.every((scale) => scale === 1)).toBe(true);
  });

  it("without any input there is no error and no smoothing", async () => {
    const found = await search(5);
    const dead = { ...found, peaks: new Float64Array(24), moments: zeros(24, 24) };
    const choice = await searchSmoothing(dead, loopGemm);
    expect([choice.alpha, ...choice.trials.map(({ error }) => error)]).toEqual([null, 0, 0, 0, 0, 0, 0, 0]);
  });

  it.each([1, 50, 500])(
    "expects the error that the layer makes when it runs, outliers %s times as large",
    async (outlier) => {
      const found = await search(outlier);
      const { weights, samples, peaks } = found;
      const { trials } = await searchSmoothing({ ...found, alphas: [0.5] }, loopGemm);
      const inputs = inputPeaks(weights.map(({ weight }) => weight));
      const candidates = [new Float64Array(24).fill(1), smoothingScales(peaks, inputs, 0.5)];
      for (const [at, scales] of candidates.entries()) {
        const divided = samples.data.map((value, i) => value / (scales[i % 24] ?? 1));
        const shape = [samples.rows, 24];
        const x = dequantize(roundToNearest({ label: "x", shape, data: divided }, parseWeightScheme("i8:tensor")));
        let [error, size] = [0, 0];
        for (const { weight, scheme } of weights) {
          const [, outputs = 0] = weight.shape;
          const w = dequantize(roundToNearest({ ...weight, data: scaledRows(weight, scales) }, scheme));
          const exact = await loopGemm(samples, matrixOf(24, outputs, weight.data));
          const actual = await loopGemm(matrixOf(samples.rows, 24, x), matrixOf(24, outputs, w));
          exact.data.forEach((value, i) => {
            error += ((actual.data[i] ?? 0) - value) ** 2;
            size += value ** 2;
          });
        }
        const expected = trials[at]?.error ?? 0;
        expect(error / size).toBeGreaterThan(0.75 * expected);
        expect(error / size).toBeLessThan(1.25 * expected);
      }
    },
  );
});
