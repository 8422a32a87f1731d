import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  asBytes,
  f32Tensor,
  float16ToNumber,
  numberToFloat16,
  type Tensor,
  tensorFromSource,
} from "../../src/ir/tensor.js";
import { halvesOf } from "../../src/quant/halves.js";
import { fitsHalves, HalfTally, halfWeight } from "../../src/rewrite/half-weight.js";

function halfBits(values: Float32Array): Uint16Array {
  const out = new Uint16Array(values.length);
  halvesOf(new Uint32Array(values.buffer), out);
  return out;
}

/** A weight in a file, which may be read from any byte on. */
function stored(values: Float32Array): Tensor {
  const bytes = asBytes(values);
  const read = (offset: number, length: number): Uint8Array => {
    // At an odd place in memory, as files have it.
    const copy = new Uint8Array(length + 1);
    copy.set(bytes.subarray(offset, offset + length), 1);
    return copy.subarray(1);
  };
  return tensorFromSource("f32", [values.length], { read }, 0, "file");
}

describe("weights as halves", () => {
  test("every half, its neighbours and the midpoints round as IEEE says", () => {
    const values: number[] = [];
    for (let bits = 0; bits < 0x7c00; bits++) {
      const [low, high] = [float16ToNumber(bits), bits === 0x7bff ? 65536 : float16ToNumber(bits + 1)];
      const middle = (low + high) / 2;
      for (const value of [low, middle, middle * (1 - 2 ** -23), middle * (1 + 2 ** -23)]) values.push(value, -value);
    }
    const floats = Float32Array.from(values);
    const halves = halfBits(floats);
    const wrong = [...floats].filter((value, at) => halves[at] !== numberToFloat16(value));
    expect(wrong).toEqual([]);
  });

  test("any float rounds as the slow conversion does it", () => {
    fc.assert(
      fc.property(fc.float(), (value) => {
        expect(halfBits(Float32Array.of(value))[0]).toBe(numberToFloat16(value));
      }),
      { seed: 3, numRuns: 3000 },
    );
  });

  test("any range of bytes of a large weight is that of the whole", () => {
    const values = Float32Array.from({ length: 10_000 }, (_, at) => Math.sin(at) * 2 ** ((at % 40) - 28));
    const weight = halfWeight(stored(values), "w", new HalfTally());
    expect([weight.dtype, weight.shape, weight.residence]).toEqual(["f16", [10_000], "lazy"]);
    const whole = Buffer.from(asBytes(halfBits(values)));
    fc.assert(
      fc.property(fc.nat(20_000), fc.nat(20_000), (a, b) => {
        const [start, end] = [Math.min(a, b), Math.max(a, b)];
        expect(whole.subarray(start, end).equals(Buffer.from(weight.slice(start, end)))).toBe(true);
      }),
      { seed: 4, numRuns: 200 },
    );
  });

  test("losses are counted once, in whatever parts a weight is read", () => {
    const values = Float32Array.of(0, -0, 1, 65504, 2 ** -14, 2 ** -15, 2 ** -24, 2 ** -25, -(2 ** -30));
    const all = { values: 9, zeroed: 2, subnormal: 2, beyond: null };
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(18), fc.nat(18)), { maxLength: 4 }), (ranges) => {
        const tally = new HalfTally();
        const weight = halfWeight(stored(values), "w", tally);
        expect(tally.settled).toBe(false);
        for (const [a, b] of ranges) weight.slice(Math.min(a, b), Math.max(a, b));
        weight.bytes();
        weight.bytes();
        expect([tally.settled, tally.total]).toEqual([true, all]);
      }),
      { seed: 6, numRuns: 200 },
    );
    const tally = new HalfTally();
    const weights = [f32Tensor([9], values), stored(values)].map((tensor) => halfWeight(tensor, "w", tally));
    // What is small and in memory is converted at once.
    expect([tally.settled, tally.total]).toEqual([false, all]);
    for (const weight of weights) weight.bytes();
    expect([tally.settled, tally.total]).toEqual([true, { ...all, values: 18, zeroed: 4, subnormal: 4 }]);
  });

  test("values beyond halves are told by name when they are read", () => {
    const beyond = "weight w [2] has the value -65505";
    expect(() => halfWeight(f32Tensor([2], [1, -65505]), "w", new HalfTally())).toThrow(beyond);
    const weight = halfWeight(stored(Float32Array.of(1, -65505)), "w", new HalfTally());
    expect(() => weight.bytes()).toThrow(beyond);
    expect(() => weight.slice(2, 4)).toThrow(beyond);
    expect(weight.slice(0, 2)).toEqual(Uint8Array.of(0, 0x3c));
  });

  test("what fits", () => {
    expect(fitsHalves(f32Tensor([3], [0, 2 ** -14, -65504]))).toBe(true);
    expect(fitsHalves(f32Tensor([], [1e-5]))).toBe(false);
    expect(fitsHalves(f32Tensor([], [Number.NEGATIVE_INFINITY]))).toBe(false);
  });
});
