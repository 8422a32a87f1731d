/**
 * A small assembler of WebAssembly functions: number loops that JavaScript has no vector instructions for.
 *
 * Only what such loops need: one memory of a fixed size, parameters of type i32, f32 and f64, counted loops.
 * Encodings: WebAssembly Core Specification 2.0, chapters 5.4 and 5.5.
 */

import { invariant } from "../support/errors.js";

/** Instructions as bytes. */
export type Code = readonly number[];

export type WasmType = "i32" | "f32" | "f64" | "v128";

const TYPES: Readonly<Record<WasmType, number>> = { i32: 0x7f, f32: 0x7d, f64: 0x7c, v128: 0x7b };

export interface WasmFunction {
  readonly name: string;
  readonly parameters: readonly Exclude<WasmType, "v128">[];
  /** Numbered after the parameters. */
  readonly locals: readonly WasmType[];
  readonly body: Code;
}

/** Functions over one memory. */
export interface WasmLoops {
  readonly memory: ArrayBuffer;
  readonly call: (name: string, ...args: readonly number[]) => void;
}

/** What this file uses of the global `WebAssembly`, which `@types/node` leaves to the DOM's types. */
interface WasmGlobal {
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Instance: new (module: object) => { readonly exports: Readonly<Record<string, unknown>> };
  validate(bytes: Uint8Array): boolean;
}

const PAGE = 65536;

/** "\0asm", version 1. */
const HEADER: Code = [0, 0x61, 0x73, 0x6d, 1, 0, 0, 0];

/** Compiles functions with `pages` of 64 KiB of memory; null where the host has no WebAssembly or no vectors in it. */
export function assembleLoops(pages: number, functions: readonly WasmFunction[]): WasmLoops | null {
  const wasm = (globalThis as { readonly WebAssembly?: WasmGlobal }).WebAssembly;
  const bytes = moduleBytes(pages, functions);
  if (wasm?.validate(bytes) !== true) return null;
  const { exports } = new wasm.Instance(new wasm.Module(bytes));
  const { buffer } = exports["memory"] as { readonly buffer: ArrayBuffer };
  invariant(buffer.byteLength === pages * PAGE, "the memory of a module has another size");
  return {
    memory: buffer,
    call: (name, ...args) => (exports[name] as (...values: readonly number[]) => void)(...args),
  };
}

function moduleBytes(pages: number, functions: readonly WasmFunction[]): Uint8Array {
  const section = (id: number, content: Code): Code => [id, ...unsigned(content.length), ...content];
  const list = (items: readonly Code[]): Code => [...unsigned(items.length), ...items.flat()];
  const exported = (name: string, kind: number, index: number): Code => [
    ...unsigned(name.length),
    ...new TextEncoder().encode(name),
    kind,
    ...unsigned(index),
  ];
  const bodies = functions.map(({ locals, body }) => {
    const content = [...list(locals.map((type) => [1, TYPES[type]])), ...body, 0x0b];
    return [...unsigned(content.length), ...content];
  });
  return Uint8Array.of(
    ...HEADER,
    ...section(1, list(functions.map(({ parameters }) => [0x60, ...list(parameters.map((type) => [TYPES[type]])), 0]))),
    ...section(3, list(functions.map((_, at) => unsigned(at)))),
    ...section(5, list([[1, ...unsigned(pages), ...unsigned(pages)]])),
    ...section(7, list([exported("memory", 2, 0), ...functions.map(({ name }, at) => exported(name, 0, at))])),
    ...section(10, list(bodies)),
  );
}

/** LEB128 of an unsigned number. */
function unsigned(value: number): Code {
  return value < 128 ? [value] : [(value & 127) | 128, ...unsigned(value >>> 7)];
}

/** LEB128 of a signed number. */
function signed(value: number): Code {
  return value >= -64 && value < 64 ? [value & 127] : [(value & 127) | 128, ...signed(value >> 7)];
}

const vector = (opcode: number): Code => [0xfd, ...unsigned(opcode)];

/** Bytes of an address operand: any alignment, constant offset. */
const place = (offset: number): Code => [0, ...unsigned(offset)];

export const get = (local: number): Code => [0x20, ...unsigned(local)];
export const set = (local: number, value: Code): Code => [...value, 0x21, ...unsigned(local)];
export const constant = (value: number): Code => [0x41, ...signed(value)];
/** A float32. */
export const float = (value: number): Code => [0x43, ...new Uint8Array(Float32Array.of(value).buffer)];
export const add = (a: Code, b: Code): Code => [...a, ...b, 0x6a];
/** local += by. */
export const advance = (local: number, by: Code): Code => set(local, add(get(local), by));

/** Runs the body `local` times, at least once; counts `local` down to zero. */
export const repeat = (local: number, body: Code): Code => [
  0x03,
  0x40,
  ...body,
  ...advance(local, constant(-1)),
  ...get(local),
  0x0d,
  0,
  0x0b,
];

export const load = (address: Code, offset: number): Code => [...address, ...vector(0x00), ...place(offset)];
/** Both lanes the float64 at the address. */
export const loadSplat64 = (address: Code, offset: number): Code => [...address, ...vector(0x0a), ...place(offset)];
export const store = (address: Code, offset: number, value: Code): Code => [
  ...address,
  ...value,
  ...vector(0x0b),
  ...place(offset),
];

type Unary = (a: Code) => Code;
type Binary = (a: Code, b: Code) => Code;

const unary =
  (opcode: number): Unary =>
  (a) => [...a, ...vector(opcode)];
const binary =
  (opcode: number): Binary =>
  (a, b) => [...a, ...b, ...vector(opcode)];

interface Vectors {
  readonly splat: Unary;
  readonly add: Binary;
  readonly sub: Binary;
  readonly mul: Binary;
  readonly div: Binary;
  readonly min: Binary;
  readonly max: Binary;
  /** b < a ? b : a, so NaN stays only as `a`. */
  readonly lesser: Binary;
  /** a < b ? b : a, so NaN stays only as `a`. */
  readonly greater: Binary;
}

const vectors = (splat: number, arithmetic: number): Vectors => ({
  splat: unary(splat),
  add: binary(arithmetic),
  sub: binary(arithmetic + 1),
  mul: binary(arithmetic + 2),
  div: binary(arithmetic + 3),
  min: binary(arithmetic + 4),
  max: binary(arithmetic + 5),
  lesser: binary(arithmetic + 6),
  greater: binary(arithmetic + 7),
});

export const f32x4: Vectors = vectors(0x13, 0xe4);
export const f64x2: Vectors = vectors(0x14, 0xf0);

/** Sixteen bytes picked out of two vectors. */
export const shuffle = (a: Code, b: Code, lanes: readonly number[]): Code => [...a, ...b, ...vector(0x0d), ...lanes];

/** Sixteen bytes, taken as bits or each by itself. */
export const bytes16: {
  readonly splat: Unary;
  readonly and: Binary;
  readonly or: Binary;
  readonly xor: Binary;
  /** By a number of bits, an i32; what leaves a byte is lost. */
  readonly shiftLeft: Binary;
  readonly shiftRight: Binary;
} = {
  splat: unary(0x0f),
  and: binary(0x4e),
  or: binary(0x50),
  xor: binary(0x51),
  shiftLeft: binary(0x6b),
  shiftRight: binary(0x6d),
};

/** Stores the lower (0) or upper (1) eight bytes. */
export const storeHalf = (address: Code, offset: number, value: Code, half: 0 | 1): Code => [
  ...address,
  ...value,
  ...vector(0x5b),
  ...place(offset),
  half,
];
