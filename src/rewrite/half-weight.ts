/** Float32 weights as float16 ones, converted when they are read. */

import { asBytes, type Tensor, tensorFromBytes, tensorFromSource } from "../ir/tensor.js";
import { EXIT, MambacError } from "../support/errors.js";

/** Largest finite half, and the least magnitude that rounds to something other than zero. */
const MAX_HALF = 65504;
const LEAST_KEPT = 2 ** -25;
/** Below this a half has fewer than eleven bits. */
const LEAST_NORMAL = 2 ** -14;
/** Larger weights are converted whenever they are read, in parts of this many values. */
const PART = 2 ** 18;
const EAGER_ELEMENTS = 4096;

/** What rounding to halves does to weights. */
export interface HalfLoss {
  readonly values: number;
  /** Nonzero values that become zero. */
  readonly zeroed: number;
  /** Values that keep fewer than eleven bits, without those that become zero. */
  readonly subnormal: number;
}

/** The nearest halves of float32 bits, ties to even; beyond the largest half infinite. */
export function halvesOf(floats: Uint32Array, out: Uint16Array): void {
  const one = new Float32Array(1);
  const bitsOfOne = new Uint32Array(one.buffer);
  for (let i = 0; i < floats.length; i++) {
    const bits = floats[i]!;
    const sign = (bits >>> 16) & 0x8000;
    const magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) out[i] = sign | 0x7e00;
    else if (magnitude >= 0x477ff000) out[i] = sign | 0x7c00;
    else if (magnitude >= 0x38800000) {
      out[i] = sign | (((magnitude + 0xc8000fff + ((magnitude >>> 13) & 1)) >>> 0) >>> 13);
    } else {
      // A sum with 0.5 ends in units of 2^-24, as subnormal halves do.
      bitsOfOne[0] = magnitude;
      one[0] = one[0]! + 0.5;
      out[i] = sign | (bitsOfOne[0]! - 0x3f000000);
    }
  }
}

/** What a weight loses as halves. Throws `narrow-floats/overflow` where a value is beyond them; `name` is the weight's. */
export function halfLoss(name: string, tensor: Tensor): HalfLoss {
  let [zeroed, subnormal, values] = [0, 0, 0];
  eachPart(tensor, (floats) => {
    values += floats.length;
    for (let i = 0; i < floats.length; i++) {
      const magnitude = Math.abs(floats[i]!);
      if (magnitude >= LEAST_NORMAL && magnitude <= MAX_HALF) continue;
      if (!(magnitude <= MAX_HALF)) throw beyondHalves(name, tensor, floats[i]!);
      if (magnitude > LEAST_KEPT) subnormal += 1;
      else if (magnitude > 0) zeroed += 1;
    }
  });
  return { values, zeroed, subnormal };
}

/** Can every value be a half that keeps its eleven bits? For small tensors. */
export function fitsHalves(tensor: Tensor): boolean {
  let fits = true;
  eachPart(tensor, (floats) => {
    for (const value of floats) {
      const magnitude = Math.abs(value);
      if (magnitude !== 0 && !(magnitude >= LEAST_NORMAL && magnitude <= MAX_HALF)) fits = false;
    }
  });
  return fits;
}

function beyondHalves(name: string, { shape }: Tensor, value: number): MambacError {
  return new MambacError(
    "narrow-floats/overflow",
    `weight ${name} [${shape.join(", ")}] has the value ${value}, and float16 ends at ${MAX_HALF}: leave out --float f16, ` +
      "or absorb the scale that makes it large (a recipe with absorb-norm-gain or smoothing does)",
    EXIT.unsupported,
  );
}

/** The weight as halves. A large one is read again, and converted, whenever its bytes are asked for. */
export function halfWeight(tensor: Tensor): Tensor {
  const { shape, doc, metadata } = tensor;
  const convert = (offset: number, length: number): Uint8Array => {
    // Bytes of halves; any range of them may be asked for.
    const [first, last] = [Math.floor(offset / 2), Math.ceil((offset + length) / 2)];
    const halves = new Uint16Array(last - first);
    for (let at = first; at < last; at += PART) {
      const end = Math.min(at + PART, last);
      tensor.lend(4 * at, 4 * end, (bytes) => halvesOf(words(bytes), halves.subarray(at - first, end - first)));
    }
    return asBytes(halves).subarray(offset - 2 * first, offset - 2 * first + length);
  };
  const byteLength = tensor.byteLength / 2;
  if (byteLength <= 2 * EAGER_ELEMENTS) return tensorFromBytes("f16", shape, convert(0, byteLength), doc, metadata);
  const prefetch = (offset: number, length: number): Promise<void> | null =>
    tensor.prefetch(2 * offset, 2 * (offset + length));
  return tensorFromSource("f16", shape, { read: convert, prefetch }, 0, "lazy", doc, metadata);
}

function eachPart(tensor: Tensor, use: (floats: Float32Array) => void): void {
  for (let at = 0; at < tensor.byteLength; at += 4 * PART) {
    tensor.lend(at, Math.min(at + 4 * PART, tensor.byteLength), (bytes) =>
      use(new Float32Array(words(bytes).buffer, words(bytes).byteOffset, bytes.byteLength / 4)),
    );
  }
}

function words(bytes: Uint8Array): Uint32Array {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  return new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 4);
}
