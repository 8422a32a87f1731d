import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { plainLoops, vectorLoops } from "../../src/quant/rounding-loops.js";
import { scaleLayout } from "../../src/quant/scale-layout.js";
import type { Granularity } from "../../src/quant/scheme.js";
import { Random } from "../../src/support/random.js";

const vectors = vectorLoops();

/** Shapes whose runs are shorter and longer than a turn, the shortest vector loop and the memory of the vector loops. */
const shapes = fc.oneof(
  { weight: 4, arbitrary: fc.tuple(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 1200 })) },
  { weight: 1, arbitrary: fc.tuple(fc.integer({ min: 1, max: 2 }), fc.integer({ min: 16000, max: 34000 })) },
);
const granularity: fc.Arbitrary<Granularity> = fc.oneof(
  fc.constant<Granularity>({ kind: "tensor" }),
  fc.record({ kind: fc.constant("channel" as const), axis: fc.constantFrom(0, 1) }),
  fc.record({
    kind: fc.constant("group" as const),
    axis: fc.constantFrom(0, 1),
    size: fc.constantFrom(2, 3, 300, 1000),
  }),
);
const AWKWARD = [0, -0, 1e-42, -1e-42, 3e38, -3e38, 0.5, 1.5, -2.5, Number.NaN, Number.POSITIVE_INFINITY];

function awkward(random: Random, count: number, share: number): Float32Array {
  return Float32Array.from({ length: count }, () =>
    random.uniform() < share ? (AWKWARD[Math.floor(random.uniform() * AWKWARD.length)] ?? 0) : random.normal(),
  );
}

/** Bits, so that zeros of either sign differ; NaN has many spellings and is made one. */
const bits = (values: Float32Array): Buffer =>
  Buffer.from(values.map((value) => (Number.isNaN(value) ? Number.NaN : value)).buffer);

describe("vector loops", () => {
  it("exist on this host", () => {
    expect(vectors).not.toBeNull();
  });

  it("give the ranges of the plain loops, bit for bit", () => {
    fc.assert(
      fc.property(shapes, granularity, fc.nat(), fc.constantFrom(0, 0.01), (shape, grain, seed, share) => {
        const layout = scaleLayout(shape, grain);
        const data = awkward(new Random(seed), shape[0] * shape[1], share);
        const [first, second] = [plainLoops, vectors ?? plainLoops].map((loops) => {
          const [low, high] = [new Float32Array(layout.count), new Float32Array(layout.count)];
          loops.widen(data, layout, low, high);
          return Buffer.concat([bits(low), bits(high)]);
        });
        expect(first !== undefined && second?.equals(first)).toBe(true);
      }),
      { seed: 1, numRuns: 100 },
    );
  });

  it("give the codes of the plain loops, bit for bit", () => {
    const codeRanges = fc.constantFrom([-128, 127], [-8, 7], [-2, 1], [0, 255], [0, 15]);
    fc.assert(
      fc.property(shapes, granularity, codeRanges, fc.nat(), (shape, grain, range, seed) => {
        const [lowest = 0, highest = 0] = range;
        const layout = scaleLayout(shape, grain);
        const random = new Random(seed);
        const data = awkward(random, shape[0] * shape[1], 0.01);
        // Scales of a half make every second value a tie once the data are integers and halves.
        if (seed % 2 === 0) data.forEach((value, i) => (data[i] = Math.round(value * 20) / 4));
        const scales = Float32Array.from({ length: layout.count }, () =>
          seed % 2 === 0 ? 0.5 : 2 ** (4 * random.uniform() - 6),
        );
        const zeroPoints =
          lowest < 0 ? null : Uint8Array.from({ length: layout.count }, () => random.uniform() * (highest + 1));
        const [first, second] = [plainLoops, vectors ?? plainLoops].map((loops) => {
          const codes = new Int8Array(data.length);
          loops.round(data, layout, { scales, zeroPoints, lowest, highest }, codes);
          return Buffer.from(codes.buffer);
        });
        expect(first !== undefined && second?.equals(first)).toBe(true);
      }),
      { seed: 2, numRuns: 100 },
    );
  });
});
