/**
 * Calibration tables on disk: a JSON file that says what is in it, and `<name>.bin` beside it with the numbers. Equal
 * tables have equal bytes. Nothing in them depends on names of files, machines or the time.
 */

import { createHash } from "node:crypto";
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, renameSync } from "node:fs";
import { TemporaryFiles } from "../onnx/temporary-files.js";
import {
  type CalibrationHeader,
  type CalibrationTable,
  calibrationError,
  canonicalRequests,
  requestKey,
  requestOf,
  type ShardSet,
  STAT_KINDS,
  type StatKind,
  type StatRequest,
} from "../quant/calibration.js";
import { MambacError } from "../support/errors.js";
import { fileProblem } from "../support/file-problem.js";
import { type Range, readAll, StatisticSpool, writeAll } from "./statistic-spool.js";

const FORMAT = "mambac-calibration";
const FORMAT_VERSION = 1;

/** Bytes hashed at a time. */
const STEP = 1 << 22;

/**
 * Writes a table as its statistics become known, in any order, so that none has to stay in memory. Nothing appears under
 * the table's name before `finish`. Close it whatever happens.
 */
export class CalibrationWriter {
  readonly #path: string;
  readonly #spool: StatisticSpool;

  /** `path` is that of the JSON file. Throws `calibration/write` where no file can be made. */
  constructor(path: string) {
    this.#path = path;
    try {
      this.#spool = new StatisticSpool(binaryPath(path));
    } catch (cause) {
      throw writeError(path, cause);
    }
  }

