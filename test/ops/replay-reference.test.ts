/** The replay reference: what it is by sums, and that the mistakes an implementation may make do not pass for it. */

import { describe, expect, test } from "vitest";
import { isPacked, type ScanSpec } from "../../src/ops/names.js";
import { unpackState } from "../../src/ops/packed-state.js";
import { type ReplayState, type ReplayToken, readReplay, writeReplay } from "../../src/ops/replay-state.js";
import { REPLAYS, strayBytes } from "./replay-case.js";
import {
  joinParts,
  randomData,
  referenceScan,
  relativeError,
  replayDims,
  replayStates,
  type ScanSizes,
  tokensOf,
} from "./scan-case.js";

const S: ScanSizes = {
  batch: 3,
  length: 21,
  heads: 4,
  headDim: 5,
  dState: 6,
  groups: 2,
  chunkSize: 64,
  dtMin: Number.NEGATIVE_INFINITY,
  dtMax: Number.POSITIVE_INFINITY,
  replayLength: 6,
};

/** h [H,P,N] by the sums of the contract instead of a recurrence. */
function bySums(format: "h8" | "h4", s: ScanSizes, { checkpoint, tokens }: ReplayState): Float64Array {
  const { heads, headDim, dState, groups } = s;
  const start = unpackState(checkpoint, s, format);
  return start.map((value, i) => {
    const row = Math.floor(i / dState);
    const head = Math.floor(row / headDim);
    const b = Math.floor(head / (heads / groups)) * dState + (i % dState);
    const after = (j: number): number => Math.exp(tokens.slice(j).reduce((sum, { l }) => sum + l[head]!, 0));
    return tokens.reduce((sum, token, j) => sum + after(j + 1) * token.u[row]! * token.b[b]!, after(0) * value);
  });
}

/** y of a sequence in calls of 4 tokens and what is left, with something done to the states in between. */
function inCalls(
  spec: ScanSpec,
  seed: number,
  between: (state: ReplayState, before: ReplayState) => ReplayState,
): Float64Array {
  if (!isPacked(spec.format)) throw new Error("only packed states are replayed");
  const { format } = spec;
  const data = randomData(spec, S, seed);
  const y: Float64Array[] = [];
  const lengths: number[] = [];
  let past = data.past as Uint8Array;
  for (let start = 0; start < S.length; start += 4) {
    const length = Math.min(4, S.length - start);
    const result = referenceScan(spec, { ...S, length }, { ...tokensOf(spec, S, data, start, start + length), past });
    const before = replayStates(spec, S, past);
    const after = replayStates(spec, S, result.packed ?? past);
    const changed = after.map((state, b) => writeReplay(between(state, before[b] ?? state), format, replayDims(S)));
    past = Uint8Array.from(changed.flatMap((bytes) => [...bytes]));
    y.push(result.y);
    lengths.push(length);
  }
  return joinParts(S, y, lengths);
}

const without =
  (part: keyof ReplayToken) =>
  (state: ReplayState): ReplayState => ({
    ...state,
    tokens: state.tokens.map((token) => ({ ...token, [part]: token[part].map(() => 0) })),
  });

/** What a kernel could do to a state, and must not. */
const MISTAKES: readonly (readonly [string, (state: ReplayState, before: ReplayState) => ReplayState])[] = [
  ["one token is not counted", (state) => ({ ...state, tokens: state.tokens.slice(0, -1) })],
  [
    "one token is counted twice",
    (state) => ({ ...state, tokens: [...state.tokens, ...state.tokens.slice(-1)].slice(0, 5) }),
  ],
  [
    "the rings are not cleared by a rounding",
    (state, before) =>
      state.tokens.length < before.tokens.length
        ? { ...state, tokens: [...before.tokens.slice(0, 5 - state.tokens.length), ...state.tokens] }
        : state,
  ],
  ["the checkpoint is not renewed by a rounding", (state, before) => ({ ...state, checkpoint: before.checkpoint })],
  ["decays of ring tokens are forgotten", without("l")],
  ["what ring tokens feed is forgotten", without("u")],
  ["ring tokens come in another order", (state) => ({ ...state, tokens: state.tokens.toReversed() })],
];

describe.each(REPLAYS)("$name", ({ spec }) => {
  test("carries the state that its sums give", () => {
    if (!isPacked(spec.format)) throw new Error("only packed states are replayed");
    for (const length of [0, 1, 5, 6, 21]) {
      const sized = { ...S, length };
      const { packed, state } = referenceScan(spec, sized, randomData(spec, sized, 81));
      if (packed === undefined) throw new Error("a replay state is bytes");
      expect(strayBytes(spec, sized, packed)).toBe(0);
      const width = state.length / S.batch;
      for (const [b, parts] of replayStates(spec, sized, packed).entries()) {
        const h = state.slice(b * width, (b + 1) * width);
        expect(relativeError(h, bySums(spec.format, S, parts))).toBeLessThan(1e-12);
      }
    }
  });

  test("rounds once in R tokens, where the count says", () => {
    const data = randomData(spec, S, 82);
    const before = replayStates(spec, S, data.past as Uint8Array);
    const { packed } = referenceScan(spec, S, data);
    for (const [b, { tokens }] of replayStates(spec, S, packed ?? new Uint8Array(0)).entries()) {
      expect(tokens.length).toBe(((before[b]?.tokens.length ?? 0) + S.length) % 6);
    }
    expect(new Set(before.map(({ tokens }) => tokens.length)).size).toBeGreaterThan(1);
  });

  test.each(MISTAKES)("is not what comes out when %s", (_what, mistake) => {
    const right = referenceScan(spec, S, randomData(spec, S, 83)).y;
    expect(inCalls(spec, 83, (state) => state)).toEqual(right);
    // Far beyond what float32 sums or codes at a tie can explain.
    expect(relativeError(inCalls(spec, 83, mistake), right)).toBeGreaterThan(0.02);
  });
});

test("the bytes of a state are its parts in the contract's order", () => {
  const dims = { heads: 2, headDim: 3, dState: 4, groups: 1, replayLength: 2 };
  const checkpoint = Uint8Array.from({ length: 2 * (6 + 6 + 8) }, (_, i) => i + 1);
  const token = {
    u: Float64Array.of(1, 2, 3, -4, 5, 6),
    l: Float64Array.of(-0.5, -2),
    b: Float64Array.of(0.5, 0, -1, 65504),
  };
  const bytes = writeReplay({ checkpoint, tokens: [token] }, "h4", dims);
  const view = new DataView(bytes.buffer);
  expect(bytes.length).toBe(128);
  expect(bytes.slice(0, 40)).toEqual(checkpoint);
  // u [H=2, R=2, P=3] at 40, l [2, 2] at 64, b [1, 2, 4] at 80, count at 96.
  expect(view.getUint16(40, true)).toBe(0x3c00);
  expect(view.getUint16(40 + 2 * 6, true)).toBe(0xc400);
  expect(view.getFloat32(64, true)).toBe(-0.5);
  expect(view.getFloat32(64 + 8, true)).toBe(-2);
  expect(view.getUint16(80 + 6, true)).toBe(0x7bff);
  expect(view.getUint32(96, true)).toBe(1);
  expect(
    [...bytes.slice(46, 52), ...bytes.slice(68, 72), ...bytes.slice(88, 96), ...bytes.slice(100)].every((b) => b === 0),
  ).toBe(true);
  expect(readReplay(bytes, "h4", dims)).toEqual({ checkpoint, tokens: [token] });
});
