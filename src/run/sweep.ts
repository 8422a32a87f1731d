/**
 * Runs sequences through a stateful model, block by block, and shows chosen values of every call.
 *
 * Each block is a session of its own. It takes all sequences before the next block is loaded; what flows between blocks
 * waits in a temporary file. So memory holds one block and one call, whatever the depth and the number of sequences.
 */

import { rmSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Model } from "../ir/graph.js";
import { type Tensor, tensorFromBytes } from "../ir/tensor.js";
import type { DType } from "../ir/types.js";
import { TemporaryFiles } from "../onnx/temporary-files.js";
import { encodeModel, writeModel } from "../onnx/write.js";
import { EXIT, invariant, MambacError } from "../support/errors.js";
import { type Block, cutModel, weightBytes } from "./blocks.js";
import type { Dataset, Sequence } from "./dataset.js";
import { isPlain } from "./plain-model.js";
import { integerMemory } from "./runner.js";
import { openSession, type Session } from "./session.js";
import { readSignature, type Signature } from "./signature.js";
import { StateMemory } from "./state-memory.js";
import { auxiliaryMemory } from "./stateful-model.js";
import { sweepPlain } from "./sweep-plain.js";

/** Where in the data a call is. */
export interface CallPlace {
  /** Index of the sequence among those of every shard. */
  readonly sequence: number;
  /** First token of the call, and how many it has. */
  readonly start: number;
  readonly length: number;
}

/** What a sweep shows. Calls of one block come in order; blocks come one after the other. */
export interface SweepVisitor {
  /** A value of one call, the batch of size 1 included in its shape. Valid during the call only. */
  value(name: string, tensor: Tensor, place: CallPlace): void | Promise<void>;
  /** All sequences have passed the block that makes these values. */
  blockDone(names: readonly string[]): void | Promise<void>;
}

export interface SweepProgress {
  readonly block: number;
  readonly blocks: number;
  readonly sequence: number;
  readonly sequences: number;
}

export interface SweepOptions {
  /** Executable, with f32 state; tokens may come in calls of any length. */
  readonly model: Model;
  readonly dataset: Dataset;
  /** Names of main-graph values. */
  readonly values: readonly string[];
  /** Values to cut the model at; default none: all in one session. */
  readonly boundaries?: readonly string[];
  /** Tokens of a prefill call; default 512. */
  readonly window?: number;
  /** Share of each sequence that is fed token by token at its end; default 1/32, at least one token. */
  readonly decodeShare?: number;
  readonly threads?: number;
  /** Folder for temporary files; default that of the system. */
  readonly temporaryFolder?: string;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: SweepProgress) => void;
  readonly onNotice?: (message: string) => void;
}

/** Larger blocks are loaded from a file rather than from memory. */
const IN_MEMORY_BYTES = 2 ** 28;

/**
 * Runs the sweep. Throws `calibrate/interrupted` (exit code 130) when the signal fires, `calibrate/value` for unknown
 * values, `calibrate/length` when a sequence does not fit a graph of fixed length.
 */
export async function sweep(options: SweepOptions, visitor: SweepVisitor): Promise<void> {
  if (isPlain(options.model)) return sweepPlain(options, visitor);
  const signature = readSignature(options.model);
  const blocks = cutModel(options.model, {
    signature,
    values: new Set(options.values),
    boundaries: options.boundaries ?? [],
    ...(options.onNotice === undefined ? {} : { onNotice: options.onNotice }),
  });
  const temporary = new TemporaryFiles();
  let incoming: HiddenFile | null = null;
  try {
    const folder = temporary.folder(options.temporaryFolder ?? tmpdir(), "mambac-calibrate-");
    for (const [at, block] of blocks.entries()) {
      const outgoing: HiddenFile | null =
        block.output === null ? null : await HiddenFile.create(join(folder, `values${at}`));
      try {
        await runBlock({ block, signature, options, visitor, incoming, outgoing }, folder, (sequence) =>
          options.onProgress?.({ block: at, blocks: blocks.length, sequence, sequences: options.dataset.count }),
        );
      } finally {
        await incoming?.close();
        incoming = outgoing;
      }
      incoming?.rewind();
      await visitor.blockDone(block.values);
    }
  } finally {
    await incoming?.close();
    temporary.close();
  }
}

