/**
 * The f32 Mamba-2 scan on ONNX Runtime's own `com.microsoft::LinearAttention`: its 'gated' rule with query = C, key = B,
 * value = d x and decay = d A (in log space) is the same recurrence, on a state [B,H,N,P].
 *
 * Mamba-1 has no useful form there: every channel would be a head, with a decay for each channel, state and token in
 * memory; callers refuse it.
 */

import type { GraphBuilder } from "../ir/builder.js";
import { attr } from "../ir/graph.js";
import { softplusOf } from "./step-size.js";

export interface LinearAttentionScan {
  /** x, dt, A, B, C, D, dt_bias, past, as for `Mamba2ScanF32`. */
  readonly inputs: readonly string[];
  /** y, present. */
  readonly outputs: readonly string[];
  readonly heads: number;
  readonly headDim: number;
  readonly dState: number;
  readonly groups: number;
  /** -Infinity for none. */
  readonly dtMin: number;
  /** Infinity for none. */
  readonly dtMax: number;
  /** Layout of past and present: [B,H,P,N] or [B,H,N,P], the second being the operator's own. */
  readonly stateLayout: "PN" | "NP";
}

/** Appends the scan's nodes to a main graph (domain `com.microsoft` version 1 must be imported). */
export function emitLinearAttention(builder: GraphBuilder, scan: LinearAttentionScan): void {
  const [x = "", dt = "", A = "", B = "", C = "", D = "", bias = "", past = ""] = scan.inputs;
  const [y = "", present = ""] = scan.outputs;
  const { heads, headDim, dState, groups } = scan;
  const d = clip(builder, softplusOf(builder, builder.op("Add", [dt, bias])), scan.dtMin, scan.dtMax);
  const fed = builder.op("Mul", [x, builder.op("Unsqueeze", [d, builder.ints([-1])])]);
  const flat = (value: string, width: number): string => builder.op("Reshape", [value, builder.ints([0, 0, width])]);
  const transposed = scan.stateLayout === "PN";
  const swap = { perm: [0, 1, 3, 2] };
  const state = transposed ? builder.op("Transpose", [past], swap) : past;
  const next = transposed ? builder.fresh("state") : present;
  const [read = ""] = builder.ops(
    "LinearAttention",
    [flat(C, groups * dState), flat(B, groups * dState), flat(fed, heads * headDim), state, builder.op("Mul", [d, A])],
    [builder.fresh("read"), next],
    {
      q_num_heads: groups,
      kv_num_heads: heads,
      update_rule: "gated",
      scale: attr.float(1),
    },
    "com.microsoft",
  );
  const shaped = builder.op("Reshape", [read, builder.ints([0, 0, heads, headDim])]);
  builder.op("Add", [shaped, builder.op("Mul", [x, D])], {}, y);
  if (transposed) builder.op("Transpose", [next], swap, present);
}

function clip(builder: GraphBuilder, value: string, low: number, high: number): string {
  if (low === Number.NEGATIVE_INFINITY && high === Number.POSITIVE_INFINITY) return value;
  return builder.op("Clip", [value, builder.float(low), builder.float(high)]);
}
