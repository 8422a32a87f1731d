import { expect, test } from "vitest";
import { formatBytes, formatChange, formatError, formatFacts, formatTable } from "../../src/commands/text-table.js";

test("bytes have three digits and never four before the point", () => {
  const texts = [0, 7, 999, 1000, 9216, 65536, 999_499, 999_500, 2_854_947, 13_492_304, 2 ** 40].map(formatBytes);
  expect(texts).toEqual([
    "0 B",
    "7 B",
    "999 B",
    "1.00 kB",
    "9.22 kB",
    "65.5 kB",
    "999 kB",
    "1.00 MB",
    "2.85 MB",
    "13.5 MB",
    "1.10 TB",
  ]);
});

test("a change is told with its factor, no change without", () => {
  expect(formatChange(65536, 9216)).toBe("65.5 kB -> 9.22 kB (7.1x)");
  expect(formatChange(512, 512)).toBe("512 B");
});

test("errors keep two digits; what was not measured is a dash", () => {
  expect([6.94e-7, 0, null, 0.5].map(formatError)).toEqual(["6.9e-7", "0", "-", "5.0e-1"]);
});

test("columns are aligned, and columns without content are left out", () => {
  const table = formatTable([
    ["a", "empty", "b"],
    ["long", "", "x"],
    ["s", "", "yy"],
  ]);
  expect(table).toBe("a     b\nlong  x\ns     yy\n");
  expect(
    formatFacts([
      ["state", "h4"],
      ["x", "y"],
    ]),
  ).toBe("state  h4\nx      y\n");
});
