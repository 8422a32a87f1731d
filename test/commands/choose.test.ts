import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { bytesOf, choose } from "../../src/choose.js";
import { comparedCsv, comparedTable, formatLoss } from "../../src/commands/compare-table.js";
import type { ComparedRow } from "../../src/compare.js";

function row(name: string, change: number, bytes: number, stateBytes: number = 0): ComparedRow {
  return {
    name,
    state: { format: "h8", scale: "dsq-max", requantize: "call" },
    mode: "token",
    texts: [
      {
        text: 'a "b", c.txt',
        bitsPerToken: 2,
        bitsPerByte: 1.5,
        perplexity: 4,
        change,
        meanKlBits: 0.001,
        top1Agreement: 0.99,
        nonFinite: 0,
      },
    ],
    change,
    meanKlBits: 0.001,
    top1Agreement: 0.99,
    perplexity: 4,
    bytes,
    stateBytes,
    kernels: {
      quantized: 8,
      projections: 9,
      roundsActivations: 0,
      kernels: new Map([["MatMul", 1]]),
      float: [{ node: "node_linear_8", op: "MatMul" }],
    },
  };
}

const ROWS = [row("float", 0, 1000, 100), row("a", 0.002, 300, 100), row("b", 0.004, 300, 20), row("c", 0.1, 100, 20)];

describe("choose", () => {
  test.each([
    [{ loss: 0.01, bytes: null }, "b"],
    [{ loss: 0.003, bytes: null }, "a"],
    [{ loss: 0.001, bytes: null }, "float"],
    [{ loss: 0.5, bytes: null }, "c"],
    [{ loss: null, bytes: 400 }, "a"],
    [{ loss: null, bytes: 399 }, "b"],
    [{ loss: null, bytes: null }, "float"],
    [{ loss: 0.01, bytes: 350 }, "b"],
  ])("%j takes %s", (budget, name) => {
    expect(choose(ROWS, budget)?.row.name).toBe(name);
  });

  test("nothing where none keeps the budget; a loss that is no number keeps none", () => {
    expect(choose(ROWS, { loss: 0.01, bytes: 100 })).toBeNull();
    expect(choose([row("bad", Number.NaN, 1)], { loss: null, bytes: null })).toBeNull();
    expect(choose([], { loss: null, bytes: null })).toBeNull();
  });

  test("never takes what another beats in the budget's own measure, whatever the order", () => {
    const rows = fc.array(fc.tuple(fc.double({ min: -0.1, max: 1, noNaN: true }), fc.nat(1000)), { maxLength: 8 });
    fc.assert(
      fc.property(rows, fc.double({ min: 0, max: 1, noNaN: true }), (pairs, loss) => {
        const all = pairs.map(([change, bytes], at) => row(`r${at}`, change, bytes));
        const chosen = choose(all, { loss, bytes: null })?.row ?? null;
        const fits = all.filter(({ change }) => change <= loss);
        expect(chosen === null).toBe(fits.length === 0);
        if (chosen === null) return;
        expect(chosen.change).toBeLessThanOrEqual(loss);
        expect(bytesOf(chosen)).toBe(Math.min(...fits.map(bytesOf)));
        const backwards = choose(all.toReversed(), { loss, bytes: null })?.row;
        expect([bytesOf(chosen), chosen.change]).toEqual([bytesOf(backwards ?? chosen), backwards?.change]);
      }),
      { seed: 3 },
    );
  });
});

describe("tables", () => {
  test("losses have a sign, and zero is never negative", () => {
    expect([0, -0.000001, -0.0012, 0.5, 0.00004].map(formatLoss)).toEqual([
      "+0.00 %",
      "+0.00 %",
      "-0.12 %",
      "+50.00 %",
      "+0.00 %",
    ]);
  });

  test("CSV quotes what needs it, a line a recipe and text", () => {
    const lines = comparedCsv(ROWS).split("\n");
    expect(lines).toHaveLength(6);
    expect(lines[2]).toBe('a,"a ""b"", c.txt",h8 dsq-max requantize=call,token,1.5,2,4,0.002,0.001,0.99,0,300,100,8,9');
    expect(lines[0]?.split(",")).toHaveLength(15);
  });

  test("the table has a line a recipe", () => {
    const lines = comparedTable(ROWS).trimEnd().split("\n");
    expect(lines).toHaveLength(5);
    expect(lines[2]).toMatch(/^a +1\.5000 +4\.0000 +\+0\.20 % +1\.00e-3 +99\.00 % +300 B +100 B +8 of 9$/);
  });
});
