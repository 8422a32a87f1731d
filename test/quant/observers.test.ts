import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { zeros } from "../../src/linalg/matrix.js";
import type { StatKind } from "../../src/quant/calibration.js";
import {
  HistogramObserver,
  MeanAbsObserver,
  MomentObserver,
  makeObserver,
  type Observer,
  RangeObserver,
} from "../../src/quant/observers.js";
import { decodeStatistic, encodeStatistic } from "../../src/quant/statistic-codec.js";
import { EXIT } from "../../src/support/errors.js";
import { Random } from "../../src/support/random.js";
import { maxAbs, maxDifference } from "../support/arrays.js";
import { loopGemm } from "../support/loop-gemm.js";

const KINDS: readonly StatKind[] = ["absmax", "minmax", "meanabs", "percentile", "second-moment"];

/** Rows of numbers of very different size, some zero, with a mean that is not. */
function batch(rows: number, channels: number, seed: number): Float32Array {
  const random = new Random(seed);
  return Float32Array.from({ length: rows * channels }, (_, i) => {
    const size = 10 ** (random.integer(7) - 4);
    return random.uniform() < 0.1 ? 0 : random.normal() * size + ((i % channels) - 1) * 3;
  });
}

const batches = fc.tuple(
  fc.integer({ min: 1, max: 6 }),
  fc.array(fc.integer({ min: 0, max: 9 }), { minLength: 0, maxLength: 4 }),
  fc.nat(),
);

