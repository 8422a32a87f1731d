/**
 * Quantization recipes: which transforms, roundings and activation ranges, as data. The presets carry the names of the
 * field.
 */

import type { QdqProfile } from "../src/rewrite/qdq-profile.js";
import { FLOAT_STATE, type StateChoice } from "../src/rewrite/semantic.js";
import type { LinearRole } from "../src/rewrite/sites.js";
import { MambacError } from "../src/support/errors.js";
import type { SearchBudget } from "./search-precision.js";

export const ROUNDING_METHODS = ["nearest", "clipped", "gptq", "tanh"] as const;
export type RoundingMethod = (typeof ROUNDING_METHODS)[number];

/** Which projections a rule is about. */
export interface RuleScope {
  readonly roles: readonly LinearRole[];
  /** Layer labels, `*` standing for anything; every layer where it is left out. */
  readonly layers?: readonly string[];
}

/** Ordered rules: the last whose scope holds the projection decides; a projection no rule names stays float. */
export interface WeightRule extends RuleScope {
  /** Spelling of a weight scheme, such as `i8:channel` or `i4:g128`; null keeps float. */
  readonly scheme: string | null;
  readonly method: RoundingMethod;
}

export const ACTIVATION_TIMINGS = ["static", "dynamic", "float"] as const;
/** A scale from calibration, a scale measured in every call, or no rounding. */
export type ActivationTiming = (typeof ACTIVATION_TIMINGS)[number];

/** Ordered rules, as those of weights; an activation no rule names stays float. */
export interface ActivationRule extends RuleScope {
  readonly timing: ActivationTiming;
  /** Share of magnitudes that must be representable; 1 is the largest ever seen. Means nothing unless static. */
  readonly share: number;
}

export const SMOOTH_METHODS = ["fixed", "search", "awq"] as const;
/** One alpha for all, the best alpha of each activation, or the scales of AWQ, which look at weights only. */
export type SmoothMethod = (typeof SMOOTH_METHODS)[number];
export const EMBEDDING_FORMATS = ["i8", "i4"] as const;
export type EmbeddingFormat = (typeof EMBEDDING_FORMATS)[number];

/** How the input of a recurrence is quantized to 8 bits. */
export interface ScanInputRule {
  /** Share of magnitudes that must be representable; 1 where `clusters` is set. */
  readonly share: number;
  /** Channels are sorted first, and clusters of like channels get a scale each (Mamba-2). */
  readonly clusters: boolean;
}

/** What the search of precisions may give a projection. */
export interface PrecisionRule {
  /** What reports call it; one word. */
  readonly name: string;
  readonly scheme: string | null;
  readonly method: RoundingMethod;
  readonly timing: ActivationTiming;
  readonly share: number;
}

export const SEARCH_PARTS = ["projection", "layer"] as const;

/** Exactly one of them; what they mean is said where they are searched under. */
export type SearchBudgetRule = { readonly [Kind in SearchBudget["kind"]]?: number };

/** A search of the precision of each projection, or of each layer, from what it costs on calibration data. */
export interface SearchRule {
  readonly roles: readonly LinearRole[];
  readonly each: (typeof SEARCH_PARTS)[number];
  /** Two or more, the first being the one without need. */
  readonly precisions: readonly PrecisionRule[];
  readonly budget: SearchBudgetRule;
  /** Sequences of calibration data to measure on. */
  readonly sequences: number;
}

export const RESIDUAL_ROTATIONS = ["none", "hadamard", "klt"] as const;
export type ResidualRotation = (typeof RESIDUAL_ROTATIONS)[number];
export const DT_ROTATIONS = ["none", "hadamard", "klt"] as const;
export type DtRotation = (typeof DT_ROTATIONS)[number];

