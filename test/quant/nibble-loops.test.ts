import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { vectorNibbles } from "../../src/quant/nibble-loops.js";
import { Random } from "../../src/support/random.js";

const loops = vectorNibbles();

function bytes(count: number, seed: number): Uint8Array {
  const random = new Random(seed);
  return Uint8Array.from({ length: count }, () => random.integer(256));
}

describe("vector loops for nibbles", () => {
  it("exist on this host", () => {
    expect(loops).not.toBeNull();
  });

  it("pack all but the last few codes, whatever their upper bits, beyond the memory of the loops", () => {
    for (const count of [0, 1, 31, 32, 33, 64, 1000, 600_001]) {
      const codes = bytes(Math.min(count, 4096), count);
      const all = Uint8Array.from({ length: count }, (_, at) => codes[at % 4096] ?? 0);
      const packed = new Uint8Array(count >> 1).fill(0xaa);
      const made = loops?.pack(all, packed) ?? -1;
      expect(count - 2 * made).toBeLessThan(32);
      const expected = packed.map((_, at) =>
        at < made ? ((all[2 * at] ?? 0) & 15) | (((all[2 * at + 1] ?? 0) & 15) << 4) : 0xaa,
      );
      expect(Buffer.compare(packed, expected)).toBe(0);
    }
  });

  /** Nibble of row k, column n of packed rows. */
  const nibble = (packed: Uint8Array, cols: number, k: number, n: number): number =>
    ((packed[(k * cols + n) >> 1] ?? 0) >> (4 * (n & 1))) & 15;

  function expectTurned(depth: number, width: number, seed: number): void {
    const packed = bytes(2 * depth * width, seed);
    const offset = seed % 2 === 0 ? 0x88 : 0;
    const out = new Uint8Array(packed.length);
    const done = loops?.turn(packed, depth, width, offset, out);
    expect(done).toBe(depth % 8 === 0);
    const expected = new Uint8Array(packed.length);
    if (done === true) {
      for (let n = 0; n < 2 * width; n++) {
        for (let pair = 0; pair < depth; pair++) {
          const [low, high] = [0, 1].map((odd) => nibble(packed, 2 * width, 2 * pair + odd, n));
          expected[n * depth + pair] = ((low ?? 0) | ((high ?? 0) << 4)) ^ offset;
        }
      }
    }
    expect(Buffer.compare(out, expected)).toBe(0);
  }

  it("turn matrices, also of widths that end within a vector, and leave depths that do to others", () => {
    const depths = fc.oneof(
      { weight: 4, arbitrary: fc.integer({ min: 1, max: 12 }).map((eighths) => 8 * eighths) },
      { weight: 1, arbitrary: fc.integer({ min: 1, max: 40 }) },
    );
    fc.assert(fc.property(depths, fc.integer({ min: 1, max: 70 }), fc.nat(), expectTurned), { seed: 12, numRuns: 60 });
  });

  it("turn matrices of several strips", () => {
    expectTurned(4096, 150, 1);
    expectTurned(1280, 417, 2);
  });

  it("leave what has too many rows for one strip", () => {
    const depth = 1 << 15;
    const out = new Uint8Array(2 * depth);
    expect(loops?.turn(new Uint8Array(2 * depth), depth, 1, 0, out)).toBe(false);
  });
});
