import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { documentIn, mambac, spawnMambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-run-"));
afterAll(() => rmSync(root, { recursive: true }));

const EXAMPLE = join(import.meta.dirname, "..", "..", "examples", "demo");
const SOURCE = join(EXAMPLE, "prefill.onnx");
const TEXT = join(EXAMPLE, "kjv.txt");
const H4 = join(root, "h4.onnx");
const F32 = join(root, "f32.onnx");

beforeAll(async () => {
  for (const [state, out] of [
    ["h4", H4],
    ["f32", F32],
  ] as const)
    expect((await mambac("compile", SOURCE, "-o", out, "--state", state, "-q")).code).toBe(0);
}, 60_000);

describe("generate", () => {
  const quiet = ["-q", "--max-tokens", "24"];

  test("continues the prompt, and equal seeds give equal texts", async () => {
    const greedy = await mambac("generate", H4, "--prompt", "And the LORD", ...quiet);
    expect(greedy).toMatchObject({ code: 0, err: "" });
    expect(greedy.out).toMatch(/^And the LORD .{23}\n$/);
    const sampled = ["--temperature", "0.9", "--top-k", "20", "--top-p", "0.95", "--seed"];
    const text = async (seed: string): Promise<string> =>
      (await mambac("generate", F32, "--prompt", "And the", ...quiet, ...sampled, seed)).out;
    expect(await text("7")).toBe(await text("7"));
    expect(await text("7")).not.toBe(await text("8"));
  });

  test("streams: the text comes in pieces, the speed goes elsewhere", async () => {
    const result = await spawnMambac(["generate", F32, "--prompt", "In the", "--max-tokens", "5"]);
    expect(result.code).toBe(0);
    expect(result.out).toMatch(/^In the.{5}\n$/);
    expect(result.err).toMatch(/6 prompt tokens in \d+ ms, then \d+ tokens\/s/);
  });

  test("ends before a stop token, and says so", async () => {
    const space = " ".charCodeAt(0);
    const stopped = documentIn(
      await mambac("generate", H4, "--prompt", "And the L", ...quiet, "--stop-tokens", `0,${space}`, "--json"),
    );
    expect(stopped).toMatchObject({ end: "stop" });
    expect(stopped["tokens"]).not.toContain(space);
    expect((await mambac("generate", H4, "--prompt", "x", "--stop-tokens", "-1")).code).toBe(2);
  });

  test("ends where the configuration beside the model says, unless told otherwise", async () => {
    const folder = mkdtempSync(join(root, "configured-"));
    const model = join(folder, "model.onnx");
    expect((await mambac("compile", SOURCE, "-o", model, "-q", "--external-data", "never")).code).toBe(0);
    const space = " ".charCodeAt(0);
    const config = join(folder, "generation_config.json");
    writeFileSync(config, JSON.stringify({ eos_token_id: [0, space] }));
    const argv = ["generate", model, "--prompt", "And the L", "--max-tokens", "24"];
    const told = await mambac(...argv);
    expect(told.err).toContain(`ends before token 0 or ${space} (${config}; --stop-tokens overrides)\n`);
    expect(told.out.slice("And the L".length)).not.toContain(" ");
    const stopped = documentIn(await mambac(...argv, "-q", "--json"));
    expect(stopped).toMatchObject({ end: "stop", stopTokens: [0, space], stopTokensFrom: config });
    for (const [flag, stopTokens] of [
      ["none", []],
      ["3", [3]],
    ] as const) {
      const result = await mambac(...argv, "--stop-tokens", flag, "--json");
      expect(documentIn(result)).toMatchObject({ end: "length", stopTokens, stopTokensFrom: null });
      expect(result.err).not.toContain("ends before");
    }
    const other = documentIn(await mambac("generate", H4, ...argv.slice(2), "-q", "--json"));
    expect(other).toMatchObject({ end: "length", stopTokens: [], stopTokensFrom: null });
  });

  test("gives text and tokens as a document", async () => {
    const said = (await mambac("generate", H4, "--prompt", "And the LORD", ...quiet)).out;
    const document = documentIn(await mambac("generate", H4, "--prompt", "And the LORD", ...quiet, "--json"));
    expect(document).toMatchObject({ command: "generate", prompt: "And the LORD", end: "length" });
    expect(`${String(document["prompt"])}${String(document["text"])}\n`).toBe(said);
    expect(document["tokens"]).toEqual([...Buffer.from(String(document["text"]))]);
  });

  test("a model that is not byte-level needs a tokenizer", async () => {
    const out = join(root, "tiny.onnx");
    expect((await mambac("compile", fixture("hf/mamba2"), "-o", out, "-q")).code).toBe(0);
    const missing = await mambac("generate", out, "--prompt", "x", ...quiet);
    expect(missing).toMatchObject({ code: 2, out: "" });
    expect(missing.err).toContain("--tokenizer");
  });

  test("bad sampling, an empty prompt and a plain forward graph are refused", async () => {
    expect((await mambac("generate", F32, "--prompt", "x", "--top-p", "2")).code).toBe(2);
    expect((await mambac("generate", F32, "--prompt", "")).code).toBe(2);
    const stateless = await mambac("generate", SOURCE, "--prompt", "x", ...quiet);
    expect(stateless).toMatchObject({ code: 2, out: "" });
    expect(stateless.err).toContain("compile it");
  });
});

describe("eval", () => {
  test("f32 scores as its source, h4 close to it, with the state rounded at every token", async () => {
    const score = async (out: string): Promise<Record<string, unknown>> => {
      const argv = ["eval", out, "--text", TEXT, "--against", SOURCE, "--windows", "4", "--window", "256", "--json"];
      const result = await mambac(...argv);
      expect(result.code).toBe(0);
      return documentIn(result);
    };
    const exact = await score(F32);
    expect(exact).toMatchObject({ mode: "token", predictions: 1024, nonFinite: 0, state: { format: "f32" } });
    const comparison = exact["comparison"] as { referenceBitsPerToken: number; maxKlBits: number };
    expect(comparison.maxKlBits).toBeLessThan(1e-6);
    expect(exact["bitsPerByte"]).toBeCloseTo(comparison.referenceBitsPerToken, 5);
    const packed = await score(H4);
    const apart = packed["comparison"] as { meanKlBits: number; top1Agreement: number };
    expect(Math.abs(Number(packed["bitsPerByte"]) / comparison.referenceBitsPerToken - 1)).toBeLessThan(0.01);
    expect(apart.meanKlBits).toBeGreaterThan(1e-4);
    expect(apart.top1Agreement).toBeGreaterThan(0.9);
  });

  test("for people it names model, text, state and protocol", async () => {
    const result = await mambac("eval", H4, "--text", TEXT, "--windows", "2", "--window", "64", "--library", "none");
    expect(result.code).toBe(0);
    expect(result.out).toMatch(/^model +.*h4\.onnx, portable functions\n/);
    expect(result.out).toContain("2 windows of 64 tokens from its start");
    expect(result.out).toContain("h4 dsq-max requantize=call; one token a call, so rounded at every token");
    expect(result.out).toMatch(/bits per byte +\d\.\d{4}\n/);
  });

  test("one call a window does not round inside it", async () => {
    const bits = async (...flags: string[]): Promise<number> => {
      const argv = ["eval", H4, "--text", TEXT, "--windows", "2", "--window", "128", "--json", ...flags];
      return Number(documentIn(await mambac(...argv))["bitsPerByte"]);
    };
    const [call, token] = [await bits("--mode", "call"), await bits("--mode", "token")];
    expect(call).not.toBe(token);
    expect(Math.abs(call - token)).toBeLessThan(0.05);
  });

  test("a graph without a state is fed whole windows, however it was asked", async () => {
    const flags = ["--text", TEXT, "--windows", "2", "--window", "32", "--library", "none", "-q"];
    const result = await mambac("eval", SOURCE, ...flags, "--against", SOURCE);
    expect(result.code, result.err).toBe(0);
    expect(result.out).toContain("one window a call");
    expect(result.out).toMatch(/its bits per token +\d\.\d+ \(\+0\.00 % here\)/);
    const [token, call] = ["token", "call"].map((mode) => mambac("eval", SOURCE, ...flags, "--mode", mode, "--json"));
    expect((await token)?.out).toBe((await call)?.out);
    expect(documentIn((await token) ?? result)).toMatchObject({ mode: "call" });
  });

  test("a text that is too short is told with what is needed", async () => {
    const short = join(root, "short.txt");
    writeFileSync(short, "too short");
    const result = await mambac("eval", F32, "--text", short);
    expect(result.code).toBe(2);
    expect(result.err).toMatch(/has 9 tokens, but 12 windows of 512 need 6145/);
  });
});
