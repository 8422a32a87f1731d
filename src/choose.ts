/** Which of measured recipes to take under a budget. */

import type { ComparedRow } from "./compare.js";

export interface Budget {
  /** Largest loss against float: 0.01 is one percent more bits; null for any. */
  readonly loss: number | null;
  /** Most bytes of the file and the state of one sequence; null for any. */
  readonly bytes: number | null;
}

export interface Choice {
  readonly row: ComparedRow;
  readonly why: string;
}

/** What a model takes: its file, and the state of one sequence. */
export function bytesOf({ bytes, stateBytes }: Pick<ComparedRow, "bytes" | "stateBytes">): number {
  return bytes + stateBytes;
}

/**
 * With a limit on the loss the smallest that keeps it (and the other limit); with a limit on the bytes alone the one with
 * the least loss. Ties go to the lesser loss, then to the earlier row. Null where none keeps the budget.
 */
export function choose(rows: readonly ComparedRow[], budget: Budget): Choice | null {
  const fits = rows.filter(
    (row) =>
      Number.isFinite(row.change) &&
      row.change <= (budget.loss ?? Number.POSITIVE_INFINITY) &&
      bytesOf(row) <= (budget.bytes ?? Number.POSITIVE_INFINITY),
  );
  const bySize = (a: ComparedRow, b: ComparedRow): number => bytesOf(a) - bytesOf(b) || a.change - b.change;
  const byLoss = (a: ComparedRow, b: ComparedRow): number => a.change - b.change || bytesOf(a) - bytesOf(b);
  const [row] = fits.toSorted(budget.loss === null ? byLoss : bySize);
  if (row === undefined) return null;
  const of = `${fits.length} of ${rows.length} keep the budget`;
  return {
    row,
    why:
      budget.loss === null
        ? `the least loss of those that are small enough (${of})`
        : `the smallest whose loss is small enough (${of})`,
  };
}
