import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { emitNbits } from "../../passes/emit-nbits.js";
import { roundEmbedding } from "../../passes/round-embedding.js";
import { roundNearest } from "../../passes/round-nearest.js";
import type { Graph, Model } from "../../src/ir/graph.js";
import { f32Tensor, i64Tensor } from "../../src/ir/tensor.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { step } from "../../src/rewrite/pipeline.js";
import { aligned, foldSample, spoiled, valuesOf } from "../support/fold-runs.js";
import { difference, golden, outputsOf, runAll, runPass, type Sample } from "../support/pass-runs.js";
import { arbitraryRaised, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const TABLE = /^embedding\.weight$/;
const TIED: RaisedSpelling = { ...PLAIN, head: "tied", dModel: 32, heads: 4, headDim: 4 };

/** The table as float numbers after rounding each row by itself, in a model that is otherwise the same. */
function withRoundedRows(model: Model, bits: 4 | 8): Model {
  return spoiled(model, TABLE, (values, [rows = 0, channels = 0]) => {
    const highest = 2 ** (bits - 1) - 1;
    const out = new Float32Array(values.length);
    for (let row = 0; row < rows; row++) {
      const part = values.subarray(row * channels, (row + 1) * channels);
      const scale = Math.fround(part.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / highest) || 1;
      part.forEach((value, k) => {
        // Halves are rare enough in random numbers to leave them out.
        out[row * channels + k] = Math.round(Math.fround(value) / scale) * scale;
      });
    }
    return out;
  });
}

const rounded = (sample: Sample, bits: 4 | 8) => runPass(roundEmbedding, sample.model, { bits });

/** The sample with a head in integers that nothing calibrates. */
const withHead = (sample: Sample, scheme: string, nbits: boolean, bits: 4 | 8) =>
  runAll(sample.model, [
    step(roundNearest, { schemeFor: ({ role }) => (role === "lm_head" ? parseWeightScheme(scheme) : null) }),
    ...(nbits ? [step(emitNbits, { accuracyLevel: 1 })] : []),
    step(roundEmbedding, { bits }),
  ]);

const floatTables = ({ initializers }: Graph): string[] =>
  [...initializers].flatMap(([name, { dtype, shape }]) =>
    dtype === "f32" && shape[0] === 17 && (shape[1] ?? 1) > 8 ? [name] : [],
  );

describe("round-embedding", () => {
  for (const [name, spelling, bits] of [
    ["bytes", PLAIN, 8],
    ["halves", PLAIN, 4],
  ] as const) {
    test(`golden: ${name}`, async () => {
      const { model } = await aligned(await foldSample(spelling));
      const outcome = await runPass(roundEmbedding, model, { bits });
      await expect(golden("Rows are dequantized after the lookup.", model, outcome)).toMatchFileSnapshot(
        `round-embedding/${name}.irtxt`,
      );
    });
  }

  test("the model computes what it does with the rows rounded in float", async () => {
    await fc.assert(
      fc.asyncProperty(
        arbitraryRaised({ decoy: null }),
        fc.constantFrom(4 as const, 8 as const),
        async (spelling, bits) => {
          const sample = await aligned(await foldSample(spelling));
          const expected = await outputsOf(withRoundedRows(sample.model, bits), sample.feeds, sample.batch);
          const { model, changed } = await rounded(sample, bits);
          expect(changed).toBe(1);
          expect(floatTables(model.graph)).toEqual(floatTables(sample.model.graph).filter((name) => !TABLE.test(name)));
          expect(difference(await outputsOf(model, sample.feeds, sample.batch), expected)).toBeLessThan(1e-5);
          // 4 bits move the outputs: were the codes of other rows or halves used, this would not be so small above.
          if (bits === 4) expect(difference(expected, sample.expected)).toBeGreaterThan(1e-4);
        },
      ),
      { numRuns: 10, seed: 4 },
    );
  });

  for (const [label, scheme, nbits, bits] of [
    ["8 bits", "i8:channel", false, 8],
    ["4 bits", "i4:g16", true, 4],
    ["4 bits, one block", "i4:channel", true, 4],
  ] as const) {
    test(`tied with the head: one table in the file, ${label}`, async () => {
      const sample = await aligned(await foldSample(TIED));
      const { model } = await withHead(sample, scheme, nbits, bits);
      const [lookup] = model.graph.nodes.filter(({ op, inputs }) => op === "Gather" && inputs[1] === "input_ids");
      const head = model.graph.nodes.find(({ op, inputs }) =>
        nbits ? op === "MatMulNBits" : op === "DequantizeLinear" && inputs[0] === lookup?.inputs[0],
      );
      expect(head?.inputs).toContain(lookup?.inputs[0]);
      expect(floatTables(model.graph)).toEqual([]);
      const loss = difference(await outputsOf(model, sample.feeds, sample.batch), sample.expected);
      expect(loss).toBeLessThan(bits === 8 ? 0.03 : 0.5);
    });

    test(`a head that is not the table keeps codes of its own, ${label}`, async () => {
      const sample = await aligned(await foldSample(TIED));
      const moved = spoiled(sample.model, TABLE, (values) =>
        values.map((value, at) => (at === 3 ? -value - 0.3 : value)),
      );
      const { model } = await withHead({ ...sample, model: moved }, scheme, nbits, bits);
      const [lookup] = model.graph.nodes.filter(({ op, inputs }) => op === "Gather" && inputs[1] === "input_ids");
      expect(lookup?.inputs[0]).toMatch(/^mambac\.embedding\./);
    });
  }

  test("rows of zeros stay zeros, and one row of large numbers does not disturb the others", async () => {
    const sample = await aligned(await foldSample(PLAIN));
    const change = (values: Float64Array): Float64Array =>
      values.map((value, at) => (at < 12 ? 0 : at < 24 ? value * 1e6 : value));
    const model = spoiled(sample.model, TABLE, change);
    for (const bits of [4, 8] as const) {
      const { model: after } = await runPass(roundEmbedding, model, { bits });
      const expected = withRoundedRows(model, bits);
      expect(
        valuesOf(expected, TABLE)
          .slice(0, 12)
          .every((value) => value === 0),
      ).toBe(true);
      const outputs = await outputsOf(after, sample.feeds, sample.batch);
      expect(difference(outputs, await outputsOf(expected, sample.feeds, sample.batch))).toBeLessThan(1e-5);
    }
  });

  test("codes of another row would show", async () => {
    const sample = await aligned(await foldSample(PLAIN));
    const { model } = await rounded(sample, 8);
    const feeds = new Map([
      ...sample.feeds,
      [
        "input_ids",
        i64Tensor(
          [2, 5],
          Array.from({ length: 10 }, (_, at) => at),
        ),
      ],
    ]);
    const other = new Map([
      ...sample.feeds,
      [
        "input_ids",
        i64Tensor(
          [2, 5],
          Array.from({ length: 10 }, (_, at) => at + 1),
        ),
      ],
    ]);
    const [here, there] = [await outputsOf(model, feeds, 2), await outputsOf(model, other, 2)];
    expect(difference(here, there)).toBeGreaterThan(0.05);
  });

  test("refuses what it cannot round", async () => {
    const odd = await aligned(await foldSample({ ...PLAIN, dModel: 9 }));
    const missed = await runPass(roundEmbedding, odd.model, { bits: 4 });
    expect(missed.changed).toBe(0);
    expect(missed.remarks[0]?.message).toMatch(/9 channels do not fit/);
    expect((await runPass(roundEmbedding, odd.model, { bits: 8 })).changed).toBe(1);
    const initializers = new Map(odd.model.graph.initializers);
    initializers.set("embedding.weight", f32Tensor([17, 9], new Float32Array(17 * 9).fill(Number.NaN)));
    const poisoned = { ...odd.model, graph: { ...odd.model.graph, initializers } };
    await expect(runPass(roundEmbedding, poisoned, { bits: 8 })).rejects.toMatchObject({ code: "quant/not-finite" });
  });

  test("a second run finds nothing, and says so", async () => {
    const sample = await aligned(await foldSample(PLAIN));
    const once = await rounded(sample, 8);
    const twice = await runPass(roundEmbedding, once.model, { bits: 8 });
    expect(twice.changed).toBe(0);
    expect(twice.remarks[0]?.message).toMatch(/no float table/);
  });
});
