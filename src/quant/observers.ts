/**
 * Streaming statistics of activations, in memory that does not grow with the data.
 *
 * Each takes batches of rows of `channels` float32 numbers (the last axis of the value), can be merged with another of its
 * kind, and can be written as bytes and read back (`statistic-codec.ts`). Equal batches in equal order give equal statistics. Batches must be finite; whoever runs the model checks that
 * and can say where a bad value came from.
 */

import { type Gemm, type Matrix, matrixOf, zeros } from "../linalg/matrix.js";
import { assertNever, invariant } from "../support/errors.js";
import type { StatRequest } from "./calibration.js";

export type Observer = RangeObserver | MeanAbsObserver | HistogramObserver | MomentObserver;

/** The observer for a request. `gemm` does the products of second moments. */
export function makeObserver(
  request: Pick<StatRequest, "kind" | "perChannel">,
  channels: number,
  gemm: Gemm,
): Observer {
  const width = request.perChannel ? channels : 1;
  switch (request.kind) {
    case "absmax":
    case "minmax":
      return new RangeObserver(width);
    case "meanabs":
      return new MeanAbsObserver(width);
    case "percentile":
      return new HistogramObserver(width);
    case "second-moment":
      return new MomentObserver(channels, gemm);
    default:
      return assertNever(request.kind);
  }
}

function rowsOf(rows: Float32Array, channels: number, width: number): number {
  invariant(channels >= 1 && rows.length % channels === 0, `${rows.length} numbers are no rows of ${channels}`);
  invariant(width === 1 || width === channels, `an observer of ${width} channels cannot take rows of ${channels}`);
  return rows.length / channels;
}

function sameWidth(a: { readonly width: number }, b: { readonly width: number }): void {
  invariant(a.width === b.width, `statistics of ${a.width} and ${b.width} channels cannot be merged`);
}

/** Smallest and largest value, of the tensor (width 1) or of each channel. */
export class RangeObserver {
  readonly kind = "range";
  /** [width]; +Infinity and -Infinity before the first batch. */
  readonly low: Float64Array;
  readonly high: Float64Array;

  constructor(width: number) {
    this.low = new Float64Array(width).fill(Number.POSITIVE_INFINITY);
    this.high = new Float64Array(width).fill(Number.NEGATIVE_INFINITY);
  }

  get width(): number {
    return this.low.length;
  }

  observe(rows: Float32Array, channels: number): void {
    const count = rowsOf(rows, channels, this.width);
    const [low, high] = [this.low, this.high];
    if (this.width === 1) {
      let [least, most] = [low[0]!, high[0]!];
      for (let i = 0; i < rows.length; i++) {
        least = Math.min(least, rows[i]!);
        most = Math.max(most, rows[i]!);
      }
      [low[0], high[0]] = [least, most];
      return;
    }
    for (let row = 0; row < count; row++) {
      const start = row * channels;
      for (let c = 0; c < channels; c++) {
        low[c] = Math.min(low[c]!, rows[start + c]!);
        high[c] = Math.max(high[c]!, rows[start + c]!);
      }
    }
  }

  merge(other: RangeObserver): void {
    sameWidth(this, other);
    for (let c = 0; c < this.width; c++) {
      this.low[c] = Math.min(this.low[c]!, other.low[c]!);
      this.high[c] = Math.max(this.high[c]!, other.high[c]!);
    }
  }

  /** Largest magnitudes [width]; 0 before the first batch. */
  peaks(): Float64Array {
    return this.high.map((high, c) => Math.max(high, -this.low[c]!, 0));
  }
}

/** Mean magnitude, of the tensor or of each channel. */
export class MeanAbsObserver {
  readonly kind = "meanabs";
  /** [width] */
  readonly sums: Float64Array;
  /** Numbers behind each sum. */
  count = 0;

  constructor(width: number) {
    this.sums = new Float64Array(width);
  }

  get width(): number {
    return this.sums.length;
  }

  observe(rows: Float32Array, channels: number): void {
    const count = rowsOf(rows, channels, this.width);
    if (this.width === 1) {
      let sum = 0;
      for (let i = 0; i < rows.length; i++) sum += Math.abs(rows[i]!);
      this.sums[0]! += sum;
      this.count += rows.length;
      return;
    }
    const sums = this.sums;
    for (let row = 0; row < count; row++) {
      const start = row * channels;
      for (let c = 0; c < channels; c++) sums[c]! += Math.abs(rows[start + c]!);
    }
    this.count += count;
  }

