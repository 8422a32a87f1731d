/**
 * The only user of protobufjs: walks the protobuf wire format along the schema table.
 *
 * Decoding keeps bytes as views of the input and keeps every field the table does not know. Encoding gives pieces, so
 * that large tensors are written from where they are. Field order is that of the field numbers, so equal models have
 * equal bytes.
 */

import protobuf from "protobufjs/minimal.js";
import { invariant, MambacError } from "../support/errors.js";
import {
  type Message,
  type MessageInit,
  type MessageName,
  SCHEMA,
  type ScalarName,
  type UnknownField,
} from "./schema.js";

/** Messages inside messages; the C++ protobuf library draws the line at the same depth. */
const MAX_DEPTH = 100;

/** Bytes fields from this size on become pieces of their own. */
const PIECE_BYTES = 64 * 1024;

interface Field {
  readonly name: string;
  readonly number: number;
  readonly repeated: boolean;
  readonly type: { readonly scalar: ScalarName } | { readonly message: MessageName };
}

interface Layout {
  readonly fields: readonly Field[];
  readonly byNumber: ReadonlyMap<number, Field>;
}

const LAYOUTS: ReadonlyMap<MessageName, Layout> = buildLayouts();

function buildLayouts(): Map<MessageName, Layout> {
  const layouts = new Map<MessageName, Layout>();
  for (const message of Object.keys(SCHEMA) as MessageName[]) {
    const fields = Object.entries<readonly [number, string]>(SCHEMA[message]).map(
      ([name, [number, spelled]]): Field => {
        const repeated = spelled.endsWith("[]");
        const type = repeated ? spelled.slice(0, -2) : spelled;
        return {
          name,
          number,
          repeated,
          type: Object.hasOwn(SCHEMA, type) ? { message: type as MessageName } : { scalar: type as ScalarName },
        };
      },
    );
    fields.sort((a, b) => a.number - b.number);
    layouts.set(message, { fields, byNumber: new Map(fields.map((field) => [field.number, field])) });
  }
  return layouts;
}

function layoutOf(message: MessageName): Layout {
  const layout = LAYOUTS.get(message);
  invariant(layout, `no schema for ${message}`);
  return layout;
}

/** Element wire type: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes. */
function wireTypeOf(field: Field): number {
  if ("message" in field.type) return 2;
  switch (field.type.scalar) {
    case "float":
    case "floats":
      return 5;
    case "double":
    case "doubles":
      return 1;
    case "string":
    case "bytes":
      return 2;
    default:
      return 0;
  }
}

/**
 * Decodes one message. Bytes are views of `bytes`. Throws `onnx/malformed` when the bytes are not such a message, with
 * the offset.
 */
export function decode<M extends MessageName>(message: M, bytes: Uint8Array): Message<M> {
  const reader = new protobuf.Reader(bytes);
  try {
    return decodeMessage(message, reader, bytes.byteLength, 0) as unknown as Message<M>;
  } catch (cause) {
    if (cause instanceof MambacError) throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new MambacError("onnx/malformed", `not a readable ${message}: ${reason} (at byte ${reader.pos})`, undefined, {
      cause,
    });
  }
}

function malformed(reader: protobuf.Reader, what: string): Error {
  return new MambacError("onnx/malformed", `the file is damaged or not an ONNX model: ${what} (at byte ${reader.pos})`);
}

type Decoded = Record<string, unknown>;

function decodeMessage(message: MessageName, reader: protobuf.Reader, end: number, depth: number): Decoded {
  if (depth > MAX_DEPTH) throw malformed(reader, `messages are nested more than ${MAX_DEPTH} deep`);
  const layout = layoutOf(message);
  const out: Decoded = {};
  for (const field of layout.fields) out[field.name] = field.repeated ? [] : undefined;
  const columns = new Map<Field, Column>();
  const unknown: UnknownField[] = [];
  // Reads inside a message must not run past its end, so the reader is told that the input ends there.
  const outerEnd = reader.len;
  reader.len = end;
  while (reader.pos < end) {
    const start = reader.pos;
    const tag = reader.tag();
    const number = tag >>> 3;
    const wireType = tag & 7;
    const field = layout.byNumber.get(number);
    if (field === undefined || !readField(message, field, wireType, reader, depth, out, columns)) {
      reader.skipType(wireType, 0, number);
      unknown.push({ number, wireType, bytes: reader.buf.subarray(start, reader.pos) });
    }
  }
  reader.len = outerEnd;
  for (const [field, column] of columns) out[field.name] = column.finish();
  if (unknown.length > 0) out["unknown"] = unknown;
  return out;
}

