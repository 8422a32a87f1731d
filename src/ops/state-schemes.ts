/**
 * Ways to quantize a recurrent state, for comparing their quality. Only `dsq` with 8 or 4 bits, order 'channel', and
 * (mean, gamma 1/2) or (max, gamma 1) has operators; the others are the baselines it is judged against.
 *
 * All scales are halves, rounded before use; codes are round-half-even, clamped to +-(2^(bits-1) - 1).
 */

import { roundHalfEven } from "../ir/tensor.js";
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

/** Rounds heads in place by a scheme. */
export function schemeRounding(scheme: StateScheme): HeadRounding {
  const qmax = 2 ** (scheme.bits - 1) - 1;
  return (state, offset, headDim, dState) => {
    const head = state.subarray(offset, offset + headDim * dState);
    const scale = schemeScale(scheme, head, offset / head.length, headDim, dState);
    for (let p = 0; p < headDim; p++) {
      for (let n = 0; n < dState; n++) {
        const step = scale(p, n) / qmax;
        const code = step > 0 ? roundHalfEven(head[p * dState + n]! / step) : 0;
        head[p * dState + n] = Math.min(Math.max(code, -qmax), qmax) * step;
      }
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

type ScaleAt = (p: number, n: number) => number;

function schemeScale(scheme: StateScheme, head: Float64Array, index: number, headDim: number, dState: number): ScaleAt {
  switch (scheme.kind) {
    case "tensor": {
      const scale = peak(head);
      return () => scale;
    }
    case "channel": {
      const scales = rowsOf(head, headDim, dState).map(peak);
      return (p) => scales[p]!;
    }
    case "state": {
      const scales = columnsOf(head, headDim, dState).map(peak);
      return (_p, n) => scales[n]!;
    }
    case "group": {
      const { size } = scheme;
      const count = Math.ceil(dState / size);
      const scales = rowsOf(head, headDim, dState).flatMap((row) =>
        Array.from({ length: count }, (_, group) => peak(row.subarray(group * size, (group + 1) * size))),
      );
      return (p, n) => scales[p * count + Math.floor(n / size)]!;
    }
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

function outer(scale: RankOneScale): ScaleAt {
  return (p, n) => scale.channel[p]! * scale.state[n]!;
}

function rowsOf(head: Float64Array, headDim: number, dState: number): Float64Array[] {
  return Array.from({ length: headDim }, (_, p) => head.subarray(p * dState, (p + 1) * dState));
}

function columnsOf(head: Float64Array, headDim: number, dState: number): Float64Array[] {
  return Array.from({ length: dState }, (_, n) =>
    Float64Array.from({ length: headDim }, (_v, p) => head[p * dState + n]!),
  );
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
  const lines = byRow ? rowsOf(head, headDim, dState) : columnsOf(head, headDim, dState);
  const first = Float64Array.from(lines, (line) => {
    let norm = 0;
    for (const value of line) {
      norm = rule.norm === "mean" ? norm + Math.abs(value) / line.length : Math.max(norm, Math.abs(value));
    }
    return roundToHalf(Math.min(Math.max(norm ** rule.gamma, MIN_CHANNEL_SCALE), MAX_HALF));
  });
  const second = new Float64Array(byRow ? dState : headDim);
  lines.forEach((line, i) => {
    for (let j = 0; j < line.length; j++) second[j] = Math.max(second[j]!, Math.abs(line[j]!) / first[i]!);
  });
  for (let j = 0; j < second.length; j++) second[j] = roundToHalf(Math.min(second[j]!, MAX_HALF));
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
