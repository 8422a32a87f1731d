import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readModel } from "../../src/onnx/read.js";
import { hfPackage } from "../../src/package/hf.js";
import type { PackagePlan } from "../../src/package/plan.js";
import { readSignature, type Signature } from "../../src/run/signature.js";
import { loadPackage } from "../../src/run/stateful.js";
import { mambac } from "../support/command.js";
import { compileDemo, done, scratch } from "../support/demo-packages.js";
import { fixture } from "../support/fixture-models.js";

const root = scratch();
afterAll(() => rmSync(root, { recursive: true }));

const HYBRID = join(root, "hybrid.onnx");

/** A folder of a source model with this configuration; gives its path. */
function sourceFolder(name: string, config: object): string {
  const folder = join(root, name);
  mkdirSync(folder);
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  writeFileSync(join(folder, "tokenizer.json"), '{"version":"1.0"}');
  return folder;
}

const GRANITE = {
  model_type: "granitemoehybrid",
  num_hidden_layers: 2,
  layer_types: ["mamba", "attention"],
  "transformers.js_config": { kv_cache_dtype: "fp32", use_external_data_format: true },
};

beforeAll(async () => {
  await done("compile", fixture("hf/granitemoehybrid"), "-o", HYBRID, "--state-names", "transformersjs", "-q");
}, 60_000);

const configIn = (folder: string): Record<string, unknown> =>
  JSON.parse(readFileSync(join(folder, "config.json"), "utf8")) as Record<string, unknown>;

describe("the layout", () => {
  test("of a hybrid: one file without a suffix, whatever the device", async () => {
    const folder = join(root, "granite");
    const notes = await done("package", HYBRID, "--hf", folder, "--tokenizer", sourceFolder("source", GRANITE), "-q");
    expect(notes).toBe("");
    expect(readdirSync(folder, { recursive: true, encoding: "utf8" }).sort()).toEqual(
      ["config.json", "onnx", join("onnx", "model.onnx"), "tokenizer.json"].sort(),
    );
    // What said that weights lie beside the file was about another file.
    const files = { kv_cache_dtype: "fp32", dtype: "fp32" };
    expect(configIn(folder)).toEqual({ ...GRANITE, "transformers.js_config": files });
  });

  test("weights beside the model have the ending that transformers.js asks for", async () => {
    const demo = await compileDemo(root, "demo", "--state", "h4");
    const folder = join(root, "hub");
    const notes = await done(
      "package",
      demo,
      "--hf",
      folder,
      "--tokenizer",
      sourceFolder("m2", { model_type: "mamba2" }),
    );
    expect(notes).toMatch(/note \(hf\): transformers\.js 4\.3 carries the states of .* model type mamba2/);
    expect(configIn(folder)["transformers.js_config"]).toEqual({
      dtype: "fp32",
      use_external_data_format: { "model.onnx": 1 },
    });
    expect(readdirSync(join(folder, "onnx")).sort()).toEqual(["model.onnx", "model.onnx_data"]);
    expect(readModel(join(folder, "onnx", "model.onnx")).sideFiles).toEqual([
      expect.stringMatching(/model\.onnx_data$/),
    ]);
    await using source = await loadPackage(demo, { library: "none" });
    await using packaged = await loadPackage(join(folder, "onnx", "model.onnx"), { library: "none" });
    const prompt = [...Buffer.from("In the beginning")];
    expect(Array.from((await packaged.prefill(prompt)).data)).toEqual(Array.from((await source.prefill(prompt)).data));
  }, 60_000);
});

describe("refusals", () => {
  test("no config.json, or one that is none", async () => {
    const folder = join(root, "none");
    const bare = await mambac("package", HYBRID, "--hf", folder);
    expect(bare).toMatchObject({ code: 4, err: expect.stringContaining("needs a config.json with a model_type") });
    const list = sourceFolder("list", []);
    const wrong = await mambac("package", HYBRID, "--hf", folder, "--tokenizer", list);
    expect(wrong).toMatchObject({ code: 2, err: expect.stringContaining("it is JSON, but not an object") });
    writeFileSync(join(list, "config.json"), "{");
    const broken = await mambac("package", HYBRID, "--hf", folder, "--tokenizer", list);
    expect(broken).toMatchObject({ code: 2, err: expect.stringContaining("config.json: it is not JSON") });
    mkdirSync(join(root, "empty"));
    const empty = await mambac("package", HYBRID, "--hf", folder, "--tokenizer", join(root, "empty"));
    expect(empty).toMatchObject({ code: 2, err: expect.stringContaining("holds no tokenizer") });
    const absent = await mambac("package", HYBRID, "--hf", folder, "--tokenizer", join(root, "absent"));
    expect(absent).toMatchObject({ code: 2, err: expect.stringContaining("it does not exist") });
    expect(readdirSync(root)).not.toContain("none");
  });

  const plan = (config: object, change: Partial<Signature> = {}): PackagePlan => {
    const { model } = readModel(HYBRID);
    const sideFiles = { folder: root, names: ["config.json"], config: { ...config }, generation: null };
    const signature = { ...readSignature(model), ...change };
    return hfPackage({ model, signature, name: "x", external: false, library: null, sideFiles });
  };

  test("states that go by other names than the configuration says", () => {
    expect(() => plan({ ...GRANITE, layer_types: ["attention", "mamba"] })).toThrow(/does not feed the state past_/);
    expect(plan({ model_type: "falcon_h1", num_hidden_layers: 2 }).notes).toEqual([]);
    expect(() => plan({ model_type: "falcon_h1", num_hidden_layers: 1 })).toThrow(/does not feed the state past_key/);
    expect(plan({ model_type: "nemotron_h", layers_block_type: ["mamba", "attention"] }).notes).toEqual([]);
  });

  test("what transformers.js does not feed, or not as it should be", () => {
    const { states, tokens } = readSignature(readModel(HYBRID).model);
    const stranger = [{ name: "cache_position", dtype: "i64", rank: 1 }] as const;
    expect(() => plan(GRANITE, { auxiliaries: stranger })).toThrow(/does not feed the input cache_position/);
    expect(() => plan(GRANITE, { tokens: { ...tokens, length: 1 } })).toThrow(/one token a call/);
    const named = states.map((state) => ({ ...state, shape: ["batch", ...state.shape.slice(1)] }));
    expect(() => plan(GRANITE, { states: named })).toThrow(/batch of past_conv\.0 to be called batch_size/);
    const moved = states.map((state) => ({ ...state, output: `out.${state.output}` }));
    expect(() => plan(GRANITE, { states: moved })).toThrow(/does not take out\.present_conv\.0 for past_conv\.0/);
    const recurrent = states.filter(({ growthAxis }) => growthAxis === null);
    expect(plan(GRANITE, { states: recurrent }).notes).toEqual([
      expect.stringContaining("counts tokens by an attention"),
    ]);
  });
});