/** Reads one field into `out`; false when the wire type is not one the field may have. */
function readField(
  message: MessageName,
  field: Field,
  wireType: number,
  reader: protobuf.Reader,
  depth: number,
  out: Decoded,
  columns: Map<Field, Column>,
): boolean {
  const expected = wireTypeOf(field);
  const packed = wireType === 2 && expected !== 2;
  if (wireType !== expected && !packed) return false;
  if ("scalar" in field.type && isColumn(field.type.scalar)) {
    let column = columns.get(field);
    if (column === undefined) {
      column = new Column(field.type.scalar);
      columns.set(field, column);
    }
    if (packed) column.addPacked(reader);
    else column.addOne(reader);
    return true;
  }
  if (packed && !field.repeated) return false;
  const list = field.repeated ? (out[field.name] as unknown[]) : null;
  if (packed) {
    const end = endOfBlock(reader);
    while (reader.pos < end) list?.push(readScalar(field, reader));
    if (reader.pos !== end) throw malformed(reader, `${message}.${field.name} has a broken packed list`);
    return true;
  }
  let value: unknown;
  if ("message" in field.type) {
    const end = endOfBlock(reader);
    value = decodeMessage(field.type.message, reader, end, depth + 1);
  } else {
    value = readScalar(field, reader);
  }
  if (list !== null) list.push(value);
  else if (out[field.name] === undefined) out[field.name] = value;
  else throw malformed(reader, `${message}.${field.name} appears twice`);
  return true;
}

function endOfBlock(reader: protobuf.Reader): number {
  const length = reader.size();
  const end = reader.pos + length;
  if (end > reader.len)
    throw malformed(reader, `${length} bytes are announced but ${reader.len - reader.pos} are left`);
  return end;
}

function readScalar(field: Field, reader: protobuf.Reader): unknown {
  invariant("scalar" in field.type, `${field.name} is not a scalar`);
  switch (field.type.scalar) {
    case "int32":
      return Number(BigInt.asIntN(32, readVarint(reader)));
    case "int64":
      return BigInt.asIntN(64, readVarint(reader));
    case "uint64":
      return readVarint(reader);
    case "float":
      return reader.float();
    case "double":
      return reader.double();
    case "bytes":
      return readBlock(reader);
    case "string":
      return readString(reader);
    default:
      throw malformed(reader, `${field.name} is a column`);
  }
}

function readBlock(reader: protobuf.Reader): Uint8Array {
  const end = endOfBlock(reader);
  const bytes = reader.buf.subarray(reader.pos, end);
  reader.pos = end;
  return bytes;
}

const strictText = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function readString(reader: protobuf.Reader): string {
  const block = readBlock(reader);
  try {
    return strictText.decode(block);
  } catch {
    throw malformed(reader, "a name or text is not valid UTF-8");
  }
}

/** The 64 bits of a varint as an unsigned number. */
function readVarint(reader: protobuf.Reader): bigint {
  const first = reader.buf[reader.pos];
  if (first !== undefined && first < 128 && reader.pos < reader.len) {
    reader.pos += 1;
    return BigInt(first);
  }
  const long = reader.uint64();
  if (typeof long === "number") return BigInt(long);
  return (BigInt(long.high >>> 0) << 32n) | BigInt(long.low >>> 0);
}

type ColumnName = Extract<ScalarName, "floats" | "doubles" | "int32s" | "int64s" | "uint64s">;
type ColumnArray = Float32Array | Float64Array | Int32Array | BigInt64Array | BigUint64Array;

function isColumn(scalar: ScalarName): scalar is ColumnName {
  return scalar.endsWith("s") && scalar !== "bytes";
}

/** Collects a packed number column, which may come in any number of packed blocks and single elements. */
class Column {
  readonly #kind: ColumnName;
  #blocks: ColumnArray[] = [];
  #singles: (number | bigint)[] = [];

  constructor(kind: ColumnName) {
    this.#kind = kind;
  }

  addOne(reader: protobuf.Reader): void {
    this.#singles.push(this.#read(reader));
  }

