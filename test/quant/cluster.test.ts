import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  clusterNumbers,
  clusterPeaks,
  optimalSegments,
  sortAndCluster,
  wardClusters,
} from "../../src/quant/cluster.js";
import { Random } from "../../src/support/random.js";

function spread(values: readonly (readonly number[])[]): number {
  const dims = values[0]?.length ?? 0;
  let total = 0;
  for (let d = 0; d < dims; d++) {
    const column = values.map((value) => value[d] ?? 0);
    const mean = column.reduce((sum, value) => sum + value, 0) / column.length;
    total += column.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  }
  return total;
}

function segmentCost(rows: readonly Float64Array[], ends: readonly number[]): number {
  let total = 0;
  for (let i = 1; i < ends.length; i++) {
    const points: number[][] = [];
    for (let p = ends[i - 1] ?? 0; p < (ends[i] ?? 0); p++) points.push(rows.map((row) => row[p] ?? 0));
    total += spread(points);
  }
  return total;
}

/** Every way to cut 0 .. length into `count` runs. */
function* cuts(start: number, length: number, count: number): Generator<number[]> {
  if (count === 1) yield [start, length];
  else
    for (let end = start + 1; end <= length - count + 1; end++)
      for (const rest of cuts(end, length, count - 1)) yield [start, ...rest];
}

describe("optimalSegments", () => {
  it("is as good as the best of all cuts", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 3 }), fc.nat(), (length, dims, seed) => {
        const random = new Random(seed);
        const rows = Array.from({ length: dims }, () => Float64Array.from({ length }, () => random.normal()).sort());
        for (let count = 1; count <= Math.min(4, length); count++) {
          const ends = [...optimalSegments(rows, count)];
          expect(ends[0]).toBe(0);
          expect(ends[count]).toBe(length);
          expect(ends.every((end, i) => i === 0 || end > (ends[i - 1] ?? 0))).toBe(true);
          const least = Math.min(...[...cuts(0, length, count)].map((all) => segmentCost(rows, all)));
          expect(segmentCost(rows, ends)).toBeLessThanOrEqual(least + 1e-12);
        }
      }),
      { seed: 19, numRuns: 60 },
    );
  });

  it("finds obvious steps, and cuts constants early", () => {
    expect([...optimalSegments([Float64Array.of(1, 1, 5, 5, 5, 9, 20)], 4)]).toEqual([0, 2, 5, 6, 7]);
    expect([...optimalSegments([new Float64Array(5)], 3)]).toEqual([0, 1, 2, 5]);
    expect(() => optimalSegments([new Float64Array(2)], 3)).toThrow("3 runs of 2 positions");
  });
});

describe("wardClusters", () => {
  it("finds well separated clusters whatever the order of points", () => {
    fc.assert(
      fc.property(fc.nat(), (seed) => {
        const random = new Random(seed);
        const label = Array.from({ length: 14 }, (_, i) => (i < 4 ? i : random.integer(4)));
        const points = label.map((c) =>
          Float64Array.of(10 * (c % 2) + 0.1 * random.normal(), 10 * (c >> 1) + 0.1 * random.normal()),
        );
        const clusters = wardClusters(points, 4);
        expect(clusters.length).toBe(4);
        expect(clusters.flat().sort((a, b) => a - b)).toEqual(label.map((_, i) => i));
        for (const cluster of clusters) expect(new Set(cluster.map((i) => label[i])).size).toBe(1);
      }),
      { seed: 20, numRuns: 30 },
    );
  });

  it("merges under Ward's cost, not the distance of means alone", () => {
    // The means 0 and 1 are closer than 2.5 and 3.7, but their clusters are heavier.
    const points = [0, 0, 0, 0, 1, 1, 1, 1, 2.5, 3.7].map((value) => Float64Array.of(value));
    expect(wardClusters(points, 3)).toEqual([
      [0, 1, 2, 3],
      [4, 5, 6, 7],
      [8, 9],
    ]);
  });

  it("keeps single points when there are no more than clusters", () => {
    expect(wardClusters([Float64Array.of(1), Float64Array.of(1)], 4)).toEqual([[0], [1]]);
  });
});

