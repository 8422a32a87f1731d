import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Weight } from "../../src/quant/ranges.js";
import { dequantizeTanh, roundTanh } from "../../src/quant/round-tanh.js";
import { MambacError } from "../../src/support/errors.js";
import { normals } from "../support/arrays.js";

const weightOf = (data: Float32Array): Weight => ({ label: "w", shape: [data.length], data });

function statistics(data: Float32Array): { mean: number; deviation: number } {
  const mean = data.reduce((sum, value) => sum + value, 0) / data.length;
  const squares = data.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, deviation: Math.sqrt(squares / (data.length - 1)) };
}

describe("roundTanh", () => {
  it("follows the published formulas", () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: 300 }), fc.nat(), (count, seed) => {
        const data = Float32Array.from(normals(count, seed), (value) => 0.3 * value ** 3 + 0.1);
        const rounded = roundTanh(weightOf(data));
        if (rounded.kind !== "table") throw new Error("normal numbers need no fallback");
        const { mean, deviation } = statistics(data);
        const tanh = Array.from(data, (value) => Math.tanh(Math.min(Math.max((value - mean) / deviation, -3), 3)));
        const gain = 127 / Math.max(...tanh.map(Math.abs));
        const values = dequantizeTanh(rounded);
        values.forEach((value, i) => {
          const code = Math.round(gain * (tanh[i] ?? 0));
          const expected = deviation * Math.atanh(Math.min(Math.max(code / gain, -0.99), 0.99)) + mean;
          // A tie in the code may fall either way: sums here run in another order.
          const near = Math.abs(gain * (tanh[i] ?? 0) - code) > 0.499;
          if (!near) expect(Math.abs(value - expected)).toBeLessThan(1e-5 * deviation + 1e-6 * Math.abs(mean));
          expect(Math.abs(value - mean)).toBeLessThanOrEqual(2.6467 * deviation * 1.00001 + 1e-6);
        });
      }),
      { seed: 9, numRuns: 60 },
    );
  });

  it("is finer than absmax near the mean when there are outliers", () => {
    const data = Float32Array.from(normals(4000, 3), (value) => value * 0.02);
    data[0] = 3;
    const rounded = roundTanh(weightOf(data));
    if (rounded.kind !== "table") throw new Error("these numbers need no fallback");
    const values = dequantizeTanh(rounded);
    let worst = 0;
    data.forEach((value, i) => {
      if (Math.abs(value) < 0.02) worst = Math.max(worst, Math.abs(value - (values[i] ?? 0)));
    });
    expect(worst).toBeLessThan(3 / 127 / 2 / 5);
  });

  it.each([
    ["constant", new Float32Array(8).fill(0.25)],
    ["zero", new Float32Array(8)],
    ["single", Float32Array.of(-2)],
    ["empty", new Float32Array(0)],
    ["nearly constant", Float32Array.of(1e-10, 2e-10, 1.5e-10)],
  ])("falls back for a %s tensor", (_, data) => {
    expect(roundTanh(weightOf(data)).kind).toBe("affine");
  });

  it("refuses NaN", () => {
    expect(() => roundTanh(weightOf(Float32Array.of(1, Number.NaN)))).toThrow(MambacError);
  });
});
