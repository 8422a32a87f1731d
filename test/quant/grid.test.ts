import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { numberToFloat16, roundHalfEven } from "../../src/ir/tensor.js";
import { chooseGrid, dequantize, type Grid, quantize } from "../../src/quant/grid.js";
import { codeRange, type Weight } from "../../src/quant/ranges.js";
import { roundToNearest } from "../../src/quant/round-nearest.js";
import { matrixScaleIndex, scaleLayout } from "../../src/quant/scale-layout.js";
import { type Granularity, parseWeightScheme, type WeightScheme } from "../../src/quant/scheme.js";
import { MambacError } from "../../src/support/errors.js";
import { granularities, heavyWeight, schemes } from "./weights.js";

const shapes = fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 3 });

/** The scale of every element, by the definition of ONNX. */
function scaleOfElements(shape: readonly number[], granularity: Granularity): number[] {
  const count = shape.reduce((product, dim) => product * dim, 1);
  return Array.from({ length: count }, (_, at) => {
    const index: number[] = [];
    for (let axis = shape.length - 1, rest = at; axis >= 0; axis--) {
      index.unshift(rest % (shape[axis] ?? 1));
      rest = Math.floor(rest / (shape[axis] ?? 1));
    }
    if (granularity.kind === "tensor") return 0;
    if (granularity.kind === "channel") return index[granularity.axis] ?? -1;
    return index.reduce((sum, place, axis) => {
      const dim = shape[axis] ?? 1;
      return axis === granularity.axis
        ? sum * Math.ceil(dim / granularity.size) + Math.floor(place / granularity.size)
        : sum * dim + place;
    }, 0);
  });
}

describe("scaleLayout", () => {
  it("covers every element once, in order, with the scale ONNX gives it", () => {
    fc.assert(
      fc.property(
        shapes.chain((shape) => fc.tuple(fc.constant(shape), granularities(shape.length))),
        ([shape, granularity]) => {
          const layout = scaleLayout(shape, granularity);
          const seen: number[] = [];
          layout.forEachRun((start, length, scale, step) => {
            expect(start).toBe(seen.length);
            for (let i = 0; i < length; i++) seen.push(scale + step * i);
          });
          expect(seen).toEqual(scaleOfElements(shape, granularity));
          expect(layout.shape.reduce((product, dim) => product * dim, 1)).toBe(layout.count);
          const [rows = 0, cols = 0] = shape;
          if (shape.length === 2) {
            const { row, column } = matrixScaleIndex(rows, cols, granularity);
            expect(seen.map((_, at) => (row[Math.floor(at / cols)] ?? 0) + (column[at % cols] ?? 0))).toEqual(seen);
          }
        },
      ),
      { seed: 1, numRuns: 300 },
    );
  });

  it("refuses axes and groups that do not exist", () => {
    expect(() => scaleLayout([3], { kind: "channel", axis: 1 })).toThrow("no axis 1");
    expect(() => scaleLayout([3], { kind: "group", axis: 0, size: 0 })).toThrow("a group of 0");
  });
});

/** The definition, one element at a time. */
function reference(weight: Weight, grid: Grid): { codes: number[]; values: number[] } {
  const [lowest, highest] = codeRange(grid.bits, grid.zeroPoints === null ? "symmetric" : "asymmetric");
  const at = scaleOfElements(weight.shape, grid.granularity);
  const codes = Array.from(weight.data, (value, i) => {
    const zero = grid.zeroPoints?.[at[i] ?? 0] ?? 0;
    const code = roundHalfEven(Math.fround(value / (grid.scales[at[i] ?? 0] ?? 0))) + zero;
    return Math.min(Math.max(code, lowest), highest);
  });
  const values = codes.map((code, i) =>
    Math.fround((code - (grid.zeroPoints?.[at[i] ?? 0] ?? 0)) * (grid.scales[at[i] ?? 0] ?? 0)),
  );
  return { codes, values };
}

const cases = shapes.chain((shape) => fc.tuple(fc.constant(shape), schemes(shape.length), fc.nat()));

