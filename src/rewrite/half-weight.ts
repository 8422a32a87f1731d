/** Float32 weights as float16 ones, converted when they are read. */

import type { Graph } from "../ir/graph.js";
import { asBytes, type Tensor, tensorFromBytes, tensorFromSource } from "../ir/tensor.js";
import { type HalfLoss, halfLossOf, halvesOf, MAX_HALF } from "../quant/halves.js";
import { EXIT, MambacError } from "../support/errors.js";

/** Large weights are converted in parts of this many values. */
const PART: number = 2 ** 18;
const EAGER_ELEMENTS = 4096;

/** Bytes read at a time where nothing is done with them. */
const READ_BYTES: number = 2 ** 24;

/**
 * What weights lose as halves, counted as they are read for the first time: a large one is computed or read from its file for
 * that, and that should happen once.
 */
export class HalfTally {
  #total: HalfLoss = { values: 0, zeroed: 0, subnormal: 0, beyond: null };
  #unread = 0;

  /** What has been read so far. */
  get total(): HalfLoss {
    return this.#total;
  }

  /** Has every weight been read? */
  get settled(): boolean {
    return this.#unread === 0;
  }

  /** What takes the values of one weight, from any place on, and refuses those beyond halves; `name` is the weight's. */
  watch(name: string, { shape, byteLength }: Tensor): (at: number, values: Float32Array) => void {
    const size = byteLength / 4;
    let counted = 0;
    if (size > 0) this.#unread += 1;
    return (at, values) => {
      if (counted === size) return;
      const loss = halfLossOf(values);
      if (loss.beyond !== null) throw beyondHalves(name, shape, loss.beyond);
      const end = at + values.length;
      if (at > counted || end <= counted) return;
      this.#add(at === counted ? loss : halfLossOf(values.subarray(counted - at)));
      counted = end;
      if (counted === size) this.#unread -= 1;
    };
  }

  #add({ values, zeroed, subnormal }: HalfLoss): void {
    const total = this.#total;
    this.#total = {
      values: total.values + values,
      zeroed: total.zeroed + zeroed,
      subnormal: total.subnormal + subnormal,
      beyond: null,
    };
  }
}

/** Can every value be a half that keeps its eleven bits? For small tensors. */
export function fitsHalves(tensor: Tensor): boolean {
  const { buffer, byteOffset, length } = words(tensor.bytes());
  const { zeroed, subnormal, beyond } = halfLossOf(new Float32Array(buffer, byteOffset, length));
  return beyond === null && zeroed + subnormal === 0;
}

function beyondHalves(name: string, shape: readonly number[], value: number): MambacError {
  return new MambacError(
    "narrow-floats/overflow",
    `weight ${name} [${shape.join(", ")}] has the value ${value}, and float16 ends at ${MAX_HALF}: leave out --float f16`,
    EXIT.unsupported,
  );
}

/**
 * The weight as halves. What is no small tensor in memory is read, and converted, whenever its bytes are asked for, and
 * then `tally` learns what is lost. Reading throws `narrow-floats/overflow` where a value is beyond halves; `name` is the
 * weight's.
 */
export function halfWeight(tensor: Tensor, name: string, tally: HalfTally): Tensor {
  const { shape, doc, metadata } = tensor;
  const counts = tally.watch(name, tensor);
  const convert = (offset: number, length: number): Uint8Array => {
    // Bytes of halves; any range of them may be asked for.
    const [first, last] = [Math.floor(offset / 2), Math.ceil((offset + length) / 2)];
    const halves = new Uint16Array(last - first);
    for (let at = first; at < last; at += PART) {
      const end = Math.min(at + PART, last);
      tensor.lend(4 * at, 4 * end, (bytes) => {
        const bits = words(bytes);
        counts(at, new Float32Array(bits.buffer, bits.byteOffset, bits.length));
        halvesOf(bits, halves.subarray(at - first, end - first));
      });
    }
    return asBytes(halves).subarray(offset - 2 * first, offset - 2 * first + length);
  };
  const byteLength = tensor.byteLength / 2;
  if (tensor.residence === "memory" && byteLength <= 2 * EAGER_ELEMENTS) {
    return tensorFromBytes("f16", shape, convert(0, byteLength), doc, metadata);
  }
  const prefetch = (offset: number, length: number): Promise<void> | null =>
    tensor.prefetch(2 * offset, 2 * (offset + length));
  return tensorFromSource("f16", shape, { read: convert, prefetch }, 0, "lazy", doc, metadata);
}

/** Reads the halves that are checked when they are read, and keeps nothing. Throws `narrow-floats/overflow`. */
export function readHalves({ initializers }: Graph): void {
  for (const tensor of initializers.values()) {
    if (tensor.dtype !== "f16" || tensor.residence !== "lazy") continue;
    for (let at = 0; at < tensor.byteLength; at += READ_BYTES) {
      tensor.lend(at, Math.min(at + READ_BYTES, tensor.byteLength), () => undefined);
    }
  }
}

/** The bits of float32 values, wherever their bytes begin. */
function words(bytes: Uint8Array): Uint32Array {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  return new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 4);
}
