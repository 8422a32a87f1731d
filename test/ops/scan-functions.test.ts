/** The scan functions against the float64 reference, in ONNX Runtime. */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { isPacked, opNames, parseOpName, type ScanSpec } from "../../src/ops/names.js";
import type { Session } from "../../src/run/session.js";
import {
  compareCodes,
  joinParts,
  Noise,
  openScan,
  randomData,
  referenceScan,
  relativeError,
  runScan,
  type ScanData,
  type ScanSizes,
  stepCount,
  tokensOf,
} from "./scan-case.js";

const SPECS: readonly { readonly name: string; readonly spec: ScanSpec }[] = opNames().flatMap((name) => {
  const spec = parseOpName(name);
  return spec?.kind === "scan" ? [{ name, spec }] : [];
});

const CALLS = SPECS.filter(({ spec }) => spec.requantize === "call");
const TOKENS = SPECS.filter(({ spec }) => spec.requantize === "token");

const sizes: fc.Arbitrary<ScanSizes> = fc
  .record({
    batch: fc.integer({ min: 1, max: 3 }),
    length: fc.oneof(fc.constant(1), fc.integer({ min: 2, max: 40 })),
    perGroup: fc.integer({ min: 1, max: 3 }),
    groups: fc.integer({ min: 1, max: 3 }),
    headDim: fc.integer({ min: 1, max: 12 }),
    pairs: fc.integer({ min: 1, max: 12 }),
    chunkSize: fc.constantFrom(1, 3, 8, 16, 64),
    bounded: fc.boolean(),
  })
  .map(({ perGroup, pairs, bounded, ...rest }) => ({
    ...rest,
    heads: perGroup * rest.groups,
    dState: 2 * pairs,
    dtMin: bounded ? 0.003 : Number.NEGATIVE_INFINITY,
    dtMax: bounded ? 0.8 : Number.POSITIVE_INFINITY,
  }));

/** Bounds of one call: y and float states relative to their largest value; codes one apart, and rarely. */
const Y_ERROR = 1e-5;
const CODE_FRACTION = 1e-3;

/** Sums up differences of codes over many runs, as one code is far more than 0.1 % of a small state. */
class CodeTally {
  codes = 0;
  different = 0;

  check(spec: ScanSpec, s: ScanSizes, actual: Tensor, expected: Uint8Array | undefined): void {
    if (!isPacked(spec.format) || expected === undefined) throw new Error("not a packed state");
    const difference = compareCodes(spec.format, s.headDim, s.dState, actual.bytes(), expected, spec.scale);
    expect(difference.largest).toBeLessThanOrEqual(1);
    // Another rounding of Sc moves Sc by one place, and Ss by two where it is just above a power of two.
    expect(difference.scaleUlps).toBeLessThanOrEqual(2);
    this.codes += difference.codes;
    this.different += difference.different;
  }
}

/** Compares one call with the reference. */
async function checkCall(
  session: Session,
  spec: ScanSpec,
  s: ScanSizes,
  data: ScanData,
  tally: CodeTally,
  what: string = "",
): Promise<void> {
  const run = await runScan(session, spec, s, data);
  const expected = referenceScan(spec, s, data);
  expect(relativeError(run.y, expected.y), what).toBeLessThanOrEqual(Y_ERROR);
  if (isPacked(spec.format)) tally.check(spec, s, run.present, expected.packed);
  else {
    // Rounding to a half may go the other way at a tie: one unit of the largest value.
    const bound = spec.format === "f16" ? 2 ** -10 : Y_ERROR;
    expect(relativeError(toNumbers(run.present), expected.state), what).toBeLessThanOrEqual(bound);
  }
}

