/**
 * The replay scan from standard ops. Its state is a checkpoint and rings of the tokens since then; slots without a token
 * are zero bytes, which decode to a token that changes nothing (decay 1, nothing fed). So the rings followed by the new
 * tokens are the whole sequence since the checkpoint, whatever the count.
 */

import type { Body } from "./body.js";
import { bytesToFloats, bytesToSignedHalves, floatsToBytes, roundToHalfIn, signedHalvesToBytes } from "./half-bytes.js";
import type { ScanSpec } from "./names.js";
import { MAX_HALF } from "./packed-state.js";
import { type ScanValues, type StateCodec, stateCodec } from "./state-codec.js";
import { stepSize } from "./step-size.js";

/** Slices to the end of an axis. */
const END = 2 ** 31;

/** exp(-128) is below the smallest float32, so a smaller exponent changes nothing; it keeps sums finite. */
const MIN_EXPONENT = -128;

/** Slots of the rings as bytes [B, H or G, R, bytes]. */
interface Rings {
  readonly u: string;
  readonly l: string;
  readonly b: string;
}

/** A stored state taken apart. */
interface Stored {
  /** [B, H, bytes]. */
  readonly checkpoint: string;
  readonly rings: Rings;
  /** int64 [B]. */
  readonly count: string;
  /** What follows the low byte of the count: zeros. */
  readonly rest: string;
}

/** Values of this call's tokens as the rings store them, u [B,L,H,P], l [B,L,H], b [B,L,G,N], and C [B,L,G,N]. */
interface Tokens {
  readonly u: string;
  readonly l: string;
  readonly b: string;
  readonly C: string;
}

/** What a level works on. */
interface Work {
  readonly codec: StateCodec;
  readonly packed: "h8" | "h4";
  readonly stored: Stored;
  readonly fresh: Tokens;
  /** Parts of the checkpoint. */
  readonly parts: readonly string[];
  /** Values of the rings: u [B,H,R,P], l [B,H,R], b [B,G,R,N]. */
  readonly ring: Omit<Tokens, "C">;
}

/** Checkpoint [B, H, bytes] and ring bytes after the call, and y without D x [B,L,H,P]. */
interface Outcome extends Rings {
  readonly y: string;
  readonly checkpoint: string;
}

/** Whole calls: past -> y [B,L,H,P] and present. */
export function replayScan(body: Body, spec: ScanSpec, inputs: ScanValues): { y: string; present: string } {
  const [heads, headDim, dState, groups, length] = sizes(body);
  const codec = stateCodec(spec, heads);
  const packed = spec.format === "h8" ? "h8" : "h4";
  const d = stepSize(body, inputs.dt, inputs.bias);
  const stored = load(body, packed, inputs.past);
  const { rings, count } = stored;
  const work: Work = {
    codec,
    packed,
    stored,
    fresh: {
      u: storedHalf(body, body.mul(inputs.x, body.unsqueeze(d, -1))),
      l: body.mul(d, inputs.A),
      b: storedHalf(body, inputs.B),
      C: inputs.C,
    },
    parts: codec.load(body, stored.checkpoint),
    ring: {
      u: body.reshape(bytesToSignedHalves(body, rings.u), 0, heads, length, headDim),
      l: body.reshape(bytesToFloats(body, rings.l), 0, heads, length),
      b: body.reshape(bytesToSignedHalves(body, rings.b), 0, groups, length, dState),
    },
  };
  const tokens = body.shapeOf(inputs.x, 1, 2);
  const single = body.op("Equal", [tokens, body.ints(1)]);
  const results = (outcome: Outcome): string[] => [outcome.y, outcome.checkpoint, outcome.u, outcome.l, outcome.b];
  const [read = "", checkpoint = "", u = "", l = "", b = ""] = body.branch(
    single,
    (then) => results(oneToken(then, work)),
    (otherwise) => results(manyTokens(otherwise, work)),
  );
  const left = body.op("Mod", [body.add(count, tokens), length]);
  const present = body.op(
    "Concat",
    [
      ...[checkpoint, u, l, b].map((bytes) => body.reshape(bytes, 0, -1)),
      body.unsqueeze(body.cast(left, "u8"), 1),
      stored.rest,
    ],
    { axis: 1 },
  );
  return { y: body.add(read, body.mul(inputs.x, inputs.D)), present };
}

function sizes(body: Body): [heads: string, headDim: string, dState: string, groups: string, length: string] {
  return [
    body.size("num_heads"),
    body.size("head_dim"),
    body.size("d_state"),
    body.size("num_groups"),
    body.size("replay_length"),
  ];
}

function storedHalf(body: Body, value: string): string {
  return roundToHalfIn(body, body.op("Clip", [value, body.float(-MAX_HALF), body.float(MAX_HALF)]));
}

