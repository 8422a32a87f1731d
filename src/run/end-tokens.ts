/** The tokens that end a text, as the files beside a model or its tokenizer name them. */

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { jsonFileProblem } from "../support/file-problem.js";
import type { Tokenizer } from "./tokenizer.js";

export interface EndTokens {
  /** One at least. */
  readonly ids: readonly number[];
  /** The file that names them. */
  readonly path: string;
}

/** Files that name them, the one that is about generating first. */
const FILES = ["generation_config.json", "config.json", "tokenizer_config.json"] as const;

/**
 * What the first file says that names any: `eos_token_id`, a number or a list, or in a tokenizer_config.json the text
 * `eos_token`, where it is one token. Folders are looked into in order; null where none of their files names one. Files
 * that cannot be read are told and passed over: a text can be continued without them.
 */
export function endTokens(
  folders: readonly string[],
  tokenizer: Tokenizer,
  onNotice: (message: string) => void,
): EndTokens | null {
  for (const folder of new Set(folders)) {
    for (const name of FILES) {
      const path = join(folder, name);
      if (!existsSync(path)) continue;
      const ids = idsIn(path, tokenizer, onNotice);
      if (ids.length > 0) return { ids, path };
    }
  }
  return null;
}

function idsIn(path: string, tokenizer: Tokenizer, onNotice: (message: string) => void): number[] {
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(path, "utf8"));
  } catch (cause) {
    onNotice(`${path} is not asked for the end of texts: ${jsonFileProblem(cause)}`);
    return [];
  }
  const byId = fieldOf(value, "eos_token_id");
  const listed: readonly unknown[] = Array.isArray(byId) ? byId : [byId];
  const ids = listed.filter((id): id is number => typeof id === "number" && Number.isSafeInteger(id) && id >= 0);
  if (ids.length > 0) return ids;
  // As text, or as what `added_tokens` are written like.
  const token = fieldOf(value, "eos_token");
  const text = typeof token === "string" ? token : fieldOf(token, "content");
  if (typeof text !== "string") return [];
  const [id, ...others] = tokenizer.encode(text, false);
  return id === undefined || others.length > 0 ? [] : [id];
}

function fieldOf(value: unknown, key: string): unknown {
  return typeof value === "object" && value !== null ? (value as Readonly<Record<string, unknown>>)[key] : undefined;
}
