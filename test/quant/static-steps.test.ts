import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type StateSizes, staticSteps } from "../../src/quant/static-steps.js";
import { Random } from "../../src/support/random.js";

const QMAX = { h8: 127, h4: 7 } as const;

const sizes: fc.Arbitrary<StateSizes> = fc
  .record({
    perGroup: fc.integer({ min: 1, max: 3 }),
    groups: fc.integer({ min: 1, max: 3 }),
    headDim: fc.integer({ min: 1, max: 6 }),
    dState: fc.integer({ min: 1, max: 6 }),
  })
  .map(({ perGroup, ...rest }) => ({ ...rest, heads: perGroup * rest.groups }));

describe("staticSteps", () => {
  test("finds rows and columns where magnitudes are their products, up to one range for all", () => {
    fc.assert(
      fc.property(sizes, fc.nat(), fc.constantFrom("h8" as const, "h4" as const), (s, seed, format) => {
        const random = new Random(seed);
        const { heads, groups, headDim, dState } = s;
        const rows = Float64Array.from({ length: heads * headDim }, () => Math.exp(4 * random.uniform() - 2));
        const columns = Float64Array.from({ length: groups * dState }, () => Math.exp(4 * random.uniform() - 2));
        const columnOf = (row: number, n: number): number =>
          Math.floor(row / ((heads / groups) * headDim)) * dState + n;
        const magnitudes = Array.from({ length: heads * headDim * dState }, (_, i) => {
          const row = Math.floor(i / dState);
          return rows[row]! * columns[columnOf(row, i % dState)]!;
        });
        const found = staticSteps(magnitudes, s, format);
        const ratios = magnitudes.map((magnitude, i) => {
          const row = Math.floor(i / dState);
          return (QMAX[format] * found.rows[row]! * found.columns[columnOf(row, i % dState)]!) / magnitude;
        });
        // 8 bits keep twice the largest value, 4 bits clip.
        const range = format === "h8" ? 2 : 0.5;
        for (const ratio of ratios) expect(Math.abs(ratio / range - 1)).toBeLessThan(1e-5);
      }),
      { numRuns: 100, seed: 81 },
    );
  });

  test("one outlier moves its own row and column little, and no other", () => {
    const s: StateSizes = { heads: 2, groups: 1, headDim: 8, dState: 16 };
    const plain = new Float64Array(2 * 8 * 16).fill(1);
    const spiked = plain.map((value, i) => (i === 37 ? 1000 : value));
    const [before, after] = [staticSteps(plain, s, "h8"), staticSteps(spiked, s, "h8")];
    const step = (of: typeof before, row: number, n: number): number => of.rows[row]! * of.columns[n]!;
    // Row 2, column 5: 1000^(1/16 + 1/16) at the most.
    expect(step(after, 2, 5) / step(before, 2, 5)).toBeLessThan(2.4);
    expect(step(after, 2, 5) / step(before, 2, 5)).toBeGreaterThan(1.5);
    expect(Math.abs(step(after, 3, 6) / step(before, 3, 6) - 1)).toBeLessThan(0.05);
  });

  test("what never moved has a step too", () => {
    const { rows, columns } = staticSteps(new Float64Array(12), { heads: 1, groups: 1, headDim: 3, dState: 4 }, "h4");
    for (const step of [...rows, ...columns]) expect(step > 0 && Number.isFinite(step)).toBe(true);
    for (const row of rows) for (const column of columns) expect(Math.fround(row * column)).toBeGreaterThan(0);
  });
});
