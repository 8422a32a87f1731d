/** Statistics for passes, collected by running calibration data through the model as it stands. */

import type { Model } from "../ir/graph.js";
import { type CalibrationTable, requestOf, type StatRequest } from "../quant/calibration.js";
import type { ObservedStatistics } from "../quant/observed-statistics.js";
import { findBoundaries, weightBytes } from "./blocks.js";
import { observeAll, tableStatistics } from "./calibrate.js";
import type { Dataset } from "./dataset.js";
import { openOrtGemm } from "./ort-gemm.js";
import { isPlain } from "./plain-model.js";
import { readSignature } from "./signature.js";
import { StatisticSpool } from "./statistic-spool.js";
import type { SweepProgress } from "./sweep.js";

export interface CollectOptions {
  readonly threads?: number;
  /** Tokens of a prefill call, and the share of a sequence fed token by token; defaults as for a sweep. */
  readonly window?: number;
  readonly decodeShare?: number;
  /** Default: between stateful layers, for models of more than 64 MiB. */
  readonly boundaries?: readonly string[];
  readonly signal?: AbortSignal;
  readonly onProgress?: (message: string) => void;
  readonly onNotice?: (message: string) => void;
  /** Takes each statistic as it is kept. */
  readonly take?: (request: StatRequest, encoded: Uint8Array) => void;
}

/** Models with more weights run layer by layer. */
const TOGETHER_BYTES = 2 ** 26;

/** Where to cut a model, so that one block fits in memory whatever the depth. */
export function usualBoundaries(model: Model): string[] {
  return weightBytes(model) <= TOGETHER_BYTES || isPlain(model) ? [] : findBoundaries(model, readSignature(model));
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
  const { window, decodeShare } = options;
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
        ...(window === undefined ? {} : { window }),
        ...(decodeShare === undefined ? {} : { decodeShare }),
        ...(signal === undefined ? {} : { signal }),
        ...(onNotice === undefined ? {} : { onNotice }),
        onProgress: (at) => {
          const message = progressMessage(at);
          if (message !== null) onProgress?.(message);
        },
      },
      (request, encoded) => {
        spool.add(request, encoded);
        options.take?.(request, encoded);
      },
    );
  } catch (cause) {
    spool.close();
    throw cause;
  }
  const statistics = { ...tableStatistics(spool, "the calibration"), [Symbol.dispose]: () => spool.close() };
  forgotten.register(statistics, spool);
  return statistics;
}

/** A table made earlier, and what messages call it. */
export interface NamedTable {
  readonly label: string;
  readonly table: CalibrationTable;
}

/** What no table knows of a graph. */
export function missingIn(
  tables: readonly NamedTable[],
  graph: string,
  requests: readonly StatRequest[],
): StatRequest[] {
  return requests.filter((request) => encodedIn(tables, graph, request) === null);
}

/**
 * Answers about a graph from tables made earlier; which graph each statistic is of is part of it. Throws
 * `calibration/missing` (exit code 5) for what none of them has.
 */
export function tabledStatistics(tables: readonly NamedTable[], graph: string): ObservedStatistics & Disposable {
  const label = tables.map((table) => table.label).join(", ");
  const statistics = tableStatistics({ encoded: (request) => encodedIn(tables, graph, request) }, label);
  return { ...statistics, [Symbol.dispose]: () => undefined };
}

function encodedIn(tables: readonly NamedTable[], graph: string, request: StatRequest): Uint8Array | null {
  const { value, kind, perChannel } = request;
  for (const { table } of tables) {
    const own = table.header.modelSha256 === graph ? undefined : graph;
    const found = table.encoded(requestOf(value, kind, kind === "second-moment" ? true : perChannel, own));
    if (found !== null) return found;
  }
  return null;
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
