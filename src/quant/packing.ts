/** Codes as ONNX stores them: several to a byte, low bits first. */

import { asBytes, numberToFloat16, type Tensor, tensorFromBytes } from "../ir/tensor.js";
import type { DType } from "../ir/types.js";
import { invariant } from "../support/errors.js";
import type { CodeRoom } from "./code-room.js";
import type { Quantized } from "./grid.js";
import { nibbleLoops } from "./nibble-loops.js";
import { scaleLayout } from "./scale-layout.js";
import type { Bits } from "./scheme.js";

/** Bits a code occupies: ONNX has no 3-bit type, and ONNX Runtime reads none of 2 bits, so those live in 4 bits. */
export function storedBits(bits: Bits): 4 | 8 {
  return bits === 8 ? 8 : 4;
}

/**
 * Codes -> bytes; the last byte is padded with zero bits. Signs are cut to two's complement. Codes of less than 8 bits go
 * into the room where there is one.
 */
export function packCodes(codes: Int8Array | Uint8Array, bits: 2 | 4 | 8, room: CodeRoom | null = null): Uint8Array {
  const bytes = new Uint8Array(codes.buffer, codes.byteOffset, codes.length);
  if (bits === 8) return bytes.slice();
  const count = Math.ceil((bytes.length * bits) / 8);
  const packed = room?.take("packed", count) ?? new Uint8Array(count);
  if (bits === 4) {
    const pairs = bytes.length >> 1;
    for (let i = packMost(bytes, packed); i < pairs; i++) packed[i] = (bytes[2 * i]! & 15) | (bytes[2 * i + 1]! << 4);
    if (bytes.length % 2 === 1) packed[pairs] = bytes[bytes.length - 1]! & 15;
    return packed;
  }
  packed.fill(0);
  for (let i = 0; i < bytes.length; i++) packed[i >> 2]! |= (bytes[i]! & 3) << (2 * (i & 3));
  return packed;
}

const LITTLE_ENDIAN = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

/** Packs many codes of 4 bits at a time, as far as that goes; the number of bytes made. */
function packMost(bytes: Uint8Array, packed: Uint8Array): number {
  return nibbleLoops()?.pack(bytes, packed) ?? packQuads(bytes, packed);
}

/** Packs four codes of 4 bits at a time, as far as that goes; the number of bytes made. */
function packQuads(bytes: Uint8Array, packed: Uint8Array): number {
  if (!LITTLE_ENDIAN || bytes.byteOffset % 4 !== 0) return 0;
  const quads = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
  const out = new Uint16Array(packed.buffer, 0, quads.length);
  for (let i = 0; i < quads.length; i++) {
    const low = quads[i]! & 0x0f0f0f0f;
    const pairs = low | (low >> 4);
    out[i] = (pairs & 255) | ((pairs >> 8) & 0xff00);
  }
  return 2 * quads.length;
}

/** The first `count` codes of packed bytes. */
export function unpackCodes(
  packed: Uint8Array,
  count: number,
  bits: 2 | 4 | 8,
  signed: boolean,
): Int8Array | Uint8Array {
  invariant(
    packed.length === Math.ceil((count * bits) / 8),
    `${packed.length} bytes for ${count} codes of ${bits} bits`,
  );
  const codes = signed ? new Int8Array(count) : new Uint8Array(count);
  const perByte = 8 / bits;
  const mask = 2 ** bits - 1;
  for (let i = 0; i < count; i++) {
    const code = (packed[Math.floor(i / perByte)]! >> (bits * (i % perByte))) & mask;
    codes[i] = signed && code > mask >> 1 ? code - mask - 1 : code;
  }
  return codes;
}

/** Bytes of a row that are turned at a time, so that both sides stay within the first-level cache. */
const TILE = 64;

/**
 * 4-bit codes [rows, cols] as ONNX packs them -> the transpose [cols, rows], packed likewise, signed codes offset by 8: the
 * layout of MatMulNBits. `rows` is even. Goes into the room where there is one.
 */
export function transposedNibbles(
  packed: Uint8Array,
  rows: number,
  cols: number,
  signed: boolean,
  room: CodeRoom | null = null,
): Uint8Array {
  invariant(rows % 2 === 0 && packed.length === Math.ceil((rows * cols) / 2), "nibbles of another shape");
  const depth = rows / 2;
  const out = room?.take("turned", cols * depth) ?? new Uint8Array(cols * depth);
  const offset = signed ? 0x88 : 0;
  if (cols % 2 === 0 && nibbleLoops()?.turn(packed, depth, cols / 2, offset, out) === true) return out;
  // Where rows start within a byte, there is nothing to turn but single codes.
  if (cols % 2 === 1) {
    const codes = unpackCodes(packed, rows * cols, 4, false);
    out.fill(0);
    for (let at = 0, row = 0; row < rows; row++) {
      for (let column = 0; column < cols; column++, at++) {
        out[column * depth + (row >> 1)]! |= (codes[at]! ^ (offset & 15)) << (4 * (row & 1));
      }
    }
    return out;
  }
  const width = cols / 2;
  for (let top = 0; top < depth; top += TILE) {
    const bottom = Math.min(top + TILE, depth);
    for (let left = 0; left < width; left += TILE) {
      const right = Math.min(left + TILE, width);
      for (let column = left; column < right; column++) {
        const even = 2 * column * depth;
        for (let pair = top; pair < bottom; pair++) {
          const upper = packed[2 * pair * width + column]!;
          const lower = packed[(2 * pair + 1) * width + column]!;
          out[even + pair] = ((upper & 15) | (lower << 4)) ^ offset;
          out[even + depth + pair] = ((upper >> 4) | (lower & 240)) ^ offset;
        }
      }
    }
  }
  return out;
}

/** Codes of 2 bits that live in 4, as `transposedNibbles` leaves them -> four to a byte, signed codes offset by 2. */
export function halvedNibbles(nibbles: Uint8Array, signed: boolean): Uint8Array {
  invariant(nibbles.length % 2 === 0, "four codes to a byte");
  const offset = signed ? 6 : 0;
  const codes = unpackCodes(nibbles, 2 * nibbles.length, 4, false).map((code) => code - offset);
  invariant(
    codes.every((code) => code >= 0 && code <= 3),
    "a code of more than 2 bits",
  );
  return packCodes(codes, 2);
}

/** The inputs of a DequantizeLinear node. Types of 4 bits need opset 21. */
export interface QuantizedTensors {
  readonly codes: Tensor;
  readonly scales: Tensor;
  /** Null stands for zero. */
  readonly zeroPoints: Tensor | null;
}

/** A quantized tensor as ONNX tensors; codes of 8 bits are not copied, others go into the room where there is one. */
export function quantizedTensors(quantized: Quantized, room: CodeRoom | null = null): QuantizedTensors {
  const { bits, zeroPoints, scales, shape } = quantized;
  const stored = storedBits(bits);
  const dtype: DType = `${zeroPoints === null ? "i" : "u"}${stored}`;
  const scaleShape = scaleLayout(shape, quantized.granularity).shape;
  return {
    codes: tensorFromBytes(
      dtype,
      shape,
      stored === 8 ? asBytes(quantized.codes) : packCodes(quantized.codes, stored, room),
    ),
    scales:
      quantized.scaleType === "f32"
        ? tensorFromBytes("f32", scaleShape, asBytes(scales.slice()))
        : tensorFromBytes("f16", scaleShape, asBytes(Uint16Array.from(scales, numberToFloat16))),
    zeroPoints: zeroPoints === null ? null : tensorFromBytes(dtype, scaleShape, packCodes(zeroPoints, stored)),
  };
}
