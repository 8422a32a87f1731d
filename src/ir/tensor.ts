/**
 * Tensors are immutable and may be lazy: the bytes of a large weight stay in its file until someone asks.
 * Layout is ONNX raw data: little endian, row major, sub-byte types packed low bits first.
 */

import { invariant, MambacError } from "../support/errors.js";
import { type DType, dtypeBits, elementCount, packedBytes } from "./types.js";

export interface Tensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Bytes of the raw data; for strings the sum of their lengths. */
  readonly byteLength: number;
  /** `memory`: `bytes()` is a view; `file` and `lazy`: each call reads or computes anew. */
  readonly residence: "memory" | "file" | "lazy";
  /** Raw data. Callers must not write to it. Throws for string tensors. */
  bytes(): Uint8Array;
  /** Raw data of a byte range, so that huge tensors can be streamed. */
  slice(start: number, end: number): Uint8Array;
  /**
   * What `use` makes of a byte range, which is in memory only until it returns. Fresh memory for each of many large weights
   * would cost as much time as reading them.
   */
  lend<T>(start: number, end: number, use: (bytes: Uint8Array) => T): T;
  /**
   * Starts to read what `lend` will need for a byte range; null where nothing is to be gained. Never rejects: what fails is
   * tried again, and told, by whoever asks for the bytes.
   */
  prefetch(start: number, end: number): Promise<void> | null;
  /** Elements of a string tensor; null for every other dtype. */
  readonly strings: readonly Uint8Array[] | null;
  readonly doc: string;
  readonly metadata: ReadonlyMap<string, string>;
}

const NO_METADATA: ReadonlyMap<string, string> = new Map();

class MemoryTensor implements Tensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly residence = "memory";
  readonly strings: readonly Uint8Array[] | null;
  readonly doc: string;
  readonly metadata: ReadonlyMap<string, string>;
  readonly #bytes: Uint8Array;

  constructor(
    dtype: DType,
    shape: readonly number[],
    bytes: Uint8Array,
    strings: readonly Uint8Array[] | null,
    doc: string,
    metadata: ReadonlyMap<string, string>,
  ) {
    this.dtype = dtype;
    this.shape = shape;
    this.#bytes = bytes;
    this.strings = strings;
    this.doc = doc;
    this.metadata = metadata;
  }

  get byteLength(): number {
    return this.strings === null ? this.#bytes.byteLength : this.strings.reduce((sum, s) => sum + s.byteLength, 0);
  }

  bytes(): Uint8Array {
    invariant(this.strings === null, "string tensors have no raw data");
    return this.#bytes;
  }

  slice(start: number, end: number): Uint8Array {
    return this.bytes().subarray(start, end);
  }

  lend<T>(start: number, end: number, use: (bytes: Uint8Array) => T): T {
    return use(this.slice(start, end));
  }

  prefetch(): null {
    return null;
  }
}

/** Bytes that live elsewhere: a file, or a computation. */
export interface ByteSource {
  read(offset: number, length: number): Uint8Array;
  /** As `read`, but the bytes may change once `use` returns; `read` serves where it is missing. */
  lend?<T>(offset: number, length: number, use: (bytes: Uint8Array) => T): T;
  /** Starts to read what `lend` of the same range will need. */
  prefetch?(offset: number, length: number): Promise<void> | null;
}

