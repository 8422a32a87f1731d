/**
 * Which precision each part of a model gets, so that size and loss together are as small as can be. Losses of parts are
 * taken to add up, which holds well while each is small.
 */

import { invariant } from "../support/errors.js";

/** What one precision costs a part. */
export interface PrecisionCost {
  readonly bytes: number;
  readonly loss: number;
}

/** `bytes`: least loss in at most so many bytes; `loss`: fewest bytes for at most so much loss. */
export interface PrecisionBudget {
  readonly kind: "bytes" | "loss";
  readonly most: number;
}

interface Mix extends PrecisionCost {
  readonly last: number;
  readonly before: Mix | null;
}

/** Mixes kept between two parts; above it the ones whose neighbours are nearest in size are dropped. */
const KEPT = 8192;

/**
 * For each part the index of its precision: the best mix under the budget, exactly, as long as fewer than 8192 mixes are
 * worth keeping (then nearly so). Null when no mix fits. Of equals, the smaller; of equal size, the one with less loss.
 */
export function choosePrecisions(
  parts: readonly (readonly PrecisionCost[])[],
  budget: PrecisionBudget,
): readonly number[] | null {
  let mixes: readonly Mix[] = [{ bytes: 0, loss: 0, last: -1, before: null }];
  for (const costs of parts) {
    invariant(costs.length > 0, "a part without precisions to choose from");
    const next: Mix[] = [];
    for (const before of mixes) {
      costs.forEach(({ bytes, loss }, last) => {
        invariant(bytes >= 0 && !Number.isNaN(loss), `a precision of ${bytes} bytes and a loss of ${loss}`);
        next.push({ bytes: before.bytes + bytes, loss: before.loss + loss, last, before });
      });
    }
    mixes = thinned(worthKeeping(next));
  }
  // Ascending in size, descending in loss.
  const fitting = mixes.filter((mix) => mix[budget.kind] <= budget.most);
  const best = budget.kind === "bytes" ? fitting.at(-1) : fitting[0];
  if (best === undefined) return null;
  const chosen: number[] = [];
  for (let mix: Mix = best; mix.before !== null; mix = mix.before) chosen.unshift(mix.last);
  return chosen;
}

/** The mixes that no other beats in both size and loss, by size. */
function worthKeeping(mixes: readonly Mix[]): Mix[] {
  const sorted = [...mixes].sort((a, b) => a.bytes - b.bytes || a.loss - b.loss);
  let least = Number.POSITIVE_INFINITY;
  return sorted.filter(({ loss }) => {
    if (!(loss < least)) return false;
    least = loss;
    return true;
  });
}

/** At most `KEPT` mixes, spread evenly; the smallest and the best stay. */
function thinned(mixes: readonly Mix[]): readonly Mix[] {
  if (mixes.length <= KEPT) return mixes;
  const step = (mixes.length - 1) / (KEPT - 1);
  return Array.from({ length: KEPT }, (_, at) => mixes[Math.round(at * step)]!);
}