  merge(other: MeanAbsObserver): void {
    sameWidth(this, other);
    for (let c = 0; c < this.width; c++) this.sums[c]! += other.sums[c]!;
    this.count += other.count;
  }

  /** [width]; 0 before the first batch. */
  means(): Float64Array {
    return this.sums.map((sum) => (this.count === 0 ? 0 : sum / this.count));
  }
}

/** Bins of a factor of two. */
const BINS_PER_OCTAVE = 256;

/** Bits of a float32 below its bin: a bin is the exponent and the first 8 bits of the mantissa, 2^16 bins in all. */
const BELOW_BIN = 15;

/**
 * Histogram of magnitudes, of the tensor or of each channel, in 2^16 bins of ratio 1.003 or less (a bin is the leading 16
 * bits of the magnitude). Counters exist for factors of two that occurred.
 */
export class HistogramObserver {
  readonly kind = "percentile";
  readonly width: number;
  /** Numbers seen by each channel. */
  count = 0;
  /** Largest magnitudes [width]. */
  readonly peaks: Float64Array;
  /** Counters of the octaves that occurred. */
  readonly #octaves: Float64Array[] = [];
  /** Where the counters of octave o of channel c are, plus one: at c * 256 + o. */
  readonly #places: Int32Array;

  constructor(width: number) {
    this.width = width;
    this.peaks = new Float64Array(width);
    this.#places = new Int32Array(width * 256);
  }

  observe(rows: Float32Array, channels: number): void {
    rowsOf(rows, channels, this.width);
    const bits = new Uint32Array(rows.buffer, rows.byteOffset, rows.length);
    const perChannel = this.width > 1;
    for (let i = 0; i < bits.length; i++) {
      const channel = perChannel ? i % channels : 0;
      this.#add(channel, (bits[i]! & 0x7fffffff) >>> BELOW_BIN, 1);
      const magnitude = Math.abs(rows[i]!);
      if (magnitude > this.peaks[channel]!) this.peaks[channel] = magnitude;
    }
    this.count += rows.length / this.width;
  }

  #add(channel: number, bin: number, count: number): void {
    const at = channel * 256 + (bin >>> 8);
    if (this.#places[at] === 0) this.#places[at] = this.#octaves.push(new Float64Array(BINS_PER_OCTAVE));
    this.#octaves[this.#places[at]! - 1]![bin & 255]! += count;
  }

  merge(other: HistogramObserver): void {
    sameWidth(this, other);
    for (let c = 0; c < this.width; c++) {
      for (const [bin, count] of other.bins(c)) this.#add(c, bin, count);
      this.peaks[c] = Math.max(this.peaks[c]!, other.peaks[c]!);
    }
    this.count += other.count;
  }

  /** Occupied bins of a channel and their counts, ascending. */
  *bins(channel: number): Generator<readonly [bin: number, count: number]> {
    for (let octave = 0; octave < 256; octave++) {
      const place = this.#places[channel * 256 + octave]!;
      if (place === 0) continue;
      const counts = this.#octaves[place - 1]!;
      for (let i = 0; i < counts.length; i++) if (counts[i]! > 0) yield [octave * 256 + i, counts[i]!];
    }
  }

  /** Sets a histogram from its bins; the opposite of `bins`. */
  restore(channel: number, bins: Iterable<readonly [bin: number, count: number]>, peak: number): void {
    for (const [bin, count] of bins) this.#add(channel, bin, count);
    this.peaks[channel] = peak;
  }

  /**
   * For each channel the largest number of the bin that holds the given share (0 .. 1) of magnitudes: at least that share
   * is not above it, and it is at most 0.4 % above the exact percentile. Never more than the peak; 0 before the first
   * batch.
   */
  percentile(share: number): Float64Array {
    invariant(share >= 0 && share <= 1, `a share of ${share}`);
    return this.peaks.map((peak, channel) => {
      const wanted = Math.max(share * this.count, Number.MIN_VALUE);
      let seen = 0;
      for (const [bin, count] of this.bins(channel)) {
        seen += count;
        if (seen >= wanted) return Math.min(largestOf(bin), peak);
      }
      return peak;
    });
  }
}

