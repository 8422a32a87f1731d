/** Arithmetic on small known tensors: index grids, broadcasting and rounding to an element type. */

import { at, CONTENT_LIMIT, describe, refuse, type TensorFact } from "./infer-fact.js";
import { float16ToNumber, isFloat, numberToFloat16 } from "./tensor.js";
import { type DType, elementCount } from "./types.js";

/** Row-major strides in elements. */
export function stridesOf(shape: readonly number[]): number[] {
  const strides: number[] = [];
  let stride = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    strides[axis] = stride;
    stride *= at(shape, axis);
  }
  return strides;
}

/** All sums of one offset per axis, in row-major order. A NaN offset (padding) makes its sums NaN. */
export function gridOffsets(axes: readonly (readonly number[])[], base: number = 0): number[] {
  let offsets = [base];
  for (const axis of axes) offsets = offsets.flatMap((offset) => axis.map((step) => offset + step));
  return offsets;
}

/** Offsets of a strided view. */
export function stridedOffsets(shape: readonly number[], strides: readonly number[], base: number = 0): number[] {
  return gridOffsets(
    shape.map((dim, axis) => count(dim, (i) => i * at(strides, axis))),
    base,
  );
}

/** `[f(0), ..., f(n-1)]`. */
export function count<T>(n: number, f: (index: number) => T): T[] {
  return Array.from({ length: n }, (_, index) => f(index));
}

/** numpy broadcasting of any number of shapes. Throws `Contradiction` when they do not fit. */
export function broadcastShapes(shapes: readonly (readonly number[])[]): number[] {
  const rank = Math.max(0, ...shapes.map((shape) => shape.length));
  const out = count(rank, () => 1);
  for (const shape of shapes) {
    const shift = rank - shape.length;
    for (const [axis, dim] of shape.entries()) {
      const so = at(out, axis + shift);
      if (so === 1) out[axis + shift] = dim;
      else if (dim !== 1 && dim !== so) refuse(`shapes ${shapes.map(describe).join(" and ")} do not broadcast`);
    }
  }
  return out;
}

/** Elements of a known tensor as they broadcast to `shape`; null when unknown or too many. */
export function broadcastContent(fact: TensorFact, shape: readonly number[]): readonly number[] | null {
  if (fact.content === null || fact.shape === null || elementCount(shape) > CONTENT_LIMIT) return null;
  const { content, shape: own } = fact;
  if (own.length === shape.length && own.every((dim, axis) => dim === shape[axis])) return content;
  const strides = stridesOf(own);
  const shift = shape.length - own.length;
  const view = shape.map((_, axis) => (axis < shift || own[axis - shift] === 1 ? 0 : at(strides, axis - shift)));
  return stridedOffsets(shape, view).map((offset) => at(content, offset));
}

const INTEGER_BITS: ReadonlyMap<DType, number> = new Map([
  ["i8", 8],
  ["i16", 16],
  ["i32", 32],
  ["i64", 64],
  ["u8", 8],
  ["u16", 16],
  ["u32", 32],
  ["u64", 64],
]);

/** Is this an integer type of 8 to 64 bits (bool is not)? */
export function isWholeNumber(dtype: DType): boolean {
  return INTEGER_BITS.has(dtype);
}

/**
 * Elements as `dtype` stores them: floats rounded, narrow integers wrapped, bool 0 or 1. Null when one of them cannot be
 * told: NaN as an integer means an operation outside what doubles hold exactly, or one without a defined result.
 */
export function storeAs(dtype: DType | null, values: readonly number[] | null): readonly number[] | null {
  if (values === null || dtype === null) return null;
  if (dtype === "bool") return values.some(Number.isNaN) ? null : values.map((value) => (value === 0 ? 0 : 1));
  if (isFloat(dtype)) return values.map((value) => roundFloat(dtype, value));
  const bits = INTEGER_BITS.get(dtype);
  if (bits === undefined) return null;
  const signed = dtype.startsWith("i");
  const out: number[] = [];
  for (const value of values) {
    const stored = bits === 64 ? storeWide(value, signed) : storeNarrow(value, bits, signed);
    if (Number.isNaN(stored)) return null;
    out.push(stored);
  }
  return out;
}

/** 64-bit integers pass through as they are; `+ 0` turns -0 into 0. */
function storeWide(value: number, signed: boolean): number {
  if (!Number.isInteger(value) || (!signed && value < 0) || Math.abs(value) > 2 ** 64) return Number.NaN;
  return value + 0;
}

function storeNarrow(value: number, bits: number, signed: boolean): number {
  if (!Number.isSafeInteger(value)) return Number.NaN;
  const span = 2 ** bits;
  const wrapped = ((value % span) + span) % span;
  return signed && wrapped >= span / 2 ? wrapped - span : wrapped;
}

function roundFloat(dtype: DType, value: number): number {
  if (dtype === "f32") return Math.fround(value);
  if (dtype === "f16") return float16ToNumber(numberToFloat16(value));
  return dtype === "bf16" ? roundToBfloat16(value) : value;
}

function roundToBfloat16(value: number): number {
  const single = Math.fround(value);
  if (!Number.isFinite(single)) return single;
  const view = new DataView(new ArrayBuffer(4));
  view.setFloat32(0, single);
  const bits = view.getUint32(0);
  view.setUint32(0, ((bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000) >>> 0);
  return view.getFloat32(0);
}

/** Elements of type `from` converted to `to`; null where the result is not defined. */
export function castContent(
  from: DType | null,
  to: DType | null,
  values: readonly number[] | null,
): readonly number[] | null {
  if (values === null || from === null || to === null || from === "string" || to === "string") return null;
  if (to === "bool") return values.map((value) => (value === 0 ? 0 : 1));
  const bits = INTEGER_BITS.get(to);
  if (bits === undefined || !isFloat(from)) return storeAs(to, values);
  // Out of range is undefined in C and differs between kernels.
  const signed = to.startsWith("i");
  const limit = 2 ** Math.min(53, signed ? bits - 1 : bits);
  const whole = values.map((value) => Math.trunc(value));
  const fits = whole.every((value) => value < limit && value >= (signed ? -limit : 0));
  return fits ? storeAs(to, whole) : null;
}