export interface QuantRecipe {
  readonly name: string;
  readonly summary: string;
  readonly smooth: {
    /** Means nothing unless the method is `fixed`. */
    readonly alpha: number;
    readonly roles: readonly LinearRole[];
    /** `fixed` where it is left out. */
    readonly method?: SmoothMethod;
  } | null;
  readonly rotate: {
    readonly residual: ResidualRotation;
    readonly output: boolean;
    readonly dt: DtRotation;
    readonly state: boolean;
  };
  readonly weights: readonly WeightRule[];
  readonly activations: readonly ActivationRule[];
  /** The embedding table; null keeps float. */
  readonly embedding: EmbeddingFormat | null;
  /** The input of recurrences; null keeps float. */
  readonly scanInput: ScanInputRule | null;
  readonly state: StateChoice;
  /** Decides weights and activations of some projections; its rules come after the others. */
  readonly search?: SearchRule;
  /** Whom the pairs of activations are placed for; `ort-cpu` where it is left out. */
  readonly qdqProfile?: QdqProfile;
}

const H8: StateChoice = { format: "h8", scale: "dsq", requantize: "call" };
const H4: StateChoice = { format: "h4", scale: "dsq-max", requantize: "call" };
const NO_ROTATION: QuantRecipe["rotate"] = { residual: "none", output: false, dt: "none", state: false };
const IN_OUT: readonly LinearRole[] = ["in_proj", "out_proj"];
const ALL: readonly LinearRole[] = ["in_proj", "x_proj", "dt_proj", "out_proj", "lm_head", "other"];
const BLOCK: readonly LinearRole[] = ["in_proj", "x_proj", "dt_proj", "out_proj", "other"];

/** What a recipe does about everything it does not mention: nothing. */
export function recipeDefaults(): Omit<QuantRecipe, "name" | "summary"> {
  return {
    smooth: null,
    rotate: NO_ROTATION,
    weights: [],
    activations: [],
    embedding: null,
    scanInput: null,
    state: FLOAT_STATE,
  };
}

function recipe(name: string, summary: string, parts: Partial<Omit<QuantRecipe, "name" | "summary">>): QuantRecipe {
  return { name, summary, ...recipeDefaults(), ...parts };
}

const nearest = (roles: readonly LinearRole[], scheme: string): WeightRule => ({ roles, scheme, method: "nearest" });
const gptq = (roles: readonly LinearRole[], scheme: string): WeightRule => ({ roles, scheme, method: "gptq" });
const clipped = (roles: readonly LinearRole[], scheme: string): WeightRule => ({ roles, scheme, method: "clipped" });
const fixed = (roles: readonly LinearRole[], share: number = 1): ActivationRule[] => [
  { roles, timing: "static", share },
];
const measured = (roles: readonly LinearRole[]): ActivationRule[] => [{ roles, timing: "dynamic", share: 1 }];

