import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { formatRecipe, PRESETS, type QuantRecipe, readRecipe, recipeSchema } from "../../passes/index.js";
import {
  ACTIVATION_TIMINGS,
  DT_ROTATIONS,
  EMBEDDING_FORMATS,
  lastRule,
  RESIDUAL_ROTATIONS,
  ROUNDING_METHODS,
  SEARCH_PARTS,
  SMOOTH_METHODS,
} from "../../passes/quant-recipes.js";
import { BUDGET_KINDS } from "../../passes/search-precision.js";
import { MAX_REPLAY_LENGTH, REQUANTIZE_MODES, STATE_FORMATS, STATE_SCALES } from "../../src/ops/names.js";
import { formatWeightScheme, parseWeightScheme } from "../../src/quant/scheme.js";
import { QDQ_PROFILES } from "../../src/rewrite/qdq-profile.js";
import { LINEAR_ROLES } from "../../src/rewrite/sites.js";

const SCHEMA_FILE = join(import.meta.dirname, "..", "..", "schema", "recipe.schema.json");

/** Follows keys into plain data. */
function inside(value: unknown, ...keys: readonly string[]): unknown {
  let at = value;
  for (const key of keys) {
    expect(at, keys.join("/")).toBeTypeOf("object");
    at = Object.entries(at as object).find(([name]) => name === key)?.[1];
  }
  return at;
}

const roles = fc.subarray([...LINEAR_ROLES], { minLength: 1 });
const scope = { roles, layers: fc.array(fc.stringMatching(/^layers\.[0-9*]{1,3}$/), { minLength: 1, maxLength: 3 }) };
const scheme = fc
  .tuple(
    fc.constantFrom("i2", "i3", "i4", "i8", "u4", "u8"),
    fc.constantFrom("tensor", "channel", "in-channel", "g32", "g128"),
    fc.constantFrom("", ":mse", ":f16", ":mse:f16"),
  )
  .map((parts) => `${parts[0]}:${parts[1]}${parts[2]}`);
const precision = fc.record({
  name: fc.stringMatching(/^\S{1,6}$/),
  scheme: fc.option(scheme),
  method: fc.constantFrom(...ROUNDING_METHODS),
  timing: fc.constantFrom(...ACTIVATION_TIMINGS),
  share: fc.double({ min: 0.5, max: 1, noNaN: true }),
});
const search: fc.Arbitrary<NonNullable<QuantRecipe["search"]>> = fc.record({
  roles,
  each: fc.constantFrom(...SEARCH_PARTS),
  precisions: fc.uniqueArray(precision, { minLength: 2, maxLength: 3, selector: ({ name }) => name }),
  budget: fc.oneof(
    fc.record({ bits: fc.double({ min: 0.5, max: 32, noNaN: true }) }),
    fc.record({ bytes: fc.integer({ min: 1, max: 2 ** 40 }) }),
    fc.record({ divergence: fc.double({ min: 1e-6, max: 1, noNaN: true }) }),
    fc.record({ raised: fc.double({ min: 0, max: 1, noNaN: true }).map(Math.abs) }),
  ),
  sequences: fc.integer({ min: 1, max: 999 }),
});
const plainRecipes: fc.Arbitrary<QuantRecipe> = fc.record({
  name: fc.stringMatching(/^\S{1,12}$/),
  summary: fc.string({ maxLength: 40 }),
  smooth: fc.option(
    fc.record(
      {
        alpha: fc.double({ min: 0, max: 1, noNaN: true }).map(Math.abs),
        roles,
        method: fc.constantFrom(...SMOOTH_METHODS),
      },
      { requiredKeys: ["alpha", "roles"] },
    ),
  ),
  rotate: fc.record({
    residual: fc.constantFrom(...RESIDUAL_ROTATIONS),
    output: fc.boolean(),
    dt: fc.constantFrom(...DT_ROTATIONS),
    state: fc.boolean(),
  }),
  weights: fc.array(
    fc.record(
      { ...scope, scheme: fc.option(scheme), method: fc.constantFrom(...ROUNDING_METHODS) },
      { requiredKeys: ["roles", "scheme", "method"] },
    ),
    { maxLength: 3 },
  ),
  activations: fc.array(
    fc.record(
      { ...scope, timing: fc.constantFrom(...ACTIVATION_TIMINGS), share: fc.double({ min: 0.5, max: 1, noNaN: true }) },
      { requiredKeys: ["roles", "timing", "share"] },
    ),
    { maxLength: 3 },
  ),
  embedding: fc.option(fc.constantFrom(...EMBEDDING_FORMATS)),
  scanInput: fc.option(fc.record({ share: fc.double({ min: 0.5, max: 1, noNaN: true }), clusters: fc.boolean() })),
  state: fc.record({
    format: fc.constantFrom(...STATE_FORMATS),
    scale: fc.constantFrom(...STATE_SCALES),
    requantize: fc.constantFrom(...REQUANTIZE_MODES),
    replayLength: fc.integer({ min: 1, max: MAX_REPLAY_LENGTH }),
  }),
});
const recipes: fc.Arbitrary<QuantRecipe> = fc
  .tuple(plainRecipes, fc.option(search), fc.option(fc.constantFrom(...QDQ_PROFILES)))
  .map(([recipe, found, qdqProfile]) => ({
    ...recipe,
    ...(qdqProfile === null ? {} : { qdqProfile }),
    ...(found === null ? {} : { search: found }),
  }));

