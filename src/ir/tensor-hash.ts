/** Short content hash of tensors, for dumps: it tells weights apart, it proves nothing. */

import type { Tensor } from "./tensor.js";

/** Bytes hashed at a time, so that weights in files need not fit in memory. */
const STEP = 1 << 22;

/**
 * FNV-1a over the raw data, as an unsigned 32-bit number. Equal data have equal hashes whatever their residence. String
 * tensors have no raw data and are refused by `slice`.
 */
export function bytesHash(tensor: Tensor): number {
  let hash = 0x811c9dc5;
  // A lazy tensor computes anew on every call, so it is asked once.
  const step = tensor.residence === "file" ? STEP : Math.max(1, tensor.byteLength);
  for (let start = 0; start < tensor.byteLength; start += step) {
    for (const byte of tensor.slice(start, Math.min(tensor.byteLength, start + step))) {
      hash = Math.imul(hash ^ byte, 0x01000193);
    }
  }
  return hash >>> 0;
}
