import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { opNames, parseOpName, type ScanSpec } from "../../src/ops/names.js";
import { causalConvReference, softplus } from "../../src/ops/reference.js";
import { Noise, randomData, referenceScan, relativeError, type ScanData, type ScanSizes } from "./scan-case.js";

const F32: readonly ScanSpec[] = ["Mamba1ScanF32", "Mamba2ScanF32"].flatMap((name) => {
  const spec = parseOpName(name);
  return spec?.kind === "scan" ? [spec] : [];
});

const sizes = fc
  .record({
    batch: fc.integer({ min: 1, max: 2 }),
    length: fc.integer({ min: 1, max: 9 }),
    perGroup: fc.integer({ min: 1, max: 3 }),
    headDim: fc.integer({ min: 1, max: 5 }),
    dState: fc.integer({ min: 1, max: 5 }),
    groups: fc.integer({ min: 1, max: 3 }),
    bounded: fc.boolean(),
  })
  .map(
    ({ perGroup, bounded, ...rest }): ScanSizes => ({
      ...rest,
      heads: perGroup * rest.groups,
      chunkSize: 4,
      dtMin: bounded ? 0.01 : Number.NEGATIVE_INFINITY,
      dtMax: bounded ? 0.5 : Number.POSITIVE_INFINITY,
    }),
  );

/** y and h as explicit sums over the past instead of a recurrence. */
function bySums(spec: ScanSpec, s: ScanSizes, data: ScanData): { y: number[]; state: number[] } {
  const rows = s.heads * s.headDim;
  const steps = spec.family === "mamba2" ? s.heads : rows;
  const past = data.past;
  const y: number[] = [];
  const state: number[] = [];
  const stepOf = (row: number): number => (spec.family === "mamba2" ? Math.floor(row / s.headDim) : row);
  const d = (b: number, t: number, row: number): number => {
    const at = stepOf(row);
    const raw = Math.log(1 + Math.exp(data.dt[(b * s.length + t) * steps + at]! + data.dtBias[at]!));
    return Math.min(Math.max(raw, s.dtMin), s.dtMax);
  };
  const h = (b: number, t: number, row: number, n: number): number => {
    const rate = spec.family === "mamba2" ? data.A[stepOf(row)]! : data.A[row * s.dState + n]!;
    const group = Math.floor(stepOf(row) / (steps / s.groups));
    let sum = 0;
    for (let from = -1; from <= t; from++) {
      let exponent = 0;
      for (let k = from + 1; k <= t; k++) exponent += d(b, k, row) * rate;
      const entered =
        from < 0
          ? past[(b * rows + row) * s.dState + n]!
          : d(b, from, row) *
            data.x[(b * s.length + from) * rows + row]! *
            data.B[((b * s.length + from) * s.groups + group) * s.dState + n]!;
      sum += Math.exp(exponent) * entered;
    }
    return sum;
  };
  for (let b = 0; b < s.batch; b++) {
    for (let t = 0; t < s.length; t++) {
      for (let row = 0; row < rows; row++) {
        const group = Math.floor(stepOf(row) / (steps / s.groups));
        let sum = data.D[row]! * data.x[(b * s.length + t) * rows + row]!;
        for (let n = 0; n < s.dState; n++) {
          sum += h(b, t, row, n) * data.C[((b * s.length + t) * s.groups + group) * s.dState + n]!;
        }
        y.push(sum);
      }
    }
    for (let row = 0; row < rows; row++) for (let n = 0; n < s.dState; n++) state.push(h(b, s.length - 1, row, n));
  }
  return { y, state };
}

