/** `compile --float f16`: what is written, how it runs, and what it loses. */

import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { f32Tensor, toNumbers } from "../../src/ir/tensor.js";
import { readModel } from "../../src/onnx/read.js";
import { writeModel } from "../../src/onnx/write.js";
import { documentIn, mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-float-"));
afterAll(() => rmSync(folder, { recursive: true }));

const DEMO = join(import.meta.dirname, "..", "..", "examples", "demo");
const SOURCE = join(DEMO, "prefill.onnx");
const CALIB = join(DEMO, "wordnet.txt");
const whole = join(folder, "f32.onnx");
const half = join(folder, "f16.onnx");

async function bitsPerByte(path: string, library: "auto" | "none"): Promise<number> {
  const text = join(DEMO, "kjv.txt");
  const result = await mambac("eval", path, "--text", text, "--windows", "3", "--library", library, "--json");
  return Number(documentIn(result)["bitsPerByte"]);
}

describe("compile --float f16", () => {
  let told = "";
  beforeAll(async () => {
    expect((await mambac("compile", SOURCE, "-o", whole, "--external-data", "never", "-q")).code).toBe(0);
    const result = await mambac("compile", SOURCE, "-o", half, "--external-data", "never", "--float", "f16");
    expect(result.code).toBe(0);
    told = result.out;
  }, 60_000);

  test("weights are half as many bytes, and the file says what it is", () => {
    const { model } = readModel(half);
    expect(model.metadata.get("mambac.float")).toBe("f16");
    expect(readModel(whole).model.metadata.has("mambac.float")).toBe(false);
    const large = [...model.graph.initializers.values()].filter(({ byteLength }) => byteLength > 20_000);
    expect(new Set(large.map(({ dtype }) => dtype))).toEqual(new Set(["f16"]));
    expect(statSync(half).size).toBeLessThan(0.55 * statSync(whole).size);
    expect(told).toMatch(/^floats +float16 weights, activations, .* logits float32$/m);
    expect(told).toMatch(/past_conv\.0 f16\[\w+,384,3\] +4\.61 kB -> 2\.30 kB \(2\.0x\)/);
  });

  test("bits per byte are within 0.05 % of float32, as kernels and as functions", async () => {
    const expected = await bitsPerByte(whole, "none");
    for (const library of ["auto", "none"] as const) {
      const bits = await bitsPerByte(half, library);
      expect(Math.abs(bits / expected - 1)).toBeLessThan(5e-4);
    }
  });

  test("verify holds it to float16 roundings", async () => {
    const result = await mambac("verify", half, "--against", SOURCE, "--library", "none", "--json");
    expect(result.code).toBe(0);
    const { passed, checks } = documentIn(result);
    expect(passed).toBe(true);
    expect(checks).toContainEqual(expect.objectContaining({ limit: { measure: "max", value: 2 ** -6 } }));
  });

  test("a weight beyond float16 is refused by a dry run, too, and nothing is written", async () => {
    const { model } = readModel(SOURCE);
    const [name, tensor] = [...model.graph.initializers].find(([, { shape }]) => shape.join() === "256,128") ?? [];
    if (name === undefined || tensor === undefined) throw new Error("the demo has no embedding");
    const values = Float32Array.from(toNumbers(tensor));
    values[5000] = 70_000;
    const initializers = new Map([...model.graph.initializers, [name, f32Tensor(tensor.shape, values)]]);
    const source = join(folder, "beyond.onnx");
    await writeModel({ ...model, graph: { ...model.graph, initializers } }, source);
    for (const flags of [[], ["--dry-run"]]) {
      const result = await mambac("compile", source, "-o", join(folder, "refused.onnx"), "--float", "f16", ...flags);
      expect(result).toMatchObject({ code: 4, out: "" });
      expect(result.err).toMatch(/weight \S+ \[256, 128\] has the value 70000, and float16 ends at 65504/);
    }
    expect(readdirSync(folder).filter((file) => file.startsWith("refused"))).toEqual([]);
  });

  test("hybrids and Mamba-1 pass, too", async () => {
    for (const name of ["hf/bamba", "hf/mamba"]) {
      const out = join(folder, "other.onnx");
      expect((await mambac("compile", fixture(name), "-o", out, "--float", "f16", "--state", "f32", "-q")).code).toBe(
        0,
      );
      const result = await mambac("verify", out, "--against", fixture(name), "--library", "none", "-q");
      expect(result.out).toMatch(/: passed$/m);
      expect(result.code).toBe(0);
    }
  });

  test("recipes for weights alone go with it, quantized activations are refused", async () => {
    const out = join(folder, "w4.onnx");
    const compile = (recipe: string): ReturnType<typeof mambac> =>
      mambac("compile", SOURCE, "-o", out, "--recipe", recipe, "--calib", CALIB, "--float", "f16", "-q");
    expect((await compile("rtn-w4a16")).code).toBe(0);
    const products = readModel(out).model.graph.nodes.filter(({ op }) => op === "MatMulNBits");
    const { initializers } = readModel(out).model.graph;
    expect(products).toHaveLength(8);
    expect(products.map(({ inputs }) => initializers.get(inputs[2] ?? "")?.dtype)).toEqual(products.map(() => "f16"));
    const refused = await compile("naive-w8a8");
    expect(refused.code).toBe(4);
    expect(refused.err).toContain("the recipe naive-w8a8 quantizes activations, which float16 does not go with");
  });

  test("auto measures in float16 what it then writes in float16", async () => {
    const out = join(folder, "auto.onnx");
    const data = ["--calib", CALIB, "--num-samples", "8", "--seq-len", "64"];
    const argv = ["compile", SOURCE, "-o", out, "--recipe", "auto", "--float", "f16", "--max-loss", "50", ...data];
    const result = await mambac(...argv, "--candidates", "rtn-w4a16", "--external-data", "never", "--json");
    expect(result.code, result.err).toBe(0);
    const document = documentIn(result);
    const { chosen, rows } = document["auto"] as {
      readonly chosen: string;
      readonly rows: readonly { readonly name: string; readonly bytes: number; readonly meanKlBits: number }[];
    };
    expect(rows.map(({ name }) => name)).toEqual(["reference", "float", "rtn-w4a16"]);
    expect(chosen).toBe("rtn-w4a16");
    const [reference, float, taken] = rows;
    expect(reference?.meanKlBits).toBe(0);
    expect(float?.meanKlBits).toBeGreaterThan(0);
    expect(float?.meanKlBits).toBeLessThan(1e-4);
    expect(float?.bytes).toBeLessThan(0.55 * (reference?.bytes ?? 0));
    // What was measured is what is written, but for what the package tells about the choice.
    expect(Math.abs(statSync(out).size / (taken?.bytes ?? 0) - 1)).toBeLessThan(0.01);
    const refused = await mambac(...argv, "--candidates", "w8a8h8");
    expect(refused).toMatchObject({ code: 4, out: "" });
    expect(refused.err).toContain("the recipe w8a8h8 quantizes activations");
  });

  test("a search measures in float16, too", async () => {
    const recipe = join(folder, "search.yaml");
    writeFileSync(
      recipe,
      "name: search\nsearch:\n  roles: [in_proj]\n  budget: {bits: 6}\n  sequences: 2\n  precisions:\n" +
        '    - {name: w4, scheme: "i4:g16", timing: float}\n    - {name: w8, scheme: "i8:channel", timing: float}\n',
    );
    const found = async (...flags: string[]): Promise<number[]> => {
      const data = ["--calib", "random", "--num-samples", "4", "--seq-len", "24"];
      const argv = ["compile", fixture("hf/mamba2/prefill.onnx"), "-o", join(folder, "s.onnx"), "--recipe", recipe];
      const result = await mambac(...argv, ...data, ...flags, "--json");
      expect(result.code, result.err).toBe(0);
      const { remarks } = documentIn(result) as { readonly remarks: readonly { code: string; message: string }[] };
      const choices = remarks.filter(({ code }) => code === "search-precision/choice");
      return choices.map(({ message }) => Number(/divergence (\S+) bits/.exec(message)?.[1]));
    };
    const [single, halves] = [await found(), await found("--float", "f16")];
    expect(halves).toHaveLength(2);
    expect(halves).not.toEqual(single);
    for (const [at, value] of halves.entries()) expect(Math.abs(value / (single[at] ?? 0) - 1)).toBeLessThan(0.3);
  });

  test("bfloat16 is refused with the reason, other words with the choices", async () => {
    for (const word of ["bf16", "bfloat16"]) {
      const result = await mambac("compile", SOURCE, "--float", word);
      expect(result).toMatchObject({ code: 2, out: "" });
      expect(result.err).toMatch(/has no bfloat16 kernels of MatMul, .* compile to f32 .* with f16/);
    }
    const slip = await mambac("compile", SOURCE, "--float", "fp16");
    expect(slip).toMatchObject({ code: 2, out: "" });
    expect(slip.err).toContain("Allowed choices are f32, f16.");
  });

  test("it is for mambac's own operators", async () => {
    const result = await mambac("compile", SOURCE, "--float", "f16", "--scan", "linear-attention", "--state", "f32");
    expect(result.code).toBe(2);
    expect(result.err).toContain("float16 is for mambac's own operators");
  });
});