function load(body: Body, packed: "h8" | "h4", past: string): Stored {
  const [heads, headDim, dState, groups, length] = sizes(body);
  const times = (first: string, ...rest: readonly string[]): string =>
    rest.reduce((product, size) => body.mul(product, size), first);
  const codes = packed === "h8" ? times(headDim, dState) : body.div(times(headDim, dState), body.ints(2));
  const head = body.add(codes, body.mul(body.add(headDim, dState), body.ints(2)));
  const parts = [
    times(heads, head),
    times(heads, length, headDim, body.ints(2)),
    times(heads, length, body.ints(4)),
    times(groups, length, dState, body.ints(2)),
    body.ints(1),
  ];
  const used = parts.reduce((sum, size) => body.add(sum, size));
  const rest = body.sub(body.shapeOf(past, 1, 2), used);
  const [checkpoint = "", u = "", l = "", b = "", count = "", zeros = ""] = body.builder.ops(
    "Split",
    [past, body.op("Concat", [...parts, rest], { axis: 0 })],
    6,
    { axis: 1 },
  );
  return {
    checkpoint: body.reshape(checkpoint, 0, heads, head),
    rings: {
      u: body.reshape(u, 0, heads, length, body.mul(headDim, body.ints(2))),
      l: body.reshape(l, 0, heads, length, 4),
      b: body.reshape(b, 0, groups, length, body.mul(dState, body.ints(2))),
    },
    count: body.cast(body.reshape(count, -1), "i64"),
    rest: zeros,
  };
}

/** Exponents that are safe to add up. */
function exponents(body: Body, l: string): string {
  return body.op("Max", [l, body.float(MIN_EXPONENT)]);
}

/**
 * One token: read from the decayed checkpoint and the R + 1 tokens since then. The state itself is only made, rounded
 * and stored where a sequence of the batch has had its R tokens.
 */
function oneToken(body: Body, { codec, stored, fresh, parts, ring }: Work): Outcome {
  const [heads, headDim, dState, groups, length] = sizes(body);
  const joined = (before: string, token: string): string => body.op("Concat", [before, token], { axis: 2 });
  const u = joined(ring.u, body.reshape(fresh.u, 0, heads, 1, headDim)); // [B,H,R+1,P]
  const l = exponents(body, joined(ring.l, body.reshape(fresh.l, 0, heads, 1))); // [B,H,R+1]
  const b = codec.order(body, joined(ring.b, body.reshape(fresh.b, 0, groups, 1, dState)), 4); // [B,G,R+1,N]
  const C = body.reshape(codec.order(body, fresh.C, 4), 0, groups, dState, 1);
  // What is left of each token by now: exp of the sum of the exponents after it.
  const remaining = body.exp(body.op("CumSum", [l, body.int(2)], { exclusive: 1, reverse: 1 }));
  const decay = body.exp(body.op("ReduceSum", [l, body.ints(2)], { keepdims: 0 }));
  const kept = codec.decayed(body, parts, body.unsqueeze(decay, 1)); // [B,H,P,N]
  const old = body.reshape(body.matmul(body.reshape(kept, 0, groups, -1, dState), C), 0, heads, headDim);
  const scores = body.reshape(body.matmul(b, C), 0, groups, 1, 1, -1); // [B,G,1,1,R+1]
  const weights = body.mul(scores, body.reshape(remaining, 0, groups, -1, 1, body.add(length, body.ints(1))));
  const rows = body.reshape(u, 0, groups, -1, body.add(length, body.ints(1)), headDim); // [B,G,H/G,R+1,P]
  const recent = body.reshape(body.matmul(weights, rows), 0, heads, headDim);
  const y = body.reshape(body.add(old, recent), 0, 1, heads, headDim);

  const slot = body.op("Range", [body.int(0), body.reshape(length), body.int(1)]); // [R]
  const here = body.reshape(body.op("Equal", [slot, body.unsqueeze(stored.count, 1)]), 0, 1, length, 1);
  const put = (bytes: string, ringBytes: string): string => body.op("Where", [here, bytes, ringBytes]);
  // Sizes in full: where the length is known not to be 1, shape inference looks at this branch nevertheless.
  const halves = (size: string): string => body.mul(size, body.ints(2));
  const filled = [
    put(body.reshape(signedHalvesToBytes(body, fresh.u), 0, heads, 1, halves(headDim)), stored.rings.u),
    put(body.reshape(floatsToBytes(body, fresh.l), 0, heads, 1, 4), stored.rings.l),
    put(body.reshape(signedHalvesToBytes(body, fresh.b), 0, groups, 1, halves(dState)), stored.rings.b),
  ];
  const full = body.op("Equal", [body.add(stored.count, body.ints(1)), length]); // [B]
  const some = body.op("ReduceMax", [body.cast(full, "i32")], { keepdims: 0 });
  const [checkpoint = "", ringU = "", ringL = "", ringB = ""] = body.branch(
    body.cast(some, "bool"),
    (then) => {
      const fed = then.transpose(then.mul(u, then.unsqueeze(remaining, -1)), 0, 1, 3, 2); // [B,H,P,R+1]
      const grouped = then.reshape(fed, 0, groups, -1, headDim, then.add(length, then.ints(1)));
      const added = then.reshape(then.matmul(grouped, then.unsqueeze(b, 2)), 0, heads, headDim, dState);
      const packed = codec.store(then, codec.round(then, then.add(kept, added)));
      const ends = (value: string, rank: number): string =>
        then.reshape(value, 0, ...Array.from({ length: rank - 1 }, () => 1));
      return [
        then.op("Where", [ends(full, 3), packed, stored.checkpoint]),
        ...filled.map((bytes) => then.op("Where", [ends(full, 4), then.byte(0), bytes])),
      ];
    },
    (otherwise) => [stored.checkpoint, ...filled].map((bytes) => otherwise.op("Identity", [bytes])),
  );
  return { y, checkpoint, u: ringU, l: ringL, b: ringB };
}

