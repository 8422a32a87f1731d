import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Matrix, zeros } from "../../src/linalg/matrix.js";
import { awqScales, roundClipped, searchAwqScales } from "../../src/quant/awq.js";
import { dequantize } from "../../src/quant/grid.js";
import { columnErrors, outputError } from "../../src/quant/output-error.js";
import { roundToNearest } from "../../src/quant/round-nearest.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { scaledRows } from "../../src/quant/smooth.js";
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

describe("searchAwqScales", () => {
  const readersOf = (seed: number, scheme: string, inputs: number) =>
    [10, 5].map((outputs, at) => ({
      weight: heavyWeight([inputs, outputs], seed + at + 1),
      scheme: parseWeightScheme(scheme),
    }));

  it.each(["u4:g8", "i4:g12", "u3:channel", "i4:tensor", "i2:g8"])(
    "never loses to rounding to nearest and usually wins: %s",
    async (text) => {
      const ratios: number[] = [];
      await fc.assert(
        fc.asyncProperty(fc.nat(), async (seed) => {
          const { moments, meanAbs } = await inputsOf(24, seed);
          const readers = readersOf(seed, text, 24);
          const { errors, scales, beta } = await searchAwqScales(readers, meanAbs, moments, loopGemm, 10);
          let [nearest, actual] = [0, 0];
          for (const { weight, scheme } of readers) {
            nearest += await outputError(weight.data, dequantize(roundToNearest(weight, scheme)), moments, loopGemm);
            const data = scaledRows(weight, scales);
            const rounded = dequantize(roundToNearest({ ...weight, data }, scheme));
            const errorsHere = await columnErrors({ weight: weight.data, rounded, divisor: scales }, moments, loopGemm);
            actual += errorsHere.reduce((sum, error) => sum + error, 0);
          }
          expect(errors.nearest / nearest).toBeCloseTo(1, 6);
          expect(errors.scaled / actual).toBeCloseTo(1, 6);
          expect(errors.scaled).toBeLessThanOrEqual(errors.nearest);
          expect([...scales]).toEqual([...awqScales(meanAbs, beta)]);
          ratios.push(errors.scaled / errors.nearest);
        }),
        { seed: 18, numRuns: 12 },
      );
      ratios.sort((a, b) => a - b);
      expect(ratios[6]).toBeLessThan(0.97);
    },
  );

  it("does not count weights that stay float", async () => {
    const { moments, meanAbs } = await inputsOf(24, 7);
    const [first, second] = readersOf(7, "i4:g8", 24);
    if (first === undefined || second === undefined) throw new Error("two readers");
    const alone = await searchAwqScales([first], meanAbs, moments, loopGemm, 10);
    const beside = await searchAwqScales([first, { ...second, scheme: null }], meanAbs, moments, loopGemm, 10);
    expect(beside).toEqual(alone);
  });

  it("keeps the weights of dead inputs as they are and refuses layers that are dead altogether", async () => {
    const { moments, meanAbs } = await inputsOf(8, 5);
    meanAbs[3] = 0;
    const readers = readersOf(6, "i4:channel", 8);
    const result = await searchAwqScales(readers, meanAbs, moments, loopGemm);
    expect(result.scales[3]).toBe(1);
    expect(result.scales.every((scale) => scale > 0 && Number.isFinite(scale))).toBe(true);
    const dead = searchAwqScales(readers, new Float64Array(8), zeros(8, 8), loopGemm);
    await expect(dead).rejects.toMatchObject({ code: "awq/no-samples", exitCode: EXIT.calibration });
  });
});

describe("roundClipped", () => {
  it.each(["u4:g8", "i4:g12", "u3:channel", "i4:tensor", "u4:in-channel", "i2:g8"])(
    "never loses to whole ranges and usually wins: %s",
    async (text) => {
      const scheme = parseWeightScheme(text);
      const ratios: number[] = [];
      await fc.assert(
        fc.asyncProperty(fc.nat(), async (seed) => {
          const { moments } = await inputsOf(24, seed);
          const weight = heavyWeight([24, 10], seed + 1);
          const { quantized, errors } = await roundClipped(weight, moments, scheme, loopGemm);
          const whole = dequantize(roundToNearest(weight, scheme));
          expect(errors.nearest / (await outputError(weight.data, whole, moments, loopGemm))).toBeCloseTo(1, 6);
          const actual = await outputError(weight.data, dequantize(quantized), moments, loopGemm);
          expect(errors.clipped / actual).toBeCloseTo(1, 6);
          expect(errors.clipped).toBeLessThanOrEqual(errors.nearest);
          ratios.push(errors.clipped / errors.nearest);
        }),
        { seed: 19, numRuns: 12 },
      );
      ratios.sort((a, b) => a - b);
      // Scales of inputs have no outputs of their own to search by.
      expect(ratios[6]).toBeLessThan(text === "u4:in-channel" ? 1.0001 : 0.97);
    },
  );
});
