/**
 * Halves and floats as bytes, from standard ops: ONNX has no way to look at the bits of a float in opset 21. Both
 * directions are exact, whatever the rounding of Log and Exp.
 */

import type { Body } from "./body.js";

/** Nearest half of a f32 value, as f32. The value must not exceed the largest half. */
export function roundToHalfIn(body: Body, value: string): string {
  return body.cast(body.cast(value, "f16"), "f32");
}

/**
 * Byte pairs u8 [B, heads, 2 M], low byte first -> halves >= 0 as f32 [B, heads, M].
 *
 * With k = max(exponent field - 1, 0) the value is (bits - 1024 k) 2^(k - 24), for subnormals too. Exp is good to 1e-6
 * and a half has 11 bits, so rounding the product to a half gives the exact value.
 */
export function bytesToHalves(body: Body, bytes: string, heads: string): string {
  const pairs = body.reshape(bytes, 0, heads, -1, 2);
  return halfOf(body, body.add(byteOf(body, pairs, 0), body.mul(byteOf(body, pairs, 1), body.float(256))));
}

/** Byte pairs u8 [.., 2 M], low byte first -> halves as f32 [B, M] of all that follow the first axis. */
export function bytesToSignedHalves(body: Body, bytes: string): string {
  const pairs = body.reshape(bytes, 0, -1, 2);
  const [sign, high] = topBit(body, byteOf(body, pairs, 1));
  const magnitude = halfOf(body, body.add(byteOf(body, pairs, 0), body.mul(high, body.float(256))));
  return body.mul(magnitude, body.sub(body.float(1), body.add(sign, sign)));
}

function byteOf(body: Body, groups: string, index: number): string {
  return body.cast(body.op("Gather", [groups, body.int(index)], { axis: -1 }), "f32");
}

/** A byte's highest bit, and the others. */
function topBit(body: Body, byte: string): [bit: string, rest: string] {
  const bit = body.op("Floor", [body.mul(byte, body.float(1 / 128))]);
  return [bit, body.sub(byte, body.mul(bit, body.float(128)))];
}

/** The half of non-negative bits. */
function halfOf(body: Body, bits: string): string {
  const k = body.op("Floor", [body.op("Relu", [body.sub(body.mul(bits, body.float(1 / 1024)), body.float(1))])]);
  const mantissa = body.sub(bits, body.mul(k, body.float(1024)));
  return roundToHalfIn(body, body.mul(mantissa, powerOfTwo(body, body.sub(k, body.float(24)))));
}

/**
 * Halves >= 0 given as f32 [B, heads, M] -> their bytes u8 [B, heads, M, 2], low byte first.
 *
 * The exponent is floor(log2 v). log2 of a half is either an integer or at least 7e-4 below the next one, so adding
 * 2^-12 makes the floor exact; the mantissa is an integer below 2048, so rounding it makes it exact. Below 2^-14 k stays
 * 0 and the half is subnormal; zero goes the same way, as its log2 is -Infinity.
 */
export function halvesToBytes(body: Body, halves: string): string {
  return bytePair(body, halfBits(body, halves));
}

/** Halves given as f32 [..] -> their bytes u8 [.., 2], low byte first. */
export function signedHalvesToBytes(body: Body, halves: string): string {
  const bits = halfBits(body, body.op("Abs", [halves]));
  return bytePair(body, body.add(bits, body.mul(signBit(body, halves), body.float(2 ** 15))));
}

/** 1 for negative values, -0 among them, else 0. */
function signBit(body: Body, value: string): string {
  const least = body.op("Min", [value, body.op("Reciprocal", [value])]);
  return body.cast(body.op("Less", [least, body.float(0)]), "f32");
}

