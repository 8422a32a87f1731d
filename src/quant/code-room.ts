/**
 * Memory that is used again for the codes of one weight after the other. Fresh memory for each costs more time than rounding
 * does: the system clears it, and the host looks for garbage more often.
 */

/** Larger memory is not kept. */
const KEPT_BYTES = 1 << 27;

export class CodeRoom {
  readonly #kept = new Map<string, Uint8Array>();

  /** `length` bytes at the start of a buffer, holding anything. They are overwritten once the same use asks again. */
  take(use: "codes" | "packed" | "turned", length: number): Uint8Array {
    const kept = this.#kept.get(use);
    if (kept !== undefined && kept.length >= length) return kept.subarray(0, length);
    const fresh = new Uint8Array(length);
    if (length <= KEPT_BYTES) this.#kept.set(use, fresh);
    return fresh;
  }
}
