import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decode, encode } from "../../src/onnx/proto.js";
import { type MessageInit, type MessageName, SCHEMA } from "../../src/onnx/schema.js";
import { MambacError } from "../../src/support/errors.js";
import { field, intField, varint } from "../support/wire.js";

function bytesOf<M extends MessageName>(message: M, value: MessageInit<M>): Uint8Array {
  return Uint8Array.from(encode(message, value).pieces.flatMap((piece) => [...piece]));
}

describe("schema", () => {
  test("field numbers are unique in their message", () => {
    for (const [message, fields] of Object.entries(SCHEMA)) {
      const numbers = Object.values(fields).map(([number]) => number);
      expect(new Set(numbers).size, message).toBe(numbers.length);
    }
  });

  test("every message type it names exists", () => {
    const scalars = "int32 int64 uint64 float double string bytes floats doubles int32s int64s uint64s".split(" ");
    const known = new Set([...Object.keys(SCHEMA), ...scalars]);
    for (const [message, fields] of Object.entries(SCHEMA)) {
      for (const [name, [, type]] of Object.entries(fields)) {
        expect(known.has(type.replace(/\[\]$/, "")), `${message}.${name}: ${type}`).toBe(true);
      }
    }
  });
});

describe("decode", () => {
  test("absent fields are undefined, absent lists empty", () => {
    const node = decode("NodeProto", new Uint8Array(0));
    expect(node.name).toBeUndefined();
    expect(node.input).toEqual([]);
    expect(node.unknown).toBeUndefined();
  });

  test("bytes are views of the input", () => {
    const input = Uint8Array.from(field(9, [1, 2, 3]));
    const raw = decode("TensorProto", input).raw_data;
    expect(raw?.buffer).toBe(input.buffer);
    expect([...(raw ?? [])]).toEqual([1, 2, 3]);
  });

  test.each([
    ["a number", intField(99, 300), 0],
    ["bytes", field(99, "text"), 2],
    ["eight bytes", [...varint((99 << 3) | 1), 1, 2, 3, 4, 5, 6, 7, 8], 1],
    ["four bytes", [...varint((99 << 3) | 5), 1, 2, 3, 4], 5],
    ["a group", [...varint((99 << 3) | 3), ...intField(1, 7), ...varint((99 << 3) | 4)], 3],
  ])("an unknown field holding %s is kept with all its bytes", (_, unknown, wireType) => {
    const input = Uint8Array.from([...field(1, "x"), ...unknown, ...field(4, "Op")]);
    const node = decode("NodeProto", input);
    expect(node.op_type).toBe("Op");
    expect(node.unknown).toEqual([{ number: 99, wireType, bytes: Uint8Array.from(unknown) }]);
    expect([...bytesOf("NodeProto", node)]).toEqual([...field(1, "x"), ...field(4, "Op"), ...unknown]);
  });

  test("a known number with another wire type is unknown too", () => {
    const node = decode("NodeProto", Uint8Array.from(intField(4, 5)));
    expect(node.op_type).toBeUndefined();
    expect(node.unknown?.map((u) => [u.number, u.wireType])).toEqual([[4, 0]]);
  });

  test("lists come packed, one by one, and mixed", () => {
    const packed = field(8, [...varint(1), ...varint(-2)]);
    const input = Uint8Array.from([...intField(8, 5), ...packed, ...intField(8, 2n ** 63n)]);
    expect(decode("AttributeProto", input).ints).toEqual([5n, 1n, -2n, -(2n ** 63n)]);
    const columns = Uint8Array.from([...intField(7, 5), ...field(7, [...varint(1), ...varint(-2)]), ...intField(7, 9)]);
    expect(decode("TensorProto", columns).int64_data).toEqual(BigInt64Array.of(5n, 1n, -2n, 9n));
    const floats = new Uint8Array(Float32Array.of(1.5, -2).buffer);
    const twice = Uint8Array.from([...field(4, floats), ...varint((4 << 3) | 5), ...floats.subarray(0, 4)]);
    expect(decode("TensorProto", twice).float_data).toEqual(Float32Array.of(1.5, -2, 1.5));
  });

  test("negative int32 values have ten bytes or five", () => {
    expect(decode("TensorProto", Uint8Array.from(intField(2, -1))).data_type).toBe(-1);
    expect(decode("TensorProto", Uint8Array.from(intField(2, 0xffffffff))).data_type).toBe(-1);
  });

  test.each([
    ["a tag without a value", [8]],
    ["a length beyond the end", [...varint((1 << 3) | 2), 100, 1]],
    ["an inner message longer than the outer", field(7, [...varint((1 << 3) | 2), 50])],
    ["field number 0", [2, 0]],
    ["an endless varint", [8, ...Array.from({ length: 11 }, () => 255)]],
    ["an end of group alone", [...varint((99 << 3) | 4)]],
    ["a group without an end", [...varint((99 << 3) | 3), ...intField(1, 7)]],
    ["text that is not UTF-8", field(2, [0xff, 0xfe])],
    ["a graph given twice", [...field(7, []), ...field(7, [])]],
    ["a packed list that ends inside a number", field(7, field(5, field(7, [0x80])))],
    ["a packed list that ends inside a float", field(7, field(5, field(4, [1, 2, 3])))],
  ])("refuses %s", (_, bytes) => {
    expect(() => decode("ModelProto", Uint8Array.from(bytes))).toThrow(
      expect.objectContaining({ code: "onnx/malformed" }),
    );
  });

  test("refuses messages nested without end", () => {
    let type: number[] = [];
    for (let i = 0; i < 60; i++) type = field(4, field(1, type));
    expect(() => decode("TypeProto", Uint8Array.from(type))).toThrow(/nested more than 100 deep/);
  });

  test("reading any bytes gives a message or a MambacError", () => {
    let good = 0;
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), (bytes) => {
        try {
          decode("ModelProto", bytes);
          good += 1;
        } catch (error) {
          expect(error).toBeInstanceOf(MambacError);
        }
      }),
      { seed: 3, numRuns: 3000 },
    );
    expect(good).toBeGreaterThan(10);
  });
});

