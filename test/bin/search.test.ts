import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { presetNamed, readRecipe } from "../../passes/index.js";
import { attrInt } from "../../src/ir/graph.js";
import { readModel } from "../../src/onnx/read.js";
import { documentIn, mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-search-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const RANDOM = ["--calib", "random", "--num-samples", "6", "--seq-len", "32"];

function write(name: string, text: string): string {
  const path = join(root, name);
  writeFileSync(path, text);
  return path;
}

const recipe = (budget: string, precisions: string): string =>
  `name: mix\nsearch:\n  roles: [in_proj, out_proj]\n  sequences: 2\n  budget: {${budget}}\n  precisions:\n${precisions}`;

const FOUR_OR_EIGHT = [
  "    - {name: w4, scheme: 'i4:g32', method: gptq, timing: dynamic}\n",
  "    - {name: w8, scheme: 'i8:channel', timing: static}\n",
].join("");

describe.each(["hf/mamba/prefill.onnx", "hf/mamba2/prefill.onnx"])("quamba2-w4ax on %s", (name) => {
  test("measures, decides, and leaves rules that give the same bytes without measuring", async () => {
    const [one, two] = [join(root, "one.onnx"), join(root, "two.onnx")];
    const source = fixture(name);
    const first = await mambac("compile", source, "-o", one, "--recipe", "quamba2-w4ax", "--json", ...RANDOM);
    expect(first.code, first.err).toBe(0);
    const { remarks, recipe: reported } = documentIn(first) as {
      remarks: { code: string; where: string; message: string }[];
      recipe: object;
    };
    const choices = remarks.filter(({ code }) => code === "search-precision/choice");
    expect(choices.length).toBeGreaterThan(3);
    const [mix] = remarks.filter(({ code }) => code === "search-precision/mix");
    const bits = Number(/^(\S+) bits a weight/.exec(mix?.message ?? "")?.[1]);
    expect(bits).toBeLessThanOrEqual(presetNamed("quamba2-w4ax").search?.budget.bits ?? 0);

    const beside = readFileSync(`${one}.recipe.yaml`, "utf8");
    const decided = readRecipe(beside, "beside");
    expect(decided).toEqual(reported);
    expect(decided.search).toBeUndefined();
    expect(decided.weights[0]).toEqual({
      roles: ["in_proj", "x_proj", "dt_proj", "out_proj", "other"],
      scheme: "i4:g128:mse",
      method: "gptq",
    });
    const eight = choices.filter(({ message }) => message.startsWith("w8a8")).map(({ where }) => where);
    const ruled = decided.weights.slice(1).flatMap(({ roles, layers, scheme }) => {
      expect(scheme).toBe("i8:channel");
      return (layers ?? []).flatMap((layer) => roles.map((role) => `${layer} ${role}`));
    });
    expect(ruled.toSorted()).toEqual(eight.toSorted());
    expect(decided.activations).toHaveLength(decided.weights.length);

    const again = await mambac("compile", source, "-o", two, "--recipe", `${one}.recipe.yaml`, "--json", ...RANDOM);
    expect(again.code, again.err).toBe(0);
    expect(again.out).not.toContain("search-precision");
    expect(readFileSync(two).equals(readFileSync(one))).toBe(true);
    expect(readFileSync(`${two}.recipe.yaml`, "utf8")).toBe(beside);
    expect(readModel(one).model.metadata.get("mambac.recipe")).toBe(JSON.stringify(decided));
  });
});

describe("a search in a recipe file", () => {
  const MODEL = fixture("hf/mamba2/prefill.onnx");
  const compiled = async (
    text: string,
    ...flags: string[]
  ): Promise<{ code: number | null; err: string; eight: number }> => {
    const out = join(root, "file.onnx");
    const result = await mambac("compile", MODEL, "-o", out, "-q", "--recipe", write("mix.yaml", text), ...flags);
    if (result.code !== 0) return { ...result, eight: 0 };
    const weights = [...readModel(out).model.graph.initializers].filter(([name]) => name.endsWith("_quantized"));
    return { ...result, eight: weights.filter(([, { dtype }]) => dtype === "i8").length };
  };

  test("more bits, more of the weights, less divergence: each gives more projections 8 bits", async () => {
    const counts = async (budgets: readonly string[]): Promise<number[]> => {
      const found: number[] = [];
      for (const budget of budgets) {
        const { code, err, eight } = await compiled(recipe(budget, FOUR_OR_EIGHT), ...RANDOM);
        expect(code, err).toBe(0);
        found.push(eight);
      }
      return found;
    };
    const [few = 0, many = 0] = await counts(["bits: 5.5", "bits: 9"]);
    expect(few).toBeLessThan(many);
    expect(await counts(["raised: 0"])).toEqual([0]);
    const [tight = 0, loose = 0] = await counts(["divergence: 0.0012", "divergence: 1000"]);
    expect(tight).toBeGreaterThan(0);
    expect(loose).toBe(0);
  });

  test("precisions that differ in their activations alone: one layer of two keeps float ones", async () => {
    const mix = recipe(
      "raised: 0.5",
      [
        "    - {name: a8, scheme: 'i4:g32', timing: dynamic}\n",
        "    - {name: a16, scheme: 'i4:g32', timing: float}\n",
      ].join(""),
    );
    const { code, err } = await compiled(`${mix}  each: layer\n`, ...RANDOM);
    expect(code, err).toBe(0);
    const levels = readModel(join(root, "file.onnx")).model.graph.nodes.flatMap((node) =>
      node.op === "MatMulNBits" ? [attrInt(node, "accuracy_level", 0)] : [],
    );
    expect(levels).toHaveLength(4);
    expect([levels.slice(0, 2), levels.slice(2)].map((pair) => pair.join()).toSorted()).toEqual(["1,1", "4,4"]);
  });

  test("a budget that cannot be kept is exit code 3; no data are exit code 5", async () => {
    const tight = await compiled(recipe("bits: 2", FOUR_OR_EIGHT), ...RANDOM);
    expect(tight).toMatchObject({ code: 3 });
    expect(tight.err).toMatch(/no mix of the given precisions keeps to bits 2: the least is 5; raise the budget/);
    expect(await compiled(recipe("bits: 6", FOUR_OR_EIGHT))).toMatchObject({ code: 5 });
    const wrong = await compiled(recipe("bits: 6, bytes: 9", FOUR_OR_EIGHT));
    expect(wrong.code).toBe(2);
    expect(wrong.err).toContain("mix.yaml:5:11: a budget is exactly one of");
  });
});
