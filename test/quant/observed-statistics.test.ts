import { expect, test } from "vitest";
import { observedStatistics } from "../../src/quant/observed-statistics.js";
import { HistogramObserver } from "../../src/quant/observers.js";
import { Random } from "../../src/support/random.js";

function kurtosisOf(values: Float32Array): number {
  const histogram = new HistogramObserver(1);
  histogram.observe(values, 1);
  return observedStatistics(
    () => histogram,
    () => new Error("missing"),
  ).kurtosis("x");
}

test("the kurtosis of a histogram is that of the numbers, within one percent", () => {
  const random = new Random(2);
  for (const shape of [(u: number) => u, (u: number) => u ** 3, (u: number) => Math.tan(1.5 * u)]) {
    const values = Float32Array.from({ length: 4000 }, () => shape(2 * random.uniform() - 1));
    let [second, fourth] = [0, 0];
    for (const value of values) {
      second += value ** 2;
      fourth += value ** 4;
    }
    const exact = (fourth * values.length) / second ** 2;
    expect(Math.abs(kurtosisOf(values) / exact - 1)).toBeLessThan(0.01);
  }
});

test("one outlier among n has a kurtosis of n, a constant of one, zeros none", () => {
  const outlier = new Float32Array(1000);
  outlier[7] = 3;
  expect(kurtosisOf(outlier)).toBeCloseTo(1000, 0);
  expect(kurtosisOf(new Float32Array(100).fill(-2))).toBeCloseTo(1, 6);
  expect(kurtosisOf(new Float32Array(10))).toBe(0);
});
