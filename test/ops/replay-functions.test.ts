/** The functions of replay scans against the float64 reference, in ONNX Runtime. */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Tensor } from "../../src/ir/tensor.js";
import type { ScanSpec } from "../../src/ops/names.js";
import type { Session } from "../../src/run/session.js";
import { compareReplay, REPLAYS, strayBytes, withExactSteps } from "./replay-case.js";
import {
  joinParts,
  openScan,
  randomData,
  referenceScan,
  relativeError,
  replayStates,
  runScan,
  type ScanData,
  type ScanSizes,
  tokensOf,
} from "./scan-case.js";

const Y_ERROR = 1e-5;
const CODE_FRACTION = 1e-3;

const FREE = { dtMin: Number.NEGATIVE_INFINITY, dtMax: Number.POSITIVE_INFINITY, chunkSize: 64 };

const sizes: fc.Arbitrary<ScanSizes> = fc
  .record({
    batch: fc.integer({ min: 1, max: 4 }),
    length: fc.oneof(fc.constant(1), fc.integer({ min: 2, max: 40 })),
    perGroup: fc.integer({ min: 1, max: 3 }),
    groups: fc.integer({ min: 1, max: 3 }),
    headDim: fc.integer({ min: 1, max: 12 }),
    pairs: fc.integer({ min: 1, max: 12 }),
    replayLength: fc.oneof(fc.integer({ min: 1, max: 9 }), fc.constantFrom(1, 16, 64)),
  })
  .map(({ perGroup, pairs, ...rest }) => ({ ...rest, ...FREE, heads: perGroup * rest.groups, dState: 2 * pairs }));

/** Tokens each sequence of a case has in its rings. */
function countsOf(spec: ScanSpec, s: ScanSizes, past: Uint8Array): number[] {
  return replayStates(spec, s, past).map(({ tokens }) => tokens.length);
}

/** y [B,L,rows] of the tokens that read the state as it came, or of those that read what the call has rounded. */
function part(s: ScanSizes, counts: readonly number[], y: Float64Array, which: "as it came" | "rounded"): number[] {
  const rows = s.heads * s.headDim;
  const out: number[] = [];
  for (const [b, count] of counts.entries()) {
    const rounded = Math.min(s.length, s.replayLength! - count);
    const [start, end] = which === "rounded" ? [rounded, s.length] : [0, rounded];
    out.push(...y.subarray((b * s.length + start) * rows, (b * s.length + end) * rows));
  }
  return out;
}

function squares(values: Iterable<number>): number {
  let sum = 0;
  for (const value of values) sum += value ** 2;
  return sum;
}

describe("one call", () => {
  test.each(REPLAYS)("of $name equals the reference", async ({ spec }) => {
    const seen = { single: 0, long: 0, roundings: 0, mixed: 0, codes: 0, different: 0, apart: 0, after: 0 };
    await fc.assert(
      fc.asyncProperty(sizes, fc.nat(), fc.constantFrom("disabled", "all"), async (s, seed, optimization) => {
        const data = withExactSteps(randomData(spec, s, seed));
        const session = await openScan(spec, s, { optimization });
        const run = await runScan(session, spec, s, data);
        await session.release();
        const expected = referenceScan(spec, s, data);
        const counts = countsOf(spec, s, data.past as Uint8Array);
        const before = (y: Float64Array): number[] => part(s, counts, y, "as it came");
        expect(relativeError(before(run.y), before(expected.y))).toBeLessThanOrEqual(Y_ERROR);
        // A code that parts at a tie is seen by the tokens after it.
        const [left, right] = [part(s, counts, run.y, "rounded"), part(s, counts, expected.y, "rounded")];
        seen.apart += squares(left.map((value, i) => value - right[i]!));
        seen.after += squares(right);
        const found = compareReplay(spec, s, run.present.bytes(), expected.packed ?? new Uint8Array(0));
        expect(strayBytes(spec, s, run.present.bytes())).toBe(0);
        expect(found).toMatchObject({ differentSlots: 0 });
        if (counts.every((count) => count + s.length < 2 * s.replayLength!)) {
          expect(found.largest).toBeLessThanOrEqual(1);
          expect(found.scaleUlps).toBeLessThanOrEqual(2);
          seen.codes += found.codes;
          seen.different += found.different;
        }
        if (s.length === 1) seen.single += 1;
        if (s.length > s.replayLength!) seen.long += 1;
        if (counts.some((count) => count + s.length >= s.replayLength!)) seen.roundings += 1;
        if (new Set(counts).size > 1) seen.mixed += 1;
      }),
      { numRuns: 50, seed: 61 },
    );
    expect(Math.min(seen.single, seen.long, seen.roundings, seen.mixed)).toBeGreaterThan(8);
    expect(seen.different / seen.codes).toBeLessThanOrEqual(CODE_FRACTION);
    expect(Math.sqrt(seen.apart / seen.after)).toBeLessThan(5e-4);
  });
});

