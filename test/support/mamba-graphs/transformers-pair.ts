/** One layer of the 130M models as the transformers exporters write it: a prefill and a decode graph. */

import type { Model } from "../../../src/ir/graph.js";
import type { Family } from "../../../src/ops/names.js";
import { mambaModel } from "./model.js";
import { DEFAULT_SPELLING, type MambaSizes, type Spelling } from "./spelling.js";

const SIZES: Readonly<Record<Family, MambaSizes>> = {
  mamba1: {
    vocabulary: 96,
    dModel: 768,
    layers: 1,
    heads: 1536,
    headDim: 1,
    dState: 16,
    groups: 1,
    kernel: 4,
    dtRank: 48,
    chunk: 256,
  },
  mamba2: {
    vocabulary: 96,
    dModel: 768,
    layers: 1,
    heads: 24,
    headDim: 64,
    dState: 128,
    groups: 1,
    kernel: 4,
    dtRank: 1,
    chunk: 256,
  },
};

const SHARED: Partial<Spelling> = {
  stateNames: "hf",
  stateWidth: "k",
  zeros: "expand",
  softplus: "where",
  decay: "neg-exp",
};

/** What constant folding leaves at these sizes: A_log as it is, and an Expand for Mamba-2's A of one number a head. */
const SPELLINGS: Readonly<Record<Family, { readonly prefill: Partial<Spelling>; readonly decode: Partial<Spelling> }>> =
  {
    mamba1: {
      prefill: { form: "unrolled", length: 24, states: "present", dtLeft: true, layout: "channels-first" },
      decode: { form: "step", length: 1, states: "both", dtLeft: true },
    },
    mamba2: {
      prefill: {
        form: "chunked",
        length: null,
        states: "present",
        clamp: "clip-zero-inf",
        groupRepeat: "tile",
        gateNorm: "after",
      },
      decode: { form: "step", length: 1, states: "both", dtToChannels: true, broadcastA: "expand", gateNorm: "after" },
    },
  };

/** Prefill and decode graph of one set of weights. */
export function transformersPair(family: Family): { readonly prefill: Model; readonly decode: Model } {
  const model = (changes: Partial<Spelling>): Model =>
    mambaModel(SIZES[family], { ...DEFAULT_SPELLING, family, ...SHARED, ...changes }, 130);
  return { prefill: model(SPELLINGS[family].prefill), decode: model(SPELLINGS[family].decode) };
}
