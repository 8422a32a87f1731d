/**
 * Writes the IR as ONNX.
 *
 * Files appear whole or not at all: everything is written under temporary names in the same folder, flushed to the
 * disk, checked, and renamed in one step that no signal handler can interrupt. Weights are streamed, so a model whose
 * weights are in files or computed on demand never has to fit in memory.
 */

import { accessSync, closeSync, constants, existsSync, lstatSync, openSync, statSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { basename, dirname } from "node:path";
import { type Graph, type Model, subgraphs } from "../ir/graph.js";
import type { Tensor } from "../ir/tensor.js";
import { invariant, MambacError } from "../support/errors.js";
import { fileProblem } from "../support/file-problem.js";
import { type ExternalPlace, modelMessage } from "./encode-model.js";
import { type Move, moveIntoPlace } from "./move-into-place.js";
import { type Encoded, encode } from "./proto.js";
import { TemporaryFiles } from "./temporary-files.js";
import { type DataPart, writeData } from "./write-data.js";

/** Protobuf messages end at 2 GiB. */
const MAX_PROTO_BYTES = 2 ** 31 - 1;

/** `auto` keeps up to this many bytes of weights inline. */
const AUTO_INLINE_BYTES = 2 ** 20;

/** Smaller weights stay inline always: shape arithmetic reads them, and not every tool looks into side files for that. */
const MIN_EXTERNAL_BYTES = 1024;

/** Weights of a page and more start on a page, so that they can be mapped; smaller ones on a cache line. */
const PAGE_BYTES = 4096;
const LINE_BYTES = 64;

/** Bytes written in one call; between calls signals are heard. */
const WRITE_STEP = 1 << 24;

export interface WriteOptions {
  /** `auto` (default): weights go to a side file when they exceed 1 MiB in all. */
  readonly externalData?: "auto" | "always" | "never";
  /** What the name of the side file adds to that of the model; `.data` (default). */
  readonly dataSuffix?: ".data" | "_data";
  /** Texts that appear together with the model, or not at all. */
  readonly companions?: readonly Companion[];
  /** Files that told something about an earlier model at this path: removed with it, unless written anew. */
  readonly outdated?: readonly string[];
}

export interface Companion {
  readonly path: string;
  readonly text: string;
}

/** What was written. `data` is null when every weight is inline. */
export interface Written {
  readonly model: WrittenFile;
  readonly data: WrittenFile | null;
  readonly companions: readonly WrittenFile[];
}

export interface WrittenFile {
  readonly path: string;
  readonly bytes: number;
}

/**
 * The whole model as one ONNX message, weights inline. Equal models give equal bytes. Throws `onnx/too-large` from 2 GiB
 * on.
 */
export function encodeModel(model: Model): Uint8Array {
  const { pieces, byteLength } = encodeChecked(model, new Map());
  const out = new Uint8Array(byteLength);
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.byteLength;
  }
  return out;
}

/**
 * Refuses an output that cannot be written, before work is spent on it: no name, a folder, a folder that is missing or
 * takes no files. Throws `onnx/write`.
 */
export function requireWritable(path: string): void {
  if (path === "") throw new MambacError("onnx/write", "the name of the output file is empty");
  refuseFolder(path);
  const folder = dirname(path);
  const stats = statSync(folder, { throwIfNoEntry: false });
  if (stats === undefined) {
    throw new MambacError("onnx/write", `cannot write ${path}: there is no folder ${folder}; create it first`);
  }
  if (!stats.isDirectory()) throw new MambacError("onnx/write", `cannot write ${path}: ${folder} is not a folder`);
  try {
    accessSync(folder, constants.W_OK);
  } catch (cause) {
    throw new MambacError("onnx/write", `cannot write into the folder ${folder}: ${fileProblem(cause)}`, undefined, {
      cause,
    });
  }
}

/**
 * Writes `path`, and its side file beside it when weights are external. Existing files of these names are replaced, and
 * where a model is replaced, so is its side file. After a failure or a signal the folder is as it was. Throws `onnx/write` for file system errors.
 */
export async function writeModel(model: Model, path: string, options: WriteOptions = {}): Promise<Written> {
  const dataPath = `${path}${options.dataSuffix ?? ".data"}`;
  const companions = (options.companions ?? []).map((companion) => ({
    path: companion.path,
    content: new TextEncoder().encode(companion.text),
  }));
  const layout = planExternal(model, basename(dataPath), options.externalData ?? "auto");
  for (const target of [path, dataPath, ...companions.map((companion) => companion.path)]) refuseFolder(target);
  const temporary = new TemporaryFiles();
  try {
    let dataTemporary: string | null = null;
    if (layout.places.size > 0) {
      dataTemporary = temporary.beside(dataPath);
      // Created in one step: an exit while a thread is about to create it would come too early to remove it.
      closeSync(openSync(dataTemporary, "wx"));
      await writeData(dataTemporary, partsOf(layout), layout.byteLength);
    }
    const encoded = encodeChecked(model, layout.places);
    const modelTemporary = temporary.beside(path);
    await writeFile(modelTemporary, (handle) => writePieces(handle, encoded));
    const moves: Move[] = dataTemporary === null ? [] : [{ from: dataTemporary, to: dataPath }];
    for (const { path: to, content } of companions) {
      const from = temporary.beside(to);
      await writeFile(from, async (handle) => {
        await writeAt(handle, content, 0);
        return content.byteLength;
      });
      moves.push({ from, to });
    }
    const outdated = existsSync(path) ? [dataPath, ...(options.outdated ?? [])] : [];
    moveIntoPlace([...moves, { from: modelTemporary, to: path }], outdated, temporary);
    await syncFolder(dirname(path));
    return {
      model: { path, bytes: encoded.byteLength },
      data: dataTemporary === null ? null : { path: dataPath, bytes: layout.byteLength },
      companions: companions.map((companion) => ({ path: companion.path, bytes: companion.content.byteLength })),
    };
  } catch (cause) {
    throw isFileSystemError(cause)
      ? new MambacError("onnx/write", `cannot write ${path}: ${fileProblem(cause)}`, undefined, { cause })
      : cause;
  } finally {
    temporary.close();
  }
}

