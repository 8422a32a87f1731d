import { describe, expect, test } from "vitest";
import type { Tensor } from "../../src/ir/tensor.js";
import { type DType, dtypeNumber } from "../../src/ir/types.js";
import { decodeSparse, decodeTensor, type ReadContext } from "../../src/onnx/decode-tensor.js";
import { decode, encode } from "../../src/onnx/proto.js";
import { ReadLog } from "../../src/onnx/read-log.js";
import type { Message, MessageInit } from "../../src/onnx/schema.js";

function context(): ReadContext {
  return { log: new ReadLog(), external: null };
}

function message(value: MessageInit<"TensorProto">): Message<"TensorProto"> {
  return decode("TensorProto", Uint8Array.from(encode("TensorProto", value).pieces.flatMap((piece) => [...piece])));
}

function read(dtype: DType, dims: readonly number[], data: MessageInit<"TensorProto">): Tensor {
  return decodeTensor(message({ data_type: dtypeNumber(dtype), dims: dims.map(BigInt), ...data }), "w", context());
}

function bytesOf(array: ArrayBufferView): number[] {
  return [...new Uint8Array(array.buffer, array.byteOffset, array.byteLength)];
}

describe("typed fields become raw bytes", () => {
  test.each<[DType, number[], MessageInit<"TensorProto">, number[]]>([
    ["f32", [2], { float_data: Float32Array.of(1.5, -0) }, bytesOf(Float32Array.of(1.5, -0))],
    ["c64", [1], { float_data: Float32Array.of(1, 2) }, bytesOf(Float32Array.of(1, 2))],
    ["f64", [2], { double_data: Float64Array.of(0.1, Number.NaN) }, bytesOf(Float64Array.of(0.1, Number.NaN))],
    ["c128", [1], { double_data: Float64Array.of(1, 2) }, bytesOf(Float64Array.of(1, 2))],
    ["i64", [2], { int64_data: BigInt64Array.of(-1n, 2n ** 62n) }, bytesOf(BigInt64Array.of(-1n, 2n ** 62n))],
    ["u64", [1], { uint64_data: BigUint64Array.of(2n ** 64n - 1n) }, bytesOf(BigUint64Array.of(2n ** 64n - 1n))],
    ["u32", [2], { uint64_data: BigUint64Array.of(1n, 2n ** 32n - 1n) }, bytesOf(Uint32Array.of(1, 2 ** 32 - 1))],
    ["i32", [2], { int32_data: Int32Array.of(-7, 2 ** 31 - 1) }, bytesOf(Int32Array.of(-7, 2 ** 31 - 1))],
    ["i16", [2], { int32_data: Int32Array.of(-32768, 32767) }, bytesOf(Int16Array.of(-32768, 32767))],
    ["u16", [2], { int32_data: Int32Array.of(0, 65535) }, bytesOf(Uint16Array.of(0, 65535))],
    ["i8", [2], { int32_data: Int32Array.of(-128, 127) }, [128, 127]],
    ["u8", [2], { int32_data: Int32Array.of(0, 255) }, [0, 255]],
    ["bool", [3], { int32_data: Int32Array.of(1, 0, 1) }, [1, 0, 1]],
    ["f16", [2], { int32_data: Int32Array.of(0x3c00, 0xfc00) }, [0x00, 0x3c, 0x00, 0xfc]],
    ["bf16", [1], { int32_data: Int32Array.of(0x3f80) }, [0x80, 0x3f]],
    ["f8e4m3fn", [2], { int32_data: Int32Array.of(0x38, 0xff) }, [0x38, 0xff]],
    ["f8e8m0", [1], { int32_data: Int32Array.of(127) }, [127]],
    ["u4", [3], { int32_data: Int32Array.of(0x21, 0x03) }, [0x21, 0x03]],
    ["i4", [3], { int32_data: Int32Array.of(0xf1, -1) }, [0xf1, 0xff]],
    ["f4e2m1", [2], { int32_data: Int32Array.of(0x72) }, [0x72]],
    ["i2", [5], { int32_data: Int32Array.of(0xe4, 0x01) }, [0xe4, 0x01]],
    ["u2", [4], { int32_data: Int32Array.of(0xe4) }, [0xe4]],
  ])("%s", (dtype, dims, data, expected) => {
    const tensor = read(dtype, dims, data);
    expect(tensor.shape).toEqual(dims);
    expect([...tensor.bytes()]).toEqual(expected);
    expect([...read(dtype, dims, { raw_data: Uint8Array.from(expected) }).bytes()]).toEqual(expected);
  });

  test("strings stay bytes", () => {
    const strings = [Uint8Array.of(0xff, 0), new Uint8Array(0)];
    expect(read("string", [2], { string_data: strings }).strings).toEqual(strings);
  });

  test("an empty tensor has no data at all", () => {
    expect(read("f32", [0, 5], {}).byteLength).toBe(0);
    expect(read("string", [0], {}).strings).toEqual([]);
  });
});

