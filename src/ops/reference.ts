/**
 * The recurrences of `runtime-ops/README.md` in float64: the judge of graphs, function bodies and kernels.
 *
 * A state is a list of rows of N values: row h * P + p for Mamba-2, row e for Mamba-1. In that view the families differ
 * only in which dt and which A a row reads.
 */

import { float16ToNumber, numberToFloat16 } from "../ir/tensor.js";
import { invariant } from "../support/errors.js";
import {
  DEFAULT_REPLAY_LENGTH,
  isPacked,
  packedHeadBytes,
  type Requantize,
  type StateFormat,
  type StateScale,
} from "./names.js";
import { packHead, unpackHead, unpackState } from "./packed-state.js";
import { replayScanReference } from "./replay-reference.js";
import { packStaticHead, unpackStaticHead } from "./static-state.js";

type Numbers = Float32Array | Float64Array;

/** Rounds one head h [headDim, dState], starting at `offset` of `state`, in place. */
export type HeadRounding = (state: Float64Array, offset: number, headDim: number, dState: number) => void;

interface ScanArguments {
  readonly batch: number;
  readonly length: number;
  /** Mamba-2: P. Mamba-1: the pseudo-head size, which only packed formats and `rounding` read; divides `channels`. */
  readonly headDim: number;
  readonly dState: number;
  readonly groups: number;
  /** Mamba-2 [B,L,H,P]; Mamba-1 [B,L,E]. */
  readonly x: Numbers;
  /** Before bias and softplus. Mamba-2 [B,L,H]; Mamba-1 [B,L,E]. */
  readonly dt: Numbers;
  /** Negative. Mamba-2 [H]; Mamba-1 [E,N]. */
  readonly A: Numbers;
  /** [B,L,G,N]. */
  readonly B: Numbers;
  /** [B,L,G,N]. */
  readonly C: Numbers;
  /** Mamba-2 [H,P]; Mamba-1 [E]; null for none. */
  readonly D: Numbers | null;
  /** Mamba-2 [H]; Mamba-1 [E]; null for none. */
  readonly dtBias: Numbers | null;
  /** Default -Infinity. */
  readonly dtMin?: number;
  /** Default +Infinity. */
  readonly dtMax?: number;
  /** Values, or packed bytes of an h8 / h4 state; null for the zero state. */
  readonly past: Numbers | Uint8Array | null;
  /** Steps of rows [H,P] and of columns [G,N]; read with static scales only. */
  readonly rowStep?: Numbers;
  readonly columnStep?: Numbers;
  /** Default 'f32', which rounds nothing here. */
  readonly format?: StateFormat;
  /** Default 'dsq'. */
  readonly scale?: StateScale;
  /** Default 'call'. */
  readonly requantize?: Requantize;
  /** R of a replay state; default 16. */
  readonly replayLength?: number;
  /** Rounding to use instead of `format`, for comparing schemes that no operator has. */
  readonly rounding?: HeadRounding;
}

export type SelectiveScanArguments = ScanArguments &
  (
    | { readonly family: "mamba2"; readonly heads: number }
    /** E channels, each with its own dt and its own row of A. */
    | { readonly family: "mamba1"; readonly channels: number }
  );

export interface SelectiveScanResult {
  /** Same shape as x. */
  readonly y: Float64Array;
  /** Mamba-2 [B,H,P,N]; Mamba-1 [B,E,N]: what the next call starts from, so after rounding to the format. */
  readonly state: Float64Array;
  /** For h8 and h4: the state's bytes, [B, heads, bytes], or [B, S] of a replay state. */
  readonly packed?: Uint8Array;
}

/** Runs the recurrence; the contract is in `runtime-ops/README.md`. */
export function selectiveScanReference(args: SelectiveScanArguments): SelectiveScanResult {
  const { batch, length, headDim, dState, groups } = args;
  const rows = args.family === "mamba2" ? args.heads * headDim : args.channels;
  const heads = rows / headDim;
  invariant(Number.isInteger(heads) && rows % groups === 0, "selectiveScanReference: sizes do not divide");
  invariant(args.x.length === batch * length * rows, "selectiveScanReference: x does not fit its sizes");
  invariant(args.B.length === batch * length * groups * dState, "selectiveScanReference: B does not fit its sizes");
  const rowsPerStep = args.family === "mamba2" ? headDim : 1;
  const steps = stepSizes(args, rows / rowsPerStep);
  if (args.requantize === "replay") return replayed(args, heads, steps);
  const { state, head } = startState(args, heads);
  const y = new Float64Array(batch * length * rows);
  const span = args.requantize === "token" ? 1 : length;
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const offset = (b * heads + h) * headDim * dState;
      for (let start = 0; start < length; start += span) {
        for (let p = 0; p < headDim; p++) {
          const row = h * headDim + p;
          const group = Math.floor(row / (rows / groups));
          advanceRow(args, steps, state, y, { b, row, rows, rowsPerStep, group, start, end: start + span });
        }
        head.round(offset, b * heads + h);
      }
    }
  }
  return head.packed === undefined ? { y, state } : { y, state, packed: head.packed };
}