/** Bytes of the files `writeModel` would write; `data` is null when every weight would be inline. */
export function writtenSizes(
  model: Model,
  path: string,
  options: WriteOptions = {},
): { readonly model: number; readonly data: number | null } {
  const layout = planExternal(model, basename(`${path}.data`), options.externalData ?? "auto");
  return {
    model: encodeChecked(model, layout.places).byteLength,
    data: layout.places.size === 0 ? null : layout.byteLength,
  };
}

function encodeChecked(model: Model, places: ReadonlyMap<Tensor, ExternalPlace>): Encoded {
  const encoded = encode(
    "ModelProto",
    modelMessage(model, (tensor) => places.get(tensor)),
  );
  if (encoded.byteLength > MAX_PROTO_BYTES) {
    throw new MambacError(
      "onnx/too-large",
      `the model has ${encoded.byteLength} bytes, but an ONNX file ends at 2 GiB; write it with external data`,
    );
  }
  return encoded;
}

interface Layout {
  readonly places: ReadonlyMap<Tensor, ExternalPlace>;
  /** Length of the side file. */
  readonly byteLength: number;
}

function planExternal(model: Model, location: string, mode: "auto" | "always" | "never"): Layout {
  const weights = new Set(allInitializers(model.graph));
  const total = [...weights].reduce((sum, tensor) => sum + tensor.byteLength, 0);
  const places = new Map<Tensor, ExternalPlace>();
  if (mode === "never" || (mode === "auto" && total <= AUTO_INLINE_BYTES)) return { places, byteLength: 0 };
  let end = 0;
  for (const tensor of weights) {
    if (tensor.strings !== null || tensor.byteLength < MIN_EXTERNAL_BYTES) continue;
    const alignment = tensor.byteLength >= PAGE_BYTES ? PAGE_BYTES : LINE_BYTES;
    const offset = Math.ceil(end / alignment) * alignment;
    places.set(tensor, { location, offset });
    end = offset + tensor.byteLength;
  }
  return { places, byteLength: end };
}

/** Initialisers of a graph and its subgraphs. */
function allInitializers(graph: Graph): Tensor[] {
  return [...graph.initializers.values(), ...graph.nodes.flatMap(subgraphs).flatMap(allInitializers)];
}

function refuseFolder(path: string): void {
  if (existsSync(path) && lstatSync(path).isDirectory()) {
    throw new MambacError("onnx/write", `cannot write ${path}: it is a folder; choose another name`);
  }
}

/** Creates a file, fills it, flushes it to the disk and checks its length. `fill` returns the bytes the file must have. */
async function writeFile(path: string, fill: (handle: FileHandle) => Promise<number>): Promise<void> {
  // Created in one step: an exit while a thread is about to create it would come too early to remove it.
  closeSync(openSync(path, "wx"));
  const handle = await open(path, "r+");
  try {
    const expected = await fill(handle);
    await handle.sync();
    const { size } = await handle.stat();
    if (size !== expected) {
      throw new MambacError("onnx/write", `${path} has ${size} bytes after writing ${expected}; is the disk full?`);
    }
  } finally {
    await handle.close();
  }
}

/** Weights of a file are written in parts of this size; computed ones as a whole, for they compute anew on every call. */
function partsOf({ places }: Layout): DataPart[] {
  return [...places].flatMap(([tensor, { offset }]) => {
    const step = tensor.residence === "lazy" ? tensor.byteLength : WRITE_STEP;
    const count = Math.ceil(tensor.byteLength / step);
    return Array.from({ length: count }, (_, at) => {
      const start = at * step;
      return { tensor, start, end: Math.min(tensor.byteLength, start + step), offset: offset + start };
    });
  });
}

async function writePieces(handle: FileHandle, encoded: Encoded): Promise<number> {
  let at = 0;
  for (const piece of encoded.pieces) {
    await writeAt(handle, piece, at);
    at += piece.byteLength;
  }
  await checkPieces(handle, encoded);
  return encoded.byteLength;
}

async function writeAt(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  let done = 0;
  while (done < bytes.byteLength) {
    const length = Math.min(bytes.byteLength - done, WRITE_STEP);
    const { bytesWritten } = await handle.write(bytes, done, length, position + done);
    done += bytesWritten;
  }
}

/** Reads the model back: what is renamed into place is what was meant. */
async function checkPieces(handle: FileHandle, encoded: Encoded): Promise<void> {
  let at = 0;
  for (const piece of encoded.pieces) {
    for (let start = 0; start < piece.byteLength; start += WRITE_STEP) {
      const part = piece.subarray(start, start + WRITE_STEP);
      const { bytesRead, buffer } = await handle.read(Buffer.alloc(part.byteLength), 0, part.byteLength, at + start);
      if (bytesRead !== part.byteLength || !buffer.equals(part)) {
        throw new MambacError("onnx/write", "the written file does not read back as it was written; check the disk");
      }
    }
    at += piece.byteLength;
  }
}

/** Makes the renames last; a file system that cannot do this for folders is left as it is. */
async function syncFolder(path: string): Promise<void> {
  try {
    const handle = await open(path, "r");
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (cause) {
    invariant(isFileSystemError(cause), "syncing a folder failed in an unknown way");
  }
}

function isFileSystemError(cause: unknown): cause is NodeJS.ErrnoException {
  return cause instanceof Error && "syscall" in cause;
}
