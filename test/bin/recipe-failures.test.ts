import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import type { Model } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import { readModel } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { weightValues } from "../../src/rewrite/weights.js";
import { type CommandResult, documentIn, mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-recipe-failures-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const MODEL = fixture("hf/mamba2/prefill.onnx");
const RANDOM = ["--calib", "random", "--num-samples", "4", "--seq-len", "16"];

/** The fixture with the projection weights changed, on disk. */
function changed(name: string, change: (values: Float32Array, columns: number) => void): string {
  const { model } = readModel(MODEL);
  const initializers = new Map(model.graph.initializers);
  for (const [weight, tensor] of model.graph.initializers) {
    if (tensor.shape.length !== 2 || tensor.dtype !== "f32" || Math.min(...tensor.shape) < 16) continue;
    const values = weightValues(tensor).slice();
    change(values, tensor.shape[1] ?? 1);
    initializers.set(weight, f32Tensor(tensor.shape, values));
  }
  const path = join(root, name);
  const other: Model = { ...model, graph: { ...model.graph, initializers } };
  writeFileSync(path, encodeModel(other));
  return path;
}

async function compile(
  source: string,
  recipe: string,
  ...flags: string[]
): Promise<CommandResult & { files: string[] }> {
  const folder = mkdtempSync(join(root, "case-"));
  const result = await mambac("compile", source, "-o", join(folder, "out.onnx"), "--recipe", recipe, ...flags);
  return { ...result, files: readdirSync(folder).map((file) => join(folder, file)) };
}

describe("weights", () => {
  const poisoned = changed("nan.onnx", (values) => {
    values[5] = Number.NaN;
  });

  test.each(["ptqssm-w8-inout", "ptqssm-w8-inout-tanh", "rtn-w4a16", "gptq-w4a16"])(
    "%s: NaN ends with exit code 5, names the weight, and leaves no file",
    async (recipe) => {
      const result = await compile(poisoned, recipe, ...RANDOM);
      expect(result, result.err).toMatchObject({ code: 5, out: "", files: [] });
      expect(result.err).toMatch(/NaN|not finite/);
    },
  );

  test("constant weights, zeros among them, come out as they are", async () => {
    for (const constant of [0, 0.5]) {
      const source = changed(`constant${constant}.onnx`, (values) => values.fill(constant));
      for (const recipe of ["ptqssm-w8-inout", "ptqssm-w8-inout-pc", "ptqssm-w8-inout-tanh", "rtn-w4a16"]) {
        const { code, files, err } = await compile(source, recipe);
        expect(code, `${recipe} ${err}`).toBe(0);
        const [out = ""] = files;
        const verified = await mambac("verify", out, "--against", source, "--lengths", "1,9");
        expect(verified.code, `${recipe} of ${constant}: ${verified.out}${verified.err}`).toBe(0);
      }
    }
  });

  test("channels of zeros stay zeros, whatever the recipe", async () => {
    const source = changed("zeros.onnx", (values, columns) => {
      for (let at = 0; at < values.length; at++) if (at % columns === 3 || at < columns) values[at] = 0;
    });
    for (const recipe of ["w8a8h8", "gptq-w4a16", "awq-w4a16", "mambaquant-w8a8"]) {
      const { code, err, files } = await compile(source, recipe, ...RANDOM);
      expect(code, `${recipe}: ${err}`).toBe(0);
      const { initializers } = readModel(files.find((file) => file.endsWith(".onnx")) ?? "").model.graph;
      for (const [name, tensor] of initializers) {
        if (tensor.dtype === "f32")
          expect(weightValues(tensor).every(Number.isFinite), `${recipe}: ${name}`).toBe(true);
      }
    }
  });
});

describe("calibration data", () => {
  test("that are empty, of other tokens, or text without a tokenizer end with exit code 5", async () => {
    const empty = join(root, "empty.jsonl");
    writeFileSync(empty, "");
    const large = join(root, "large.npy");
    writeFileSync(large, npy([1, 2, 100_000]));
    const text = join(root, "words.txt");
    writeFileSync(text, "some words");
    for (const [path, message] of [
      [empty, /not one token/],
      [large, /100000/],
      [text, /is text, and the model has \d+ tokens; give its tokenizer\.json \(--tokenizer\)/],
      [join(root, "absent.txt"), /cannot read/],
    ] as const) {
      const result = await compile(MODEL, "w8a8h8", "--calib", path);
      expect(result, path).toMatchObject({ code: 5, out: "", files: [] });
      expect(result.err).toMatch(message);
    }
  });

  test("text is read with a tokenizer: named, or beside the source; --seed changes what is drawn", async () => {
    const folder = mkdtempSync(join(root, "tokenizer-"));
    const vocab = Object.fromEntries("abcdefgh ".split("").map((letter, at) => [letter, at]));
    const model = { type: "BPE", vocab, merges: [], unk_token: null };
    const plain = { version: "1.0", added_tokens: [], normalizer: null, pre_tokenizer: null, post_processor: null };
    const tokenizer = join(folder, "tokenizer.json");
    writeFileSync(tokenizer, JSON.stringify({ ...plain, decoder: { type: "Fuse" }, model }));
    const text = join(root, "letters.jsonl");
    const letters = (line: number): string =>
      Array.from({ length: 40 }, (_, at) => "abcdefgh "[(at * at + line * (at % 5)) % 9]).join("");
    writeFileSync(
      text,
      Array.from({ length: 50 }, (_, line) => `${JSON.stringify({ text: letters(line) })}\n`).join(""),
    );
    const calib = ["--calib", text, "--num-samples", "4", "--seq-len", "16"];
    const bytes = async (source: string, ...flags: string[]): Promise<Buffer> => {
      const result = await compile(source, "w8a8h8", ...calib, ...flags);
      expect(result.code, result.err).toBe(0);
      return readFileSync(result.files.find((file) => file.endsWith("out.onnx")) ?? "");
    };
    const named = await bytes(MODEL, "--tokenizer", tokenizer);
    const beside = join(folder, "prefill.onnx");
    writeFileSync(beside, readFileSync(MODEL));
    expect((await bytes(beside)).equals(named)).toBe(true);
    expect((await bytes(MODEL, "--tokenizer", folder, "--seed", "0")).equals(named)).toBe(true);
    expect((await bytes(MODEL, "--tokenizer", tokenizer, "--seed", "1")).equals(named)).toBe(false);
  });

  test("tokens of a tokenizer that does not fit end with exit code 5", async () => {
    const tokenizer = join(root, "wide.json");
    const vocab = { a: 0, b: 500_000 };
    const plain = { version: "1.0", added_tokens: [], normalizer: null, pre_tokenizer: null, post_processor: null };
    const model = { type: "BPE", vocab, merges: [], unk_token: null };
    writeFileSync(tokenizer, JSON.stringify({ ...plain, decoder: { type: "Fuse" }, model }));
    const text = join(root, "ab.txt");
    writeFileSync(text, "abababab");
    const result = await compile(MODEL, "w8a8h8", "--calib", text, "--tokenizer", tokenizer, "--json");
    expect(result).toMatchObject({ code: 5, files: [] });
    expect(documentIn(result)).toMatchObject({ error: { exitCode: 5 } });
    expect(result.err).toContain("500000");
  });
});

/** Token ids as a .npy file. */
function npy(ids: readonly number[]): Uint8Array {
  const header = `{'descr': '<i8', 'fortran_order': False, 'shape': (${ids.length},), }`.padEnd(117).concat("\n");
  const head = Buffer.concat([Buffer.from([0x93, ...Buffer.from("NUMPY"), 1, 0, 118, 0]), Buffer.from(header)]);
  return Buffer.concat([head, Buffer.from(BigInt64Array.from(ids, BigInt).buffer)]);
}