/** The presets, in the order they are listed. */
export const PRESETS: readonly QuantRecipe[] = Object.freeze([
  recipe("float", "no quantization of weights or activations", {}),
  recipe("ptqssm-w8-all", "PTQ-SSM: every projection and the embedding 8 bits, one scale a tensor", {
    weights: [nearest(ALL, "i8:tensor")],
    embedding: "i8",
  }),
  recipe("ptqssm-w8-all-pc", "PTQ-SSM: every projection and the embedding 8 bits, one scale an output channel", {
    weights: [nearest(ALL, "i8:channel")],
    embedding: "i8",
  }),
  recipe(
    "ptqssm-w8-all-tanh",
    "PTQ-SSM: every projection 8 bits on a tanh curve (experimental), the embedding 8 bits",
    {
      weights: [{ roles: ALL, scheme: "i8:tensor", method: "tanh" }],
      embedding: "i8",
    },
  ),
  recipe("ptqssm-w8-inout", "PTQ-SSM: in_proj and out_proj 8 bits, one scale a tensor", {
    weights: [nearest(IN_OUT, "i8:tensor")],
  }),
  recipe("ptqssm-w8-inout-pc", "PTQ-SSM: in_proj and out_proj 8 bits, one scale an output channel", {
    weights: [nearest(IN_OUT, "i8:channel")],
  }),
  recipe("ptqssm-w8-inout-tanh", "PTQ-SSM: in_proj and out_proj 8 bits on a tanh curve (experimental)", {
    weights: [{ roles: IN_OUT, scheme: "i8:tensor", method: "tanh" }],
  }),
  recipe("naive-w8a8", "8-bit weights and static 8-bit activations, one scale a tensor each", {
    weights: [nearest(BLOCK, "i8:tensor")],
    activations: fixed(BLOCK),
  }),
  recipe("rtn-w4a16", "4-bit weights in groups of 128, rounded to nearest", { weights: [nearest(BLOCK, "i4:g128")] }),
  recipe("gptq-w4a16", "GPTQ: 4-bit weights in groups of 128, ranges clipped by their mean squared error", {
    weights: [gptq(BLOCK, "i4:g128:mse")],
  }),
  recipe("awq-w4a16", "AWQ: activation-aware scales and clipping, 4-bit weights in groups of 128", {
    smooth: { alpha: 0.5, roles: BLOCK, method: "awq" },
    weights: [clipped(BLOCK, "i4:g128:span")],
  }),
  recipe("smoothquant-w8a8", "SmoothQuant alpha 0.5, 8-bit weights by channel, static 8-bit activations", {
    smooth: { alpha: 0.5, roles: BLOCK },
    weights: [nearest(BLOCK, "i8:channel")],
    activations: fixed(BLOCK),
  }),
  recipe(
    "smoothquant-search-w8a8",
    "SmoothQuant with the best alpha of each activation, 8-bit weights and activations",
    {
      smooth: { alpha: 0.5, roles: BLOCK, method: "search" },
      weights: [nearest(BLOCK, "i8:channel")],
      activations: fixed(BLOCK),
    },
  ),
  recipe("quamba-w8a8", "Quamba: Hadamard before out_proj, static 8-bit activations", {
    rotate: { ...NO_ROTATION, output: true },
    weights: [nearest(BLOCK, "i8:channel")],
    activations: fixed(BLOCK),
    state: H8,
  }),
  recipe("quamba2-w8a8", "Quamba2: residual stream and out_proj rotated, 8-bit weights and activations, 8-bit state", {
    rotate: { ...NO_ROTATION, residual: "hadamard", output: true },
    weights: [nearest(BLOCK, "i8:channel")],
    activations: fixed(BLOCK),
    state: H8,
  }),
  recipe("quamba2-w4a16", "Quamba2: rotated, GPTQ 4-bit weights in groups of 128", {
    rotate: { ...NO_ROTATION, residual: "hadamard", output: true },
    weights: [gptq(IN_OUT, "i4:g128")],
    state: H8,
  }),
  recipe(
    "mambaquant-w8a8",
    "MambaQuant: KLT-enhanced rotation of the residual stream, smooth-fused rotation of out_proj",
    {
      smooth: { alpha: 0.5, roles: ["out_proj", "dt_proj"] },
      rotate: { residual: "klt", output: true, dt: "klt", state: false },
      weights: [nearest(BLOCK, "i8:channel")],
      activations: fixed(BLOCK),
    },
  ),
  recipe(
    "mambaquant-w4a8",
    "MambaQuant with 4-bit weights: GPTQ by channel, clipped against the error, 8-bit activations",
    {
      smooth: { alpha: 0.5, roles: ["out_proj", "dt_proj"] },
      rotate: { residual: "klt", output: true, dt: "klt", state: false },
      weights: [gptq(BLOCK, "i4:channel:mse")],
      activations: measured(BLOCK),
    },
  ),
  recipe("quamba2-w4a8", "Quamba2: smooth-fused rotation, GPTQ 4-bit weights in groups of 128, 8-bit activations", {
    smooth: { alpha: 0.5, roles: ["out_proj", "dt_proj"] },
    rotate: { ...NO_ROTATION, residual: "hadamard", output: true },
    weights: [gptq(BLOCK, "i4:g128:mse")],
    activations: measured(BLOCK),
    state: H8,
  }),
  recipe("quamba2-w4a8-h2t", "Quamba2, head to toe: the head and the embedding in 4 bits too", {
    smooth: { alpha: 0.5, roles: ["out_proj", "dt_proj"] },
    rotate: { ...NO_ROTATION, residual: "hadamard", output: true },
    weights: [gptq(ALL, "i4:g128:mse")],
    activations: measured(ALL),
    embedding: "i4",
    state: H8,
  }),
  recipe(
    "quamba2-w4ax",
    "Quamba2: 4 or 8 bits for each projection, by what it loses, at 5.25 bits a weight; 8-bit state",
    {
      smooth: { alpha: 0.5, roles: ["out_proj", "dt_proj"] },
      rotate: { ...NO_ROTATION, residual: "hadamard", output: true },
      search: {
        roles: BLOCK,
        each: "projection",
        precisions: [
          { name: "w4a8", scheme: "i4:g128:mse", method: "gptq", timing: "dynamic", share: 1 },
          { name: "w8a8", scheme: "i8:channel", method: "nearest", timing: "static", share: 1 },
        ],
        budget: { bits: 5.25 },
        sequences: 8,
      },
      state: H8,
    },
  ),
  recipe("qmamba-w8a8h8", "Q-Mamba: SmoothQuant W8A8 with an 8-bit DSQ state", {
    smooth: { alpha: 0.5, roles: BLOCK },
    weights: [nearest(BLOCK, "i8:channel")],
    activations: fixed(BLOCK),
    state: H8,
  }),
  recipe("qmamba-w8a8h4", "Q-Mamba: SmoothQuant W8A8 with a 4-bit DSQ state", {
    smooth: { alpha: 0.5, roles: BLOCK },
    weights: [nearest(BLOCK, "i8:channel")],
    activations: fixed(BLOCK),
    state: H4,
  }),
  recipe("qmamba-w4a16h4", "Q-Mamba: GPTQ 4-bit weights in groups of 128 with a 4-bit DSQ state", {
    weights: [gptq(BLOCK, "i4:g128")],
    state: H4,
  }),
  recipe("w8a8h8", "what we recommend: smooth-fused rotation, W8A8, 8-bit state", {
    smooth: { alpha: 0.5, roles: ["out_proj", "dt_proj"] },
    rotate: { ...NO_ROTATION, residual: "hadamard", output: true },
    weights: [nearest(BLOCK, "i8:channel")],
    activations: fixed(BLOCK),
    state: { ...H8, scale: "dsq-max" },
  }),
  recipe("w8a8h4", "what we recommend: smooth-fused rotation, W8A8, 4-bit state", {
    smooth: { alpha: 0.5, roles: ["out_proj", "dt_proj"] },
    rotate: { ...NO_ROTATION, residual: "hadamard", output: true },
    weights: [nearest(BLOCK, "i8:channel")],
    activations: fixed(BLOCK),
    state: H4,
  }),
]);

