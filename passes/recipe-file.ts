/**
 * Recipes as YAML or JSON files: what they may hold, read and written. `schema/recipe.schema.json` says the same to
 * editors.
 */

import type { Plain } from "../src/document/located.js";
import {
  choice,
  list,
  nullable,
  optional,
  preset,
  quantity,
  readDocument,
  record,
  required,
  type Shape,
  text,
  truth,
} from "../src/document/shape.js";
import { formatYaml } from "../src/document/yaml.js";
import { MAX_REPLAY_LENGTH, REQUANTIZE_MODES, STATE_FORMATS, STATE_SCALES } from "../src/ops/names.js";
import { parseWeightScheme } from "../src/quant/scheme.js";
import { QDQ_PROFILES } from "../src/rewrite/qdq-profile.js";
import type { StateChoice } from "../src/rewrite/semantic.js";
import { LINEAR_ROLES, type LinearRole } from "../src/rewrite/sites.js";
import { MambacError } from "../src/support/errors.js";
import {
  ACTIVATION_TIMINGS,
  type ActivationRule,
  DT_ROTATIONS,
  EMBEDDING_FORMATS,
  type PrecisionRule,
  type QuantRecipe,
  RESIDUAL_ROTATIONS,
  ROUNDING_METHODS,
  recipeDefaults,
  type ScanInputRule,
  SEARCH_PARTS,
  type SearchBudgetRule,
  type SearchRule,
  SMOOTH_METHODS,
  type WeightRule,
} from "./quant-recipes.js";
import { BUDGET_KINDS } from "./search-precision.js";

const ROLES: Shape<readonly LinearRole[]> = list(choice(LINEAR_ROLES), { least: 1 });
const LAYERS: Shape<readonly string[]> = list(text(), { least: 1 });
const rolesField = required(ROLES, "the projections it is about");
const layersField = optional(
  LAYERS,
  "labels of the layers it is about, such as layers.3 or layers.1*; all if left out",
);

const SMOOTH: Shape<NonNullable<QuantRecipe["smooth"]>> = record<NonNullable<QuantRecipe["smooth"]>>({
  alpha: required(quantity({ least: 0, most: 1 }), "share of the range that moves from activations into weights"),
  roles: required(ROLES, "projections whose input is smoothed"),
  method: optional(
    choice(SMOOTH_METHODS),
    "one alpha for all (fixed, the default), the best of each activation, or the scales of AWQ",
  ),
});

const ROTATE: Shape<QuantRecipe["rotate"]> = record<QuantRecipe["rotate"]>({
  residual: preset(choice(RESIDUAL_ROTATIONS), "none", "rotation of the residual stream, folded into the weights"),
  output: preset(truth, false, "Hadamard transform in front of out_proj, run in every call"),
  dt: preset(choice(DT_ROTATIONS), "none", "rotation of the input of dt_proj (Mamba-1)"),
  state: preset(truth, false, "rotation of the state along d_state (Mamba-2)"),
});

const schemeField = required(
  nullable(
    text({
      pattern: "^[iu][2348]:(tensor|channel|in-channel|g[1-9][0-9]{0,5})(:(span|mse|f16))*$",
      check: (spelling) => void parseWeightScheme(spelling),
    }),
  ),
  "bits and what shares a scale, such as i8:channel or i4:g128; null keeps float",
);
const shareField = preset(
  quantity({ above: 0, most: 1 }),
  1,
  "share of magnitudes that must be representable; 1 is the largest ever seen",
);

const WEIGHT: Shape<WeightRule> = record<WeightRule>({
  roles: rolesField,
  layers: layersField,
  scheme: schemeField,
  method: preset(choice(ROUNDING_METHODS), "nearest", "how values are put on the grid"),
});

const ACTIVATION: Shape<ActivationRule> = record<ActivationRule>({
  roles: rolesField,
  layers: layersField,
  timing: preset(
    choice(ACTIVATION_TIMINGS),
    "static",
    "a scale from calibration, a scale measured in every call, or float",
  ),
  share: shareField,
});

const PRECISION: Shape<PrecisionRule> = record<PrecisionRule>({
  name: required(text({ pattern: "^\\S+$", check: requireName }), "what reports call it; no spaces"),
  scheme: schemeField,
  method: preset(choice(ROUNDING_METHODS), "nearest", "how values are put on the grid"),
  timing: preset(choice(ACTIVATION_TIMINGS), "float", "what becomes of the activations it reads"),
  share: shareField,
});

