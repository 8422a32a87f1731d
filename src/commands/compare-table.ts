/** Compared recipes as a table, as CSV and as JSON. */

import type { ComparedRow } from "../compare.js";
import { stateText } from "../compile.js";
import { formatBytes, formatTable } from "./text-table.js";

/** `+0.12 %`. */
export function formatLoss(change: number): string {
  const text = (100 * change).toFixed(2);
  return `${text.startsWith("-") && Number(text) !== 0 ? "" : "+"}${text.replace("-0.00", "0.00")} %`;
}

/** One line a recipe. */
export function comparedTable(rows: readonly ComparedRow[]): string {
  const names =
    rows[0]?.texts.map(
      ({ text, bitsPerByte }) => `${text}, ${bitsPerByte === null ? "bits per token" : "bits per byte"}`,
    ) ?? [];
  const several = names.length > 1;
  return formatTable([
    ["recipe", ...names, "perplexity", "loss", "KL, bits", "same top", "file", "state", "integer or low-bit"],
    ...rows.map((row) => [
      row.name,
      ...row.texts.map(({ bitsPerByte, bitsPerToken, change }) => {
        const bits = (bitsPerByte ?? bitsPerToken).toFixed(4);
        return several ? `${bits} ${formatLoss(change)}` : bits;
      }),
      row.perplexity.toFixed(4),
      formatLoss(row.change),
      row.meanKlBits.toExponential(2),
      `${(100 * row.top1Agreement).toFixed(2)} %`,
      formatBytes(row.bytes),
      formatBytes(row.stateBytes),
      `${row.kernels.quantized} of ${row.kernels.projections}`,
    ]),
  ]);
}

const COLUMNS = [
  "recipe",
  "text",
  "state",
  "mode",
  "bits_per_byte",
  "bits_per_token",
  "perplexity",
  "loss",
  "kl_bits",
  "top1_agreement",
  "non_finite",
  "file_bytes",
  "state_bytes",
  "quantized_projections",
  "projections",
] as const;

/** One line a recipe and text, with a heading; numbers in full. */
export function comparedCsv(rows: readonly ComparedRow[]): string {
  const lines = rows.flatMap((row) =>
    row.texts.map((figures): (string | number)[] => [
      row.name,
      figures.text,
      stateText(row.state),
      row.mode,
      figures.bitsPerByte ?? "",
      figures.bitsPerToken,
      figures.perplexity,
      figures.change,
      figures.meanKlBits,
      figures.top1Agreement,
      figures.nonFinite,
      row.bytes,
      row.stateBytes,
      row.kernels.quantized,
      row.kernels.projections,
    ]),
  );
  return [COLUMNS, ...lines].map((line) => `${line.map(csvCell).join(",")}\n`).join("");
}

function csvCell(value: string | number): string {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The rows as plain data. */
export function comparedDocument(rows: readonly ComparedRow[]): object[] {
  return rows.map((row) => ({ ...row, kernels: { ...row.kernels, kernels: Object.fromEntries(row.kernels.kernels) } }));
}
