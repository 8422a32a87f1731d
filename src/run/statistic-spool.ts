/** Encoded statistics on disk while a calibration runs, so that none has to stay in memory. */

import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { TemporaryFiles } from "../onnx/temporary-files.js";
import { canonicalRequests, requestKey, type StatRequest } from "../quant/calibration.js";
import { invariant } from "../support/errors.js";

/** Bytes read or written in one call. */
const STEP = 1 << 22;

/** A range of bytes in a file. */
export interface Range {
  readonly offset: number;
  readonly length: number;
}

/** A temporary file of statistics. Close it when they are no longer needed; the end of the process removes it too. */
export class StatisticSpool {
  readonly #temporary = new TemporaryFiles();
  readonly #handle: number;
  readonly #ranges = new Map<string, Range & { readonly request: StatRequest }>();
  #end = 0;
  #open = true;

  /** The file lies beside `target`; default in the system's temporary folder. */
  constructor(target: string = join(tmpdir(), "mambac-statistics")) {
    try {
      this.#handle = openSync(this.#temporary.beside(target), "wx+", 0o600);
    } catch (cause) {
      this.#temporary.close();
      throw cause;
    }
  }

  /** In the order of tables. */
  get requests(): StatRequest[] {
    return canonicalRequests([...this.#ranges.values()].map(({ request }) => request));
  }

  add(request: StatRequest, encoded: Uint8Array): void {
    const key = requestKey(request);
    invariant(!this.#ranges.has(key), `the statistic ${key} is written twice`);
    writeAll(this.#handle, encoded, this.#end);
    this.#ranges.set(key, { request, offset: this.#end, length: encoded.byteLength });
    this.#end += encoded.byteLength;
  }

  /** Bytes of a statistic; null when there is none. */
  length(request: StatRequest): number | null {
    return this.#ranges.get(requestKey(request))?.length ?? null;
  }

  /** A statistic whole; null when there is none. */
  encoded(request: StatRequest): Uint8Array | null {
    const range = this.#ranges.get(requestKey(request));
    return range === undefined ? null : readAll(this.#handle, range.offset, range.length);
  }

  /** A statistic piece by piece. */
  *pieces(request: StatRequest): Generator<Uint8Array> {
    const { offset, length } = this.#ranges.get(requestKey(request)) ?? { offset: 0, length: 0 };
    for (let at = 0; at < length; at += STEP) yield readAll(this.#handle, offset + at, Math.min(STEP, length - at));
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    closeSync(this.#handle);
    this.#temporary.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Throws when the file ends early. */
export function readAll(handle: number, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const got = readSync(handle, bytes, done, Math.min(STEP, length - done), offset + done);
    if (got === 0) throw new Error(`the file ends ${length - done} bytes early`);
    done += got;
  }
  return bytes;
}

export function writeAll(handle: number, bytes: Uint8Array, offset: number): void {
  for (let done = 0; done < bytes.byteLength; ) {
    done += writeSync(handle, bytes, done, Math.min(STEP, bytes.byteLength - done), offset + done);
  }
}
