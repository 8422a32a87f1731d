/** Values of flags, checked as they are parsed. */

import { InvalidArgumentError } from "commander";
import { FLOAT_TYPES, type FloatType } from "../src/index.js";

export function number(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("It must be a number.");
  return value;
}

export function integer(text: string): number {
  const value = number(text);
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError("It must be an integer.");
  return value;
}

export function positiveInteger(text: string): number {
  const value = integer(text);
  if (value < 1) throw new InvalidArgumentError("It must be 1 or more.");
  return value;
}

export function integerList(text: string): number[] {
  return text.split(",").map(positiveInteger);
}

/** An element type. bfloat16 is told apart from a slip, as sources have it. */
export function floatType(text: string): FloatType {
  const found = FLOAT_TYPES.find((type) => type === text);
  if (found !== undefined) return found;
  // Tried with every operator a compiled file has, in 1.30: moving values and casts run, products and arithmetic do not.
  if (/^(bf16|bfloat16)$/.test(text)) {
    throw new InvalidArgumentError(
      "ONNX Runtime's CPU provider has no bfloat16 kernels of MatMul, MatMulNBits, Add, Mul or Sigmoid, so such a file " +
        "could not run: sources of bfloat16 compile to f32 with the same weights, or with f16 to as many bytes.",
    );
  }
  throw new InvalidArgumentError(`Allowed choices are ${FLOAT_TYPES.join(", ")}.`);
}

/** `0,2`; `none` for no token at all. */
export function tokenIds(text: string): number[] {
  if (text === "none") return [];
  return text.split(",").map((word) => {
    const id = integer(word);
    if (id < 0) throw new InvalidArgumentError("Token ids are 0 or more.");
    return id;
  });
}

export function replayLength(text: string): number {
  const value = positiveInteger(text);
  if (value > 64) throw new InvalidArgumentError("It must be 1 to 64.");
  return value;
}

/** `0.5` and `0.5%` are half a percent; the result is a share. */
export function percentage(text: string): number {
  return number(text.replace(/\s*%$/, "")) / 100;
}

const BYTE_UNITS: Readonly<Record<string, number>> = { "": 1, B: 1, KB: 1e3, MB: 1e6, GB: 1e9 };

/** Bytes, with a decimal unit if any: `1200000`, `1.2MB`. */
export function byteCount(text: string): number {
  const [, digits = "", unit = ""] = /^([\d.]+)\s*([kKmMgG]?[bB]?)$/.exec(text.trim()) ?? [];
  const factor = BYTE_UNITS[unit.toUpperCase()];
  const value = Number(digits) * (factor ?? Number.NaN);
  if (digits === "" || !Number.isFinite(value) || value <= 0) throw new InvalidArgumentError("It must be like 1.2MB.");
  return value;
}
