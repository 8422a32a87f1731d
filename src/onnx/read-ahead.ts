/**
 * Reads weights before they are asked for, into memory that is used again.
 *
 * The thread that computes never waits for the disk, and large files go past the page cache: copying every byte through it
 * costs more processor time than rounding does, and pushes out of memory what other programs use. A file that is in the
 * page cache already is read from there, which the start of a weight tells by how fast it comes.
 */

import { close, closeSync, constants, fstatSync, openSync, read, readSync, type Stats } from "node:fs";
import { alignedMemory, SECTOR_BYTES } from "./aligned-memory.js";

export interface SideFile {
  readonly path: string;
  readonly stats: Stats;
}

/** Is this still the file that was there when the model was read? */
export function isSameFile(now: Stats, then: Stats): boolean {
  return now.size === then.size && now.mtimeMs === then.mtimeMs && now.ino === then.ino;
}

/** Smaller reads are done when they are needed, larger ones would need too much memory. */
const LEAST_BYTES = 1 << 20;
const MOST_BYTES = 1 << 28;

/** Which files go past the page cache. */
export interface ReadAheadLimits {
  /** Files up to this size go through it: they leave room there for others, and may be asked for again. */
  readonly cachedBytes: number;
  /** How much of a larger file is read to see where it is. */
  readonly trialBytes: number;
  /** The rate in bytes a millisecond above which it is in memory. */
  readonly memoryRate: number;
}

const LIMITS: ReadAheadLimits = { cachedBytes: 2 ** 30, trialBytes: 1 << 23, memoryRate: 2.5e6 };

/** Memory comes in multiples of this, so that weights of about one size share it. */
const GRAIN_BYTES = 1 << 22;

/** Two weights are in memory at a time: the one that is used, and the next. */
const KEPT = 2;

interface Slot {
  readonly path: string;
  readonly offset: number;
  readonly length: number;
  readonly memory: Uint8Array;
  /** Where the bytes are in the memory; null while they are read, and where that failed. */
  view: Uint8Array | null;
  /** Nobody waits for it any more. */
  dropped: boolean;
}

/** What was read ahead of the side files of one model. */
export class ReadAhead {
  readonly #free: Uint8Array[] = [];
  readonly #direct = new Map<string, boolean>();
  readonly #limits: ReadAheadLimits;
  #slots: Slot[] = [];

  constructor(limits: ReadAheadLimits = LIMITS) {
    this.#limits = limits;
  }

  /** Starts to read; null for sizes that are not read ahead, and where as much as may be has been. Never rejects. */
  prefetch(file: SideFile, offset: number, length: number): Promise<void> | null {
    if (length < LEAST_BYTES || length > MOST_BYTES) return null;
    const [oldest] = this.#slots;
    if (oldest !== undefined && this.#slots.length >= KEPT) {
      if (oldest.view === null) return null;
      this.#forget(oldest);
    }
    // Both ends may reach into the sectors around them.
    const memory = this.#memory(length + 2 * SECTOR_BYTES);
    const slot: Slot = { path: file.path, offset, length, memory, view: null, dropped: false };
    this.#slots.push(slot);
    const direct = this.#isDirect(file, offset, length);
    return fill(file, slot, direct).then((view) => {
      slot.view = view;
      // Not every file system, and not every memory, can do without the cache.
      if (view === null && direct) this.#direct.set(file.path, false);
      if (slot.dropped) this.#keep(memory);
      else if (view === null) this.#forget(slot);
    });
  }

  /** What `use` makes of bytes of a file: read ahead, or now by `readNow`. */
  lend<T>(
    file: SideFile,
    offset: number,
    length: number,
    readNow: (target: Uint8Array) => void,
    use: (bytes: Uint8Array) => T,
  ): T {
    const slot = this.#slots.find(
      (held) => held.path === file.path && held.offset === offset && held.length === length,
    );
    if (slot !== undefined) {
      this.#slots = this.#slots.filter((held) => held !== slot);
      slot.dropped = true;
    }
    const ready = slot?.view ?? null;
    const memory = slot !== undefined && ready !== null ? slot.memory : this.#memory(length);
    const bytes = ready ?? memory.subarray(0, length);
    if (ready === null) readNow(bytes);
    const result = use(bytes);
    this.#keep(memory);
    return result;
  }

  #forget(slot: Slot): void {
    this.#slots = this.#slots.filter((held) => held !== slot);
    this.#keep(slot.memory);
  }

  /** Memory nobody uses: the smallest that is large enough. */
  #memory(length: number): Uint8Array {
    const fitting = this.#free.filter((memory) => memory.byteLength >= length);
    const [least] = fitting.sort((a, b) => a.byteLength - b.byteLength);
    if (least === undefined) return alignedMemory(Math.ceil(length / GRAIN_BYTES) * GRAIN_BYTES);
    this.#free.splice(this.#free.indexOf(least), 1);
    return least;
  }

  /** The largest memories are kept. */
  #keep(memory: Uint8Array): void {
    if (memory.byteLength > MOST_BYTES + GRAIN_BYTES) return;
    this.#free.push(memory);
    this.#free.sort((a, b) => b.byteLength - a.byteLength).splice(KEPT);
  }

  #isDirect(file: SideFile, offset: number, length: number): boolean {
    if (!("O_DIRECT" in constants) || file.stats.size <= this.#limits.cachedBytes) return false;
    const { trialBytes, memoryRate } = this.#limits;
    const known = this.#direct.get(file.path);
    if (known !== undefined || length < trialBytes) return known ?? false;
    const direct = readRate(file.path, offset, trialBytes) <= memoryRate;
    this.#direct.set(file.path, direct);
    return direct;
  }
}

/** Bytes a millisecond at which a part of a file comes. */
function readRate(path: string, offset: number, length: number): number {
  try {
    const handle = openSync(path, "r");
    const start = performance.now();
    const count = readSync(handle, new Uint8Array(length), 0, length, offset);
    const rate = count / (performance.now() - start);
    closeSync(handle);
    return rate;
  } catch {
    // Whoever asks for the bytes will be told why.
    return 0;
  }
}

/** The bytes of a slot once they are read; null where they could not be. */
function fill(file: SideFile, { offset, length, memory }: Slot, direct: boolean): Promise<Uint8Array | null> {
  const start = direct ? offset - (offset % SECTOR_BYTES) : offset;
  const skipped = offset - start;
  const wanted = direct ? Math.ceil((skipped + length) / SECTOR_BYTES) * SECTOR_BYTES : length;
  let handle: number;
  try {
    handle = openSync(file.path, constants.O_RDONLY | (direct ? constants.O_DIRECT : 0));
  } catch {
    return Promise.resolve(null);
  }
  if (!isSameFile(fstatSync(handle), file.stats)) {
    closeSync(handle);
    return Promise.resolve(null);
  }
  // One call for all of it: the next would wait until the computation pauses.
  return new Promise((resolve) => {
    read(handle, memory, 0, wanted, start, (error, count) => {
      close(handle, () =>
        resolve(error === null && count >= skipped + length ? memory.subarray(skipped, skipped + length) : null),
      );
    });
  });
}