class SourceTensor implements Tensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly residence: "file" | "lazy";
  readonly strings = null;
  readonly doc: string;
  readonly metadata: ReadonlyMap<string, string>;
  readonly #source: ByteSource;
  readonly #offset: number;

  constructor(
    dtype: DType,
    shape: readonly number[],
    source: ByteSource,
    offset: number,
    residence: "file" | "lazy",
    doc: string,
    metadata: ReadonlyMap<string, string>,
  ) {
    const expected = packedBytes(dtype, shape);
    invariant(expected !== null, "string tensors cannot be stored outside the model");
    this.dtype = dtype;
    this.shape = shape;
    this.byteLength = expected;
    this.residence = residence;
    this.doc = doc;
    this.metadata = metadata;
    this.#source = source;
    this.#offset = offset;
  }

  bytes(): Uint8Array {
    return this.slice(0, this.byteLength);
  }

  slice(start: number, end: number): Uint8Array {
    return ofLength(this.#source.read(this.#offset + start, end - start), end - start);
  }

  lend<T>(start: number, end: number, use: (bytes: Uint8Array) => T): T {
    if (this.#source.lend === undefined) return use(this.slice(start, end));
    return this.#source.lend(this.#offset + start, end - start, (bytes) => use(ofLength(bytes, end - start)));
  }

  prefetch(start: number, end: number): Promise<void> | null {
    return this.#source.prefetch?.(this.#offset + start, end - start) ?? null;
  }
}

function ofLength(bytes: Uint8Array, length: number): Uint8Array {
  invariant(bytes.byteLength === length, `a byte source returned ${bytes.byteLength} of ${length} bytes`);
  return bytes;
}

/** A tensor over bytes in memory. Throws `tensor-size` unless the bytes fit dtype and shape exactly. */
export function tensorFromBytes(
  dtype: DType,
  shape: readonly number[],
  bytes: Uint8Array,
  doc: string = "",
  metadata: ReadonlyMap<string, string> = NO_METADATA,
): Tensor {
  const expected = packedBytes(dtype, shape);
  if (expected !== bytes.byteLength) {
    throw new MambacError(
      "tensor-size",
      `a tensor ${dtype}[${shape.join(",")}] needs ${expected} bytes but has ${bytes.byteLength}`,
    );
  }
  return new MemoryTensor(dtype, shape, bytes, null, doc, metadata);
}

/** A string tensor; elements are raw UTF-8 bytes. */
export function stringTensor(
  shape: readonly number[],
  strings: readonly Uint8Array[],
  doc: string = "",
  metadata: ReadonlyMap<string, string> = NO_METADATA,
): Tensor {
  invariant(strings.length === elementCount(shape), "string tensor: element count differs from the shape");
  return new MemoryTensor("string", shape, new Uint8Array(0), strings, doc, metadata);
}

/** A tensor whose bytes stay in `source` (starting at `offset`) until they are needed. */
export function tensorFromSource(
  dtype: DType,
  shape: readonly number[],
  source: ByteSource,
  offset: number,
  residence: "file" | "lazy",
  doc: string = "",
  metadata: ReadonlyMap<string, string> = NO_METADATA,
): Tensor {
  return new SourceTensor(dtype, shape, source, offset, residence, doc, metadata);
}

/** float32 tensor from numbers. */
export function f32Tensor(shape: readonly number[], data: ArrayLike<number>): Tensor {
  return tensorFromBytes("f32", shape, asBytes(data instanceof Float32Array ? data : Float32Array.from(data)));
}

/** int64 tensor from integers. */
export function i64Tensor(shape: readonly number[], data: readonly (number | bigint)[]): Tensor {
  return tensorFromBytes("i64", shape, asBytes(BigInt64Array.from(data, (v) => BigInt(v))));
}

/** bool tensor. */
export function boolTensor(shape: readonly number[], data: readonly boolean[]): Tensor {
  return tensorFromBytes(
    "bool",
    shape,
    Uint8Array.from(data, (v) => (v ? 1 : 0)),
  );
}

/** The bytes behind a typed array, without a copy. */
export function asBytes(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/** Is this a dtype whose values are real numbers? */
export function isFloat(dtype: DType): boolean {
  return dtype === "f32" || dtype === "f16" || dtype === "f64" || dtype === "bf16";
}

/** Is this an integer dtype of at least 8 bits, or bool? */
export function isInteger(dtype: DType): boolean {
  return /^[iu](8|16|32|64)$/.test(dtype) || dtype === "bool";
}

/** Elements as float64, for small tensors (A, D, biases). Throws for strings, complex and sub-byte types. */
export function toNumbers(tensor: Tensor): Float64Array {
  const bytes = tensor.bytes();
  const count = elementCount(tensor.shape);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const bits = dtypeBits(tensor.dtype) ?? 0;
  invariant(bits >= 8, `toNumbers: ${tensor.dtype} is not supported`);
  const floats = floatView(tensor.dtype, bytes);
  if (floats !== null) return new Float64Array(floats);
  const out = new Float64Array(count);
  for (let i = 0; i < count; i++) out[i] = readElement(view, tensor.dtype, (i * bits) / 8);
  return out;
}

/** Elements of a float tensor, as a view where the host can look at them in place. Callers must not write to them. */
export function floatValues(tensor: Tensor): Float32Array | Float64Array {
  return floatView(tensor.dtype, tensor.bytes()) ?? toNumbers(tensor);
}

const LITTLE_ENDIAN = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

function floatView(dtype: DType, bytes: Uint8Array): Float32Array | Float64Array | null {
  const { buffer, byteOffset, byteLength } = bytes;
  if (!LITTLE_ENDIAN) return null;
  if (dtype === "f32" && byteOffset % 4 === 0) return new Float32Array(buffer, byteOffset, byteLength / 4);
  if (dtype === "f64" && byteOffset % 8 === 0) return new Float64Array(buffer, byteOffset, byteLength / 8);
  return null;
}

function readElement(view: DataView, dtype: DType, at: number): number {
  switch (dtype) {
    case "f32":
      return view.getFloat32(at, true);
    case "f64":
      return view.getFloat64(at, true);
    case "f16":
      return float16ToNumber(view.getUint16(at, true));
    case "bf16":
      return bfloat16ToNumber(view.getUint16(at, true));
    case "i64":
      return Number(view.getBigInt64(at, true));
    case "u64":
      return Number(view.getBigUint64(at, true));
    case "i32":
      return view.getInt32(at, true);
    case "u32":
      return view.getUint32(at, true);
    case "i16":
      return view.getInt16(at, true);
    case "u16":
      return view.getUint16(at, true);
    case "i8":
      return view.getInt8(at);
    case "u8":
    case "bool":
      return view.getUint8(at);
    default:
      throw new MambacError("tensor-dtype", `cannot read elements of type ${dtype} as numbers`);
  }
}

/** Value of IEEE half-precision bits. */
export function float16ToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 31) return mantissa === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}

