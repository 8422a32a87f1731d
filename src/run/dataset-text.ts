/** Text as calibration data: plain files and JSON lines, tokenized on demand. */

import { checkedIds, type DataFile, type Document, dataError, type TokenSource } from "./dataset-source.js";
import type { Tokenizer } from "./tokenizer.js";

/** What text needs to become sequences. */
export interface TextSettings {
  readonly tokenizer: Tokenizer;
  readonly vocabulary: number;
  /** Tokens of a sequence. */
  readonly length: number;
}

/**
 * Texts are tokenized in parts, which end at line breaks where there are any. Parts are what the seed chooses among, so they
 * are of a few sequences each; long enough for the seams between them to be rare.
 */
const PART_SEQUENCES = 4;
const TOKEN_BYTES = 4;
const LEAST_PART_BYTES = 1 << 11;

const NEWLINE = 10;

/**
 * A plain text file. With bytes as tokens it falls into sequences directly; otherwise parts of it are tokenized on
 * demand and joined. Hashes the file on the way.
 */
export function textSource(file: DataFile, settings: TextSettings): { source: TokenSource; sha256: string } {
  const { tokenizer, vocabulary, length } = settings;
  const where = (): string => file.path;
  if (tokenizer.kind === "bytes") {
    const read = (block: number): Document => {
      const start = block * length;
      return () => checkedIds(file.read(start, Math.min(length, file.size - start)), vocabulary, where);
    };
    const source: TokenSource = {
      joined: false,
      blocks: Math.ceil(file.size / length),
      read: (block) => Promise.resolve([read(block)]),
    };
    // Any bytes can be tokens of such a model, but hardly those of text with two or four bytes a character.
    if (isWide(file.read(0, Math.min(WIDE_PROBE, file.size)))) throw notUtf8(file.path, null);
    const sha256 = file.sha256();
    return { source, sha256 };
  }
  const cuts = [0];
  const partBytes = Math.max(LEAST_PART_BYTES, PART_SEQUENCES * TOKEN_BYTES * length);
  const sha256 = file.sha256((bytes, offset) => {
    for (let i = 0; i < bytes.length; i++) {
      const since = offset + i - (cuts.at(-1) ?? 0);
      // Without line breaks a part ends before some character, never inside one.
      if (since >= partBytes && (bytes[i - 1] === NEWLINE || (since >= 2 * partBytes && (bytes[i]! & 0xc0) !== 0x80)))
        cuts.push(offset + i);
    }
  });
  if (file.size > 0) cuts.push(file.size);
  const source: TokenSource = {
    joined: true,
    blocks: cuts.length - 1,
    read: (block) => {
      const [start = 0, end = 0] = cuts.slice(block, block + 2);
      // Only the first part starts a document.
      const document: Document = () =>
        checkedIds(
          tokenizer.encode(decodeText(file.read(start, end - start), file.path), block === 0),
          vocabulary,
          where,
        );
      return Promise.resolve([document]);
    },
  };
  return { source, sha256 };
}

function decodeText(bytes: Uint8Array, label: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw notUtf8(label, cause);
  }
}

/** Bytes looked at to tell UTF-16 and UTF-32 by their many zeros. */
const WIDE_PROBE = 4096;

function isWide(bytes: Uint8Array): boolean {
  return 4 * bytes.filter((byte) => byte === 0).length > bytes.length;
}

function notUtf8(label: string, cause: unknown): Error {
  return dataError("encoding", `${label} is not UTF-8 text; convert it first, or give token ids (.npy)`, { cause });
}

/** JSON lines with `text`, `prompt`, `messages` or token ids in each. Hashes the file on the way. */
export function jsonLinesSource(
  file: DataFile,
  settings: Omit<TextSettings, "tokenizer"> & { readonly tokenizer: Tokenizer | null },
): { source: TokenSource; sha256: string } {
  const ends: number[] = [];
  const sha256 = file.sha256((bytes, offset) => {
    for (let at = bytes.indexOf(NEWLINE); at >= 0; at = bytes.indexOf(NEWLINE, at + 1)) ends.push(offset + at);
  });
  if (ends.at(-1) !== file.size - 1) ends.push(file.size);
  const line = (at: number): string => {
    const start = at === 0 ? 0 : (ends[at - 1] ?? 0) + 1;
    return decodeText(file.read(start, (ends[at] ?? 0) - start), `${file.path}, line ${at + 1}`);
  };
  const source: TokenSource = {
    joined: !firstRecordHasIds(ends.length, line, file.path),
    blocks: file.size === 0 ? 0 : ends.length,
    read: (block) => {
      const text = line(block);
      if (text.trim() === "") return Promise.resolve([]);
      const label = `${file.path}, line ${block + 1}`;
      return Promise.resolve([recordDocument(parseRecord(text, label), settings, label)]);
    },
  };
  return { source, sha256 };
}