describe("encode", () => {
  test("large bytes are pieces of their own, without a copy", () => {
    const raw = new Uint8Array(200_000).fill(7);
    const { pieces, byteLength } = encode("ModelProto", { graph: { initializer: [{ raw_data: raw, name: "w" }] } });
    expect(pieces).toContain(raw);
    expect(byteLength).toBe(pieces.reduce((sum, piece) => sum + piece.byteLength, 0));
    const all = Uint8Array.from(pieces.flatMap((piece) => [...piece]));
    expect(decode("ModelProto", all).graph?.initializer[0]?.raw_data).toEqual(raw);
  });

  test("fields are in the order of their numbers", () => {
    expect([...bytesOf("NodeProto", { op_type: "Op", input: ["a"] })]).toEqual([...field(1, "a"), ...field(4, "Op")]);
  });

  test("every field of every message survives", () => {
    for (const message of Object.keys(SCHEMA) as MessageName[]) {
      const value = sample(message, 0);
      const back = decode(message, bytesOf(message, value as MessageInit<MessageName>));
      for (const [name, content] of Object.entries(value)) {
        expect(back, `${message}.${name}`).toHaveProperty([name]);
        if (typeof content !== "object") expect(Reflect.get(back, name), `${message}.${name}`).toBe(content);
      }
      expect(back).toMatchObject(value);
      expect(back.unknown).toBeUndefined();
    }
  });
});

/** A message with something in every field, two levels deep. */
function sample(message: MessageName, depth: number): Record<string, unknown> {
  const scalars: Readonly<Record<string, unknown>> = {
    int32: -5,
    int64: -(2n ** 62n),
    uint64: 2n ** 63n + 1n,
    float: 1.5,
    double: 0.1,
    string: "täxt",
    bytes: Uint8Array.of(0, 255),
    floats: Float32Array.of(1.5, -0),
    doubles: Float64Array.of(0.1),
    int32s: Int32Array.of(-1, 2 ** 31 - 1),
    int64s: BigInt64Array.of(-1n, 2n ** 62n),
    uint64s: BigUint64Array.of(2n ** 64n - 1n),
  };
  const out: Record<string, unknown> = {};
  for (const [name, [, spelled]] of Object.entries(SCHEMA[message])) {
    const type = spelled.replace(/\[\]$/, "");
    const isMessage = Object.hasOwn(SCHEMA, type);
    if (isMessage && depth === 2) continue;
    const value = isMessage ? sample(type as MessageName, depth + 1) : scalars[type];
    out[name] = spelled.endsWith("[]") ? [value, value] : value;
  }
  return out;
}
