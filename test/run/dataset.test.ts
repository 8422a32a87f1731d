import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { type Dataset, type DatasetOptions, openDataset } from "../../src/run/dataset.js";
import { hubTokenizer, type Tokenizer } from "../../src/run/tokenizer.js";
import { MambacError } from "../../src/support/errors.js";
import { fixture } from "../support/fixture-models.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-dataset-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function file(name: string, content: string | Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

const data = (name: string): string => fixture(`data/${name}`);

/** The array all fixtures of ids hold. */
const IDS = Array.from({ length: 5 }, (_, row) => Array.from({ length: 12 }, (_, at) => ((row * 12 + at) * 7) % 200));

async function collect(dataset: Dataset): Promise<number[][]> {
  const out: number[][] = [];
  for await (const { tokens } of dataset.sequences()) out.push([...tokens]);
  return out;
}

async function sequences(
  options: Partial<DatasetOptions> & { readonly paths: readonly string[] },
): Promise<number[][]> {
  const dataset = await openDataset({ vocabulary: 256, sequenceLength: 12, samples: null, ...options });
  try {
    return await collect(dataset);
  } finally {
    dataset.close();
  }
}

async function refusal(options: Partial<DatasetOptions> & { readonly paths: readonly string[] }): Promise<MambacError> {
  const cause: unknown = await sequences(options).then(
    () => null,
    (error: unknown) => error,
  );
  if (cause instanceof MambacError) return cause;
  throw new Error(`no refusal: ${String(cause)}`);
}

/** Words of one letter, and the pair 'ab'. */
const LETTERS: Tokenizer = hubTokenizer(
  {
    version: "1.0",
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: { type: "Fuse" },
    model: { type: "BPE", vocab: { a: 0, b: 1, ab: 2, "\n": 3, c: 4 }, merges: ["a b"], unk_token: null },
  },
  {},
);

describe("arrays of ids", () => {
  it.each(["ids_i64.npy", "ids_u16.npy", "stored.npz", "deflated.npz", "ids.safetensors"])(
    "%s gives its rows in order",
    async (name) => {
      expect(await sequences({ paths: [data(name)] })).toEqual(IDS);
    },
  );

  it("cuts rows that are longer than a sequence, never across rows", async () => {
    const cut = IDS.flatMap((row) => [row.slice(0, 5), row.slice(5, 10), row.slice(10)]);
    expect(await sequences({ paths: [data("ids_i64.npy")], sequenceLength: 5 })).toEqual(cut);
    expect(await sequences({ paths: [data("ids_i64.npy")], sequenceLength: 100 })).toEqual(IDS);
  });

  it("cuts a stream of rank 1 anywhere", async () => {
    const flat = IDS.flat();
    const expected = Array.from({ length: 9 }, (_, i) => flat.slice(7 * i, 7 * i + 7));
    expect(await sequences({ paths: [data("ids_1d_i32.npy")], sequenceLength: 7 })).toEqual(expected);
  });

  it.each([
    ["float.npy", "dataset/dtype", /<f4.*integers/],
    ["rank3.npy", "dataset/rank", /\[5, 3, 4\]/],
    ["fortran.npy", "dataset/order", /ascontiguousarray/],
    ["big_endian.npy", "dataset/dtype", />i8/],
    ["pickled.npy", "dataset/pickle", /pickled Python objects/],
    ["empty.npy", "dataset/empty", /not one token/],
  ])("refuses %s", async (name, code, message) => {
    const error = await refusal({ paths: [data(name)] });
    expect(error).toMatchObject({ code, exitCode: 5 });
    expect(error.message).toMatch(message);
    expect(error.message).toContain(name);
  });

  it("refuses ids the model does not know, saying where", async () => {
    const error = await refusal({ paths: [data("ids_i64.npy")], vocabulary: 150 });
    expect(error).toMatchObject({ code: "dataset/vocabulary", exitCode: 5 });
    // 22 * 7 is the first above 149.
    expect(error.message).toMatch(/row 1 from 0: position 10 holds the id 154.*0 to 149/);
  });

  it.each(["ids_i64.npy", "stored.npz", "deflated.npz", "ids.safetensors", "snappy.parquet"])(
    "%s cut short anywhere is refused with exit code 5, or has lost nothing that matters",
    async (name) => {
      const bytes = readFileSync(data(name));
      const whole = await sequences({ paths: [data(name)], samples: null });
      await fc.assert(
        fc.asyncProperty(fc.nat(bytes.length - 1), async (length) => {
          const path = file(`cut-${name}`, bytes.subarray(0, length));
          await sequences({ paths: [path] }).then(
            (got) => expect(got).toEqual(whole),
            (error: unknown) => expect(error).toMatchObject({ name: "MambacError", exitCode: 5 }),
          );
        }),
        { numRuns: 40, seed: 7 },
      );
    },
  );

  it("refuses an archive that leaves open which array is meant", async () => {
    const header = JSON.stringify({
      a: { dtype: "I32", shape: [2], data_offsets: [0, 8] },
      b: { dtype: "I32", shape: [2], data_offsets: [8, 16] },
    });
    const length = new Uint8Array(new BigUint64Array([BigInt(header.length)]).buffer);
    const path = file("two.safetensors", Buffer.concat([length, Buffer.from(header), Buffer.alloc(16)]));
    const error = await refusal({ paths: [path] });
    expect(error).toMatchObject({ code: "dataset/array", exitCode: 5 });
    expect(error.message).toContain("a, b");
  });
});