describe("sortAndCluster", () => {
  const dims = fc.record({
    groups: fc.integer({ min: 1, max: 3 }),
    perGroup: fc.integer({ min: 1, max: 9 }),
    channels: fc.integer({ min: 1, max: 12 }),
  });

  it("permutes heads within groups and channels within heads, with ranges that cover everything once", () => {
    fc.assert(
      fc.property(dims, fc.nat(), ({ groups, perGroup, channels }, seed) => {
        const heads = groups * perGroup;
        const random = new Random(seed);
        const sizes = Float64Array.from({ length: heads * channels }, () => Math.exp(2 * random.normal()));
        const sorted = sortAndCluster(sizes, { groups, heads, channels });
        expect(sortAndCluster(sizes, { groups, heads, channels })).toEqual(sorted);
        expect(sorted.headClusters).toBe(Math.min(4, perGroup));
        expect(sorted.channelClusters).toBe(Math.min(4, channels));
        expect([...sorted.channelOrder].sort((a, b) => a - b)).toEqual(Array.from(sizes, (_, i) => i));
        sorted.headOrder.forEach((head, place) => {
          expect(Math.floor(head / perGroup)).toBe(Math.floor(place / perGroup));
          const order = sorted.channelOrder.subarray(place * channels, (place + 1) * channels);
          order.forEach((channel, p) => {
            expect(Math.floor(channel / channels)).toBe(head);
            if (p > 0) expect(sizes[channel]).toBeGreaterThanOrEqual(sizes[order[p - 1] ?? 0] ?? 0);
          });
        });
        const rising = (ends: Int32Array, last: number): void => {
          expect(ends[0]).toBe(0);
          expect(ends.at(-1)).toBe(last);
          ends.forEach((end, i) => i > 0 && expect(end).toBeGreaterThan(ends[i - 1] ?? 0));
        };
        for (let g = 0; g < groups; g++) {
          const width = sorted.headClusters + 1;
          rising(sorted.headRanges.subarray(g * width, (g + 1) * width), perGroup);
        }
        for (let at = 0; at < sorted.channelRanges.length; at += sorted.channelClusters + 1) {
          rising(sorted.channelRanges.subarray(at, at + sorted.channelClusters + 1), channels);
        }
        // Every channel is within the peak of its cluster, and every peak is someone's.
        const peaks = clusterPeaks(sizes, sorted);
        expect(Math.max(...peaks)).toBe(Math.max(...sizes));
        const numbers = clusterNumbers(sorted);
        const largest = new Float64Array(peaks.length);
        sorted.channelOrder.forEach((old, place) => {
          const cluster = numbers[place] ?? 0;
          largest[cluster] = Math.max(largest[cluster] ?? 0, sizes[old] ?? 0);
        });
        expect([...largest]).toEqual([...peaks]);
        const values = new Set(sizes);
        expect(peaks.every((peak) => values.has(peak))).toBe(true);
      }),
      { seed: 21, numRuns: 80 },
    );
  });

  it("lowers the error of 8-bit codes against one scale for all", () => {
    const [groups, heads, channels] = [1, 16, 32];
    const random = new Random(3);
    const sizes = Float64Array.from({ length: heads * channels }, () => Math.exp(1.5 * random.normal()));
    const sorted = sortAndCluster(sizes, { groups, heads, channels });
    const peaks = clusterPeaks(sizes, sorted);
    const [whole, clustered] = [Math.max(...sizes) ** 2 * sizes.length, 0];
    let total = clustered;
    for (let c = 0; c < sorted.headClusters; c++) {
      const count = (sorted.headRanges[c + 1] ?? 0) - (sorted.headRanges[c] ?? 0);
      for (let k = 0; k < sorted.channelClusters; k++) {
        const at = c * (sorted.channelClusters + 1) + k;
        const width = (sorted.channelRanges[at + 1] ?? 0) - (sorted.channelRanges[at] ?? 0);
        total += count * width * (peaks[c * sorted.channelClusters + k] ?? 0) ** 2;
      }
    }
    expect(total).toBeLessThan(whole / 4);
  });

  it("treats zeros and equal sizes without noise", () => {
    const sorted = sortAndCluster(new Float64Array(8), { groups: 1, heads: 2, channels: 4 });
    expect([...sorted.channelOrder]).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect([...clusterPeaks(new Float64Array(8), sorted)].every((peak) => peak === 0)).toBe(true);
  });
});