/** The number in the middle of a histogram's bin. */
export function middleOf(bin: number): number {
  return bin === 0 ? 0 : (largestOf(bin - 1) + largestOf(bin)) / 2;
}

/** The largest float32 in a bin. */
function largestOf(bin: number): number {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, ((bin + 1) << BELOW_BIN) - 1);
  return view.getFloat32(0);
}

/** Rows multiplied at a time. */
const MOMENT_ROWS = 1024;

/**
 * Mean and second moments of rows, in float64. What is kept is the mean and the sum of (x - mean)(x - mean)ᵀ, updated
 * batch by batch, so that neither the covariance nor the raw moments suffer from cancellation.
 * Source: T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances"
 * (1979).
 */
export class MomentObserver {
  readonly kind = "second-moment";
  readonly width: number;
  /** Rows seen. */
  count = 0;
  readonly mean: Float64Array;
  /** Sum of (x - mean)(x - mean)ᵀ; its upper triangle is kept, the lower one is arbitrary. */
  readonly centred: Matrix;
  readonly #gemm: Gemm;

  constructor(width: number, gemm: Gemm) {
    this.width = width;
    this.mean = new Float64Array(width);
    this.centred = zeros(width, width);
    this.#gemm = gemm;
  }

  async observe(rows: Float32Array, channels: number): Promise<void> {
    invariant(channels === this.width, `moments of ${this.width} channels cannot take rows of ${channels}`);
    const count = rowsOf(rows, channels, channels);
    for (let start = 0; start < count; start += MOMENT_ROWS) {
      const end = Math.min(start + MOMENT_ROWS, count);
      await this.#add(rows.subarray(start * channels, end * channels), end - start);
    }
  }

  async #add(rows: Float32Array, count: number): Promise<void> {
    const width = this.width;
    const mean = new Float64Array(width);
    for (let at = 0; at < rows.length; at += width) for (let c = 0; c < width; c++) mean[c]! += rows[at + c]!;
    for (let c = 0; c < width; c++) mean[c]! /= count;
    const deviations = new Float64Array(rows.length);
    for (let at = 0; at < rows.length; at += width) {
      for (let c = 0; c < width; c++) deviations[at + c] = rows[at + c]! - mean[c]!;
    }
    const x = matrixOf(count, width, deviations);
    this.#combine(count, mean, await this.#gemm(x, x, { transposeA: true }));
  }

  #combine(count: number, mean: Float64Array, centred: Matrix): void {
    const total = this.count + count;
    if (count === 0) return;
    const width = this.width;
    const weight = (this.count * count) / total;
    const shift = mean.map((value, c) => value - this.mean[c]!);
    const [to, from] = [this.centred.data, centred.data];
    for (let i = 0; i < width; i++) {
      const factor = weight * shift[i]!;
      for (let j = i, at = i * width + i; j < width; j++, at++) to[at]! += from[at]! + factor * shift[j]!;
    }
    for (let c = 0; c < width; c++) this.mean[c]! += (shift[c]! * count) / total;
    this.count = total;
  }

  merge(other: MomentObserver): void {
    sameWidth(this, other);
    this.#combine(other.count, other.mean, other.centred);
  }

  /** Sum of x xᵀ [width, width]: the Hessian of GPTQ up to a factor. */
  rawSum(): Matrix {
    return this.#symmetric((i, j, sum) => sum + this.count * this.mean[i]! * this.mean[j]!);
  }

  /** Sample covariance [width, width]; zero for fewer than two rows. */
  covariance(): Matrix {
    return this.#symmetric((_i, _j, sum) => (this.count < 2 ? 0 : sum / (this.count - 1)));
  }

  #symmetric(value: (i: number, j: number, sum: number) => number): Matrix {
    const width = this.width;
    const result = zeros(width, width);
    for (let i = 0; i < width; i++) {
      for (let j = i; j < width; j++) {
        const entry = value(i, j, this.centred.data[i * width + j]!);
        result.data[i * width + j] = entry;
        result.data[j * width + i] = entry;
      }
    }
    return result;
  }
}
