/** Reads ONNX files into the IR. */

import { readFileSync, statSync } from "node:fs";
import { dirname } from "node:path";
import type { Model } from "../ir/graph.js";
import { formatDiagnostic, verifyModel } from "../ir/verify.js";
import { EXIT, MambacError } from "../support/errors.js";
import { fileProblem } from "../support/file-problem.js";
import { decodeDomain, decodeFunction, decodeGraph, decodeOpsets, extrasOf } from "./decode-graph.js";
import { decodeEntries, type ReadContext } from "./decode-tensor.js";
import { ExternalFiles } from "./external-data.js";
import { decode } from "./proto.js";
import { ReadLog } from "./read-log.js";
import { NEWEST_IR_VERSION } from "./schema.js";

/** Versions of the main operator set that mambac understands. */
const MAIN_OPSETS = { first: 7, last: 27 };

/** The IR version that brought operator set imports. */
const OLDEST_IR_VERSION = 3;

/** Protobuf messages end at 2 GiB. */
const MAX_PROTO_BYTES = 2 ** 31 - 1;

export interface ReadResult {
  readonly model: Model;
  /** What was read differently from how it was written, or could not be interpreted; one sentence each. */
  readonly warnings: readonly string[];
  /** Paths of the files beside the model that hold its weights, links followed. */
  readonly sideFiles: readonly string[];
}

/**
 * Reads a model file. Weights in side files stay there until someone asks for them. Throws `MambacError` when the file
 * is missing, damaged, inconsistent (exit code 2) or of a version mambac does not know (exit code 4).
 */
export function readModel(path: string): ReadResult {
  return named(path, () => decodeModel(readWhole(path), new ExternalFiles(dirname(path))));
}

/** Reads a model from bytes, which the result's weights are views of. `folder` is where side files are looked for. */
export function readModelBytes(bytes: Uint8Array, folder?: string): ReadResult {
  return decodeModel(bytes, folder === undefined ? null : new ExternalFiles(folder));
}

function readWhole(path: string): Uint8Array {
  try {
    const stats = statSync(path);
    if (!stats.isFile()) throw new MambacError("onnx/read", "this is not a file");
    if (stats.size > MAX_PROTO_BYTES) {
      throw new MambacError(
        "onnx/too-large",
        `the file has ${stats.size} bytes, but an ONNX file ends at 2 GiB; export the model with its weights in external data`,
      );
    }
    const buffer = readFileSync(path);
    return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
  } catch (cause) {
    if (cause instanceof MambacError) throw cause;
    throw new MambacError("onnx/read", `cannot read the file: ${fileProblem(cause)}`, undefined, { cause });
  }
}

/** Puts the file's name in front of messages. */
function named<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (cause) {
    if (!(cause instanceof MambacError)) throw cause;
    throw new MambacError(cause.code, `${path}: ${cause.message}`, cause.exitCode, { cause });
  }
}

function decodeModel(bytes: Uint8Array, external: ExternalFiles | null): ReadResult {
  if (bytes.byteLength === 0) throw new MambacError("onnx/malformed", "the file is empty");
  const proto = decode("ModelProto", bytes);
  const log = new ReadLog();
  const context: ReadContext = { log, external };
  if (proto.ir_version === undefined || proto.graph === undefined) {
    const missing = proto.graph === undefined ? "graph" : "IR version";
    throw new MambacError("onnx/malformed", `this is not an ONNX model: it has no ${missing}`);
  }
  const irVersion = Number(proto.ir_version);
  if (irVersion < OLDEST_IR_VERSION) {
    throw new MambacError(
      "onnx/ir-version",
      `IR version ${irVersion} is older than ${OLDEST_IR_VERSION}`,
      EXIT.unsupported,
    );
  }
  if (irVersion > NEWEST_IR_VERSION) {
    log.note(`IR version ${irVersion} is newer than ${NEWEST_IR_VERSION}, the newest one mambac describes`);
  }
  const opsets = decodeOpsets(proto.opset_import, "the model", context);
  checkMainOpset(opsets, "the model");
  if (proto.training_info.length > 0)
    log.note("ModelProto.training_info is dropped: mambac makes models for inference");
  const functions = proto.functions.map((fn) => decodeFunction(fn, context));
  for (const fn of functions) checkMainOpset(fn.opsets, `function ${fn.domain}.${fn.name}`);
  const model: Model = {
    irVersion,
    producerName: proto.producer_name ?? "",
    producerVersion: proto.producer_version ?? "",
    domain: decodeDomain(proto.domain),
    modelVersion: proto.model_version ?? 0n,
    doc: proto.doc_string ?? "",
    opsets,
    graph: decodeGraph(proto.graph, "the main graph", context),
    functions,
    metadata: decodeEntries(proto.metadata_props, "the metadata of the model", log),
    ...extrasOf("ModelProto", proto, { configuration: proto.configuration }, context),
  };
  checkStructure(model, log);
  return { model, warnings: log.warnings(), sideFiles: external?.paths ?? [] };
}

/** Diagnostics told in one message; a damaged file may have thousands. */
const MAX_TOLD = 5;

function checkStructure(model: Model, log: ReadLog): void {
  const found = verifyModel(model);
  const errors = found.filter((diagnostic) => diagnostic.severity === "error");
  for (const diagnostic of found) if (diagnostic.severity === "warning") log.note(formatDiagnostic(diagnostic));
  if (errors.length === 0) return;
  const told = errors.slice(0, MAX_TOLD).map(formatDiagnostic);
  const rest = errors.length > MAX_TOLD ? `; and ${errors.length - MAX_TOLD} more` : "";
  throw new MambacError("onnx/invalid", `the model is not sound: ${told.join("; ")}${rest}`);
}

function checkMainOpset(opsets: ReadonlyMap<string, number>, where: string): void {
  const version = opsets.get("");
  if (version !== undefined && (version < MAIN_OPSETS.first || version > MAIN_OPSETS.last)) {
    throw new MambacError(
      "onnx/opset",
      `${where} uses operator set ${version}; mambac knows ${MAIN_OPSETS.first} to ${MAIN_OPSETS.last}, ` +
        "convert the model to one of these",
      EXIT.unsupported,
    );
  }
}