describe("text", () => {
  it("is bytes where the vocabulary is 256", async () => {
    const text = "Grüße, bytes and more bytes.";
    const bytes = [...new TextEncoder().encode(text)];
    const got = await sequences({ paths: [file("a.txt", text)], sequenceLength: 8 });
    expect(got).toEqual([bytes.slice(0, 8), bytes.slice(8, 16), bytes.slice(16, 24), bytes.slice(24)]);
  });

  it("needs a tokenizer for any other vocabulary", async () => {
    const error = await refusal({ paths: [file("a.txt", "text")], vocabulary: 50280 });
    expect(error).toMatchObject({ code: "dataset/tokenizer", exitCode: 5 });
  });

  it("is tokenized in parts without losing or splitting a line", async () => {
    const line = "abcab\n";
    const text = line.repeat(40_000);
    const got = await sequences({ paths: [file("long.txt", text)], tokenizer: LETTERS, sequenceLength: 1000 });
    const expected = Array.from({ length: 40_000 }, () => [2, 4, 2, 3]).flat();
    expect(got.flat()).toEqual(expected);
    expect(got.every((ids) => ids.length === 1000)).toBe(true);
  });

  it("is refused unless it is UTF-8, when it is to be tokenized", async () => {
    const path = file("latin.txt", Uint8Array.of(0x61, 0xfc, 0x61));
    expect(await refusal({ paths: [path], tokenizer: LETTERS })).toMatchObject({
      code: "dataset/encoding",
      exitCode: 5,
    });
    expect(await sequences({ paths: [path] })).toEqual([[0x61, 0xfc, 0x61]]);
  });

  it("is refused where two bytes make a character, with bytes as tokens too", async () => {
    const path = file("wide.txt", Buffer.from("wide characters", "utf16le"));
    expect(await refusal({ paths: [path] })).toMatchObject({ code: "dataset/encoding", exitCode: 5 });
  });

  it("is drawn anew by another seed when it is tokenized, from a few pages on", async () => {
    const text = Array.from({ length: 4000 }, (_, at) => "abc"[((at * at) % 7) % 3])
      .join("")
      .repeat(6);
    const paths = [file("pages.txt", text.replaceAll(/.{60}/g, "$&\n"))];
    const drawn = (seed: number): Promise<number[][]> =>
      sequences({ paths, tokenizer: LETTERS, sequenceLength: 64, samples: 3, seed });
    expect(await drawn(1)).toEqual(await drawn(1));
    expect(await drawn(1)).not.toEqual(await drawn(2));
  });

  it("is what files of other names hold, unless they are binary", async () => {
    expect(await sequences({ paths: [file("corpus.raw", "ab")] })).toEqual([[97, 98]]);
    const error = await refusal({ paths: [file("model.bin", Uint8Array.of(8, 0, 0, 1))] });
    expect(error).toMatchObject({ code: "dataset/format", exitCode: 5 });
  });

  it("may be empty or missing, which is an error", async () => {
    expect(await refusal({ paths: [file("nothing.txt", "")] })).toMatchObject({ code: "dataset/empty", exitCode: 5 });
    expect(await refusal({ paths: [join(folder, "absent.txt")] })).toMatchObject({ code: "dataset/read", exitCode: 5 });
    expect(await refusal({ paths: [] })).toMatchObject({ code: "dataset/empty", exitCode: 5 });
  });
});

