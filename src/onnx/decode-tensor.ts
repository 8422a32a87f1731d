/** TensorProto to Tensor: every spelling of the data becomes raw bytes, or stays in its file. */

import { asBytes, isInteger, stringTensor, type Tensor, tensorFromBytes, tensorFromSource } from "../ir/tensor.js";
import { type DType, dtypeBits, dtypeFromNumber, elementCount, packedBytes } from "../ir/types.js";
import { EXIT, MambacError } from "../support/errors.js";
import type { ExternalFiles } from "./external-data.js";
import type { ReadLog } from "./read-log.js";
import { EXTERNAL_LOCATION, type Message } from "./schema.js";

/** What reading a model carries along. `external` is null when the model came as bytes without a folder. */
export interface ReadContext {
  readonly log: ReadLog;
  readonly external: ExternalFiles | null;
}

/** Most bytes of a sparse tensor that is stored densely. */
const MAX_DENSE_BYTES = 2 ** 30;

type TensorProto = Message<"TensorProto">;

/** Reads a tensor; `label` names it in messages. */
export function decodeTensor(proto: TensorProto, label: string, context: ReadContext): Tensor {
  context.log.unknown("TensorProto", proto, "dropped");
  if (proto.segment !== undefined) {
    throw new MambacError(
      "onnx/tensor-segment",
      `${label} is stored in segments, which mambac does not read`,
      EXIT.unsupported,
    );
  }
  const dtype = decodeDType(proto.data_type, label);
  const shape = decodeDims(proto.dims, label);
  const doc = proto.doc_string ?? "";
  const metadata = decodeEntries(proto.metadata_props, `the metadata of ${label}`, context.log);
  if (proto.data_location === EXTERNAL_LOCATION) {
    return decodeExternal(proto, dtype, shape, label, context, doc, metadata);
  }
  if (proto.external_data.length > 0)
    context.log.note(`${label} has an external_data entry but inline data; entry dropped`);
  const count = elementCount(shape);
  const column = typedColumn(proto, dtype, label);
  if (dtype === "string") {
    if (proto.string_data.length !== count) throw sizeError(label, dtype, shape, `${proto.string_data.length} strings`);
    return stringTensor(shape, proto.string_data, doc, metadata);
  }
  const raw = proto.raw_data;
  let bytes: Uint8Array;
  if (raw !== undefined && column !== null && raw.byteLength > 0) {
    throw new MambacError("onnx/tensor-data", `${label} has both raw_data and ${column.field}`);
  } else if (column !== null) {
    bytes = normalise(column.values, dtype, label);
  } else {
    bytes = raw ?? new Uint8Array(0);
  }
  if (bytes.byteLength !== packedBytes(dtype, shape)) throw sizeError(label, dtype, shape, `${bytes.byteLength} bytes`);
  return tensorFromBytes(dtype, shape, bytes, doc, metadata);
}

function sizeError(label: string, dtype: DType, shape: readonly number[], found: string): MambacError {
  const needs = dtype === "string" ? `${elementCount(shape)} strings` : `${packedBytes(dtype, shape)} bytes`;
  return new MambacError("onnx/tensor-size", `${label}: ${dtype}[${shape.join(",")}] needs ${needs} but has ${found}`);
}

/** The dtype of an ONNX number; `label` names its owner in messages. */
export function decodeDType(value: number | undefined, label: string): DType {
  const dtype = dtypeFromNumber(value ?? 0);
  if (dtype === null) {
    throw new MambacError(
      "onnx/dtype",
      `${label} has element type number ${value ?? 0}, which mambac does not know`,
      EXIT.unsupported,
    );
  }
  return dtype;
}

function decodeDims(dims: readonly bigint[], label: string): number[] {
  let count = 1;
  for (const dim of dims) {
    if (dim < 0n) throw new MambacError("onnx/tensor-shape", `${label} has the negative dimension ${dim}`);
    if (dim !== 0n) count *= Number(dim);
    // 16 bytes an element at most; byte counts must stay exact. Dimensions beside a 0 are bounded too.
    if (count > Number.MAX_SAFE_INTEGER / 16) {
      throw new MambacError("onnx/tensor-shape", `${label} has impossible dimensions [${dims.join(",")}]`);
    }
  }
  return dims.map(Number);
}

