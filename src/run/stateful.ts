/**
 * Loads a model for running with state.
 *
 * Two backends with one behaviour. The C API (through koffi) registers the op library, binds memory once and keeps
 * recurrent state in place where a kernel allows it; onnxruntime-node is the fallback: it copies, and every mambac
 * operator runs as the function in the model.
 */

import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { readModel } from "../onnx/read.js";
import { MambacError } from "../support/errors.js";
import { countCustomOps, type ExecutedOps, ExecutionTrace, inPlaceStates, splitByKernel } from "./executed-ops.js";
import { findOpsLibrary, type LibraryChoice, type OpsLibrary } from "./locate.js";
import { type NativeSession, openNativeSession } from "./native-session.js";
import { loadOrt } from "./ort-capi.js";
import { nativeRunner, nodeRunner, type Runner } from "./runner.js";
import { openSession } from "./session.js";
import { readSignature } from "./signature.js";
import { type LoadedPackage, StatefulModel, type StatefulParts } from "./stateful-model.js";

export type { LoadedPackage } from "./stateful-model.js";

export interface LoadOptions {
  /**
   * The op library. 'auto' (default): MAMBAC_OPS_LIBRARY, or what the build left in build/ops, or none; 'none': run
   * the functions in the model; otherwise a path, and then it is an error if it cannot be used.
   */
  readonly library?: LibraryChoice;
  /** 'auto' (default): the C API where it can be loaded, else onnxruntime-node. */
  readonly backend?: "auto" | "c-api" | "node";
  /** Threads inside one operator; default 1. */
  readonly threads?: number;
  /** Independent sequences that run together; default 1. */
  readonly batch?: number;
  /** Lengths of state axes that the graph leaves symbolic, by symbol. */
  readonly dims?: Readonly<Record<string, number>>;
  /**
   * Prefill writes its logits where the last one of as many tokens did: they are valid until the next call only, and a prompt
   * of hundreds of tokens does not wait for fresh pages for them. Default false.
   */
  readonly reuseLogits?: boolean;
  /** Session configuration entries of ONNX Runtime (C API only). */
  readonly config?: Readonly<Record<string, string>>;
  /** Told, in a sentence, whenever something runs differently from what was hoped for. */
  readonly onNotice?: (message: string) => void;
}

/**
 * Loads a model file, or the one model in a folder, with its state at zero.
 *
 *     await using model = await loadPackage("out.onnx", { threads: 2 });
 *     const logits = await model.prefill([65, 110, 100]); // [batch, length, vocabulary], of every position
 *     const next = await model.step(32);                  // one token; the state goes on from the prompt
 *     model.executedOps();                                // kernels of the op library, or functions of the model
 *
 * Give it back with `close()` or `await using`. Throws `MambacError`: `run/model` when there is none, `signature/...`
 * when its inputs have no known meaning, `ops/...` and `ort/...` when a library asked for by name cannot be used.
 */
export async function loadPackage(path: string, options: LoadOptions = {}): Promise<LoadedPackage> {
  const modelPath = modelFile(path);
  const { model } = readModel(modelPath);
  const signature = readSignature(model);
  const parts = {
    modelPath,
    model,
    signature,
    batch: options.batch ?? 1,
    dims: new Map(Object.entries(options.dims ?? {})),
    reuseLogits: options.reuseLogits ?? false,
  };
  const notice = options.onNotice ?? (() => undefined);
  const explicit = options.library !== undefined && options.library !== "auto" && options.library !== "none";
  if (options.backend === "node" && explicit) {
    throw new MambacError("run/backend", "onnxruntime-node cannot register an op library; use the C API backend");
  }
  if (options.backend !== "node") {
    const reason = await nativeProblem();
    if (reason === null) return openNative(parts, options, notice);
    if (options.backend === "c-api" || explicit) throw reason;
    notice(`running through onnxruntime-node, without the op library: ${reason.message}`);
  }
  const ops = countCustomOps(model);
  const session = await openSession(modelPath, { optimization: "all", threads: options.threads ?? 1 });
  return finish(nodeRunner(session), {
    ...parts,
    library: null,
    inPlace: new Set(),
    executed: splitByKernel(ops, new Set()),
  });
}

type CommonParts = Pick<StatefulParts, "modelPath" | "model" | "signature" | "batch" | "dims" | "reuseLogits">;

async function nativeProblem(): Promise<MambacError | null> {
  try {
    await loadOrt();
    return null;
  } catch (cause) {
    if (cause instanceof MambacError) return cause;
    throw cause;
  }
}

