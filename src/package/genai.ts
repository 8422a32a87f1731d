/**
 * A model folder of ONNX Runtime GenAI: `genai_config.json`, the model and its tokenizer.
 *
 * GenAI finds recurrent layers by name (`past_key_values.N.conv_state` and `.recurrent_state`, next to the names of keys
 * that it is configured with), sizes all of them like the first, zero-fills bytes of whatever type the graph declares, and
 * binds one buffer as past and present. What it would not bind or would bind wrongly is refused here.
 * Source: recurrent_state.cpp, model_type.h, config.cpp and decoder_only.cpp of ONNX Runtime GenAI.
 */

import { basename } from "node:path";
import type { StatePair } from "../run/signature.js";
import { EXIT, MambacError } from "../support/errors.js";
import { carriedStates, type PackagePlan, type PackageSource } from "./plan.js";
import { sideCopies } from "./side-files.js";

/** Inputs besides tokens and states that GenAI fills in. */
const FED = ["attention_mask", "position_ids"];

/** The most tokens of a sequence where config.json says nothing: a recurrent state has no limit, but GenAI wants one. */
const CONTEXT_LENGTH = 131_072;

const PAST = /^past_key_values\.(\d+)\.(conv_state|recurrent_state)$/;

/** Plan of the folder. Throws `package/states` and `package/genai`. */
export function genaiPackage(source: PackageSource): PackagePlan {
  const layers = recurrentLayers(carriedStates(source));
  const library = source.library === null ? null : basename(source.library);
  const tokenIds = idsOf(source);
  const notes = [
    ...(tokenIds["eos_token_id"] === undefined
      ? ["no eos_token_id is known, so GenAI ends at token 0; name the model's folder with --tokenizer, or set it"]
      : []),
    ...(source.sideFiles === null ? ["no tokenizer is in the package; name the model's folder with --tokenizer"] : []),
  ];
  return {
    model: { path: "model.onnx", dataSuffix: ".data" },
    texts: [
      { path: "genai_config.json", text: `${JSON.stringify(config(source, layers, library, tokenIds), null, 2)}\n` },
    ],
    copies: [
      ...sideCopies(source.sideFiles),
      ...(source.library === null || library === null ? [] : [{ path: library, from: source.library }]),
    ],
    notes,
  };
}

function config(
  source: PackageSource,
  layers: number,
  library: string | null,
  tokenIds: Readonly<Record<string, unknown>>,
): object {
  const { tokens, logits, auxiliaries } = source.signature;
  const stranger = auxiliaries.find(({ name }) => !FED.includes(name));
  if (stranger !== undefined) throw refusal(`it does not feed the input ${stranger.name}`);
  if (typeof tokens.length === "number") {
    throw refusal(
      "it feeds a whole prompt at once, but the graph takes one token a call: compile the prefill graph too",
    );
  }
  const vocabulary = logits.shape.at(-1);
  if (typeof vocabulary !== "number") throw refusal(`the size of the vocabulary is not in the shape of ${logits.name}`);
  const length = lengthOf(source);
  return {
    model: {
      type: "decoder",
      ...tokenIds,
      vocab_size: vocabulary,
      context_length: length,
      decoder: {
        filename: "model.onnx",
        session_options: { provider_options: [], ...(library === null ? {} : { custom_ops_library: library }) },
        num_hidden_layers: layers,
        inputs: {
          input_ids: tokens.name,
          ...Object.fromEntries(auxiliaries.map(({ name }) => [name, name])),
          past_key_names: "past_key_values.%d.key",
          past_value_names: "past_key_values.%d.value",
        },
        outputs: {
          logits: logits.name,
          present_key_names: "present.%d.key",
          present_value_names: "present.%d.value",
        },
      },
    },
    search: { do_sample: false, max_length: length, past_present_share_buffer: false },
  };
}

/** How many layers there are, once it is clear that GenAI binds every one of them. */
function recurrentLayers(states: readonly StatePair[]): number {
  const first = new Map<string, StatePair>();
  const found = new Map<number, Set<string>>();
  for (const state of states) {
    if (state.growthAxis !== null) {
      throw refusal(
        `${state.input} is an attention cache; GenAI binds a key and a value for every layer from 0 on, which a hybrid lacks`,
      );
    }
    const [, number = "", kind = ""] = PAST.exec(state.input) ?? [];
    if (number === "" || state.output !== `present.${number}.${kind}`) {
      throw refusal(`it does not find the state ${state.input} by its name: compile with --state-names genai`);
    }
    const like = first.get(kind) ?? state;
    first.set(kind, like);
    if (like.dtype !== state.dtype || like.shape.slice(1).join() !== state.shape.slice(1).join()) {
      throw refusal(`it makes all layers' states like ${like.input}, but ${state.input} has another type or shape`);
    }
    if (state.shape.slice(1).some((dim) => typeof dim !== "number")) {
      throw refusal(`it wants fixed dimensions after the batch, but ${state.input} has ${state.shape.join(", ")}`);
    }
    const kinds = found.get(Number(number)) ?? new Set();
    found.set(Number(number), kinds.add(kind));
  }
  for (const [layer, kinds] of found) {
    if (kinds.size === 2) continue;
    throw refusal(
      `it wants one conv_state and one recurrent_state a layer, but layer ${layer} has ${[...kinds].join()} alone`,
    );
  }
  const [conv, recurrent] = [first.get("conv_state"), first.get("recurrent_state")];
  if (conv?.shape.length !== 3 || recurrent === undefined || recurrent.shape.length > 4) {
    throw refusal("it wants convolution states of rank 3 and recurrent states of rank 4 or less");
  }
  return found.size;
}

/** Ids of special tokens, as far as the files beside the tokenizer tell. */
function idsOf({ sideFiles }: PackageSource): Record<string, unknown> {
  const known = { ...sideFiles?.config, ...sideFiles?.generation };
  const fits = (key: string): boolean => {
    const value = known[key];
    const list = key === "eos_token_id" && Array.isArray(value) ? value : [value];
    return list.length > 0 && list.every(Number.isSafeInteger);
  };
  const keys = ["bos_token_id", "eos_token_id", "pad_token_id"].filter(fits);
  return Object.fromEntries(keys.map((key) => [key, known[key]]));
}

function lengthOf({ sideFiles }: PackageSource): number {
  const length = sideFiles?.config?.["max_position_embeddings"];
  return typeof length === "number" && Number.isSafeInteger(length) && length > 0 ? length : CONTEXT_LENGTH;
}

function refusal(reason: string): MambacError {
  return new MambacError("package/genai", `no package for ONNX Runtime GenAI: ${reason}`, EXIT.unsupported);
}