/**
 * Any number of tokens. Sequences are cut into windows of R tokens that begin at a checkpoint, ring tokens first, so that
 * all sequences of a batch are rounded at the ends of windows, whatever their counts. With s_i the sum of l over tokens
 * 0..i of a window,
 *
 *     y_i = sum_{j <= i} exp(s_i - s_j) (C_i . b_j) u_j  +  exp(s_i) C_i h
 *
 * and the state after it exp(s_last) h + sum_j exp(s_last - s_j) u_j (x) b_j. s is summed in float64, as its differences
 * are what counts.
 */
function manyTokens(body: Body, work: Work): Outcome {
  const { codec, packed, stored, fresh, parts, ring } = work;
  const [heads, headDim, dState, groups, length] = sizes(body);
  const tokens = body.shapeOf(fresh.u, 1, 2);
  const total = body.add(stored.count, tokens); // [B]
  const most = body.op("ReduceMax", [total, body.ints(0)], { keepdims: 1 });
  const windows = body.op("Max", [body.div(body.sub(body.add(most, length), body.ints(1)), length), body.ints(1)]);
  const positions = body.op("Range", [body.int(0), body.reshape(body.mul(windows, length)), body.int(1)]);
  const source = sourceOf(body, stored.count, tokens, tokens, positions);
  // [B,R,...] of the rings and [B,L,...] of the call, picked and cut: [B,K,R,...].
  const windowed = (before: string, after: string, ...dims: readonly string[]): string => {
    const none = body.op("Expand", [body.float(0), body.shape(body.shapeOf(after, 0, 1), 1, ...dims)]);
    const all = body.op("Concat", [before, after, none], { axis: 1 });
    return body.reshape(body.op("GatherND", [all, source], { batch_dims: 1 }), 0, windows, length, ...dims);
  };
  const u = windowed(body.transpose(ring.u, 0, 2, 1, 3), fresh.u, heads, headDim);
  const l = windowed(body.transpose(ring.l, 0, 2, 1), fresh.l, heads);
  const b = codec.order(body, windowed(body.transpose(ring.b, 0, 2, 1, 3), fresh.b, groups, dState), 5);
  const unread = body.op("Expand", [body.float(0), body.shape(body.shapeOf(fresh.C, 0, 1), length, groups, dState)]);
  const C = codec.order(body, windowed(unread, fresh.C, groups, dState), 5);
  const sums = body.op("CumSum", [body.cast(exponents(body, l), "f64"), body.int(2)]);
  const ends = body.mul(
    body.add(body.op("Range", [body.int(0), body.reshape(windows), body.int(1)]), body.int(1)),
    length,
  );
  const complete = body.op("LessOrEqual", [body.unsqueeze(ends, 1), body.unsqueeze(total, 0)]); // [K,B]

  const scan = body.scan(
    parts,
    [
      body.transpose(u, 1, 0, 3, 4, 2), // [K,B,H,P,R]
      body.transpose(sums, 1, 0, 3, 2), // [K,B,H,R]
      body.transpose(b, 1, 0, 3, 2, 4), // [K,B,G,R,N]
      body.transpose(C, 1, 0, 3, 4, 2), // [K,B,G,N,R]
      complete,
    ],
    (window, states, [uT = "", s = "", bs = "", Ct = "", full = ""]) => {
      const h = codec.decayed(window, states, null); // [B,H,P,N]
      const gap = window.cast(window.sub(window.unsqueeze(s, -2), window.unsqueeze(s, -1)), "f32"); // [B,H,j,i]
      const mixing = window.exp(window.op("Min", [gap, window.float(0)]));
      const scores = window.unsqueeze(window.op("Trilu", [window.matmul(bs, Ct)], { upper: 1 }), 2); // [B,G,1,j,i]
      const perGroup = window.mul(window.reshape(mixing, 0, groups, -1, length, length), scores);
      const rows = window.reshape(uT, 0, groups, -1, headDim, length);
      const within = window.reshape(window.matmul(rows, perGroup), 0, heads, headDim, length);
      const across = window.matmul(window.reshape(h, 0, groups, -1, dState), Ct); // [B,G,H/G*P,R]
      const past = window.unsqueeze(window.exp(window.cast(s, "f32")), 2);
      const y = window.add(within, window.mul(window.reshape(across, 0, heads, headDim, length), past));
      const last = window.slice(s, 2, -1, END);
      const remaining = window.unsqueeze(window.exp(window.cast(window.sub(last, s), "f32")), 2);
      const fed = window.reshape(window.mul(uT, remaining), 0, groups, -1, headDim, length);
      const added = window.reshape(window.matmul(fed, window.unsqueeze(bs, 2)), 0, heads, headDim, dState);
      const decay = window.unsqueeze(window.exp(window.cast(last, "f32")), 3);
      const rounded = codec.round(window, window.add(window.mul(h, decay), added));
      return { states: rounded.map((part, i) => chosen(window, packed, full, part, states[i] ?? "", i)), outputs: [y] };
    },
  );
  const stacked = body.transpose(scan.outputs[0] ?? "", 1, 0, 4, 2, 3); // [B,K,R,H,P]
  const own = body.op("Range", [body.int(0), body.reshape(tokens), body.int(1)]);
  const read = body.unsqueeze(body.add(body.unsqueeze(stored.count, 1), own), 2);
  const y = body.op("GatherND", [body.reshape(stacked, 0, -1, heads, headDim), read], { batch_dims: 1 });
  return { y, checkpoint: codec.store(body, scan.states), ...nextRings(body, work, total) };
}