/** A recipe with a search; `line` is its sixth line. */
function searching(line: string): string {
  return [
    "name: a",
    "search:",
    "  roles: [in_proj]",
    "  precisions: [{name: w4, scheme: 'i4:g128'}, {name: w8, scheme: 'i8:channel'}]",
    "  # what it must keep to",
    `  ${line}`,
    ...(/budget|4/.test(line) ? [] : ["  budget: {bits: 5}"]),
    "",
  ].join("\n");
}

describe("recipe files", () => {
  test.each(PRESETS)("$name reads back as it was written", (recipe) => {
    expect(readRecipe(formatRecipe(recipe), recipe.name)).toEqual(recipe);
    expect(readRecipe(JSON.stringify(recipe), recipe.name)).toEqual(recipe);
  });

  test("so does any recipe", () => {
    fc.assert(
      fc.property(recipes, (recipe) => {
        const written = formatRecipe(recipe, "a comment");
        expect(readRecipe(written, "any")).toEqual(recipe);
        expect(formatRecipe(readRecipe(written, "any"), "a comment")).toBe(written);
      }),
      { seed: 5, numRuns: 60 },
    );
  });

  test("a name alone is a recipe that changes nothing", () => {
    const [float] = PRESETS;
    expect(readRecipe("name: float", "r")).toEqual({ ...float, summary: "" });
  });

  test.each([
    ["name: two words", "r:1:7: 'two words' is no name"],
    [
      "name: a\nweights:\n  - roles: [in_porj]\n    scheme: i8:channel\n",
      "r:3:13: 'in_porj' is not known here; did you mean 'in_proj'? known: in_proj",
    ],
    [
      "name: a\nweights:\n  - roles: [in_proj]\n    scheme: i5:channel\n",
      "r:4:13: weight scheme 'i5:channel': 'i5' is not a format",
    ],
    ["name: a\nweights:\n  - roles: [in_proj]\n", "r:3:5: the key 'scheme' is missing"],
    ["name: a\nstate: {format: h2}\n", "r:2:17: 'h2' is not known here; did you mean 'h8'? known: f32"],
    ["name: a\nrotate: {residual: hadamrad}\n", "r:2:20: 'hadamrad' is not known here; did you mean 'hadamard'?"],
    ["name: a\nsmooth: {alpha: 2, roles: [in_proj]}\n", "r:2:17: 2 where a number from 0 up to 1 was expected"],
    ["name: a\nactivations: {roles: [in_proj]}\n", "r:2:14: a map where a list was expected"],
    [
      searching("budget: {bits: 5, bytes: 9}"),
      "r:6:11: a budget is exactly one of bits, bytes, divergence, raised; here are bits and bytes",
    ],
    [searching("budget: {}"), "r:6:11: a budget is exactly one of bits, bytes, divergence, raised; there is none"],
    [searching("budget: {bits: 0}"), "r:6:18: 0 where a number above 0 up to 32 was expected"],
    [searching("budget: {bist: 5}"), "r:6:12: there is no key 'bist' here; did you mean 'bits'?"],
    [searching("budget: {raised: 2}"), "r:6:20: 2 where a number from 0 up to 1 was expected"],
    [searching("each: model"), "r:6:9: 'model' is not known here; known: projection, layer"],
    [searching("sequences: 0"), "r:6:14: 0 where an integer from 1 was expected"],
    [searching("sequences: 4"), "r:3:3: the key 'budget' is missing"],
    [searching("budget: {bits: 5}").replace("name: w8", "name: w4"), "r:3:3: there are two precisions 'w4'"],
    [searching("budget: {bits: 5}").replace(/, \{name: w8.*\}\]/, "]"), "r:4:15: the list needs 2 or more entries"],
    [searching("budget: {bits: 5}").replace("i8:channel", "i9:channel"), "r:4:66: weight scheme 'i9:channel'"],
  ])("%j is refused with its place", (source, message) => {
    let text = "";
    try {
      readRecipe(source, "r");
    } catch (cause) {
      text = String(cause instanceof Error ? cause.message : cause);
    }
    expect(text.slice(0, message.length)).toBe(message);
  });
});

