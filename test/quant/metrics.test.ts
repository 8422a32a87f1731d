import { describe, expect, it } from "vitest";
import { kurtosis, relativeL2, sqnr } from "../../src/quant/metrics.js";
import { normals } from "../support/arrays.js";

describe("metrics", () => {
  it("relativeL2 and sqnr", () => {
    expect(relativeL2([3, 4], [3, 4.5])).toBeCloseTo(0.1, 15);
    expect(sqnr([3, 4], [3, 4.5])).toBeCloseTo(20, 12);
    expect(relativeL2([1, 2], [1, 2])).toBe(0);
    expect(sqnr([1, 2], [1, 2])).toBe(Number.POSITIVE_INFINITY);
    expect(relativeL2([0], [0])).toBe(0);
    expect(relativeL2([0], [1])).toBe(Number.POSITIVE_INFINITY);
    expect(relativeL2([1], [Number.NaN])).toBeNaN();
    expect(() => sqnr([1], [1, 2])).toThrow("1 numbers against 2");
  });

  it("kurtosis", () => {
    expect(kurtosis([1, -1, 1, -1])).toBe(1);
    expect(kurtosis([5, 5, 5])).toBeNaN();
    expect(kurtosis(normals(200_000, 1))).toBeCloseTo(3, 1);
    expect(kurtosis([...normals(1000, 2), 50])).toBeGreaterThan(100);
  });
});
