/** A look at a few heads of a scan: enough to see that most assignments of roles are wrong. */

import { floatValues, type Tensor } from "../ir/tensor.js";
import { type SelectiveScanArguments, selectiveScanReference } from "../ops/reference.js";
import type { StateLayout } from "./scan-hypotheses.js";

type Numbers = Float32Array | Float64Array;

/**
 * Would the proof of these arguments fail? True only where it surely would: a difference d in one head means an error of at least
 * d / max |reference| in all, and if that were at most 1e-4, max |reference| would be max |actual| to 1e-4. So twice the tolerance
 * on the scale of what the region gave leaves room for both.
 */
export function failsInSample(
  args: SelectiveScanArguments,
  y: Float64Array,
  present: Tensor | null,
  stateLayout: StateLayout,
): boolean {
  if (args.past instanceof Uint8Array) return false;
  const { batch, length, dState } = args;
  const heads = args.family === "mamba2" ? args.heads : args.channels;
  const headDim = args.family === "mamba2" ? args.headDim : 1;
  const rows = heads * headDim;
  if (heads % args.groups !== 0) return false;
  const state = present === null ? null : floatValues(present);
  if (y.length !== batch * length * rows || (state !== null && state.length !== batch * rows * dState)) return false;
  const yLimit = LIMIT * largest(y);
  const states = new Map<number, Float64Array>();
  for (const head of new Set([0, heads >> 1, heads - 1])) {
    const { y: wanted, state: next } = selectiveScanReference(oneHead(args, head, heads, headDim));
    states.set(head, next);
    for (let t = 0; t < length; t++) {
      for (let p = 0; p < headDim; p++) {
        const actual = y[t * rows + head * headDim + p] ?? Number.NaN;
        if (Math.abs(actual - (wanted[t * headDim + p] ?? Number.NaN)) > yLimit) return true;
      }
    }
  }
  if (present === null || state === null) return false;
  const stateLimit = LIMIT * peakOf(present, state);
  for (const [head, next] of states) {
    for (let p = 0; p < headDim; p++) {
      for (let n = 0; n < dState; n++) {
        // [H, P, N] and [H, N, P]; of Mamba-1, with P = 1 here, [E, N].
        const at = stateLayout === "PN" ? p * dState + n : n * headDim + p;
        const actual = state[head * headDim * dState + at] ?? Number.NaN;
        if (Math.abs(actual - (next[p * dState + n] ?? Number.NaN)) > stateLimit) return true;
      }
    }
  }
  return false;
}

const LIMIT = 2e-4;

/** States are large, and many assignments are compared with one. */
const peaks = new WeakMap<Tensor, number>();

function peakOf(tensor: Tensor, values: Numbers): number {
  const known = peaks.get(tensor) ?? largest(values);
  peaks.set(tensor, known);
  return known;
}

function largest(values: Numbers): number {
  let peak = 0;
  for (let i = 0; i < values.length; i++) {
    const size = Math.abs(values[i] ?? 0);
    if (size > peak) peak = size;
  }
  return peak;
}

/** The arguments of one head (one channel of Mamba-1) of the first sequence. */
function oneHead(args: SelectiveScanArguments, head: number, heads: number, headDim: number): SelectiveScanArguments {
  const { length, dState, groups, x, dt, A, B, C, D, dtBias, dtMin, dtMax, past } = args;
  const group = Math.floor(head / (heads / groups));
  /** Columns [at, at + width) of the first rows of a matrix. */
  const columns = (data: Numbers, rows: number, cols: number, at: number, width: number): Float64Array => {
    const out = new Float64Array(rows * width);
    for (let row = 0; row < rows; row++) out.set(data.subarray(row * cols + at, row * cols + at + width), row * width);
    return out;
  };
  const own = (data: Numbers, width: number): Float64Array => columns(data, 1, data.length, head * width, width);
  const wide = headDim * dState;
  return {
    batch: 1,
    length,
    headDim,
    dState,
    groups: 1,
    x: columns(x, length, heads * headDim, head * headDim, headDim),
    dt: columns(dt, length, heads, head, 1),
    A: own(A, args.family === "mamba2" ? 1 : dState),
    B: columns(B, length, groups * dState, group * dState, dState),
    C: columns(C, length, groups * dState, group * dState, dState),
    D: D === null ? null : own(D, headDim),
    dtBias: dtBias === null ? null : own(dtBias, 1),
    past: past === null || past instanceof Uint8Array ? null : own(past, wide),
    ...(dtMin === undefined ? {} : { dtMin }),
    ...(dtMax === undefined ? {} : { dtMax }),
    ...(args.family === "mamba2" ? { family: "mamba2", heads: 1 } : { family: "mamba1", channels: 1 }),
  };
}
