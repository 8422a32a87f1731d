import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  type Direction,
  hadamardRotation,
  rotateColumns,
  rotateRows,
  rotationMatrix,
} from "../../src/linalg/hadamard.js";
import { hadamardMatrix } from "../../src/linalg/hadamard-matrix.js";
import { identity, matrixOf, transpose } from "../../src/linalg/matrix.js";
import { Random } from "../../src/support/random.js";
import { maxAbs, maxDifference, normals } from "../support/arrays.js";
import { loopGemm } from "../support/loop-gemm.js";

const MODEL_SIZES = [16, 48, 64, 96, 128, 160, 192, 384, 768, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 8192];

/** Below 200, what Paley and Kronecker cannot build. */
const MISSING = new Set([92, 116, 156, 172, 184, 188]);

describe("hadamardMatrix", () => {
  const orders = Array.from({ length: 50 }, (_, i) => 4 * (i + 1));

  it.each(orders.filter((order) => !MISSING.has(order)))("order %i has entries +-1 and H Ht = n I", (order) => {
    const matrix = hadamardMatrix(order);
    expect(matrix?.order).toBe(order);
    const signs = matrix?.signs ?? new Int8Array(0);
    expect(signs.length).toBe(order * order);
    expect(signs.every((sign) => sign === 1 || sign === -1)).toBe(true);
    for (let i = 0; i < order; i++) {
      for (let j = 0; j <= i; j++) {
        let dot = 0;
        for (let k = 0; k < order; k++) dot += (signs[i * order + k] ?? 0) * (signs[j * order + k] ?? 0);
        expect(dot).toBe(i === j ? order : 0);
      }
    }
  });

  it("is null where no construction applies", () => {
    for (const order of [...MISSING, 3, 6, 10, 30]) expect(hadamardMatrix(order)).toBeNull();
  });
});

describe("hadamardRotation", () => {
  it.each(MODEL_SIZES)("size %i is one orthonormal block", (size) => {
    const rotation = hadamardRotation(size, new Random(size));
    expect(rotation.blocks).toBe(1);
    expect([1, 12, 20]).toContain(rotation.factor.order);
    // Rows of R are images of unit vectors; a few against each other, and back.
    const count = 8;
    const rows = new Float64Array(count * size);
    for (let i = 0; i < count; i++) rows[i * size + ((i * 977) % size)] = 1;
    const images = rows.slice();
    rotateRows(images, rotation, "forward");
    expect(
      maxDifference(
        images.map(Math.abs),
        images.map(() => 1 / Math.sqrt(size)),
      ),
    ).toBeLessThan(1e-15);
    for (let i = 0; i < count; i++) {
      for (let j = 0; j < count; j++) {
        let dot = 0;
        for (let k = 0; k < size; k++) dot += (images[i * size + k] ?? 0) * (images[j * size + k] ?? 0);
        const same = (i * 977) % size === (j * 977) % size;
        expect(Math.abs(dot - (same ? 1 : 0))).toBeLessThan(1e-13);
      }
    }
    rotateRows(images, rotation, "inverse");
    expect(maxDifference(images, rows)).toBeLessThan(1e-14);
  });

  it("takes the largest block that exists where the size has none", () => {
    expect(hadamardRotation(92)).toMatchObject({ blocks: 23, power: 4 });
    expect(hadamardRotation(184)).toMatchObject({ blocks: 23, power: 8 });
    expect(hadamardRotation(7)).toMatchObject({ blocks: 7, power: 1 });
    expect(hadamardRotation(60 * 7)).toMatchObject({ blocks: 1, factor: { order: 420 } });
  });

  const sizes = fc.constantFrom(1, 2, 4, 6, 7, 8, 12, 20, 24, 28, 36, 40, 48, 52, 92, 100, 160);

  it("multiplies rows and columns by one orthogonal matrix", async () => {
    await fc.assert(
      fc.asyncProperty(
        sizes,
        fc.integer({ min: 1, max: 5 }),
        fc.nat(),
        fc.boolean(),
        async (size, count, seed, signed) => {
          const rotation = hadamardRotation(size, signed ? new Random(seed) : null);
          const dense = rotationMatrix(rotation);
          const product = await loopGemm(dense, dense, { transposeB: true });
          expect(maxDifference(product.data, identity(size).data)).toBeLessThan(1e-13);
          const rows = matrixOf(count, size, normals(count * size, seed));
          for (const direction of ["forward", "inverse"] satisfies Direction[]) {
            const expected = await loopGemm(rows, dense, { transposeB: direction === "inverse" });
            const bound = 1e-14 * size * Math.max(maxAbs(rows.data), 1);
            const byRows = rows.data.slice();
            rotateRows(byRows, rotation, direction);
            expect(maxDifference(byRows, expected.data)).toBeLessThan(bound);
            const byColumns = transpose(rows);
            rotateColumns(byColumns.data, count, rotation, direction);
            expect(maxDifference(transpose(byColumns).data, expected.data)).toBeLessThan(bound);
          }
        },
      ),
      { seed: 1, numRuns: 60 },
    );
  });

  it("leaves x W unchanged when both are rotated, and rounds float32 once", () => {
    const size = 768;
    const rotation = hadamardRotation(size, new Random(3));
    const cols = 40;
    const [x, w] = [normals(size, 1), normals(size * cols, 2)];
    const product = (a: ArrayLike<number>, b: ArrayLike<number>): number[] =>
      Array.from({ length: cols }, (_, j) =>
        Array.from({ length: size }, (_, i) => (a[i] ?? 0) * (b[i * cols + j] ?? 0)).reduce(
          (sum, term) => sum + term,
          0,
        ),
      );
    const before = product(x, w);
    const single = Float32Array.from(w);
    const exact = Float64Array.from(single);
    rotateRows(x, rotation, "forward");
    rotateColumns(w, cols, rotation, "forward");
    expect(maxDifference(product(x, w), before)).toBeLessThan(1e-11);
    rotateColumns(single, cols, rotation, "forward");
    rotateColumns(exact, cols, rotation, "forward");
    expect(single).toEqual(Float32Array.from(exact));
  });

  it("is not symmetric in direction where the factor is not", () => {
    const rotation = hadamardRotation(12);
    const [forward, inverse] = [normals(12, 5), normals(12, 5)];
    rotateRows(forward, rotation, "forward");
    rotateRows(inverse, rotation, "inverse");
    expect(maxDifference(forward, inverse)).toBeGreaterThan(0.1);
  });

  it("repeats with the seed and changes with it", () => {
    const signs = (seed: number): Int8Array | null => hadamardRotation(64, new Random(seed)).signs;
    expect(signs(1)).toEqual(signs(1));
    expect(signs(1)).not.toEqual(signs(2));
  });
});
