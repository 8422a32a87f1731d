import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { PRESETS, presetNamed, readRecipe } from "../../passes/index.js";
import { readModel } from "../../src/onnx/read.js";
import { documentIn, mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-recipe-"));
afterAll(() => rmSync(root, { recursive: true }));

const MODEL = fixture("hf/mamba2/prefill.onnx");

function write(name: string, text: string): string {
  const path = join(root, name);
  writeFileSync(path, text);
  return path;
}

describe("recipe", () => {
  test("list names every preset with a sentence", async () => {
    const { code, out } = await mambac("recipe", "list");
    expect(code).toBe(0);
    const lines = out.trimEnd().split("\n");
    expect(lines.map((line) => line.split(/\s/)[0])).toEqual(PRESETS.map(({ name }) => name));
    for (const line of lines) expect(line).toMatch(/^\S+ +\S.{10,}$/);
    expect(JSON.parse((await mambac("recipe", "list", "--json")).out)).toHaveLength(PRESETS.length);
  });

  test.each(PRESETS)("show $name prints YAML that reads back as the same recipe", async (recipe) => {
    const shown = await mambac("recipe", "show", recipe.name);
    expect(shown).toMatchObject({ code: 0, err: "" });
    expect(readRecipe(shown.out, recipe.name)).toEqual(recipe);
    const path = write(`${recipe.name}.yaml`, shown.out);
    expect((await mambac("recipe", "show", path)).out).toBe(shown.out);
    expect(documentIn(await mambac("recipe", "show", recipe.name, "--json"))).toEqual(recipe);
  });

  test("a name with a slip is answered with the name that was meant", async () => {
    const result = await mambac("recipe", "show", "quamba-w8a9");
    expect(result).toMatchObject({ code: 2, out: "" });
    expect(result.err).toContain("did you mean quamba-w8a8?");
    expect((await mambac("recipe", "show", "gptq")).err).toContain("did you mean gptq-w4a16?");
    expect((await mambac("compile", MODEL, "--recipe", "no-such-thing")).err).toMatch(/recipes: float, .*, or a file/);
  });

  test("schema is the published file", async () => {
    const published = readFileSync(join(import.meta.dirname, "..", "..", "schema", "recipe.schema.json"), "utf8");
    expect(JSON.parse((await mambac("recipe", "schema")).out)).toEqual(JSON.parse(published));
  });
});

describe("compile --recipe FILE", () => {
  const RECIPE = [
    "name: mine",
    "weights:",
    "  - {roles: [in_proj, out_proj], scheme: 'i8:channel'}",
    "  - {roles: [in_proj], layers: [layers.0], scheme: null}",
    "state: {format: h8}",
    "",
  ].join("\n");

  test("compiles by it, layer by layer, and leaves it in full in the file and beside it", async () => {
    const path = write("mine.yaml", RECIPE);
    const out = join(root, "mine.onnx");
    const result = await mambac("compile", MODEL, "-o", out, "--recipe", path);
    expect(result.code).toBe(0);
    expect(result.out).toContain(`${out}.recipe.yaml (`);
    const { model } = readModel(out);
    const beside = readRecipe(readFileSync(`${out}.recipe.yaml`, "utf8"), "beside");
    expect(JSON.parse(model.metadata.get("mambac.recipe") ?? "")).toEqual(beside);
    expect(beside).toMatchObject({ name: "mine", state: { format: "h8", scale: "dsq-max" }, activations: [] });
    const rounded = [...model.graph.initializers.keys()].filter((name) => name.endsWith("_quantized"));
    const all = await mambac(
      "compile",
      MODEL,
      "-o",
      out,
      "--recipe",
      write("all.yaml", RECIPE.replace(/.*layers.0.*\n/, "")),
    );
    expect(all.code).toBe(0);
    const both = [...readModel(out).model.graph.initializers.keys()].filter((name) => name.endsWith("_quantized"));
    expect(both.length).toBe(rounded.length + 1);
  });

  test("what stays float is named with the reason, in text and in the document", async () => {
    const path = write("named.yaml", RECIPE);
    const argv = ["compile", MODEL, "-o", join(root, "named.onnx"), "--recipe", path];
    const { out } = await mambac(...argv);
    expect(out).toMatch(/^projections +3 of 5 run as integer or low-bit kernels/m);
    expect(out).toMatch(
      /^in float +layers\.0 in_proj: the recipe leaves it float\n +lm_head: the recipe leaves it float$/m,
    );
    const { kernels } = documentIn(await mambac(...argv, "--json"));
    expect(kernels).toMatchObject({ quantized: 3, projections: 5 });
    const why = "the recipe leaves it float";
    expect(kernels).toMatchObject({
      float: [
        { layer: "layers.0", role: "in_proj", node: "node_linear", why },
        { layer: "", role: "lm_head", node: "node_linear_4", why },
      ],
    });
  });

  test("weights on a curve are unpacked, and a recipe that rounds nothing leaves all", async () => {
    const kept = async (name: string): Promise<string> => {
      const { out } = await mambac("compile", MODEL, "-o", join(root, "kept.onnx"), "--recipe", name);
      return /^in float +([\s\S]*?)^written/m.exec(out)?.[1]?.replaceAll(/^ +/gm, "") ?? "";
    };
    const curve = "its weight is unpacked to floats in the graph\n";
    expect(await kept("ptqssm-w8-inout-tanh")).toBe(
      `layers.0..1 in_proj: ${curve}layers.0..1 out_proj: ${curve}lm_head: the recipe leaves it float\n`,
    );
    expect(await kept("float")).toMatch(/^layers\.0\.\.1 in_proj: the recipe leaves it float\n/);
  });

  test("what lies beside a model compiles to the same bytes, --state included", async () => {
    const [one, two] = [join(root, "one.onnx"), join(root, "two.onnx")];
    const first = ["compile", MODEL, "-o", one, "-q", "--recipe", "ptqssm-w8-inout", "--state", "h4"];
    expect((await mambac(...first)).code).toBe(0);
    const second = ["compile", MODEL, "-o", two, "-q", "--recipe", `${one}.recipe.yaml`];
    expect((await mambac(...second)).code).toBe(0);
    expect(readFileSync(two).equals(readFileSync(one))).toBe(true);
    expect(readFileSync(`${two}.recipe.yaml`, "utf8")).toBe(readFileSync(`${one}.recipe.yaml`, "utf8"));
    expect(readRecipe(readFileSync(`${one}.recipe.yaml`, "utf8"), "one").state.format).toBe("h4");
  });

  test("a recipe that is wrong is told with file, line and column, and nothing is written", async () => {
    const folder = mkdtempSync(join(root, "case-"));
    const path = write("wrong.yaml", "name: wrong\nweights:\n  - roles: [in_porj]\n    scheme: i9:channel\nsate: {}\n");
    const result = await mambac("compile", MODEL, "-o", join(folder, "out.onnx"), "--recipe", path);
    expect(result).toMatchObject({ code: 2, out: "" });
    expect(result.err).toContain(`${path}:3:13: 'in_porj' is not known here; did you mean 'in_proj'?`);
    expect(result.err).toContain(`${path}:4:13: weight scheme 'i9:channel'`);
    expect(result.err).toContain(`${path}:5:1: there is no key 'sate' here; did you mean 'state'?`);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("a word for float where null is meant", async () => {
    const path = write("float.yaml", "name: f\nweights:\n  - {roles: [in_proj], scheme: float}\n");
    const result = await mambac("compile", MODEL, "--recipe", path);
    expect(result).toMatchObject({ code: 2, out: "" });
    expect(result.err).toMatch(/:3:32: weight scheme 'float': null, without quotes, leaves a projection float/);
  });

  test("a missing file and an empty one", async () => {
    expect((await mambac("compile", MODEL, "--recipe", join(root, "absent.yaml"))).err).toContain(
      "cannot read the recipe",
    );
    const empty = await mambac("compile", MODEL, "--recipe", write("empty.yaml", ""));
    expect(empty.code).toBe(2);
    expect(empty.err).toContain("empty.yaml:1:1: nothing where a map was expected");
  });

  test("a recipe that needs data and got none says so with exit code 5", async () => {
    const result = await mambac("compile", MODEL, "-o", join(root, "x.onnx"), "--recipe", presetNamed("w8a8h8").name);
    expect(result).toMatchObject({ code: 5, out: "" });
    expect(result.err).toContain("--calib");
  });
});
