/** Whole language models around the mixers: embedding, layers with residuals, norm, head. */

import { typed } from "../../../src/ir/builder.js";
import { type Model, makeModel, type ValueInfo } from "../../../src/ir/graph.js";
import type { Dim } from "../../../src/ir/types.js";
import { convStateWidth } from "./convolution.js";
import { gain, linear, rmsNorm } from "./layer-parts.js";
import { convChannelsOf, mixer, type Pasts } from "./mixer.js";
import type { MambaSizes, Spelling } from "./spelling.js";
import { Writer } from "./writer.js";

/** Names of the states of one layer. */
export interface StateNames {
  readonly pastConv: string;
  readonly pastSsm: string;
  readonly presentConv: string;
  readonly presentSsm: string;
}

export function stateNames(style: Spelling["stateNames"], layer: number): StateNames {
  switch (style) {
    case "hf": {
      const conv = `cache_params.layers.${layer}.conv_states.0`;
      const ssm = `cache_params.layers.${layer}.recurrent_states.0`;
      return {
        pastConv: `input.${conv}`,
        pastSsm: `input.${ssm}`,
        presentConv: `output.${conv}`,
        presentSsm: `output.${ssm}`,
      };
    }
    case "transformersjs":
      return {
        pastConv: `past_conv.${layer}`,
        pastSsm: `past_ssm.${layer}`,
        presentConv: `present_conv.${layer}`,
        presentSsm: `present_ssm.${layer}`,
      };
    case "mobius":
      return {
        pastConv: `past_states.${layer}.conv_state`,
        pastSsm: `past_states.${layer}.ssm_state`,
        presentConv: `present.${layer}.conv_state`,
        presentSsm: `present.${layer}.ssm_state`,
      };
    default:
      return {
        pastConv: `window_${layer}`,
        pastSsm: `memory_${layer}`,
        presentConv: `window_out_${layer}`,
        presentSsm: `memory_out_${layer}`,
      };
  }
}

/** A model of these sizes in this spelling; the same seed gives the same weights in every spelling. */
export function mambaModel(sizes: MambaSizes, spelling: Spelling, seed: number): Model {
  const w = new Writer(sizes, spelling, seed);
  const { form, states } = spelling;
  w.single = form === "step";
  const tokens = "input_ids";
  const inputs: ValueInfo[] = [typed(tokens, "i64", [batchDim(spelling), lengthDim(spelling)])];
  if (form === "branches" && spelling.branchTest === "input") inputs.push(typed("use_cache_branch", "bool", []));
  const outputs: ValueInfo[] = [];
  w.readDims(tokens);
  w.scope = "model";
  const table = w.weight("embeddings", [sizes.vocabulary, sizes.dModel], (normal) => normal());
  let hidden = w.op("Gather", [table, tokens], { axis: 0 });
  const rename = new Map<string, string>();
  for (let layer = 0; layer < sizes.layers; layer++) {
    w.scope = `layers.${layer}`;
    const names = stateNames(spelling.stateNames, layer);
    const pasts: Pasts = states === "both" ? { conv: names.pastConv, ssm: names.pastSsm } : { conv: null, ssm: null };
    const convType = typed("", "f32", [batchDim(spelling), convChannelsOf(w), convStateWidth(w)]);
    const ssmType = typed("", "f32", [batchDim(spelling), ...ssmShape(sizes, spelling)]);
    if (states === "both") {
      inputs.push({ ...convType, name: names.pastConv }, { ...ssmType, name: names.pastSsm });
    }
    const normed = rmsNorm(w, hidden, gain(w, "norm", sizes.dModel));
    const { direction } = spelling;
    const turned = (value: string): string =>
      w.op("Slice", [value, w.ints([-1]), w.ints([-Number.MAX_SAFE_INTEGER]), w.ints([1]), w.ints([-1])]);
    const [ahead, back] =
      direction === "backward"
        ? [turned, turned]
        : direction === "shuffled"
          ? shuffling(w)
          : [(value: string): string => value, (value: string): string => value];
    const result = mixer(w, ahead(normed), pasts);
    hidden = w.op("Add", [hidden, back(result.out)]);
    if (direction === "both") {
      w.scope = `layers.${layer}.back`;
      hidden = w.op("Add", [hidden, turned(mixer(w, turned(normed), { conv: null, ssm: null }).out)]);
    }
    if (states === "none") continue;
    if (result.conv !== null) {
      rename.set(names.presentConv, result.conv);
      outputs.push({ ...convType, name: names.presentConv });
    }
    rename.set(names.presentSsm, result.ssm);
    outputs.push({ ...ssmType, name: names.presentSsm });
  }
  w.scope = "model";
  const normed = rmsNorm(w, hidden, gain(w, "final_norm", sizes.dModel));
  rename.set("logits", linear(w, "head", normed, sizes.dModel, sizes.vocabulary));
  for (const [name, value] of rename) w.builder.op("Identity", [value], {}, name);
  outputs.unshift(typed("logits", "f32", [batchDim(spelling), lengthDim(spelling), sizes.vocabulary]));
  return asModel(w, inputs, outputs);
}

/** Every second token first, and back again. */
function shuffling(w: Writer): readonly [ahead: (value: string) => string, back: (value: string) => string] {
  const { length } = w.spelling;
  if (length === null) throw new Error("a shuffle needs a length");
  const order = [0, 1].flatMap((odd) => Array.from({ length }, (_, at) => at).filter((at) => at % 2 === odd));
  const inverse = order.map((_, at) => order.indexOf(at));
  const taking =
    (picks: readonly number[]) =>
    (value: string): string =>
      w.op("Gather", [value, w.ints(picks)], { axis: 1 });
  return [taking(order), taking(inverse)];
}

/** Shape of a recurrent state without its batch. */
export function ssmShape(sizes: MambaSizes, spelling: Spelling): number[] {
  const { heads, headDim, dState } = sizes;
  if (spelling.family === "mamba1") return [heads, dState];
  return spelling.form === "linear-attention" ? [heads, dState, headDim] : [heads, headDim, dState];
}

function batchDim(spelling: Spelling): Dim {
  if (spelling.batch === null) return "batch_size";
  return spelling.numericNames ? String(spelling.batch) : spelling.batch;
}

function lengthDim(spelling: Spelling): Dim {
  if (spelling.length === null || spelling.claimsFreeLength) return "sequence_length";
  if (spelling.form === "step") return spelling.numericNames ? "1" : 1;
  return spelling.numericNames ? String(spelling.length) : spelling.length;
}

function asModel(w: Writer, inputs: readonly ValueInfo[], outputs: readonly ValueInfo[]): Model {
  const { opset, attentionDomain } = w.spelling;
  const domains: [string, number][] = [["", attentionDomain === "" ? 27 : opset]];
  if (w.functions.length > 0) domains.push(["test.functions", 1]);
  if (attentionDomain !== "") domains.push([attentionDomain, 1]);
  return makeModel(w.main.graph("model", inputs, outputs), { opsets: new Map(domains), functions: w.functions });
}