  add(request: StatRequest, encoded: Uint8Array): void {
    try {
      this.#spool.add(request, encoded);
    } catch (cause) {
      throw writeError(this.#path, cause);
    }
  }

  /** Puts the statistics in order and the files in place. */
  finish(header: CalibrationHeader): CalibrationTable {
    const temporary = new TemporaryFiles();
    try {
      const binary = temporary.beside(binaryPath(this.#path));
      const json = temporary.beside(this.#path);
      const { entries, bytes, sha256 } = this.#writeBinary(binary);
      writeText(json, tableText(header, entries, { bytes, sha256 }));
      // The JSON file knows the hash of the binary one, so a pair torn apart here is refused when read.
      for (const [from, to] of [
        [binary, binaryPath(this.#path)],
        [json, this.#path],
      ] as const) {
        renameSync(from, to);
        temporary.keep(from);
      }
    } catch (cause) {
      throw writeError(this.#path, cause);
    } finally {
      temporary.close();
    }
    return readCalibration(this.#path);
  }

  close(): void {
    this.#spool.close();
  }

  #writeBinary(path: string): { readonly entries: Entry[]; readonly bytes: number; readonly sha256: string } {
    const hash = createHash("sha256");
    const entries: Entry[] = [];
    const handle = openSync(path, "wx");
    let end = 0;
    try {
      for (const request of this.#spool.requests) {
        const offset = end;
        for (const piece of this.#spool.pieces(request)) {
          hash.update(piece);
          writeAll(handle, piece, end);
          end += piece.byteLength;
        }
        entries.push({ ...request, offset, length: end - offset });
      }
      fsyncSync(handle);
    } finally {
      closeSync(handle);
    }
    return { entries, bytes: end, sha256: hash.digest("hex") };
  }
}

interface Entry extends StatRequest, Range {}

function binaryPath(path: string): string {
  return `${path}.bin`;
}

function tableText(
  header: CalibrationHeader,
  statistics: readonly Entry[],
  binary: { readonly bytes: number; readonly sha256: string },
): string {
  const { version, modelSha256, dataSha256, tokensSha256, requestsSha256, random, shards } = header;
  const { sequenceLength, seed, sequences, tokens } = header;
  const document = {
    format: FORMAT,
    formatVersion: FORMAT_VERSION,
    mambac: version,
    model: { sha256: modelSha256 },
    data: { sha256: dataSha256, tokensSha256, random, sequenceLength, seed, sequences, tokens },
    requests: { sha256: requestsSha256 },
    shards: { count: shards.count, done: shards.done },
    binary,
  };
  // One statistic a line: tables are long, and are compared by people.
  const lines = statistics.map(({ value, kind, perChannel, graph, offset, length }) =>
    JSON.stringify({ value, kind, perChannel, graph, offset, length }),
  );
  const head = JSON.stringify(document, null, 2).slice(0, -2);
  return `${head},\n  "statistics": [${lines.map((line) => `\n    ${line}`).join(",")}\n  ]\n}\n`;
}

/**
 * Reads a table; its statistics stay on disk until asked for. Throws `calibration/read` (exit code 5) for files that are
 * missing, damaged, of a newer format, or that do not belong together.
 */
export function readCalibration(path: string): CalibrationTable {
  const fail = (what: string, cause?: unknown): Error =>
    calibrationError("read", `${path}: ${what}`, cause === undefined ? undefined : { cause });
  let document: unknown;
  try {
    document = JSON.parse(readFileSync(path, "utf8"));
  } catch (cause) {
    throw fail(existsSync(path) ? "this is not a JSON file" : "there is no such file", cause);
  }
  const root = new Fields(document, fail);
  if (root.text("format") !== FORMAT) throw fail("this is not a calibration table");
  if (root.count("formatVersion") !== FORMAT_VERSION) {
    throw fail(`it has format ${root.count("formatVersion")}, this version of mambac reads ${FORMAT_VERSION}`);
  }
  const data = root.object("data");
  const header: CalibrationHeader = {
    version: root.text("mambac"),
    modelSha256: root.object("model").text("sha256"),
    dataSha256: data.text("sha256"),
    tokensSha256: data.text("tokensSha256"),
    requestsSha256: root.object("requests").text("sha256"),
    random: data.flag("random"),
    sequenceLength: data.count("sequenceLength"),
    seed: data.count("seed"),
    sequences: data.count("sequences"),
    tokens: data.count("tokens"),
    shards: shardSet(root.object("shards"), fail),
  };
  const binary = root.object("binary");
  const total = binary.count("bytes");
  const ranges = new Map<string, Range>();
  const requests: StatRequest[] = [];
  for (const entry of root.list("statistics")) {
    const fields = new Fields(entry, fail);
    const kind = STAT_KINDS.find((known): known is StatKind => known === fields.text("kind"));
    if (kind === undefined) throw fail(`it holds a statistic of the unknown kind ${fields.text("kind")}`);
    const graph = fields.has("graph") ? fields.text("graph") : undefined;
    const request = requestOf(fields.text("value"), kind, fields.flag("perChannel"), graph);
    const range: Range = { offset: fields.count("offset"), length: fields.count("length") };
    if (range.offset + range.length > total) throw fail("it refers to numbers past the end of its binary file");
    if (ranges.has(requestKey(request))) throw fail(`it has two statistics ${requestKey(request)}`);
    ranges.set(requestKey(request), range);
    requests.push(request);
  }
  checkBinary(binaryPath(path), total, binary.text("sha256"), fail);
  return {
    header,
    requests: canonicalRequests(requests),
    encoded: (request) => {
      const range = ranges.get(requestKey(request));
      if (range === undefined) return null;
      const handle = openSync(binaryPath(path), "r");
      try {
        return readAll(handle, range.offset, range.length);
      } finally {
        closeSync(handle);
      }
    },
  };
}

function shardSet(fields: Fields, fail: (what: string) => Error): ShardSet {
  const count = fields.count("count");
  const done = fields.list("done").map((shard) => {
    if (typeof shard !== "number" || !Number.isInteger(shard) || shard < 1 || shard > count) {
      throw fail("its list of shards is damaged");
    }
    return shard;
  });
  return { count, done };
}

function checkBinary(
  path: string,
  bytes: number,
  sha256: string,
  fail: (what: string, cause?: unknown) => Error,
): void {
  const hash = createHash("sha256");
  try {
    const handle = openSync(path, "r");
    try {
      for (let at = 0; at < bytes; at += STEP) hash.update(readAll(handle, at, Math.min(STEP, bytes - at)));
    } finally {
      closeSync(handle);
    }
  } catch (cause) {
    throw fail(`its numbers in ${path} are missing or cut short; keep the two files together`, cause);
  }
  if (hash.digest("hex") !== sha256) throw fail(`its numbers in ${path} are of another table, or damaged`);
}

/** Fields of a JSON object, checked as they are read. */
class Fields {
  readonly #value: Readonly<Record<string, unknown>>;
  readonly #fail: (what: string) => Error;

  constructor(value: unknown, fail: (what: string) => Error) {
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw fail("it is damaged");
    this.#value = { ...value };
    this.#fail = fail;
  }

  has(name: string): boolean {
    return this.#value[name] !== undefined;
  }

  text(name: string): string {
    const value = this.#value[name];
    if (typeof value === "string") return value;
    throw this.#fail(`it has no text ${name}`);
  }

  count(name: string): number {
    const value = this.#value[name];
    if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
    throw this.#fail(`it has no number ${name}`);
  }

  flag(name: string): boolean {
    const value = this.#value[name];
    if (typeof value === "boolean") return value;
    throw this.#fail(`it does not say ${name}`);
  }

  list(name: string): readonly unknown[] {
    const value = this.#value[name];
    if (Array.isArray(value)) return value as readonly unknown[];
    throw this.#fail(`it has no list ${name}`);
  }

  object(name: string): Fields {
    return new Fields(this.#value[name], this.#fail);
  }
}

function writeText(path: string, text: string): void {
  const handle = openSync(path, "wx");
  try {
    writeAll(handle, new TextEncoder().encode(text), 0);
    fsyncSync(handle);
  } finally {
    closeSync(handle);
  }
}

function writeError(path: string, cause: unknown): unknown {
  if (!(cause instanceof Error && "syscall" in cause)) return cause;
  return new MambacError("calibration/write", `cannot write ${path}: ${fileProblem(cause)}`, undefined, { cause });
}