describe("quantize", () => {
  it("is round half even, shift, clamp; and back", () => {
    fc.assert(
      fc.property(cases, ([shape, scheme, seed]) => {
        const weight = heavyWeight(shape, seed);
        const quantized = roundToNearest(weight, scheme);
        const expected = reference(weight, quantized);
        expect(Array.from(quantized.codes, (code) => code + 0)).toEqual(expected.codes.map((code) => code + 0));
        expect(Array.from(dequantize(quantized), (v) => v + 0)).toEqual(expected.values.map((v) => v + 0));
        expect(quantized.codes).toBeInstanceOf(scheme.zero.kind === "symmetric" ? Int8Array : Uint8Array);
      }),
      { seed: 2, numRuns: 400 },
    );
  });

  it("keeps every element within half a step when nothing is clipped", () => {
    fc.assert(
      fc.property(cases, ([shape, scheme, seed]) => {
        fc.pre(scheme.clip.kind === "none" && scheme.scaleType === "f32");
        fc.pre(scheme.zero.kind === "asymmetric" || scheme.zero.step === "peak");
        const weight = heavyWeight(shape, seed);
        const quantized = roundToNearest(weight, scheme);
        const at = scaleOfElements(shape, scheme.granularity);
        dequantize(quantized).forEach((value, i) => {
          const scale = quantized.scales[at[i] ?? 0] ?? 0;
          // An asymmetric grid is shifted by up to half a step to hold zero, so an end may be a whole step away.
          const steps = scheme.zero.kind === "asymmetric" ? 1 : 0.5;
          expect(Math.abs(value - (weight.data[i] ?? 0))).toBeLessThanOrEqual(steps * scale * (1 + 1e-5));
        });
      }),
      { seed: 3, numRuns: 300 },
    );
  });

  it("changes nothing the second time", () => {
    fc.assert(
      fc.property(cases, ([shape, scheme, seed]) => {
        const once = roundToNearest(heavyWeight(shape, seed), scheme);
        const twice = quantize(dequantize(once), shape, once);
        expect(twice.codes).toEqual(once.codes);
        expect(dequantize(twice)).toEqual(dequantize(once));
      }),
      { seed: 4, numRuns: 200 },
    );
  });

  it("finds the same codes when it chooses the grid anew from its own output", () => {
    fc.assert(
      fc.property(cases, ([shape, drawn, seed]) => {
        const scheme: WeightScheme = {
          ...drawn,
          zero: { kind: "symmetric", step: "peak" },
          clip: { kind: "none" },
          scaleType: "f32",
        };
        const once = roundToNearest(heavyWeight(shape, seed), scheme);
        expect(roundToNearest({ label: "w", shape, data: dequantize(once) }, scheme).codes).toEqual(once.codes);
      }),
      { seed: 5, numRuns: 200 },
    );
  });

  it("rounds ties to even like the runtime", () => {
    const data = Float32Array.from([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127, -128, 200, -200]);
    const grid: Grid = {
      bits: 8,
      granularity: { kind: "tensor" },
      scaleType: "f32",
      scales: Float32Array.from([1]),
      zeroPoints: null,
    };
    const { codes } = quantize(data, [10], grid);
    expect(Array.from(codes, (code) => code + 0)).toEqual([0, 2, 2, 0, -2, -2, 127, -128, 127, -128]);
  });
});