/** Bits below 2^16 -> their bytes. */
function bytePair(body: Body, bits: string): string {
  const high = body.op("Floor", [body.mul(bits, body.float(1 / 256))]);
  const low = body.sub(bits, body.mul(high, body.float(256)));
  const column = (value: string): string => body.unsqueeze(body.cast(value, "u8"), -1);
  return body.op("Concat", [column(low), column(high)], { axis: -1 });
}

function halfBits(body: Body, halves: string): string {
  const log2 = body.mul(body.op("Log", [halves]), body.float(1 / Math.LN2));
  const k = body.op("Relu", [body.op("Floor", [body.add(log2, body.float(14 + 2 ** -12))])]);
  const mantissa = body.op("Round", [body.mul(halves, powerOfTwo(body, body.sub(body.float(24), k)))]);
  return body.add(mantissa, body.mul(k, body.float(1024)));
}

/**
 * Groups of four bytes u8 [.., 4 M], low byte first -> float32 [B, M] of all that follow the first axis.
 *
 * The value is (fraction + 2^23) 2^(e - 150), without the 2^23 where e is 0, which counts as 1. Powers of two are taken
 * in float64, whose Exp is good to 1e-14, so rounding to float32 gives the exact value.
 */
export function bytesToFloats(body: Body, bytes: string): string {
  const groups = body.reshape(bytes, 0, -1, 4);
  const [sign, high] = topBit(body, byteOf(body, groups, 3));
  const [odd, low] = topBit(body, byteOf(body, groups, 2));
  const exponent = body.add(body.mul(high, body.float(2)), odd);
  const top = body.mul(low, body.float(2 ** 16));
  const fraction = body.add(body.add(byteOf(body, groups, 0), body.mul(byteOf(body, groups, 1), body.float(256))), top);
  const normal = body.op("Min", [exponent, body.float(1)]);
  const mantissa = body.add(fraction, body.mul(normal, body.float(2 ** 23)));
  const shift = body.sub(body.op("Max", [exponent, body.float(1)]), body.float(150));
  const magnitude = body.mul(body.cast(mantissa, "f64"), powerOfTwoInDouble(body, body.cast(shift, "f64")));
  return body.mul(body.cast(magnitude, "f32"), body.sub(body.float(1), body.add(sign, sign)));
}

/**
 * Float32 [..] -> their bytes u8 [.., 4], low byte first; infinities as the largest finite value.
 *
 * As for halves, in float64: log2 of a float32 is either an integer or at least 8e-8 below the next one.
 */
export function floatsToBytes(body: Body, values: string): string {
  const largest = body.float(MAX_FLOAT);
  const magnitude = body.cast(body.op("Min", [body.op("Abs", [values]), largest]), "f64");
  const log2 = body.mul(body.op("Log", [magnitude]), body.double(1 / Math.LN2));
  const k = body.op("Max", [body.op("Floor", [body.add(log2, body.double(2 ** -26))]), body.double(-126)]);
  const mantissa = body.op("Round", [body.mul(magnitude, powerOfTwoInDouble(body, body.sub(body.double(23), k)))]);
  const bits = body.add(mantissa, body.mul(body.add(k, body.double(126)), body.double(2 ** 23)));
  const high = body.op("Floor", [body.mul(bits, body.double(2 ** -16))]);
  const low = body.sub(bits, body.mul(high, body.double(2 ** 16)));
  const sign = body.mul(signBit(body, values), body.float(2 ** 15));
  const halves = [body.cast(low, "f32"), body.add(body.cast(high, "f32"), sign)];
  return body.op(
    "Concat",
    halves.map((half) => bytePair(body, half)),
    { axis: -1 },
  );
}

/** Largest finite float32. */
const MAX_FLOAT = (2 - 2 ** -23) * 2 ** 127;

function powerOfTwoInDouble(body: Body, exponent: string): string {
  return body.exp(body.mul(exponent, body.double(Math.LN2)));
}

function powerOfTwo(body: Body, exponent: string): string {
  return body.exp(body.mul(exponent, body.float(Math.LN2)));
}