describe("records", () => {
  const text = (ids: readonly (readonly number[])[]): string => Buffer.from(ids.flat()).toString("utf8");

  it("are named with their file and line where they are not JSON", async () => {
    const error = await refusal({ paths: [file("broken.jsonl", '{"text": 5')] });
    expect(error.message).toMatch(/broken\.jsonl, line 1 is not JSON$/);
  });

  it("join documents of JSON lines with an empty line between them", async () => {
    const lines = [
      { text: "one" },
      { prompt: "two", completion: "ignored" },
      {
        messages: [
          { role: "user", content: "three" },
          { role: "assistant", content: [{ type: "text", text: "four" }] },
        ],
      },
    ];
    const path = file("a.jsonl", `${lines.map((line) => JSON.stringify(line)).join("\n")}\n\n`);
    const got = await sequences({ paths: [path], sequenceLength: 10 });
    expect(text(got)).toBe("one\n\ntwo\n\nthree\nfour\n\n");
    expect(got.map((ids) => ids.length)).toEqual([10, 10, 2]);
  });

  it("may hold ids, which stay apart", async () => {
    const path = file("ids.jsonl", '{"input_ids":[1,2,3]}\n{"input_ids":[4,5]}');
    expect(await sequences({ paths: [path] })).toEqual([
      [1, 2, 3],
      [4, 5],
    ]);
  });

  it.each([
    ['{"text": 5}', "dataset/field", /not text/],
    ['{"title": "x"}', "dataset/field", /title.*text, prompt/],
    ['{"text": "a"', "dataset/json", /line 1/],
    ["[1, 2]", "dataset/json", /not a JSON object/],
    ['{"input_ids": [1, 2.5]}', "dataset/ids", /2\.5/],
    ['{"input_ids": [1, -100]}', "dataset/vocabulary", /-100/],
    ['{"input_ids": [1, null]}', "dataset/ids", /position 1/],
    ['{"messages": [{"role": "user", "content": null}]}', "dataset/field", /messages/],
  ])("refuses %s", async (line, code, message) => {
    const error = await refusal({ paths: [file("bad.jsonl", `${line}\n`)] });
    expect(error).toMatchObject({ code, exitCode: 5 });
    expect(error.message).toMatch(message);
  });

  it.each(["snappy.parquet", "gzip.parquet"])("join the text column of %s", async (name) => {
    const documents = Array.from(
      { length: 50 },
      (_, i) => `Document ${i}: ${"the quick brown fox ".repeat(1 + (i % 3))}\n\n`,
    );
    expect(text(await sequences({ paths: [data(name)], sequenceLength: 64 }))).toBe(documents.join(""));
  });

  it("read lists of ids from Parquet", async () => {
    expect(await sequences({ paths: [data("ids.parquet")] })).toEqual(IDS.map((row, i) => row.slice(0, 4 + i)));
  });

  it("say which compression Parquet files may have", async () => {
    const error = await refusal({ paths: [data("zstd.parquet")] });
    expect(error).toMatchObject({ code: "dataset/parquet", exitCode: 5 });
    expect(error.message).toMatch(/Snappy or gzip/);
  });
});

