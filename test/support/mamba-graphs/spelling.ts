/** What a generated Mamba model looks like: its sizes, and how each part of it is spelled. */

import type { Family } from "../../../src/ops/names.js";

/** Sizes; Mamba-1 has `headDim` 1 and one head a channel. */
export interface MambaSizes {
  readonly vocabulary: number;
  readonly dModel: number;
  readonly layers: number;
  readonly heads: number;
  readonly headDim: number;
  readonly dState: number;
  readonly groups: number;
  readonly kernel: number;
  /** Mamba-1 only. */
  readonly dtRank: number;
  /** Chunk length of the chunked form. */
  readonly chunk: number;
}

export const FORMS = [
  "step",
  "unrolled",
  "chunked",
  "linear-attention",
  "loop",
  "scan",
  /** All tokens at once, by cumulative sums that are divided again. */
  "cumsum",
  /** All tokens at once, by a tree of an associative product. */
  "associative",
  /** A step where there is one token, else a scan of many: an If in each layer. */
  "branches",
] as const;
export type GraphForm = (typeof FORMS)[number];

/**
 * Something wrong with the recurrence, so that it is no selective scan although it looks like one. Only
 * `skip-on-input-term` leaves a scan: one without D.
 */
export const SABOTAGES = [
  "input-without-dt",
  "decay-twice",
  "late-readout",
  "state-not-carried",
  "skip-on-input-term",
  "positive-a",
  "token-dependent-a",
  "readout-with-b",
  "bias-after-softplus",
  /** What is summed up, or combined in pairs, gives no recurrence. */
  "other-sum",
  /** The state that comes in is added to what every token brings: right for one token only. */
  "other-start",
] as const;
export type Sabotage = (typeof SABOTAGES)[number];

/**
 * What makes each form no scan. The chunked form and LinearAttention leave no room for the others: a state that is not
 * carried between chunks shows only where there is more than one.
 */
export function sabotagesOf(form: GraphForm): readonly Sabotage[] {
  const everywhere: readonly Sabotage[] = [
    "input-without-dt",
    "decay-twice",
    "positive-a",
    "token-dependent-a",
    "readout-with-b",
    "bias-after-softplus",
  ];
  if (form === "linear-attention") return everywhere;
  if (form === "cumsum" || form === "associative") return [...everywhere, "late-readout", "other-sum"];
  return form === "chunked"
    ? [...everywhere, "state-not-carried"]
    : [...everywhere, "late-readout", "state-not-carried"];
}

export interface Spelling {
  readonly form: GraphForm;
  readonly family: Family;
  readonly opset: 17 | 18 | 20 | 21;
  /** Fixed sizes, or names of free dimensions. */
  readonly batch: number | null;
  readonly length: number | null;
  /** Declare a free length although the graph works for `length` only. */
  readonly claimsFreeLength: boolean;
  /** Fixed dimensions as strings such as "32". */
  readonly numericNames: boolean;

  /** Interface: none, state outputs only, or inputs and outputs. */
  readonly states: "none" | "present" | "both";
  readonly stateNames: "hf" | "transformersjs" | "mobius" | "plain";
  readonly stateWidth: "k" | "k-1";
  /** The zero state, where there is no state input. */
  readonly zeros: "constant-of-shape" | "expand" | "constant";

  readonly decay: "folded" | "neg-exp";
  /** Mamba-2: A as [H], pre-broadcast [H,P,N], or an Expand of [H,1,1]. */
  readonly broadcastA: "no" | "folded" | "expand";
  /** Mamba-2: dt is expanded to P before the softplus. */
  readonly dtToChannels: boolean;
  readonly softplus: "plain" | "where" | "log-exp" | "log-add-exp" | "stable";
  /** `clip-zero-inf` bounds nothing: softplus is never negative. */
  readonly clamp: "none" | "clip" | "clip-zero-inf" | "clip-low-inf" | "max" | "min";
  readonly dtBias: "add" | "gemm" | "none";
  /** Mamba-1: dt_proj with the weight on the left. */
  readonly dtLeft: boolean;
  /** Mamba-1: norms on dt, B and C. */
  readonly innerNorms: "none" | "learned" | "weightless";

  readonly groupRepeat: "broadcast" | "expand" | "tile" | "gather";
  readonly layout: "tokens-first" | "channels-first";
  /** Which of dt, B and x are multiplied first. */
  readonly inputTerm: "dt-b-first" | "dt-x-first";
  readonly selector: "gather" | "slice-squeeze" | "split";
  readonly readout: "matmul" | "mul-sum" | "einsum";
  /** Per-step factors are computed once for all steps (true) or inside each step. */
  readonly precomputed: boolean;
  readonly skip: "none" | "head" | "channel";

