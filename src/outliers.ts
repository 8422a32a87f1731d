/** How uneven the activations in front of projections are, as a model is and after transforms that keep its function. */

import { COMPLETE, LOWERING, statisticsSource } from "./calibration-tables.js";
import type { Candidate } from "./compare.js";
import { type CompileOptions, compilePrepared, type Prepared } from "./compile.js";
import type { Model } from "./ir/graph.js";
import type { StatRequest } from "./quant/calibration.js";
import type { ObservedStatistics } from "./quant/observed-statistics.js";
import { type LinearSite, sitesOf } from "./rewrite/sites.js";
import type { NamedTable } from "./run/statistics.js";
import { invariant, MambacError } from "./support/errors.js";

export interface OutlierRow {
  /** Name of the transform. */
  readonly transform: string;
  readonly layer: string;
  readonly role: LinearSite["role"];
  readonly channels: number;
  /** Largest magnitude of any channel, and of the median channel. */
  readonly absMax: number;
  readonly medianAbsMax: number;
  /** Channels whose largest magnitude is more than six standard deviations above the mean of all (Mamba-PTQ). */
  readonly outlierChannels: number;
  /** 3 for a normal distribution. */
  readonly kurtosis: number;
  /** Largest over smallest mean square of a channel; channels that never move are left out. */
  readonly spread: number;
}

export interface OutlierOptions {
  readonly prepared: Prepared;
  readonly inputs: readonly string[];
  readonly transforms: readonly Candidate[];
  /** Null where there are tables only. */
  readonly calibration: NonNullable<CompileOptions["calibration"]> | null;
  readonly tables?: readonly NamedTable[];
  readonly threads?: number;
  readonly onProgress?: (message: string) => void;
}

export interface OutlierReport {
  /** One row a transform, layer and kind of projection. */
  readonly rows: readonly OutlierRow[];
  /** Transforms that the tables, without data, do not know enough of. */
  readonly leftOut: readonly string[];
}

/**
 * Looks at the model after each transform: a candidate with a float state that rounds nothing. Statistics come from the
 * tables where these have them, else from the data. Throws what compiling and calibrating throw; tables that serve no
 * transform at all are `calibration/missing` (exit code 5).
 */
export async function outlierReport(options: OutlierOptions): Promise<OutlierReport> {
  const rows: OutlierRow[] = [];
  const leftOut: string[] = [];
  let lacking: MambacError | null = null;
  for (const transform of options.transforms) {
    options.onProgress?.(`measuring activations: ${transform.name}`);
    try {
      rows.push(...(await rowsOf(options, transform)));
    } catch (cause) {
      if (!(cause instanceof MambacError) || cause.code !== "calibration/missing") throw cause;
      lacking ??= cause;
      leftOut.push(transform.name);
    }
  }
  if (rows.length === 0 && lacking !== null) throw lacking;
  return { rows, leftOut };
}

async function rowsOf(options: OutlierOptions, transform: Candidate): Promise<OutlierRow[]> {
  const { prepared, inputs, calibration, tables = [], threads = 1 } = options;
  let model: Model = prepared.main;
  let complete: Model | null = null;
  let over = false;
  await compilePrepared(
    prepared,
    {
      inputs,
      output: null,
      state: transform.state,
      threads,
      ...(calibration === null ? {} : { calibration }),
      tables,
      afterPass: (name, made) => {
        over ||= name === LOWERING;
        if (!over) model = made;
        if (name === COMPLETE) complete = made;
      },
    },
    transform.passes,
  );
  const sites = new Map<string, LinearSite>();
  for (const site of sitesOf(model).linears) {
    if (site.weightSide === "right" && !sites.has(site.input)) sites.set(site.input, site);
  }
  const requests = [...sites.keys()].flatMap((value): StatRequest[] => [
    { value, kind: "absmax", perChannel: true },
    { value, kind: "percentile", perChannel: false },
    { value, kind: "second-moment", perChannel: true },
  ]);
  const collect = statisticsSource({
    calibration,
    tables,
    recorder: null,
    complete: () => complete,
    inputs,
    executable: transform.passes.executable,
    threads,
  });
  using statistics = await collect(model, requests, OUTLIERS);
  invariant(statistics !== null, "outliers are of all the data");
  return [...sites].map(([value, site]) => rowOf(transform.name, value, site, statistics));
}

/** What messages call the reader of these statistics, in the place of a pass. */
const OUTLIERS = "outliers";

function rowOf(transform: string, value: string, site: LinearSite, statistics: ObservedStatistics): OutlierRow {
  const peaks = statistics.channelAbsMax(value);
  const { size, matrix } = statistics.secondMoment(value);
  const squares = Float64Array.from({ length: size }, (_, c) => matrix[c * size + c] ?? 0).filter(
    (square) => square > 0,
  );
  return {
    transform,
    layer: site.layer,
    role: site.role,
    channels: size,
    absMax: peaks.reduce((most, peak) => Math.max(most, peak), 0),
    medianAbsMax: peaks.toSorted()[Math.floor(peaks.length / 2)] ?? 0,
    outlierChannels: countOutliers(peaks),
    kurtosis: statistics.kurtosis(value),
    spread: squares.length === 0 ? 1 : extreme(squares, Math.max) / extreme(squares, Math.min),
  };
}

function countOutliers(peaks: Float64Array): number {
  const mean = peaks.reduce((sum, peak) => sum + peak, 0) / peaks.length;
  const deviation = Math.sqrt(peaks.reduce((sum, peak) => sum + (peak - mean) ** 2, 0) / peaks.length);
  return peaks.filter((peak) => peak > mean + 6 * deviation).length;
}

function extreme(values: Float64Array, of: (a: number, b: number) => number): number {
  return values.reduce((best, value) => of(best, value));
}
