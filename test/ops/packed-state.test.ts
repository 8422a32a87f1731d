import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { packHead, packState, unpackState } from "../../src/ops/packed-state.js";
import { Noise } from "./scan-case.js";

/** All finite halves >= 0 in the order of their bits, from the definition of the format. */
const HALVES = Array.from({ length: 0x7c00 }, (_, bits) => {
  const exponent = bits >> 10;
  const fraction = (bits % 1024) / 1024;
  return exponent === 0 ? fraction * 2 ** -14 : (1 + fraction) * 2 ** (exponent - 15);
});

/** Bits of the nearest half by search, ties to the even one. */
function halfBits(value: number): number {
  let low = 0;
  let high = HALVES.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (HALVES[middle]! < value) low = middle + 1;
    else high = middle;
  }
  const above = HALVES[low]!;
  const below = HALVES[low - 1] ?? above;
  if (above - value === value - below) return low % 2 === 0 ? low : low - 1;
  return above - value < value - below ? low : low - 1;
}

function halfEven(value: number): number {
  const down = Math.floor(value);
  if (value - down !== 0.5) return Math.round(value);
  return down % 2 === 0 ? down : down + 1;
}

/** The contract's packed layout, written again from its text. */
function contractBytes(h: number[][], bits: 8 | 4, max: boolean): number[] {
  const qmax = bits === 8 ? 127 : 7;
  const clamp = (value: number, low: number, high: number): number => Math.min(high, Math.max(low, value));
  const channelBits = h.map((row) => {
    const magnitudes = row.map(Math.abs);
    const norm = max ? Math.max(...magnitudes) : Math.sqrt(magnitudes.reduce((a, b) => a + b, 0) / row.length);
    return halfBits(clamp(norm, 2 ** -14, 65504));
  });
  const stateBits = h[0]!.map((_, n) => {
    const ratios = h.map((row, p) => Math.abs(row[n]!) / HALVES[channelBits[p]!]!);
    return halfBits(Math.min(Math.max(...ratios), 65504));
  });
  const codes = h.map((row, p) =>
    row.map((value, n) => {
      const step = (HALVES[channelBits[p]!]! * HALVES[stateBits[n]!]!) / qmax;
      return step > 0 ? clamp(halfEven(value / step), -qmax, qmax) : 0;
    }),
  );
  const flat = codes.flat();
  const twos = (code: number, size: number): number => (code < 0 ? code + size : code);
  const payload =
    bits === 8
      ? flat.map((code) => twos(code, 256))
      : flat.filter((_, i) => i % 2 === 0).map((code, i) => twos(code, 16) + 16 * twos(flat[2 * i + 1]!, 16));
  const scales = [...channelBits, ...stateBits].flatMap((half) => [half % 256, Math.floor(half / 256)]);
  return [...payload, ...scales];
}

const SCALES = ["dsq", "dsq-max"] as const;
const MAGNITUDES = [0, 1e-8, 1e-5, 1e-3, 1, 30, 1e4, 1e7];

const heads = fc
  .record({ p: fc.integer({ min: 1, max: 9 }), half: fc.integer({ min: 1, max: 9 }), seed: fc.nat() })
  .map(({ p, half, seed }) => {
    const noise = new Noise(seed);
    const base = MAGNITUDES[seed % MAGNITUDES.length]!;
    return Array.from({ length: p }, () =>
      Array.from({ length: 2 * half }, () => base * noise.normal() * (noise.uniform() < 0.05 ? 100 : 1)),
    );
  });

describe("packed heads", () => {
  test.each([8, 4] as const)("of %i bits are the contract's bytes", (bits) => {
    fc.assert(
      fc.property(heads, fc.constantFrom(...SCALES), (h, scale) => {
        const format = bits === 8 ? "h8" : "h4";
        const dims = { heads: 1, headDim: h.length, dState: h[0]!.length };
        const expected = Uint8Array.from(contractBytes(h, bits, scale === "dsq-max"));
        expect(packState(h.flat(), dims, format, scale)).toEqual(expected);
      }),
      { numRuns: 400, seed: 11 },
    );
  });

  test.each([8, 4] as const)("of %i bits decode to within half a step", (bits) => {
    fc.assert(
      fc.property(heads, fc.constantFrom(...SCALES), (h, scale) => {
        const format = bits === 8 ? "h8" : "h4";
        const qmax = bits === 8 ? 127 : 7;
        const dims = { heads: 1, headDim: h.length, dState: h[0]!.length };
        const flat = h.flat();
        // Beyond a channel scale of 65504 (mean |h| above 4e9) and below the smallest scales the bound is another one.
        fc.pre(flat.every((value) => Math.abs(value) < 6e4));
        const bytes = packState(flat, dims, format, scale);
        const decoded = unpackState(bytes, dims, format);
        const at = bytes.length - 2 * (dims.headDim + dims.dState);
        const half = (i: number): number => HALVES[bytes[at + 2 * i]! + 256 * bytes[at + 2 * i + 1]!]!;
        flat.forEach((value, i) => {
          const channel = half(Math.floor(i / dims.dState));
          const step = (channel * half(dims.headDim + (i % dims.dState))) / qmax;
          // A scale may be rounded down by 2^-12 of itself, or by half a unit where it is subnormal.
          const clipped = Math.abs(value) * 2 ** -11 + channel * 2 ** -25;
          expect(Math.abs(decoded[i]! - value)).toBeLessThanOrEqual(step / 2 + clipped);
        });
      }),
      { numRuns: 300, seed: 12 },
    );
  });

  test("all zero bytes are the zero state, and only the zero state has zero codes everywhere", () => {
    const dims = { heads: 3, headDim: 4, dState: 6 };
    for (const format of ["h8", "h4"] as const) {
      const bytes = packState(new Float64Array(72), dims, format, "dsq");
      expect(unpackState(new Uint8Array(bytes.length), dims, format)).toEqual(new Float64Array(72));
      expect(unpackState(bytes, dims, format).every((value) => value === 0)).toBe(true);
      const one = new Float64Array(72);
      one[40] = 1e-3;
      const decoded = unpackState(packState(one, dims, format, "dsq"), dims, format);
      expect(decoded.findIndex((value) => value !== 0)).toBe(40);
    }
  });

  test("packHead writes at its offset and says how much", () => {
    const out = new Uint8Array(64).fill(0xaa);
    const written = packHead([1, -2, 3, -4], 2, 2, "h4", "dsq-max", out, 5);
    expect(written).toBe(2 + 8);
    expect([...out.subarray(0, 5)]).toEqual([0xaa, 0xaa, 0xaa, 0xaa, 0xaa]);
    expect(out[5 + written]).toBe(0xaa);
  });
});
