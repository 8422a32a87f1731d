import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Matrix, zeros } from "../../src/linalg/matrix.js";
import { awq, awqScales } from "../../src/quant/awq.js";
import { dequantize } from "../../src/quant/grid.js";
import { columnErrors, outputError } from "../../src/quant/output-error.js";
import { roundToNearest } from "../../src/quant/round-nearest.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { EXIT } from "../../src/support/errors.js";
import { Random } from "../../src/support/random.js";
import { normals } from "../support/arrays.js";
import { loopGemm } from "../support/loop-gemm.js";
import { heavyWeight } from "./weights.js";

/** Inputs of which a few are large: the rows, their moments and mean magnitudes. */
async function inputsOf(
  channels: number,
  seed: number,
): Promise<{ readonly x: Matrix; readonly moments: Matrix; readonly meanAbs: Float64Array }> {
  const random = new Random(seed);
  const x = zeros(60, channels);
  const meanAbs = new Float64Array(channels);
  for (let i = 0; i < x.data.length; i++) {
    x.data[i] = random.normal() * ((i % channels) % 7 === 1 ? 12 : 1);
    meanAbs[i % channels]! += Math.abs(x.data[i] ?? 0) / 60;
  }
  return { x, moments: await loopGemm(x, x, { transposeA: true }), meanAbs };
}

describe("outputError", () => {
  it("is the squared error of the outputs, column by column, whole or for some rows", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.nat(),
        fc.integer({ min: 0, max: 5 }),
        fc.integer({ min: 5, max: 9 }),
        async (seed, top, bottom) => {
          const { x, moments } = await inputsOf(9, seed);
          const [weight, other] = [heavyWeight([9, 4], seed), heavyWeight([9, 4], seed + 1)];
          const divisor = normals(9, seed).map((value) => 1 + value * value);
          const expected = new Float64Array(4);
          for (let t = 0; t < 60; t++) {
            for (let n = 0; n < 4; n++) {
              let sum = 0;
              for (let k = top; k < bottom; k++) {
                const difference = (other.data[k * 4 + n] ?? 0) / (divisor[k] ?? 1) - (weight.data[k * 4 + n] ?? 0);
                sum += (x.data[t * 9 + k] ?? 0) * difference;
              }
              expected[n]! += sum * sum;
            }
          }
          const found = await columnErrors(
            { weight: weight.data, rounded: other.data, divisor },
            moments,
            loopGemm,
            top,
            bottom,
          );
          found.forEach((error, n) => expect(error).toBeCloseTo(expected[n] ?? 0, 6));
        },
      ),
      { seed: 17, numRuns: 30 },
    );
  });

  it("is zero for equal weights", async () => {
    const { moments } = await inputsOf(5, 1);
    const { data } = heavyWeight([5, 3], 1);
    expect(await outputError(data, data, moments, loopGemm)).toBe(0);
  });
});

describe("awqScales", () => {
  it("is a power of the mean over the geometric mean of the extremes", () => {
    const scales = awqScales([1, 4, 16, 0], 0.5);
    expect([...scales]).toEqual([0.5, 1, 2, 1]);
    expect([...awqScales([1, 4, 16, 0], 0)]).toEqual([1, 1, 1, 1]);
  });
});

describe("awq", () => {
  it.each(["u4:g8", "i4:g12", "u3:channel", "i4:tensor", "u4:in-channel", "i2:g8"])(
    "never loses to rounding to nearest and usually wins: %s",
    async (text) => {
      const scheme = parseWeightScheme(text);
      const ratios: number[] = [];
      await fc.assert(
        fc.asyncProperty(fc.nat(), async (seed) => {
          const { moments, meanAbs } = await inputsOf(24, seed);
          const weights = [heavyWeight([24, 10], seed + 1), heavyWeight([24, 5], seed + 2)];
          const { errors, quantized, scales } = await awq(weights, meanAbs, moments, scheme, loopGemm, { points: 10 });
          let [nearest, actual] = [0, 0];
          for (const [i, weight] of weights.entries()) {
            nearest += await outputError(weight.data, dequantize(roundToNearest(weight, scheme)), moments, loopGemm);
            const rounded = quantized[i] === undefined ? new Float32Array(0) : dequantize(quantized[i]);
            const errorsHere = await columnErrors({ weight: weight.data, rounded, divisor: scales }, moments, loopGemm);
            actual += errorsHere.reduce((sum, error) => sum + error, 0);
          }
          expect(errors.nearest / nearest).toBeCloseTo(1, 6);
          expect(actual / errors.clipped).toBeCloseTo(1, 6);
          expect(errors.scaled).toBeLessThanOrEqual(errors.nearest);
          expect(errors.clipped).toBeLessThanOrEqual(errors.scaled);
          ratios.push(errors.clipped / errors.nearest);
        }),
        { seed: 18, numRuns: 12 },
      );
      ratios.sort((a, b) => a - b);
      expect(ratios[6]).toBeLessThan(text === "u4:in-channel" ? 1.0001 : 0.95);
    },
  );

  it("leaves ranges alone on request", async () => {
    const { moments, meanAbs } = await inputsOf(16, 3);
    const weight = heavyWeight([16, 4], 4);
    const scheme = parseWeightScheme("u4:g8");
    const result = await awq([weight], meanAbs, moments, scheme, loopGemm, { clipSteps: 0 });
    expect(result.errors.clipped).toBeCloseTo(result.errors.scaled, 6);
  });

  it("keeps the weights of dead inputs as they are and refuses layers that are dead altogether", async () => {
    const { moments, meanAbs } = await inputsOf(8, 5);
    meanAbs[3] = 0;
    const weight = heavyWeight([8, 4], 6);
    const result = await awq([weight], meanAbs, moments, parseWeightScheme("i8:channel"), loopGemm);
    expect(result.scales[3]).toBe(1);
    expect(result.scales.every((scale) => scale > 0 && Number.isFinite(scale))).toBe(true);
    const dead = awq([weight], new Float64Array(8), zeros(8, 8), parseWeightScheme("i8:channel"), loopGemm);
    await expect(dead).rejects.toMatchObject({ code: "awq/no-samples", exitCode: EXIT.calibration });
  });
});
