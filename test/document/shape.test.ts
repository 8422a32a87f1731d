import { describe, expect, test } from "vitest";
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
} from "../../src/document/shape.js";
import { formatYaml } from "../../src/document/yaml.js";

interface Drink {
  readonly name: string;
  readonly size?: "small" | "large";
  readonly sugar: number;
  readonly hot: boolean;
  readonly tags: readonly string[];
  readonly milk: { readonly share: number } | null;
}

const DRINK: Shape<Drink> = record<Drink>(
  {
    name: required(text({ pattern: "^[a-z]+$" }), "what to call it"),
    size: optional(choice(["small", "large"]), "how much"),
    sugar: preset(quantity({ least: 0, most: 3 }), 0, "spoons"),
    hot: preset(truth, true, "not from the fridge"),
    tags: preset(list(text(), { least: 1 }), ["drink"], "labels"),
    milk: preset(nullable(record({ share: required(quantity({ above: 0, most: 1 }), "of the cup") })), null, "white"),
  },
  (drink) => (drink.sugar > 2 && !drink.hot ? "cold drinks do not dissolve so much sugar" : null),
);

const read = (source: string): Drink => readDocument(source, DRINK, "menu.yaml");

function problemsOf(source: string): string[] {
  try {
    read(source);
  } catch (cause) {
    return cause instanceof Error ? cause.message.split("\n") : [];
  }
  return [];
}

describe("a shape", () => {
  test("reads YAML and JSON, and fills in what is left out", () => {
    const tea: Drink = { name: "tea", sugar: 0, hot: true, tags: ["drink"], milk: null };
    expect(read("name: tea")).toEqual(tea);
    expect(read('{"name": "tea", "size": "large", "milk": {"share": 0.5}}')).toEqual({
      ...tea,
      size: "large",
      milk: { share: 0.5 },
    });
    expect("size" in read("name: tea")).toBe(false);
    expect(read("# comment\nname: tea # more\ntags:\n  - a\n  - 'no'\nmilk: ~\n").tags).toEqual(["a", "no"]);
  });

  test.each([
    ["name: tea\nsuger: 2\n", "menu.yaml:2:1: there is no key 'suger' here; did you mean 'sugar'? known: name, size, "],
    ["name: tea\nsize: huge\n", "menu.yaml:2:7: 'huge' is not known here; known: small, large"],
    ["name: tea\nsize: smal\n", "menu.yaml:2:7: 'smal' is not known here; did you mean 'small'? known"],
    ["sugar: 1\n", "menu.yaml:1:1: the key 'name' is missing: what to call it"],
    ["name: tea\nsugar: 4\n", "menu.yaml:2:8: 4 where a number from 0 up to 3 was expected"],
    ["name: tea\nsugar: .nan\n", "menu.yaml:2:8: NaN where a number from 0 up to 3 was expected"],
    ["name: tea\nsugar:\n", "menu.yaml:2:7: nothing where a number from 0 up to 3 was expected"],
    ["name: tea\nhot: 'yes'\n", "menu.yaml:2:6: 'yes' where true or false was expected"],
    ["name: tea\ntags: []\n", "menu.yaml:2:7: the list needs 1 or more entries"],
    ["name: tea\ntags: {a: 1}\n", "menu.yaml:2:7: a map where a list was expected"],
    ["name: tea\ntags:\n  - a\n  - 3\n", "menu.yaml:4:5: 3 where a text was expected"],
    ["name: tea\nmilk:\n  share: 0\n", "menu.yaml:3:10: 0 where a number above 0 up to 1 was expected"],
    ["- name: tea\n", "menu.yaml:1:1: a list where a map was expected"],
    ["", "menu.yaml:1:1: nothing where a map was expected"],
    ["# only a comment\n", "menu.yaml:1:1: nothing where a map was expected"],
    ["name: tea\nsugar: 3\nhot: false\n", "menu.yaml:1:1: cold drinks do not dissolve so much sugar"],
  ])("%j is refused with its place", (source, message) => {
    const [first = ""] = problemsOf(source);
    expect(first.slice(0, message.length)).toBe(message);
  });

  test.each([
    ["name: tea\nname: milk\n", /^menu\.yaml:2:1: it is not YAML: Map keys must be unique/],
    ["name: [tea\n", /^menu\.yaml:2:1: it is not YAML: /],
    ["name: tea\n\tsugar: 1\n", /^menu\.yaml:2:\d+: it is not YAML: /],
    ["name: &x tea\nsize: *x\n", /^menu\.yaml:2:7: the alias \*x is not followed here/],
    ["name: !secret tea\n", /^menu\.yaml:1:7: it is not YAML: Unresolved tag: !secret/],
    ["name: tea\n---\nname: milk\n", /^menu\.yaml:\d:1: it is not YAML: Source contains multiple documents/],
  ])("%j is refused as YAML", (source, message) => {
    expect(problemsOf(source)[0]).toMatch(message);
  });

  test("tells every problem, in the order of the text", () => {
    expect(problemsOf("sugar: 9\nname: 3\nbogus: 1\n").map((line) => line.split(":").slice(1, 3).join(":"))).toEqual([
      "1:8",
      "2:7",
      "3:1",
    ]);
  });

  test("says the same as a schema", () => {
    expect(DRINK.schema).toMatchObject({
      type: "object",
      required: ["name"],
      additionalProperties: false,
      properties: {
        name: { type: "string", pattern: "^[a-z]+$", description: "what to call it" },
        size: { enum: ["small", "large"] },
        sugar: { type: "number", minimum: 0, maximum: 3, default: 0 },
        tags: { type: "array", minItems: 1, items: { type: "string" }, default: ["drink"] },
        milk: { anyOf: [{ type: "object", required: ["share"] }, { type: "null" }], default: null },
      },
    });
  });
});

describe("formatYaml", () => {
  test("writes what reads back, words that look like other things included", () => {
    const drink: Drink = {
      name: "tea",
      sugar: 1.5,
      hot: false,
      tags: ["no", "1", "null", "a: b", ""],
      milk: { share: 1e-7 },
    };
    const written = formatYaml(JSON.parse(JSON.stringify(drink)), "A drink.\nOn two lines.");
    expect(written.startsWith("# A drink.\n# On two lines.\n")).toBe(true);
    expect(read(written)).toEqual(drink);
    expect(formatYaml(JSON.parse(JSON.stringify(drink)), "A drink.\nOn two lines.")).toBe(written);
  });
});