describe("selectiveScanReference", () => {
  test.each(F32)("of $family equals the sums it stands for", (spec) => {
    fc.assert(
      fc.property(sizes, fc.nat(), (s, seed) => {
        const data = randomData(spec, s, seed);
        const expected = bySums(spec, s, data);
        const actual = referenceScan(spec, s, data);
        expect(relativeError(actual.y, expected.y)).toBeLessThan(1e-11);
        expect(relativeError(actual.state, expected.state)).toBeLessThan(1e-11);
      }),
      { numRuns: 60, seed: 21 },
    );
  });

  test("rounds after every token or once: one token at a time they are the same", () => {
    for (const name of opNames()) {
      const spec = parseOpName(name);
      if (spec?.kind !== "scan" || spec.requantize !== "call") continue;
      const one = { batch: 2, heads: 2, headDim: 3, dState: 4, groups: 1, chunkSize: 4, dtMin: 0, dtMax: 10 };
      const data = randomData(spec, { ...one, length: 5 }, 3);
      const token = referenceScan({ ...spec, requantize: "token" }, { ...one, length: 5 }, data);
      let past = data.past;
      for (let t = 0; t < 5; t++) {
        const slice = (values: Float32Array, width: number): Float32Array =>
          Float32Array.from(
            { length: 2 * width },
            (_, i) => values[(Math.floor(i / width) * 5 + t) * width + (i % width)]!,
          );
        const steps = spec.family === "mamba2" ? 2 : 6;
        const call = referenceScan(
          spec,
          { ...one, length: 1 },
          {
            ...data,
            x: slice(data.x, 6),
            dt: slice(data.dt, steps),
            B: slice(data.B, 4),
            C: slice(data.C, 4),
            past,
          },
        );
        past = call.packed ?? Float32Array.from(call.state);
        if (t === 4 && call.packed !== undefined) expect(call.packed).toEqual(token.packed);
        // f32 states go through float32 between the calls here.
        if (t === 4) expect(relativeError(call.state, token.state)).toBeLessThan(1e-6);
      }
    }
  });

  test("softplus neither overflows nor loses small values", () => {
    expect(softplus(800)).toBe(800);
    expect(softplus(-40)).toBeCloseTo(Math.exp(-40), 30);
    expect(softplus(0)).toBeCloseTo(Math.LN2, 15);
  });
});

test("causalConvReference equals a convolution of the whole stream", () => {
  fc.assert(
    fc.property(
      fc.record({
        batch: fc.integer({ min: 1, max: 2 }),
        channels: fc.integer({ min: 1, max: 4 }),
        length: fc.integer({ min: 1, max: 8 }),
        kernelSize: fc.integer({ min: 1, max: 5 }),
        extra: fc.integer({ min: 0, max: 2 }),
        seed: fc.nat(),
        silu: fc.boolean(),
      }),
      ({ batch, channels, length, kernelSize, extra, seed, silu }) => {
        const noise = new Noise(seed);
        const stateWidth = kernelSize - 1 + extra;
        const whole = Array.from({ length: batch * channels }, () => [...noise.normals(stateWidth + length)]);
        const weight = noise.normals(channels * kernelSize);
        const bias = noise.normals(channels);
        const actual = causalConvReference({
          batch,
          channels,
          length,
          kernelSize,
          stateWidth,
          activation: silu ? "silu" : "none",
          x: Float32Array.from(whole.flatMap((line) => line.slice(stateWidth))),
          weight,
          bias,
          past: Float32Array.from(whole.flatMap((line) => line.slice(0, stateWidth))),
        });
        const expected = whole.flatMap((line, i) =>
          line.slice(stateWidth).map((_, t) => {
            const e = i % channels;
            const window = line.slice(stateWidth + t - kernelSize + 1, stateWidth + t + 1);
            const sum = window.reduce((total, value, k) => total + value * weight[e * kernelSize + k]!, bias[e]!);
            return silu ? sum / (1 + Math.exp(-sum)) : sum;
          }),
        );
        expect(relativeError(actual.y, expected)).toBeLessThan(1e-12);
        expect([...actual.state]).toEqual(whole.flatMap((line) => line.slice(length)));
      },
    ),
    { numRuns: 200, seed: 22 },
  );
});