describe("one call", () => {
  test.each(CALLS)("of $name equals the reference", async ({ spec }) => {
    const tally = new CodeTally();
    let single = 0;
    await fc.assert(
      fc.asyncProperty(sizes, fc.nat(), fc.constantFrom("disabled", "all"), async (s, seed, optimization) => {
        if (s.length === 1) single += 1;
        const session = await openScan(spec, s, { optimization });
        await checkCall(session, spec, s, randomData(spec, s, seed), tally);
        await session.release();
      }),
      { numRuns: 60, seed: 31 },
    );
    expect(single).toBeGreaterThan(5);
    if (isPacked(spec.format)) {
      expect(tally.codes).toBeGreaterThan(20_000);
      expect(tally.different / tally.codes).toBeLessThanOrEqual(CODE_FRACTION);
    }
  });

  test.each(TOKENS)("of $name equals calls of one token each", async ({ spec }) => {
    // Against the reference the runs would part at the first tie, and a rounded state carries the difference on. Steps
    // of 20 and more make softplus the identity, so that nothing depends on how many tokens share a vector register.
    const tally = new CodeTally();
    await fc.assert(
      fc.asyncProperty(sizes, fc.nat(), async (s, seed) => {
        const base = randomData(spec, s, seed);
        const data = {
          ...base,
          dt: base.dt.map((v) => 25 + Math.tanh(v)),
          dtBias: base.dtBias.map(() => 0),
          A: base.A.map((v) => v / 100),
          x: base.x.map((v) => v / 25),
        };
        const whole = await openScan(spec, s);
        const expected = await runScan(whole, spec, s, data);
        await whole.release();
        const one = { ...s, length: 1 };
        const session = await openScan({ ...spec, requantize: "call" }, one);
        let past: Tensor | undefined;
        const y: Float64Array[] = [];
        for (let t = 0; t < s.length; t++) {
          const token = tokensOf(spec, s, data, t, t + 1);
          const run = await runScan(session, spec, one, token, past);
          if (t === 0) {
            await checkCall(session, { ...spec, requantize: "call" }, one, token, tally);
          }
          past = run.present;
          y.push(run.y);
        }
        await session.release();
        expect(past?.bytes()).toEqual(expected.present.bytes());
        expect(joinTokens(s, y)).toEqual(expected.y);
      }),
      { numRuns: 15, seed: 32 },
    );
    if (isPacked(spec.format)) expect(tally.different / tally.codes).toBeLessThanOrEqual(CODE_FRACTION);
  });

  test.each(CALLS.filter(({ spec }) => spec.format === "f32"))("of $name may be split in two", async ({ spec }) => {
    await fc.assert(
      fc.asyncProperty(sizes, fc.nat(), fc.double({ min: 0, max: 1, noNaN: true }), async (s, seed, where) => {
        const length = s.length + 1;
        const cut = 1 + Math.floor(where * (length - 1));
        const full = { ...s, length };
        const data = randomData(spec, full, seed);
        const session = await openScan(spec, full);
        const whole = await runScan(session, spec, full, data);
        const middle = Math.min(cut, length - 1);
        const first = await runScan(session, spec, { ...s, length: middle }, tokensOf(spec, full, data, 0, middle));
        const rest = tokensOf(spec, full, data, middle, length);
        const second = await runScan(session, spec, { ...s, length: length - middle }, rest, first.present);
        await session.release();
        const y = joinParts(full, [first.y, second.y], [middle, length - middle]);
        expect(relativeError(y, whole.y)).toBeLessThanOrEqual(Y_ERROR);
        expect(relativeError(toNumbers(second.present), toNumbers(whole.present))).toBeLessThanOrEqual(Y_ERROR);
      }),
      { numRuns: 30, seed: 33 },
    );
  });
});

