import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../src/support/random.js";

describe("Random", () => {
  it("gives the published SplitMix64 sequence", () => {
    // First outputs for seed 1234567, as in the reference implementation's test vectors.
    const random = new Random(1234567);
    expect([random.bits(), random.bits(), random.bits()]).toEqual([
      6457827717110365317n,
      3203168211198807973n,
      9817491932198370423n,
    ]);
  });

  it("repeats for one seed and differs for others", () => {
    const draw = (seed: number | bigint): number[] => {
      const random = new Random(seed);
      return Array.from({ length: 8 }, () => random.uniform());
    };
    expect(draw(1)).toEqual(draw(1n));
    expect(draw(1)).not.toEqual(draw(2));
    expect(draw(-1)).toEqual(draw(2n ** 64n - 1n));
  });

  it("splits by label alone, however much was drawn before", () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), fc.nat(20), (a, b, drawn) => {
        const fresh = new Random(5).split(a).bits();
        const used = new Random(5);
        for (let i = 0; i < drawn; i++) used.bits();
        expect(used.split(a).bits()).toBe(fresh);
        if (a !== b) expect(new Random(5).split(b).bits()).not.toBe(fresh);
      }),
      { seed: 1 },
    );
  });

  it("is uniform and normal to the eye of a statistician", () => {
    const random = new Random(99);
    const n = 20_000;
    const uniform = Array.from({ length: n }, () => random.uniform());
    expect(Math.min(...uniform)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...uniform)).toBeLessThan(1);
    expect(Math.abs(mean(uniform) - 0.5)).toBeLessThan(0.01);
    const bins = new Float64Array(10);
    for (let i = 0; i < n; i++) bins[random.integer(10)]! += 1;
    for (const count of bins) expect(Math.abs(count - n / 10)).toBeLessThan(5 * Math.sqrt(n / 10));
    const normal = Array.from({ length: n }, () => random.normal());
    expect(Math.abs(mean(normal))).toBeLessThan(0.03);
    expect(Math.abs(mean(normal.map((v) => v * v)) - 1)).toBeLessThan(0.05);
    expect(Math.abs(mean(normal.map((v) => v ** 4)) - 3)).toBeLessThan(0.3);
  });
});

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