/** Key-value entries as a map; a key given twice keeps its last value and is noted. */
export function decodeEntries(
  entries: readonly Message<"StringStringEntryProto">[],
  what: string,
  log: ReadLog,
): Map<string, string> {
  const out = new Map<string, string>();
  for (const entry of entries) {
    log.unknown("StringStringEntryProto", entry, "dropped");
    const key = entry.key ?? "";
    const value = entry.value ?? "";
    const before = out.get(key);
    if (before !== undefined && before !== value)
      log.note(`${what}: ${JSON.stringify(key)} is given twice; the last one counts`);
    out.set(key, value);
  }
  return out;
}

function decodeExternal(
  proto: TensorProto,
  dtype: DType,
  shape: readonly number[],
  label: string,
  context: ReadContext,
  doc: string,
  metadata: ReadonlyMap<string, string>,
): Tensor {
  const entries = decodeEntries(proto.external_data, `the external data of ${label}`, context.log);
  const location = entries.get("location");
  if (location === undefined)
    throw new MambacError("onnx/external-data", `${label} does not say which file holds its data`);
  if (context.external === null) {
    throw new MambacError(
      "onnx/external-data",
      `${label}: its data are in ${location}, but the model was given as bytes; read it from its file instead`,
    );
  }
  if (proto.raw_data !== undefined && proto.raw_data.byteLength > 0) {
    throw new MambacError("onnx/tensor-data", `${label} has both raw_data and external data`);
  }
  for (const key of entries.keys()) {
    if (key === "checksum") context.log.note("external data have a checksum, which is not checked and not kept");
    else if (key !== "location" && key !== "offset" && key !== "length") {
      context.log.note(`external data have an unknown entry ${JSON.stringify(key)}; dropped`);
    }
  }
  const expected = packedBytes(dtype, shape);
  if (expected === null) throw new MambacError("onnx/external-data", `${label}: strings cannot be stored externally`);
  const offset = decodeCount(entries.get("offset") ?? "0", "offset", label);
  const length = entries.get("length");
  if (length !== undefined && decodeCount(length, "length", label) !== expected) {
    throw sizeError(label, dtype, shape, `${length} bytes in ${location}`);
  }
  const source = context.external.source(location, offset, expected, label);
  return tensorFromSource(dtype, shape, source, offset, "file", doc, metadata);
}

function decodeCount(text: string, what: string, label: string): number {
  const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value)) {
    throw new MambacError(
      "onnx/external-data",
      `${label}: the ${what} of its data is ${JSON.stringify(text)}, not a byte count`,
    );
  }
  return value;
}

type ColumnValues = Float32Array | Float64Array | Int32Array | BigInt64Array | BigUint64Array;

/** The filled number column of a tensor; null when it has none. Throws when the column does not fit the dtype. */
function typedColumn(
  proto: TensorProto,
  dtype: DType,
  label: string,
): { readonly field: string; readonly values: ColumnValues } | null {
  const columns = (["float_data", "int32_data", "int64_data", "double_data", "uint64_data"] as const).flatMap(
    (field) => {
      const values = proto[field];
      return values === undefined || values.length === 0 ? [] : [{ field, values }];
    },
  );
  const [column, second] = columns;
  if (proto.string_data.length > 0 && dtype !== "string") {
    throw new MambacError("onnx/tensor-data", `${label} has type ${dtype} but holds strings`);
  }
  if (column === undefined) return null;
  if (second !== undefined || column.field !== columnOf(dtype)) {
    const found = columns.map((c) => c.field).join(" and ");
    throw new MambacError("onnx/tensor-data", `${label} has type ${dtype} but its data are in ${found}`);
  }
  return column;
}

