/**
 * The Mamba-2 recurrence from standard ops. One token is one step; more are done in chunks (state-space duality), so
 * that nearly all work is matrix products.
 */

import type { Body, BodyDim } from "./body.js";
import type { ScanSpec } from "./names.js";
import { type ScanValues, type StateCodec, stateCodec } from "./state-codec.js";
import { stepSize } from "./step-size.js";

/** The function's inputs with dt turned into d, and B and C in the codec's order of n. */
type StepValues = ScanValues & { readonly d: string };

/** Slices to the end of an axis. */
const END = 2 ** 31;

/** exp(-128) is below the smallest float32, so a smaller exponent changes nothing; it bounds the sums of a chunk. */
const MIN_EXPONENT = -128;

/** Whole calls: past -> y [B,L,H,P] and present. */
export function mamba2Scan(body: Body, spec: ScanSpec, inputs: ScanValues): { y: string; present: string } {
  const codec = stateCodec(spec, body.size("num_heads"), inputs);
  const d = stepSize(body, inputs.dt, inputs.bias);
  const values: StepValues = { ...inputs, d, B: codec.order(body, inputs.B, 4), C: codec.order(body, inputs.C, 4) };
  const parts = codec.load(body, inputs.past);
  if (spec.requantize === "token") {
    const tokens = [values.x, d, values.B, values.C].map((value) => body.tokenMajor(value, value === d ? 3 : 4));
    const scan = body.scan(parts, tokens, (token, states, [x = "", dToken = "", B = "", C = ""]) => {
      const step = mamba2Step(token, { ...values, x, d: dToken, B, C }, codec, states);
      return { states: codec.round(token, step.state), outputs: [step.y] };
    });
    const [stacked = ""] = scan.outputs; // [L,B,1,H,P]
    const y = body.op("Squeeze", [body.transpose(stacked, 1, 0, 2, 3, 4), body.ints(2)]);
    return { y, present: codec.store(body, scan.states) };
  }
  const single = body.op("Equal", [body.shapeOf(inputs.x, 1, 2), body.ints(1)]);
  const [y = "", ...next] = body.branch(
    single,
    (then) => {
      const result = mamba2Step(then, values, codec, parts);
      return [result.y, ...codec.round(then, result.state)];
    },
    (otherwise) => {
      const result = mamba2Chunks(otherwise, values, codec.decayed(otherwise, parts, null));
      return [result.y, ...codec.round(otherwise, result.state)];
    },
  );
  return { y, present: codec.store(body, next) };
}

/** One token: values with L = 1. */
function mamba2Step(
  body: Body,
  values: StepValues,
  codec: StateCodec,
  parts: readonly string[],
): { y: string; state: string } {
  const [heads, headDim, dState, groups] = sizes(body);
  const decayed = codec.decayed(body, parts, body.exp(body.mul(values.d, values.A)));
  const fed = body.reshape(body.mul(values.x, body.unsqueeze(values.d, -1)), 0, groups, -1, 1);
  const outer = body.matmul(fed, body.reshape(values.B, 0, groups, 1, dState));
  const state = body.add(decayed, body.reshape(outer, 0, heads, headDim, dState));
  const read = body.matmul(body.reshape(state, 0, groups, -1, dState), body.reshape(values.C, 0, groups, dState, 1));
  const y = body.add(body.reshape(read, 0, 1, heads, headDim), body.mul(values.x, values.D));
  return { y, state };
}

function sizes(body: Body): [heads: string, headDim: string, dState: string, groups: string] {
  return [body.size("num_heads"), body.size("head_dim"), body.size("d_state"), body.size("num_groups")];
}

/**
 * K chunks of Q tokens, Q <= chunk_size as even as L allows. With s_i the sum of d A over tokens 0..i of a chunk and
 * u = d x, the output is
 *
 *     y_i = sum_{j <= i} exp(s_i - s_j) (C_i . B_j) u_j  +  exp(s_i) C_i h
 *
 * and the state after it exp(s_last) h + sum_j exp(s_last - s_j) u_j (x) B_j. Heads are split as [G, R]; inside, tokens
 * are [B,G,Q,R,P] and the state is [B,G,N,R*P], so that the two big products serve all heads of a group at once.
 *
 * s is summed in float64 and split as hi + lo in float32. A difference of hi is exact to one rounding, and exp(lo)
 * factors out to the two sides, so a long past does not cost precision (a plain float32 difference loses 6e-8 * |s|).
 * s_i - s_j is clamped at 0 before exp: above the diagonal it is positive and would overflow, and the scores there are 0.
 */
