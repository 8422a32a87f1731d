/** Element types, shapes and value types of the IR. They mirror ONNX, with short names. */

import { assertNever } from "../support/errors.js";

export const DTYPES = [
  "f32",
  "u8",
  "i8",
  "u16",
  "i16",
  "i32",
  "i64",
  "string",
  "bool",
  "f16",
  "f64",
  "u32",
  "u64",
  "c64",
  "c128",
  "bf16",
  "f8e4m3fn",
  "f8e4m3fnuz",
  "f8e5m2",
  "f8e5m2fnuz",
  "u4",
  "i4",
  "f4e2m1",
  "f8e8m0",
  "u2",
  "i2",
] as const;

export type DType = (typeof DTYPES)[number];

/** A dimension: a number, a symbolic name, or null when nothing is known. */
export type Dim = number | string | null;

export type Shape = readonly Dim[];

export type TensorType = {
  readonly kind: "tensor";
  readonly dtype: DType;
  readonly shape: Shape | null;
  /** ONNX dimension denotations, kept for the round trip; one entry a dimension, '' for none. */
  readonly denotations?: readonly string[];
};

export type ValueType = (
  | TensorType
  | { readonly kind: "sparse"; readonly dtype: DType; readonly shape: Shape | null }
  | { readonly kind: "sequence"; readonly element: ValueType | null }
  | { readonly kind: "optional"; readonly element: ValueType | null }
  | { readonly kind: "map"; readonly key: DType; readonly value: ValueType | null }
  | { readonly kind: "opaque"; readonly domain: string; readonly name: string }
) & { readonly denotation?: string };

/** ONNX `TensorProto.DataType` number of a dtype. */
export function dtypeNumber(dtype: DType): number {
  return DTYPES.indexOf(dtype) + 1;
}

/** dtype of an ONNX `TensorProto.DataType` number, or null when ONNX has no such type. */
export function dtypeFromNumber(value: number): DType | null {
  return DTYPES[value - 1] ?? null;
}

/** Bits of one element; null for strings. */
export function dtypeBits(dtype: DType): number | null {
  switch (dtype) {
    case "string":
      return null;
    case "u2":
    case "i2":
      return 2;
    case "u4":
    case "i4":
    case "f4e2m1":
      return 4;
    case "u8":
    case "i8":
    case "bool":
    case "f8e4m3fn":
    case "f8e4m3fnuz":
    case "f8e5m2":
    case "f8e5m2fnuz":
    case "f8e8m0":
      return 8;
    case "u16":
    case "i16":
    case "f16":
    case "bf16":
      return 16;
    case "f32":
    case "i32":
    case "u32":
      return 32;
    case "f64":
    case "i64":
    case "u64":
    case "c64":
      return 64;
    case "c128":
      return 128;
    default:
      return assertNever(dtype);
  }
}

/** Product of the dimensions. */
export function elementCount(shape: readonly number[]): number {
  let count = 1;
  for (const dim of shape) count *= dim;
  return count;
}

/** Bytes of a densely packed tensor; sub-byte types share bytes and round up. */
export function packedBytes(dtype: DType, shape: readonly number[]): number | null {
  const bits = dtypeBits(dtype);
  return bits === null ? null : Math.ceil((elementCount(shape) * bits) / 8);
}

/** A tensor type. */
export function tensorType(dtype: DType, shape: Shape | null): TensorType {
  return { kind: "tensor", dtype, shape };
}

/** `f32[B,L,16]`, `seq(f32[?])`: the spelling used in dumps and messages. */
export function formatType(type: ValueType | null): string {
  if (type === null) return "?";
  switch (type.kind) {
    case "tensor":
      return `${type.dtype}${formatShape(type.shape)}`;
    case "sparse":
      return `sparse(${type.dtype}${formatShape(type.shape)})`;
    case "sequence":
      return `seq(${formatType(type.element)})`;
    case "optional":
      return `optional(${formatType(type.element)})`;
    case "map":
      return `map(${type.key},${formatType(type.value)})`;
    case "opaque":
      return `opaque(${type.domain}.${type.name})`;
    default:
      return assertNever(type);
  }
}

function formatShape(shape: Shape | null): string {
  return shape === null ? "[*]" : `[${shape.map((dim) => dim ?? "?").join(",")}]`;
}
