/** Which input file is what: by a folder's file names, else by which graph takes states. */

import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { readModel } from "./onnx/read.js";
import { EXIT, MambacError } from "./support/errors.js";
import { fileProblem } from "./support/file-problem.js";

export type SourceRole = "model" | "prefill" | "decode";

export interface SourceFile {
  readonly path: string;
  readonly role: SourceRole;
}

/** A source file with what identifies its contents. */
export interface Source extends SourceFile {
  readonly sha256: string;
  readonly bytes: number;
}

/** Ending of files that `compile` names itself; such files in a folder are results, not sources. */
const COMPILED_SUFFIX = ".mambac.onnx";

/**
 * The graphs among `inputs`: one file, a prefill and a decode file in any order, or one folder that holds them. A pair
 * comes prefill first. Throws `compile/inputs` and `compile/folder`.
 */
export function sourceFiles(inputs: readonly string[]): SourceFile[] {
  const [only] = inputs;
  const files = inputs.length === 1 && only !== undefined && isFolder(only) ? filesIn(only) : inputs;
  if (files.length > 2) {
    throw new MambacError(
      "compile/inputs",
      `expected one graph, or a prefill and a decode graph, but got ${files.length} files`,
    );
  }
  const [first, second] = files;
  if (first === undefined) throw new MambacError("compile/inputs", "no input file was given");
  if (second === undefined) return [{ path: first, role: "model" }];
  if (isSameFile(first, second)) {
    throw new MambacError("compile/inputs", `${first} was given twice; a pair is a prefill and a decode graph`);
  }
  const firstIsDecode =
    /decode/i.test(basename(first)) ||
    (!/decode/i.test(basename(second)) && takesStates(first) && !takesStates(second));
  return [
    { path: firstIsDecode ? second : first, role: "prefill" },
    { path: firstIsDecode ? first : second, role: "decode" },
  ];
}

/** Size and hash of a source file; side files with weights are not read. Throws `compile/input`. */
export function identifySource(file: SourceFile): Source {
  try {
    const bytes = readFileSync(file.path);
    return { ...file, sha256: createHash("sha256").update(bytes).digest("hex"), bytes: bytes.byteLength };
  } catch (cause) {
    throw new MambacError("compile/input", `cannot read ${file.path}: ${fileProblem(cause)}`, EXIT.usage, { cause });
  }
}

/** Where the result goes when no one says: beside the source, as `<name>.mambac.onnx`; a pair loses the word prefill. */
export function defaultOutput(files: readonly SourceFile[]): string {
  const [main] = files;
  if (main === undefined) throw new MambacError("compile/inputs", "no input file was given");
  const stem = basename(main.path).replace(/\.onnx$/i, "");
  const name = files.length === 1 ? stem : stem.replace(/[-_.]?prefill/i, "").replace(/^[-_.]+/, "") || "model";
  return join(dirname(main.path), `${name}${COMPILED_SUFFIX}`);
}

function isSameFile(first: string, second: string): boolean {
  const [a, b] = [first, second].map((path) => statSync(path, { throwIfNoEntry: false, bigint: true }));
  return a !== undefined && b !== undefined && a.ino === b.ino && a.dev === b.dev;
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}

function filesIn(folder: string): string[] {
  const names = namesIn(folder)
    .filter((name) => name.endsWith(".onnx") && !name.endsWith(COMPILED_SUFFIX))
    .sort();
  const prefill = namedFor("prefill", names, folder);
  const decode = namedFor("decode", names, folder);
  if (prefill !== null && decode !== null) return [join(folder, prefill), join(folder, decode)];
  const [only] = names;
  if (only !== undefined && names.length === 1) return [join(folder, only)];
  throw new MambacError(
    "compile/folder",
    only === undefined
      ? `${folder} holds no .onnx file`
      : `${folder} holds ${names.length} graphs, but not one named prefill and one named decode: name the files to compile`,
  );
}

/** The graph whose name says its role: `prefill.onnx` itself, else the only one with the word in its name. */
function namedFor(role: "prefill" | "decode", names: readonly string[], folder: string): string | null {
  const exact = names.find((name) => name.toLowerCase() === `${role}.onnx`);
  const [first, second] = names.filter((name) => name.toLowerCase().includes(role));
  if (exact === undefined && second !== undefined) {
    throw new MambacError("compile/folder", `${folder} holds ${first} and ${second}: name the files to compile`);
  }
  return exact ?? first ?? null;
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (cause) {
    throw new MambacError("compile/folder", `cannot read the folder ${folder}: ${fileProblem(cause)}`, EXIT.usage, {
      cause,
    });
  }
}

function takesStates(path: string): boolean {
  const { graph } = readModel(path).model;
  return graph.inputs.some(
    (input) =>
      input.type?.kind === "tensor" && (input.type.shape?.length ?? 0) >= 3 && !graph.initializers.has(input.name),
  );
}