/** Opens a session for one block, feeds it every sequence, and gives the session back. */
async function runBlock(
  parts: Omit<BlockRunParts, "session">,
  folder: string,
  onSequence: (done: number) => void,
): Promise<void> {
  const { model } = parts.block;
  const settings = { optimization: "all", threads: parts.options.threads ?? 1 } as const;
  const inMemory = weightBytes(model) <= IN_MEMORY_BYTES;
  const path = join(folder, "block.onnx");
  try {
    if (!inMemory) await writeModel(model, path, { externalData: "always" });
    const session = await openSession(inMemory ? encodeModel(model) : path, settings);
    try {
      const run = new BlockRun({ ...parts, session });
      let done = 0;
      for await (const sequence of parts.options.dataset.sequences()) {
        await run.sequence(sequence);
        done += 1;
        onSequence(done);
      }
    } finally {
      await session.release();
    }
  } finally {
    for (const file of [path, `${path}.data`]) rmSync(file, { force: true });
  }
}

/** Lengths of the calls a sequence is fed in: prefill windows first, single tokens at the end. */
export function callLengths(
  length: number,
  options: { readonly window: number; readonly decodeShare: number; readonly fixed: number | null },
): number[] {
  const { window, decodeShare, fixed } = options;
  if (fixed !== null) return Array.from({ length: Math.floor(length / fixed) }, () => fixed);
  const steps = decodeShare > 0 ? Math.min(length, Math.max(1, Math.floor(length * decodeShare))) : 0;
  const prefill = length - steps;
  const lengths = Array.from({ length: Math.floor(prefill / window) }, () => window);
  if (prefill % window > 0) lengths.push(prefill % window);
  return [...lengths, ...Array.from({ length: steps }, () => 1)];
}

interface BlockRunParts {
  readonly block: Block;
  readonly session: Session;
  readonly signature: Signature;
  readonly options: SweepOptions;
  readonly visitor: SweepVisitor;
  readonly incoming: HiddenFile | null;
  readonly outgoing: HiddenFile | null;
}

class BlockRun {
  readonly #parts: BlockRunParts;
  /** A graph fixed to a larger batch gets the same sequence in every row. */
  readonly #batch: number;
  readonly #outputs: readonly string[];

  constructor(parts: BlockRunParts) {
    this.#parts = parts;
    const { batch } = parts.signature.tokens;
    this.#batch = typeof batch === "number" ? batch : 1;
    const { values, output, states } = parts.block;
    this.#outputs = [...new Set([...values, ...(output === null ? [] : [output]), ...states.map((s) => s.output)])];
  }