async function openNative(
  parts: CommonParts,
  options: LoadOptions,
  notice: (message: string) => void,
): Promise<LoadedPackage> {
  const counts = countCustomOps(parts.model);
  const found = findOpsLibrary(options.library);
  if (found.kind === "found" && counts.size > 0) {
    try {
      const loaded = await openWithLibrary(parts, options, found.path, counts);
      tellMissing(loaded, found.path, notice);
      return loaded;
    } catch (cause) {
      const named = options.library !== undefined && options.library !== "auto";
      if (named || !(cause instanceof MambacError)) throw withHint(cause, found);
      notice(`running without the op library ${found.path}, which does not fit this model: ${cause.message}`);
    }
  }
  if (found.kind === "absent" && counts.size > 0 && options.library !== "none") {
    notice(`running the portable functions in the model: ${found.reason}`);
  }
  const session = await openNativeSession(parts.modelPath, nativeOptions(options));
  const executed = splitByKernel(counts, new Set());
  return finish(nativeRunner(session), { ...parts, library: null, inPlace: new Set(), executed });
}

/** A library may lack kernels, being older than the model; ONNX Runtime then runs the functions and says nothing. */
function tellMissing(loaded: LoadedPackage, library: string, notice: (message: string) => void): void {
  const missing = [...loaded.executedOps().functions.keys()];
  if (missing.length === 0) return;
  notice(
    `the op library ${library} has no kernel for ${missing.join(", ")}: these run as functions of the model, slower; ` +
      "rebuild it for this version of mambac",
  );
}

async function openWithLibrary(
  parts: CommonParts,
  options: LoadOptions,
  library: string,
  counts: ReadonlyMap<string, number>,
): Promise<LoadedPackage> {
  const trace = new ExecutionTrace();
  try {
    const profilePrefix = trace.prefix;
    const session = await openNativeSession(parts.modelPath, { ...nativeOptions(options), library, profilePrefix });
    let executed: ExecutedOps;
    try {
      executed = splitByKernel(counts, await traceOneRun(session, parts, trace));
    } catch (cause) {
      session.close();
      throw cause;
    }
    const inPlace = inPlaceStates(parts.model, parts.signature, executed);
    return await finish(nativeRunner(session), { ...parts, library, inPlace, executed });
  } finally {
    trace.close();
  }
}

/** Runs once on token 0 and state of its own, to see which operators execute. */
async function traceOneRun(session: NativeSession, parts: CommonParts, trace: ExecutionTrace): Promise<Set<string>> {
  const borrowed: Runner = { ...nativeRunner(session), close: async () => undefined };
  const probe = new StatefulModel({
    ...parts,
    runner: borrowed,
    library: null,
    inPlace: new Set(),
    executed: { kernels: new Map(), functions: new Map() } satisfies ExecutedOps,
  });
  const { length } = parts.signature.tokens;
  await probe.prefill(Array.from({ length: typeof length === "number" ? length : 1 }, () => 0));
  return trace.finish(session);
}

async function finish(runner: Runner, parts: Omit<StatefulParts, "runner">): Promise<LoadedPackage> {
  try {
    return new StatefulModel({ ...parts, runner });
  } catch (cause) {
    await runner.close();
    throw cause;
  }
}

function nativeOptions(options: LoadOptions): { readonly threads: number; readonly config: Record<string, string> } {
  return { threads: options.threads ?? 1, config: { ...options.config } };
}

function withHint(cause: unknown, library: OpsLibrary): unknown {
  if (!(cause instanceof MambacError) || library.kind === "absent") return cause;
  return new MambacError(
    "ops/mismatch",
    `${cause.message}. The op library ${library.path} was registered; ` +
      "rebuild it for this version of mambac, or pass library: 'none' to run the functions in the model",
    cause.exitCode,
    { cause },
  );
}

/** The model to load: the file itself, `model.onnx` of a folder, or its only .onnx file. Throws `run/model`. */
export function modelFile(path: string): string {
  if (!existsSync(path)) throw new MambacError("run/model", `${path} does not exist`);
  if (!statSync(path).isDirectory()) return path;
  const files = readdirSync(path).filter((name) => name.endsWith(".onnx"));
  const [only] = files.includes("model.onnx") ? ["model.onnx"] : files;
  if (only === undefined || (files.length > 1 && only !== "model.onnx")) {
    const what = files.length === 0 ? "no .onnx file" : `${files.length} .onnx files and none named model.onnx`;
    throw new MambacError("run/model", `the folder ${path} holds ${what}; name the model file`);
  }
  return join(path, only);
}