describe("extremes", () => {
  const s: ScanSizes = {
    batch: 1,
    length: 20,
    heads: 4,
    headDim: 8,
    dState: 16,
    groups: 2,
    chunkSize: 8,
    dtMin: Number.NEGATIVE_INFINITY,
    dtMax: Number.POSITIVE_INFINITY,
  };
  type Change = (data: ScanData, noise: Noise) => Partial<ScanData>;
  const quiet = (spec: ScanSpec, seed: number, change: Change): ScanData => {
    const data = randomData(spec, s, seed);
    const past = isPacked(spec.format) ? new Uint8Array(data.past.length) : new Float32Array(data.past.length);
    const base = { ...data, past };
    return { ...base, ...change(base, new Noise(seed)) };
  };

  test.each(CALLS)("of $name: zero in, zero out", async ({ spec }) => {
    for (const length of [1, 20]) {
      const data = quiet(spec, 41, ({ x }) => ({ x: x.map(() => 0) }));
      const sized = { ...s, length };
      const session = await openScan(spec, sized);
      const run = await runScan(session, spec, sized, tokensOf(spec, s, data, 0, length));
      await session.release();
      expect(run.y.every((value) => value === 0)).toBe(true);
      const expected = referenceScan(spec, sized, tokensOf(spec, s, data, 0, length));
      if (expected.packed !== undefined) expect(run.present.bytes()).toEqual(expected.packed);
      else expect(toNumbers(run.present).every((value) => value === 0)).toBe(true);
    }
  });

  const scaled =
    (factor: number) =>
    (data: ScanData): Partial<ScanData> => ({ x: data.x.map((v) => v * factor) });
  const cases: readonly [string, Change][] = [
    ["inputs of 1e-8", scaled(1e-8)],
    ["inputs of 1e4", scaled(1e4)],
    ["one outlier", ({ x }) => ({ x: x.map((v, i) => (i === 37 ? 1e5 : v)) })],
    // Step sizes of 1e-5, and no skip: y is only as good as softplus is for very negative arguments.
    ["tiny steps", ({ dt, D }) => ({ dt: dt.map((v) => v - 9), D: D.map(() => 0) })],
    // A few tokens forget everything, the others nothing: sums of decays are large and their differences small.
    [
      "sudden resets",
      ({ dt, A, dtBias }, noise) => ({
        dt: dt.map(() => (noise.uniform() < 0.3 ? 12 : -8)),
        dtBias: dtBias.map(() => 0),
        A: A.map(() => -16),
      }),
    ],
    // State scales down to subnormal halves and zero, where rounding a scale moves codes by much more than one.
    ["columns from 1 to 1e-12", ({ B }) => ({ B: B.map((v, i) => Math.sign(v) * 10 ** (-0.8 * (i % s.dState))) })],
    ["decay beyond float32", ({ dt, A }) => ({ dt: dt.map(() => 60), A: A.map(() => -1e4) })],
  ];

  test.each(CALLS)("of $name: small, large and sudden values", async ({ spec }) => {
    const tally = new CodeTally();
    for (const chunkSize of [8, 256]) {
      const sized = { ...s, chunkSize };
      const session = await openScan(spec, sized);
      for (const [what, change] of cases) {
        for (const seed of [41, 42, 43]) {
          await checkCall(session, spec, sized, quiet(spec, seed, change), tally, what);
        }
      }
      await session.release();
    }
    if (isPacked(spec.format)) {
      expect(tally.codes).toBeGreaterThan(15_000);
      expect(tally.different / tally.codes).toBeLessThanOrEqual(CODE_FRACTION);
    }
  });

  test.each(CALLS.filter(({ spec }) => isPacked(spec.format)))(
    "of $name: a fresh state is zero bytes",
    async ({ spec }) => {
      const data = quiet(spec, 41, () => ({}));
      const session = await openScan(spec, s);
      const run = await runScan(session, spec, s, data);
      await session.release();
      const f32 = { ...spec, format: "f32" } as const;
      const zero = { ...data, past: new Float32Array(s.heads * s.headDim * s.dState) };
      expect(relativeError(run.y, referenceScan(f32, s, zero).y)).toBeLessThanOrEqual(Y_ERROR);
    },
  );
});

describe("200 tokens, one call each", () => {
  test.each(CALLS.filter(({ spec }) => spec.format !== "f32"))("of $name stay with the reference", async ({ spec }) => {
    const s: ScanSizes = {
      batch: 1,
      length: 200,
      heads: 4,
      headDim: 16,
      dState: 16,
      groups: 1,
      chunkSize: 64,
      dtMin: Number.NEGATIVE_INFINITY,
      dtMax: Number.POSITIVE_INFINITY,
    };
    const data = randomData(spec, s, 51);
    const one = { ...s, length: 1 };
    const session = await openScan(spec, one);
    const y: Float64Array[] = [];
    let past: Tensor | undefined;
    for (let t = 0; t < s.length; t++) {
      const run = await runScan(session, spec, one, tokensOf(spec, s, data, t, t + 1), past);
      past = run.present;
      y.push(run.y);
    }
    await session.release();
    const quantized = referenceScan({ ...spec, requantize: "token" }, s, data).y;
    const exact = referenceScan({ ...spec, format: "f32" }, s, {
      ...data,
      past: firstState(spec, one, data),
    }).y;
    const actual = joinTokens(s, y);
    // A tie that goes the other way is one more rounding error: rare ones add little to what the format costs anyway.
    const cost = rms(quantized, exact);
    expect(cost).toBeGreaterThan(0);
    expect(rms(actual, quantized)).toBeLessThan(cost / 4);
    expect(Math.abs(rms(actual, exact) / cost - 1)).toBeLessThan(0.05);
  });
});

/** The decoded past of a case. */
function firstState(spec: ScanSpec, s: ScanSizes, data: ScanData): Float32Array {
  // A call with d = 0 leaves the state alone: the reference hands back what it decoded.
  const idle = { ...data, dt: new Float32Array(data.dt.length) };
  const bounded = { ...s, dtMin: 0, dtMax: 0 };
  const sized = tokensOf(spec, { ...s, length: data.dt.length / stepCount(spec, s) / s.batch }, idle, 0, 1);
  return Float32Array.from(referenceScan(spec, bounded, sized).state);
}

function rms(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < b.length; i++) sum += (a[i]! - b[i]!) ** 2;
  return Math.sqrt(sum / b.length);
}

function joinTokens(s: ScanSizes, y: readonly Float64Array[]): Float64Array {
  return joinParts(
    s,
    y,
    y.map(() => 1),
  );
}
