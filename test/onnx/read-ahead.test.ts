import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { ReadAhead, type ReadAheadLimits, type SideFile } from "../../src/onnx/read-ahead.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-read-ahead-"));
afterAll(() => rmSync(folder, { recursive: true }));

const MIB = 2 ** 20;
const bytes = new Uint8Array(9 * MIB + 1234);
let noise = 3;
for (let i = 0; i < bytes.length; i++) {
  noise = (Math.imul(noise, 1664525) + 1013904223) | 0;
  bytes[i] = noise >>> 24;
}

function sideFile(name: string): SideFile {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return { path, stats: statSync(path) };
}

const never = (): never => {
  throw new Error("read again");
};

const PAST = { cachedBytes: 0, trialBytes: 1, memoryRate: Number.POSITIVE_INFINITY };

describe.each<[string, ReadAheadLimits]>([
  ["through the page cache", { ...PAST, cachedBytes: 2 ** 40 }],
  ["found in the page cache", { ...PAST, memoryRate: 0 }],
  ["past the page cache", PAST],
])("%s", (name, limits) => {
  const file = sideFile(`data ${name}`);

  test("any range is what the file holds, and is not read twice", async () => {
    const ahead = new ReadAhead(limits);
    await fc.assert(
      fc.asyncProperty(fc.nat(8 * MIB), fc.nat(MIB), async (offset, more) => {
        const length = Math.min(MIB + more, bytes.length - offset);
        await ahead.prefetch(file, offset, length);
        const expected = Buffer.from(bytes.buffer, offset, length);
        const equal = ahead.lend(file, offset, length, length < MIB ? fromFile(file, offset) : never, (lent) =>
          expected.equals(lent),
        );
        expect(equal).toBe(true);
      }),
      {
        seed: 5,
        numRuns: 60,
        examples: [
          [bytes.length - MIB, 0],
          [1, 4095],
          [4096, 0],
        ],
      },
    );
  });

  test("a range that is still being read is read now, and the memory is not shared", async () => {
    const ahead = new ReadAhead(limits);
    const reading = ahead.prefetch(file, 0, 2 * MIB);
    expect(reading).not.toBeNull();
    ahead.lend(file, 0, 2 * MIB, fromFile(file, 0), (outer) => {
      ahead.lend(file, 3 * MIB, 2 * MIB, fromFile(file, 3 * MIB), (inner) => {
        expect(Buffer.compare(inner, bytes.subarray(3 * MIB, 5 * MIB))).toBe(0);
      });
      expect(Buffer.compare(outer, bytes.subarray(0, 2 * MIB))).toBe(0);
    });
    await reading;
    await ahead.prefetch(file, 5 * MIB, 2 * MIB);
    ahead.lend(file, 5 * MIB, 2 * MIB, never, (lent) => {
      expect(Buffer.compare(lent, bytes.subarray(5 * MIB, 7 * MIB))).toBe(0);
    });
  });

  test("ranges nobody asked for make room for others", async () => {
    const ahead = new ReadAhead(limits);
    for (let at = 0; at < 7; at++) await ahead.prefetch(file, at * MIB, MIB);
    ahead.lend(file, 6 * MIB, MIB, never, (lent) => {
      expect(Buffer.compare(lent, bytes.subarray(6 * MIB, 7 * MIB))).toBe(0);
    });
  });

  test("a file that changed is left to who asks for the bytes", async () => {
    const changed = sideFile(`changed ${name}`);
    truncateSync(changed.path, 3 * MIB);
    const ahead = new ReadAhead(limits);
    await ahead.prefetch(changed, 0, 2 * MIB);
    expect(() => ahead.lend(changed, 0, 2 * MIB, never, () => 0)).toThrow("read again");
    await ahead.prefetch({ ...changed, path: join(folder, "none") }, 0, 2 * MIB);
  });
});

function fromFile(file: SideFile, offset: number): (target: Uint8Array) => void {
  return (target) => target.set(readFileSync(file.path).subarray(offset, offset + target.length));
}

test("small and huge ranges are not read ahead", () => {
  const file = sideFile("sizes");
  expect(new ReadAhead().prefetch(file, 0, 1000)).toBeNull();
  expect(new ReadAhead().prefetch(file, 0, 2 ** 29)).toBeNull();
});
