import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { f32Tensor, toNumbers } from "../../src/ir/tensor.js";
import { readModel } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { documentIn, mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-verify-"));
afterAll(() => rmSync(root, { recursive: true }));

const PAIR = fixture("hf/mamba2");
const PREFILL = fixture("hf/mamba2/prefill.onnx");

async function compiled(source: string, name: string, ...flags: string[]): Promise<string> {
  const out = join(root, `${name}.onnx`);
  expect((await mambac("compile", source, "-o", out, "-q", ...flags)).code).toBe(0);
  return out;
}

interface CheckDocument {
  readonly name: string;
  readonly lengths: readonly number[];
  readonly rounded: boolean;
  readonly limit: { readonly measure: string; readonly value: number };
  readonly difference: { readonly relative: number; readonly rms: number; readonly top1: number } | null;
  readonly passed: boolean;
  readonly note: string;
}

async function verified(...argv: string[]): Promise<{ code: number | null; checks: Map<string, CheckDocument> }> {
  const lengths = argv.includes("--lengths") ? [] : ["--lengths", "1,24"];
  const result = await mambac("verify", ...argv, ...lengths, "--json", "--quiet");
  const checks = documentIn(result)["checks"] as readonly CheckDocument[];
  return { code: result.code, checks: new Map(checks.map((check) => [check.name, check])) };
}

describe("a faithful file passes", () => {
  test("f32 to 1e-4, in every way to feed it", async () => {
    const out = await compiled(PAIR, "f32", "--state", "f32");
    const { code, checks } = await verified(out, "--against", PAIR, "--lengths", "1,7,33", "--seed", "5");
    expect(code).toBe(0);
    expect([...checks.keys()]).toEqual([
      "itself, cut once",
      "itself, token by token",
      "prefill graph, one call",
      "decode graph, token by token",
    ]);
    for (const check of checks.values()) {
      expect(check.rounded).toBe(false);
      expect(check.difference?.relative).toBeLessThan(1e-4);
    }
    expect(checks.get("prefill graph, one call")?.lengths).toEqual([1, 7, 33]);
  });

  test.each(["h8", "h4", "f16"])(
    "%s exactly where nothing is rounded, loosely elsewhere, and says so",
    async (state) => {
      const out = await compiled(PAIR, state, "--state", state);
      const { code, checks } = await verified(out, "--against", PAIR);
      expect(code).toBe(0);
      expect(checks.get("prefill graph, one call")).toMatchObject({ rounded: false, passed: true });
      expect(checks.get("decode graph, token by token")).toMatchObject({ rounded: true, passed: true });
      // Rounding must show: a packed state that gives the float's bits was not packed.
      expect(checks.get("itself, token by token")?.difference?.relative).toBeGreaterThan(1e-6);
      const human = await mambac("verify", out, "--against", PAIR, "--library", "none", "--lengths", "7,20");
      expect(human.out).toMatch(/ok +decode graph, token by token +7,20 .* rms 0\.\d+\n/);
      expect(human.out).toContain(`kept as ${state} and rounded between calls`);
    },
  );

  test("a replay state loosely where it was rounded, wherever calls end", async () => {
    const flags = ["--state", "h4", "--requantize", "replay", "--replay-length", "5"];
    const out = await compiled(PAIR, "replay", ...flags);
    const { code, checks } = await verified(out, "--against", PAIR);
    expect(code).toBe(0);
    for (const check of checks.values()) expect(check).toMatchObject({ rounded: true, passed: true });
    // The same roundings however it is cut: no more than a code at a tie apart, unlike a state rounded at every call.
    const apart = checks.get("itself, cut once")?.difference?.rms ?? 1;
    const every = await verified(await compiled(PAIR, "replay-not", "--state", "h4"), "--against", PAIR);
    expect(apart).toBeLessThan((every.checks.get("itself, cut once")?.difference?.rms ?? 0) / 10);
    const human = await mambac("verify", out, "--against", PAIR, "--library", "none", "--lengths", "7,20");
    expect(human.out).toContain("kept as h4 and rounded once in so many tokens, wherever calls end");
  });

  test("a source of one length is compared at that length", async () => {
    const source = fixture("hf/mamba/prefill.onnx");
    const out = await compiled(source, "unrolled", "--state", "f32");
    const { code, checks } = await verified(out, "--against", source, "--lengths", "5");
    expect(code).toBe(0);
    expect(checks.get("model graph, one call")).toMatchObject({ lengths: [24], passed: true });
    expect(checks.get("model graph, one call")?.note).toContain("length 5");
  });
});

test("a source that claims a free length it does not have is compared at the one it was traced at", async () => {
  const source = fixture("forms/mamba_torchscript_dynamic_axes.onnx");
  const out = await compiled(source, "claims", "--state", "f32");
  const { code, checks } = await verified(out, "--against", source, "--lengths", "1,7");
  expect(code).toBe(0);
  expect(checks.get("model graph, one call")).toMatchObject({ lengths: [24], passed: true });
});

describe("a file whose recipe rounds weights or activations", () => {
  const random = ["--calib", "random", "--num-samples", "4", "--seq-len", "24"];

  test.each([
    ["rtn-w4a16", [], "max 0.0001"],
    ["w8a8h8", random, "rms 0.15"],
  ])("%s differs from its source by design, which is said and is no failure", async (recipe, flags, itself) => {
    const out = await compiled(PAIR, recipe, "--recipe", recipe, ...flags);
    const { code, checks } = await verified(out, "--against", PAIR);
    expect(code).toBe(0);
    expect(checks.get("prefill graph, one call")?.limit).toEqual({ measure: "rms", value: 0.5 });
    expect(checks.get("prefill graph, one call")?.difference?.relative).toBeGreaterThan(1e-3);
    const human = await mambac("verify", out, "--against", PAIR, "--lengths", "7,20");
    expect(human.out).toContain(
      `The recipe ${recipe} rounds weights${recipe === "w8a8h8" ? " and activations" : ""}: `,
    );
    expect(human.out).toMatch(new RegExp(`ok +itself, cut once .* ${itself}\\n`));
  });

  test("fails where it is broken all the same", async () => {
    const out = await compiled(PAIR, "broken", "--recipe", "rtn-w4a16");
    const { model } = readModel(out);
    const { graph } = model;
    const gain = [...graph.initializers].find(([name]) => name.endsWith("norm_f.weight"));
    if (gain === undefined) throw new Error("there is no last norm");
    const [name, tensor] = gain;
    const negated = f32Tensor(
      tensor.shape,
      toNumbers(tensor).map((value) => -value),
    );
    const initializers = new Map([...graph.initializers, [name, negated]]);
    writeFileSync(out, encodeModel({ ...model, graph: { ...graph, initializers } }));
    const { code, checks } = await verified(out, "--against", PAIR);
    expect(code).toBe(3);
    expect(checks.get("prefill graph, one call")?.passed).toBe(false);
    expect(checks.get("itself, token by token")?.passed).toBe(true);
  });
});

describe("an unfaithful file fails with 3", () => {
  test("a projection that is off by a thousandth", async () => {
    const out = await compiled(PAIR, "weight", "--state", "f32");
    const { model } = readModel(out);
    const { graph } = model;
    const name = graph.nodes.find(({ op, inputs }) => op === "MatMul" && graph.initializers.has(inputs[1] ?? ""))
      ?.inputs[1];
    const tensor = graph.initializers.get(name ?? "");
    if (name === undefined || tensor === undefined) throw new Error("there is no projection");
    const scaled = f32Tensor(
      tensor.shape,
      toNumbers(tensor).map((value) => 1.001 * value),
    );
    const initializers = new Map([...graph.initializers, [name, scaled]]);
    writeFileSync(out, encodeModel({ ...model, graph: { ...graph, initializers } }));
    const { code, checks } = await verified(out, "--against", PAIR);
    expect(code).toBe(3);
    expect(checks.get("prefill graph, one call")?.passed).toBe(false);
    expect(checks.get("itself, token by token")?.passed).toBe(true);
  });

  test.each(["f32", "h8", "h4"])("%s states that go back into the wrong layer", async (state) => {
    const out = await compiled(PAIR, `swapped-${state}`, "--state", state);
    const { model } = readModel(out);
    const states = JSON.parse(model.metadata.get("mambac.states") ?? "[]") as { input: string; output: string }[];
    const twin = (output: string): string =>
      output.replace(/layers\.(\d)/, (_, layer: string) => `layers.${1 - Number(layer)}`);
    const swapped = states.map(({ input, output }) => ({ input, output: twin(output) }));
    expect(new Set(swapped.map(({ output }) => output))).toEqual(new Set(states.map(({ output }) => output)));
    const metadata = new Map([...model.metadata, ["mambac.states", JSON.stringify(swapped)]]);
    writeFileSync(out, encodeModel({ ...model, metadata }));
    const { code, checks } = await verified(out, "--against", PAIR);
    expect(code).toBe(3);
    expect(checks.get("itself, token by token")?.passed).toBe(false);
    expect(checks.get("decode graph, token by token")?.passed).toBe(false);
    expect(checks.get("prefill graph, one call")?.passed).toBe(true);
  });

  test("the decode graph of a pair that disagrees", async () => {
    const pair = fixture("hf/mamba2_groups");
    const out = await compiled(pair, "groups", "--trust", "prefill", "--state", "f32");
    const { code, checks } = await verified(out, "--against", pair);
    expect(code).toBe(3);
    expect(checks.get("prefill graph, one call")?.passed).toBe(true);
    expect(checks.get("decode graph, token by token")?.passed).toBe(false);
    const human = await mambac("verify", out, "--against", pair);
    expect(human.code).toBe(3);
    expect(human.out).toMatch(/FAIL +decode graph, token by token/);
  });
});

test("arguments the wrong way round are noticed", async () => {
  const out = await compiled(PREFILL, "swapped", "--state", "f32");
  const said = async (...argv: string[]): Promise<string> =>
    (await mambac("verify", ...argv, "--lengths", "3", "--library", "none")).out;
  expect(await said(PREFILL, "--against", out)).toContain("prefill.onnx was not compiled by mambac: is it the source?");
  expect(await said(out, "--against", PREFILL)).not.toContain("not compiled");
});

test("a source that ONNX Runtime cannot load leaves nothing to compare: exit code 4, with the reason", async () => {
  const source = fixture("forms/mamba2_torchscript_static.onnx");
  const out = await compiled(source, "torchscript", "--state", "f32");
  const result = await mambac("verify", out, "--against", source);
  expect(result.code).toBe(4);
  expect(result.out).toMatch(/- +model graph, one call .*cannot be run: /);
  expect(result.err).toContain("nothing could be compared");
});