describe("the schema file", () => {
  const schema: unknown = JSON.parse(readFileSync(SCHEMA_FILE, "utf8"));

  test("is what the code says (npx tsx bin/mambac.ts recipe schema > schema/recipe.schema.json)", () => {
    expect(schema).toEqual(recipeSchema());
  });

  test("knows every word and key of the code", () => {
    const properties = (...keys: string[]): unknown => inside(schema, "properties", ...keys);
    const rule = (kind: string, ...keys: string[]): unknown => properties(kind, "items", "properties", ...keys);
    expect(rule("weights", "roles", "items", "enum")).toEqual(LINEAR_ROLES);
    expect(rule("activations", "roles", "items", "enum")).toEqual(LINEAR_ROLES);
    expect(rule("weights", "method", "enum")).toEqual(ROUNDING_METHODS);
    expect(rule("activations", "timing", "enum")).toEqual(ACTIVATION_TIMINGS);
    expect(properties("qdqProfile", "enum")).toEqual(QDQ_PROFILES);
    expect(properties("search", "properties", "each", "enum")).toEqual(SEARCH_PARTS);
    expect(Object.keys(properties("search", "properties", "budget", "properties") as object)).toEqual(BUDGET_KINDS);
    expect(properties("rotate", "properties", "residual", "enum")).toEqual(RESIDUAL_ROTATIONS);
    expect(properties("rotate", "properties", "dt", "enum")).toEqual(DT_ROTATIONS);
    expect(properties("state", "properties", "format", "enum")).toEqual(STATE_FORMATS);
    expect(properties("state", "properties", "scale", "enum")).toEqual(STATE_SCALES);
    expect(properties("state", "properties", "requantize", "enum")).toEqual(REQUANTIZE_MODES);
    expect(Object.keys(properties() as object)).toEqual([...Object.keys(PRESETS[0] ?? {}), "qdqProfile", "search"]);
  });

  test("has a pattern for weight schemes that agrees with their parser", () => {
    const variants = inside(schema, "properties", "weights", "items", "properties", "scheme", "anyOf");
    const pattern = new RegExp(String(inside(variants, "0", "pattern")));
    fc.assert(
      fc.property(scheme, (spelling) => {
        expect(pattern.test(spelling)).toBe(true);
        expect(formatWeightScheme(parseWeightScheme(spelling))).toBe(spelling);
      }),
      { seed: 6, numRuns: 50 },
    );
    for (const wrong of ["i5:channel", "i8", "i8:row", "i4:g0", "i8:channel:fast", "x8:tensor"]) {
      expect(pattern.test(wrong), wrong).toBe(false);
      expect(() => parseWeightScheme(wrong), wrong).toThrow();
    }
  });
});

describe("rules", () => {
  const rules = [
    { roles: ["in_proj", "out_proj"], id: 1 },
    { roles: ["in_proj"], layers: ["layers.1*"], id: 2 },
    { roles: ["out_proj"], layers: ["layers.2", "layers.3"], id: 3 },
  ] as const;
  const idOf = (role: (typeof LINEAR_ROLES)[number], layer: string): number | undefined =>
    lastRule<(typeof rules)[number]>(rules, { role, layer })?.id;

  test("the last whose roles and layers fit decides", () => {
    expect(idOf("in_proj", "layers.0")).toBe(1);
    expect(idOf("in_proj", "layers.1")).toBe(2);
    expect(idOf("in_proj", "layers.12")).toBe(2);
    expect(idOf("in_proj", "xlayers.1")).toBe(1);
    expect(idOf("out_proj", "layers.3")).toBe(3);
    expect(idOf("out_proj", "layers.33")).toBe(1);
    expect(idOf("lm_head", "")).toBeUndefined();
  });

  test("a dot stands for itself", () => {
    expect(lastRule([{ roles: ["in_proj"], layers: ["layers.1"] }], { role: "in_proj", layer: "layersx1" })).toBe(
      undefined,
    );
  });
});