/** Runs a case in calls of these lengths, each of which must be what the reference makes of the state it found. */
async function inCalls(
  session: Session,
  spec: ScanSpec,
  s: ScanSizes,
  data: ScanData,
  lengths: readonly number[],
): Promise<{ readonly y: Float64Array; readonly present: Tensor }> {
  const y: Float64Array[] = [];
  let past = data.past as Uint8Array;
  let present: Tensor | null = null;
  let start = 0;
  for (const length of lengths) {
    const sized = { ...s, length };
    const call = { ...tokensOf(spec, s, data, start, start + length), past };
    const run = await runScan(session, spec, sized, call);
    const expected = referenceScan(spec, sized, call);
    const counts = countsOf(spec, s, past);
    const before = (values: Float64Array): number[] => part(sized, counts, values, "as it came");
    expect(relativeError(before(run.y), before(expected.y))).toBeLessThanOrEqual(Y_ERROR);
    present = run.present;
    past = present.bytes();
    y.push(run.y);
    start += length;
  }
  if (present === null) throw new Error("no calls");
  return { y: joinParts(s, y, lengths), present };
}

/** Lengths that add up to a total, cut at random. */
const cuts = (most: number): fc.Arbitrary<number[]> => fc.array(fc.integer({ min: 1, max: most }), { maxLength: 7 });

function fitted(lengths: readonly number[], total: number): number[] {
  const out: number[] = [];
  let left = total;
  for (const length of lengths) {
    if (left === 0) break;
    out.push(Math.min(length, left));
    left -= out.at(-1) ?? 0;
  }
  return left === 0 ? out : [...out, left];
}

describe("calls may end anywhere", () => {
  test.each(REPLAYS)("in the reference of $name, to the last bit", ({ spec }) => {
    fc.assert(
      fc.property(sizes, fc.nat(), cuts(9), (s, seed, lengths) => {
        const data = randomData(spec, s, seed);
        const whole = referenceScan(spec, s, data);
        const y: Float64Array[] = [];
        let past = data.past as Uint8Array;
        let start = 0;
        const parts = fitted(lengths, s.length);
        for (const length of parts) {
          const call = { ...tokensOf(spec, s, data, start, start + length), past };
          const result = referenceScan(spec, { ...s, length }, call);
          y.push(result.y);
          past = result.packed ?? past;
          start += length;
        }
        expect(joinParts(s, y, parts)).toEqual(whole.y);
        expect(past).toEqual(whole.packed);
      }),
      { numRuns: 40, seed: 62 },
    );
  });

  test.each(REPLAYS)("in the function of $name", async ({ spec }) => {
    const seen = { apart: 0, after: 0, codes: 0, different: 0 };
    await fc.assert(
      fc.asyncProperty(sizes, fc.nat(), cuts(9), async (s, seed, lengths) => {
        const data = withExactSteps(randomData(spec, s, seed));
        const session = await openScan(spec, s);
        const whole = await runScan(session, spec, s, data);
        const cut = await inCalls(session, spec, s, data, fitted(lengths, s.length));
        await session.release();
        const counts = countsOf(spec, s, data.past as Uint8Array);
        const before = (values: Float64Array): number[] => part(s, counts, values, "as it came");
        expect(relativeError(before(cut.y), before(whole.y))).toBeLessThanOrEqual(Y_ERROR);
        const found = compareReplay(spec, s, cut.present.bytes(), whole.present.bytes());
        expect(found.differentSlots).toBe(0);
        seen.apart += squares(cut.y.map((value, i) => value - whole.y[i]!));
        seen.after += squares(whole.y);
        seen.codes += found.codes;
        seen.different += found.different;
      }),
      { numRuns: 25, seed: 63 },
    );
    expect(Math.sqrt(seen.apart / seen.after)).toBeLessThan(5e-4);
    expect(seen.different / seen.codes).toBeLessThanOrEqual(2 * CODE_FRACTION);
  });

  test.each(REPLAYS)("and windows of $name are what calls of their lengths are", async ({ spec }) => {
    // Cut where the state is rounded, both do the same sums, so that nothing is left to chance.
    const s: ScanSizes = {
      ...FREE,
      batch: 1,
      length: 47,
      heads: 4,
      headDim: 8,
      dState: 16,
      groups: 2,
      replayLength: 7,
    };
    for (const seed of [1, 2, 3, 4]) {
      const data = withExactSteps(randomData(spec, s, seed));
      const [count = 0] = countsOf(spec, s, data.past as Uint8Array);
      const session = await openScan(spec, s);
      const whole = await runScan(session, spec, s, data);
      const first = 7 - count > 1 ? [7 - count] : [14 - count];
      const cut = await inCalls(session, spec, s, data, fitted([...first, 7, 7, 7, 7, 7, 7], s.length));
      await session.release();
      expect(relativeError(cut.y, whole.y)).toBeLessThanOrEqual(1e-6);
      expect(cut.present.bytes()).toEqual(whole.present.bytes());
    }
  });
});