  async sequence(sequence: Sequence): Promise<void> {
    const { options, signature, block, visitor } = this.#parts;
    const { length: fixed } = signature.tokens;
    const lengths = callLengths(sequence.tokens.length, {
      window: options.window ?? 512,
      // Without a state a token fed alone would be a sequence of one.
      decodeShare: signature.states.length === 0 ? 0 : (options.decodeShare ?? 1 / 32),
      fixed: typeof fixed === "number" ? fixed : null,
    });
    if (lengths.length === 0) {
      throw new MambacError(
        "calibrate/length",
        `the graph takes exactly ${fixed} tokens a call, but a sequence has ${sequence.tokens.length}`,
        EXIT.calibration,
      );
    }
    let states = this.#zeroStates();
    let start = 0;
    for (const length of lengths) {
      if (options.signal?.aborted === true) {
        throw new MambacError("calibrate/interrupted", "calibration was interrupted", EXIT.interrupted);
      }
      const results = await this.#call(sequence.tokens.subarray(start, start + length), start, states);
      states = new Map(block.states.map(({ input, output }) => [input, resultOf(results, output)]));
      const place: CallPlace = { sequence: sequence.index, start, length };
      for (const name of block.values) await visitor.value(name, this.#first(resultOf(results, name)), place);
      if (block.output !== null) await this.#parts.outgoing?.append(resultOf(results, block.output));
      start += length;
    }
  }

  #zeroStates(): Map<string, Tensor> {
    return new Map(
      this.#parts.block.states.map((pair) => {
        const { dtype, shape, bytes } = new StateMemory(pair, this.#batch, new Map(), false).input(0, "all");
        return [pair.input, tensorFromBytes(dtype, shape, bytes)];
      }),
    );
  }

  async #call(tokens: Int32Array, start: number, states: ReadonlyMap<string, Tensor>): Promise<Map<string, Tensor>> {
    const { session, signature, block, incoming } = this.#parts;
    const feeds = new Map<string, Tensor>(states);
    const starts = Array.from({ length: this.#batch }, () => start);
    for (const name of session.inputNames) {
      if (feeds.has(name)) continue;
      if (name === block.input) {
        invariant(incoming !== null, "a block reads what no block wrote");
        feeds.set(name, await incoming.next());
        continue;
      }
      const auxiliary = signature.auxiliaries.find((input) => input.name === name);
      const rows = starts.flatMap(() => Array.from(tokens));
      const memory =
        auxiliary === undefined
          ? integerMemory(signature.tokens.dtype, [this.#batch, tokens.length], rows)
          : auxiliaryMemory(auxiliary, starts, tokens.length);
      invariant(auxiliary !== undefined || name === signature.tokens.name, `nothing to feed to ${name}`);
      feeds.set(name, tensorFromBytes(memory.dtype, memory.shape, memory.bytes));
    }
    return session.run(feeds, this.#outputs);
  }

  /** The first row of a batch of equal rows. */
  #first(tensor: Tensor): Tensor {
    if (this.#batch === 1 || tensor.shape[0] !== this.#batch) return tensor;
    return tensorFromBytes(
      tensor.dtype,
      [1, ...tensor.shape.slice(1)],
      tensor.slice(0, tensor.byteLength / this.#batch),
    );
  }
}

function resultOf(results: ReadonlyMap<string, Tensor>, name: string): Tensor {
  const tensor = results.get(name);
  invariant(tensor, `the session gave no ${name}`);
  return tensor;
}

/** Tensors of one type and rank, written one after the other and read back in the same order. */
class HiddenFile {
  readonly #path: string;
  readonly #handle: FileHandle;
  #dtype: DType | null = null;
  #rank = 0;
  #at = 0;

  private constructor(path: string, handle: FileHandle) {
    this.#path = path;
    this.#handle = handle;
  }

  static async create(path: string): Promise<HiddenFile> {
    return new HiddenFile(path, await open(path, "wx+", 0o600));
  }

  async append(tensor: Tensor): Promise<void> {
    this.#dtype ??= tensor.dtype;
    this.#rank = tensor.shape.length;
    const header = BigInt64Array.from([...tensor.shape, tensor.byteLength], BigInt);
    await this.#write(new Uint8Array(header.buffer));
    await this.#write(tensor.bytes());
  }

  /** Reading starts with what was written first. */
  rewind(): void {
    this.#at = 0;
  }

  async next(): Promise<Tensor> {
    invariant(this.#dtype !== null, "nothing was written between two blocks");
    const header = new BigInt64Array((await this.#read(8 * (this.#rank + 1))).buffer);
    const shape = Array.from(header.subarray(0, this.#rank), Number);
    return tensorFromBytes(this.#dtype, shape, await this.#read(Number(header[this.#rank] ?? 0n)));
  }

  /** Closes and removes the file. */
  async close(): Promise<void> {
    await this.#handle.close();
    rmSync(this.#path, { force: true });
  }

  async #write(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.byteLength; ) {
      const { bytesWritten } = await this.#handle.write(bytes, done, bytes.byteLength - done, this.#at + done);
      done += bytesWritten;
    }
    this.#at += bytes.byteLength;
  }

  async #read(length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const { bytesRead } = await this.#handle.read(bytes, done, length - done, this.#at + done);
      invariant(bytesRead > 0, "the values between two blocks end too early");
      done += bytesRead;
    }
    this.#at += length;
    return bytes;
  }
}
