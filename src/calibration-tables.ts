/** Where the statistics of passes come from: tables made earlier, calibration data, or both; and how tables are made. */

import { type CalibrationData, type CalibrationRuns, divergenceFrom, openCalibration } from "./calibration.js";
import { executableModel } from "./executable.js";
import type { Model } from "./ir/graph.js";
import { graphDigest } from "./onnx/model-digest.js";
import { calibrationError, requestOf, requireFresh, type StatRequest } from "./quant/calibration.js";
import type { ObservedStatistics } from "./quant/observed-statistics.js";
import type { PipelineHooks } from "./rewrite/pipeline.js";
import type { Dataset } from "./run/dataset.js";
import { collectStatistics, missingIn, type NamedTable, tabledStatistics } from "./run/statistics.js";
import { invariant } from "./support/errors.js";

/** The pass after which a graph has all its states and nothing has been quantized: tables are about that model. */
export const COMPLETE = "complete-states";

/** The pass after which, for the first time since, projections have one form and names, and nothing else has happened to them. */
export const ALIGNED = "tidy";

/** The pass after which a graph is made ready to be written: transforms and roundings are over before. */
export const LOWERING = "divide-norm";

/** Takes what is collected from data. */
export interface StatisticsRecorder {
  /** A pass is about to get statistics from the data, of a model with this hash. */
  readonly begin: (pass: string, modelSha256: string, dataset: Dataset) => void;
  readonly add: (request: StatRequest, encoded: Uint8Array) => void;
}

export interface StatisticsSources extends Omit<CalibrationRuns, "calibration"> {
  /** Null where there are tables only. */
  readonly calibration: CalibrationData | null;
  readonly tables: readonly NamedTable[];
  readonly recorder: StatisticsRecorder | null;
  /** The model as it was after `COMPLETE`. */
  readonly complete: () => Model | null;
}

/** What passes ask of calibration: `statisticsSource`, and measuring on the data. */
export function calibrationHooks(sources: StatisticsSources): Pick<PipelineHooks, "collect" | "divergence"> {
  const { calibration, tables } = sources;
  if (calibration === null && tables.length === 0) return {};
  const collect = statisticsSource(sources);
  if (calibration === null) return { collect };
  return {
    collect,
    divergence: (reference, sequences) => divergenceFrom({ ...sources, calibration }, reference, sequences),
  };
}

/** Statistics of a model as it stands; null where they are of a shard of the data only. `pass` is who asks. */
type CollectStatistics = (
  model: Model,
  requests: readonly StatRequest[],
  pass: string,
  window?: number,
) => Promise<(ObservedStatistics & Disposable) | null>;

/**
 * Statistics from the tables where these have all that a pass asks for, else from the data. A shard of the data is not
 * enough for the passes after, so the run ends when its statistics are recorded. What is made throws `calibration/...`
 * (exit code 5): for tables of another model or other data, for shards that are not merged, and, without data, for what
 * the tables lack.
 */
export function statisticsSource(sources: StatisticsSources): CollectStatistics {
  const { calibration, tables, recorder } = sources;
  let model: Promise<string> | null = null;
  /** Hash of the float model, which every table must be about. */
  const modelSha256 = (at: Model): Promise<string> => {
    model ??= checkedModel(sources, at);
    return model;
  };
  return async (at, requests, pass, window) => {
    if (requests.length === 0) return tabledStatistics([], "");
    const ready = await executableModel(at, sources.executable(), sources.threads);
    const hashed = tables.length > 0 || recorder !== null;
    const graph = hashed ? graphDigest(ready) : "";
    if (tables.length > 0) {
      await modelSha256(at);
      const missing = missingIn(tables, graph, requests);
      if (missing.length === 0) return tabledStatistics(tables, graph);
      if (calibration === null) throw lacking(tables, graph, pass, missing);
    }
    invariant(calibration !== null, "statistics without tables come from data");
    const dataset = await openCalibration(calibration, at, sources.inputs);
    sources.onDataset?.(dataset.description);
    try {
      const own = hashed && (await modelSha256(at)) === graph ? undefined : graph;
      if (recorder !== null) recorder.begin(pass, await modelSha256(at), dataset);
      const statistics = await collectStatistics(ready, requests, dataset, {
        threads: sources.threads,
        ...(window === undefined ? {} : { window, decodeShare: 0 }),
        onProgress: (message) => sources.onProgress?.(`${message} for ${pass}`),
        ...(recorder === null
          ? {}
          : {
              take: ({ value, kind, perChannel }, encoded): void =>
                recorder.add(requestOf(value, kind, perChannel, own), encoded),
            }),
      });
      if (dataset.shard.count === 1) return statistics;
      statistics[Symbol.dispose]();
      return null;
    } finally {
      dataset.close();
    }
  };
}

/** Refuses tables of another model, of other data than those given beside them, and single shards. */
async function checkedModel(sources: StatisticsSources, at: Model): Promise<string> {
  const { calibration, tables, executable, threads } = sources;
  const complete = sources.complete();
  invariant(complete !== null, `a pass is calibrated before ${COMPLETE}`);
  const modelSha256 = graphDigest(await executableModel(complete, executable(), threads));
  const dataset =
    calibration === null || tables.length === 0 ? null : await openCalibration(calibration, at, sources.inputs);
  dataset?.close();
  const data = dataset === null ? {} : { tokensSha256: dataset.description.tokensSha256 };
  for (const { table, label } of tables) requireFresh(table, { modelSha256, ...data }, label);
  return modelSha256;
}

/** Values named in a message. */
const NAMED = 3;

function lacking(tables: readonly NamedTable[], graph: string, pass: string, missing: readonly StatRequest[]): Error {
  const labels = tables.map(({ label }) => label).join(" ");
  const knows = tables.some(({ table: { header, requests } }) =>
    requests.some((request) => (request.graph ?? header.modelSha256) === graph),
  );
  const kinds = [...new Set(missing.map(({ kind, perChannel }) => `${kind}${perChannel ? " by channel" : ""}`))];
  const values = [...new Set(missing.map(({ value }) => value))];
  const named = `${values.slice(0, NAMED).join(", ")}${values.length > NAMED ? ` and ${values.length - NAMED} more` : ""}`;
  return calibrationError(
    "missing",
    `pass ${pass} needs ${kinds.join(" and ")} of ${named}, of the model as the recipe has left it by then; ` +
      `${knows ? `${labels} lacks these` : `${labels} knows nothing of that model`}. From the same data, ` +
      `mambac calibrate --recipe RECIPE --calib-table ${labels} makes a table of the rest, to be given too; or give --calib`,
  );
}