function concatenated(parts: readonly Float32Array[]): Float32Array {
  const whole = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Every number an observer can be asked for. */
function answers(observer: Observer): { exact: Float64Array[]; rounded: Float64Array[] } {
  if (observer instanceof RangeObserver) return { exact: [observer.low, observer.high, observer.peaks()], rounded: [] };
  if (observer instanceof MeanAbsObserver) return { exact: [], rounded: [observer.means()] };
  if (observer instanceof HistogramObserver) {
    return { exact: [0, 0.2, 0.5, 0.999, 1].map((share) => observer.percentile(share)), rounded: [] };
  }
  return { exact: [], rounded: [observer.mean, observer.rawSum().data, observer.covariance().data] };
}

function expectSame(a: Observer, b: Observer, size: number): void {
  const [left, right] = [answers(a), answers(b)];
  expect(left.exact).toEqual(right.exact);
  left.rounded.forEach((values, i) => {
    expect(maxDifference(values, right.rounded[i] ?? [])).toBeLessThanOrEqual(1e-13 * size * (1 + maxAbs(values)));
  });
}

describe.each(KINDS)("%s", (kind) => {
  const requests = kind === "second-moment" ? [true] : [true, false];

  it("says the same of batches as of all rows at once, and of merged parts", async () => {
    await fc.assert(
      fc.asyncProperty(batches, fc.constantFrom(...requests), async ([channels, sizes, seed], perChannel) => {
        const make = (): Observer => makeObserver({ kind, perChannel }, channels, loopGemm);
        const parts = sizes.map((rows, i) => batch(rows, channels, seed + i));
        const [whole, split, first, second] = [make(), make(), make(), make()];
        await whole.observe(concatenated(parts), channels);
        for (const part of parts) await split.observe(part, channels);
        for (const [i, part] of parts.entries()) await (i < parts.length / 2 ? first : second).observe(part, channels);
        merge(first, second);
        expectSame(split, whole, 100);
        expectSame(first, whole, 100);
      }),
      { seed: 13, numRuns: 80 },
    );
  });

  it("survives being stored, goes on observing, and has one spelling", async () => {
    await fc.assert(
      fc.asyncProperty(batches, fc.constantFrom(...requests), async ([channels, sizes, seed], perChannel) => {
        const observer = makeObserver({ kind, perChannel }, channels, loopGemm);
        for (const [i, rows] of sizes.entries()) await observer.observe(batch(rows, channels, seed + i), channels);
        const bytes = encodeStatistic(observer);
        const back = decodeStatistic(bytes, loopGemm);
        expect(encodeStatistic(back)).toEqual(bytes);
        const next = batch(3, channels, seed + 9);
        await observer.observe(next, channels);
        await back.observe(next, channels);
        expect(encodeStatistic(back)).toEqual(encodeStatistic(observer));
      }),
      { seed: 14, numRuns: 50 },
    );
  });

  it("refuses rows that do not fit", async () => {
    const observer = makeObserver({ kind, perChannel: true }, 4, loopGemm);
    await expect((async () => observer.observe(new Float32Array(6), 4))()).rejects.toThrow("no rows of 4");
    await expect((async () => observer.observe(new Float32Array(6), 3))()).rejects.toThrow("cannot take rows of 3");
  });
});

function merge(into: Observer, from: Observer): void {
  if (into instanceof RangeObserver && from instanceof RangeObserver) into.merge(from);
  else if (into instanceof MeanAbsObserver && from instanceof MeanAbsObserver) into.merge(from);
  else if (into instanceof HistogramObserver && from instanceof HistogramObserver) into.merge(from);
  else if (into instanceof MomentObserver && from instanceof MomentObserver) into.merge(from);
  else throw new Error("different observers");
}

describe("RangeObserver and MeanAbsObserver", () => {
  it("are what the names say", () => {
    const rows = Float32Array.of(1, -5, 3, 2, -4, 0);
    const [range, mean, whole] = [new RangeObserver(3), new MeanAbsObserver(3), new MeanAbsObserver(1)];
    range.observe(rows, 3);
    mean.observe(rows, 3);
    whole.observe(rows, 3);
    expect([...range.low]).toEqual([1, -5, 0]);
    expect([...range.high]).toEqual([2, -4, 3]);
    expect([...range.peaks()]).toEqual([2, 5, 3]);
    expect([...mean.means()]).toEqual([1.5, 4.5, 1.5]);
    expect([...whole.means()]).toEqual([2.5]);
    expect([...new RangeObserver(2).peaks()]).toEqual([0, 0]);
    expect([...new MeanAbsObserver(1).means()]).toEqual([0]);
  });
});

describe("HistogramObserver", () => {
  it("finds percentiles to the bin", () => {
    fc.assert(
      fc.property(
        fc.array(fc.float({ noNaN: true, noDefaultInfinity: true }), { minLength: 1, maxLength: 60 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (values, share) => {
          const observer = new HistogramObserver(1);
          observer.observe(Float32Array.from(values), 1);
          const sorted = Float32Array.from(values, Math.abs).sort();
          const exact = sorted[Math.max(Math.ceil(share * sorted.length) - 1, 0)] ?? 0;
          const found = observer.percentile(share)[0] ?? Number.NaN;
          expect(found).toBeGreaterThanOrEqual(exact);
          // Subnormal numbers have fewer leading bits; their bins are 2^-134 wide.
          expect(found).toBeLessThanOrEqual(Math.max(exact * (1 + 1 / 256), exact + 2 ** -134));
          expect(found).toBeLessThanOrEqual(sorted[sorted.length - 1] ?? 0);
          expect(observer.percentile(1)[0]).toBe(sorted[sorted.length - 1]);
        },
      ),
      { seed: 15, numRuns: 500 },
    );
  });

  it("counts channels apart", () => {
    const observer = new HistogramObserver(2);
    const rows = new Float32Array(2000);
    for (let t = 0; t < 1000; t++) {
      rows[2 * t] = -(t + 1);
      rows[2 * t + 1] = (t + 1) / 1000;
    }
    observer.observe(rows, 2);
    const [a = 0, b = 0] = observer.percentile(0.5);
    expect(a / 500).toBeGreaterThanOrEqual(1);
    expect(a / 500).toBeLessThan(1.004);
    expect(b / 0.5).toBeGreaterThanOrEqual(1);
    expect(b / 0.5).toBeLessThan(1.004);
    expect([...new HistogramObserver(2).percentile(0.5)]).toEqual([0, 0]);
  });

  it("takes views into larger buffers", () => {
    const buffer = Float32Array.of(100, 1, 2, 3, 100);
    const observer = new HistogramObserver(1);
    observer.observe(buffer.subarray(1, 4), 1);
    expect(observer.percentile(1)[0]).toBe(3);
    expect(observer.count).toBe(3);
  });
});

describe("MomentObserver", () => {
  it("is the definition, and keeps its digits far from the origin", async () => {
    const [channels, count] = [5, 3000];
    const random = new Random(1);
    const rows = Float32Array.from({ length: channels * count }, (_, i) => random.normal() + 1e4 * (i % channels));
    const observer = new MomentObserver(channels, loopGemm);
    await observer.observe(rows, channels);
    const [mean, raw] = [new Float64Array(channels), zeros(channels, channels).data];
    for (let t = 0; t < count; t++) {
      for (let i = 0; i < channels; i++) {
        mean[i]! += (rows[t * channels + i] ?? 0) / count;
        for (let j = 0; j < channels; j++) {
          raw[i * channels + j]! += (rows[t * channels + i] ?? 0) * (rows[t * channels + j] ?? 0);
        }
      }
    }
    const covariance = zeros(channels, channels).data;
    for (let t = 0; t < count; t++) {
      for (let i = 0; i < channels; i++) {
        for (let j = 0; j < channels; j++) {
          const term =
            ((rows[t * channels + i] ?? 0) - (mean[i] ?? 0)) * ((rows[t * channels + j] ?? 0) - (mean[j] ?? 0));
          covariance[i * channels + j]! += term / (count - 1);
        }
      }
    }
    expect(observer.count).toBe(count);
    expect(maxDifference(observer.mean, mean)).toBeLessThan(1e-9);
    expect(maxDifference(observer.rawSum().data, raw)).toBeLessThan(1e-12 * maxAbs(raw));
    expect(maxDifference(observer.covariance().data, covariance)).toBeLessThan(1e-9);
  });

  it("has no covariance of one row", async () => {
    const observer = new MomentObserver(2, loopGemm);
    await observer.observe(Float32Array.of(3, 4), 2);
    expect([...observer.covariance().data]).toEqual([0, 0, 0, 0]);
    expect([...observer.rawSum().data]).toEqual([9, 12, 12, 16]);
  });
});

describe("decodeStatistic", () => {
  it("refuses damaged bytes", async () => {
    const observer = new MomentObserver(3, loopGemm);
    await observer.observe(batch(4, 3, 1), 3);
    const bytes = encodeStatistic(observer);
    const wrong = [
      new Uint8Array(0),
      bytes.subarray(0, bytes.length - 1),
      bytes.subarray(0, 5),
      Uint8Array.from(bytes, (byte, i) => (i < 2 ? byte + 1 : byte)),
      new TextEncoder().encode('{"kind":"mode","width":1,"count":1,"lengths":[]}\n'),
      new TextEncoder().encode('{"kind":"range","width":1,"count":1,"lengths":[]}\n      '),
    ];
    for (const damaged of wrong) {
      const attempt = (): unknown => decodeStatistic(damaged, loopGemm);
      expect(attempt).toThrow("not a statistic");
      expect(attempt).toThrow(expect.objectContaining({ exitCode: EXIT.calibration }));
    }
  });
});
