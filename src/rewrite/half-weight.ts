/** Float32 weights as float16 ones, converted when they are read. */

import { asBytes, type Tensor, tensorFromBytes, tensorFromSource } from "../ir/tensor.js";
import { type HalfLoss, halfLossOf, halvesOf, MAX_HALF } from "../quant/halves.js";
import { EXIT, MambacError } from "../support/errors.js";

/** Large weights are converted whenever they are read, and looked at in parts of this many values. */
const PART: number = 2 ** 18;
const EAGER_ELEMENTS = 4096;

/** What a weight loses as halves. Throws `narrow-floats/overflow` where a value is beyond them; `name` is the weight's. */
export function halfLoss(name: string, tensor: Tensor): HalfLoss {
  let total: HalfLoss = { values: 0, zeroed: 0, subnormal: 0, beyond: null };
  for (let at = 0; at < tensor.byteLength; at += 4 * PART) {
    const part = tensor.lend(at, Math.min(at + 4 * PART, tensor.byteLength), (bytes) => {
      const { buffer, byteOffset, length } = words(bytes);
      return halfLossOf(new Float32Array(buffer, byteOffset, length));
    });
    if (part.beyond !== null) throw beyondHalves(name, tensor, part.beyond);
    total = addLoss(total, part);
  }
  return total;
}

/** What two weights lose together. */
export function addLoss(a: HalfLoss, b: HalfLoss): HalfLoss {
  return {
    values: a.values + b.values,
    zeroed: a.zeroed + b.zeroed,
    subnormal: a.subnormal + b.subnormal,
    beyond: a.beyond ?? b.beyond,
  };
}

/** Can every value be a half that keeps its eleven bits? For small tensors. */
export function fitsHalves(tensor: Tensor): boolean {
  const { buffer, byteOffset, length } = words(tensor.bytes());
  const { zeroed, subnormal, beyond } = halfLossOf(new Float32Array(buffer, byteOffset, length));
  return beyond === null && zeroed + subnormal === 0;
}

function beyondHalves(name: string, { shape }: Tensor, value: number): MambacError {
  return new MambacError(
    "narrow-floats/overflow",
    `weight ${name} [${shape.join(", ")}] has the value ${value}, and float16 ends at ${MAX_HALF}: leave out --float f16`,
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

/** The bits of float32 values, wherever their bytes begin. */
function words(bytes: Uint8Array): Uint32Array {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  return new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 4);
}