function replayed(args: SelectiveScanArguments, heads: number, steps: Float64Array): SelectiveScanResult {
  const { past, format = "f32", scale = "dsq", replayLength = DEFAULT_REPLAY_LENGTH, rounding } = args;
  invariant(
    args.family === "mamba2" && rounding === undefined && scale !== "static",
    "selectiveScanReference: only Mamba-2 has replay states, and they measure their scales",
  );
  invariant(past === null || past instanceof Uint8Array, "selectiveScanReference: a replay state is bytes");
  return replayScanReference({ ...args, heads, steps, past, format, scale, replayLength });
}

interface RowSpan {
  readonly b: number;
  readonly row: number;
  readonly rows: number;
  readonly rowsPerStep: number;
  readonly group: number;
  readonly start: number;
  readonly end: number;
}

function advanceRow(
  args: SelectiveScanArguments,
  steps: Float64Array,
  state: Float64Array,
  y: Float64Array,
  span: RowSpan,
): void {
  const { length, dState, groups, x, A, B, C } = args;
  const { b, row, rows, rowsPerStep, group } = span;
  const at = (b * rows + row) * dState;
  const stepCount = rows / rowsPerStep;
  const step = Math.floor(row / rowsPerStep);
  const skip = args.D === null ? 0 : args.D[row]!;
  const shared = args.family === "mamba2";
  for (let t = span.start; t < span.end; t++) {
    const token = b * length + t;
    const d = steps[token * stepCount + step]!;
    const input = x[token * rows + row]!;
    const fed = d * input;
    const vectors = (token * groups + group) * dState;
    let sum = 0;
    if (shared) {
      const decay = Math.exp(d * A[step]!);
      for (let n = 0; n < dState; n++) {
        const value = decay * state[at + n]! + fed * B[vectors + n]!;
        state[at + n] = value;
        sum += value * C[vectors + n]!;
      }
    } else {
      for (let n = 0; n < dState; n++) {
        const value = Math.exp(d * A[row * dState + n]!) * state[at + n]! + fed * B[vectors + n]!;
        state[at + n] = value;
        sum += value * C[vectors + n]!;
      }
    }
    y[token * rows + row] = sum + skip * input;
  }
}

/** d = clip(softplus(dt + dt_bias)), same layout as dt. */
function stepSizes(args: SelectiveScanArguments, width: number): Float64Array {
  const { batch, length, dt, dtBias } = args;
  invariant(dt.length === batch * length * width, "selectiveScanReference: dt does not fit its sizes");
  const low = args.dtMin ?? Number.NEGATIVE_INFINITY;
  const high = args.dtMax ?? Number.POSITIVE_INFINITY;
  const out = new Float64Array(dt.length);
  for (let i = 0; i < dt.length; i++) {
    const value = dt[i]! + (dtBias === null ? 0 : dtBias[i % width]!);
    out[i] = Math.min(Math.max(softplus(value), low), high);
  }
  return out;
}

/** log(1 + exp(v)) without overflow. */
export function softplus(value: number): number {
  return Math.max(value, 0) + Math.log1p(Math.exp(-Math.abs(value)));
}

interface HeadRounder {
  readonly packed?: Uint8Array;
  round(offset: number, index: number): void;
}

