import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { symmetricEigen } from "../../src/linalg/eigen.js";
import { hadamardRotation } from "../../src/linalg/hadamard.js";
import { kltRotation } from "../../src/linalg/klt.js";
import { identity, type Matrix, matrixOf, zeros } from "../../src/linalg/matrix.js";
import { MambacError } from "../../src/support/errors.js";
import { Random } from "../../src/support/random.js";
import { maxAbs, maxDifference, normalMatrix } from "../support/arrays.js";
import { loopGemm } from "../support/loop-gemm.js";

async function expectDecomposition(a: Matrix): Promise<Float64Array> {
  const n = a.rows;
  const { values, vectors } = await symmetricEigen(a, loopGemm);
  const scaled = matrixOf(
    n,
    n,
    vectors.data.map((entry, at) => entry * (values[at % n] ?? 0)),
  );
  const back = await loopGemm(scaled, vectors, { transposeB: true });
  expect(maxDifference(back.data, a.data)).toBeLessThanOrEqual(1e-14 * n * maxAbs(values));
  const gram = await loopGemm(vectors, vectors, { transposeA: true });
  expect(maxDifference(gram.data, identity(n).data)).toBeLessThan(2e-15 * n + 1e-14);
  for (let j = 0; j < n; j++) {
    if (j > 0) expect(values[j]).toBeLessThanOrEqual(values[j - 1] ?? 0);
    const column = Array.from({ length: n }, (_, i) => vectors.data[i * n + j] ?? 0);
    const largest = Math.max(...column.map(Math.abs));
    expect(column.find((entry) => Math.abs(entry) === largest)).toBeGreaterThan(0);
  }
  return values;
}

function symmetric(n: number, entry: (i: number, j: number) => number): Matrix {
  const a = zeros(n, n);
  for (let i = 0; i < n; i++) for (let j = 0; j <= i; j++) a.data[i * n + j] = a.data[j * n + i] = entry(i, j);
  return a;
}

describe("symmetricEigen", () => {
  it("rebuilds random symmetric matrices of any scale", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 40 }),
        fc.nat(),
        fc.constantFrom(1e-150, 1e-8, 1, 1e8, 1e150),
        async (n, seed, scale) => {
          const random = new Random(seed);
          await expectDecomposition(symmetric(n, () => scale * random.normal()));
        },
      ),
      { seed: 4, numRuns: 60 },
    );
  });

  it("rebuilds matrices of more than one panel of reflectors", async () => {
    const x = normalMatrix(150, 200, 6);
    const values = await expectDecomposition(await loopGemm(x, x, { transposeA: true }));
    expect(Math.abs(values[199] ?? 1)).toBeLessThan(1e-10);
  });

  it("rebuilds moments of fewer samples than channels", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 60 }),
        fc.integer({ min: 1, max: 6 }),
        fc.constantFrom(1e-12, 1, 1e6),
        fc.nat(),
        async (n, samples, size, seed) => {
          const x = normalMatrix(samples, n, seed);
          for (let i = 0; i < x.data.length; i++) x.data[i]! *= (i % n) % 5 === 2 ? size : 1;
          await expectDecomposition(await loopGemm(x, x, { transposeA: true }));
        },
      ),
      { seed: 22, numRuns: 40 },
    );
  });

  it("rebuilds degenerate matrices", async () => {
    await expectDecomposition(zeros(5, 5));
    await expectDecomposition(identity(12));
    await expectDecomposition(symmetric(17, () => 1));
    await expectDecomposition(symmetric(9, (i, j) => (i === j ? i % 3 : 0)));
    await expectDecomposition(symmetric(30, (i, j) => (Math.abs(i - j) === 1 ? 1 : 0)));
  });

  it("finds the known spectrum of the second difference", async () => {
    const n = 33;
    const { values } = await symmetricEigen(
      symmetric(n, (i, j) => (i === j ? 2 : i - j === 1 ? -1 : 0)),
      loopGemm,
    );
    const expected = Array.from({ length: n }, (_, k) => 2 - 2 * Math.cos(((n - k) * Math.PI) / (n + 1)));
    expect(maxDifference(values, expected)).toBeLessThan(1e-14);
  });

  it("leaves its argument alone and refuses NaN", async () => {
    const a = symmetric(6, (i, j) => i * j);
    const before = a.data.slice();
    await symmetricEigen(a, loopGemm);
    expect(a.data).toEqual(before);
    a.data[3] = Number.NaN;
    await expect(symmetricEigen(a, loopGemm)).rejects.toThrow(MambacError);
  });
});

describe("kltRotation", () => {
  it("gives every channel the same variance and stays orthogonal", async () => {
    const size = 48;
    const mixing = normalMatrix(4 * size, size, 8);
    for (let i = 0; i < mixing.data.length; i++) mixing.data[i]! *= 10 ** ((i % size) / 24);
    const covariance = await loopGemm(mixing, mixing, { transposeA: true });
    const rotation = hadamardRotation(size, new Random(1));
    const klt = await kltRotation(covariance, 10_000, rotation, loopGemm);
    expect(klt.regularised).toBe(false);
    const gram = await loopGemm(klt.matrix, klt.matrix, { transposeA: true });
    expect(maxDifference(gram.data, identity(size).data)).toBeLessThan(1e-13);
    const rotated = await loopGemm(await loopGemm(klt.matrix, covariance, { transposeA: true }), klt.matrix);
    const variances = Array.from({ length: size }, (_, i) => rotated.data[i * (size + 1)] ?? 0);
    const mean = klt.variances.reduce((sum, value) => sum + value, 0) / size;
    expect(
      maxDifference(
        variances,
        variances.map(() => mean),
      ),
    ).toBeLessThan(1e-12 * mean * size);
  });

  it("adds a ridge when samples are few or axes are dead", async () => {
    const covariance = symmetric(4, (i, j) => (i === j && i < 2 ? 4 : 0));
    const rotation = hadamardRotation(4);
    const { variances, regularised } = await kltRotation(covariance, 100, rotation, loopGemm);
    expect(regularised).toBe(true);
    expect(maxDifference(variances, [4 + 2e-6, 4 + 2e-6, 2e-6, 2e-6])).toBeLessThan(1e-15);
    expect((await kltRotation(identity(4), 3, rotation, loopGemm)).regularised).toBe(true);
    expect((await kltRotation(identity(4), 4, rotation, loopGemm)).regularised).toBe(false);
  });
});
