/** The table of layers that `compile` and `inspect` print. */

import type { LayerRow } from "../compile.js";
import type { Remark } from "../rewrite/pass.js";
import { formatChange, formatError, formatTable } from "./text-table.js";

/** A row of the table; compiled files hold no proof, so theirs have no error. */
export type TableRow = Omit<LayerRow, "error"> & { readonly error: number | null };

/** The rows for people. */
export function formatLayers(rows: readonly TableRow[]): string {
  return formatTable([
    ["layer", "kind", "form", "proof error", "sizes", "state", "bytes a sequence"],
    ...rows.map((row) => [
      row.layer,
      row.kind,
      row.form,
      formatError(row.error),
      row.sizes,
      row.states.map(({ past, type }) => (past === "" ? "none" : `${past} ${type}`)).join(", "),
      row.kind === "attention" ? "grows" : formatChange(row.bytesBefore, row.bytesAfter),
    ]),
  ]);
}

/** The row as it appears in a JSON document. */
export interface LayerDocument {
  readonly layer: string;
  readonly kind: string;
  readonly form: string;
  /** Largest relative error of the proof; null where none was run. */
  readonly proofError: number | null;
  readonly sizes: string;
  readonly states: LayerRow["states"];
  readonly stateBytesBefore: number;
  readonly stateBytesAfter: number;
}

export function layerDocument(row: TableRow): LayerDocument {
  const { layer, kind, form, sizes, states } = row;
  const proofError = row.error !== null && Number.isFinite(row.error) ? row.error : null;
  return {
    layer,
    kind,
    form,
    proofError,
    sizes,
    states,
    stateBytesBefore: row.bytesBefore,
    stateBytesAfter: row.bytesAfter,
  };
}

/** Bytes of one sequence's state over all layers. */
export function stateTotals(rows: readonly TableRow[]): { readonly before: number; readonly after: number } {
  return {
    before: rows.reduce((sum, row) => sum + row.bytesBefore, 0),
    after: rows.reduce((sum, row) => sum + row.bytesAfter, 0),
  };
}

/** The totals line of states; attention caches are left out. */
export function formatStateTotal(rows: readonly TableRow[]): string {
  const { before, after } = stateTotals(rows);
  const caches = rows.some((row) => row.kind === "attention") ? ", and attention caches that grow" : "";
  return `${formatChange(before, after)} a sequence${caches}`;
}

/** Remarks and warnings, one paragraph each. */
export function formatRemarks(remarks: readonly Remark[], warnings: readonly string[]): string {
  const lines = [
    ...remarks.map(({ pass, kind, where, message }) => `${kind} (${pass}) ${where}: ${message}`),
    ...warnings.map((warning) => `warning: ${warning}`),
  ];
  return lines.length === 0 ? "" : `\n${lines.map((line) => `${line}\n`).join("")}`;
}
