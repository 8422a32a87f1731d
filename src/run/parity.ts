/** How far two models, or two ways to feed one model, are apart on the same tokens. */

import { concatenate, type Logits, logitsRow } from "./logits.js";
import type { LoadedPackage, Tokens } from "./stateful-model.js";

export interface Difference {
  /** Largest difference of a logit, over the largest expected logit; Infinity where one is not a number. */
  readonly relative: number;
  /** Root mean square of the differences, over that of the expected logits. */
  readonly rms: number;
  /** Share of positions where both have the same best token. */
  readonly top1: number;
  /** Positions compared. */
  readonly positions: number;
}

/** Compares position by position; where one side has only the last positions, those are compared. */
export function compareLogits(actual: Logits, expected: Logits): Difference {
  const length = Math.min(actual.length, expected.length);
  const same = actual.batch === expected.batch && actual.vocabulary === expected.vocabulary && length > 0;
  if (!same) return { relative: Number.POSITIVE_INFINITY, rms: Number.POSITIVE_INFINITY, top1: 0, positions: 0 };
  let [difference, scale, squares, power, hits] = [0, 0, 0, 0, 0];
  for (let b = 0; b < actual.batch; b++) {
    for (let t = 0; t < length; t++) {
      const x = logitsRow(actual, b, actual.length - length + t);
      const y = logitsRow(expected, b, expected.length - length + t);
      let [bestX, bestY] = [0, 0];
      for (const [i, wanted] of y.entries()) {
        const value = x[i] ?? Number.NaN;
        const delta = value - wanted;
        // NaN compares false with everything, so it has to be caught by name.
        difference = Number.isNaN(delta) ? Number.POSITIVE_INFINITY : Math.max(difference, Math.abs(delta));
        scale = Math.max(scale, Math.abs(wanted));
        squares += delta * delta;
        power += wanted * wanted;
        if (value > (x[bestX] ?? 0)) bestX = i;
        if (wanted > (y[bestY] ?? 0)) bestY = i;
      }
      if (bestX === bestY) hits += 1;
    }
  }
  const positions = actual.batch * length;
  const rms = Math.sqrt(squares / power);
  return {
    relative: difference === 0 ? 0 : difference / scale,
    rms: difference === 0 ? 0 : Number.isNaN(rms) ? Number.POSITIVE_INFINITY : rms,
    top1: hits / positions,
    positions,
  };
}

/** The worse of each figure. */
export function worstOf(differences: readonly Difference[]): Difference | null {
  const [first, ...rest] = differences;
  if (first === undefined) return null;
  return rest.reduce(
    (worst, one) => ({
      relative: Math.max(worst.relative, one.relative),
      rms: Math.max(worst.rms, one.rms),
      top1: Math.min(worst.top1, one.top1),
      positions: worst.positions + one.positions,
    }),
    first,
  );
}

/**
 * Feeds sequences from zero state in calls that end at `cuts` (ascending, inside the sequence) and joins the logits.
 * Where a call answers for its last token only, the result holds the last position.
 */
export async function feedInParts(
  model: LoadedPackage,
  rows: readonly Tokens[],
  cuts: readonly number[],
): Promise<Logits> {
  const length = rows[0]?.length ?? 0;
  const bounds = [0, ...cuts, length];
  const parts: Logits[] = [];
  model.reset();
  for (const [i, end] of bounds.slice(1).entries()) {
    const start = bounds[i] ?? 0;
    const part = await model.prefill(rows.map((row) => row.slice(start, end)));
    // The next call may write into the same memory.
    parts.push({ ...part, data: part.data.slice() });
    if (part.length !== end - start) parts.splice(0, parts.length - 1);
  }
  return concatenate(parts);
}

/** The cuts of a run token by token. */
export function everyCut(length: number): number[] {
  return Array.from({ length: Math.max(0, length - 1) }, (_, i) => i + 1);
}
