/**
 * Ways to quantize a recurrent state, for comparing their quality. Only `dsq` with 8 or 4 bits, order 'channel', and
 * (mean, gamma 1/2) or (max, gamma 1) has operators; the others are the baselines it is judged against.
 *
 * All scales are halves, rounded before use; codes are round-half-even, clamped to +-(2^(bits-1) - 1).
 */

import { assertNever, invariant } from "../support/errors.js";
import { MAX_HALF, MIN_CHANNEL_SCALE, roundToHalf } from "./packed-state.js";
import type { HeadRounding } from "./reference.js";

export type StateScheme = { readonly bits: number } & (
  | { readonly kind: "tensor" }
  /** One scale for each of the P rows. */
  | { readonly kind: "channel" }
  /** One scale for each of the N columns. */
  | { readonly kind: "state" }
  /** One scale for every `size` values along N of each row. */
  | { readonly kind: "group"; readonly size: number }
  | {
      readonly kind: "dsq";
      readonly norm: "mean" | "max";
      /** Exponent of the norm. */
      readonly gamma: number;
      /** Which scale comes first, from the norm; the other is the largest ratio. */
      readonly order: "channel" | "state";
    }
  /** Scales from calibration, one entry a head. */
  | { readonly kind: "static"; readonly heads: readonly RankOneScale[] }
);

export interface RankOneScale {
  /** [P] */
  readonly channel: Float64Array;
  /** [N] */
  readonly state: Float64Array;
}

/** Float64 numbers near it are whole. */
const NO_FRACTIONS = 1.5 * 2 ** 52;

/** Rounds heads in place by a scheme. */
export function schemeRounding(scheme: StateScheme): HeadRounding {
  const qmax = 2 ** (scheme.bits - 1) - 1;
  return (state, offset, headDim, dState) => {
    const head = state.subarray(offset, offset + headDim * dState);
    const scales = schemeScales(scheme, head, offset / head.length, headDim, dState);
    for (let i = 0; i < head.length; i++) {
      const step = scales[i]! / qmax;
      // Adding and taking away a number without room for fractions rounds half to even.
      const code = step > 0 ? head[i]! / step + NO_FRACTIONS - NO_FRACTIONS : 0;
      head[i] = Math.min(Math.max(code, -qmax), qmax) * step;
    }
  };
}

/** Bytes of one stored head: codes and half scales (static scales are not stored with the state). */
export function schemeBytes(scheme: StateScheme, headDim: number, dState: number): number {
  const codes = Math.ceil((headDim * dState * scheme.bits) / 8);
  switch (scheme.kind) {
    case "tensor":
      return codes + 2;
    case "channel":
      return codes + 2 * headDim;
    case "state":
      return codes + 2 * dState;
    case "group":
      return codes + 2 * headDim * Math.ceil(dState / scheme.size);
    case "dsq":
      return codes + 2 * (headDim + dState);
    case "static":
      return codes;
    default:
      return assertNever(scheme);
  }
}

/** The scale of each value of a head, [P, N]. */
function schemeScales(
  scheme: StateScheme,
  head: Float64Array,
  index: number,
  headDim: number,
  dState: number,
): Float64Array {
  switch (scheme.kind) {
    case "tensor":
      return new Float64Array(head.length).fill(peak(head));
    case "channel":
      return groupScales(head, headDim, dState, dState);
    case "state":
      return columnScales(head, dState);
    case "group":
      return groupScales(head, headDim, dState, scheme.size);
    case "dsq":
      return outer(decoupledScales(head, headDim, dState, scheme));
    case "static": {
      const scales = scheme.heads[index % scheme.heads.length];
      invariant(scales !== undefined, "schemeRounding: a static scheme needs the scales of a head");
      return outer(scales);
    }
    default:
      return assertNever(scheme);
  }
}

function outer({ channel, state }: RankOneScale): Float64Array {
  const out = new Float64Array(channel.length * state.length);
  for (let p = 0; p < channel.length; p++) {
    for (let n = 0; n < state.length; n++) out[p * state.length + n] = channel[p]! * state[n]!;
  }
  return out;
}

/** One scale for every `size` values of a row; the last group of a row may be shorter. */
function groupScales(head: Float64Array, headDim: number, dState: number, size: number): Float64Array {
  const out = new Float64Array(head.length);
  for (let p = 0; p < headDim; p++) {
    for (let n = 0; n < dState; n += size) {
      const [from, to] = [p * dState + n, p * dState + Math.min(n + size, dState)];
      out.fill(peak(head.subarray(from, to)), from, to);
    }
  }
  return out;
}

/** One scale a column. */
function columnScales(head: Float64Array, dState: number): Float64Array {
  const peaks = new Float64Array(dState);
  for (let i = 0; i < head.length; i++) peaks[i % dState] = Math.max(peaks[i % dState]!, Math.abs(head[i]!));
  const out = new Float64Array(head.length);
  for (let n = 0; n < dState; n++) peaks[n] = roundToHalf(Math.min(peaks[n]!, MAX_HALF));
  for (let i = 0; i < out.length; i++) out[i] = peaks[i % dState]!;
  return out;
}

/** Largest magnitude, as a half. */
function peak(values: Float64Array): number {
  let max = 0;
  for (const value of values) max = Math.max(max, Math.abs(value));
  return roundToHalf(Math.min(max, MAX_HALF));
}

/** Decoupled scales of one head (Q-Mamba): a norm for one axis, the largest remaining ratio for the other. */
function decoupledScales(
  head: Float64Array,
  headDim: number,
  dState: number,
  rule: { readonly norm: "mean" | "max"; readonly gamma: number; readonly order: "channel" | "state" },
): RankOneScale {
  const byRow = rule.order === "channel";
  const [count, length] = byRow ? [headDim, dState] : [dState, headDim];
  const [across, along] = byRow ? [dState, 1] : [1, dState];
  const first = new Float64Array(count);
  const second = new Float64Array(length);
  for (let i = 0; i < count; i++) {
    let norm = 0;
    for (let j = 0; j < length; j++) {
      const magnitude = Math.abs(head[i * across + j * along]!);
      norm = rule.norm === "mean" ? norm + magnitude / length : Math.max(norm, magnitude);
    }
    first[i] = roundToHalf(Math.min(Math.max(norm ** rule.gamma, MIN_CHANNEL_SCALE), MAX_HALF));
    for (let j = 0; j < length; j++) {
      second[j] = Math.max(second[j]!, Math.abs(head[i * across + j * along]!) / first[i]!);
    }
  }
  for (let j = 0; j < length; j++) second[j] = roundToHalf(Math.min(second[j]!, MAX_HALF));
  return byRow ? { channel: first, state: second } : { channel: second, state: first };
}

/**
 * Static scales from the largest magnitudes seen in calibration, [heads, P, N]: one decoupled pair a head, such that no
 * calibrated value is clipped by more than the rounding of a half.
 */
export function staticScales(
  magnitudes: Float64Array,
  heads: number,
  headDim: number,
  dState: number,
): readonly RankOneScale[] {
  invariant(magnitudes.length === heads * headDim * dState, "staticScales: magnitudes do not fit the sizes");
  const size = headDim * dState;
  return Array.from({ length: heads }, (_, head) =>
    decoupledScales(magnitudes.subarray(head * size, (head + 1) * size), headDim, dState, {
      norm: "mean",
      gamma: 0.5,
      order: "channel",
    }),
  );
}
