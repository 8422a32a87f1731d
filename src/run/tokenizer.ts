/** Text to token ids and back: bytes as tokens, or a Hugging Face tokenizer.json. */

import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { Tokenizer as PackageTokenizer } from "@huggingface/tokenizers";
import { MambacError } from "../support/errors.js";

/** Turns tokens into text as they come. Bytes of an unfinished character are held back. */
export interface StreamDecoder {
  /** Text that is now certain; may be empty. */
  push(token: number): string;
  /** What is left; unfinished characters become U+FFFD. */
  flush(): string;
}

export interface Tokenizer {
  readonly kind: "bytes" | "tokenizer.json";
  /** Token ids of a text; `special` adds what the tokenizer puts around a text (default true). */
  encode(text: string, special?: boolean): number[];
  decode(tokens: readonly number[] | Uint8Array): string;
  stream(): StreamDecoder;
}

/** Ids are the bytes of the UTF-8 text. Throws `tokenizer/id` for ids above 255. */
export const byteTokenizer: Tokenizer = {
  kind: "bytes",
  encode: (text) => Array.from(new TextEncoder().encode(text)),
  decode: (tokens) => new TextDecoder().decode(Uint8Array.from(tokens, byteOf)),
  stream() {
    const decoder = new TextDecoder();
    return {
      push: (token) => decoder.decode(Uint8Array.of(byteOf(token)), { stream: true }),
      flush: () => decoder.decode(),
    };
  },
};

function byteOf(token: number): number {
  if (Number.isInteger(token) && token >= 0 && token <= 255) return token;
  throw new MambacError("tokenizer/id", `token ${token} is not a byte; does the model use another tokenizer?`);
}

/**
 * Loads a tokenizer: the word 'bytes', a tokenizer.json, or a folder that holds one (tokenizer_config.json beside it is
 * read too). Throws `tokenizer/load`.
 */
export function loadTokenizer(path: string): Tokenizer {
  if (path === "bytes") return byteTokenizer;
  const file = isFolder(path) ? join(path, "tokenizer.json") : path;
  if (!existsSync(file)) {
    throw new MambacError("tokenizer/load", `${file} does not exist; give a tokenizer.json, its folder, or 'bytes'`);
  }
  const configFile = join(dirname(file), "tokenizer_config.json");
  const config = existsSync(configFile) ? readJson(configFile) : {};
  return hubTokenizer(readJson(file), config, file);
}

/** The folder of a tokenizer that `loadTokenizer` loads; none for bytes. */
export function tokenizerFolder(path: string): string[] {
  return path === "bytes" ? [] : [folderOf(path)];
}

/** A folder itself, and that of a file. */
function folderOf(path: string): string {
  return isFolder(path) ? path : dirname(path);
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}

/** The tokenizer.json beside a model (or in a folder of models); null for bytes as tokens, or where there is none. */
export function tokenizerBeside(path: string, vocabulary: number): Tokenizer | null {
  const beside = join(folderOf(path), "tokenizer.json");
  return vocabulary !== 256 && existsSync(beside) ? loadTokenizer(beside) : null;
}

function readJson(file: string): object {
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(file, "utf8"));
  } catch (cause) {
    throw new MambacError("tokenizer/load", `${file} is not JSON`, undefined, { cause });
  }
  if (typeof value === "object" && value !== null) return value;
  throw new MambacError("tokenizer/load", `${file} holds no JSON object`);
}

/** What is used of the package, whose own types resolve in bundlers only. */
interface HubTokenizer {
  encode(text: string, options: { readonly add_special_tokens: boolean }): { readonly ids: number[] };
  decode(ids: readonly number[], options: { readonly skip_special_tokens: boolean }): string;
}

const HubTokenizer = PackageTokenizer as unknown as new (definition: object, config: object) => HubTokenizer;

/** A tokenizer from the parsed contents of tokenizer.json and tokenizer_config.json. */
export function hubTokenizer(definition: object, config: object, label: string = "tokenizer.json"): Tokenizer {
  let inner: HubTokenizer;
  try {
    inner = new HubTokenizer(definition, config);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new MambacError("tokenizer/load", `${label} cannot be used: ${reason}`, undefined, { cause });
  }
  const decode = (tokens: readonly number[] | Uint8Array): string =>
    tokens.length === 0 ? "" : inner.decode(Array.from(tokens), { skip_special_tokens: true });
  return {
    kind: "tokenizer.json",
    encode: (text, special = true) => inner.encode(text, { add_special_tokens: special }).ids,
    decode,
    stream: () => incremental(decode),
  };
}

/**
 * Decodes a short tail of tokens again and again: a token's text may depend on its neighbours (spaces, characters that
 * span tokens), so text counts only once it follows tokens that were shown before.
 */
function incremental(decode: (tokens: readonly number[]) => string): StreamDecoder {
  let tail: number[] = [];
  let shown = 0;
  const fresh = (): string => decode(tail).slice(decode(tail.slice(0, shown)).length);
  return {
    push(token) {
      tail.push(token);
      const text = fresh();
      if (text === "" || text.endsWith("\ufffd")) return "";
      tail = tail.slice(shown);
      shown = tail.length;
      return text;
    },
    flush() {
      const text = fresh();
      tail = [];
      shown = 0;
      return text;
    },
  };
}