function columnOf(dtype: DType): string | null {
  if (dtype === "f32" || dtype === "c64") return "float_data";
  if (dtype === "f64" || dtype === "c128") return "double_data";
  if (dtype === "i64") return "int64_data";
  if (dtype === "u64" || dtype === "u32") return "uint64_data";
  return dtype === "string" ? null : "int32_data";
}

/** Raw data of a number column. Narrow types sit one element (sub-byte types: one byte) in each int32. */
function normalise(values: ColumnValues, dtype: DType, label: string): Uint8Array {
  if (values instanceof BigUint64Array && dtype === "u32") {
    for (const value of values) if (value > 0xffffffffn) throw outOfRange(label, dtype, value);
    return asBytes(Uint32Array.from(values, Number));
  }
  if (!(values instanceof Int32Array) || dtype === "i32") return asBytes(values);
  const bits = Math.max(8, dtypeBits(dtype) ?? 8);
  const low = isInteger(dtype) && dtype.startsWith("i") ? -(2 ** (bits - 1)) : 0;
  const high = low === 0 ? 2 ** bits - 1 : 2 ** (bits - 1) - 1;
  for (const value of values) {
    // Bytes of packed sub-byte types come signed from some writers.
    const lowest = (dtypeBits(dtype) ?? 8) < 8 ? -128 : low;
    if (value < lowest || value > high) throw outOfRange(label, dtype, value);
  }
  return bits === 8 ? Uint8Array.from(values) : asBytes(Uint16Array.from(values));
}

function outOfRange(label: string, dtype: DType, value: number | bigint): MambacError {
  return new MambacError("onnx/tensor-data", `${label}: ${value} is not a value of type ${dtype}`);
}

/** A sparse tensor stored densely. Indices are linear [n] or coordinates [n, rank]; anything else is refused. */
export function decodeSparse(proto: Message<"SparseTensorProto">, label: string, context: ReadContext): Tensor {
  context.log.unknown("SparseTensorProto", proto, "dropped");
  if (proto.values === undefined) throw new MambacError("onnx/sparse", `${label} has no values`);
  const values = decodeTensor(proto.values, `the values of ${label}`, context);
  const shape = decodeDims(proto.dims, label);
  const size = packedBytes(values.dtype, shape);
  const width = (dtypeBits(values.dtype) ?? 0) / 8;
  if (size === null || width < 1 || size > MAX_DENSE_BYTES) {
    throw new MambacError("onnx/sparse", `${label} is sparse and cannot be stored densely`, EXIT.unsupported);
  }
  const count = elementCount(values.shape);
  const dense = new Uint8Array(size);
  if (count > 0) {
    if (proto.indices === undefined) throw new MambacError("onnx/sparse", `${label} has no indices`);
    const places = sparsePlaces(decodeTensor(proto.indices, `the indices of ${label}`, context), shape, count, label);
    const bytes = values.bytes();
    places.forEach((place, i) => {
      dense.set(bytes.subarray(i * width, (i + 1) * width), place * width);
    });
  }
  return tensorFromBytes(values.dtype, shape, dense, values.doc, values.metadata);
}

function sparsePlaces(indices: Tensor, shape: readonly number[], count: number, label: string): number[] {
  const linear = indices.shape.length === 1;
  const rank = linear ? 1 : shape.length;
  const fits = linear || (indices.shape.length === 2 && indices.shape[1] === rank);
  if (indices.dtype !== "i64" || !fits || indices.shape[0] !== count) {
    throw new MambacError("onnx/sparse", `${label}: the indices do not fit the values`);
  }
  const bytes = indices.bytes();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const dims = linear ? [elementCount(shape)] : shape;
  return Array.from({ length: count }, (_, i) => {
    let place = 0;
    dims.forEach((dim, axis) => {
      const index = view.getBigInt64((i * rank + axis) * 8, true);
      if (index < 0n || index >= BigInt(dim))
        throw new MambacError("onnx/sparse", `${label}: index ${index} is out of range`);
      place = place * dim + Number(index);
    });
    return place;
  });
}
