/** Statistics for passes, collected by running calibration data through the model as it stands. */

import type { Model } from "../ir/graph.js";
import { requestKey, type StatKind, type StatRequest } from "../quant/calibration.js";
import type { Statistics } from "../quant/statistics.js";
import { InvariantError } from "../support/errors.js";
import { type Observer, observe } from "./calibrate.js";
import type { Dataset } from "./dataset.js";

/** Runs the data through an executable model with f32 states and keeps what was asked for. */
export async function collectStatistics(
  model: Model,
  requests: readonly StatRequest[],
  dataset: Dataset,
  options: {
    readonly threads?: number;
    readonly boundaries?: readonly string[];
    readonly onProgress?: (message: string) => void;
  } = {},
): Promise<Statistics> {
  const found = new Map<string, Summary>();
  await observe<Summary>(
    {
      model,
      dataset,
      requests,
      makeObserver: (request, channels) => summaryFor(request, channels),
      ...(options.threads === undefined ? {} : { threads: options.threads }),
      ...(options.boundaries === undefined ? {} : { boundaries: options.boundaries }),
      onProgress: ({ block, blocks, sequence, sequences }) =>
        options.onProgress?.(`calibrating: block ${block + 1} of ${blocks}, sequence ${sequence} of ${sequences}`),
    },
    {
      statistic: (request, observer) => {
        found.set(requestKey(request), observer);
      },
    },
  );
  const get = <S extends Summary>(
    value: string,
    kind: StatKind,
    perChannel: boolean,
    type: new (channels: number) => S,
  ): S => {
    const summary = found.get(requestKey({ value, kind, perChannel }));
    if (!(summary instanceof type)) throw new InvariantError(`no ${kind} of ${value} was requested`);
    return summary;
  };
  return {
    channelAbsMax: (value) => get(value, "absmax", true, ChannelPeaks).peaks,
    channelMeanAbs: (value) => get(value, "meanabs", true, ChannelMeans).means(),
    absMax: (value) => get(value, "absmax", false, Peak).peak,
    percentile: (value, share) => get(value, "percentile", false, Histogram).percentile(share),
    secondMoment: (value) => get(value, "second-moment", true, SecondMoment).mean(),
  };
}

type Summary = Observer;

function summaryFor(request: StatRequest, channels: number): Summary {
  switch (request.kind) {
    case "absmax":
    case "minmax":
      return request.perChannel ? new ChannelPeaks(channels) : new Peak();
    case "meanabs":
      return new ChannelMeans(channels);
    case "percentile":
      return new Histogram();
    default:
      return new SecondMoment(channels);
  }
}

class Peak implements Observer {
  peak = 0;

  observe(rows: Float32Array): void {
    for (const value of rows) this.peak = Math.max(this.peak, Math.abs(value));
  }
}

class ChannelPeaks implements Observer {
  readonly peaks: Float64Array;

  constructor(channels: number) {
    this.peaks = new Float64Array(channels);
  }

  observe(rows: Float32Array, channels: number): void {
    for (let i = 0; i < rows.length; i++) {
      const channel = i % channels;
      this.peaks[channel] = Math.max(this.peaks[channel] ?? 0, Math.abs(rows[i] ?? 0));
    }
  }
}

class ChannelMeans implements Observer {
  readonly #sums: Float64Array;
  #rows = 0;

  constructor(channels: number) {
    this.#sums = new Float64Array(channels);
  }

  observe(rows: Float32Array, channels: number): void {
    for (let i = 0; i < rows.length; i++)
      this.#sums[i % channels] = (this.#sums[i % channels] ?? 0) + Math.abs(rows[i] ?? 0);
    this.#rows += rows.length / channels;
  }

  means(): Float64Array {
    return this.#sums.map((sum) => sum / Math.max(1, this.#rows));
  }
}

/** Magnitudes in bins of equal ratio, 256 an octave, so that memory is fixed and a percentile is exact to 0.3 %. */
class Histogram implements Observer {
  static readonly #perOctave = 256;
  static readonly #lowest = -40;
  readonly #bins: Float64Array = new Float64Array(Histogram.#perOctave * 80);
  #zeros = 0;
  #count = 0;
  #peak = 0;

  observe(rows: Float32Array): void {
    for (const value of rows) {
      const magnitude = Math.abs(value);
      this.#count += 1;
      this.#peak = Math.max(this.#peak, magnitude);
      const bin = Math.floor((Math.log2(magnitude) - Histogram.#lowest) * Histogram.#perOctave);
      if (magnitude === 0 || bin < 0) this.#zeros += 1;
      else {
        const at = Math.min(bin, this.#bins.length - 1);
        this.#bins[at] = (this.#bins[at] ?? 0) + 1;
      }
    }
  }

  percentile(share: number): number {
    let seen = this.#zeros;
    const wanted = share * this.#count;
    if (share >= 1) return this.#peak;
    for (let bin = 0; bin < this.#bins.length; bin++) {
      seen += this.#bins[bin] ?? 0;
      if (seen >= wanted) return Math.min(this.#peak, 2 ** ((bin + 1) / Histogram.#perOctave + Histogram.#lowest));
    }
    return this.#peak;
  }
}

class SecondMoment implements Observer {
  readonly #size: number;
  readonly #sums: Float64Array;
  #rows = 0;

  constructor(channels: number) {
    this.#size = channels;
    this.#sums = new Float64Array(channels * channels);
  }

  observe(rows: Float32Array, channels: number): void {
    const sums = this.#sums;
    for (let start = 0; start < rows.length; start += channels) {
      for (let i = 0; i < channels; i++) {
        const factor = rows[start + i] ?? 0;
        if (factor === 0) continue;
        const base = i * channels;
        for (let j = i; j < channels; j++) sums[base + j] = (sums[base + j] ?? 0) + factor * (rows[start + j] ?? 0);
      }
    }
    this.#rows += rows.length / channels;
  }

  mean(): { readonly size: number; readonly count: number; readonly matrix: Float64Array } {
    const size = this.#size;
    const matrix = new Float64Array(size * size);
    for (let i = 0; i < size; i++) {
      for (let j = i; j < size; j++) {
        const value = (this.#sums[i * size + j] ?? 0) / Math.max(1, this.#rows);
        matrix[i * size + j] = value;
        matrix[j * size + i] = value;
      }
    }
    return { size, count: this.#rows, matrix };
  }
}
