/** Tokenizer and configuration files of a model folder, which every runtime wants beside the graph. */

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { MambacError } from "../support/errors.js";
import { fileProblem, jsonFileProblem } from "../support/file-problem.js";

/** What is copied; anything else in the folder is not of the tokenizer. */
const NAMES: readonly string[] = [
  "added_tokens.json",
  "chat_template.jinja",
  "chat_template.json",
  "config.json",
  "generation_config.json",
  "merges.txt",
  "special_tokens_map.json",
  "tokenizer.json",
  "tokenizer.model",
  "tokenizer_config.json",
  "vocab.json",
  "vocab.txt",
];

export interface SideFiles {
  readonly folder: string;
  /** Names of the files that are there, sorted. */
  readonly names: readonly string[];
  /** config.json; null where there is none. */
  readonly config: Readonly<Record<string, unknown>> | null;
  /** generation_config.json; null where there is none. */
  readonly generation: Readonly<Record<string, unknown>> | null;
}

/** Looks into a folder. Throws `package/tokenizer` when it holds nothing of a tokenizer or a file of it is no JSON object. */
export function readSideFiles(folder: string): SideFiles {
  let present: readonly string[];
  try {
    present = readdirSync(folder);
  } catch (cause) {
    throw problem(`cannot read the folder ${folder}: ${fileProblem(cause)}`, cause);
  }
  const names = NAMES.filter((name) => present.includes(name));
  if (names.length === 0) {
    throw problem(`${folder} holds no tokenizer and no configuration: expected some of ${NAMES.join(", ")}`);
  }
  const json = (name: string): SideFiles["config"] => (names.includes(name) ? readObject(join(folder, name)) : null);
  return { folder, names, config: json("config.json"), generation: json("generation_config.json") };
}

/** Copies of all of them, or of all but `except`, into the root of a package. */
export function sideCopies(
  files: SideFiles | null,
  except: string | null = null,
): { readonly path: string; readonly from: string }[] {
  if (files === null) return [];
  return files.names.filter((name) => name !== except).map((name) => ({ path: name, from: join(files.folder, name) }));
}

function readObject(path: string): Readonly<Record<string, unknown>> {
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(path, "utf8"));
  } catch (cause) {
    throw problem(`cannot read ${path}: ${jsonFileProblem(cause)}`, cause);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw problem(`cannot read ${path}: it is JSON, but not an object`);
  }
  return { ...value };
}

function problem(message: string, cause?: unknown): MambacError {
  return new MambacError("package/tokenizer", message, undefined, { cause });
}
