/** Logits of one model on the windows of a text, kept so that many models can be compared with it. */

import { invariant } from "../support/errors.js";

/** Rows of one vocabulary, by window and position. Float32, so nothing is lost. */
export class RecordedLogits {
  readonly windows: number;
  readonly window: number;
  #vocabulary = 0;
  #rows: Float32Array | null = null;

  /** `window` is the number of predictions of each of the `windows`. */
  constructor(windows: number, window: number) {
    this.windows = windows;
    this.window = window;
  }

  /** Bytes that so many logits take. */
  static bytes(windows: number, window: number, vocabulary: number): number {
    return 4 * windows * window * vocabulary;
  }

  add(window: number, position: number, row: Float32Array): void {
    if (this.#rows === null) {
      this.#vocabulary = row.length;
      this.#rows = new Float32Array(this.windows * this.window * row.length);
    }
    this.#rows.set(row, this.#at(window, position));
  }

  /** A view; callers must not write to it. */
  row(window: number, position: number): Float32Array {
    invariant(this.#rows !== null, "no logits were recorded");
    const at = this.#at(window, position);
    return this.#rows.subarray(at, at + this.#vocabulary);
  }

  #at(window: number, position: number): number {
    invariant(window < this.windows && position < this.window, "logits of another text");
    return (window * this.window + position) * this.#vocabulary;
  }
}
