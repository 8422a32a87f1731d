/**
 * Writes the weights of a model to their side file, in one stream.
 *
 * While one part is written, the next is read or computed, and the one after that is read. Bytes are gathered in blocks of
 * aligned memory, so that large files can go past the page cache of the system: that takes no processor time, and a disk
 * that keeps up is waited for no longer at the end.
 */

import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { setImmediate } from "node:timers/promises";
import type { Tensor } from "../ir/tensor.js";
import { invariant, MambacError } from "../support/errors.js";
import { alignedMemory, SECTOR_BYTES } from "./aligned-memory.js";

/** A range of a tensor and its place in the file. Parts come in the order of their places and do not overlap. */
export interface DataPart {
  readonly tensor: Tensor;
  readonly start: number;
  readonly end: number;
  readonly offset: number;
}

const BLOCK_BYTES = 1 << 23;
/** Blocks are made so many at a time. */
const SLAB_BLOCKS = 4;
/** Blocks that may wait for the disk while the next part is computed. */
const WAITING_BLOCKS = 4;

/** Larger parts are taken block by block, so that they do not wait for the disk in memory twice. */
const LENT_BYTES = 1 << 26;

/** Files up to this size go through the page cache, where whoever uses them next finds them. */
const CACHED_FILE_BYTES = 2 ** 30;

/** Bytes in the page cache are sent to the disk from time to time, so that little is left to wait for at the end. */
const FLUSH_BYTES = 1 << 26;

/**
 * Fills an existing file of length 0 up to `byteLength`, flushes it and checks its length. Files of more than `cachedBytes`
 * bytes go past the page cache. Throws `onnx/write` for a file that
 * came out short; errors of the file system are handed on.
 */
export async function writeData(
  path: string,
  parts: readonly DataPart[],
  byteLength: number,
  cachedBytes: number = CACHED_FILE_BYTES,
): Promise<void> {
  const { handle, direct } = await openOutput(path, byteLength > cachedBytes);
  const stream = new BlockStream(handle, direct);
  try {
    const ahead = new Ahead(parts);
    for (const [at, part] of parts.entries()) {
      await ahead.reach(at);
      await putPart(stream, part);
    }
    await stream.finish(byteLength);
    await handle.sync();
    const { size } = await handle.stat();
    if (size !== byteLength) {
      throw new MambacError("onnx/write", `${path} has ${size} bytes after writing ${byteLength}; is the disk full?`);
    }
  } finally {
    // The file is closed next, and must not be in use then.
    await stream.settle();
    await handle.close();
  }
}

async function putPart(stream: BlockStream, { tensor, start, end, offset }: DataPart): Promise<void> {
  if (end - start <= LENT_BYTES) {
    tensor.lend(start, end, (bytes) => stream.put(bytes, offset));
    return stream.pause();
  }
  const bytes = tensor.slice(start, end);
  for (let at = 0; at < bytes.byteLength; at += BLOCK_BYTES) {
    stream.put(bytes.subarray(at, at + BLOCK_BYTES), offset + at);
    await stream.pause();
  }
}

/** Keeps the reading of one part under way while the parts before it are computed. */
class Ahead {
  readonly #parts: readonly DataPart[];
  /** The part that is read, or where the search for one goes on. */
  #at = 0;
  #reading: Promise<void> | null = null;

  constructor(parts: readonly DataPart[]) {
    this.#parts = parts;
  }

