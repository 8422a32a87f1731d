/** Statistics for passes, collected by running calibration data through the model as it stands. */

import type { Model } from "../ir/graph.js";
import { graphDigest } from "../onnx/model-digest.js";
import { type CalibrationTable, requireFresh, type StatRequest } from "../quant/calibration.js";
import type { ObservedStatistics } from "../quant/observed-statistics.js";
import type { Statistics } from "../quant/statistics.js";
import { findBoundaries, weightBytes } from "./blocks.js";
import { observeAll, tableStatistics } from "./calibrate.js";
import type { Dataset } from "./dataset.js";
import { openOrtGemm } from "./ort-gemm.js";
import { readSignature } from "./signature.js";
import { StatisticSpool } from "./statistic-spool.js";
import type { SweepProgress } from "./sweep.js";

export interface CollectOptions {
  readonly threads?: number;
  /** Default: between stateful layers, for models of more than 64 MiB. */
  readonly boundaries?: readonly string[];
  readonly signal?: AbortSignal;
  readonly onProgress?: (message: string) => void;
  readonly onNotice?: (message: string) => void;
}

/** Models with more weights run layer by layer. */
const TOGETHER_BYTES = 2 ** 26;

/** Where to cut a model, so that one block fits in memory whatever the depth. */
export function usualBoundaries(model: Model): string[] {
  return weightBytes(model) <= TOGETHER_BYTES ? [] : findBoundaries(model, readSignature(model));
}

/**
 * Runs the data through an executable model with f32 states and keeps what was asked for: on disk, so that memory does not
 * depend on the depth. Dispose of the result when done; otherwise the file lasts as long as the result, or the process.
 */
export async function collectStatistics(
  model: Model,
  requests: readonly StatRequest[],
  dataset: Dataset,
  options: CollectOptions = {},
): Promise<ObservedStatistics & Disposable> {
  const { threads = 1, boundaries = usualBoundaries(model), signal, onProgress, onNotice } = options;
  await using products = openOrtGemm({ threads });
  const spool = new StatisticSpool();
  try {
    await observeAll(
      {
        model,
        dataset,
        requests,
        boundaries,
        threads,
        gemm: products.gemm,
        ...(signal === undefined ? {} : { signal }),
        ...(onNotice === undefined ? {} : { onNotice }),
        onProgress: (at) => {
          const message = progressMessage(at);
          if (message !== null) onProgress?.(message);
        },
      },
      (request, encoded) => spool.add(request, encoded),
    );
  } catch (cause) {
    spool.close();
    throw cause;
  }
  const statistics = { ...tableStatistics(spool, "the calibration"), [Symbol.dispose]: () => spool.close() };
  forgotten.register(statistics, spool);
  return statistics;
}

/**
 * Answers from a table made earlier, for a model it must have been made for. Throws `calibration/stale`,
 * `calibration/incomplete` or `calibration/missing` (exit code 5); `label` names the table in messages.
 */
export function freshStatistics(
  table: CalibrationTable,
  model: Model,
  requests: readonly StatRequest[],
  label: string,
): Statistics {
  requireFresh(table, { modelSha256: graphDigest(model), requests }, label);
  return tableStatistics(table, label);
}

/** A line for every tenth of a block; null for what lies between. */
export function progressMessage({ block, blocks, sequence, sequences }: SweepProgress): string | null {
  const tenths = (done: number): number => Math.floor((10 * done) / sequences);
  if (tenths(sequence) === tenths(sequence - 1)) return null;
  const where = blocks === 1 ? "" : ` of block ${block + 1} of ${blocks}`;
  return `calibrated ${sequence} of ${sequences} sequences${where}`;
}

/** Weights computed on demand may keep statistics for long, so their file goes when nothing refers to them any more. */
const forgotten = new FinalizationRegistry<StatisticSpool>((spool) => spool.close());
