/**
 * Puts packages into their folders, whole or not at all.
 *
 * A package is written into a hidden folder, read back, and gets its name in one step: a new folder is renamed, and in a
 * folder that is there already all files take their names together. Files that are not of the package stay.
 */

import {
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmdirSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { type Move, moveIntoPlace } from "../onnx/move-into-place.js";
import { readModel } from "../onnx/read.js";
import { TemporaryFiles } from "../onnx/temporary-files.js";
import { writeModel } from "../onnx/write.js";
import { readSignature } from "../run/signature.js";
import { MambacError } from "../support/errors.js";
import { fileProblem } from "../support/file-problem.js";
import type { PackagePlan, PackageSource } from "./plan.js";

export interface PlannedPackage {
  /** Where it goes; folders on the way are made. */
  readonly folder: string;
  readonly plan: PackagePlan;
}

export interface WrittenPackage {
  readonly folder: string;
  /** Relative to the folder, sorted. */
  readonly files: readonly { readonly path: string; readonly bytes: number }[];
}

/** Refuses a place that is taken, before work is spent on it. Throws `package/exists`. */
export function requireFree(folder: string, force: boolean): void {
  const stats = statSync(folder, { throwIfNoEntry: false });
  if (stats === undefined) return;
  if (!stats.isDirectory()) throw new MambacError("package/exists", `${folder} is a file; name a folder`);
  if (force || readdirSync(folder).length === 0) return;
  throw new MambacError(
    "package/exists",
    `the folder ${folder} is not empty; name another one, or replace the package in it with --force`,
  );
}

/**
 * Writes all packages under temporary names, checks them, and then puts one after the other into its place. Throws
 * `package/exists`, `package/write` for errors of the file system and `package/check` for a model that does not read back.
 */
export async function writePackages(
  source: PackageSource,
  packages: readonly PlannedPackage[],
  force: boolean,
): Promise<WrittenPackage[]> {
  for (const { folder } of packages) requireFree(folder, force);
  const temporary = new TemporaryFiles();
  const made: string[] = [];
  try {
    const staged: string[] = [];
    for (const planned of packages) staged.push(await stage(source, planned, temporary, made));
    return packages.map(({ folder, plan }, at) => put(staged[at] ?? folder, folder, plan, temporary, made));
  } catch (cause) {
    temporary.removeAll();
    for (const folder of made.toReversed()) removeEmpty(folder);
    if (!(cause instanceof Error && "syscall" in cause)) throw cause;
    throw new MambacError("package/write", `cannot write the package: ${fileProblem(cause)}`, undefined, { cause });
  } finally {
    temporary.close();
  }
}

/** Writes one package under a temporary name on the disk of its place; gives that folder. */
async function stage(
  source: PackageSource,
  { folder, plan }: PlannedPackage,
  temporary: TemporaryFiles,
  made: string[],
): Promise<string> {
  makeFolders(dirname(resolve(folder)), made);
  const root = temporary.folderBeside(existsSync(folder) ? join(folder, "package") : resolve(folder));
  const place = (path: string): string => {
    const full = join(root, path);
    mkdirSync(dirname(full), { recursive: true });
    return full;
  };
  for (const { path, text } of plan.texts) flushed(place(path), (full) => writeFileSync(full, text));
  for (const { path, from } of plan.copies) {
    flushed(place(path), (full) => copyFileSync(from, full, constants.COPYFILE_FICLONE));
    if (statSync(join(root, path)).size !== statSync(from).size) {
      throw new MambacError("package/check", `the copy of ${from} has another size; is the disk full?`);
    }
  }
  const model = place(plan.model.path);
  await writeModel(source.model, model, {
    externalData: source.external ? "always" : "never",
    dataSuffix: plan.model.dataSuffix,
  });
  const read = readSignature(readModel(model).model);
  if (JSON.stringify(read) !== JSON.stringify(source.signature)) {
    throw new MambacError("package/check", `the model of the package for ${folder} does not read back as it was`);
  }
  return root;
}

function flushed(path: string, write: (path: string) => void): void {
  write(path);
  const handle = openSync(path, "r+");
  try {
    fsyncSync(handle);
  } finally {
    closeSync(handle);
  }
}

/** Puts a package into its place. Synchronous, so that no signal comes between. */
function put(
  staged: string,
  folder: string,
  plan: PackagePlan,
  temporary: TemporaryFiles,
  made: string[],
): WrittenPackage {
  const files = filesUnder(staged).map((path) => ({ path, bytes: statSync(join(staged, path)).size }));
  if (!existsSync(folder)) {
    renameSync(staged, folder);
    temporary.keep(staged);
    return { folder, files };
  }
  const moves = files.map(({ path }): Move => ({ from: join(staged, path), to: join(folder, path) }));
  const taken = moves.find(({ to }) => statSync(to, { throwIfNoEntry: false })?.isDirectory());
  if (taken !== undefined) throw new MambacError("package/exists", `${taken.to} is a folder, not a file of a package`);
  for (const { to } of moves) makeFolders(dirname(to), made);
  const data = `${plan.model.path}${plan.model.dataSuffix}`;
  moveIntoPlace(moves, files.some(({ path }) => path === data) ? [] : [join(folder, data)], temporary);
  return { folder, files };
}

/** Makes a folder and those above it, and remembers which were not there. */
function makeFolders(folder: string, made: string[]): void {
  if (existsSync(folder)) return;
  makeFolders(dirname(folder), made);
  mkdirSync(folder);
  made.push(folder);
}

function removeEmpty(folder: string): void {
  try {
    rmdirSync(folder);
  } catch {
    // Something else came to lie there; the error that led here is worth more.
  }
}

/** Files of a folder and the folders in it: relative paths with forward slashes, sorted. */
function filesUnder(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((path) => statSync(join(folder, path)).isFile())
    .map((path) => path.replaceAll("\\", "/"))
    .sort();
}
