import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { choosePrecisions, type PrecisionBudget, type PrecisionCost } from "../../src/quant/precision-mix.js";

const costs = fc.record({ bytes: fc.nat(20), loss: fc.integer({ min: -2, max: 20 }) });
const parts = fc.array(fc.array(costs, { minLength: 1, maxLength: 3 }), { minLength: 1, maxLength: 6 });

/** Every choice of one precision for each part. */
function* choices(counts: readonly number[]): Generator<number[]> {
  const [first, ...rest] = counts;
  if (first === undefined) yield [];
  else for (let i = 0; i < first; i++) for (const other of choices(rest)) yield [i, ...other];
}

function total(of: readonly (readonly PrecisionCost[])[], chosen: readonly number[]): PrecisionCost {
  const picked = chosen.map((index, part) => of[part]?.[index] ?? { bytes: Number.NaN, loss: Number.NaN });
  const sum = (key: keyof PrecisionCost): number => picked.reduce((all, cost) => all + cost[key], 0);
  return { bytes: sum("bytes"), loss: sum("loss") };
}

describe("choosePrecisions", () => {
  for (const kind of ["bytes", "loss"] as const) {
    it(`is as good as the best of all mixes under a budget of ${kind}`, () => {
      fc.assert(
        fc.property(parts, fc.integer({ min: -5, max: 80 }), (of, most) => {
          const budget: PrecisionBudget = { kind, most };
          const other = kind === "bytes" ? "loss" : "bytes";
          const fitting = [...choices(of.map(({ length }) => length))]
            .map((chosen) => total(of, chosen))
            .filter((cost) => cost[kind] <= most);
          const chosen = choosePrecisions(of, budget);
          if (chosen === null) {
            expect(fitting).toEqual([]);
            return;
          }
          const found = total(of, chosen);
          expect(found[kind]).toBeLessThanOrEqual(most);
          expect(found[other]).toBe(Math.min(...fitting.map((cost) => cost[other])));
        }),
        { seed: 31, numRuns: 300 },
      );
    });
  }

  it("keeps what is sensitive in more bits", () => {
    const part = (loss: number): PrecisionCost[] => [
      { bytes: 8, loss: 0 },
      { bytes: 4, loss },
    ];
    const of = [part(1), part(9), part(2), part(8)];
    expect(choosePrecisions(of, { kind: "bytes", most: 24 })).toEqual([1, 0, 1, 0]);
    expect(choosePrecisions(of, { kind: "loss", most: 3 })).toEqual([1, 0, 1, 0]);
    expect(choosePrecisions(of, { kind: "bytes", most: 15 })).toBeNull();
    expect(choosePrecisions([], { kind: "bytes", most: 0 })).toEqual([]);
  });

  it("stays within the budget with very many different mixes", () => {
    const of = Array.from({ length: 40 }, (_, part) =>
      [0, 1, 2].map((at) => ({ bytes: 1000 - 311 * at + part * 7.13, loss: at * (1 + Math.sqrt(part)) })),
    );
    const chosen = choosePrecisions(of, { kind: "bytes", most: 32_000 });
    expect(total(of, chosen ?? []).bytes).toBeLessThanOrEqual(32_000);
    // Splitting the budget evenly would keep all parts in the middle.
    const middle = total(
      of,
      of.map(() => 1),
    );
    expect(total(of, chosen ?? []).loss).toBeLessThan(middle.loss);
  });
});