describe("states of known value", () => {
  const s: ScanSizes = { ...FREE, batch: 3, length: 20, heads: 4, headDim: 8, dState: 16, groups: 2, replayLength: 8 };
  const fresh = (spec: ScanSpec, sized: ScanSizes, seed: number): ScanData => {
    const data = withExactSteps(randomData(spec, sized, seed));
    return { ...data, past: new Uint8Array(data.past.length) };
  };

  test.each(REPLAYS)("of $name: zero bytes are the zero state, and nothing in gives nothing out", async ({ spec }) => {
    const session = await openScan(spec, s);
    for (const length of [1, 5, 20]) {
      const sized = { ...s, length };
      const data = fresh(spec, sized, 71);
      const quiet = { ...data, x: data.x.map(() => 0) };
      const run = await runScan(session, spec, sized, quiet);
      expect(run.y.every((value) => value === 0)).toBe(true);
      expect(run.present.bytes()).toEqual(referenceScan(spec, sized, quiet).packed);
      // Before the first rounding only u and B are rounded, to halves.
      const float = { ...data, past: new Float32Array(s.batch * s.heads * s.headDim * s.dState) };
      const exact = referenceScan({ ...spec, format: "f32", requantize: "call" }, sized, float).y;
      const counts = Array.from({ length: s.batch }, () => 0);
      const before = (y: Float64Array): number[] => part(sized, counts, y, "as it came");
      expect(relativeError(before((await runScan(session, spec, sized, data)).y), before(exact))).toBeLessThan(1e-3);
    }
    await session.release();
  });

  test.each(REPLAYS)(
    "of $name: with R = 1 it is rounding after every token, where u and B are halves",
    async ({ spec }) => {
      // d is 1/2, and x and B have few bits.
      const sized = { ...s, replayLength: 1, dtMin: 0.5, dtMax: 0.5 };
      const base = fresh(spec, sized, 72);
      const coarse = (values: Float32Array): Float32Array => values.map((value) => Math.round(8 * value) / 8);
      const data = { ...base, x: coarse(base.x.map((v) => 25 * v)), B: coarse(base.B), A: base.A.map((a) => 20 * a) };
      const zeros = new Float32Array(s.batch * s.heads * s.headDim * s.dState);
      const token = referenceScan({ ...spec, requantize: "token" }, sized, { ...data, past: zeros });
      const replay = referenceScan(spec, sized, data);
      expect(relativeError(replay.y, token.y)).toBeLessThan(1e-12);
      expect(replay.state).toEqual(token.state);
      const session = await openScan(spec, sized);
      await inCalls(session, spec, sized, data, [1, 1, 1, 17]);
      await session.release();
    },
  );
});