function startState(args: SelectiveScanArguments, heads: number): { state: Float64Array; head: HeadRounder } {
  const { batch, headDim, dState, past } = args;
  const format = args.format ?? "f32";
  const count = batch * heads * headDim * dState;
  let state = new Float64Array(count);
  const frozen = frozenCodec(args, heads);
  if (past instanceof Uint8Array) {
    invariant(isPacked(format), "selectiveScanReference: bytes given for a state that is not packed");
    if (frozen !== null) frozen.unpack(past, state);
    else state = new Float64Array(unpackState(past, { heads: batch * heads, headDim, dState }, format));
  } else if (past !== null) {
    invariant(past.length === count, "selectiveScanReference: past does not fit its sizes");
    state.set(past);
  }
  const { rounding } = args;
  if (rounding !== undefined) return { state, head: { round: (offset) => rounding(state, offset, headDim, dState) } };
  if (frozen !== null) return { state, head: frozen.rounder(state) };
  if (isPacked(format)) {
    const stride = packedHeadBytes(format, headDim, dState);
    const { scale = "dsq" } = args;
    invariant(scale !== "static", "selectiveScanReference: static scales without steps");
    const packed = new Uint8Array(batch * heads * stride);
    const round = (offset: number, index: number): void => {
      const view = state.subarray(offset, offset + headDim * dState);
      packHead(view, headDim, dState, format, scale, packed, index * stride);
      unpackHead(packed, headDim, dState, format, state, offset, index * stride);
    };
    return { state, head: { packed, round } };
  }
  const round = (offset: number): void => {
    if (format === "f32") return;
    for (let i = offset; i < offset + headDim * dState; i++) state[i] = float16ToNumber(numberToFloat16(state[i]!));
  };
  return { state, head: { round } };
}

interface FrozenCodec {
  unpack(bytes: Uint8Array, state: Float64Array): void;
  rounder(state: Float64Array): HeadRounder;
}

/** Packed states with given steps; null for every other. */
function frozenCodec(args: SelectiveScanArguments, heads: number): FrozenCodec | null {
  const { format = "f32", headDim, dState, groups, rowStep, columnStep, batch } = args;
  if (!isPacked(format) || args.scale !== "static" || rowStep === undefined || columnStep === undefined) return null;
  invariant(
    args.family === "mamba2" && rowStep.length === heads * headDim && columnStep.length === groups * dState,
    "selectiveScanReference: the steps do not fit their sizes",
  );
  const steps = { heads, groups, headDim, dState, format, rowStep, columnStep };
  return {
    unpack: (bytes, state) => {
      for (let index = 0; index < batch * heads; index++) unpackStaticHead(bytes, steps, index, state);
    },
    rounder: (state) => {
      const packed = new Uint8Array(batch * heads * packedHeadBytes(format, headDim, dState, "static"));
      const round = (offset: number, index: number): void => {
        packStaticHead(state.subarray(offset, offset + headDim * dState), steps, index, packed);
        unpackStaticHead(packed, steps, index, state);
      };
      return { packed, round };
    },
  };
}

/** `CausalConv` and `CausalConvSilu` of the contract. */
export function causalConvReference(args: {
  readonly batch: number;
  readonly channels: number;
  readonly length: number;
  readonly kernelSize: number;
  /** Columns of `past`, at least kernelSize - 1. */
  readonly stateWidth: number;
  readonly activation: "none" | "silu";
  /** [B,E,L]. */
  readonly x: Numbers;
  /** [E,1,K]. */
  readonly weight: Numbers;
  /** [E] or null for none. */
  readonly bias: Numbers | null;
  /** [B,E,W] or null for zeros. */
  readonly past: Numbers | null;
}): { readonly y: Float64Array; readonly state: Float64Array } {
  const { batch, channels, length, kernelSize, stateWidth, x, weight, bias, past } = args;
  invariant(stateWidth >= kernelSize - 1, "causalConvReference: the state is narrower than the kernel");
  const y = new Float64Array(batch * channels * length);
  const state = new Float64Array(batch * channels * stateWidth);
  const stream = new Float64Array(stateWidth + length);
  for (let line = 0; line < batch * channels; line++) {
    const channel = line % channels;
    for (let i = 0; i < stateWidth; i++) stream[i] = past === null ? 0 : past[line * stateWidth + i]!;
    for (let t = 0; t < length; t++) stream[stateWidth + t] = x[line * length + t]!;
    for (let t = 0; t < length; t++) {
      let sum = bias === null ? 0 : bias[channel]!;
      for (let k = 0; k < kernelSize; k++) {
        sum += weight[channel * kernelSize + k]! * stream[stateWidth + t + k - (kernelSize - 1)]!;
      }
      y[line * length + t] = args.activation === "silu" ? sum / (1 + Math.exp(-sum)) : sum;
    }
    state.set(stream.subarray(length), line * stateWidth);
  }
  return { y, state };
}
