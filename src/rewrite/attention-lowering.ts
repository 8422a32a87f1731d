/** Merged attention in standard operators: any number of new tokens over a cache of any length. */

import type { GraphBuilder } from "../ir/builder.js";
import { attr } from "../ir/graph.js";
import { ATTENTION_INPUT, type AttentionOp } from "./semantic.js";

/** Large enough to vanish in softmax, small enough to stay finite. */
const MASKED = -3.4028234663852886e38;

/** Emits nodes for `op`; query i of this call sees cache positions 0 .. past + i. */
export function emitAttention(builder: GraphBuilder, op: AttentionOp): void {
  const input = (at: number): string => op.node.inputs[at] ?? "";
  const [y, presentK, presentV] = op.node.outputs;
  const shared = op.heads / op.kvHeads;
  const keys = builder.op("Concat", [input(ATTENTION_INPUT.pastK), input(ATTENTION_INPUT.k)], { axis: 2 }, presentK);
  const values = builder.op("Concat", [input(ATTENTION_INPUT.pastV), input(ATTENTION_INPUT.v)], { axis: 2 }, presentV);
  // [B, Hkv, shared, L, d] x [B, Hkv, 1, d, T]: heads that share keys read them without a copy.
  const scaled = builder.op("Mul", [input(ATTENTION_INPUT.q), builder.float(op.scale)]);
  const q = builder.op("Reshape", [scaled, builder.ints([0, op.kvHeads, shared, -1, op.headDim])]);
  const k = builder.op("Transpose", [builder.op("Unsqueeze", [keys, builder.ints([2])])], { perm: [0, 1, 2, 4, 3] });
  const scores = builder.op("MatMul", [q, k]);
  const fresh = dimension(builder, input(ATTENTION_INPUT.q), 2);
  const total = dimension(builder, keys, 2);
  const past = builder.op("Sub", [total, fresh]);
  const zero = builder.int(0);
  const one = builder.int(1);
  const rows = builder.op("Unsqueeze", [
    builder.op("Add", [builder.op("Range", [zero, fresh, one]), past]),
    builder.ints([1]),
  ]);
  const seen = builder.op("LessOrEqual", [builder.op("Range", [zero, total, one]), rows]);
  const masked = builder.op("Where", [seen, scores, builder.float(MASKED)]);
  const weights = builder.op("Softmax", [masked], { axis: attr.int(-1) });
  const mixed = builder.op("MatMul", [weights, builder.op("Unsqueeze", [values, builder.ints([2])])]);
  builder.op("Reshape", [mixed, builder.ints([0, op.heads, -1, op.headDim])], {}, y);
}

function dimension(builder: GraphBuilder, value: string, axis: number): string {
  return builder.op("Squeeze", [builder.op("Shape", [value], { start: axis, end: axis + 1 })]);
}
