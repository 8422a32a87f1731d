import fc from "fast-check";
import { expect, it } from "vitest";
import { cholesky } from "../../src/linalg/cholesky.js";
import { type FloatArray, type Matrix, matrixOf } from "../../src/linalg/matrix.js";
import { gptq } from "../../src/quant/gptq.js";
import { dequantize } from "../../src/quant/grid.js";
import { MomentObserver } from "../../src/quant/observers.js";
import { outputError } from "../../src/quant/output-error.js";
import { roundToNearest } from "../../src/quant/round-nearest.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { openOrtGemm } from "../../src/run/ort-gemm.js";
import { maxAbs, maxDifference, normals } from "../support/arrays.js";
import { loopGemm } from "../support/loop-gemm.js";

it("agrees with the loop for both types and all transposes", async () => {
  await using ort = openOrtGemm();
  const size = fc.integer({ min: 0, max: 20 });
  async function check<T extends FloatArray>(
    make: (values: Float64Array) => T,
    sizes: readonly [number, number, number],
    flags: readonly [boolean, boolean],
    epsilon: number,
  ): Promise<void> {
    const [m, k, n] = sizes;
    const [transposeA, transposeB] = flags;
    const matrix = (rows: number, cols: number, seed: number): Matrix<T> =>
      matrixOf(rows, cols, make(normals(rows * cols, seed)));
    const a = transposeA ? matrix(k, m, 1) : matrix(m, k, 1);
    const b = transposeB ? matrix(n, k, 2) : matrix(k, n, 2);
    const result = await ort.gemm(a, b, { transposeA, transposeB });
    const expected = await loopGemm(a, b, { transposeA, transposeB });
    expect(result).toMatchObject({ rows: m, cols: n });
    expect(result.data.constructor).toBe(a.data.constructor);
    const bound = 2 * epsilon * (k + 1) * (maxAbs(a.data) * maxAbs(b.data) * k + 1e-300);
    expect(maxDifference(result.data, expected.data)).toBeLessThan(bound);
  }
  await fc.assert(
    fc.asyncProperty(fc.tuple(size, size, size), fc.tuple(fc.boolean(), fc.boolean()), async (sizes, flags) => {
      await check((values) => Float32Array.from(values), sizes, flags, 2 ** -24);
      await check((values) => values, sizes, flags, 2 ** -53);
    }),
    { seed: 5, numRuns: 80 },
  );
});

it("drives a Cholesky factorisation to the unblocked result", async () => {
  await using ort = openOrtGemm();
  const x = matrixOf(800, 700, normals(800 * 700, 3));
  const a = await ort.gemm(x, x, { transposeA: true });
  const [blocked, whole] = [matrixOf(700, 700, a.data.slice()), matrixOf(700, 700, a.data.slice())];
  await cholesky(blocked, ort.gemm);
  await cholesky(whole, loopGemm, 700);
  expect(maxDifference(blocked.data, whole.data)).toBeLessThan(1e-12 * maxAbs(whole.data));
});

it("serves second moments and GPTQ like the loop", async () => {
  await using ort = openOrtGemm();
  const [inputs, outputs] = [96, 40];
  const rows = Float32Array.from(normals(500 * inputs, 4), (value, i) => value * (i % inputs === 7 ? 9 : 1) + 1);
  const weight = { label: "w", shape: [inputs, outputs], data: Float32Array.from(normals(inputs * outputs, 5)) };
  const scheme = parseWeightScheme("u4:g32");
  const errors: number[] = [];
  let judge: Matrix | null = null;
  for (const gemm of [loopGemm, ort.gemm]) {
    const observer = new MomentObserver(inputs, gemm);
    await observer.observe(rows, inputs);
    const moments = observer.rawSum();
    judge ??= moments;
    expect(maxDifference(moments.data, judge.data)).toBeLessThan(1e-12 * maxAbs(judge.data));
    const { quantized } = await gptq(weight, moments, scheme, gemm, { blockSize: 32 });
    errors.push(await outputError(weight.data, dequantize(quantized), judge, loopGemm));
  }
  const nearest = await outputError(
    weight.data,
    dequantize(roundToNearest(weight, scheme)),
    judge ?? matrixOf(0, 0, new Float64Array(0)),
    loopGemm,
  );
  const [byLoop = 0, byRuntime = 0] = errors;
  expect(Math.abs(byRuntime - byLoop)).toBeLessThan(1e-3 * byLoop);
  expect(byRuntime).toBeLessThan(0.8 * nearest);
});

it("refuses shapes that do not fit", async () => {
  await using ort = openOrtGemm();
  const a = matrixOf(2, 3, new Float64Array(6));
  await expect(ort.gemm(a, a)).rejects.toThrow("product of [2,3] and [2,3]");
});
