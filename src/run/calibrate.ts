/**
 * Calibration: streams real data through a float model and keeps statistics of its values.
 *
 * One sweep serves every request. An observer lives while its block runs; then it is handed on (to a table on disk, or to
 * whoever wants the numbers at once) and forgotten.
 */

import { createHash } from "node:crypto";
import type { Tensor } from "../ir/tensor.js";
import type { Gemm } from "../linalg/matrix.js";
import {
  type CalibrationHeader,
  type CalibrationTable,
  calibrationError,
  canonicalRequests,
  mergeHeaders,
  missingStatistic,
  requestKey,
  type StatRequest,
  tableOf,
  WHOLE,
} from "../quant/calibration.js";
import { type ObservedStatistics, observedStatistics } from "../quant/observed-statistics.js";
import { makeObserver, type Observer } from "../quant/observers.js";
import { RowSample, type SampledRows } from "../quant/row-sample.js";
import { decodeStatistic, encodeStatistic } from "../quant/statistic-codec.js";
import { EXIT, InvariantError, invariant, MambacError } from "../support/errors.js";
import { CalibrationWriter } from "./calibration-files.js";
import type { Dataset } from "./dataset.js";
import { type CallPlace, type SweepOptions, sweep } from "./sweep.js";

/** What takes rows of a value as they come. */
export interface RowObserver {
  /** Takes rows of `channels` numbers each. They are valid until the promise settles. */
  observe(rows: Float32Array, channels: number): void | Promise<void>;
}

/** Rows to keep of a value, for searches that need activations themselves. */
export interface SampleRequest {
  readonly value: string;
  /** At most this many rows of the last axis. Values with one row a token keep the same tokens. */
  readonly rows: number;
}

export interface ObserveOptions<O extends RowObserver> extends Omit<SweepOptions, "values"> {
  readonly requests: readonly StatRequest[];
  readonly samples?: readonly SampleRequest[];
  /** Seed of the samples; default that of the data. */
  readonly sampleSeed?: number;
  readonly makeObserver: (request: StatRequest, channels: number) => O;
}

/** Takes results as the blocks that make them end. */
export interface ObserveSink<O extends RowObserver> {
  statistic(request: StatRequest, observer: O): void | Promise<void>;
  sample?(value: string, rows: SampledRows): void | Promise<void>;
}

/**
 * Runs the data through the model and observes. Throws what `sweep` throws, and `calibrate/not-finite` when a requested
 * value holds NaN or infinity, `calibrate/dtype` when it is not float, `calibrate/channels` when its last axis follows the tokens.
 */
