import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { identity, type Matrix, matrixOf, zeros } from "../../src/linalg/matrix.js";
import { gptq } from "../../src/quant/gptq.js";
import { dequantize } from "../../src/quant/grid.js";
import { outputError } from "../../src/quant/output-error.js";
import type { Weight } from "../../src/quant/ranges.js";
import { roundToNearest } from "../../src/quant/round-nearest.js";
import { parseWeightScheme, type WeightScheme } from "../../src/quant/scheme.js";
import { EXIT, MambacError } from "../../src/support/errors.js";
import { Random } from "../../src/support/random.js";
import { maxDifference } from "../support/arrays.js";
import { loopGemm } from "../support/loop-gemm.js";
import { heavyWeight, schemes } from "./weights.js";

/** Moments of correlated inputs with outlier channels. */
async function moments(inputs: number, samples: number, seed: number): Promise<Matrix> {
  const random = new Random(seed);
  const x = zeros(samples, inputs);
  for (let t = 0; t < samples; t++) {
    for (let k = 0; k < inputs; k++) {
      const previous = k === 0 ? 0 : (x.data[t * inputs + k - 1] ?? 0);
      x.data[t * inputs + k] = 0.7 * previous + random.normal() * (k % 11 === 3 ? 6 : 1);
    }
  }
  return loopGemm(x, x, { transposeA: true });
}

const errorOf = (weight: Weight, rounded: Float32Array, h: Matrix): Promise<number> =>
  outputError(weight.data, rounded, h, loopGemm);

const plain = (drawn: WeightScheme): WeightScheme => ({ ...drawn, clip: { kind: "none" } });

