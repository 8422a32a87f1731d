import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import { attr, type Model, makeModel } from "../../src/ir/graph.js";
import { f32Tensor, toNumbers } from "../../src/ir/tensor.js";
import { encodeModel } from "../../src/onnx/write.js";
import { dequantize } from "../../src/quant/grid.js";
import { halvedNibbles, packCodes, quantizedTensors, transposedNibbles, unpackCodes } from "../../src/quant/packing.js";
import { roundToNearest } from "../../src/quant/round-nearest.js";
import { parseWeightScheme, type WeightScheme } from "../../src/quant/scheme.js";
import { openSession } from "../../src/run/session.js";
import { Random } from "../../src/support/random.js";
import { heavyWeight } from "./weights.js";

describe("transposedNibbles", () => {
  it("turns the matrix and offsets its codes, for even and odd columns and beyond one tile", () => {
    const shapes = fc.tuple(
      fc.integer({ min: 1, max: 80 }).map((half) => 2 * half),
      fc.integer({ min: 1, max: 150 }),
    );
    fc.assert(
      fc.property(shapes, fc.nat(), ([rows, cols], seed) => {
        const random = new Random(seed);
        for (const low of [-8, 0]) {
          const codes = Int8Array.from({ length: rows * cols }, () => Math.floor(16 * random.uniform()) + low);
          const turned = new Uint8Array(rows * cols);
          codes.forEach((code, at) => (turned[(at % cols) * rows + Math.floor(at / cols)] = code - low));
          expect(transposedNibbles(packCodes(codes, 4), rows, cols, low < 0)).toEqual(packCodes(turned, 4));
        }
      }),
      { seed: 3, numRuns: 60 },
    );
  });
});

describe("halvedNibbles", () => {
  it("packs codes of 2 bits that live in 4, and refuses others", () => {
    const arrays = fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 1, maxLength: 40 });
    fc.assert(
      fc.property(arrays, fc.boolean(), (values, signed) => {
        const codes = Uint8Array.from([...values, ...values, ...values, ...values]);
        const nibbles = packCodes(signed ? codes.map((code) => code - 2 + 8) : codes, 4);
        expect(halvedNibbles(nibbles, signed)).toEqual(packCodes(codes, 2));
      }),
      { seed: 5, numRuns: 60 },
    );
    for (const wide of [5, 10]) expect(() => halvedNibbles(Uint8Array.of(0x77, wide * 16 + 7), true)).toThrow("2 bits");
    expect(() => halvedNibbles(Uint8Array.of(4, 0), false)).toThrow("2 bits");
  });
});

describe("packCodes", () => {
  it("puts the first code into the low bits", () => {
    expect(packCodes(Int8Array.of(1, -2, 7), 4)).toEqual(Uint8Array.of(0xe1, 0x07));
    expect(packCodes(Uint8Array.of(15, 0, 1), 4)).toEqual(Uint8Array.of(0x0f, 0x01));
    expect(packCodes(Int8Array.of(1, -2, -1, 0, -1), 2)).toEqual(Uint8Array.of(0b00_11_10_01, 0b11));
    expect(packCodes(Int8Array.of(-1, 5), 8)).toEqual(Uint8Array.of(255, 5));
  });

  it("is undone by unpackCodes", () => {
    fc.assert(
      fc.property(fc.constantFrom(2, 4, 8), fc.boolean(), fc.array(fc.nat(255)), (bits, signed, values) => {
        const low = signed ? -(2 ** (bits - 1)) : 0;
        const numbers = values.map((value) => (value % 2 ** bits) + low);
        const codes = signed ? Int8Array.from(numbers) : Uint8Array.from(numbers);
        const packed = packCodes(codes, bits);
        expect(packed.length).toBe(Math.ceil((codes.length * bits) / 8));
        expect(unpackCodes(packed, codes.length, bits, signed)).toEqual(codes);
      }),
      { seed: 8, numRuns: 200 },
    );
  });
});

describe("quantizedTensors", () => {
  /** DequantizeLinear of the runtime on the tensors of a quantized weight. */
  async function dequantizedByRuntime(
    shape: readonly number[],
    scheme: WeightScheme,
    seed: number,
  ): Promise<Float64Array> {
    const builder = new GraphBuilder("");
    const { codes, scales, zeroPoints } = quantizedTensors(roundToNearest(heavyWeight(shape, seed), scheme));
    const inputs = [codes, scales, ...(zeroPoints === null ? [] : [zeroPoints])].map((t) => builder.initializer(t));
    const { granularity } = scheme;
    const attributes = {
      ...(granularity.kind === "tensor" ? {} : { axis: attr.int(granularity.axis) }),
      ...(granularity.kind === "group" ? { block_size: attr.int(granularity.size) } : {}),
    };
    const y = builder.op("DequantizeLinear", inputs, attributes);
    builder.op("Cast", [y], { to: 1 }, "y");
    const model: Model = makeModel(builder.graph("g", [], [typed("y", "f32", [...shape])]));
    const session = await openSession(encodeModel(model));
    const y32 = (await session.run(new Map())).get("y");
    await session.release();
    return y32 === undefined ? new Float64Array(0) : toNumbers(y32);
  }

  it.each([
    ["i8:tensor", [5, 3]],
    ["i8:channel", [5, 3]],
    ["u8:in-channel", [5, 3]],
    ["i4:channel", [4, 6]],
    ["u4:channel", [4, 6]],
    ["i4:g16", [64, 6]],
    ["u4:g32", [64, 6]],
    ["u3:g32", [64, 6]],
    ["i8:g32", [64, 6]],
    ["i4:g32", [40, 6]],
    ["i3:tensor:span", [7, 3]],
  ] as const)("the runtime reads %s as meant", async (text, shape) => {
    const scheme = parseWeightScheme(text);
    const expected = dequantize(roundToNearest(heavyWeight(shape, 9), scheme));
    expect(Float32Array.from(await dequantizedByRuntime(shape, scheme, 9))).toEqual(expected.map((v) => v + 0));
  });

  it("the runtime quantizes to the same codes", async () => {
    const weight = heavyWeight([33, 17], 10);
    for (const text of ["i8:channel", "u8:channel"]) {
      const quantized = roundToNearest(weight, parseWeightScheme(text));
      const builder = new GraphBuilder("");
      const { scales, zeroPoints, codes } = quantizedTensors(quantized);
      const inputs = [
        "x",
        builder.initializer(scales),
        ...(zeroPoints === null ? [] : [builder.initializer(zeroPoints)]),
      ];
      builder.op("QuantizeLinear", inputs, { axis: 1, output_dtype: zeroPoints === null ? 3 : 2 }, "y");
      const model: Model = makeModel(
        builder.graph("g", [typed("x", "f32", [33, 17])], [typed("y", zeroPoints === null ? "i8" : "u8", [33, 17])]),
      );
      const session = await openSession(encodeModel(model));
      const y = (await session.run(new Map([["x", f32Tensor([33, 17], weight.data)]]))).get("y");
      await session.release();
      expect(y?.bytes()).toEqual(codes.bytes());
    }
  });
});
