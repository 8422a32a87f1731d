/** Narrower ranges that lose the peaks and round the rest more finely. */

import { codeRange, exactStep, type Ranges, type Weight } from "./ranges.js";
import { ROUND } from "./rounding-loops.js";
import type { ScaleLayout } from "./scale-layout.js";
import type { Clip, WeightScheme } from "./scheme.js";

type Search = Extract<Clip, { kind: "mse" }>;

/**
 * For each scale the share of its full range with the least sum |error|^exponent; of equals, the largest share.
 * Source: the grid search of the GPTQ reference quantizer.
 *
 * What values lose beyond the ends of a grid only grows as the grid shrinks, so a scale is done as soon as that loss alone
 * exceeds the best total: most of the candidates are never tried, and the result is the same.
 */
export function clippedRanges(
  weight: Weight,
  layout: ScaleLayout,
  full: Ranges,
  scheme: Pick<WeightScheme, "bits" | "zero">,
  search: Search,
): Ranges {
  const { count } = layout;
  const best = new Float64Array(count).fill(Number.POSITIVE_INFINITY);
  const shares = new Float64Array(count).fill(1);
  const done = new Uint8Array(count);
  const trial = new Trial(weight.data, layout, scheme, search.exponent);
  const candidates = Math.floor((1 - search.smallest) / search.step + 1e-9) + 1;
  let open = count;
  for (let candidate = 0; candidate < candidates && open > 0; candidate++) {
    const share = 1 - candidate * search.step;
    trial.run(full, share, done);
    for (let i = 0; i < count; i++) {
      if (done[i] === 1) continue;
      const total = trial.total(i);
      if (total < best[i]!) {
        best[i] = total;
        shares[i] = share;
      } else if (trial.lostBeyondEnds(i) > best[i]!) {
        done[i] = 1;
        open -= 1;
      }
    }
  }
  return {
    low: full.low.map((value, i) => value * shares[i]!),
    high: full.high.map((value, i) => value * shares[i]!),
  };
}

/** Cells of the table on [0, 1]: linear interpolation is then good to 1e-6 of the mean, and much faster than pow. */
const RESOLUTION = 2048;

/** Errors of all scales for one share. */
class Trial {
  readonly #data: Float32Array;
  readonly #layout: ScaleLayout;
  readonly #scheme: Pick<WeightScheme, "bits" | "zero">;
  readonly #exponent: number;
  readonly #table: Float64Array;
  /** Per scale: 1 / step (0 for an empty range), zero point, and sums of |error in steps|^exponent. */
  readonly #inverse: Float64Array;
  readonly #zeros: Float64Array;
  readonly #error: Float64Array;
  readonly #beyond: Float64Array;

  constructor(data: Float32Array, layout: ScaleLayout, scheme: Pick<WeightScheme, "bits" | "zero">, exponent: number) {
    this.#data = data;
    this.#layout = layout;
    this.#scheme = scheme;
    this.#exponent = exponent;
    this.#table = Float64Array.from({ length: RESOLUTION + 2 }, (_, i) => (i / RESOLUTION) ** exponent);
    this.#inverse = new Float64Array(layout.count);
    this.#zeros = new Float64Array(layout.count);
    this.#error = new Float64Array(layout.count);
    this.#beyond = new Float64Array(layout.count);
  }

  total(scale: number): number {
    return this.#absolute(this.#error[scale]!, scale);
  }

  /** A lower bound of the total of every smaller share. */
  lostBeyondEnds(scale: number): number {
    return this.#absolute(this.#beyond[scale]!, scale);
  }

  #absolute(sum: number, scale: number): number {
    return sum === 0 ? 0 : sum * this.#inverse[scale]! ** -this.#exponent;
  }

  run(full: Ranges, share: number, done: Uint8Array): void {
    const { bits, zero } = this.#scheme;
    const [lowest, highest] = codeRange(bits, zero.kind);
    for (let i = 0; i < done.length; i++) {
      const low = share * full.low[i]!;
      const step = exactStep(low, share * full.high[i]!, bits, zero);
      this.#inverse[i] = step === 0 ? 0 : 1 / step;
      this.#zeros[i] = zero.kind === "symmetric" ? 0 : Math.min(-low * this.#inverse[i]! + ROUND - ROUND, highest);
      this.#error[i] = 0;
      this.#beyond[i] = 0;
    }
    // A rounded zero point may move the ends of a smaller grid outwards, by at most one step of this one.
    const margin = zero.kind === "symmetric" ? 0 : 1;
    this.#layout.forEachRun((start, length, scale, step) => {
      if (step === 1) this.#addRow(start, length, scale, lowest, highest, margin, done);
      else if (done[scale] === 0) this.#addRun(start, length, scale, lowest, highest, margin);
    });
  }

  #addRow(
    start: number,
    length: number,
    scale: number,
    lowest: number,
    highest: number,
    margin: number,
    done: Uint8Array,
  ): void {
    const [data, inverse, zeros, table, error] = [this.#data, this.#inverse, this.#zeros, this.#table, this.#error];
    for (let i = 0; i < length; i++) {
      const at = scale + i;
      if (done[at] === 1) continue;
      const value = data[start + i]! * inverse[at]! + zeros[at]!;
      if (value >= lowest && value <= highest) {
        const position = Math.abs(value - (value + ROUND - ROUND)) * RESOLUTION;
        const cell = position | 0;
        const left = table[cell]!;
        error[at]! += left + (table[cell + 1]! - left) * (position - cell);
      } else {
        this.#addBeyond(value < lowest ? lowest - value : value - highest, at, margin);
      }
    }
  }

  #addRun(start: number, length: number, scale: number, lowest: number, highest: number, margin: number): void {
    const [data, inverse, zero, table] = [this.#data, this.#inverse[scale]!, this.#zeros[scale]!, this.#table];
    let error = 0;
    for (let i = start; i < start + length; i++) {
      const value = data[i]! * inverse + zero;
      if (value >= lowest && value <= highest) {
        const position = Math.abs(value - (value + ROUND - ROUND)) * RESOLUTION;
        const cell = position | 0;
        const left = table[cell]!;
        error += left + (table[cell + 1]! - left) * (position - cell);
      } else {
        this.#addBeyond(value < lowest ? lowest - value : value - highest, scale, margin);
      }
    }
    this.#error[scale]! += error;
  }

  #addBeyond(distance: number, scale: number, margin: number): void {
    const term = distance ** this.#exponent;
    this.#error[scale]! += term;
    this.#beyond[scale]! += margin === 0 ? term : Math.max(distance - margin, 0) ** this.#exponent;
  }
}
