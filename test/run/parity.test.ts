import fc from "fast-check";
import { expect, test } from "vitest";
import type { Logits } from "../../src/run/logits.js";
import { concatenate, logitsRow } from "../../src/run/logits.js";
import { compareLogits, everyCut, feedInParts, worstOf } from "../../src/run/parity.js";
import { loadPackage } from "../../src/run/stateful.js";
import { countModelFile } from "../support/count-model.js";

function logits(batch: number, length: number, vocabulary: number, data: readonly number[]): Logits {
  return { batch, length, vocabulary, data: Float32Array.from(data) };
}

test("equal logits differ by nothing", () => {
  const one = logits(2, 2, 3, [1, 2, 3, 4, 5, 6, -1, -2, -3, 0, 0, 0]);
  expect(compareLogits(one, one)).toEqual({ relative: 0, rms: 0, top1: 1, positions: 4 });
});

test("figures follow their definitions", () => {
  const expected = logits(1, 2, 2, [3, 4, 0, -5]);
  const actual = logits(1, 2, 2, [3, 2, 0, -5]);
  const { relative, rms, top1 } = compareLogits(actual, expected);
  expect(relative).toBeCloseTo(2 / 5, 12);
  expect(rms).toBeCloseTo(2 / Math.sqrt(9 + 16 + 25), 12);
  expect(top1).toBe(0.5);
});

test("what is not a number is infinitely far, wherever it stands", () => {
  const expected = logits(1, 1, 4, [1, 2, 3, 4]);
  for (let at = 0; at < 4; at++) {
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const data = [1, 2, 3, 4];
      data[at] = bad;
      const found = compareLogits(logits(1, 1, 4, data), expected);
      expect([found.relative, found.rms]).toEqual([Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY]);
    }
  }
  expect(compareLogits(logits(1, 1, 2, [1, 2]), expected).relative).toBe(Number.POSITIVE_INFINITY);
});

test("answers for the last positions are compared with the last positions", () => {
  const whole = logits(2, 3, 2, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
  const last = logits(2, 1, 2, [4, 5, 10, 11]);
  expect(compareLogits(last, whole)).toEqual({ relative: 0, rms: 0, top1: 1, positions: 2 });
  expect(compareLogits(logits(2, 1, 2, [0, 1, 6, 7]), whole).relative).toBeGreaterThan(0.3);
});

test("the worst of several is the worst of each figure", () => {
  const a = { relative: 0.1, rms: 0.02, top1: 1, positions: 3 };
  const b = { relative: 0.05, rms: 0.03, top1: 0.5, positions: 4 };
  expect(worstOf([a, b])).toEqual({ relative: 0.1, rms: 0.03, top1: 0.5, positions: 7 });
  expect(worstOf([])).toBeNull();
});

test("joined calls hold the rows of their parts in order", () => {
  const shape = fc.record({ batch: fc.integer({ min: 1, max: 3 }), vocabulary: fc.integer({ min: 1, max: 4 }) });
  const lengths = fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 4 });
  fc.assert(
    fc.property(shape, lengths, ({ batch, vocabulary }, sizes) => {
      let next = 0;
      const parts = sizes.map((length) =>
        logits(
          batch,
          length,
          vocabulary,
          Array.from({ length: batch * length * vocabulary }, () => next++),
        ),
      );
      const joined = concatenate(parts);
      for (let b = 0; b < batch; b++) {
        const rows = parts.flatMap((part) => Array.from({ length: part.length }, (_, t) => [...logitsRow(part, b, t)]));
        rows.forEach((row, t) => expect([...logitsRow(joined, b, t)]).toEqual(row));
      }
    }),
    { seed: 1, numRuns: 50 },
  );
});

test("a sequence fed in parts gives what it gives in one call, from zero state each time", async () => {
  await using model = await loadPackage(countModelFile(), { library: "none" });
  const rows = [[5, 1, 7, 2, 6]];
  const whole = await feedInParts(model, rows, []);
  for (const cuts of [[1], [2, 4], everyCut(5)])
    expect(compareLogits(await feedInParts(model, rows, cuts), whole)).toMatchObject({ relative: 0, positions: 5 });
  expect(everyCut(1)).toEqual([]);
  expect(everyCut(4)).toEqual([1, 2, 3]);
});