export async function observe<O extends RowObserver>(options: ObserveOptions<O>, sink: ObserveSink<O>): Promise<void> {
  const { makeObserver, samples = [] } = options;
  const requests = new Map<string, StatRequest[]>();
  for (const request of canonicalRequests(options.requests)) {
    requests.set(request.value, [...(requests.get(request.value) ?? []), request]);
  }
  const limits = new Map(samples.map(({ value, rows }) => [value, rows]));
  const observers = new Map<string, RowBuffer<O>>();
  const kept = new Map<string, RowSample>();
  const widths = new Map<string, number>();
  await sweep(
    { ...options, values: [...new Set([...requests.keys(), ...limits.keys()])] },
    {
      async value(name, tensor, place) {
        const rows = finiteFloats(name, tensor, place);
        const channels = tensor.shape.at(-1) ?? 1;
        if (rows.length === 0) return;
        const before = widths.get(name) ?? channels;
        widths.set(name, channels);
        if (before !== channels && (limits.has(name) || requests.get(name)?.some(({ perChannel }) => perChannel))) {
          throw noChannels(name);
        }
        for (const request of requests.get(name) ?? []) {
          const key = requestKey(request);
          const buffer = observers.get(key) ?? new RowBuffer(makeObserver(request, channels), batchRows(request));
          observers.set(key, buffer);
          await buffer.observe(rows, channels);
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
            const buffer = observers.get(requestKey(request));
            if (buffer === undefined) throw neverSeen(name);
            await sink.statistic(request, await buffer.finish());
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

/** Second moments cost the square of the channels for every batch, so single tokens are gathered first. */
function batchRows(request: StatRequest): number {
  return request.kind === "second-moment" ? 512 : 1;
}

/** Hands rows on in batches of a certain size. */
class RowBuffer<O extends RowObserver> {
  readonly #observer: O;
  readonly #rows: number;
  #buffer = new Float32Array(0);
  #filled = 0;
  #channels = 0;

  constructor(observer: O, rows: number) {
    this.#observer = observer;
    this.#rows = rows;
  }

  async observe(rows: Float32Array, channels: number): Promise<void> {
    this.#channels = channels;
    if (this.#rows === 1) {
      await this.#observer.observe(rows, channels);
      return;
    }
    if (this.#buffer.length === 0) this.#buffer = new Float32Array(this.#rows * channels);
    for (let at = 0; at < rows.length; ) {
      const part = rows.subarray(at, at + this.#buffer.length - this.#filled);
      this.#buffer.set(part, this.#filled);
      this.#filled += part.length;
      at += part.length;
      if (this.#filled === this.#buffer.length) await this.#flush();
    }
  }

  async finish(): Promise<O> {
    if (this.#filled > 0) await this.#flush();
    return this.#observer;
  }

  async #flush(): Promise<void> {
    await this.#observer.observe(this.#buffer.subarray(0, this.#filled), this.#channels);
    this.#filled = 0;
  }
}

function noChannels(name: string): MambacError {
  return new MambacError(
    "calibrate/channels",
    `the last axis of ${name} follows the tokens, so it has no channels; ask for statistics of the whole tensor`,
    EXIT.calibration,
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

export interface CalibrateOptions extends Omit<ObserveOptions<Observer>, "makeObserver" | "samples" | "sampleSeed"> {
  /** Products for second moments. */
  readonly gemm: Gemm;
  /** Identity of the graph the values are of. */
  readonly modelSha256: string;
  /** Version of mambac, for the header. */
  readonly version: string;
}

/** Calibrates to a table in memory. */
export async function calibrate(options: CalibrateOptions): Promise<CalibrationTable> {
  const statistics = new Map<string, Uint8Array>();
  await observeAll(options, (request, encoded) => void statistics.set(requestKey(request), encoded));
  return tableOf(calibrationHeader(options), statistics);
}

/** Calibrates to a table on disk; statistics go there block by block. */
export async function calibrateToFile(options: CalibrateOptions, path: string): Promise<CalibrationTable> {
  const writer = new CalibrationWriter(path);
  try {
    await observeAll(options, (request, encoded) => writer.add(request, encoded));
    return writer.finish(calibrationHeader(options));
  } finally {
    writer.close();
  }
}

/** Observes with the observers tables are made of. */
export function observeAll(
  options: Omit<ObserveOptions<Observer>, "makeObserver"> & { readonly gemm: Gemm },
  take: (request: StatRequest, encoded: Uint8Array) => void,
): Promise<void> {
  return observe<Observer>(
    { ...options, makeObserver: (request, channels) => makeObserver(request, channels, options.gemm) },
    { statistic: (request, observer) => take(request, encodeStatistic(observer)) },
  );
}

/** What a table made with these options is about. */
export function calibrationHeader(
  options: Pick<CalibrateOptions, "modelSha256" | "version" | "requests" | "dataset" | "window" | "decodeShare">,
): CalibrationHeader {
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

/**
 * Merges shards of one calibration to a table on disk; the order of `tables` does not matter. Throws
 * `calibration/mismatch` unless they are shards of one calibration.
 */
export function mergeToFile(tables: readonly CalibrationTable[], path: string): CalibrationTable {
  const ordered = tables.toSorted((a, b) => (a.header.shards.done[0] ?? 0) - (b.header.shards.done[0] ?? 0));
  const [first, ...rest] = ordered;
  if (first === undefined) throw calibrationError("mismatch", "there is no table to merge");
  const header = rest.reduce((merged, table) => mergeHeaders(merged, table.header), first.header);
  const writer = new CalibrationWriter(path);
  try {
    for (const request of first.requests) {
      const merged = decoded(first, request);
      for (const table of rest) mergeInto(merged, decoded(table, request));
      writer.add(request, encodeStatistic(merged));
    }
    return writer.finish(header);
  } finally {
    writer.close();
  }
}

function decoded(table: CalibrationTable, request: StatRequest): Observer {
  const bytes = table.encoded(request);
  if (bytes === null) throw missingStatistic(request, "one of the tables");
  return decodeStatistic(bytes, noGemm);
}

/** For statistics that only answer. */
const noGemm: Gemm = () => Promise.reject(new InvariantError("a stored statistic cannot go on observing"));

function mergeInto(to: Observer, from: Observer): void {
  if (to.kind === "range" && from.kind === "range") to.merge(from);
  else if (to.kind === "meanabs" && from.kind === "meanabs") to.merge(from);
  else if (to.kind === "percentile" && from.kind === "percentile") to.merge(from);
  else if (to.kind === "second-moment" && from.kind === "second-moment") to.merge(from);
  else throw calibrationError("mismatch", `a statistic is ${to.kind} in one table and ${from.kind} in another`);
}

/** Answers from a table. Throws `calibration/missing` (exit code 5) for what it lacks; `label` names it in messages. */
export function tableStatistics(table: Pick<CalibrationTable, "encoded">, label: string): ObservedStatistics {
  return observedStatistics(
    (request) => {
      const bytes = table.encoded(request);
      return bytes === null ? null : decodeStatistic(bytes, noGemm);
    },
    (request) => missingStatistic(request, label),
  );
}
