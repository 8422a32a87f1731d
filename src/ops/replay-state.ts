/**
 * The bytes of a replay state in float64: a packed checkpoint and the tokens since then, as `runtime-ops/README.md` lays
 * them out. One sequence at a time.
 */

import { float16ToNumber, numberToFloat16 } from "../ir/tensor.js";
import { invariant } from "../support/errors.js";
import { type ReplayDims, replayLayout } from "./names.js";

/** What a token leaves in the rings, as the stored values. */
export interface ReplayToken {
  /** d * x as halves, [H, P]. */
  readonly u: Float64Array;
  /** d * A as float32, [H]. */
  readonly l: Float64Array;
  /** B as halves, [G, N]. */
  readonly b: Float64Array;
}

/** The state of one sequence. */
export interface ReplayState {
  /** H packed heads. */
  readonly checkpoint: Uint8Array;
  /** Tokens since the checkpoint, oldest first; fewer than R. */
  readonly tokens: readonly ReplayToken[];
}

/** Reads the state of one sequence. */
export function readReplay(bytes: Uint8Array, format: "h8" | "h4", dims: ReplayDims): ReplayState {
  const layout = replayLayout(format, dims);
  invariant(bytes.byteLength === layout.bytes, `readReplay: ${bytes.byteLength} bytes instead of ${layout.bytes}`);
  const { heads, headDim, dState, groups, replayLength } = dims;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const count = view.getUint32(layout.count, true);
  invariant(count < replayLength, `readReplay: ${count} tokens in rings of ${replayLength}`);
  const half = (at: number): number => float16ToNumber(view.getUint16(at, true));
  const tokens = Array.from({ length: count }, (_, j): ReplayToken => {
    const u = new Float64Array(heads * headDim);
    const l = new Float64Array(heads);
    const b = new Float64Array(groups * dState);
    for (let h = 0; h < heads; h++) {
      const slot = h * replayLength + j;
      for (let p = 0; p < headDim; p++) u[h * headDim + p] = half(layout.u + 2 * (slot * headDim + p));
      l[h] = view.getFloat32(layout.l + 4 * slot, true);
    }
    for (let g = 0; g < groups; g++) {
      const slot = g * replayLength + j;
      for (let n = 0; n < dState; n++) b[g * dState + n] = half(layout.b + 2 * (slot * dState + n));
    }
    return { u, l, b };
  });
  return { checkpoint: bytes.slice(0, layout.u), tokens };
}

/** Writes the state of one sequence; slots without a token, and the padding, are zero bytes. */
export function writeReplay(state: ReplayState, format: "h8" | "h4", dims: ReplayDims): Uint8Array {
  const layout = replayLayout(format, dims);
  const { heads, headDim, dState, groups, replayLength } = dims;
  invariant(
    state.tokens.length < replayLength,
    `writeReplay: ${state.tokens.length} tokens in rings of ${replayLength}`,
  );
  const bytes = new Uint8Array(layout.bytes);
  const view = new DataView(bytes.buffer);
  bytes.set(state.checkpoint);
  view.setUint32(layout.count, state.tokens.length, true);
  for (const [j, { u, l, b }] of state.tokens.entries()) {
    for (let h = 0; h < heads; h++) {
      const slot = h * replayLength + j;
      for (let p = 0; p < headDim; p++) {
        view.setUint16(layout.u + 2 * (slot * headDim + p), numberToFloat16(u[h * headDim + p]!), true);
      }
      view.setFloat32(layout.l + 4 * slot, l[h]!, true);
    }
    for (let g = 0; g < groups; g++) {
      const slot = g * replayLength + j;
      for (let n = 0; n < dState; n++) {
        view.setUint16(layout.b + 2 * (slot * dState + n), numberToFloat16(b[g * dState + n]!), true);
      }
    }
  }
  return bytes;
}
