/**
 * Calibration data as sequences of token ids: files of many formats, sampled with a seed and cut to one length.
 *
 * Nothing is kept: sequences are read and tokenized anew on every pass, so memory does not depend on their number. The
 * data are read once when they are opened, so that every mistake in them shows before a model runs.
 */

import { createHash } from "node:crypto";
import { readdirSync, statSync } from "node:fs";
import { extname, join } from "node:path";
import { InvariantError } from "../support/errors.js";
import { Random } from "../support/random.js";
import { npySource, npzSource, safetensorsSource } from "./dataset-arrays.js";
import { parquetSource } from "./dataset-parquet.js";
import { DataFile, dataError, type TokenSource } from "./dataset-source.js";
import { jsonLinesSource, needsTokenizer, textSource } from "./dataset-text.js";
import { byteTokenizer, type Tokenizer } from "./tokenizer.js";

/** Data made up from the seed; only when asked for by this name. */
export const RANDOM_DATA = "random";

export interface DatasetOptions {
  /** Files, folders of files, or the word 'random' alone. */
  readonly paths: readonly string[];
  /** Token ids are below this. */
  readonly vocabulary: number;
  /** Default: bytes as tokens where the vocabulary is 256, else text is refused. */
  readonly tokenizer?: Tokenizer;
  /** Tokens of a sequence; default 512. The last ones of a document may be shorter. */
  readonly sequenceLength?: number;
  /** Sequences drawn; null takes all in order. Default 128. */
  readonly samples?: number | null;
  /** Default 0. */
  readonly seed?: number;
  /** This process takes every `count`-th sequence, from `index` (1 to count) on. */
  readonly shard?: Shard;
  /** Every fourth sequence is held out, to judge by; the others are to calibrate with. All unless given. */
  readonly part?: DatasetPart;
}

export type DatasetPart = "calibration" | "held-out";

/** One sequence in so many is held out. */
const HELD_OUT = 4;

export interface Shard {
  readonly index: number;
  readonly count: number;
}

/** What the data are, in full: equal descriptions give equal sequences. */
export interface DatasetDescription {
  /** SHA-256 of the files: of one its own, of several that of their hashes one below the other. */
  readonly sha256: string;
  /** SHA-256 of the ids of all drawn sequences, of every shard. */
  readonly tokensSha256: string;
  readonly random: boolean;
  readonly sequenceLength: number;
  readonly seed: number;
  /** Sequences and tokens drawn, of every shard. */
  readonly sequences: number;
  readonly tokens: number;
}

/** One sequence; `index` counts those of every shard. */
export interface Sequence {
  readonly index: number;
  /** Empty where the model reads no tokens. */
  readonly tokens: Int32Array;
  /** What such a model reads: one item for the input, without a batch. */
  readonly item?: Float32Array;
}

export interface Dataset {
  readonly description: DatasetDescription;
  readonly shard: Shard;
  /** Sequences of this shard, and the longest of any. */
  readonly count: number;
  readonly longest: number;
  /** The sequences of this shard, always the same. */
  sequences(): AsyncGenerator<Sequence>;
  close(): void;
}

/**
 * Opens data and checks every id that will be used. Throws `dataset/...` with exit code 5: empty data, ids out of the
 * vocabulary, other types or ranks, text without a tokenizer, damaged files.
 */
export async function openDataset(options: DatasetOptions): Promise<Dataset> {
  const { vocabulary, sequenceLength = 512, samples = 128, seed = 0, shard = { index: 1, count: 1 } } = options;
  requireCounts(sequenceLength, samples, seed, shard);
  const files: DataFile[] = [];
  const close = (): void => {
    for (const file of files.splice(0)) file.close();
  };
  try {
    const random = options.paths.includes(RANDOM_DATA);
    const opened = random
      ? { sources: [randomSource(options.paths, vocabulary, sequenceLength, seed, samples ?? 128)], sha256: "" }
      : await openFiles(options, sequenceLength, files);
    const drawn = (): AsyncGenerator<Int32Array> => draw(opened.sources, sequenceLength, samples, seed);
    const hash = createHash("sha256");
    let [sequences, tokens, longest] = [0, 0, 0];
    for await (const ids of drawn()) {
      hash.update(`${ids.length}\n`).update(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength));
      sequences += 1;
      tokens += ids.length;
      longest = Math.max(longest, ids.length);
    }
    if (tokens === 0) throw dataError("empty", `there is not one token in ${options.paths.join(", ")}`);
    const tokensSha256 = hash.digest("hex");
    const sha256 = random ? tokensSha256 : opened.sha256;
    const { part } = options;
    const mine = taken(shard, part);
    const count = Array.from({ length: sequences }, (_, index) => index).filter(mine).length;
    if (count < 1 && part !== undefined) {
      throw dataError(
        "part",
        `there are ${sequences} sequences, too few to hold some out to judge by: give ${HELD_OUT} or more`,
      );
    }
    if (count < 1) {
      throw dataError("shard", `there are ${sequences} sequences, too few for shard ${shard.index} of ${shard.count}`);
    }
    return {
      description: { sha256, tokensSha256, random, sequenceLength, seed, sequences, tokens },
      shard,
      count,
      longest,
      async *sequences() {
        let index = 0;
        for await (const ids of drawn()) {
          if (mine(index)) yield { index, tokens: ids };
          index += 1;
        }
      },
      close,
    };
  } catch (cause) {
    close();
    throw cause;
  }
}

