import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { type Tensor, tensorFromBytes, tensorFromSource } from "../../src/ir/tensor.js";
import { type DataPart, writeData } from "../../src/onnx/write-data.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-write-data-"));
afterAll(() => rmSync(folder, { recursive: true }));

let files = 0;
function newFile(): string {
  files += 1;
  const path = join(folder, String(files));
  writeFileSync(path, "");
  return path;
}

const pattern = Uint8Array.from({ length: 1 << 20 }, (_, i) => (i * 31 + (i >> 8)) & 255);

/** Bytes that start with another part of the pattern each. */
function content(length: number, seed: number): Uint8Array {
  const out = new Uint8Array(length);
  for (let at = 0; at < length; at++) out[at] = pattern[(at + seed * 7919) & (pattern.length - 1)] ?? 0;
  return out;
}

/** A computed tensor that lends memory which it spoils afterwards. */
function lending(bytes: Uint8Array): Tensor {
  const memory = new Uint8Array(bytes.length);
  return tensorFromSource(
    "u8",
    [bytes.length],
    {
      read: () => bytes,
      lend(offset, length, use) {
        memory.set(bytes);
        const result = use(memory.subarray(offset, offset + length));
        memory.fill(0xee);
        return result;
      },
    },
    0,
    "lazy",
  );
}

describe.each([
  ["through the page cache", Number.POSITIVE_INFINITY],
  ["past the page cache", -1],
])("%s", (_, cachedBytes) => {
  test("parts lie at their places, and zeros between them", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(9000), fc.integer({ min: 1, max: 30_000 }), fc.boolean()), { maxLength: 12 }),
        async (sizes) => {
          let end = 0;
          const expected = new Uint8Array(sizes.reduce((sum, [gap, length]) => sum + gap + length, 0));
          const parts = sizes.map(([gap, length, lends], seed): DataPart => {
            const bytes = content(length, seed);
            const offset = end + gap;
            expected.set(bytes, offset);
            end = offset + length;
            const tensor = lends ? lending(bytes) : tensorFromBytes("u8", [length], bytes);
            return { tensor, start: 0, end: length, offset };
          });
          const path = newFile();
          await writeData(path, parts, end, cachedBytes);
          expect(readFileSync(path).equals(expected)).toBe(true);
        },
      ),
      { seed: 8, numRuns: 40 },
    );
  });

  test("parts larger than a block, and larger than what is lent", async () => {
    const sizes = [(1 << 24) - 5, (1 << 26) + 77, 3, (1 << 25) + 1];
    let end = 0;
    const parts = sizes.map((length, seed): DataPart => {
      const bytes = content(length, seed);
      const offset = end + 59;
      end = offset + length;
      return { tensor: lending(bytes), start: 0, end: length, offset };
    });
    const path = newFile();
    await writeData(path, parts, end, cachedBytes);
    const written = readFileSync(path);
    expect(written.length).toBe(end);
    for (const { tensor, offset, end: length } of parts) {
      expect(written.subarray(offset, offset + length).equals(tensor.bytes())).toBe(true);
    }
  });

  test("a tensor that cannot be computed is told, and the file is closed", async () => {
    const broken = tensorFromSource(
      "u8",
      [5000],
      {
        read(): Uint8Array {
          throw new Error("the source broke");
        },
      },
      0,
      "lazy",
    );
    const parts = [
      { tensor: lending(content(40_000_000, 1)), start: 0, end: 40_000_000, offset: 0 },
      { tensor: broken, start: 0, end: 5000, offset: 40_000_000 },
    ];
    await expect(writeData(newFile(), parts, 40_005_000, cachedBytes)).rejects.toThrow("the source broke");
  });
});

test("each part is read ahead while the one before it is computed", async () => {
  const log: string[] = [];
  const parts = ["a", "b", "c", "d"].map((name, at): DataPart => {
    const bytes = content(10, at);
    let there = name === "b";
    const tensor = tensorFromSource(
      "u8",
      [10],
      {
        read: () => bytes,
        lend(_offset, _length, use) {
          expect(there).toBe(true);
          log.push(`lend ${name}`);
          return use(bytes);
        },
        prefetch() {
          // The second needs nothing read.
          if (name === "b") return null;
          log.push(`read ${name}`);
          return new Promise((resolve) => {
            setTimeout(() => {
              there = true;
              resolve();
            }, 20);
          });
        },
      },
      0,
      "lazy",
    );
    return { tensor, start: 0, end: 10, offset: 10 * at };
  });
  await writeData(newFile(), parts, 40);
  expect(log).toEqual(["read a", "read c", "lend a", "lend b", "read d", "lend c", "lend d"]);
});