function firstRecordHasIds(lines: number, line: (at: number) => string, path: string): boolean {
  for (let at = 0; at < lines; at++) {
    const text = line(at);
    if (text.trim() !== "") return idsOf(parseRecord(text, `${path}, line ${at + 1}`)) !== null;
  }
  return false;
}

function parseRecord(text: string, label: string): Readonly<Record<string, unknown>> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw dataError("json", `${label} is not JSON`, { cause });
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return { ...value };
  throw dataError("json", `${label} is not a JSON object`);
}

/** Fields that hold token ids, and fields that hold text, by preference. */
export const ID_FIELDS: readonly string[] = ["input_ids", "token_ids", "tokens"];
export const TEXT_FIELDS: readonly string[] = ["text", "prompt", "messages", "content"];

/** Documents are kept apart by an empty line. */
const SEPARATOR = "\n\n";

/** The document in one record of JSON lines or Parquet. Throws `dataset/field` when it has none. */
export function recordDocument(
  record: Readonly<Record<string, unknown>>,
  settings: { readonly tokenizer: Tokenizer | null; readonly vocabulary: number },
  label: string,
): Document {
  const ids = idsOf(record);
  if (ids !== null) return () => checkedIds(ids, settings.vocabulary, () => label);
  const text = textOf(record, label);
  const { tokenizer } = settings;
  if (tokenizer === null) throw needsTokenizer(label, settings.vocabulary);
  return () =>
    text === "" ? new Int32Array(0) : checkedIds(tokenizer.encode(text + SEPARATOR), settings.vocabulary, () => label);
}

/** Text came, but nothing says which tokens it is made of. */
export function needsTokenizer(label: string, vocabulary: number): Error {
  return dataError(
    "tokenizer",
    `${label} is text, and the model has ${vocabulary} tokens; give its tokenizer.json (--tokenizer)`,
  );
}

function idsOf(record: Readonly<Record<string, unknown>>): ArrayLike<number | bigint> | null {
  for (const field of ID_FIELDS) {
    const value = record[field];
    if (ArrayBuffer.isView(value) && "length" in value) return value as unknown as ArrayLike<number | bigint>;
    if (Array.isArray(value)) return value as readonly (number | bigint)[];
  }
  return null;
}

function textOf(record: Readonly<Record<string, unknown>>, label: string): string {
  for (const field of TEXT_FIELDS) {
    const value = record[field];
    if (value === undefined || value === null) continue;
    const text = field === "messages" ? messagesText(value) : value;
    if (typeof text === "string") return text;
    throw dataError(
      "field",
      `${label}: the field ${field} is not ${field === "messages" ? "a list of messages" : "text"}`,
    );
  }
  throw dataError(
    "field",
    `${label} has the fields ${Object.keys(record).join(", ") || "none"}; one of ${[...TEXT_FIELDS, ...ID_FIELDS].join(", ")} is needed`,
  );
}

/** Contents one after the other, other than text left out; no chat template is applied. Null without any text. */
function messagesText(value: unknown): string | null {
  if (!Array.isArray(value)) return null;
  const texts = value.flatMap((message: unknown) => {
    const content = fieldOf(message, "content");
    const parts: readonly unknown[] = Array.isArray(content) ? content : [content];
    return parts.map((part) => (typeof part === "string" ? part : fieldOf(part, "text")));
  });
  const strings = texts.filter((text) => typeof text === "string");
  return strings.length === 0 ? null : strings.join("\n");
}

function fieldOf(value: unknown, name: string): unknown {
  return typeof value === "object" && value !== null ? (value as Readonly<Record<string, unknown>>)[name] : undefined;
}
