/**
 * Weights in files beside the model.
 *
 * A model must not make its reader open files elsewhere, so a location is a relative path that stays in the model's
 * folder, links included. Files are checked when the model is read and opened again for each slice; a file that changed
 * in between is an error rather than other weights.
 */

import { closeSync, fstatSync, openSync, readSync, realpathSync, type Stats, statSync } from "node:fs";
import { isAbsolute, join, sep, win32 } from "node:path";
import type { ByteSource } from "../ir/tensor.js";
import { MambacError } from "../support/errors.js";
import { fileProblem } from "../support/file-problem.js";
import { isSameFile, ReadAhead, type SideFile } from "./read-ahead.js";

/** Most bytes asked of the system in one call; some systems refuse more than 2^31. */
const READ_STEP = 1 << 28;

/** The side files of one model. */
export class ExternalFiles {
  readonly #folder: string;
  readonly #files = new Map<string, SideFile>();
  readonly #ahead = new ReadAhead();

  /** `folder` is the folder the model file is in. */
  constructor(folder: string) {
    this.#folder = folder;
  }

  /** Paths of the files that weights came from, links followed. */
  get paths(): readonly string[] {
    return [...this.#files.values()].map(({ path }) => path);
  }

  /**
   * The bytes of `location` for the tensor called `label` in messages; offsets count from the file's start. Throws
   * `onnx/external-path` for a path that leaves the folder and `onnx/external-data` for a missing or short file.
   */
  source(location: string, offset: number, length: number, label: string): ByteSource {
    const file = this.#file(location, label);
    if (offset + length > file.stats.size) {
      throw new MambacError(
        "onnx/external-data",
        `${label}: its data are bytes ${offset} to ${offset + length} of ${location}, which has only ${file.stats.size} ` +
          "bytes; fetch that file again, or export the model anew",
      );
    }
    const check = (from: number, count: number): void => {
      if (from + count > file.stats.size) {
        throw new MambacError("onnx/external-data", `${label}: a read past the end of ${location}`);
      }
    };
    const readInto = (from: number, target: Uint8Array): void => readSlice(file, location, label, from, target);
    return {
      read: (from, count) => {
        check(from, count);
        const out = new Uint8Array(count);
        readInto(from, out);
        return out;
      },
      lend: (from, count, use) => {
        check(from, count);
        return this.#ahead.lend(file, from, count, (target) => readInto(from, target), use);
      },
      prefetch: (from, count) => this.#ahead.prefetch(file, from, count),
    };
  }

  #file(location: string, label: string): SideFile {
    const known = this.#files.get(location);
    if (known !== undefined) return known;
    checkLocation(location, label);
    let path: string;
    let root: string;
    let stats: Stats;
    try {
      root = realpathSync(this.#folder);
      path = realpathSync(join(root, location));
      stats = statSync(path);
    } catch (cause) {
      throw new MambacError(
        "onnx/external-data",
        `${label}: its data are in ${location}, which is not beside the model; copy that file into the model's folder`,
        undefined,
        { cause },
      );
    }
    const inside = root.endsWith(sep) ? root : root + sep;
    if (!path.startsWith(inside)) {
      throw new MambacError(
        "onnx/external-path",
        `${label}: ${location} is a link to a file outside the model's folder; copy the model with its links followed ` +
          "(cp -L) and read the copy",
      );
    }
    if (!stats.isFile()) {
      throw new MambacError("onnx/external-data", `${label}: ${location} is not a file`);
    }
    const file = { path, stats };
    this.#files.set(location, file);
    return file;
  }
}

function checkLocation(location: string, label: string): void {
  const parts = location.split(/[/\\]/);
  if (
    location === "" ||
    location.includes("\0") ||
    parts.includes("..") ||
    isAbsolute(location) ||
    win32.isAbsolute(location) ||
    /^[A-Za-z]:/.test(location)
  ) {
    throw new MambacError(
      "onnx/external-path",
      `${label}: its data are at ${JSON.stringify(location)}; only files in the model's folder are read`,
    );
  }
}

function readSlice(file: SideFile, location: string, label: string, from: number, out: Uint8Array): void {
  const count = out.byteLength;
  let handle: number | null = null;
  try {
    handle = openSync(file.path, "r");
    const now = fstatSync(handle);
    if (!isSameFile(now, file.stats)) {
      throw new MambacError("onnx/external-data", `${label}: ${location} changed while it was in use; start again`);
    }
    let done = 0;
    while (done < count) {
      const got = readSync(handle, out, done, Math.min(count - done, READ_STEP), from + done);
      if (got === 0) throw new MambacError("onnx/external-data", `${label}: ${location} ended too early`);
      done += got;
    }
  } catch (cause) {
    if (cause instanceof MambacError) throw cause;
    throw new MambacError("onnx/external-data", `${label}: cannot read ${location}: ${fileProblem(cause)}`, undefined, {
      cause,
    });
  } finally {
    if (handle !== null) closeSync(handle);
  }
}
