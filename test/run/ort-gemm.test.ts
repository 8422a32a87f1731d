import fc from "fast-check";
import { expect, it } from "vitest";
import { cholesky } from "../../src/linalg/cholesky.js";
import { type FloatArray, type Matrix, matrixOf } from "../../src/linalg/matrix.js";
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

it("refuses shapes that do not fit", async () => {
  await using ort = openOrtGemm();
  const a = matrixOf(2, 3, new Float64Array(6));
  await expect(ort.gemm(a, a)).rejects.toThrow("product of [2,3] and [2,3]");
});
