import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { cholesky, inverseUpperFactor, invertLower } from "../../src/linalg/cholesky.js";
import { identity, type Matrix, matrixOf } from "../../src/linalg/matrix.js";
import { randomOrthogonal } from "../../src/linalg/orthogonal.js";
import { Random } from "../../src/support/random.js";
import { maxAbs, maxDifference, normalMatrix } from "../support/arrays.js";
import { loopGemm } from "../support/loop-gemm.js";

/** A positive definite matrix whose channels differ in scale by up to 10^spread. */
function positive(size: number, seed: number, spread: number): Promise<Matrix> {
  const x = normalMatrix(size + 3, size, seed);
  const random = new Random(seed + 1);
  const scales = Array.from({ length: size }, () => 10 ** (spread * random.uniform()));
  for (let i = 0; i < x.data.length; i++) x.data[i]! *= scales[i % size] ?? 1;
  return loopGemm(x, x, { transposeA: true });
}

/** Textbook factor, in the order of the definition. */
function reference(matrix: Matrix): Float64Array {
  const n = matrix.rows;
  const l = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = matrix.data[i * n + j] ?? 0;
      for (let k = 0; k < j; k++) sum -= (l[i * n + k] ?? 0) * (l[j * n + k] ?? 0);
      l[i * n + j] = i === j ? Math.sqrt(sum) : sum / (l[j * n + j] ?? 0);
    }
  }
  return l;
}

const copy = (matrix: Matrix): Matrix => matrixOf(matrix.rows, matrix.cols, matrix.data.slice());

describe("cholesky", () => {
  it("agrees with the unblocked factor whatever the block", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 90 }),
        fc.integer({ min: 1, max: 40 }),
        fc.nat(),
        async (size, blockSize, seed) => {
          const a = await positive(size, seed, 2);
          const l = copy(a);
          expect(await cholesky(l, loopGemm, blockSize)).toEqual({ kind: "factored" });
          const expected = reference(a);
          expect(maxDifference(l.data, expected)).toBeLessThan(1e-6 * maxAbs(expected));
          const product = await loopGemm(l, l, { transposeB: true });
          expect(maxDifference(product.data, a.data)).toBeLessThan(1e-13 * size * maxAbs(a.data));
        },
      ),
      { seed: 2, numRuns: 40 },
    );
  });

  it("reads the lower triangle only and clears the upper one", async () => {
    const a = await positive(9, 1, 0);
    const l = copy(a);
    for (let i = 0; i < 9; i++) for (let j = i + 1; j < 9; j++) l.data[i * 9 + j] = Number.NaN;
    await cholesky(l, loopGemm, 4);
    expect(maxDifference(l.data, reference(a))).toBeLessThan(1e-12 * maxAbs(a.data));
  });

  it.each([-1, 0, Number.NaN, Number.POSITIVE_INFINITY])("names the pivot that became %d", async (bad) => {
    const a = identity(20);
    a.data[13 * 21] = bad;
    expect(await cholesky(a, loopGemm, 8)).toEqual({ kind: "not-positive", pivot: 13, value: bad });
  });
});

describe("triangular inverses", () => {
  it("L inv(L) = I, and U of GPTQ satisfies Ut U A = I", async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 150 }), fc.nat(), async (size, seed) => {
        const a = await positive(size, seed, 0);
        for (let i = 0; i < size; i++) a.data[i * (size + 1)]! += 1;
        const l = copy(a);
        await cholesky(l, loopGemm, 32);
        const inverse = copy(l);
        await invertLower(inverse, loopGemm);
        const eye = identity(size).data;
        expect(maxDifference((await loopGemm(l, inverse)).data, eye)).toBeLessThan(1e-10);
        const u = copy(a);
        expect(await inverseUpperFactor(u, loopGemm)).toEqual({ kind: "factored" });
        for (let i = 0; i < size; i++) for (let j = 0; j < i; j++) expect(u.data[i * size + j]).toBe(0);
        const back = await loopGemm(await loopGemm(u, u, { transposeA: true }), a);
        expect(maxDifference(back.data, eye)).toBeLessThan(1e-9);
      }),
      { seed: 3, numRuns: 25 },
    );
  });

  it("reports the pivot in the order of the caller", async () => {
    const a = identity(6);
    a.data[7] = -2;
    expect(await inverseUpperFactor(a, loopGemm)).toEqual({ kind: "not-positive", pivot: 1, value: -2 });
  });
});

describe("randomOrthogonal", () => {
  it.each([2, 7, 96])("size %i is orthogonal and repeats with the seed", async (size) => {
    const q = await randomOrthogonal(size, new Random(size), loopGemm);
    const product = await loopGemm(q, q, { transposeA: true });
    expect(maxDifference(product.data, identity(size).data)).toBeLessThan(1e-13);
    expect((await randomOrthogonal(size, new Random(size), loopGemm)).data).toEqual(q.data);
    expect((await randomOrthogonal(size, new Random(size + 1), loopGemm)).data).not.toEqual(q.data);
  });

  it("is Q of the factorisation with positive diagonal: R = Qt A is upper triangular", async () => {
    const random = new Random(11);
    const a = matrixOf(
      8,
      8,
      Float64Array.from({ length: 64 }, () => random.normal()),
    );
    const r = await loopGemm(await randomOrthogonal(8, new Random(11), loopGemm), a, { transposeA: true });
    for (let i = 0; i < 8; i++) {
      expect(r.data[i * 9]).toBeGreaterThan(0);
      for (let j = 0; j < i; j++) expect(Math.abs(r.data[i * 8 + j] ?? 1)).toBeLessThan(1e-13);
    }
  });
});