describe("refusals name the tensor", () => {
  test.each<[string, DType, number[], MessageInit<"TensorProto">, RegExp]>([
    ["too few bytes", "f32", [2], { raw_data: new Uint8Array(7) }, /^w: f32\[2\] needs 8 bytes but has 7 bytes/],
    ["too many bytes", "i4", [3], { raw_data: new Uint8Array(3) }, /needs 2 bytes but has 3/],
    ["too few numbers", "i64", [3], { int64_data: BigInt64Array.of(1n) }, /needs 24 bytes but has 8/],
    ["too few strings", "string", [2], { string_data: [] }, /needs 2 strings but has 0/],
    ["no data", "f32", [], {}, /needs 4 bytes but has 0/],
    [
      "both kinds of data",
      "f32",
      [1],
      { raw_data: new Uint8Array(4), float_data: Float32Array.of(1) },
      /both raw_data and float_data/,
    ],
    [
      "data of another type",
      "f32",
      [1],
      { int64_data: BigInt64Array.of(1n) },
      /type f32 but its data are in int64_data/,
    ],
    ["strings in numbers", "f32", [1], { string_data: [Uint8Array.of(1)] }, /holds strings/],
    [
      "two columns",
      "i32",
      [1],
      { int32_data: Int32Array.of(1), int64_data: BigInt64Array.of(1n) },
      /int32_data and int64_data/,
    ],
    ["a number out of range", "i8", [1], { int32_data: Int32Array.of(128) }, /128 is not a value of type i8/],
    ["a negative unsigned number", "u16", [1], { int32_data: Int32Array.of(-1) }, /-1 is not a value of type u16/],
    ["a large u32", "u32", [1], { uint64_data: BigUint64Array.of(2n ** 32n) }, /4294967296 is not a value/],
    ["a negative dimension", "f32", [-1], {}, /negative dimension -1/],
    ["an impossible size", "f32", [2 ** 40, 2 ** 40], {}, /impossible dimensions/],
    ["an impossible size beside zero", "f32", [0, 2 ** 40, 2 ** 40], {}, /impossible dimensions/],
    ["segments", "f32", [1], { segment: { begin: 0n } }, /segments/],
  ])("%s", (_, dtype, dims, data, expected) => {
    expect(() => read(dtype, dims, data)).toThrow(expected);
  });
});

describe("sparse tensors are stored densely", () => {
  const values: MessageInit<"TensorProto"> = { data_type: 1, dims: [2n], float_data: Float32Array.of(5, 7) };

  function sparse(value: MessageInit<"SparseTensorProto">): Tensor {
    const bytes = encode("SparseTensorProto", value).pieces.flatMap((piece) => [...piece]);
    return decodeSparse(decode("SparseTensorProto", Uint8Array.from(bytes)), "s", context());
  }

  function indices(dims: readonly bigint[], data: readonly bigint[]): MessageInit<"TensorProto"> {
    return { data_type: 7, dims, int64_data: BigInt64Array.from(data) };
  }

  test("linear indices", () => {
    const tensor = sparse({ values, indices: indices([2n], [1n, 5n]), dims: [2n, 3n] });
    expect([...tensor.bytes()]).toEqual(bytesOf(Float32Array.of(0, 5, 0, 0, 0, 7)));
  });

  test("coordinates", () => {
    const tensor = sparse({ values, indices: indices([2n, 2n], [0n, 2n, 1n, 0n]), dims: [2n, 3n] });
    expect([...tensor.bytes()]).toEqual(bytesOf(Float32Array.of(0, 0, 5, 7, 0, 0)));
  });

  test.each<[string, MessageInit<"SparseTensorProto">, RegExp]>([
    ["no values", { dims: [2n] }, /no values/],
    ["no indices", { values, dims: [2n] }, /no indices/],
    ["an index out of range", { values, indices: indices([2n], [0n, 6n]), dims: [2n, 3n] }, /index 6 is out of range/],
    ["indices of another count", { values, indices: indices([1n], [0n]), dims: [2n, 3n] }, /do not fit/],
    [
      "a gigantic dense form",
      { values, indices: indices([2n], [0n, 1n]), dims: [2n ** 40n] },
      /cannot be stored densely/,
    ],
  ])("refuses %s", (_, value, expected) => {
    expect(() => sparse(value)).toThrow(expected);
  });
});