const BUDGET: Shape<SearchBudgetRule> = record<SearchBudgetRule>(
  {
    bits: optional(quantity({ above: 0, most: 32 }), "bits a weight at most, scales included"),
    bytes: optional(quantity({ least: 1, whole: true }), "bytes of all these projections at most"),
    divergence: optional(
      quantity({ above: 0 }),
      "divergence from float at most, bits a token, summed over what is decided",
    ),
    raised: optional(
      quantity({ least: 0, most: 1 }),
      "share of the weights that may have another precision than the first",
    ),
  },
  (budget) => {
    const given = BUDGET_KINDS.filter((kind) => budget[kind] !== undefined);
    if (given.length === 1) return null;
    return `a budget is exactly one of ${BUDGET_KINDS.join(", ")}; ${given.length === 0 ? "there is none" : `here are ${given.join(" and ")}`}`;
  },
);

const SEARCH: Shape<SearchRule> = record<SearchRule>(
  {
    roles: rolesField,
    each: preset(choice(SEARCH_PARTS), "projection", "what gets a precision of its own"),
    precisions: required(list(PRECISION, { least: 2 }), "what they may get; the first is the one without need"),
    budget: required(BUDGET, "what the mix must keep to; within it the least loss, or the fewest bytes, is taken"),
    sequences: preset(quantity({ least: 1, whole: true }), 8, "sequences of calibration data to measure on"),
  },
  ({ precisions }) => {
    const names = precisions.map(({ name }) => name);
    const twice = names.find((name, at) => names.indexOf(name) !== at);
    return twice === undefined ? null : `there are two precisions '${twice}'`;
  },
);

const STATE: Shape<StateChoice> = record<StateChoice>({
  format: required(choice(STATE_FORMATS), "how the recurrent state is kept between calls"),
  scale: preset(choice(STATE_SCALES), "dsq-max", "scales of h8 and h4; static ones are frozen, from calibration data"),
  requantize: preset(
    choice(REQUANTIZE_MODES),
    "call",
    "round at the end of a call, after every token in it, or once in so many tokens",
  ),
  replayLength: optional(
    quantity({ least: 1, most: MAX_REPLAY_LENGTH, whole: true }),
    "tokens between two roundings of a replay state",
  ),
});

const SCAN_INPUT: Shape<ScanInputRule> = record<ScanInputRule>({
  share: preset(quantity({ above: 0, most: 1 }), 1, "share of magnitudes that must be representable"),
  clusters: preset(truth, false, "sort channels, and give clusters of like channels a scale each (Mamba-2)"),
});

const DEFAULTS = recipeDefaults();

const RECIPE: Shape<QuantRecipe> = record<QuantRecipe>({
  name: required(text({ pattern: "^\\S+$", check: requireName }), "what reports call it; no spaces"),
  summary: preset(text(), "", "one sentence for people"),
  smooth: preset(nullable(SMOOTH), DEFAULTS.smooth, "SmoothQuant: outliers of activations move into weights"),
  rotate: preset(ROTATE, DEFAULTS.rotate, "rotations that spread outliers"),
  weights: preset(list(WEIGHT), DEFAULTS.weights, "ordered rules; the last that holds a projection decides"),
  activations: preset(
    list(ACTIVATION),
    DEFAULTS.activations,
    "ordered rules; the last that holds a projection decides",
  ),
  embedding: preset(nullable(choice(EMBEDDING_FORMATS)), DEFAULTS.embedding, "the embedding table, one scale a row"),
  scanInput: preset(nullable(SCAN_INPUT), DEFAULTS.scanInput, "the input x of recurrences, in 8 bits"),
  state: preset(STATE, DEFAULTS.state, "the recurrent state"),
  qdqProfile: optional(choice(QDQ_PROFILES), "whom quantized activations are placed for; ort-cpu if left out"),
  search: optional(SEARCH, "decides bits for each projection under a budget, by what they cost on calibration data"),
});

function requireName(name: string): void {
  if (!/^\S+$/.test(name)) throw new MambacError("recipe/name", `'${name}' is no name: it must be one word`);
}

/** A recipe from YAML or JSON. Throws `document/invalid`, a line for each problem; `label` names the text in them. */
export function readRecipe(source: string, label: string): QuantRecipe {
  return readDocument(source, RECIPE, label);
}

/** YAML that reads back as the same recipe. Equal recipes give equal texts. */
export function formatRecipe(recipe: QuantRecipe, comment: string | null = null): string {
  return formatYaml(JSON.parse(JSON.stringify(recipe)) as Plain, comment);
}

/** The JSON Schema of recipe files. */
export function recipeSchema(): { readonly [key: string]: Plain } {
  return {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    title: "mambac quantization recipe",
    description: "How mambac quantizes weights, activations and the recurrent state: --recipe FILE.yaml",
    ...RECIPE.schema,
  };
}
