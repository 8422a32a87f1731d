import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { packedHeadBytes } from "../../src/ops/names.js";
import { packHead, unpackHead } from "../../src/ops/packed-state.js";
import { selectiveScanReference } from "../../src/ops/reference.js";
import { type StateScheme, schemeBytes, schemeRounding, staticScales } from "../../src/ops/state-schemes.js";
import { Noise, randomData, relativeError } from "./scan-case.js";

const DSQ = { kind: "dsq", norm: "mean", gamma: 0.5, order: "channel" } as const;
const DSQ_MAX = { kind: "dsq", norm: "max", gamma: 1, order: "channel" } as const;

/** A head whose rows and columns differ in size by up to `spread` e-folds. */
function head(seed: number, headDim: number, dState: number, spread: number): Float64Array {
  const noise = new Noise(seed);
  const rows = Array.from({ length: headDim }, () => Math.exp(spread * noise.normal()));
  const columns = Array.from({ length: dState }, () => Math.exp(spread * noise.normal()));
  return Float64Array.from(
    { length: headDim * dState },
    (_, i) => noise.normal() * rows[Math.floor(i / dState)]! * columns[i % dState]!,
  );
}

function rounded(scheme: StateScheme, values: Float64Array, headDim: number, dState: number): Float64Array {
  const copy = Float64Array.from(values);
  schemeRounding(scheme)(copy, 0, headDim, dState);
  return copy;
}

function rmsError(scheme: StateScheme, values: Float64Array, headDim: number, dState: number): number {
  const result = rounded(scheme, values, headDim, dState);
  return Math.sqrt(result.reduce((sum, value, i) => sum + (value - values[i]!) ** 2, 0));
}

