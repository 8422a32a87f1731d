/** How uneven the activations in front of projections are, as a model is and after transforms that keep its function. */

import { statisticsOf } from "./calibration.js";
import type { Candidate } from "./compare.js";
import { type CompileOptions, compilePrepared, type Prepared } from "./compile.js";
import type { Model } from "./ir/graph.js";
import type { StatRequest } from "./quant/calibration.js";
import { semanticOps } from "./rewrite/semantic.js";
import { type LinearSite, sitesOf } from "./rewrite/sites.js";

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

/**
 * One row a transform, layer and kind of projection. A transform is a candidate with a float state that rounds nothing. Throws
 * what compiling and calibrating throw.
 */
export async function outlierRows(options: {
  readonly prepared: Prepared;
  readonly inputs: readonly string[];
  readonly transforms: readonly Candidate[];
  readonly calibration: NonNullable<CompileOptions["calibration"]>;
  readonly threads?: number;
  readonly onProgress?: (message: string) => void;
}): Promise<OutlierRow[]> {
  const rows: OutlierRow[] = [];
  for (const transform of options.transforms) {
    options.onProgress?.(`measuring activations: ${transform.name}`);
    rows.push(...(await rowsOf(options, transform)));
  }
  return rows;
}

async function rowsOf(options: Parameters<typeof outlierRows>[0], transform: Candidate): Promise<OutlierRow[]> {
  const { prepared, inputs, calibration, threads = 1 } = options;
  let raised: Model | null = null;
  await compilePrepared(
    prepared,
    {
      inputs,
      output: null,
      state: transform.state,
      threads,
      calibration,
      afterPass: (_name, model) => {
        if (semanticOps(model.graph.nodes).length > 0) raised = model;
      },
    },
    transform.passes,
  );
  const model: Model = raised ?? prepared.main;
  const sites = new Map<string, LinearSite>();
  for (const site of sitesOf(model).linears) {
    if (site.weightSide === "right" && !sites.has(site.input)) sites.set(site.input, site);
  }
  const requests = [...sites.keys()].flatMap((value): StatRequest[] => [
    { value, kind: "absmax", perChannel: true },
    { value, kind: "percentile", perChannel: false },
    { value, kind: "second-moment", perChannel: true },
  ]);
  const runs = { calibration, inputs, threads, executable: transform.passes.executable };
  using statistics = await statisticsOf(runs, model, requests);
  return [...sites].map(([value, site]) => {
    const peaks = statistics.channelAbsMax(value);
    const { size, matrix } = statistics.secondMoment(value);
    const squares = Float64Array.from({ length: size }, (_, c) => matrix[c * size + c] ?? 0).filter(
      (square) => square > 0,
    );
    return {
      transform: transform.name,
      layer: site.layer,
      role: site.role,
      channels: size,
      absMax: peaks.reduce((most, peak) => Math.max(most, peak), 0),
      medianAbsMax: peaks.toSorted()[Math.floor(peaks.length / 2)] ?? 0,
      outlierChannels: countOutliers(peaks),
      kurtosis: statistics.kurtosis(value),
      spread: squares.length === 0 ? 1 : extreme(squares, Math.max) / extreme(squares, Math.min),
    };
  });
}

function countOutliers(peaks: Float64Array): number {
  const mean = peaks.reduce((sum, peak) => sum + peak, 0) / peaks.length;
  const deviation = Math.sqrt(peaks.reduce((sum, peak) => sum + (peak - mean) ** 2, 0) / peaks.length);
  return peaks.filter((peak) => peak > mean + 6 * deviation).length;
}

function extreme(values: Float64Array, of: (a: number, b: number) => number): number {
  return values.reduce((best, value) => of(best, value));
}
