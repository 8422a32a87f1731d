import { writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { byteTokenizer, hubTokenizer, loadTokenizer, type Tokenizer } from "../../src/run/tokenizer.js";
import { scratchFolder } from "../support/count-model.js";

/** The printable stand-ins that byte-level BPE uses for the 256 bytes. */
function byteSymbols(): string[] {
  const kept = (byte: number): boolean =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(kept(byte) ? byte : next++));
}

/** A byte-level BPE tokenizer.json with two merges, and `<end>` as a special token. */
function definition(): object {
  const symbols = byteSymbols();
  const merges = ["t h", "th e"];
  const vocabulary = [...symbols, "th", "the"];
  return {
    version: "1.0",
    added_tokens: [
      {
        id: 258,
        content: "<end>",
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      },
    ],
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: null,
    decoder: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab: Object.fromEntries(vocabulary.map((symbol, id) => [symbol, id])),
      merges,
    },
  };
}

const HUB: Tokenizer = hubTokenizer(definition(), {});
const text: fc.Arbitrary<string> = fc.string({ unit: "grapheme", maxLength: 30 });

describe.each<readonly [string, Tokenizer]>([
  ["bytes", byteTokenizer],
  ["tokenizer.json", HUB],
])("%s", (kind, tokenizer) => {
  it("says what it is", () => {
    expect(tokenizer.kind).toBe(kind);
  });

  it("gives texts back, at once and as a stream", () => {
    fc.assert(
      fc.property(text, (original) => {
        const ids = tokenizer.encode(original);
        expect(tokenizer.decode(ids)).toBe(original);
        const stream = tokenizer.stream();
        const pieces = ids.map((id) => stream.push(id));
        expect(pieces.join("") + stream.flush()).toBe(original);
      }),
      { seed: 5, numRuns: 300 },
    );
  });

  it("holds back the bytes of an unfinished character", () => {
    const stream = tokenizer.stream();
    const pieces = tokenizer.encode("aß€😀").map((id) => stream.push(id));
    expect(pieces).toEqual(["a", "", "ß", "", "", "€", "", "", "", "😀"]);
    const cut = tokenizer.encode("€").slice(0, 2);
    expect(cut.map((id) => stream.push(id))).toEqual(["", ""]);
    expect(stream.flush()).toMatch(/^\ufffd+$/);
    expect(stream.flush()).toBe("");
  });
});

describe("tokenizer.json", () => {
  it("merges, and leaves special tokens out of texts", () => {
    expect(HUB.encode("the")).toEqual([257]);
    expect(HUB.decode([257, 258])).toBe("the");
    expect(HUB.decode([])).toBe("");
    const stream = HUB.stream();
    expect([257, 258, 257].map((id) => stream.push(id))).toEqual(["the", "", "the"]);
  });
});

describe("loadTokenizer", () => {
  it("reads a file, a folder or the word bytes", () => {
    const folder = scratchFolder();
    const file = join(folder, "tokenizer.json");
    expect(() => loadTokenizer(folder)).toThrow(/does not exist/);
    writeFileSync(file, "{");
    expect(() => loadTokenizer(folder)).toThrow(/is not JSON/);
    writeFileSync(file, "{}");
    expect(() => loadTokenizer(folder)).toThrow(/cannot be used/);
    writeFileSync(file, JSON.stringify(definition()));
    for (const path of [folder, file]) expect(loadTokenizer(path).encode("the")).toEqual([257]);
    writeFileSync(join(folder, "tokenizer_config.json"), "[");
    expect(() => loadTokenizer(file)).toThrow(/tokenizer_config\.json is not JSON/);
    expect(loadTokenizer("bytes")).toBe(byteTokenizer);
  });

  it("says when a token cannot be a byte", () => {
    expect(() => byteTokenizer.decode([300])).toThrow(/another tokenizer/);
  });
});