/** The first sequences of a dataset. */
export function firstSequences(dataset: Dataset, most: number): Dataset {
  return {
    ...dataset,
    count: Math.min(dataset.count, most),
    async *sequences() {
      let left = most;
      for await (const sequence of dataset.sequences()) {
        if (left <= 0) return;
        left -= 1;
        yield sequence;
      }
    },
  };
}

/** Refuses counts that no dataset has. Throws `dataset/...`. */
export function requireCounts(length: number, samples: number | null, seed: number, shard: Shard): void {
  const whole = (value: number): boolean => Number.isSafeInteger(value) && value >= 1;
  if (!whole(length)) throw dataError("length", `a sequence cannot have ${length} tokens`);
  if (samples !== null && !whole(samples)) throw dataError("samples", `cannot draw ${samples} sequences`);
  if (!Number.isSafeInteger(seed) || seed < 0)
    throw dataError("seed", `the seed ${seed} is not a whole number from 0 on`);
  if (!whole(shard.index) || !whole(shard.count) || shard.index > shard.count) {
    throw dataError("shard", `there is no shard ${shard.index} of ${shard.count}`);
  }
}

type Format = "text" | "jsonl" | "npy" | "npz" | "safetensors" | "parquet";

const FORMATS: ReadonlyMap<string, Format> = new Map([
  [".txt", "text"],
  [".text", "text"],
  [".md", "text"],
  [".jsonl", "jsonl"],
  [".ndjson", "jsonl"],
  [".npy", "npy"],
  [".npz", "npz"],
  [".safetensors", "safetensors"],
  [".parquet", "parquet"],
]);

async function openFiles(
  options: DatasetOptions,
  length: number,
  files: DataFile[],
): Promise<{ readonly sources: readonly TokenSource[]; readonly sha256: string }> {
  const { vocabulary } = options;
  const tokenizer = options.tokenizer ?? (vocabulary === 256 ? byteTokenizer : null);
  const settings = { tokenizer, vocabulary, length };
  const sources: TokenSource[] = [];
  const hashes: string[] = [];
  for (const path of options.paths.flatMap(filesAt)) {
    const file = new DataFile(path);
    files.push(file);
    const { source, sha256 } = await openFile(file, settings);
    sources.push(source);
    hashes.push(sha256);
  }
  const [first] = hashes;
  if (first === undefined) throw dataError("empty", "no calibration data were given");
  const sha256 = hashes.length === 1 ? first : createHash("sha256").update(hashes.join("\n")).digest("hex");
  return { sources, sha256 };
}

/** A file itself, or the data files in a folder and its folders, by name. */
function filesAt(path: string): string[] {
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() !== true) return [path];
  const found = readdirSync(path, { recursive: true, encoding: "utf8" })
    .map((name) => name.replaceAll("\\", "/"))
    .filter((name) => FORMATS.has(extname(name).toLowerCase()) && !name.split("/").some((part) => part.startsWith(".")))
    .sort();
  if (found.length > 0) return found.map((name) => join(path, name));
  throw dataError("empty", `the folder ${path} holds no data file (${[...FORMATS.keys()].join(", ")})`);
}

