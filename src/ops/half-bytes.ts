/**
 * Halves as bytes, from standard ops: ONNX has no way to look at the bits of a float in opset 21. Both directions are
 * exact, whatever the rounding of Log and Exp.
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
  const byte = (index: number): string => body.cast(body.op("Gather", [pairs, body.int(index)], { axis: -1 }), "f32");
  const bits = body.add(byte(0), body.mul(byte(1), body.float(256)));
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
  const log2 = body.mul(body.op("Log", [halves]), body.float(1 / Math.LN2));
  const k = body.op("Relu", [body.op("Floor", [body.add(log2, body.float(14 + 2 ** -12))])]);
  const mantissa = body.op("Round", [body.mul(halves, powerOfTwo(body, body.sub(body.float(24), k)))]);
  const bits = body.add(mantissa, body.mul(k, body.float(1024)));
  const high = body.op("Floor", [body.mul(bits, body.float(1 / 256))]);
  const low = body.sub(bits, body.mul(high, body.float(256)));
  const column = (value: string): string => body.unsqueeze(body.cast(value, "u8"), -1);
  return body.op("Concat", [column(low), column(high)], { axis: -1 });
}

function powerOfTwo(body: Body, exponent: string): string {
  return body.exp(body.mul(exponent, body.float(Math.LN2)));
}
