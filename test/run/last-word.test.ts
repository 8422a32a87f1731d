import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { lastWordScore, passageTexts, splitLastWord } from "../../src/run/last-word.js";
import { type LoadedPackage, loadPackage } from "../../src/run/stateful.js";
import { byteTokenizer, hubTokenizer } from "../../src/run/tokenizer.js";
import { mambac } from "../support/command.js";
import { countModelFile } from "../support/count-model.js";
import { DEMO } from "../support/state-quality.js";

const root = mkdtempSync(join(tmpdir(), "mambac-last-word-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

describe("passages", () => {
  test("are the texts of JSON lines; a wrong line is named", () => {
    expect(passageTexts('{"text": "a b"}\n\n{"text": "c\\nd", "id": 3}\r\n', "p")).toEqual(["a b", "c\nd"]);
    expect(() => passageTexts('{"text": "a"}\n{"txt": "b"}', "p")).toThrow(
      /^p:2: a line must be an object with a text/,
    );
    expect(() => passageTexts('{"text": 3}', "p")).toThrow(/^p:1: /);
    expect(() => passageTexts("text", "p")).toThrow(/^p:1: it is not JSON/);
    expect(() => passageTexts("\n \n", "p")).toThrow(/p holds no passage/);
    expect(() => passageTexts("", "p")).toThrow(expect.objectContaining({ exitCode: 5 }));
  });

  test("split before the space of the last word", () => {
    const text = (from: string): [string, string] | null => {
      const split = splitLastWord(from, byteTokenizer);
      if (split === null) return null;
      return [
        byteTokenizer.decode(split.ids.slice(0, split.start)),
        byteTokenizer.decode(split.ids.slice(split.start)),
      ];
    };
    expect(text("the last  word\n")).toEqual(["the last", "  word"]);
    expect(text("zwei Wörter")).toEqual(["zwei", " Wörter"]);
    expect([text("word"), text("  word "), text(""), text("   ")]).toEqual([null, null, null, null]);
  });

  test("are split in tokens of the whole text", () => {
    const tokenizer = hubTokenizer(
      {
        version: "1.0",
        added_tokens: [],
        normalizer: null,
        pre_tokenizer: null,
        post_processor: null,
        decoder: { type: "Fuse" },
        model: { type: "BPE", vocab: { a: 0, " ": 1, b: 2, " b": 3 }, merges: ["  b"], unk_token: null },
      },
      {},
    );
    const split = splitLastWord("aa b", tokenizer);
    expect(split).not.toBeNull();
    expect(split?.start).toBe(2);
    expect(split?.ids.length).toBeGreaterThan(2);
  });
});

/** What the model itself says after a prompt, greedily. */
async function continued(model: LoadedPackage, prompt: string, length: number): Promise<string> {
  model.reset();
  const ids = byteTokenizer.encode(prompt);
  let logits = await model.prefill(ids);
  for (let i = 0; i < length; i++) {
    const row = logits.data.subarray(logits.data.length - logits.vocabulary);
    const best = row.indexOf(Math.max(...row));
    ids.push(best);
    logits = await model.step(best);
  }
  return byteTokenizer.decode(ids);
}

describe("the score", () => {
  test("is full for what the model says itself, whatever the batch and the mode, and none for other words", async () => {
    const out = join(root, "demo.onnx");
    expect((await mambac("compile", join(DEMO, "prefill.onnx"), "-o", out, "--state", "f32", "-q")).code).toBe(0);
    const texts: string[] = [];
    {
      await using one = await loadPackage(out);
      for (const prompt of ["And the LORD ", "In the beginning God created", "Then said ", "the son of Da"]) {
        const said = await continued(one, prompt, 60);
        // Up to the end of its last whole word, which the model chose byte by byte.
        const whole = said.slice(0, said.trimEnd().lastIndexOf(" "));
        expect(whole.trim().split(/\s+/).length).toBeGreaterThan(prompt.trim().split(" ").length);
        texts.push(whole);
      }
    }
    const passages = texts.map((text) => splitLastWord(text, byteTokenizer)).filter((split) => split !== null);
    expect(passages).toHaveLength(4);
    const other = texts.map((text) => splitLastWord(`${text.replace(/\s+\S+$/u, "")} xqz`, byteTokenizer));
    for (const batch of [1, 3]) {
      await using model = await loadPackage(out, { batch });
      for (const mode of ["token", "call"] as const) {
        const score = await lastWordScore({ model, passages, mode });
        expect(score).toMatchObject({ passages: 4, accuracy: 1, nonFinite: 0 });
        expect(score.perplexity).toBeGreaterThan(1);
        const wrong = await lastWordScore({ model, passages: other.filter((split) => split !== null), mode });
        expect(wrong.accuracy).toBe(0);
        expect(wrong.perplexity).toBeGreaterThan(1000 * score.perplexity);
      }
    }
  });

  test("is the product of the word's probabilities", async () => {
    await using model = await loadPackage(countModelFile());
    // Scores of the counting model are counts: after 1 1 2 those of 1 and 2 are 2 and 1, of the six others 0.
    const score = await lastWordScore({ model, passages: [{ ids: [1, 1, 2, 1, 3], start: 3 }], mode: "token" });
    const share = (counts: readonly number[], at: number): number =>
      Math.exp(counts[at] ?? 0) / counts.reduce((sum, count) => sum + Math.exp(count), 0);
    const expected = share([0, 2, 1, 0, 0, 0, 0, 0], 1) * share([0, 3, 1, 0, 0, 0, 0, 0], 3);
    expect(score.perplexity).toBeCloseTo(1 / expected, 3);
    expect(score.accuracy).toBe(0);
  });

  test("refuses unknown tokens and no passages", async () => {
    await using model = await loadPackage(countModelFile());
    const refused = { code: "eval/last-word", exitCode: 5 };
    await expect(lastWordScore({ model, passages: [], mode: "token" })).rejects.toMatchObject(refused);
    const passages = [{ ids: [1, 99], start: 1 }];
    await expect(lastWordScore({ model, passages, mode: "call" })).rejects.toMatchObject(refused);
  });
});

describe("eval", () => {
  test("gives last words, positions and the footprint as one document", async () => {
    const out = join(root, "h8.onnx");
    expect((await mambac("compile", join(DEMO, "prefill.onnx"), "-o", out, "--state", "h8", "-q")).code).toBe(0);
    const file = join(root, "passages.jsonl");
    const lines = readFileSync(join(DEMO, "kjv.txt"), "utf8")
      .slice(0, 600)
      .split(/(?<=\.)\s/);
    writeFileSync(file, [...lines, "one"].map((text) => JSON.stringify({ text })).join("\n"));
    const argv = [
      "eval",
      out,
      "--last-word",
      file,
      "--text",
      join(DEMO, "kjv.txt"),
      "--windows",
      "2",
      "--window",
      "48",
    ];
    const result = await mambac(...argv, "--sequences", "10", "--json");
    expect(result.code).toBe(0);
    const document: unknown = JSON.parse(result.out);
    expect(document).toMatchObject({
      lastWord: { passages: lines.length, skipped: 1, nonFinite: 0 },
      session: { intraOpThreads: 1, graphOptimization: "all", executionMode: "sequential" },
      positions: [
        { from: 0, to: 16 },
        { from: 16, to: 32 },
        { from: 32, to: 48 },
      ],
      footprint: { sequences: 10 },
    });
    const people = await mambac(...argv, "-q");
    expect(people.out).toMatch(/last word .*passages.jsonl, \d+ passages, 1 of one word left out\n/);
    expect(people.out).toMatch(/\n0 to 15 +\d\.\d{4}/);
    expect(people.out).toMatch(/weights +\S+ \S+: projections .*embedding .*conv .*norms/);
  });

  test("needs something to evaluate on", async () => {
    const result = await mambac("eval", join(DEMO, "prefill.onnx"));
    expect(result).toMatchObject({ code: 2, out: "" });
    expect(result.err).toContain("--text FILE or --last-word");
    const broken = await mambac("eval", countModelFile(), "--tokenizer", "bytes", "--last-word", join(DEMO, "kjv.txt"));
    expect(broken).toMatchObject({ code: 5, out: "" });
    expect(broken.err).toMatch(/kjv\.txt:1: it is not JSON/);
  });
});
