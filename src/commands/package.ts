/** `mambac package`: the folder a runtime wants, made from a compiled file. */

import { statSync } from "node:fs";
import { basename, join } from "node:path";
import { VERSION } from "../compile.js";
import { readModel } from "../onnx/read.js";
import { genaiPackage } from "../package/genai.js";
import { hfPackage } from "../package/hf.js";
import type { PackageSource } from "../package/plan.js";
import { readSideFiles } from "../package/side-files.js";
import { tritonPackage } from "../package/triton.js";
import { type PlannedPackage, requireFree, writePackages } from "../package/write-package.js";
import { findOpsLibrary, type LibraryChoice } from "../run/locate.js";
import { readSignature } from "../run/signature.js";
import { EXIT, type ExitCode, MambacError } from "../support/errors.js";
import { isCompiled } from "./compiled-rows.js";
import { Progress, type Terminal } from "./terminal.js";
import { formatBytes, formatFacts } from "./text-table.js";

export interface PackageCommandOptions {
  /** The compiled file. */
  readonly model: string;
  /** Model repository, or null. */
  readonly triton: string | null;
  /** Model folder of ONNX Runtime GenAI, or null. */
  readonly genai: string | null;
  /** Folder in the layout of the Hub, or null. */
  readonly hf: string | null;
  /** The op library to ship. */
  readonly library: LibraryChoice;
  /** Folder with tokenizer and configuration, or null. */
  readonly tokenizer: string | null;
  /** Replace files of an earlier package. */
  readonly force: boolean;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** Runs the command. Throws `package/...`, `signature/...`, `ops/not-found` and what reading a model throws. */
export async function packageCommand(options: PackageCommandOptions, terminal: Terminal): Promise<ExitCode> {
  const { triton, genai, hf, force } = options;
  const stem = basename(options.model).replace(/(\.mambac)?\.onnx$/i, "");
  const name = /^\.*$/.test(stem) ? "model" : stem;
  const places = [
    ...(triton === null ? [] : [{ kind: "triton", folder: join(triton, name), write: tritonPackage }]),
    ...(genai === null ? [] : [{ kind: "genai", folder: genai, write: genaiPackage }]),
    ...(hf === null ? [] : [{ kind: "hf", folder: hf, write: hfPackage }]),
  ];
  if (places.length === 0)
    throw new MambacError("usage/package", "say what to make: --triton, --genai or --hf, with a folder");
  for (const { folder } of places) requireFree(folder, force);
  const source = readSource(options, name);
  const planned = places.map(({ folder, write }): PlannedPackage => ({ folder, plan: write(source) }));
  const progress = new Progress(options.quiet ? null : terminal);
  progress.say(`writing ${places.map(({ folder }) => folder).join(", ")}`);
  const written = await writePackages(source, planned, force).finally(() => progress.done());
  const packages = written.map(({ folder, files }, at) => ({
    kind: places[at]?.kind ?? "",
    folder,
    files,
    notes: planned[at]?.plan.notes ?? [],
  }));
  if (options.json) {
    const document = { command: "package", version: VERSION, model: options.model, packages };
    terminal.out(`${JSON.stringify(document, null, 2)}\n`);
    return EXIT.ok;
  }
  const facts = packages.map(({ kind, folder, files }): [string, string] => [
    kind,
    `${folder}: ${files.map(({ path, bytes }) => `${path} (${formatBytes(bytes)})`).join(", ")}`,
  ]);
  if (!options.quiet) terminal.out(formatFacts(facts));
  for (const { kind, notes } of packages) for (const note of notes) terminal.err(`note (${kind}): ${note}\n`);
  return EXIT.ok;
}

function readSource(options: PackageCommandOptions, name: string): PackageSource {
  const { model, sideFiles } = readModel(options.model);
  if (!isCompiled(model)) {
    throw new MambacError(
      "package/source",
      `${options.model} was not compiled by mambac: compile it, and package the result`,
      EXIT.unsupported,
    );
  }
  const signature = readSignature(model);
  return {
    model,
    signature,
    name,
    external: sideFiles.length > 0,
    library: libraryPath(options.library),
    sideFiles: options.tokenizer === null ? null : readSideFiles(options.tokenizer),
  };
}

function libraryPath(choice: LibraryChoice): string | null {
  if (choice === "none") return null;
  const library = findOpsLibrary(choice);
  if (library.kind === "absent") {
    throw new MambacError("package/library", `there is no op library to ship: ${library.reason}`);
  }
  if (statSync(library.path).isFile()) return library.path;
  throw new MambacError("package/library", `the op library ${library.path} is not a file`);
}