/** part where the window is complete, what was before elsewhere; no runtime has a Where of int8. */
function chosen(body: Body, packed: "h8" | "h4", full: string, part: string, before: string, index: number): string {
  const codes = index === 0;
  const flag = body.reshape(full, ...(codes ? [-1, 1, 1, 1] : [-1, 1, 1]));
  if (!codes || packed === "h4") return body.op("Where", [flag, part, before]);
  return body.cast(body.op("Where", [flag, body.cast(part, "u8"), body.cast(before, "u8")]), "i8");
}

/**
 * Where a position counted from the checkpoint comes from in [ring slots, the last `kept` of `tokens` new ones, one that is
 * nothing]: int64 [B,S,1]. `positions` is [S] or [B,S].
 */
function sourceOf(body: Body, count: string, tokens: string, kept: string, positions: string): string {
  const length = body.size("replay_length");
  const before = body.unsqueeze(count, 1);
  const after = body.add(before, tokens);
  const dropped = body.sub(tokens, kept);
  const own = body.sub(body.sub(body.add(positions, length), before), dropped);
  const nothing = body.add(length, kept);
  const fresh = body.op("Where", [body.op("Less", [positions, after]), own, nothing]);
  return body.unsqueeze(body.op("Where", [body.op("Less", [positions, before]), positions, fresh]), 2);
}

/** The rings after the call: tokens since the last window that was complete. */
function nextRings(body: Body, { stored, fresh }: Work, total: string): Rings {
  const [heads, , , groups, length] = sizes(body);
  const tokens = body.shapeOf(fresh.u, 1, 2);
  const first = body.mul(body.div(total, length), length); // [B]
  const slots = body.op("Range", [body.int(0), body.reshape(length), body.int(1)]);
  const positions = body.add(body.unsqueeze(first, 1), slots); // [B,R]
  const recent = (value: string): string => body.slice(value, 1, body.sub(body.ints(0), length), END);
  const kept = body.op("Min", [tokens, length]);
  const source = sourceOf(body, stored.count, tokens, kept, positions);
  const ring = (bytes: string, encoded: string, lines: string): string => {
    const width = body.shapeOf(bytes, 3, 4);
    const after = body.reshape(encoded, body.shapeOf(encoded, 0, 1), kept, lines, width);
    const none = body.op("Expand", [body.byte(0), body.shape(body.shapeOf(bytes, 0, 1), 1, lines, width)]);
    const all = body.op("Concat", [body.transpose(bytes, 0, 2, 1, 3), after, none], { axis: 1 });
    return body.transpose(body.op("GatherND", [all, source], { batch_dims: 1 }), 0, 2, 1, 3);
  };
  return {
    u: ring(stored.rings.u, signedHalvesToBytes(body, recent(fresh.u)), heads),
    l: ring(stored.rings.l, floatsToBytes(body, recent(fresh.l)), heads),
    b: ring(stored.rings.b, signedHalvesToBytes(body, recent(fresh.b)), groups),
  };
}