  readonly contraction: "einsum" | "mul-sum" | "minimal";
  readonly segments: "masked-cumsum" | "difference";
  /** Padding of a chunked graph with a fixed length; a free length always pads. */
  readonly padding: "dynamic" | "static";
  readonly skipOnPadded: boolean;

  /**
   * Of cumulative sums: decays of what is behind each token, with the tokens turned around or summed in reverse; growth
   * against the decay; or chunks. Of associative scans: odd and even tokens, doubling reach, or sweeps in place.
   */
  readonly parallel: "suffix" | "reverse" | "negated" | "chunks" | "odd-even" | "doubling" | "in-place";

  readonly carry: "sequence" | "scatter" | "stacked";
  /** The Scan body is one call of a model-local function. */
  readonly bodyFunction: boolean;
  readonly scanAxes: "transpose" | "attributes";
  /** The scan sits in a model-local function. */
  readonly wrapped: boolean;
  readonly attentionDomain: "com.microsoft" | "";

  /** `same` looks both ways and is no causal convolution. */
  readonly conv: "pad-both" | "pad-left" | "pad-node" | "fused" | "same";
  readonly stepConv: "conv" | "sum";
  readonly convBias: "conv" | "add" | "none";
  readonly convActivation: boolean;

  readonly gate: "silu" | "none";
  readonly gateNorm: "none" | "after" | "after-grouped" | "before" | "layer-norm";
  readonly norm: "reciprocal" | "div" | "simplified";
  readonly projection: "matmul" | "gemm" | "transposed";
  readonly split: "split" | "slice";
  /** Share of nodes followed by an Identity or a Cast to the type they have. */
  readonly noise: number;
  readonly shareWeights: boolean;
  /** What an If holds. */
  readonly branch: "scan" | "conv-and-scan" | "mixer";
  /** The multi-token branch of an If starts from zero state, whatever comes in. */
  readonly branchForgets: boolean;
  readonly branchLong: "chunked" | "loop" | "scan";
  readonly branchTest: "equal" | "greater" | "input";

  /** Which way the layers read the tokens: vision models also go backwards, or take every second token first. */
  readonly direction: "forward" | "backward" | "shuffled" | "both" | "scan-attribute";

  readonly sabotage: Sabotage | null;
}

export const DEFAULT_SPELLING: Spelling = {
  form: "unrolled",
  family: "mamba1",
  opset: 20,
  batch: null,
  length: 6,
  claimsFreeLength: false,
  numericNames: false,
  states: "none",
  stateNames: "hf",
  stateWidth: "k",
  zeros: "constant-of-shape",
  decay: "neg-exp",
  broadcastA: "no",
  dtToChannels: false,
  softplus: "plain",
  clamp: "none",
  dtBias: "add",
  dtLeft: false,
  innerNorms: "none",
  groupRepeat: "expand",
  layout: "tokens-first",
  inputTerm: "dt-b-first",
  selector: "gather",
  readout: "matmul",
  precomputed: true,
  skip: "head",
  contraction: "einsum",
  segments: "masked-cumsum",
  padding: "dynamic",
  skipOnPadded: true,
  parallel: "suffix",
  carry: "sequence",
  bodyFunction: false,
  scanAxes: "transpose",
  wrapped: false,
  attentionDomain: "com.microsoft",
  conv: "pad-both",
  stepConv: "conv",
  convBias: "conv",
  convActivation: true,
  gate: "silu",
  gateNorm: "none",
  norm: "reciprocal",
  projection: "matmul",
  split: "split",
  noise: 0,
  shareWeights: false,
  branch: "conv-and-scan",
  branchForgets: true,
  branchLong: "chunked",
  branchTest: "equal",
  direction: "forward",
  sabotage: null,
};

/** Sizes that are all different, so that mixed-up axes show. */
export const DEFAULT_SIZES: Readonly<Record<Family, MambaSizes>> = {
  mamba1: {
    vocabulary: 23,
    dModel: 10,
    layers: 2,
    heads: 14,
    headDim: 1,
    dState: 4,
    groups: 1,
    kernel: 3,
    dtRank: 2,
    chunk: 8,
  },
  mamba2: {
    vocabulary: 23,
    dModel: 10,
    layers: 2,
    heads: 6,
    headDim: 3,
    dState: 4,
    groups: 2,
    kernel: 3,
    dtRank: 1,
    chunk: 8,
  },
};
