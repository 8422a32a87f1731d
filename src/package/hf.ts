/**
 * The layout of the Hugging Face Hub for ONNX models, which transformers.js loads: the graph in `onnx/`, configuration and
 * tokenizer in the root. `transformers.js_config` says that the one file without a suffix is meant on every device, and
 * whether weights lie beside it.
 *
 * transformers.js knows which states to make from config.json alone, so they are compared with those of the graph.
 * Source: configs.js, modeling_utils.js, session.js and dtypes.js of transformers.js 4.3.
 */

import { EXIT, MambacError } from "../support/errors.js";
import type { PackagePlan, PackageSource } from "./plan.js";
import { sideCopies } from "./side-files.js";

/** Model types whose recurrent states transformers.js carries. */
const CARRIED = ["falcon_h1", "granitemoehybrid", "nemotron_h"];

/** Inputs besides tokens and states that it fills in. */
const FED = ["attention_mask", "position_ids", "num_logits_to_keep"];

/** The symbol of the batch in states it makes; any other symbol is taken for an empty axis. */
const BATCH = "batch_size";

type Config = Readonly<Record<string, unknown>>;

/** Plan of the folder. Throws `package/hf`. */
export function hfPackage(source: PackageSource): PackagePlan {
  const config = source.sideFiles?.config ?? null;
  const type = config?.["model_type"];
  if (config === null || typeof type !== "string") {
    throw refusal("it needs a config.json with a model_type: name the folder of the source model with --tokenizer");
  }
  const notes = CARRIED.includes(type)
    ? carriedNotes(source, config)
    : [
        `transformers.js 4.3 carries the states of ${CARRIED.join(", ")} alone, so its generate() cannot run model type ${type}; ` +
          "run the graph with onnxruntime-web or onnxruntime-node, and take the tokenizer from it",
      ];
  return {
    model: { path: "onnx/model.onnx", dataSuffix: "_data" },
    texts: [{ path: "config.json", text: `${JSON.stringify(withFiles(config, source.external), null, 2)}\n` }],
    copies: sideCopies(source.sideFiles, "config.json"),
    notes,
  };
}

function withFiles(config: Config, external: boolean): Config {
  const { use_external_data_format: _, ...given } = recordOf(config["transformers.js_config"]);
  const files = { dtype: "fp32", ...(external ? { use_external_data_format: { "model.onnx": 1 } } : {}) };
  return { ...config, "transformers.js_config": { ...given, ...files } };
}

/** Refuses what transformers.js would feed wrongly. */
function carriedNotes({ signature }: PackageSource, config: Config): string[] {
  const { states, auxiliaries, tokens } = signature;
  const stranger = auxiliaries.find(({ name }) => !FED.includes(name));
  if (stranger !== undefined) throw refusal(`transformers.js does not feed the input ${stranger.name}`);
  if (typeof tokens.length === "number") {
    throw refusal("transformers.js feeds a whole prompt at once, but the graph takes one token a call");
  }
  const fed = stateNames(config);
  const missing = states.find(({ input }) => !fed.has(input));
  if (missing !== undefined) {
    throw refusal(
      `transformers.js does not feed the state ${missing.input}, going by config.json: compile with --state-names ` +
        "transformersjs, and take the config.json of this very model",
    );
  }
  const renamed = states.find(
    ({ input, output }) => output !== input.replace("past_key_values", "present").replace("past_", "present_"),
  );
  if (renamed !== undefined) throw refusal(`transformers.js does not take ${renamed.output} for ${renamed.input}`);
  const odd = states.find(({ shape: [batch] }) => batch !== BATCH && typeof batch !== "number");
  if (odd !== undefined) throw refusal(`transformers.js needs the batch of ${odd.input} to be called ${BATCH}`);
  return states.some(({ input }) => input.startsWith("past_key_values"))
    ? []
    : [
        "generate() of transformers.js 4.3 counts tokens by an attention cache, which this model has none of: call the " +
          "model itself, and hand its present states on as past_key_values",
      ];
}

/** Names of the states transformers.js makes for such a configuration. */
function stateNames(config: Config): Set<string> {
  const listed = config["layer_types"] ?? config["layers_block_type"];
  const kinds = Array.isArray(listed) ? listed.map(String) : null;
  const stated = config["num_hidden_layers"];
  const layers = typeof stated === "number" ? stated : (kinds?.length ?? 0);
  const names = Array.from({ length: layers }, (_, layer) => [
    ...(kinds === null || kinds[layer] === "mamba" ? [`past_conv.${layer}`, `past_ssm.${layer}`] : []),
    ...(kinds === null || kinds[layer] === "attention"
      ? [`past_key_values.${layer}.key`, `past_key_values.${layer}.value`]
      : []),
  ]);
  return new Set(names.flat());
}

function recordOf(value: unknown): Config {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? { ...value } : {};
}

function refusal(reason: string): MambacError {
  return new MambacError("package/hf", `no package in the layout of the Hub: ${reason}`, EXIT.unsupported);
}
