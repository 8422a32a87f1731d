/** A QuantizeLinear / DequantizeLinear pair on an activation: what runtimes recognise as a quantized value. */

import type { GraphBuilder } from "../ir/builder.js";
import { type Attribute, attr, makeNode } from "../ir/graph.js";
import { asBytes, f32Tensor, roundHalfEven, tensorFromBytes } from "../ir/tensor.js";
import { EXIT, MambacError } from "../support/errors.js";

/** Where the values of an activation are; low <= high. */
export interface ValueRange {
  readonly low: number;
  readonly high: number;
}

/**
 * `i8` is symmetric with zero point 0, `u8-symmetric` the same with every code moved up by 128: equal values. The others are
 * asymmetric.
 */
export type ActivationType = "i8" | "u8-symmetric" | "u8" | "u16";

/** Names of the scale and zero point that values are rounded with. */
export interface PairGrid {
  readonly scale: string;
  readonly zero: string;
}

/** Narrower ranges are widened to this: scales next to nothing are refused by some hardware. */
const LEAST_SPAN = 1e-4;

/**
 * Adds an int8 symmetric pair after `value` and gives the name of what it makes. `ranges`: the largest magnitude to be
 * represented, of the tensor (a number) or of each channel of the last axis; what is larger saturates. `pass` names the
 * caller in messages. Throws `<pass>/range` (exit code 5) for ranges that are negative or not finite.
 */
export function addPair(builder: GraphBuilder, value: string, ranges: number | Float64Array, pass: string): string {
  const list = typeof ranges === "number" ? [ranges] : [...ranges];
  for (const range of list) requireRange(value, { low: -range, high: range }, pass);
  // An activation that was always zero gets any scale: its codes are all zero.
  const scales = list.map((range) => (range === 0 ? 1 : range / 127));
  const shape = typeof ranges === "number" ? [] : [scales.length];
  const attributes = new Map<string, Attribute>(typeof ranges === "number" ? [] : [["axis", attr.int(-1)]]);
  const grid = {
    scale: builder.initializer(f32Tensor(shape, scales), "scale"),
    zero: builder.initializer(tensorFromBytes("i8", shape, new Uint8Array(scales.length)), "zero_point"),
  };
  return addPairOn(builder, value, grid, `${value}_DequantizeLinear_Output`, attributes);
}

/**
 * Adds a grid of one scale for `value`. `range`: what is to be represented, a number standing for both signs; zero always is,
 * exactly. Throws `<pass>/range` (exit code 5) for ranges that are not finite or the wrong way round.
 */
export function addGrid(
  builder: GraphBuilder,
  value: string,
  range: number | ValueRange,
  type: ActivationType,
  pass: string,
): PairGrid {
  const span = typeof range === "number" ? { low: -range, high: range } : range;
  requireRange(value, span, pass);
  return gridOf(builder, span, type).names;
}

/** Adds a constant of known values on a grid of its own, behind a DequantizeLinear; gives the name of what that makes. */
export function addConstant(
  builder: GraphBuilder,
  name: string,
  values: Float64Array,
  shape: readonly number[],
  type: ActivationType,
): string {
  const range = { low: Math.min(0, ...values), high: Math.max(0, ...values) };
  const { names, step, zero } = gridOf(builder, range, type);
  const [lowest, highest] = CODES[type];
  const codes = Array.from(values, (value) =>
    Math.max(lowest, Math.min(highest, roundHalfEven(Math.fround(Math.fround(value) / step)) + zero)),
  );
  const bytes = asBytes(
    type === "i8" ? Int8Array.from(codes) : type === "u8" ? Uint8Array.from(codes) : Uint16Array.from(codes),
  );
  const quantized = builder.initializer(tensorFromBytes(storedAs(type), shape, bytes), "codes");
  const dequantized = `${name}_DequantizeLinear_Output`;
  builder.nodes.push(
    makeNode("DequantizeLinear", [quantized, names.scale, names.zero], [dequantized], new Map(), {
      name: `${name}_DequantizeLinear`,
    }),
  );
  return dequantized;
}

const CODES: Readonly<Record<ActivationType, readonly [number, number]>> = {
  i8: [-128, 127],
  "u8-symmetric": [0, 255],
  u8: [0, 255],
  u16: [0, 65535],
};

function storedAs(type: ActivationType): "i8" | "u8" | "u16" {
  return type === "u8-symmetric" ? "u8" : type;
}

/** Zero point of a type whose codes reach as far below it as above, and the most above it; null where ranges say it. */
const CENTERED: Readonly<Record<ActivationType, { readonly zero: number; readonly above: number } | null>> = {
  i8: { zero: 0, above: 127 },
  "u8-symmetric": { zero: 128, above: 127 },
  u8: null,
  u16: null,
};

/** The grid of a range that zero is added to. */
function gridOf(
  builder: GraphBuilder,
  range: ValueRange,
  type: ActivationType,
): { readonly names: PairGrid; readonly step: number; readonly zero: number } {
  const [low, high] = [Math.min(range.low, 0), Math.max(range.high, 0)];
  const [lowest, highest] = CODES[type];
  const peak = Math.max(-low, high);
  const centered = CENTERED[type];
  // An activation that was always zero gets any scale: its codes are all zero.
  const symmetric = peak === 0 ? 1 : peak / (centered?.above ?? highest);
  const step = Math.fround(centered !== null ? symmetric : Math.max(high - low, LEAST_SPAN) / (highest - lowest));
  const zero = centered?.zero ?? Math.min(highest, Math.round(-low / step));
  const bytes = asBytes(type === "u16" ? Uint16Array.of(zero) : Uint8Array.of(zero));
  const names = {
    scale: builder.initializer(f32Tensor([], [step]), "scale"),
    zero: builder.initializer(tensorFromBytes(storedAs(type), [], bytes), "zero_point"),
  };
  return { names, step, zero };
}

/** Adds a pair on a grid after `value`; gives the name of what it makes, which is `dequantized`. */
export function addPairOn(
  builder: GraphBuilder,
  value: string,
  { scale, zero }: PairGrid,
  dequantized: string = `${value}_DequantizeLinear_Output`,
  attributes: ReadonlyMap<string, Attribute> = new Map(),
): string {
  const q = `${value}_QuantizeLinear_Output`;
  builder.nodes.push(
    makeNode("QuantizeLinear", [value, scale, zero], [q], attributes, { name: `${value}_QuantizeLinear` }),
    makeNode("DequantizeLinear", [q, scale, zero], [dequantized], attributes, { name: `${value}_DequantizeLinear` }),
  );
  return dequantized;
}

function requireRange(value: string, { low, high }: ValueRange, pass: string): void {
  if (Number.isFinite(low) && Number.isFinite(high) && low <= high) return;
  throw new MambacError(
    `${pass}/range`,
    `the calibrated range of ${value} is ${low} to ${high}: the calibration data made it overflow or it holds NaN`,
    EXIT.calibration,
  );
}
