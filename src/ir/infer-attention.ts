/** Attention operators, which hybrid models put between their scans. */

import { attrInt } from "./graph.js";
import {
  at,
  contentInput,
  describe,
  dtypeFact,
  hasInput,
  type Rule,
  refuse,
  scalarOf,
  type TensorFact,
  tensorFact,
  tensorInput,
} from "./infer-fact.js";

/** Heads, width of a head and length of a key or value: [B, L, heads * width] or [B, heads, L, width]. */
interface Heads {
  readonly count: number;
  readonly width: number;
  readonly length: number;
}

function headsOf(shape: readonly number[], count: number): Heads {
  if (shape.length === 4) return { count: at(shape, 1), width: at(shape, 3), length: at(shape, 2) };
  if (shape.length !== 3 || count < 1 || at(shape, 2) % count !== 0) refuse(`${describe(shape)} for ${count} heads`);
  return { count, width: at(shape, 2) / count, length: at(shape, 1) };
}

/** A cache after this call: [B, heads, past + new, width]. */
function present(past: TensorFact, batch: number, heads: Heads, dtype: TensorFact["dtype"], held: boolean): TensorFact {
  if (!held) return tensorFact(dtype, [batch, heads.count, heads.length, heads.width]);
  if (past.shape?.length !== 4) return dtypeFact(past.dtype);
  return tensorFact(past.dtype, past.shape.with(2, at(past.shape, 2) + heads.length));
}

/** The operator of opset 23: query, key, value, mask, past key, past value. */
const attention: Rule = (call) => {
  const [query, key, value] = [tensorInput(call, 0), tensorInput(call, 1), tensorInput(call, 2)];
  if (query.shape === null || key.shape === null || value.shape === null) return [dtypeFact(query.dtype)];
  const stateHeads = attrInt(call.node, "kv_num_heads", 0);
  const asked = headsOf(query.shape, attrInt(call.node, "q_num_heads", 0));
  const [keys, values] = [headsOf(key.shape, stateHeads), headsOf(value.shape, stateHeads)];
  const batch = at(query.shape, 0);
  const out =
    query.shape.length === 4
      ? [batch, asked.count, asked.length, values.width]
      : [batch, asked.length, asked.count * values.width];
  return [
    tensorFact(query.dtype, out),
    present(tensorInput(call, 4), batch, keys, key.dtype, hasInput(call, 4)),
    present(tensorInput(call, 5), batch, values, value.dtype, hasInput(call, 5)),
  ];
};

/** query, key, value, bias, padding mask, attention bias, past key, past value. */
const multiHead: Rule = (call) => {
  const [query, value] = [tensorInput(call, 0), tensorInput(call, 2)];
  // The forms with packed keys and values have no value input; no CPU runs them.
  if (query.shape?.length !== 3 || value.shape === null) return [dtypeFact(query.dtype)];
  const [batch, length] = [at(query.shape, 0), at(query.shape, 1)];
  const values = headsOf(value.shape, attrInt(call.node, "num_heads", 0));
  return [tensorFact(query.dtype, [batch, length, values.count * values.width])];
};

/** query (or packed query, key and value), key, value, past key, past value, lengths, total length. */
const groupQuery: Rule = (call) => {
  const query = tensorInput(call, 0);
  const [heads, stateHeads] = [attrInt(call.node, "num_heads", 1), attrInt(call.node, "kv_num_heads", 1)];
  if (query.shape === null) return [dtypeFact(query.dtype)];
  const packed = hasInput(call, 1) ? heads : heads + 2 * stateHeads;
  const { width, length } = headsOf(query.shape, packed);
  const batch = at(query.shape, 0);
  const held = tensorInput(call, 3);
  const total = scalarOf(contentInput(call, 6));
  const past = hasInput(call, 3) ? (held.shape?.[2] ?? null) : 0;
  const dtype = hasInput(call, 3) ? held.dtype : query.dtype;
  // Callers may hand in a cache that is longer than what it holds.
  const state = total === null || past === null ? null : [batch, stateHeads, Math.max(total, past), width];
  const cache = tensorFact(dtype, state);
  return [tensorFact(query.dtype, [batch, length, heads * width]), cache, cache];
};

/** Every attention operator by qualified name. */
export const ATTENTION_RULES: ReadonlyMap<string, Rule> = new Map<string, Rule>([
  ["Attention", attention],
  ["com.microsoft.MultiHeadAttention", multiHead],
  ["com.microsoft.GroupQueryAttention", groupQuery],
]);