function mamba2Chunks(body: Body, inputs: StepValues, state: string): { y: string; state: string } {
  const [heads, headDim, dState, groups] = sizes(body);
  const length = body.shapeOf(inputs.x, 1, 2);
  const ceilDiv = (a: string, b: string): string => body.div(body.sub(body.add(a, b), body.ints(1)), b);
  const count = ceilDiv(length, body.size("chunk_size"));
  const width = ceilDiv(length, count);
  const padding = body.op("Concat", [body.ints(0), body.sub(body.mul(count, width), length)], { axis: 0 });
  // [B,L,...] -> [B,K,Q,...]. Padded tokens have d = 0: decay 1 and nothing fed, so they leave the state alone.
  const chunked = (value: string, ...dims: readonly BodyDim[]): string =>
    body.reshape(body.op("Pad", [value, padding, "", body.ints(1)]), 0, count, width, ...dims);

  const d = chunked(inputs.d, heads);
  const exponent = body.op("Max", [body.mul(d, inputs.A), body.float(MIN_EXPONENT)]);
  const sum = body.op("CumSum", [body.cast(exponent, "f64"), body.int(2)]);
  const high = body.cast(sum, "f32");
  const expLow = body.exp(body.cast(body.sub(sum, body.cast(high, "f64")), "f32"));
  const past = body.mul(body.exp(high), expLow);
  const enter = body.div(d, expLow);
  const remaining = body.mul(body.exp(body.sub(body.slice(high, 2, -1, END), high)), body.slice(expLow, 2, -1, END));

  // A factor of each token and head: [B,K,Q,H] -> [K,B,G,Q,R,1].
  const factor = (value: string): string =>
    body.transpose(body.reshape(value, 0, count, width, groups, -1, 1), 1, 0, 3, 2, 4, 5);
  const starts = body.mul(body.op("Range", [body.int(0), body.reshape(count), body.int(1)]), width);
  const last = body.op("Expand", [
    body.reshape(body.slice(past, 2, -1, END), 0, count, groups, 1, -1, 1),
    body.shape(1, 1, 1, 1, 1, headDim),
  ]);
  const skip = body.reshape(inputs.D, groups, 1, -1, headDim);
  const h0 = body.reshape(
    body.transpose(body.reshape(state, 0, groups, -1, dState), 0, 1, 3, 2),
    0,
    groups,
    dState,
    -1,
  );
  const scan = body.scan(
    [h0],
    [
      body.unsqueeze(starts, 1),
      body.transpose(chunked(inputs.B, groups, dState), 1, 0, 3, 2, 4), // [K,B,G,Q,N]
      body.transpose(chunked(inputs.C, groups, dState), 1, 0, 3, 2, 4),
      body.transpose(body.reshape(high, 0, count, width, groups, -1), 1, 0, 3, 4, 2), // [K,B,G,R,Q]
      factor(enter),
      factor(body.mul(enter, remaining)),
      factor(expLow),
      factor(past),
      body.transpose(body.reshape(last, 0, count, groups, 1, -1), 1, 0, 2, 3, 4), // [K,B,G,1,R*P]
    ],
    (
      chunk,
      [h = ""],
      [start = "", B = "", C = "", hi = "", fromStart = "", toEnd = "", expLo = "", carry = "", decay = ""],
    ) => {
      const Bt = chunk.transpose(B, 0, 1, 3, 2);
      const end = chunk.add(start, width);
      const tokens = chunk.slice(inputs.x, 1, start, end);
      const missing = chunk.sub(width, chunk.shapeOf(tokens, 1, 2));
      const pads = chunk.op("Concat", [chunk.ints(0), missing], { axis: 0 });
      const padded = chunk.op("Pad", [tokens, pads, "", chunk.ints(1)]);
      const x = chunk.transpose(chunk.reshape(padded, 0, 0, groups, -1, headDim), 0, 2, 1, 3, 4); // [B,G,Q,R,P]
      const scores = chunk.unsqueeze(chunk.op("Trilu", [chunk.matmul(C, Bt)], { upper: 0 }), 2);
      const gap = chunk.op("Min", [chunk.sub(chunk.unsqueeze(hi, -1), chunk.unsqueeze(hi, -2)), chunk.float(0)]);
      const mixing = chunk.mul(chunk.exp(gap), scores); // [B,G,R,Q,Q]
      const within = chunk.matmul(mixing, chunk.transpose(chunk.mul(x, fromStart), 0, 1, 3, 2, 4)); // [B,G,R,Q,P]
      const across = chunk.reshape(chunk.matmul(C, h), 0, 0, 0, -1, headDim); // [B,G,Q,R,P]
      const read = chunk.add(chunk.mul(chunk.transpose(within, 0, 1, 3, 2, 4), expLo), chunk.mul(across, carry));
      const y = chunk.add(read, chunk.mul(x, skip));
      const added = chunk.matmul(Bt, chunk.reshape(chunk.mul(x, toEnd), 0, 0, 0, -1)); // [B,G,N,R*P]
      return { states: [chunk.add(chunk.mul(h, decay), added)], outputs: [y] };
    },
  );
  const [h = ""] = scan.states;
  const [stacked = ""] = scan.outputs; // [K,B,G,Q,R,P]
  const y = body.reshape(body.transpose(stacked, 1, 0, 3, 2, 4, 5), 0, -1, heads, headDim);
  const next = body.reshape(body.transpose(h, 0, 1, 3, 2), 0, heads, headDim, dState);
  return { y: body.slice(y, 1, 0, length), state: next };
}
