/** `mambac calibrate`: statistics of a model's activations over data, as a table for later compilations. */

import { statSync } from "node:fs";
import { type CompilerPasses, VERSION } from "../compile.js";
import { floatModel } from "../float-model.js";
import { graphDigest } from "../onnx/model-digest.js";
import { requireWritable } from "../onnx/write.js";
import { type CalibrationTable, requestOf } from "../quant/calibration.js";
import { calibrateToFile, mergeToFile } from "../run/calibrate.js";
import { readCalibration } from "../run/calibration-files.js";
import { openDataset, RANDOM_DATA, type Shard } from "../run/dataset.js";
import { openItems } from "../run/dataset-items.js";
import { openOrtGemm } from "../run/ort-gemm.js";
import { isPlain } from "../run/plain-model.js";
import { readSignature } from "../run/signature.js";
import { progressMessage, usualBoundaries } from "../run/statistics.js";
import { loadTokenizer, type Tokenizer, tokenizerBeside } from "../run/tokenizer.js";
import { usualRequests } from "../run/usual-requests.js";
import { vocabularyOf } from "../run/vocabulary.js";
import { EXIT, type ExitCode } from "../support/errors.js";
import { Progress, type Terminal } from "./terminal.js";
import { formatBytes, formatFacts } from "./text-table.js";

export interface CalibrateCommandOptions {
  readonly inputs: readonly string[];
  /** Files, folders, or the word 'random'. */
  readonly data: readonly string[];
  /** The table; its numbers go to `<output>.bin`. */
  readonly output: string;
  readonly shard: Shard | null;
  /** Null takes all of the data in order. */
  readonly samples: number | null;
  readonly sequenceLength: number;
  readonly seed: number;
  readonly tokenizer: string | null;
  /** Also x x^T of what projections read. */
  readonly secondMoments: boolean;
  readonly threads: number;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** Runs the command. Throws what compiling throws, and `dataset/...`, `calibrate/...` with exit code 5. */
export async function calibrateCommand(
  options: CalibrateCommandOptions,
  passes: CompilerPasses,
  terminal: Terminal,
): Promise<ExitCode> {
  const progress = new Progress(options.quiet ? null : terminal);
  const { inputs, output, samples, sequenceLength, seed, shard, threads } = options;
  requireWritable(output);
  try {
    const { model, modelSha256 } = await floatModel(
      { inputs, threads, onProgress: (message) => progress.say(message) },
      passes,
    );
    const signature = isPlain(model) ? null : readSignature(model);
    progress.say(`reading ${options.data.join(", ")}`);
    const drawn = { paths: options.data, samples, seed, ...(shard === null ? {} : { shard }) };
    const dataset =
      signature === null
        ? await openItems(drawn, model.graph)
        : await openDataset({ ...drawn, sequenceLength, ...tokensFor(options, vocabularyOf(model, signature)) });
    await using products = openOrtGemm({ threads });
    try {
      const start = performance.now();
      const graph = graphDigest(model);
      const own = graph === modelSha256 ? undefined : graph;
      const table = await calibrateToFile(
        {
          model,
          dataset,
          requests: usualRequests(model, signature?.states ?? [], options).map(({ value, kind, perChannel }) =>
            requestOf(value, kind, perChannel, own),
          ),
          boundaries: usualBoundaries(model),
          threads,
          version: VERSION,
          modelSha256,
          gemm: products.gemm,
          onNotice: (message) => (options.quiet ? undefined : terminal.err(`${message}\n`)),
          onProgress: (at) => {
            const message = progressMessage(at);
            if (message !== null) progress.say(message);
          },
        },
        output,
      );
      if (samples !== null && dataset.description.sequences < samples) {
        terminal.err(`warning: the data give ${dataset.description.sequences} sequences, not ${samples}\n`);
      }
      tellTable("calibrate", options, table, (performance.now() - start) / 1000, terminal);
    } finally {
      dataset.close();
    }
  } finally {
    progress.done();
  }
  return EXIT.ok;
}

function tokensFor(
  { inputs, tokenizer: choice }: CalibrateCommandOptions,
  vocabulary: number,
): { readonly vocabulary: number; readonly tokenizer?: Tokenizer } {
  const tokenizer = choice === null ? tokenizerBeside(inputs[0] ?? ".", vocabulary) : loadTokenizer(choice);
  return { vocabulary, ...(tokenizer === null ? {} : { tokenizer }) };
}

export interface CalibrateMergeCommandOptions {
  readonly tables: readonly string[];
  readonly output: string;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** Merges shards of one calibration. Throws `calibration/...` with exit code 5. */
export function calibrateMergeCommand(options: CalibrateMergeCommandOptions, terminal: Terminal): ExitCode {
  const tables = options.tables.map(readCalibration);
  const table = mergeToFile(tables, options.output);
  tellTable("calibrate merge", options, table, null, terminal);
  return EXIT.ok;
}

/** Says what a table is of. */
export function tellTable(
  command: string,
  options: { readonly output: string; readonly json: boolean; readonly quiet: boolean },
  table: CalibrationTable,
  seconds: number | null,
  terminal: Terminal,
): void {
  const { header, requests } = table;
  const values = new Set(requests.map(({ value }) => value)).size;
  const bytes = statSync(options.output).size + statSync(`${options.output}.bin`).size;
  if (options.json) {
    const document = {
      command,
      output: options.output,
      ...header,
      values,
      statistics: requests.length,
      bytes,
      seconds,
    };
    terminal.out(`${JSON.stringify(document, null, 2)}\n`);
    return;
  }
  if (header.random) {
    terminal.err(`warning: the data are made up (${RANDOM_DATA}); the table says so, and is no basis for a release\n`);
  }
  if (options.quiet) return;
  const { count, done } = header.shards;
  terminal.out(
    formatFacts([
      [
        "data",
        `${amountText(header)}, seed ${header.seed}` +
          `, ${header.random ? "made up" : `sha256 ${header.dataSha256.slice(0, 12)}`}`,
      ],
      ...(count === 1 ? [] : [["shards", `${done.join(", ")} of ${count}`] as const]),
      ["statistics", `${requests.length} of ${values} values`],
      ...(seconds === null ? [] : [["time", `${seconds.toFixed(1)} s`] as const]),
      ["written", `${options.output} and ${options.output}.bin (${formatBytes(bytes)})`],
    ]),
  );
}

/** Data that are no tokens are items of length 1. */
function amountText({ sequences, sequenceLength, tokens }: CalibrationTable["header"]): string {
  if (sequenceLength === 1) return `${sequences} items`;
  return `${sequences} sequences of up to ${sequenceLength} tokens, ${tokens} tokens`;
}
