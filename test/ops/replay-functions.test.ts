/** The functions of replay scans against the float64 reference, in ONNX Runtime. */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { ScanSpec } from "../../src/ops/names.js";
import { compareReplay, REPLAYS, strayBytes, withExactSteps } from "./replay-case.js";
import {
  openScan,
  randomData,
  referenceScan,
  relativeError,
  replayStates,
  runScan,
  type ScanSizes,
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

function squares(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value ** 2, 0);
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
