import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { RowSample } from "../../src/quant/row-sample.js";

interface Place {
  readonly sequence: number;
  readonly position: number;
}

/** A row that tells where it came from. */
function rowOf({ sequence, position }: Place): Float32Array {
  return Float32Array.of(sequence, position, sequence * 1000 + position);
}

function sampleOf(places: readonly Place[], limit: number, seed: number = 3): RowSample {
  const sample = new RowSample(limit, seed);
  for (const place of places) sample.observe(rowOf(place), 3, place.sequence, place.position);
  return sample;
}

const places: Place[] = Array.from({ length: 40 * 25 }, (_, i) => ({ sequence: Math.floor(i / 25), position: i % 25 }));

describe("RowSample", () => {
  it("keeps rows whole, with their places, in the order of the data", () => {
    const { rows, channels, data, sequences, positions } = sampleOf(places, 60).rows();
    expect([rows, channels]).toEqual([60, 3]);
    const order = Array.from(sequences, (sequence, i) => 25 * sequence + (positions[i] ?? 0));
    expect(order).toEqual(order.toSorted((a, b) => a - b));
    expect(new Set(order).size).toBe(60);
    for (let i = 0; i < rows; i++) {
      const place = { sequence: sequences[i] ?? -1, position: positions[i] ?? -1 };
      expect(data.slice(3 * i, 3 * i + 3)).toEqual(rowOf(place));
    }
  });

  it("keeps everything while there is room", () => {
    expect(sampleOf(places.slice(0, 7), 60).rows().rows).toBe(7);
    expect(new RowSample(4, 0).rows()).toMatchObject({ rows: 0, channels: 0 });
  });

  it("does not depend on order, calls or merging", () => {
    fc.assert(
      fc.property(
        fc.shuffledSubarray(places, { minLength: 1 }),
        fc.integer({ min: 1, max: 80 }),
        fc.nat(),
        (subset, limit, cut) => {
          const expected = sampleOf(subset.toReversed(), limit).rows();
          const at = cut % subset.length;
          const merged = sampleOf(subset.slice(0, at), limit);
          merged.merge(sampleOf(subset.slice(at), limit));
          expect(merged.rows()).toEqual(expected);
        },
      ),
      { numRuns: 60, seed: 11 },
    );
    const whole = new RowSample(60, 3);
    for (let sequence = 0; sequence < 40; sequence++) {
      const block = places.filter((place) => place.sequence === sequence).flatMap((place) => [...rowOf(place)]);
      whole.observe(Float32Array.from(block.slice(0, 3 * 17)), 3, sequence, 0);
      whole.observe(Float32Array.from(block.slice(3 * 17)), 3, sequence, 17);
    }
    expect(whole.rows()).toEqual(sampleOf(places, 60).rows());
  });

  it("picks every place about equally often, over seeds", () => {
    const counts = new Map<number, number>();
    for (let seed = 0; seed < 400; seed++) {
      const { sequences, positions } = sampleOf(places, 50, seed).rows();
      sequences.forEach((sequence, i) => {
        const place = 25 * sequence + (positions[i] ?? 0);
        counts.set(place, (counts.get(place) ?? 0) + 1);
      });
    }
    // 400 draws with probability 1/20: mean 20, standard deviation 4.4; chi-square of 1000 places within 6 deviations.
    const chi = places.reduce((sum, _, place) => sum + ((counts.get(place) ?? 0) - 20) ** 2 / 19, 0);
    expect(Math.abs(chi - 1000)).toBeLessThan(6 * Math.sqrt(2000));
  });

  it("refuses what does not fit", () => {
    expect(() => new RowSample(0, 1)).toThrow();
    const sample = new RowSample(5, 1);
    sample.observe(new Float32Array(6), 3, 0, 0);
    expect(() => sample.observe(new Float32Array(4), 4, 1, 0)).toThrow(/3 channels, then 4/);
    expect(() => sample.merge(new RowSample(5, 2))).toThrow(/seed/);
  });
});