/** The last rule whose scope holds a projection; undefined where none does. */
export function lastRule<Rule extends RuleScope>(
  rules: readonly Rule[],
  site: { readonly role: LinearRole; readonly layer: string },
): Rule | undefined {
  return rules.findLast(
    ({ roles, layers }) =>
      roles.includes(site.role) && (layers === undefined || layers.some((glob) => matches(glob, site.layer))),
  );
}

/** Does a text with `*` for anything match a whole label? */
function matches(glob: string, label: string): boolean {
  const pattern = glob.split("*").map((part) => part.replaceAll(/[.+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(`^${pattern.join(".*")}$`).test(label);
}

/** A preset by name. Throws `recipe/unknown`. */
export function presetNamed(name: string): QuantRecipe {
  const found = PRESETS.find((preset) => preset.name === name);
  if (found === undefined) {
    throw new MambacError(
      "recipe/unknown",
      `there is no recipe ${name}; recipes: ${PRESETS.map((preset) => preset.name).join(", ")}`,
    );
  }
  return found;
}

/** What the recipe auto measures unless told otherwise; float is always among them. */
export const AUTO_CANDIDATES: readonly string[] = [
  "w8a8h8",
  "w8a8h4",
  "quamba2-w8a8",
  "mambaquant-w8a8",
  "qmamba-w8a8h4",
  "quamba2-w4a16",
  "qmamba-w4a16h4",
];