describe("gptq", () => {
  it("is round to nearest, bit for bit, when inputs are uncorrelated and alike", async () => {
    await fc.assert(
      fc.asyncProperty(
        schemes(2),
        fc.integer({ min: 1, max: 30 }),
        fc.integer({ min: 1, max: 12 }),
        fc.integer({ min: 1, max: 12 }),
        fc.boolean(),
        fc.nat(),
        async (scheme, inputs, outputs, blockSize, actOrder, seed) => {
          const weight = heavyWeight([inputs, outputs], seed);
          const { quantized, deadInputs } = await gptq(weight, identity(inputs), scheme, loopGemm, {
            blockSize,
            actOrder,
          });
          expect(quantized).toEqual(roundToNearest(weight, scheme));
          expect(deadInputs).toBe(0);
        },
      ),
      { seed: 10, numRuns: 150 },
    );
  });

  it("beats round to nearest in the error of the outputs", async () => {
    const ratios: number[] = [];
    await fc.assert(
      fc.asyncProperty(schemes(2), fc.boolean(), fc.nat(), async (drawn, actOrder, seed) => {
        const scheme = plain(drawn);
        const h = await moments(48, 200, seed);
        const weight = heavyWeight([48, 20], seed + 1);
        const { quantized } = await gptq(weight, h, scheme, loopGemm, { actOrder, blockSize: 16 });
        const [after, before] = [
          await errorOf(weight, dequantize(quantized), h),
          await errorOf(weight, dequantize(roundToNearest(weight, scheme)), h),
        ];
        ratios.push(after / before);
        // At 2 bits most weights are clipped or zero, and a greedy walk may lose a little; never by much.
        expect(after).toBeLessThan(before * (scheme.bits === 2 ? 1.15 : 0.95));
      }),
      { seed: 11, numRuns: 60 },
    );
    ratios.sort((a, b) => a - b);
    expect(ratios[30]).toBeLessThan(0.7);
  });

  it("gives the same whatever the block and however large the moments", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom("i4:channel", "u4:g8", "i8:g12", "i4:g40", "i4:tensor", "u4:in-channel"),
        fc.integer({ min: 1, max: 50 }),
        fc.constantFrom(1e-6, 3, 1e9),
        async (text, blockSize, factor) => {
          const scheme = parseWeightScheme(text);
          const h = await moments(50, 120, 5);
          const scaled = matrixOf(
            50,
            50,
            h.data.map((value) => value * factor),
          );
          const weight = heavyWeight([50, 9], 6);
          const whole = await gptq(weight, h, scheme, loopGemm, { blockSize: 50 });
          const blocked = await gptq(weight, scaled, scheme, loopGemm, { blockSize });
          expect(blocked.quantized.codes).toEqual(whole.quantized.codes);
          expect(maxDifference(blocked.quantized.scales, whole.quantized.scales)).toBeLessThan(1e-6);
        },
      ),
      { seed: 12, numRuns: 40 },
    );
  });

  it("is the textbook recursion on inv(H)", async () => {
    const [inputs, outputs] = [12, 5];
    const h = await moments(inputs, 60, 2);
    const weight = heavyWeight([inputs, outputs], 3);
    const scheme = parseWeightScheme("i4:channel");
    const { quantized } = await gptq(weight, h, scheme, loopGemm, { damping: 0.01, blockSize: 4 });
    // OBQ in fixed order: after rounding q, eliminate q from the inverse of the remaining H.
    let mean = 0;
    for (let k = 0; k < inputs; k++) mean += (h.data[k * (inputs + 1)] ?? 0) / inputs;
    const damped = h.data.slice();
    for (let k = 0; k < inputs; k++) damped[k * (inputs + 1)]! += 0.01 * mean;
    const inverse = gaussInverse(damped, inputs);
    const w = Float64Array.from(weight.data);
    for (let q = 0; q < inputs; q++) {
      for (let n = 0; n < outputs; n++) {
        const scale = quantized.scales[n] ?? 0;
        const ratio = Math.round((w[q * outputs + n] ?? 0) / scale);
        const code = Math.min(Math.max(ratio, -8), 7);
        expect(quantized.codes[q * outputs + n]).toBe(code + 0);
        const error = ((w[q * outputs + n] ?? 0) - code * scale) / (inverse[q * (inputs + 1)] ?? 0);
        for (let j = q + 1; j < inputs; j++) w[j * outputs + n]! -= (inverse[q * inputs + j] ?? 0) * error;
      }
      const pivot = inverse[q * (inputs + 1)] ?? 0;
      const row = inverse.slice(q * inputs, (q + 1) * inputs);
      for (let i = q + 1; i < inputs; i++) {
        for (let j = q + 1; j < inputs; j++) inverse[i * inputs + j]! -= ((row[i] ?? 0) * (row[j] ?? 0)) / pivot;
      }
    }
  });

  it("takes the scales of a group from the weight as updated, and of act-order groups from the original", async () => {
    const h = await moments(32, 100, 8);
    const weight = heavyWeight([32, 6], 9);
    const scheme = parseWeightScheme("i4:g8");
    const nearest = roundToNearest(weight, scheme);
    const { quantized } = await gptq(weight, h, scheme, loopGemm);
    expect(quantized.scales.subarray(0, 6)).toEqual(nearest.scales.subarray(0, 6));
    expect(quantized.scales.subarray(6)).not.toEqual(nearest.scales.subarray(6));
    const ordered = await gptq(weight, h, scheme, loopGemm, { actOrder: true });
    expect(ordered.quantized.scales).toEqual(nearest.scales);
    expect(ordered.quantized.codes).not.toEqual(nearest.codes);
  });

  it("zeroes the weights of dead inputs, or rounds them to nearest on request", async () => {
    const h = await moments(10, 40, 4);
    for (const k of [2, 7]) {
      for (let j = 0; j < 10; j++) h.data[k * 10 + j] = h.data[j * 10 + k] = 0;
    }
    const weight = heavyWeight([10, 4], 5);
    const scheme = parseWeightScheme("i8:channel");
    const zeroed = await gptq(weight, h, scheme, loopGemm, { actOrder: true });
    expect(zeroed.deadInputs).toBe(2);
    const kept = await gptq(weight, h, scheme, loopGemm, { deadInputs: "nearest" });
    const nearest = roundToNearest(weight, scheme);
    for (const k of [2, 7]) {
      expect(zeroed.quantized.codes.subarray(4 * k, 4 * k + 4).every((code) => code === 0)).toBe(true);
      expect(kept.quantized.codes.subarray(4 * k, 4 * k + 4)).toEqual(nearest.codes.subarray(4 * k, 4 * k + 4));
    }
    expect(weight.data).toEqual(heavyWeight([10, 4], 5).data);
  });

  it("raises the damping until H is positive definite", async () => {
    const h = identity(4);
    h.data[1] = h.data[4] = 1.05;
    const scheme = parseWeightScheme("i8:channel");
    const weight = heavyWeight([4, 2], 1);
    expect((await gptq(weight, h, scheme, loopGemm, { damping: 0.001 })).damping).toBe(0.1);
    expect((await gptq(weight, identity(4), scheme, loopGemm, { damping: 0 })).damping).toBe(0);
    h.data[1] = h.data[4] = 2;
    await expect(gptq(weight, h, scheme, loopGemm)).rejects.toMatchObject({
      code: "gptq/singular",
      exitCode: EXIT.calibration,
    });
  });

  it("refuses moments of no samples and moments with NaN", async () => {
    const scheme = parseWeightScheme("i4:g128");
    const weight = heavyWeight([3, 2], 1);
    const empty = gptq(weight, zeros(3, 3), scheme, loopGemm);
    await expect(empty).rejects.toThrow(MambacError);
    await expect(empty).rejects.toMatchObject({ code: "gptq/no-samples", exitCode: EXIT.calibration });
    const h = identity(3);
    h.data[4] = Number.NaN;
    await expect(gptq(weight, h, scheme, loopGemm)).rejects.toMatchObject({ code: "gptq/not-finite" });
    const nan = { ...weight, data: weight.data.fill(Number.NaN) };
    await expect(gptq(nan, identity(3), scheme, loopGemm)).rejects.toMatchObject({ code: "quant/not-finite" });
  });

  it("rounds wide matrices slice by slice to the same codes as column by column", async () => {
    const inputs = 24;
    const h = await moments(inputs, 80, 12);
    const weight = heavyWeight([inputs, 600], 13);
    const scheme = parseWeightScheme("u4:g8");
    const { quantized } = await gptq(weight, h, scheme, loopGemm, { blockSize: 8 });
    for (const n of [0, 255, 256, 599]) {
      const data = Float32Array.from({ length: inputs }, (_, k) => weight.data[k * 600 + n] ?? 0);
      const column = await gptq({ label: "c", shape: [inputs, 1], data }, h, scheme, loopGemm, { blockSize: 8 });
      expect(Array.from({ length: inputs }, (_, k) => quantized.codes[k * 600 + n])).toEqual([
        ...column.quantized.codes,
      ]);
    }
  });
});

function gaussInverse(matrix: Float64Array, n: number): Float64Array {
  const a = matrix.slice();
  const b = identity(n).data;
  for (let p = 0; p < n; p++) {
    const pivot = a[p * (n + 1)] ?? 0;
    for (let j = 0; j < n; j++) {
      a[p * n + j]! /= pivot;
      b[p * n + j]! /= pivot;
    }
    for (let i = 0; i < n; i++) {
      if (i === p) continue;
      const factor = a[i * n + p] ?? 0;
      for (let j = 0; j < n; j++) {
        a[i * n + j]! -= factor * (a[p * n + j] ?? 0);
        b[i * n + j]! -= factor * (b[p * n + j] ?? 0);
      }
    }
  }
  return b;
}
