/** Shapes of the semantic operators (domain `mambac.ir`) that stand for recognised regions between raise and lower. */

import { attrInt, attrInts, attrString } from "./graph.js";
import { type Rule, tensorFact, tensorInput } from "./infer-fact.js";

/** x, dt, A, B, C, D, dt_bias, past -> y as x, and the state in its public layout. */
const selectiveScan: Rule = (call) => {
  const [x, past] = [tensorInput(call, 0), tensorInput(call, 7)];
  const y = tensorFact("f32", x.shape);
  const batch = x.shape?.[0];
  if (past.shape !== null || batch === undefined) return [y, tensorFact(past.dtype ?? "f32", past.shape)];
  const size = (name: string): number => attrInt(call.node, name, 1);
  const [heads, headDim, dState] = [size("num_heads"), size("head_dim"), size("d_state")];
  if (attrString(call.node, "family", "") === "mamba1") return [y, tensorFact("f32", [batch, heads, dState])];
  const tail = attrString(call.node, "state_layout", "PN") === "NP" ? [dState, headDim] : [headDim, dState];
  return [y, tensorFact("f32", [batch, heads, ...tail])];
};

/** x [B, E, L], weight, bias, past -> y as x, state [B, E, W]. */
const causalConv: Rule = (call) => {
  const [x, past] = [tensorInput(call, 0), tensorInput(call, 3)];
  const batch = x.shape?.[0];
  const state =
    past.shape ??
    (batch === undefined ? null : [batch, attrInt(call.node, "channels", 1), attrInt(call.node, "state_width", 0)]);
  const present = tensorFact(past.dtype ?? "f32", state);
  if (!call.node.attributes.has("first")) return [tensorFact("f32", x.shape), present];
  // Tokens before channels: [B, L, ..] -> as many channels as each output has.
  const parts = attrInts(call.node, "parts") ?? [attrInt(call.node, "channels", 1)];
  const [y, ...more] = parts.map((size) => tensorFact("f32", x.shape === null ? null : [...x.shape.slice(0, 2), size]));
  return [y ?? tensorFact("f32", null), present, ...more];
};

/** q, k, v, past_k, past_v -> y as q, caches one call longer. */
const causalAttention: Rule = (call) => {
  const [q, k, v] = [tensorInput(call, 0), tensorInput(call, 1), tensorInput(call, 2)];
  const cache = (fresh: typeof k, past: typeof k): readonly number[] | null => {
    if (fresh.shape === null) return null;
    return fresh.shape.map((size, axis) => (axis === 2 ? size + (past.shape?.[2] ?? 0) : size));
  };
  return [
    tensorFact(q.dtype, q.shape),
    tensorFact(k.dtype, cache(k, tensorInput(call, 3))),
    tensorFact(v.dtype, cache(v, tensorInput(call, 4))),
  ];
};

/** One output, as an input. */
const sameAs =
  (input: number): Rule =>
  (call) => {
    const { dtype, shape } = tensorInput(call, input);
    return [tensorFact(dtype, shape)];
  };

/** One output of codes: shaped as an input, of the type of the zero point, which comes last. */
const codesOf =
  (input: number): Rule =>
  (call) => [tensorFact(tensorInput(call, call.node.inputs.length - 1).dtype, tensorInput(call, input).shape)];

export const SEMANTIC_RULES: ReadonlyMap<string, Rule> = new Map<string, Rule>([
  ["mambac.ir.SelectiveScan", selectiveScan],
  ["mambac.ir.CausalConv", causalConv],
  ["mambac.ir.CausalAttention", causalAttention],
  ["mambac.ir.HadamardRotation", sameAs(0)],
  // Of the emitted operators those without a state, which stand between projections.
  ["com.mambac.HadamardRotate", sameAs(0)],
  ["com.mambac.SiluGate", sameAs(1)],
  ["com.mambac.SlopedSiluGate", sameAs(1)],
  ["com.mambac.GatedRMSNorm", sameAs(1)],
  ["com.mambac.HadamardRotateQ8", codesOf(0)],
  ["com.mambac.SiluGateQ8", codesOf(1)],
  ["com.mambac.SlopedSiluGateQ8", codesOf(1)],
  ["com.mambac.GatedRMSNormQ8", codesOf(1)],
]);
