/** The replay scan of `runtime-ops/README.md` in float64, token by token. */

import { invariant } from "../support/errors.js";
import { isPacked, type ReplayDims, replayLayout, type StateFormat } from "./names.js";
import { MAX_HALF, type MeasuredScale, packState, roundToHalf, unpackState } from "./packed-state.js";
import { type ReplayState, type ReplayToken, readReplay, writeReplay } from "./replay-state.js";

type Numbers = Float32Array | Float64Array;

export interface ReplayArguments extends ReplayDims {
  readonly batch: number;
  readonly length: number;
  readonly format: StateFormat;
  readonly scale: MeasuredScale;
  /** [B,L,H,P]. */
  readonly x: Numbers;
  /** After bias, softplus and bounds: [B,L,H]. */
  readonly steps: Numbers;
  /** [H]. */
  readonly A: Numbers;
  /** [B,L,G,N]. */
  readonly B: Numbers;
  /** [B,L,G,N]. */
  readonly C: Numbers;
  /** [H,P] or null. */
  readonly D: Numbers | null;
  /** [B, S] bytes, or null for the zero state. */
  readonly past: Uint8Array | null;
}

/**
 * Runs the recurrence. `state` is h [B,H,P,N] after the last token and, where that was the R-th, after rounding. Values
 * that a ring stores have their stored precision from the start, so a call may end anywhere.
 */
export function replayScanReference(args: ReplayArguments): {
  readonly y: Float64Array;
  readonly state: Float64Array;
  readonly packed: Uint8Array;
} {
  const { batch, length, heads, headDim, dState, groups, replayLength, format, scale } = args;
  invariant(isPacked(format), "replayScanReference: only packed states are replayed");
  const stride = replayLayout(format, args).bytes;
  invariant(args.past === null || args.past.length === batch * stride, "replayScanReference: past does not fit");
  const past = args.past ?? new Uint8Array(batch * stride);
  const y = new Float64Array(batch * length * heads * headDim);
  const state = new Float64Array(batch * heads * headDim * dState);
  const packed = new Uint8Array(batch * stride);
  for (let sequence = 0; sequence < batch; sequence++) {
    const before: ReplayState = readReplay(past.slice(sequence * stride, (sequence + 1) * stride), format, args);
    let { checkpoint } = before;
    let tokens = [...before.tokens];
    let h = unpackState(checkpoint, args, format);
    for (const token of tokens) advance(h, token, args);
    for (let t = 0; t < length; t++) {
      const at = sequence * length + t;
      const token = tokenOf(args, at);
      advance(h, token, args);
      const C = args.C.subarray(at * groups * dState, (at + 1) * groups * dState);
      const x = args.x.subarray(at * heads * headDim, (at + 1) * heads * headDim);
      y.set(read(h, C, x, args), at * heads * headDim);
      tokens.push(token);
      if (tokens.length === replayLength) {
        checkpoint = packState(h, args, format, scale);
        h = unpackState(checkpoint, args, format);
        tokens = [];
      }
    }
    state.set(h, sequence * h.length);
    packed.set(writeReplay({ checkpoint, tokens }, format, args), sequence * stride);
  }
  return { y, state, packed };
}

/** What token number `at` of the batch brings: products of float32 numbers are float32 numbers before they are rounded. */
function tokenOf(args: ReplayArguments, at: number): ReplayToken {
  const { heads, headDim, dState, groups } = args;
  const d = (h: number): number => Math.fround(args.steps[at * heads + h]!);
  return {
    u: Float64Array.from({ length: heads * headDim }, (_, row) =>
      storedHalf(Math.fround(d(Math.floor(row / headDim)) * args.x[at * heads * headDim + row]!)),
    ),
    l: Float64Array.from({ length: heads }, (_, h) => Math.fround(d(h) * args.A[h]!)),
    b: Float64Array.from({ length: groups * dState }, (_, i) => storedHalf(args.B[at * groups * dState + i]!)),
  };
}

function storedHalf(value: number): number {
  return roundToHalf(Math.min(Math.max(value, -MAX_HALF), MAX_HALF));
}

/** h = exp(l) h + u outer b. */
function advance(h: Float64Array, { u, l, b }: ReplayToken, { heads, headDim, dState, groups }: ReplayDims): void {
  for (let row = 0; row < heads * headDim; row++) {
    const head = Math.floor(row / headDim);
    const group = Math.floor(head / (heads / groups));
    const decay = Math.exp(l[head]!);
    for (let n = 0; n < dState; n++) {
      h[row * dState + n] = decay * h[row * dState + n]! + u[row]! * b[group * dState + n]!;
    }
  }
}

/** y = h C + D x of one token. */
function read(h: Float64Array, C: Numbers, x: Numbers, args: ReplayArguments): Float64Array {
  const { heads, headDim, dState, groups, D } = args;
  return Float64Array.from({ length: heads * headDim }, (_, row) => {
    const group = Math.floor(Math.floor(row / headDim) / (heads / groups));
    let sum = D === null ? 0 : D[row]! * x[row]!;
    for (let n = 0; n < dState; n++) sum += h[row * dState + n]! * C[group * dState + n]!;
    return sum;
  });
}