async function openFile(
  file: DataFile,
  settings: { readonly tokenizer: Tokenizer | null; readonly vocabulary: number; readonly length: number },
): Promise<{ readonly source: TokenSource; readonly sha256: string }> {
  const { tokenizer, vocabulary, length } = settings;
  const extension = extname(file.path).toLowerCase();
  const format = FORMATS.get(extension);
  switch (format) {
    case "jsonl":
      return jsonLinesSource(file, settings);
    case "npy":
      return { source: npySource(file, vocabulary, length), sha256: file.sha256() };
    case "npz":
      return { source: npzSource(file, vocabulary, length), sha256: file.sha256() };
    case "safetensors":
      return { source: safetensorsSource(file, vocabulary, length), sha256: file.sha256() };
    case "parquet":
      return { source: await parquetSource(file, settings), sha256: file.sha256() };
    default: {
      // A file named otherwise is text unless it looks like anything else.
      if (format === undefined && file.read(0, Math.min(4096, file.size)).includes(0)) {
        throw dataError(
          "format",
          `${file.path} is neither text nor a known kind of data (${[...FORMATS.keys()].join(", ")})`,
        );
      }
      if (tokenizer === null) throw needsTokenizer(file.path, vocabulary);
      return textSource(file, { tokenizer, vocabulary, length });
    }
  }
}

function randomSource(
  paths: readonly string[],
  vocabulary: number,
  length: number,
  seed: number,
  samples: number,
): TokenSource {
  if (paths.length > 1) throw dataError("random", "random data cannot be mixed with files");
  const random = new Random(seed).split("random-data");
  return {
    joined: false,
    blocks: samples,
    read: (block) => {
      const own = random.split(String(block));
      return Promise.resolve([() => Int32Array.from({ length }, () => own.integer(vocabulary))]);
    },
  };
}

/** Draws sequences: blocks and the documents in them in an order of the seed, until there are enough. */
async function* draw(
  sources: readonly TokenSource[],
  length: number,
  samples: number | null,
  seed: number,
): AsyncGenerator<Int32Array> {
  const random = samples === null ? null : new Random(seed).split("dataset");
  const joined = new Joiner(length);
  const total = sources.reduce((sum, source) => sum + source.blocks, 0);
  let left = samples ?? Number.POSITIVE_INFINITY;
  for (const at of order(total, random)) {
    const { source, block } = locate(sources, at);
    const documents = await source.read(block);
    for (const chosen of order(documents.length, random)) {
      const ids = documents[chosen]?.() ?? new Int32Array(0);
      for (const sequence of source.joined ? joined.add(ids) : pieces(ids, length)) {
        yield sequence;
        left -= 1;
        if (left <= 0) return;
      }
    }
  }
  yield* joined.rest();
}

function locate(sources: readonly TokenSource[], at: number): { readonly source: TokenSource; readonly block: number } {
  let block = at;
  for (const source of sources) {
    if (block < source.blocks) return { source, block };
    block -= source.blocks;
  }
  throw new InvariantError(`there is no block ${at}`);
}

/** The part of a dataset that one process takes, and that is not held out. */
export function taken(shard: Shard, part: DatasetPart | undefined): (index: number) => boolean {
  return (index) =>
    index % shard.count === shard.index - 1 &&
    (part === undefined || (index % HELD_OUT === HELD_OUT - 1) === (part === "held-out"));
}

/** 0 to count - 1, shuffled unless `random` is null. Takes memory for the numbers taken only (a sparse Fisher-Yates). */
export function* order(count: number, random: Random | null): Generator<number> {
  const moved = new Map<number, number>();
  for (let i = 0; i < count; i++) {
    const j = random === null ? i : i + random.integer(count - i);
    yield moved.get(j) ?? j;
    moved.set(j, moved.get(i) ?? i);
    moved.delete(i);
  }
}

function* pieces(ids: Int32Array, length: number): Generator<Int32Array> {
  for (let at = 0; at < ids.length; at += length) yield ids.slice(at, at + length);
}

/** Joins documents to one stream and cuts it. */
class Joiner {
  readonly #buffer: Int32Array;
  #filled = 0;

  constructor(length: number) {
    this.#buffer = new Int32Array(length);
  }

  *add(ids: Int32Array): Generator<Int32Array> {
    for (let at = 0; at < ids.length; ) {
      const part = ids.subarray(at, at + this.#buffer.length - this.#filled);
      this.#buffer.set(part, this.#filled);
      this.#filled += part.length;
      at += part.length;
      if (this.#filled < this.#buffer.length) continue;
      this.#filled = 0;
      yield this.#buffer.slice();
    }
  }

  *rest(): Generator<Int32Array> {
    if (this.#filled > 0) yield this.#buffer.slice(0, this.#filled);
  }
}
