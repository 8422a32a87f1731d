/** The memory behind the recurrent state of a model: one or two buffers a tensor, and their shapes over time. */

import { type DType, elementCount, packedBytes } from "../ir/types.js";
import { invariant, MambacError } from "../support/errors.js";
import { allocate, type Memory } from "./native-session.js";
import type { StatePair } from "./signature.js";

/** All slots of a batch, or one of them. */
export type Selection = "all" | number;

/**
 * One state tensor. `current` is what the next call reads. A call writes into `next`, and `flip` makes that current;
 * with state in place both are one buffer. Layout is dense row-major with the batch outermost, so that one slot is a
 * contiguous range.
 */
export class StateMemory {
  readonly pair: StatePair;
  readonly inPlace: boolean;
  readonly #batch: number;
  readonly #fixed: readonly number[];
  #current: Uint8Array;
  #next: Uint8Array;

  constructor(pair: StatePair, batch: number, symbols: ReadonlyMap<string, number>, inPlace: boolean) {
    this.pair = pair;
    this.#batch = batch;
    this.#fixed = resolve(pair, batch, symbols);
    this.inPlace = inPlace && pair.growthAxis === null;
    const length = bytesOf(pair.dtype, this.shape(0));
    this.#current = allocate(length);
    this.#next = this.inPlace ? this.#current : allocate(length);
  }

  /** Shape after `past` tokens, for the whole batch. */
  shape(past: number): number[] {
    return this.#fixed.map((dim, axis) => (axis === this.pair.growthAxis ? past : dim));
  }

  /** What a call reads. */
  input(past: number, selection: Selection): Memory {
    return this.#part(this.#current, past, selection);
  }

  /** Where a call that feeds `total - past` tokens writes. Growing state gets room, kept for later calls. */
  output(total: number, selection: Selection): Memory {
    const length = bytesOf(this.pair.dtype, this.shape(total));
    if (this.#next.byteLength < length) {
      invariant(this.pair.growthAxis !== null, "only growing state changes its size");
      this.#next = allocate(Math.max(length, 2 * this.#next.byteLength));
    }
    return this.#part(this.#next, total, selection);
  }

  /** What was written becomes what is read. */
  flip(): void {
    [this.#current, this.#next] = [this.#next, this.#current];
  }

  /** After a call on one slot: keeps its result without touching the others. */
  keep(slot: number): void {
    if (this.inPlace) return;
    const from = this.output(0, slot).bytes;
    this.input(0, slot).bytes.set(from);
  }

  /** Zero state; a growing tensor is emptied by a past of zero tokens instead. */
  clear(selection: Selection): void {
    if (this.pair.growthAxis === null) this.input(0, selection).bytes.fill(0);
  }

  /** Overwrites the state with `bytes` of a tensor after `past` tokens. */
  write(past: number, selection: Selection, bytes: Uint8Array): void {
    const length = bytesOf(this.pair.dtype, this.shape(past));
    if (this.#current.byteLength < length) this.#current = allocate(length);
    const target = this.input(past, selection).bytes;
    invariant(target.byteLength === bytes.byteLength, `state ${this.pair.input}: ${bytes.byteLength} bytes do not fit`);
    target.set(bytes);
  }

  #part(buffer: Uint8Array, past: number, selection: Selection): Memory {
    const { dtype } = this.pair;
    const shape = this.shape(past);
    if (selection === "all") return { dtype, shape, bytes: buffer.subarray(0, bytesOf(dtype, shape)) };
    invariant(selection >= 0 && selection < this.#batch, `there is no slot ${selection}`);
    const one = [1, ...shape.slice(1)];
    const length = bytesOf(dtype, one);
    return { dtype, shape: one, bytes: buffer.subarray(selection * length, (selection + 1) * length) };
  }
}

function bytesOf(dtype: DType, shape: readonly number[]): number {
  const length = packedBytes(dtype, shape);
  invariant(length !== null && Number.isSafeInteger(elementCount(shape)), "state is a tensor of numbers");
  return length;
}

function resolve(pair: StatePair, batch: number, symbols: ReadonlyMap<string, number>): number[] {
  return pair.shape.map((dim, axis) => {
    if (axis === 0) {
      if (typeof dim !== "number" || dim === batch) return batch;
      throw new MambacError("run/batch", `the graph is fixed to batch ${dim} (state ${pair.input}), not ${batch}`);
    }
    if (typeof dim === "number") return dim;
    if (axis === pair.growthAxis) return 0;
    const given = dim === null ? undefined : symbols.get(dim);
    if (given !== undefined) return given;
    throw new MambacError(
      "run/state-shape",
      `the graph does not say how long axis ${axis} (${dim ?? "unnamed"}) of state ${pair.input} is; ` +
        (dim === null ? "give its input a complete shape" : `pass it as an option: dims: { "${dim}": ... }`),
    );
  });
}