describe("folders and samples", () => {
  it("takes the data files of a folder by name, hidden ones and others left out", async () => {
    const root = join(folder, "mixed");
    mkdirSync(join(root, "inner"), { recursive: true });
    writeFileSync(join(root, "b.txt"), "second");
    writeFileSync(join(root, "a.jsonl"), '{"input_ids":[1,2]}');
    writeFileSync(join(root, "inner", "c.txt"), "third");
    writeFileSync(join(root, ".hidden.txt"), "hidden");
    writeFileSync(join(root, "README"), "no data");
    const bytes = (string: string): number[] => [...Buffer.from(string)];
    expect(await sequences({ paths: [root] })).toEqual([[1, 2], bytes("second"), bytes("third")]);
    mkdirSync(join(folder, "none"));
    expect(await refusal({ paths: [join(folder, "none")] })).toMatchObject({ code: "dataset/empty", exitCode: 5 });
  });

  const corpus = file("corpus.txt", Array.from({ length: 3000 }, (_, i) => `line ${i}\n`).join(""));

  it("draws the same sequences for the same seed, others for another", async () => {
    const drawn = (seed: number): Promise<number[][]> =>
      sequences({ paths: [corpus], samples: 20, sequenceLength: 32, seed });
    expect(await drawn(1)).toEqual(await drawn(1));
    expect(await drawn(1)).not.toEqual(await drawn(2));
    expect(await drawn(1)).toHaveLength(20);
  });

  it("draws without repetition, from all over the data, and everything when asked for more", async () => {
    const all = (await sequences({ paths: [corpus], sequenceLength: 32 })).map(String);
    const drawn = (await sequences({ paths: [corpus], samples: 200, sequenceLength: 32 })).map(String);
    expect(new Set(drawn).size).toBe(200);
    const places = drawn.map((ids) => all.indexOf(ids)).sort((a, b) => a - b);
    expect(places[0]).toBeGreaterThanOrEqual(0);
    const thirds = [0, 1, 2].map((third) => places.filter((at) => Math.floor((3 * at) / all.length) === third).length);
    expect(Math.min(...thirds)).toBeGreaterThan(40);
    const more = await sequences({ paths: [corpus], samples: 10_000, sequenceLength: 32 });
    expect(more.map(String).toSorted()).toEqual(all.toSorted());
  });

  it("splits the same samples among shards", async () => {
    const options = { paths: [corpus], samples: 11, sequenceLength: 32, vocabulary: 256 };
    const whole = await openDataset(options);
    const all = await collect(whole);
    const merged: number[][] = [];
    for (const index of [1, 2, 3]) {
      const shard = await openDataset({ ...options, shard: { index, count: 3 } });
      expect(shard.description).toEqual(whole.description);
      let count = 0;
      for await (const sequence of shard.sequences()) {
        merged[sequence.index] = [...sequence.tokens];
        count += 1;
      }
      expect(shard.count).toBe(count);
      shard.close();
    }
    expect(merged).toEqual(all);
    whole.close();
    expect(await refusal({ ...options, samples: 2, shard: { index: 3, count: 3 } })).toMatchObject({
      code: "dataset/shard",
      exitCode: 5,
    });
  });

  it("says what was read: hashes of files and tokens, and counts", async () => {
    const dataset = await openDataset({
      paths: [data("ids_i64.npy")],
      vocabulary: 256,
      sequenceLength: 5,
      samples: null,
    });
    const sha256 = createHash("sha256")
      .update(readFileSync(data("ids_i64.npy")))
      .digest("hex");
    expect(dataset.description).toMatchObject({ sha256, random: false, sequences: 15, tokens: 60, sequenceLength: 5 });
    expect(dataset).toMatchObject({ count: 15, longest: 5 });
    const narrow = await openDataset({
      paths: [data("ids_u16.npy")],
      vocabulary: 256,
      sequenceLength: 5,
      samples: null,
    });
    expect(narrow.description.tokensSha256).toBe(dataset.description.tokensSha256);
    expect(narrow.description.sha256).not.toBe(dataset.description.sha256);
    dataset.close();
    narrow.close();
  });

  it("makes data up only when asked to by name, and says so", async () => {
    const dataset = await openDataset({ paths: ["random"], vocabulary: 11, sequenceLength: 100, samples: 3, seed: 4 });
    expect(dataset.description).toMatchObject({ random: true, sequences: 3, tokens: 300 });
    const ids = (await collect(dataset)).flat();
    expect(new Set(ids)).toEqual(new Set(Array.from({ length: 11 }, (_, id) => id)));
    expect(ids).toEqual((await collect(dataset)).flat());
    expect(await refusal({ paths: ["random", corpus] })).toMatchObject({ code: "dataset/random", exitCode: 5 });
  });

  it.each([
    { samples: 0 },
    { seed: -1 },
    { sequenceLength: 0 },
    { sequenceLength: 1.5 },
    { shard: { index: 3, count: 2 } },
  ])("refuses %o", async (options) => {
    expect(await refusal({ paths: [corpus], ...options })).toMatchObject({ exitCode: 5 });
  });
});
