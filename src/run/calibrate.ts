/**
 * Calibration: streams real data through a float model and keeps statistics of its values.
 *
 * One sweep serves every request. An observer lives while its block runs; then it is handed on (to a table on disk, or to
 * whoever wants the numbers at once) and forgotten.
 */

import { createHash } from "node:crypto";
import type { Tensor } from "../ir/tensor.js";
import {
  type CalibrationHeader,
  type CalibrationTable,
  canonicalRequests,
  requestKey,
  type StatRequest,
  tableOf,
  WHOLE,
} from "../quant/calibration.js";
import { RowSample, type SampledRows } from "../quant/row-sample.js";
import { EXIT, invariant, MambacError } from "../support/errors.js";
import { CalibrationWriter } from "./calibration-files.js";
import type { Dataset } from "./dataset.js";
import { type CallPlace, type SweepOptions, sweep } from "./sweep.js";

/** A streaming statistic of fixed memory. */
export interface Observer {
  /** Takes rows of `channels` numbers each. They are valid until the promise settles. */
  observe(rows: Float32Array, channels: number): void | Promise<void>;
}

/** Rows to keep of a value, for searches that need activations themselves. */
export interface SampleRequest {
  readonly value: string;
  /** At most this many rows of the last axis. Values with one row a token keep the same tokens. */
  readonly rows: number;
}

export interface ObserveOptions<O extends Observer> extends Omit<SweepOptions, "values"> {
  readonly requests: readonly StatRequest[];
  readonly samples?: readonly SampleRequest[];
  /** Seed of the samples; default that of the data. */
  readonly sampleSeed?: number;
  readonly makeObserver: (request: StatRequest, channels: number) => O;
}

/** Takes results as the blocks that make them end. */
export interface ObserveSink<O extends Observer> {
  statistic(request: StatRequest, observer: O): void | Promise<void>;
  sample?(value: string, rows: SampledRows): void | Promise<void>;
}

/**
 * Runs the data through the model and observes. Throws what `sweep` throws, and `calibrate/not-finite` when a requested
 * value holds NaN or infinity, `calibrate/dtype` when it is not float.
 */
export async function observe<O extends Observer>(options: ObserveOptions<O>, sink: ObserveSink<O>): Promise<void> {
  const { makeObserver, samples = [] } = options;
  const requests = new Map<string, StatRequest[]>();
  for (const request of canonicalRequests(options.requests)) {
    requests.set(request.value, [...(requests.get(request.value) ?? []), request]);
  }
  const limits = new Map(samples.map(({ value, rows }) => [value, rows]));
  const observers = new Map<string, O>();
  const kept = new Map<string, RowSample>();
  await sweep(
    { ...options, values: [...new Set([...requests.keys(), ...limits.keys()])] },
    {
      async value(name, tensor, place) {
        const rows = finiteFloats(name, tensor, place);
        const channels = tensor.shape.at(-1) ?? 1;
        if (rows.length === 0) return;
        for (const request of requests.get(name) ?? []) {
          const key = requestKey(request);
          const observer = observers.get(key) ?? makeObserver(request, channels);
          observers.set(key, observer);
          await observer.observe(rows, channels);
        }
        const limit = limits.get(name);
        if (limit === undefined) return;
        const sample = kept.get(name) ?? new RowSample(limit, options.sampleSeed ?? options.dataset.description.seed);
        kept.set(name, sample);
        // Values with several rows a token number them in the order of the whole sequence.
        sample.observe(rows, channels, place.sequence, (place.start * (rows.length / channels)) / place.length);
      },
      async blockDone(names) {
        for (const name of names) {
          for (const request of requests.get(name) ?? []) {
            const observer = observers.get(requestKey(request));
            if (observer === undefined) throw neverSeen(name);
            await sink.statistic(request, observer);
            observers.delete(requestKey(request));
          }
          const sample = kept.get(name);
          if (sample !== undefined) await sink.sample?.(name, sample.rows());
          kept.delete(name);
        }
      },
    },
  );
}

function neverSeen(name: string): MambacError {
  return new MambacError("calibrate/empty", `the value ${name} never had an element`, EXIT.calibration);
}

function finiteFloats(name: string, tensor: Tensor, place: CallPlace): Float32Array {
  if (tensor.dtype !== "f32") {
    throw new MambacError(
      "calibrate/dtype",
      `the value ${name} is ${tensor.dtype}; only f32 values are calibrated`,
      EXIT.calibration,
    );
  }
  const bytes = tensor.bytes();
  const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  for (let i = 0; i < values.length; i++) {
    // Only NaN and infinities differ from themselves after subtraction.
    if (values[i]! - values[i]! === 0) continue;
    throw new MambacError(
      "calibrate/not-finite",
      `the value ${name} holds ${values[i]} in sequence ${place.sequence}, tokens ${place.start} to ` +
        `${place.start + place.length - 1}: the float model overflows on these data, so they cannot calibrate it`,
      EXIT.calibration,
    );
  }
  return values;
}

/** An observer that tables can keep. */
export interface StoredObserver extends Observer {
  encode(): Uint8Array;
}

export interface CalibrateOptions extends ObserveOptions<StoredObserver> {
  /** Identity of the graph the values are of. */
  readonly modelSha256: string;
  /** Version of mambac, for the header. */
  readonly version: string;
}

/** Calibrates to a table in memory. */
export async function calibrate(options: CalibrateOptions): Promise<CalibrationTable> {
  const statistics = new Map<string, Uint8Array>();
  await observe(options, {
    statistic: (request, observer) => void statistics.set(requestKey(request), observer.encode()),
  });
  return tableOf(calibrationHeader(options), statistics);
}

/** Calibrates to a table on disk; statistics go there block by block. */
export async function calibrateToFile(options: CalibrateOptions, path: string): Promise<CalibrationTable> {
  const writer = new CalibrationWriter(path);
  try {
    await observe(options, { statistic: (request, observer) => writer.add(request, observer.encode()) });
    return writer.finish(calibrationHeader(options));
  } finally {
    writer.close();
  }
}

/** What a table made with these options is about. */
export function calibrationHeader(options: CalibrateOptions): CalibrationHeader {
  const { modelSha256, version, requests, dataset, window = null, decodeShare = null } = options;
  const { sha256, tokensSha256, random, sequenceLength, seed, sequences, tokens } = dataset.description;
  const wanted = JSON.stringify([canonicalRequests(requests).map(requestKey), window, decodeShare]);
  return {
    version,
    modelSha256,
    dataSha256: sha256,
    tokensSha256,
    requestsSha256: createHash("sha256").update(wanted).digest("hex"),
    random,
    sequenceLength,
    seed,
    sequences,
    tokens,
    shards: shardsOf(dataset),
  };
}

function shardsOf({ shard }: Dataset): CalibrationHeader["shards"] {
  invariant(shard.index >= 1 && shard.index <= shard.count, "shards count from 1");
  return shard.count === 1 ? WHOLE : { count: shard.count, done: [shard.index] };
}
