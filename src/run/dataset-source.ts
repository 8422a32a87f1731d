/** What every reader of calibration data gives: documents of token ids, read on demand. */

import { createHash } from "node:crypto";
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { EXIT, MambacError } from "../support/errors.js";
import { fileProblem } from "../support/file-problem.js";

/** Token ids of one document, read or tokenized when called. */
export type Document = () => Int32Array;

/** Calibration data of one file. Blocks can be read in any order; a block is a small part of the file. */
export interface TokenSource {
  /** Joined documents become one stream that is cut anywhere; the others are sequences of their own. */
  readonly joined: boolean;
  readonly blocks: number;
  read(block: number): Promise<readonly Document[]>;
}

/** An error about calibration data: exit code 5. */
export function dataError(code: string, message: string, options?: ErrorOptions): MambacError {
  return new MambacError(`dataset/${code}`, message, EXIT.calibration, options);
}

/** Bytes hashed at a time. */
const STEP = 1 << 20;

/** A data file open for reading at any place. */
export class DataFile {
  readonly path: string;
  readonly size: number;
  readonly #handle: number;

  /** Throws `dataset/read` unless the file can be opened. */
  constructor(path: string) {
    this.path = path;
    try {
      this.#handle = openSync(path, "r");
      this.size = fstatSync(this.#handle).size;
    } catch (cause) {
      throw dataError("read", `cannot read ${path}: ${fileProblem(cause)}`, { cause });
    }
  }

  /** `length` bytes from `offset`. Throws `dataset/damaged` past the end. */
  read(offset: number, length: number): Uint8Array {
    const out = new Uint8Array(length);
    let done = 0;
    while (done < length) {
      const got = readSync(this.#handle, out, done, length - done, offset + done);
      if (got === 0)
        throw dataError("damaged", `${this.path} ends too early: ${length} bytes were expected at ${offset}`);
      done += got;
    }
    return out;
  }

  /** SHA-256 of the content as hex; `visit` sees it in passing, piece by piece. */
  sha256(visit?: (bytes: Uint8Array, offset: number) => void): string {
    const hash = createHash("sha256");
    for (let at = 0; at < this.size; at += STEP) {
      const bytes = this.read(at, Math.min(STEP, this.size - at));
      hash.update(bytes);
      visit?.(bytes, at);
    }
    return hash.digest("hex");
  }

  close(): void {
    closeSync(this.#handle);
  }
}

/** Ids as int32. Throws `dataset/vocabulary` for an id the model does not know; `where` names the place in messages. */
export function checkedIds(values: ArrayLike<number | bigint>, vocabulary: number, where: () => string): Int32Array {
  const out = new Int32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const value: unknown = values[i];
    const id = typeof value === "bigint" ? Number(value) : value;
    if (typeof id !== "number" || !Number.isInteger(id)) {
      throw dataError("ids", `${where()}: position ${i} holds ${String(value)}, which is no token id`);
    }
    if (id < 0 || id >= vocabulary) {
      throw dataError(
        "vocabulary",
        `${where()}: position ${i} holds the id ${id}, but the model knows 0 to ${vocabulary - 1}; ` +
          "use the model's own tokenizer, and cut padding such as -100 off",
      );
    }
    out[i] = id;
  }
  return out;
}
