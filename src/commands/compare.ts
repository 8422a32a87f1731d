/** `mambac compare`: what each recipe costs and gains on a model. */

import { basename } from "node:path";
import { type Candidate, compareCandidates } from "../compare.js";
import { type CompileOptions, prepare, VERSION } from "../compile.js";
import { readCalibration } from "../run/calibration-files.js";
import type { LibraryChoice } from "../run/locate.js";
import { requireTokens } from "../run/plain-model.js";
import { loadTokenizer, type Tokenizer, tokenizerBeside } from "../run/tokenizer.js";
import { EXIT, type ExitCode, MambacError } from "../support/errors.js";
import { comparedCsv, comparedDocument, comparedTable } from "./compare-table.js";
import { readText } from "./read-text.js";
import { Progress, type Terminal } from "./terminal.js";

export interface CompareCommandOptions {
  readonly inputs: readonly string[];
  readonly texts: readonly string[];
  readonly windows: number;
  readonly window: number;
  /** Null takes the one beside the source, or bytes for a vocabulary of 256. */
  readonly tokenizer: string | null;
  readonly calibration?: NonNullable<CompileOptions["calibration"]>;
  /** Files of `mambac calibrate`. */
  readonly tables?: readonly string[];
  readonly library: LibraryChoice;
  readonly threads: number;
  readonly csv: boolean;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** Runs the command. Throws what compiling and evaluating throw. */
export async function compareCommand(
  options: CompareCommandOptions,
  reference: Candidate,
  candidates: readonly Candidate[],
  terminal: Terminal,
): Promise<ExitCode> {
  const progress = new Progress(options.quiet ? null : terminal);
  const { inputs, threads, windows, window } = options;
  try {
    const texts = options.texts.map((path) => ({ name: basename(path), text: readText("compare", path) }));
    const onProgress = (message: string): void => progress.say(message);
    const tables = (options.tables ?? []).map((path) => ({ label: path, table: readCalibration(path) }));
    const prepared = await prepare({ inputs, threads, onProgress }, reference.passes);
    requireTokens(prepared.main, "compare");
    const tokenizer = requestedTokenizer(options.tokenizer, inputs, prepared.vocabulary);
    const rows = await compareCandidates({
      prepared,
      inputs,
      reference,
      candidates,
      texts,
      tokenizer,
      windows,
      window,
      ...(options.calibration === undefined ? {} : { calibration: { ...options.calibration, tokenizer } }),
      tables,
      threads,
      library: options.library,
      onProgress,
    });
    progress.done();
    if (options.json) {
      const document = { command: "compare", version: VERSION, inputs: prepared.sources, texts: options.texts };
      const rest = {
        windows,
        window,
        threads,
        calibration: dataOf(options.calibration),
        tables: options.tables ?? [],
        rows: comparedDocument(rows),
      };
      terminal.out(`${JSON.stringify({ ...document, ...rest }, null, 2)}\n`);
    } else terminal.out(options.csv ? comparedCsv(rows) : comparedTable(rows));
  } finally {
    progress.done();
  }
  return EXIT.ok;
}

/** The tokenizer asked for, else the one beside the source, else bytes. Throws `tokenizer/missing`. */
export function requestedTokenizer(choice: string | null, inputs: readonly string[], vocabulary: number): Tokenizer {
  if (choice !== null) return loadTokenizer(choice);
  const beside = tokenizerBeside(inputs[0] ?? ".", vocabulary);
  if (beside !== null) return beside;
  if (vocabulary === 256) return loadTokenizer("bytes");
  throw new MambacError(
    "tokenizer/missing",
    `the model knows ${vocabulary} tokens, and there is no tokenizer.json beside it; name one with --tokenizer`,
  );
}

/** What the statistics came from, for reports. */
export function dataOf(calibration: CompareCommandOptions["calibration"]): object | null {
  if (calibration === undefined) return null;
  const { tokenizer: _tokenizer, ...rest } = calibration;
  return rest;
}
