/** Choosing the next token from logits. */

import { MambacError } from "../support/errors.js";
import type { Random } from "../support/random.js";

export interface SamplingOptions {
  /** 0 (default): always the best token; otherwise logits are divided by it. */
  readonly temperature?: number;
  /** Only the k best tokens; default all. */
  readonly topK?: number;
  /** Only the smallest set of best tokens whose probabilities reach this sum (at least one); default 1, all. */
  readonly topP?: number;
}

/** Throws `run/sampling` for options without a meaning. */
export function checkSampling(options: SamplingOptions): void {
  const { temperature = 0, topK = 1, topP = 1 } = options;
  if (!(temperature >= 0 && Number.isFinite(temperature))) {
    throw new MambacError("run/sampling", `temperature must be 0 or more, not ${temperature}`);
  }
  if (!Number.isInteger(topK) || topK < 1) {
    throw new MambacError("run/sampling", `top-k must be a positive integer, not ${topK}`);
  }
  if (!(topP > 0 && topP <= 1)) throw new MambacError("run/sampling", `top-p must be in (0, 1], not ${topP}`);
}

/** Index of the largest logit; the lowest index of equals. Throws `run/nan` when there is a NaN. */
export function argmax(logits: Float32Array): number {
  let best = 0;
  for (let i = 0; i < logits.length; i++) {
    const value = logits[i]!;
    if (Number.isNaN(value)) throw new MambacError("run/nan", "the model gave a logit that is not a number");
    if (value > logits[best]!) best = i;
  }
  return best;
}

/**
 * One token id. Greedy takes no random number; sampling takes exactly one, so sequences repeat for one seed.
 * Top-k is applied before top-p, both to the distribution after temperature. Throws `run/nan` for a NaN logit.
 */
export function sampleToken(logits: Float32Array, options: SamplingOptions, random: Random): number {
  checkSampling(options);
  const best = argmax(logits);
  const temperature = options.temperature ?? 0;
  if (temperature === 0) return best;
  const top = logits[best]!;
  const weights = Float64Array.from(logits, (value) => Math.exp((value - top) / temperature));
  const candidates = nucleus(topCandidates(weights, options.topK ?? weights.length), weights, options.topP ?? 1);
  let total = 0;
  for (const id of candidates) total += weights[id]!;
  let left = random.uniform() * total;
  for (const id of candidates) {
    left -= weights[id]!;
    if (left < 0) return id;
  }
  return best;
}

/** The k heaviest ids in order of id; of equal weights at the edge the lowest ids. */
function topCandidates(weights: Float64Array, k: number): number[] {
  const ids: number[] = [];
  if (k >= weights.length) {
    for (let i = 0; i < weights.length; i++) ids.push(i);
    return ids;
  }
  const threshold = weights.slice().sort()[weights.length - k]!;
  let room = k;
  for (const weight of weights) if (weight > threshold) room -= 1;
  for (let i = 0; i < weights.length; i++) {
    if (weights[i]! > threshold) ids.push(i);
    else if (weights[i] === threshold && room > 0) {
      ids.push(i);
      room -= 1;
    }
  }
  return ids;
}

function nucleus(candidates: readonly number[], weights: Float64Array, p: number): readonly number[] {
  if (p >= 1) return candidates;
  let total = 0;
  for (const id of candidates) total += weights[id]!;
  // All ids lighter than this weigh less than 1 - p together, so none of them can be needed.
  const floor = (total * (1 - p)) / candidates.length;
  const sorted = candidates.filter((id) => weights[id]! >= floor).sort((a, b) => weights[b]! - weights[a]! || a - b);
  let sum = 0;
  const count = sorted.findIndex((id) => {
    sum += weights[id]!;
    return sum >= p * total;
  });
  return count < 0 ? sorted : sorted.slice(0, count + 1);
}