/** Nearest IEEE half-precision bits, ties to even; overflows to infinity. */
export function numberToFloat16(value: number): number {
  if (Number.isNaN(value)) return 0x7e00;
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const magnitude = Math.abs(value);
  if (magnitude >= 65520) return sign | 0x7c00;
  const exponent = Math.max(-14, Math.floor(Math.log2(magnitude || 2 ** -30)));
  // Math.log2 may round up to the next power of two; the carry below absorbs that, a step too high does not.
  const step = 2 ** ((magnitude < 2 ** exponent ? Math.max(-14, exponent - 1) : exponent) - 10);
  const scaled = roundHalfEven(magnitude / step) * step;
  if (scaled === 0) return sign;
  if (scaled < 2 ** -14) return sign | (scaled / 2 ** -24);
  let e = Math.floor(Math.log2(scaled));
  if (2 ** e > scaled) e -= 1;
  if (2 ** (e + 1) <= scaled) e += 1;
  return sign | ((e + 15) << 10) | Math.round((scaled / 2 ** e - 1) * 1024);
}

function bfloat16ToNumber(bits: number): number {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, bits << 16);
  return view.getFloat32(0);
}

/** Round to the nearest integer, ties to even: what ONNX Round and QuantizeLinear do. */
export function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const fraction = value - floor;
  if (fraction !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}