  /** Waits for the part with this number where it is being read, then starts to read the next. */
  async reach(at: number): Promise<void> {
    if (this.#reading === null) this.#start(at);
    if (this.#at !== at) return;
    await this.#reading;
    this.#start(at + 1);
  }

  #start(from: number): void {
    this.#reading = null;
    for (this.#at = Math.max(this.#at, from); this.#at < this.#parts.length; this.#at++) {
      const part = this.#parts[this.#at];
      this.#reading = part?.tensor.prefetch(part.start, part.end) ?? null;
      if (this.#reading !== null) return;
    }
  }
}

/** The file, opened past the page cache where it is large and that works. */
async function openOutput(path: string, large: boolean): Promise<{ handle: FileHandle; direct: boolean }> {
  if (large && "O_DIRECT" in constants) {
    const handle = await openDirect(path);
    if (handle !== null) return { handle, direct: true };
  }
  return { handle: await open(path, "r+"), direct: false };
}

/** Null where a first sector, which is written again later, cannot be written so. */
async function openDirect(path: string): Promise<FileHandle | null> {
  let handle: FileHandle | null = null;
  try {
    handle = await open(path, constants.O_RDWR | constants.O_DIRECT);
    await handle.write(alignedMemory(SECTOR_BYTES), 0, SECTOR_BYTES, 0);
    return handle;
  } catch {
    await handle?.close();
    return null;
  }
}

/** Bytes in ascending order of their places, gathered in blocks; gaps between them are zeros. */
class BlockStream {
  readonly #handle: FileHandle;
  readonly #direct: boolean;
  readonly #free: Uint8Array[] = [];
  readonly #writing = new Set<Promise<void>>();
  #failure: { readonly cause: unknown } | null = null;
  #block: Uint8Array | null = null;
  /** Where the block begins in the file, and how much of it is filled. */
  #base = 0;
  #filled = 0;
  #unflushed = 0;
  #flushing: Promise<void> | null = null;

  constructor(handle: FileHandle, direct: boolean) {
    this.#handle = handle;
    this.#direct = direct;
  }

  /** Takes bytes that belong at `offset`; they may change afterwards. */
  put(bytes: Uint8Array, offset: number): void {
    this.#fill(offset);
    for (let at = 0; at < bytes.byteLength; ) {
      const block = this.#current();
      const count = Math.min(BLOCK_BYTES - this.#filled, bytes.byteLength - at);
      block.set(bytes.subarray(at, at + count), this.#filled);
      at += count;
      this.#advance(count);
    }
  }

  /** Lets the disk catch up, and signals be heard. */
  async pause(): Promise<void> {
    while (this.#writing.size > WAITING_BLOCKS) await Promise.race(this.#writing);
    await setImmediate();
    if (this.#failure !== null) throw this.#failure.cause;
    if (!this.#direct && this.#unflushed >= FLUSH_BYTES && this.#flushing === null) this.#flush();
  }

  /** Writes what is left and cuts the file to its length. */
  async finish(byteLength: number): Promise<void> {
    this.#fill(byteLength);
    if (this.#filled > 0) this.#advance(0, true);
    await this.settle();
    if (this.#failure !== null) throw this.#failure.cause;
    if (this.#direct) await this.#handle.truncate(byteLength);
  }

  /** Waits until nothing is being written. Never rejects. */
  async settle(): Promise<void> {
    await Promise.all([...this.#writing, this.#flushing]);
  }

  /** Zeros up to a place. */
  #fill(offset: number): void {
    invariant(offset >= this.#base + this.#filled, "parts of a file are out of order");
    for (let left = offset - this.#base - this.#filled; left > 0; ) {
      const count = Math.min(BLOCK_BYTES - this.#filled, left);
      this.#current().fill(0, this.#filled, this.#filled + count);
      left -= count;
      this.#advance(count);
    }
  }

  #current(): Uint8Array {
    this.#block ??= this.#free.pop() ?? this.#slab();
    return this.#block;
  }

  #slab(): Uint8Array {
    const slab = alignedMemory(SLAB_BLOCKS * BLOCK_BYTES);
    const blocks = Array.from({ length: SLAB_BLOCKS }, (_, at) =>
      slab.subarray(at * BLOCK_BYTES, (at + 1) * BLOCK_BYTES),
    );
    this.#free.push(...blocks.slice(1));
    return blocks[0] ?? slab;
  }

  #advance(count: number, last: boolean = false): void {
    this.#filled += count;
    if (this.#filled < BLOCK_BYTES && !last) return;
    const block = this.#current();
    const [base, filled] = [this.#base, this.#filled];
    const length = this.#direct ? Math.ceil(filled / SECTOR_BYTES) * SECTOR_BYTES : filled;
    block.fill(0, filled, length);
    this.#block = null;
    this.#base = base + filled;
    this.#filled = 0;
    this.#unflushed += filled;
    const writing: Promise<void> = this.#write(block, length, base).then(() => {
      this.#writing.delete(writing);
      this.#free.push(block);
    });
    this.#writing.add(writing);
  }

  async #write(block: Uint8Array, length: number, position: number): Promise<void> {
    try {
      for (let done = 0; done < length; ) {
        const { bytesWritten } = await this.#handle.write(block, done, length - done, position + done);
        done += bytesWritten;
        if (done < length && this.#direct && done % SECTOR_BYTES !== 0) {
          throw new MambacError("onnx/write", "a part of a sector was written; is the disk full?");
        }
      }
    } catch (cause) {
      this.#failure ??= { cause };
    }
  }

  #flush(): void {
    this.#unflushed = 0;
    this.#flushing = this.#handle.datasync().then(
      () => {
        this.#flushing = null;
      },
      (cause: unknown) => {
        this.#failure ??= { cause };
      },
    );
  }
}