  addPacked(reader: protobuf.Reader): void {
    const end = endOfBlock(reader);
    if (this.#kind === "floats" || this.#kind === "doubles") {
      // Not reader.buf.slice: on a Node Buffer that is a view, which may lie unaligned.
      const bytes = Uint8Array.prototype.slice.call(reader.buf, reader.pos, end);
      const width = this.#kind === "floats" ? 4 : 8;
      if (bytes.byteLength % width !== 0) throw malformed(reader, "a packed list ends inside a number");
      reader.pos = end;
      this.#flush();
      this.#blocks.push(
        this.#kind === "floats"
          ? new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / width)
          : new Float64Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / width),
      );
      return;
    }
    const outerEnd = reader.len;
    reader.len = end;
    while (reader.pos < end) this.addOne(reader);
    reader.len = outerEnd;
  }

  finish(): ColumnArray {
    this.#flush();
    const [only] = this.#blocks;
    if (only !== undefined && this.#blocks.length === 1) return only;
    const total = this.#blocks.reduce((sum, block) => sum + block.length, 0);
    const bytes = new Uint8Array(total * widthOf(this.#kind));
    let at = 0;
    for (const block of this.#blocks) {
      bytes.set(new Uint8Array(block.buffer, block.byteOffset, block.byteLength), at);
      at += block.byteLength;
    }
    return columnOver(this.#kind, bytes);
  }

  #read(reader: protobuf.Reader): number | bigint {
    switch (this.#kind) {
      case "floats":
        return reader.float();
      case "doubles":
        return reader.double();
      case "int32s":
        return Number(BigInt.asIntN(32, readVarint(reader)));
      default:
        return readVarint(reader);
    }
  }

  #flush(): void {
    if (this.#singles.length === 0) return;
    const singles = this.#singles;
    this.#singles = [];
    const block = columnOver(this.#kind, new Uint8Array(singles.length * widthOf(this.#kind)));
    if (block instanceof BigInt64Array || block instanceof BigUint64Array) {
      singles.forEach((value, i) => {
        block[i] = BigInt(value);
      });
    } else {
      singles.forEach((value, i) => {
        block[i] = Number(value);
      });
    }
    this.#blocks.push(block);
  }
}

function widthOf(kind: ColumnName): number {
  return kind === "floats" || kind === "int32s" ? 4 : 8;
}

function columnOver(kind: ColumnName, bytes: Uint8Array<ArrayBuffer>): ColumnArray {
  switch (kind) {
    case "floats":
      return new Float32Array(bytes.buffer);
    case "doubles":
      return new Float64Array(bytes.buffer);
    case "int32s":
      return new Int32Array(bytes.buffer);
    case "int64s":
      return new BigInt64Array(bytes.buffer);
    case "uint64s":
      return new BigUint64Array(bytes.buffer);
  }
}

/** An encoded message: its pieces in order and their total length. Large byte fields are pieces without a copy. */
export interface Encoded {
  readonly pieces: readonly Uint8Array[];
  readonly byteLength: number;
}

/** Encodes one message. */
export function encode<M extends MessageName>(message: M, value: MessageInit<M>): Encoded {
  return encodeMessage(message, value);
}

function encodeMessage(message: MessageName, value: Readonly<Record<string, unknown>>): Encoded {
  const pieces: Uint8Array[] = [];
  let byteLength = 0;
  let writer = new protobuf.Writer();
  const push = (piece: Uint8Array): void => {
    pieces.push(piece);
    byteLength += piece.byteLength;
  };
  const flush = (): void => {
    if (writer.pos === 0) return;
    push(writer.finish());
    writer = new protobuf.Writer();
  };
  const block = (number: number, encoded: Encoded): void => {
    writer.uint32(((number << 3) | 2) >>> 0).uint32(encoded.byteLength);
    if (encoded.byteLength < PIECE_BYTES) {
      for (const piece of encoded.pieces) writer.raw(piece);
      return;
    }
    flush();
    for (const piece of encoded.pieces) push(piece);
  };
  for (const field of layoutOf(message).fields) {
    const content = value[field.name];
    if (content === undefined) continue;
    for (const element of field.repeated ? (content as readonly unknown[]) : [content]) {
      if ("message" in field.type) {
        block(field.number, encodeMessage(field.type.message, element as Readonly<Record<string, unknown>>));
      } else if (field.type.scalar === "bytes") {
        const bytes = element as Uint8Array;
        block(field.number, { pieces: [bytes], byteLength: bytes.byteLength });
      } else {
        writeScalar(writer, field.number, field.type.scalar, element);
      }
    }
  }
  for (const field of (value["unknown"] as readonly UnknownField[] | undefined) ?? []) writer.raw(field.bytes);
  const extras = value["extras"] as Uint8Array | undefined;
  if (extras !== undefined) writer.raw(extras);
  flush();
  return { pieces, byteLength };
}

function writeScalar(writer: protobuf.Writer, number: number, scalar: ScalarName, value: unknown): void {
  const tag = (wireType: number): protobuf.Writer => writer.uint32(((number << 3) | wireType) >>> 0);
  switch (scalar) {
    case "int32":
      writeVarint(tag(0), BigInt(value as number));
      return;
    case "int64":
    case "uint64":
      writeVarint(tag(0), value as bigint);
      return;
    case "float":
      tag(5).float(value as number);
      return;
    case "double":
      tag(1).double(value as number);
      return;
    case "string":
      tag(2).string(value as string);
      return;
    default: {
      // A column: one packed block.
      const inner = new protobuf.Writer();
      for (const element of value as Iterable<number | bigint>) {
        if (scalar === "floats") inner.float(Number(element));
        else if (scalar === "doubles") inner.double(Number(element));
        else writeVarint(inner, BigInt(element));
      }
      tag(2).bytes(inner.finish());
    }
  }
}

function writeVarint(writer: protobuf.Writer, value: bigint): void {
  if (value >= 0n && value < 0x80000000n) {
    writer.uint32(Number(value));
    return;
  }
  const bits = BigInt.asUintN(64, value);
  const bytes: number[] = [];
  let rest = bits;
  while (rest > 127n) {
    bytes.push(Number(rest & 127n) | 128);
    rest >>= 7n;
  }
  bytes.push(Number(rest));
  writer.raw(Uint8Array.from(bytes));
}
