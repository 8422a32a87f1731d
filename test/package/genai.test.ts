import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Model } from "../../src/ir/graph.js";
import { toNumbers } from "../../src/ir/tensor.js";
import { packedBytes } from "../../src/ir/types.js";
import { readModel } from "../../src/onnx/read.js";
import { genaiPackage } from "../../src/package/genai.js";
import { allocate, type Memory, openNativeSession } from "../../src/run/native-session.js";
import { readSignature, type Signature, type StatePair } from "../../src/run/signature.js";
import { loadPackage } from "../../src/run/stateful.js";
import { mambac } from "../support/command.js";
import { compileDemo, done, scratch } from "../support/demo-packages.js";
import { fixture } from "../support/fixture-models.js";

const root = scratch();
afterAll(() => rmSync(root, { recursive: true }));

const STYLE = ["--state-names", "genai"];
const PROMPT = [...Buffer.from("And it came to pass")];

/** Ways to keep the state: each has functions of its own, which run where there is no library. */
const FORMATS: Readonly<Record<string, readonly string[]>> = {
  h4: ["--state", "h4"],
  h8: ["--state", "h8", "--requantize", "token"],
  replay: ["--state", "h4", "--requantize", "replay", "--replay-length", "4"],
  f32: ["--state", "f32"],
  linear: ["--state", "f32", "--scan", "linear-attention"],
};

interface Config {
  readonly model: {
    readonly type: string;
    readonly context_length: number;
    readonly vocab_size: number;
    readonly eos_token_id?: unknown;
    readonly decoder: {
      readonly filename: string;
      readonly num_hidden_layers: number;
      readonly session_options: { readonly custom_ops_library?: string };
      readonly inputs: { readonly input_ids: string; readonly past_key_names: string };
      readonly outputs: { readonly logits: string; readonly present_key_names: string };
    };
  };
}

const configIn = (folder: string): Config =>
  JSON.parse(readFileSync(join(folder, "genai_config.json"), "utf8")) as Config;

beforeAll(async () => {
  for (const [name, flags] of Object.entries(FORMATS)) {
    await done("package", await compileDemo(root, name, ...flags, ...STYLE), "--genai", join(root, name), "-q");
  }
}, 180_000);

describe("genai_config.json", () => {
  test("of the demo is the one on file", () => {
    const golden = join(import.meta.dirname, "..", "fixtures", "package", "demo.genai_config.json");
    expect(readFileSync(join(root, "h4", "genai_config.json"), "utf8")).toBe(readFileSync(golden, "utf8"));
  });

  test("takes special tokens and the length from the source's configuration, and the library along", async () => {
    const source = join(root, "source");
    mkdirSync(source);
    const write = (name: string, value: object): void => writeFileSync(join(source, name), JSON.stringify(value));
    write("config.json", { model_type: "mamba2", eos_token_id: 7, pad_token_id: null, max_position_embeddings: 4096 });
    write("generation_config.json", { eos_token_id: [7, 9], bos_token_id: 1 });
    write("tokenizer.json", { version: "1.0" });
    writeFileSync(join(source, "weights.bin"), "not of the tokenizer");
    const folder = join(root, "with-tokenizer");
    const library = join(root, "ops.so");
    writeFileSync(library, "a library");
    const flags = ["--genai", folder, "--tokenizer", source, "--library", library];
    const notes = await done("package", join(root, "h4.onnx"), ...flags, "-q");
    expect(notes).toBe("");
    const { model } = configIn(folder);
    expect(model).toMatchObject({ context_length: 4096, eos_token_id: [7, 9], bos_token_id: 1 });
    expect(model).not.toHaveProperty("pad_token_id");
    expect(model.decoder.session_options.custom_ops_library).toBe("ops.so");
    for (const name of ["config.json", "generation_config.json", "tokenizer.json"]) {
      expect(readFileSync(join(folder, name))).toEqual(readFileSync(join(source, name)));
    }
    expect(readFileSync(join(folder, "ops.so"), "utf8")).toBe("a library");
    expect(() => readFileSync(join(folder, "weights.bin"))).toThrow();
  });
});

