/** Running a model between two passes over calibration data: made executable, with its states and the right tokenizer. */

import { executableModel } from "./executable.js";
import type { Model } from "./ir/graph.js";
import { tokenInput } from "./rewrite/axes.js";
import type { DivergenceFrom } from "./rewrite/pass.js";
import type { Step } from "./rewrite/pipeline.js";
import {
  type Dataset,
  type DatasetDescription,
  type DatasetOptions,
  firstSequences,
  openDataset,
} from "./run/dataset.js";
import { openItems } from "./run/dataset-items.js";
import { logitsSample, meanKlBits } from "./run/divergence.js";
import { isPlain } from "./run/plain-model.js";
import { usualBoundaries } from "./run/statistics.js";
import { tokenizerBeside } from "./run/tokenizer.js";
import { EXIT, MambacError } from "./support/errors.js";

/** Data for passes that need statistics of activations, read with the tokenizer given or the one beside the source. */
export type CalibrationData = Omit<DatasetOptions, "vocabulary">;

/** How a compilation runs models on its calibration data. */
export interface CalibrationRuns {
  readonly calibration: CalibrationData;
  readonly inputs: readonly string[];
  /** Makes a model between two passes executable. */
  readonly executable: () => Step[];
  /** The same in the precision that is written; `executable` unless given. */
  readonly measurable?: () => Step[];
  readonly threads: number;
  readonly onProgress?: (message: string) => void;
  /** Told of the data each time they are opened. */
  readonly onDataset?: (description: DatasetDescription) => void;
}

/** Measures models against a reference on the first sequences of the calibration data. */
export async function divergenceFrom(
  runs: CalibrationRuns,
  reference: Model,
  sequences: number,
): Promise<DivergenceFrom> {
  if (isPlain(reference)) throw noNextToken();
  const sample = async (model: Model): ReturnType<typeof logitsSample> => {
    const ready = await executableModel(model, (runs.measurable ?? runs.executable)(), runs.threads);
    const dataset = await openCalibration(runs.calibration, model, runs.inputs);
    runs.onDataset?.(dataset.description);
    try {
      return await logitsSample(ready, firstSequences(dataset, sequences), {
        boundaries: usualBoundaries(ready),
        threads: runs.threads,
      });
    } finally {
      dataset.close();
    }
  };
  const expected = await sample(reference);
  return async (model, label) => {
    runs.onProgress?.(`measuring ${label}`);
    return meanKlBits(expected, await sample(model));
  };
}

/** The calibration data of a model, with its tokenizer. Throws `dataset/...` (exit code 5). */
export function openCalibration(
  calibration: CalibrationData,
  model: Model,
  inputs: readonly string[],
): Promise<Dataset> {
  if (isPlain(model)) {
    // What is held out is to judge by.
    if (calibration.part !== undefined) throw noNextToken();
    return openItems(calibration, model.graph);
  }
  const vocabulary = vocabularyOf(model);
  const tokenizer = calibration.tokenizer ?? tokenizerBeside(inputs[0] ?? ".", vocabulary);
  return openDataset({ ...calibration, vocabulary, ...(tokenizer === null ? {} : { tokenizer }) });
}

function noNextToken(): MambacError {
  return new MambacError(
    "calibrate/next-token",
    "recipes that search, and auto, measure the next token, and this model reads no tokens: name a recipe that does not search",
    EXIT.calibration,
  );
}

/** Rows of the table the token ids index. */
export function vocabularyOf(model: Model): number {
  const token = tokenInput(model.graph)?.name;
  const lookup = model.graph.nodes.find((node) => node.op === "Gather" && node.inputs[1] === token);
  return model.graph.initializers.get(lookup?.inputs[0] ?? "")?.shape[0] ?? 16;
}