describe("state schemes", () => {
  test("dsq and dsq-max with 8 and 4 bits are the packed formats", () => {
    fc.assert(
      fc.property(fc.nat(), fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 9 }), (seed, headDim, half) => {
        const dState = 2 * half;
        const values = head(seed, headDim, dState, 1);
        for (const [format, bits] of [
          ["h8", 8],
          ["h4", 4],
        ] as const) {
          for (const [scale, rule] of [
            ["dsq", DSQ],
            ["dsq-max", DSQ_MAX],
          ] as const) {
            const bytes = new Uint8Array(packedHeadBytes(format, headDim, dState));
            packHead(values, headDim, dState, format, scale, bytes);
            const expected = new Float64Array(values.length);
            unpackHead(bytes, headDim, dState, format, expected);
            const scheme: StateScheme = { ...rule, bits };
            expect(relativeError(rounded(scheme, values, headDim, dState), expected)).toBeLessThan(1e-14);
            expect(schemeBytes(scheme, headDim, dState)).toBe(bytes.length);
          }
        }
      }),
      { numRuns: 100, seed: 81 },
    );
  });

  test("order 'state' is order 'channel' of the transposed head", () => {
    const [headDim, dState] = [6, 10];
    const values = head(3, headDim, dState, 1);
    const flipped = Float64Array.from(values, (_, i) => values[(i % headDim) * dState + Math.floor(i / headDim)]!);
    const a = rounded({ ...DSQ, order: "state", bits: 4 }, values, headDim, dState);
    const b = rounded({ ...DSQ, bits: 4 }, flipped, dState, headDim);
    expect([...a]).toEqual([...Float64Array.from(a, (_, i) => b[(i % dState) * headDim + Math.floor(i / dState)]!)]);
  });

  test("groups of the whole row are channels, and smaller ones are better", () => {
    const [headDim, dState] = [16, 64];
    const values = head(4, headDim, dState, 0.7);
    const channel = rounded({ kind: "channel", bits: 4 }, values, headDim, dState);
    expect(rounded({ kind: "group", size: dState, bits: 4 }, values, headDim, dState)).toEqual(channel);
    const error = (scheme: StateScheme): number => rmsError(scheme, values, headDim, dState);
    expect(error({ kind: "group", size: 16, bits: 4 })).toBeLessThan(error({ kind: "channel", bits: 4 }));
    expect(error({ kind: "channel", bits: 4 })).toBeLessThan(error({ kind: "tensor", bits: 4 }));
    expect(schemeBytes({ kind: "group", size: 16, bits: 4 }, headDim, dState)).toBe(16 * 32 + 2 * 16 * 4);
  });

  test("with equal rows and columns every rank-one scheme is per tensor", () => {
    const noise = new Noise(5);
    const values = Float64Array.from({ length: 64 }, () => (noise.uniform() < 0.5 ? 1 : -1) * 0.75);
    const tensor = rounded({ kind: "tensor", bits: 8 }, values, 8, 8);
    for (const scheme of [{ kind: "channel" }, { kind: "state" }, DSQ_MAX] as const) {
      expect(relativeError(rounded({ ...scheme, bits: 8 }, values, 8, 8), tensor)).toBeLessThan(1e-14);
    }
  });

  test("decoupled scales beat one-sided ones where both rows and columns differ", () => {
    let wins = 0;
    for (let seed = 0; seed < 40; seed++) {
      const values = head(seed, 32, 64, 1);
      const error = (scheme: StateScheme): number => {
        const result = rounded(scheme, values, 32, 64);
        // Relative to each row and column, as the outputs of small channels count as much as those of large ones.
        return result.reduce((sum, value, i) => sum + Math.abs(value - values[i]!) / (Math.abs(values[i]!) + 1e-6), 0);
      };
      const dsq = error({ ...DSQ_MAX, bits: 4 });
      if (dsq < error({ kind: "channel", bits: 4 }) && dsq < error({ kind: "state", bits: 4 })) wins += 1;
    }
    expect(wins).toBeGreaterThanOrEqual(38);
  });

  test("static scales from calibration cover what they saw, and clip what they did not", () => {
    const [heads, headDim, dState] = [2, 4, 8];
    const seen = Float64Array.from([...head(6, headDim, dState, 1), ...head(7, headDim, dState, 1)]);
    const magnitudes = seen.map(Math.abs);
    const scheme = { kind: "static", bits: 8, heads: staticScales(magnitudes, heads, headDim, dState) } as const;
    const state = Float64Array.from([...seen, ...seen]); // two sequences
    const round = schemeRounding(scheme);
    for (let i = 0; i < 4; i++) round(state, i * headDim * dState, headDim, dState);
    expect([...state.subarray(0, seen.length)]).toEqual([...state.subarray(seen.length)]);
    expect(relativeError(state.subarray(0, seen.length), seen)).toBeLessThan(1 / 127);
    const louder = seen.map((value) => 10 * value);
    round(louder, 0, headDim, dState);
    const [first] = scheme.heads;
    if (first === undefined) throw new Error("no scales");
    louder.subarray(0, headDim * dState).forEach((value, i) => {
      const limit = first.channel[Math.floor(i / dState)]! * first.state[i % dState]!;
      expect(Math.abs(value)).toBeLessThanOrEqual(limit * (1 + 1e-12));
    });
  });

  test("serve as the rounding of a reference scan", () => {
    const sizes = { batch: 1, length: 12, heads: 2, headDim: 4, dState: 8, groups: 1, chunkSize: 4 };
    const spec = { family: "mamba2", format: "f32", scale: "dsq", requantize: "token" } as const;
    const data = randomData(spec, { ...sizes, dtMin: 0, dtMax: 9 }, 9);
    if (data.past instanceof Uint8Array) throw new Error("an f32 state has no bytes");
    const args = { ...sizes, ...data, family: "mamba2", requantize: "token" } as const;
    const packed = selectiveScanReference({ ...args, format: "h4" });
    const scheme = selectiveScanReference({ ...args, rounding: schemeRounding({ ...DSQ, bits: 4 }) });
    const exact = selectiveScanReference(args);
    expect(relativeError(scheme.y, packed.y)).toBeLessThan(1e-12);
    expect(relativeError(exact.y, packed.y)).toBeGreaterThan(1e-3);
  });
});
