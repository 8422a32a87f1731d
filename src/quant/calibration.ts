/**
 * Calibration tables: statistics of the values of one float graph over one set of data. Read-only; what they are about is
 * said by hashes, so that a table of another model or other data is never used by accident.
 */

import { EXIT, invariant, MambacError } from "../support/errors.js";

export const STAT_KINDS = ["absmax", "minmax", "meanabs", "percentile", "second-moment"] as const;

/** `percentile` is a histogram, from which any percentile can be asked; `second-moment` is the sum of x x^T over rows. */
export type StatKind = (typeof STAT_KINDS)[number];

/** A statistic of one value. Channels are the last axis; `second-moment` is always over channels. */
export interface StatRequest {
  readonly value: string;
  readonly kind: StatKind;
  readonly perChannel: boolean;
  /** In tables, the hash of the graph the value is of, where that is not the float graph: passes change values. */
  readonly graph?: string;
}

/** What a table is about, and how it was made. Equal headers and equal numbers go together. */
export interface CalibrationHeader {
  /** Version of mambac. */
  readonly version: string;
  /** Hash of the float graph and its weights. */
  readonly modelSha256: string;
  /** Hash of the data files. */
  readonly dataSha256: string;
  /** Hash of the token ids that were drawn from them. */
  readonly tokensSha256: string;
  /** Hash of the requests and of how sequences were cut into calls. */
  readonly requestsSha256: string;
  /** The data were made up. */
  readonly random: boolean;
  readonly sequenceLength: number;
  readonly seed: number;
  /** Sequences and tokens drawn, of every shard. */
  readonly sequences: number;
  readonly tokens: number;
  readonly shards: ShardSet;
}

/** The shards a table covers, by number from 1, ascending. A whole table covers 1 of 1. */
export interface ShardSet {
  readonly count: number;
  readonly done: readonly number[];
}

/** Statistics by request, encoded as `encodeStatistic` made them. */
export interface CalibrationTable {
  readonly header: CalibrationHeader;
  /** In canonical order, without repetition. */
  readonly requests: readonly StatRequest[];
  /** Encoded statistic, or null when the table does not have it. */
  encoded(request: StatRequest): Uint8Array | null;
}

/** Text that orders and identifies requests. */
export function requestKey({ value, kind, perChannel, graph }: StatRequest): string {
  return JSON.stringify(graph === undefined ? [value, kind, perChannel] : [value, kind, perChannel, graph]);
}

/** The requests without repetition, in the order tables have them. */
export function canonicalRequests(requests: readonly StatRequest[]): StatRequest[] {
  const byKey = new Map<string, StatRequest>();
  for (const { value, kind, perChannel, graph } of requests) {
    const request = requestOf(value, kind, kind === "second-moment" ? true : perChannel, graph);
    byKey.set(requestKey(request), request);
  }
  return [...byKey].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, request]) => request);
}

/** A table over statistics in memory. */
export function tableOf(header: CalibrationHeader, statistics: ReadonlyMap<string, Uint8Array>): CalibrationTable {
  const requests = canonicalRequests([...statistics.keys()].map(parseKey));
  return { header, requests, encoded: (request) => statistics.get(requestKey(request)) ?? null };
}

function parseKey(key: string): StatRequest {
  const [value, kind, perChannel, graph] = JSON.parse(key) as [string, StatKind, boolean, string?];
  return requestOf(value, kind, perChannel, graph);
}

/** A request of the float graph, or of another graph. */
export function requestOf(value: string, kind: StatKind, perChannel: boolean, graph: string | undefined): StatRequest {
  return graph === undefined ? { value, kind, perChannel } : { value, kind, perChannel, graph };
}

/** What a table must be about to be used. Parts left out are not checked. */
export interface Expectation {
  readonly modelSha256?: string;
  readonly tokensSha256?: string;
}

/**
 * Refuses a table that does not fit (exit code 5): `calibration/stale` for another model or other data,
 * `calibration/incomplete` for a table that lacks shards. `label` names the table in messages.
 */
export function requireFresh(table: CalibrationTable, expected: Expectation, label: string): void {
  const { header } = table;
  const { modelSha256, tokensSha256 } = expected;
  if (modelSha256 !== undefined && modelSha256 !== header.modelSha256) {
    throw calibrationError(
      "stale",
      `${label} was made for another model, or by a version of mambac that sees it differently (its graph ` +
        `${header.modelSha256.slice(0, 12)}, by mambac ${header.version}; this graph ${modelSha256.slice(0, 12)}); calibrate again`,
    );
  }
  if (tokensSha256 !== undefined && tokensSha256 !== header.tokensSha256) {
    throw calibrationError("stale", `${label} was made from other data, or drawn from them otherwise; calibrate again`);
  }
  const missing = missingShards(header.shards);
  if (missing.length > 0) {
    throw calibrationError(
      "incomplete",
      `${label} lacks shard ${missing.join(", ")} of ${header.shards.count}; make it and merge them (mambac calibrate merge)`,
    );
  }
}

/** A statistic that the table does not have. */
export function missingStatistic(request: StatRequest, label: string): MambacError {
  const what = `${request.kind}${request.perChannel ? " by channel" : ""}`;
  return calibrationError("missing", `${label} has no ${what} of the value ${request.value}; calibrate again with it`);
}

/** An error about calibration tables: exit code 5. */
export function calibrationError(code: string, message: string, options?: ErrorOptions): MambacError {
  return new MambacError(`calibration/${code}`, message, EXIT.calibration, options);
}

function missingShards({ count, done }: ShardSet): number[] {
  return Array.from({ length: count }, (_, at) => at + 1).filter((shard) => !done.includes(shard));
}

/**
 * The header of two shards merged; a complete set of shards counts as whole. Throws `calibration/mismatch` unless both
 * are shards of one calibration that do not overlap.
 */
export function mergeHeaders(a: CalibrationHeader, b: CalibrationHeader): CalibrationHeader {
  const facts: readonly (readonly [keyof CalibrationHeader, string])[] = [
    ["version", "versions of mambac"],
    ["modelSha256", "models"],
    ["dataSha256", "data files"],
    ["tokensSha256", "sequences (length, number, seed or tokenizer)"],
    ["requestsSha256", "requests"],
    ["random", "data"],
    ["sequenceLength", "sequence lengths"],
    ["seed", "seeds"],
    ["sequences", "numbers of sequences"],
    ["tokens", "numbers of tokens"],
  ];
  const different = facts.filter(([key]) => a[key] !== b[key]).map(([, what]) => what);
  if (a.shards.count !== b.shards.count) different.push("numbers of shards");
  if (different.length > 0) {
    throw calibrationError("mismatch", `the tables cannot be merged: they are of different ${different.join(", ")}`);
  }
  const common = a.shards.done.filter((shard) => b.shards.done.includes(shard));
  if (common.length > 0) {
    throw calibrationError(
      "mismatch",
      `the tables cannot be merged: both hold shard ${common.join(", ")} of ${a.shards.count}`,
    );
  }
  const done = [...a.shards.done, ...b.shards.done].sort((x, y) => x - y);
  invariant(done.length <= a.shards.count, "more shards than there are");
  return { ...a, shards: done.length === a.shards.count ? WHOLE : { count: a.shards.count, done } };
}

export const WHOLE: ShardSet = { count: 1, done: [1] };