describe("chooseGrid", () => {
  const scheme = (text: string): WeightScheme => parseWeightScheme(text);

  it("takes scales from the ranges as published", () => {
    const weight: Weight = { label: "w", shape: [2, 2], data: Float32Array.from([-1, 0.5, 3, -2]) };
    expect(chooseGrid(weight, scheme("i8:tensor")).scales).toEqual(Float32Array.of(3 / 127));
    expect(chooseGrid(weight, scheme("i4:channel")).scales).toEqual(Float32Array.of(3 / 7, 2 / 7));
    expect(chooseGrid(weight, scheme("i4:in-channel")).scales).toEqual(Float32Array.of(1 / 7, 3 / 7));
    expect(chooseGrid(weight, scheme("i4:tensor:span")).scales).toEqual(Float32Array.of(6 / 15));
    expect(chooseGrid(weight, scheme("i2:tensor")).scales).toEqual(Float32Array.of(3));
    const asymmetric = chooseGrid(weight, scheme("u4:tensor"));
    expect(asymmetric.scales).toEqual(Float32Array.of(5 / 15));
    expect(asymmetric.zeroPoints).toEqual(Uint8Array.of(6));
    expect(chooseGrid(weight, scheme("i8:tensor:f16")).scales[0]).toBe(0.02362060546875);
  });

  it.each(["i8:tensor", "u8:channel", "i4:g2:mse", "u4:in-channel:mse", "i2:g128:f16"])(
    "keeps zeros, constants and tiny numbers finite under %s",
    (text) => {
      for (const fill of [0, 0.3, -0.3, 1e-42, -1e-42, 1e-30, 3e38, -3e38]) {
        const data = new Float32Array(12).fill(fill);
        const quantized = roundToNearest({ label: "w", shape: [4, 3], data }, scheme(text));
        expect(quantized.scales.every((scale) => scale > 0 && Number.isFinite(scale))).toBe(true);
        const values = dequantize(quantized);
        expect(values.every(Number.isFinite)).toBe(true);
        if (fill === 0 || Math.abs(fill) < 1e-20) expect(values.every((value) => Math.abs(value) < 1e-6)).toBe(true);
        if (Math.abs(fill) === 0.3) {
          expect(values.every((value) => Math.abs(value - fill) < 0.3 * (scheme(text).bits === 2 ? 0.001 : 0.1))).toBe(
            true,
          );
        }
      }
    },
  );

  it("gives an all-zero channel the scale 1 and leaves its neighbours alone", () => {
    const data = Float32Array.from([0, 1, 0, -2]);
    const quantized = roundToNearest({ label: "w", shape: [2, 2], data }, scheme("i8:channel"));
    expect(quantized.scales).toEqual(Float32Array.of(1, 2 / 127));
    expect(dequantize(quantized)[0]).toBe(0);
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])("refuses %d and says where", (bad) => {
    for (const text of ["i8:tensor", "i8:channel", "u4:g2", "i4:in-channel:mse"]) {
      const data = new Float32Array(12).fill(0.1);
      data[7] = bad;
      const refused = (): unknown => roundToNearest({ label: "layers.3.in_proj", shape: [4, 3], data }, scheme(text));
      expect(refused).toThrow(MambacError);
      expect(refused).toThrow(`layers.3.in_proj has the value ${bad} at [2,1]`);
    }
  });

  it("with the error search, never does worse than the full range", () => {
    fc.assert(
      fc.property(schemes(2), fc.nat(), (drawn, seed) => {
        const weight = heavyWeight([24, 6], seed);
        const search = { kind: "mse", exponent: 2.4, smallest: 0.21, step: 0.01 } as const;
        const errors = (clip: WeightScheme["clip"]): Float64Array => {
          const quantized = roundToNearest(weight, { ...drawn, scaleType: "f32", clip });
          const at = scaleOfElements(weight.shape, drawn.granularity);
          const sums = new Float64Array(quantized.scales.length);
          dequantize(quantized).forEach((value, i) => {
            sums[at[i] ?? 0]! += Math.abs(value - (weight.data[i] ?? 0)) ** 2.4;
          });
          return sums;
        };
        const [full, clipped] = [errors({ kind: "none" }), errors(search)];
        full.forEach((error, i) => expect(clipped[i]).toBeLessThanOrEqual(error * 1.0001 + 1e-12));
      }),
      { seed: 6, numRuns: 100 },
    );
  });

  it("finds the share that trying every one finds", () => {
    fc.assert(
      fc.property(
        fc.constantFrom("i2:tensor", "i4:tensor", "i8:tensor", "u4:tensor", "u8:tensor"),
        fc.nat(),
        (text, seed) => {
          const weight = heavyWeight([40], seed);
          const plain = scheme(text);
          const { scales } = chooseGrid(weight, scheme(`${text}:mse`));
          const tried = Array.from({ length: 80 }, (_, i) => {
            const share = 1 - i * 0.01;
            const low = Math.fround(share * Math.min(0, ...weight.data));
            const high = Math.fround(share * Math.max(0, ...weight.data));
            const grid = chooseGrid({ label: "w", shape: [2], data: Float32Array.of(low, high) }, plain);
            const values = dequantize(quantize(weight.data, [40], grid));
            const error = values.reduce((sum, value, k) => sum + Math.abs(value - (weight.data[k] ?? 0)) ** 2.4, 0);
            return { scale: grid.scales[0] ?? 0, error };
          });
          const least = Math.min(...tried.map((t) => t.error));
          const found = tried.find((t) => t.scale === scales[0]);
          // The search works without the rounding of scales to float32 and reads powers from a table.
          expect(found?.error).toBeLessThanOrEqual(least * 1.0001);
        },
      ),
      { seed: 7, numRuns: 100 },
    );
  });

  it("rounds scales to halves when they are stored so", () => {
    const { scales } = chooseGrid(heavyWeight([64, 8], 3), scheme("i4:g32:f16"));
    for (const scale of scales) expect(numberToFloat16(scale) & 0x8000).toBe(0);
    const bits = Uint16Array.from(scales, numberToFloat16);
    expect(scales.length).toBe(16);
    expect(new Set(bits).size).toBeGreaterThan(8);
  });
});
