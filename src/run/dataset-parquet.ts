/** Parquet files, as the Hugging Face Hub serves data sets: one document a row, read a row group at a time. */

import { brotliDecompressSync, gunzipSync } from "node:zlib";
import {
  type AsyncBuffer,
  type Compressors,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
} from "hyparquet";
import { invariant } from "../support/errors.js";
import { type DataFile, dataError, type TokenSource } from "./dataset-source.js";
import { ID_FIELDS, recordDocument, TEXT_FIELDS } from "./dataset-text.js";
import type { Tokenizer } from "./tokenizer.js";

/** Snappy is built into the reader; Node 20 has no Zstandard. */
const COMPRESSORS: Compressors = {
  GZIP: (input) => gunzipSync(input),
  BROTLI: (input) => brotliDecompressSync(input),
};

/** A column of ids or text, found by its name. Throws `dataset/parquet` when the file is damaged or packed otherwise. */
export async function parquetSource(
  file: DataFile,
  settings: { readonly tokenizer: Tokenizer | null; readonly vocabulary: number; readonly length: number },
): Promise<TokenSource> {
  const buffer: AsyncBuffer = {
    byteLength: file.size,
    slice: (start, end = file.size) => file.read(start, end - start).slice().buffer,
  };
  const metadata = await readable(file.path, () => parquetMetadataAsync(buffer));
  const names = parquetSchema(metadata).children.map((child) => child.element.name);
  const column = [...ID_FIELDS, ...TEXT_FIELDS].find((field) => names.includes(field));
  if (column === undefined) {
    throw dataError(
      "field",
      `${file.path} has the columns ${names.join(", ")}; one of ${[...TEXT_FIELDS, ...ID_FIELDS].join(", ")} is needed`,
    );
  }
  const parts = rowParts(metadata);
  let cached: { readonly group: number; readonly rows: readonly Record<string, unknown>[] } | null = null;
  const groupRows = async (part: RowPart): Promise<readonly Record<string, unknown>[]> => {
    if (cached?.group === part.group) return cached.rows;
    const { groupStart: rowStart, groupEnd: rowEnd } = part;
    const rows = await readable(file.path, () =>
      parquetReadObjects({ file: buffer, metadata, columns: [column], rowStart, rowEnd, compressors: COMPRESSORS }),
    );
    cached = { group: part.group, rows };
    return rows;
  };
  return {
    joined: !ID_FIELDS.includes(column),
    blocks: parts.length,
    read: async (block) => {
      const part = parts[block];
      invariant(part, `there is no block ${block}`);
      const { start, end, groupStart } = part;
      const rows = await groupRows(part);
      return rows
        .slice(start - groupStart, end - groupStart)
        .map((row, at) => recordDocument(row, settings, `${file.path}, row ${start + at}`));
    },
  };
}

/** Some rows of one row group; the file unpacks only whole groups. */
interface RowPart {
  readonly group: number;
  readonly groupStart: number;
  readonly groupEnd: number;
  readonly start: number;
  readonly end: number;
}

/** Rows of a block: few enough that samples come from all over the file, enough not to unpack it again for each row. */
const PART_ROWS = 16;

function rowParts(metadata: FileMetaData): RowPart[] {
  const parts: RowPart[] = [];
  let groupStart = 0;
  metadata.row_groups.forEach(({ num_rows: rows }, group) => {
    const groupEnd = groupStart + Number(rows);
    for (let start = groupStart; start < groupEnd; start += PART_ROWS) {
      parts.push({ group, groupStart, groupEnd, start, end: Math.min(start + PART_ROWS, groupEnd) });
    }
    groupStart = groupEnd;
  });
  return parts;
}

async function readable<T>(path: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    const hint = /ZSTD|LZ4|LZO|compression/i.test(reason) ? "; write it with Snappy or gzip compression" : "";
    throw dataError("parquet", `cannot read ${path} as Parquet: ${reason}${hint}`, { cause });
  }
}