describe("a packaged model, driven as GenAI drives it", () => {
  test.each(Object.keys(FORMATS))("%s: one buffer as past and present, from zero bytes", async (name) => {
    const { decoder } = configIn(join(root, name)).model;
    const file = join(root, name, decoder.filename);
    await using model = await loadPackage(join(root, `${name}.onnx`), { library: "none" });
    using session = await openNativeSession(file, { threads: 1 });
    const states = new Map<string, Memory>();
    for (const { input, output, dtype, shape } of discovered(decoder, readSignature(readModel(file).model))) {
      const dims = [1, ...shape.slice(1).map(Number)];
      const bytes = allocate(packedBytes(dtype, dims) ?? expect.fail(input));
      states.set(`${input} ${output}`, { dtype, shape: dims, bytes });
    }
    const run = (tokens: readonly number[]): number[] => {
      using binding = session.bind();
      const bytes = new Uint8Array(BigInt64Array.from(tokens, BigInt).buffer);
      binding.input(decoder.inputs.input_ids, { dtype: "i64", shape: [1, tokens.length], bytes });
      for (const [names, memory] of states) {
        const [input = "", output = ""] = names.split(" ");
        binding.input(input, memory);
        binding.output(output, memory);
      }
      binding.allocateOutput(decoder.outputs.logits);
      const logits = binding.run().get(decoder.outputs.logits) ?? expect.fail("no logits");
      return Array.from(toNumbers(logits)).slice(-256);
    };
    let mine = run(PROMPT);
    let theirs = Array.from((await model.prefill(PROMPT)).data).slice(-256);
    for (let at = 0; at < 16; at++) {
      expect(mine).toEqual(theirs);
      const token = mine.indexOf(Math.max(...mine));
      mine = run([token]);
      theirs = Array.from((await model.step(token)).data);
    }
  });
});

/** The states GenAI finds: names of keys with the last word replaced, layer by layer. */
function discovered(decoder: Config["model"]["decoder"], signature: Signature): StatePair[] {
  const name = (template: string, word: string, layer: number): string =>
    template.replace(/[^.]*$/, word).replace("%d", String(layer));
  const found = Array.from({ length: decoder.num_hidden_layers }, (_, layer) =>
    ["conv_state", "recurrent_state"].map((word) => {
      const input = name(decoder.inputs.past_key_names, word, layer);
      const output = name(decoder.outputs.present_key_names, word, layer);
      return signature.states.find((state) => state.input === input && state.output === output) ?? expect.fail(input);
    }),
  ).flat();
  expect(found.length).toBe(signature.states.length);
  return found;
}

describe("refusals", () => {
  const model = (): Model => readModel(join(root, "h4.onnx")).model;
  const plan = (change: (signature: Signature) => Partial<Signature>): unknown => {
    const signature = readSignature(model());
    return genaiPackage({
      model: model(),
      signature: { ...signature, ...change(signature) },
      name: "demo",
      external: false,
      library: null,
      sideFiles: null,
    });
  };
  const changed =
    (at: number, change: (state: StatePair) => Partial<StatePair>) =>
    ({ states }: Signature): Partial<Signature> => ({
      states: states.map((state, i) => (i === at ? { ...state, ...change(state) } : state)),
    });

  test("names of another runtime", async () => {
    const other = await compileDemo(root, "other", "--state", "h4", "--state-names", "transformersjs");
    const folder = join(root, "refused");
    const result = await mambac("package", other, "--genai", folder);
    expect(result).toMatchObject({ code: 4, out: "" });
    expect(result.err).toMatch(/does not find the state past_conv\.0 .* compile with --state-names genai/);
    expect(() => readFileSync(join(folder, "genai_config.json"))).toThrow();
  }, 60_000);

  test("a hybrid", async () => {
    const hybrid = join(root, "hybrid.onnx");
    await done("compile", fixture("hf/granitemoehybrid"), "-o", hybrid, "-q", ...STYLE);
    expect(await mambac("package", hybrid, "--genai", join(root, "no"))).toMatchObject({
      code: 4,
      err: expect.stringContaining("is an attention cache"),
    });
  }, 60_000);

  test("layers that are not alike, or lack one of the two", () => {
    expect(() => plan(changed(3, () => ({ dtype: "f32" })))).toThrow(/all layers' states like .* has another type/);
    expect(() => plan(changed(2, ({ shape }) => ({ shape: [...shape.slice(0, 2), 4] })))).toThrow(/or shape/);
    expect(() => plan(({ states }) => ({ states: states.slice(1) }))).toThrow(/layer 0 has recurrent_state alone/);
    expect(() => plan(changed(1, () => ({ output: "present.9.recurrent_state" })))).toThrow(/by its name/);
    expect(() => plan(changed(1, ({ shape }) => ({ shape: [...shape.slice(0, 2), "n"] })))).toThrow(/fixed dimensions/);
    const rank = ({ shape }: StatePair): Partial<StatePair> => ({ shape: [...shape, 1, 1] });
    expect(() => plan(({ states }) => ({ states: states.slice(0, 2).map((s) => ({ ...s, ...rank(s) })) }))).toThrow(
      /rank 3/,
    );
  });

  test("what GenAI does not feed", () => {
    expect(() => plan(() => ({ auxiliaries: [{ name: "cache_position", dtype: "i64", rank: 1 }] }))).toThrow(
      /does not feed the input cache_position/,
    );
    expect(() => plan(({ tokens }) => ({ tokens: { ...tokens, length: 1 } }))).toThrow(/one token a call/);
    expect(() => plan(({ logits }) => ({ logits: { ...logits, shape: [null, null, "v"] } }))).toThrow(/vocabulary/);
  });
});
