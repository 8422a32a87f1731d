import fc from "fast-check";
import { expect, test } from "vitest";
import { closestWord, editDistance } from "../../src/support/closest-word.js";

test("counts edits", () => {
  const cases: [string, string, number][] = [
    ["", "", 0],
    ["", "abc", 3],
    ["kitten", "sitting", 3],
    ["hadamrad", "hadamard", 1],
    ["ab", "ba", 1],
    ["static", "static", 0],
  ];
  for (const [from, to, edits] of cases) expect(editDistance(from, to), `${from} ${to}`).toBe(edits);
});

test("is symmetric, zero only for equal words, and never more than the longer word", () => {
  fc.assert(
    fc.property(fc.string({ maxLength: 8 }), fc.string({ maxLength: 8 }), (a, b) => {
      const edits = editDistance(a, b);
      expect(edits).toBe(editDistance(b, a));
      expect(edits === 0).toBe(a === b);
      expect(edits).toBeLessThanOrEqual(Math.max(a.length, b.length));
    }),
    { seed: 11 },
  );
});

test("offers a word only when it is close", () => {
  const words = ["static", "dynamic", "float"];
  expect(closestWord("Statik", words)).toBe("static");
  expect(closestWord("dinamyc", words)).toBe("dynamic");
  expect(closestWord("random", words)).toBeNull();
  expect(closestWord("x", [])).toBeNull();
});
