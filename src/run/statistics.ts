/** Statistics for passes, collected by running calibration data through the model as it stands. */

import type { Model } from "../ir/graph.js";
import type { StatRequest } from "../quant/calibration.js";
import type { Statistics } from "../quant/statistics.js";
import { findBoundaries, weightBytes } from "./blocks.js";
import { observeAll, tableStatistics } from "./calibrate.js";
import type { Dataset } from "./dataset.js";
import { openOrtGemm } from "./ort-gemm.js";
import { readSignature } from "./signature.js";
import { StatisticSpool } from "./statistic-spool.js";

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
 * depend on the depth. Dispose of the result when done; the end of the process does too.
 */
export async function collectStatistics(
  model: Model,
  requests: readonly StatRequest[],
  dataset: Dataset,
  options: CollectOptions = {},
): Promise<Statistics & Disposable> {
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
        onProgress: ({ block, blocks, sequence, sequences }) =>
          onProgress?.(
            `calibrated ${sequence} of ${sequences} sequences${blocks === 1 ? "" : ` in block ${block + 1} of ${blocks}`}`,
          ),
      },
      (request, encoded) => spool.add(request, encoded),
    );
  } catch (cause) {
    spool.close();
    throw cause;
  }
  return { ...tableStatistics(spool, "the calibration"), [Symbol.dispose]: () => spool.close() };
}
