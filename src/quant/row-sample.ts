/**
 * A sample of activation rows that does not depend on the order they come in.
 *
 * Every row has a key made of the seed and its place in the data; the rows with the smallest keys stay (a reservoir by
 * keys instead of by turns). So samples of two halves of the data merge to the sample of the whole, and values with one
 * row a token keep the same tokens.
 * Source of the scheme: bottom-k sampling, E. Cohen and H. Kaplan, "Summarizing data using bottom-k sketches", PODC 2007.
 */

import { invariant } from "../support/errors.js";

/** The rows kept, in the order of the data. */
export interface SampledRows {
  readonly rows: number;
  readonly channels: number;
  /** [rows, channels], row-major. */
  readonly data: Float32Array;
  /** Sequence and row of each within its value, for matching samples of several values. */
  readonly sequences: Int32Array;
  readonly positions: Int32Array;
}

/** Keeps at most `limit` rows. Memory is that of the rows kept. */
export class RowSample {
  readonly limit: number;
  readonly seed: number;
  #channels = 0;
  #data = new Float32Array(0);
  /** Slots as a heap, the largest key first. */
  readonly #heap: number[] = [];
  readonly #keys: Float64Array;
  readonly #sequences: Int32Array;
  readonly #positions: Int32Array;

  constructor(limit: number, seed: number) {
    invariant(Number.isSafeInteger(limit) && limit >= 1, `a sample of ${limit} rows`);
    this.limit = limit;
    this.seed = seed;
    this.#keys = new Float64Array(limit);
    this.#sequences = new Int32Array(limit);
    this.#positions = new Int32Array(limit);
  }

  /** Rows kept so far. */
  get size(): number {
    return this.#heap.length;
  }

  /** Takes rows `first`, `first` + 1, ... of a sequence: `data` is [rows, channels]. Each place must come once only. */
  observe(data: Float32Array, channels: number, sequence: number, first: number): void {
    invariant(channels > 0 && data.length % channels === 0, `${data.length} numbers are no rows of ${channels}`);
    for (let row = 0; row * channels < data.length; row++) {
      this.#offer(data, row * channels, channels, sequence, first + row);
    }
  }

  /** Adds the rows of another sample of the same seed and value. */
  merge(other: RowSample): void {
    invariant(
      other.seed === this.seed && other.limit === this.limit,
      "samples of another seed or size cannot be merged",
    );
    for (const slot of other.#heap) {
      this.#offer(
        other.#data,
        slot * other.#channels,
        other.#channels,
        other.#sequences[slot]!,
        other.#positions[slot]!,
      );
    }
  }

  rows(): SampledRows {
    const slots = [...this.#heap].sort(
      (a, b) => this.#sequences[a]! - this.#sequences[b]! || this.#positions[a]! - this.#positions[b]!,
    );
    const channels = this.#channels;
    const data = new Float32Array(slots.length * channels);
    slots.forEach((slot, row) => data.set(this.#data.subarray(slot * channels, (slot + 1) * channels), row * channels));
    return {
      rows: slots.length,
      channels,
      data,
      sequences: Int32Array.from(slots, (slot) => this.#sequences[slot]!),
      positions: Int32Array.from(slots, (slot) => this.#positions[slot]!),
    };
  }

  #offer(data: Float32Array, at: number, channels: number, sequence: number, position: number): void {
    const key = rowKey(this.seed, sequence, position);
    const full = this.#heap.length === this.limit;
    if (full && !this.#isBefore(key, sequence, position, this.#heap[0]!)) return;
    if (this.#channels === 0) {
      this.#channels = channels;
      this.#data = new Float32Array(this.limit * channels);
    }
    invariant(channels === this.#channels, `a value has ${this.#channels} channels, then ${channels}`);
    const slot = full ? this.#heap[0]! : this.#heap.length;
    this.#keys[slot] = key;
    this.#sequences[slot] = sequence;
    this.#positions[slot] = position;
    this.#data.set(data.subarray(at, at + channels), slot * channels);
    if (full) this.#sink();
    else this.#rise(slot);
  }

  #isBefore(key: number, sequence: number, position: number, slot: number): boolean {
    if (key !== this.#keys[slot]!) return key < this.#keys[slot]!;
    if (sequence !== this.#sequences[slot]!) return sequence < this.#sequences[slot]!;
    return position < this.#positions[slot]!;
  }

  #isAbove(a: number, b: number): boolean {
    return this.#isBefore(this.#keys[b]!, this.#sequences[b]!, this.#positions[b]!, a);
  }

  #rise(slot: number): void {
    const heap = this.#heap;
    let at = heap.push(slot) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#isAbove(heap[at]!, heap[parent]!)) return;
      [heap[at], heap[parent]] = [heap[parent]!, heap[at]!];
      at = parent;
    }
  }

  #sink(): void {
    const heap = this.#heap;
    for (let at = 0; ; ) {
      let top = at;
      for (const child of [2 * at + 1, 2 * at + 2]) {
        if (child < heap.length && this.#isAbove(heap[child]!, heap[top]!)) top = child;
      }
      if (top === at) return;
      [heap[at], heap[top]] = [heap[top]!, heap[at]!];
      at = top;
    }
  }
}

/** A number in [0, 2^53) that looks random and depends on its arguments only. */
function rowKey(seed: number, sequence: number, position: number): number {
  const high = mix(mix(mix(seed ^ 0x5bd1e995) ^ sequence) ^ position);
  const low = mix(mix(mix(seed ^ 0x27d4eb2f) ^ sequence) ^ position);
  return (high >>> 11) * 2 ** 32 + (low >>> 0);
}

/** Murmur3's finaliser: every bit of the argument changes about half of the result's. */
function mix(value: number): number {
  let h = value | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}
