/** Rounding float32 to IEEE halves, and what it loses. */

/** Largest finite half, and the largest magnitude that rounds to zero. */
export const MAX_HALF = 65504;
const MOST_ZEROED: number = 2 ** -25;
/** Below this a half has fewer than eleven bits. */
const LEAST_NORMAL: number = 2 ** -14;

/** What rounding to halves does to values. */
export interface HalfLoss {
  readonly values: number;
  /** Nonzero values that become zero. */
  readonly zeroed: number;
  /** Values that keep fewer than eleven bits, without those that become zero. */
  readonly subnormal: number;
  /** The first value that is beyond halves, or no number; null where there is none. */
  readonly beyond: number | null;
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
      one[0]! += 0.5;
      out[i] = sign | (bitsOfOne[0] - 0x3f000000);
    }
  }
}

/** Counts what rounding would lose. */
export function halfLossOf(floats: Float32Array): HalfLoss {
  let [zeroed, subnormal] = [0, 0];
  let beyond: number | null = null;
  for (let i = 0; i < floats.length; i++) {
    const magnitude = Math.abs(floats[i]!);
    if (magnitude >= LEAST_NORMAL && magnitude <= MAX_HALF) continue;
    if (!(magnitude <= MAX_HALF)) beyond ??= floats[i]!;
    else if (magnitude > MOST_ZEROED) subnormal += 1;
    else if (magnitude > 0) zeroed += 1;
  }
  return { values: floats.length, zeroed, subnormal, beyond };
}
