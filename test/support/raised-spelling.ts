/** How a small model after recognition is spelled (see `raised-models.ts`). */

import fc from "fast-check";
import type { Family } from "../../src/ops/names.js";

/** Parts that look like something a pass may fold and are not quite. */
export const DECOYS = [
  /** The normalised stream is also an output of the graph, or is read by something that is no projection. */
  "norm-output",
  "norm-reader",
  /** The gain is one number, not one a channel. */
  "scalar-gain",
  /** The stream is an output, or passes through something that mixes with channels. */
  "stream-output",
  "stream-tanh",
  "stream-constant",
  /** One divided by the stream's scale is no scale. */
  "stream-reciprocal",
  /** A square of the stream that belongs to no norm. */
  "stream-square",
  /** A norm's scale taken from another value of the same shape. */
  "foreign-scale",
  /** What is added to the stream is read elsewhere too. */
  "writer-reader",
  /** A bias of one number on the way to the stream. */
  "scalar-bias",
  /** Gate columns, or low-rank dt columns, have a second reader. */
  "gate-reader",
  "dt-reader",
  /** Biases between a projection and what it is scaled against. */
  "in-bias",
  "x-bias",
  /** A norm with a gain between x_proj and dt_proj. */
  "dt-norm",
  /** The gated value is read by a second projection. */
  "out-reader",
] as const;
export type Decoy = (typeof DECOYS)[number];

export interface RaisedSpelling {
  readonly family: Family;
  readonly layers: number;
  readonly dModel: number;
  readonly heads: number;
  readonly headDim: number;
  readonly dState: number;
  readonly groups: number;
  readonly dtRank: number;
  readonly norm: "gain-left" | "gain-right" | "operator" | "bare";
  readonly root: "reciprocal" | "div" | "direct";
  /** Norm before out_proj, or before the gate; Mamba-2 only. */
  readonly gatedNorm: "none" | "gain" | "bare" | "grouped" | "before" | "before-grouped";
  readonly projection: "matmul" | "gemm" | "gemm-transposed" | "gemm-scaled" | "transposed";
  /** Mamba-1: dt_proj as a weight times columns. */
  readonly dtLeft: boolean;
  readonly channelsFirst: boolean;
  /** A scalar on each branch of the stream. */
  readonly scaled: boolean;
  readonly outBias: boolean;
  readonly head: "own" | "tied" | "transposed";
  /** A feed-forward block after each mixer; `parallel` adds it to the mixer's output first. */
  readonly mlp: "none" | "after" | "parallel";
  /** Two projections of one norm share their weight. */
  readonly sharedWeight: boolean;
  readonly decoy: Decoy | null;
  readonly seed: number;
}

export const PLAIN: RaisedSpelling = {
  family: "mamba2",
  layers: 1,
  dModel: 12,
  heads: 4,
  headDim: 3,
  dState: 4,
  groups: 2,
  dtRank: 3,
  norm: "gain-left",
  root: "reciprocal",
  gatedNorm: "gain",
  projection: "matmul",
  dtLeft: false,
  channelsFirst: false,
  scaled: false,
  outBias: false,
  head: "own",
  mlp: "none",
  sharedWeight: false,
  decoy: null,
  seed: 1,
};

/** A random spelling; about a third of them have a decoy. */
export function arbitraryRaised(fixed: Partial<RaisedSpelling> = {}): fc.Arbitrary<RaisedSpelling> {
  return fc
    .record({
      family: fc.constantFrom<Family>("mamba1", "mamba2"),
      layers: fc.integer({ min: 1, max: 2 }),
      dModel: fc.constantFrom(8, 10, 12, 20, 24),
      heads: fc.constantFrom(2, 4, 6),
      headDim: fc.constantFrom(2, 3, 5),
      dState: fc.constantFrom(4, 6, 8, 12),
      groups: fc.constantFrom(1, 2),
      dtRank: fc.constantFrom(2, 3, 4),
      norm: fc.constantFrom<RaisedSpelling["norm"]>("gain-left", "gain-right", "operator", "bare"),
      root: fc.constantFrom<RaisedSpelling["root"]>("reciprocal", "div", "direct"),
      gatedNorm: fc.constantFrom<RaisedSpelling["gatedNorm"]>("none", "gain", "bare", "grouped"),
      projection: fc.constantFrom<RaisedSpelling["projection"]>(
        "matmul",
        "gemm",
        "gemm-transposed",
        "gemm-scaled",
        "transposed",
      ),
      dtLeft: fc.boolean(),
      channelsFirst: fc.boolean(),
      scaled: fc.boolean(),
      outBias: fc.boolean(),
      head: fc.constantFrom<RaisedSpelling["head"]>("own", "tied", "transposed"),
      mlp: fc.constantFrom<RaisedSpelling["mlp"]>("none", "after", "parallel"),
      sharedWeight: fc.boolean(),
      decoy: fc.oneof(
        { weight: 2, arbitrary: fc.constant(null) },
        { weight: 1, arbitrary: fc.constantFrom(...DECOYS) },
      ),
      seed: fc.nat(100_000),
    })
    .map((spelling) => ({ ...spelling, ...fixed }));
}
