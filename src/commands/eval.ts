/** `mambac eval`: how well a compiled model predicts a text, and how far it is from its source. */

import { VERSION } from "../compile.js";
import type { Model } from "../ir/graph.js";
import { readModel } from "../onnx/read.js";
import { type Evaluation, evaluate } from "../run/evaluate.js";
import { FOOTPRINT_CLASSES, type Footprint, footprint } from "../run/footprint.js";
import { type LastWordScore, lastWordScore, passageTexts, splitLastWord } from "../run/last-word.js";
import type { LibraryChoice } from "../run/locate.js";
import { type EvaluateMode, possibleMode } from "../run/logits-source.js";
import { requireTokens } from "../run/plain-model.js";
import { readSignature } from "../run/signature.js";
import { statePrecision } from "../run/state-precision.js";
import { type LoadedPackage, type LoadOptions, loadPackage, modelFile } from "../run/stateful.js";
import type { Tokenizer } from "../run/tokenizer.js";
import { sourceFiles } from "../sources.js";
import { EXIT, type ExitCode, MambacError } from "../support/errors.js";
import { formatLoss } from "./compare-table.js";
import { tokenizerFor } from "./model-tokenizer.js";
import { readText } from "./read-text.js";
import { sessionRecord } from "./session-record.js";
import { Progress, type Terminal } from "./terminal.js";
import { formatBytes, formatFacts, formatTable } from "./text-table.js";

export interface EvalCommandOptions {
  readonly output: string;
  /** Null only where there are passages for the last word. */
  readonly text: string | null;
  /** JSON lines with a `text` each, for accuracy on the last word. */
  readonly lastWord: string | null;
  /** The source, or any other model of the same vocabulary. */
  readonly against: string | null;
  readonly windows: number;
  readonly window: number;
  readonly mode: EvaluateMode;
  readonly tokenizer: string | null;
  /** Sequences the footprint counts the state of. */
  readonly sequences: number;
  readonly library: LibraryChoice;
  readonly threads: number;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** Logits held at a time when a model is fed whole windows; sets how many windows run together. */
const LOGIT_BYTES = 2 ** 28;

/** Taken for a vocabulary that the graph does not tell. */
const UNKNOWN_VOCABULARY = 2 ** 16;

interface Results {
  readonly text: Evaluation | null;
  readonly lastWord: (LastWordScore & { readonly skipped: number }) | null;
  readonly footprint: Footprint;
}

/** Runs the command. Throws `eval/...` and what loading and evaluating throw. */
export async function evalCommand(options: EvalCommandOptions, terminal: Terminal): Promise<ExitCode> {
  if (options.text === null && options.lastWord === null) {
    throw new MambacError(
      "eval/nothing",
      "there is nothing to evaluate on: give --text FILE or --last-word FILE.jsonl",
    );
  }
  const progress = new Progress(options.quiet ? null : terminal);
  try {
    const text = options.text === null ? null : readText("eval", options.text);
    const passages = options.lastWord === null ? null : readText("eval", options.lastWord);
    progress.say(`loading ${options.output}`);
    const { model: graph } = readModel(modelFile(options.output));
    requireTokens(graph, "eval");
    const settings: LoadOptions = {
      batch: batchFor(graph, options),
      library: options.library,
      threads: options.threads,
      onNotice: (message) => (options.quiet ? undefined : terminal.err(`${message}\n`)),
    };
    await using model = await loadPackage(options.output, settings);
    await using reference = text === null ? null : await openReference(options.against, settings);
    const tokenizer = tokenizerFor(model, options.tokenizer);
    // Without a state it makes no difference how tokens are fed.
    const mode = possibleMode(model, options.mode);
    progress.say("evaluating");
    const onProgress = (share: number): void =>
      share < 1 ? progress.say(`evaluated ${Math.round(100 * share)} %`) : undefined;
    const evaluation =
      text === null
        ? null
        : await evaluate({
            model,
            ...(reference === null ? {} : { reference }),
            text,
            tokenizer,
            window: options.window,
            windows: options.windows,
            mode,
            onProgress,
          });
    const lastWord =
      passages === null
        ? null
        : await lastWordOf(new TextDecoder().decode(passages), model, tokenizer, { ...options, mode }, onProgress);
    tell(
      { ...options, mode },
      model,
      { text: evaluation, lastWord, footprint: footprint(model.model, model.signature) },
      terminal,
    );
  } finally {
    progress.done();
  }
  return EXIT.ok;
}

async function lastWordOf(
  source: string,
  model: LoadedPackage,
  tokenizer: Tokenizer,
  options: EvalCommandOptions,
  onProgress: (share: number) => void,
): Promise<Results["lastWord"]> {
  const texts = passageTexts(source, options.lastWord ?? "");
  const passages = texts.flatMap((text) => splitLastWord(text, tokenizer) ?? []);
  const score = await lastWordScore({ model, passages, mode: options.mode, onProgress });
  return { ...score, skipped: texts.length - passages.length };
}

/** All windows at once where their logits fit. */
function batchFor(model: Model, options: { readonly window: number; readonly windows: number }): number {
  const { logits } = readSignature(model);
  const vocabulary = logits.shape.at(-1);
  const bytes = 4 * options.window * (typeof vocabulary === "number" ? vocabulary : UNKNOWN_VOCABULARY);
  return Math.max(1, Math.min(options.windows, Math.floor(LOGIT_BYTES / bytes)));
}

/** The source's prefill graph where it is a pair: whole windows do not depend on how tokens are fed. */
async function openReference(path: string | null, settings: LoadOptions): Promise<LoadedPackage | null> {
  if (path === null) return null;
  const [file] = sourceFiles([path]);
  return file === undefined ? null : loadPackage(file.path, { ...settings, library: "none" });
}

function tell(options: EvalCommandOptions, model: LoadedPackage, results: Results, terminal: Terminal): void {
  if (options.json) terminal.out(`${JSON.stringify(documentOf(options, model, results), null, 2)}\n`);
  else terminal.out(textOf(options, model, results));
}

function documentOf(options: EvalCommandOptions, model: LoadedPackage, results: Results): object {
  const { stateBytes, weightBytes, weights } = results.footprint;
  return {
    command: "eval",
    version: VERSION,
    output: options.output,
    text: options.text,
    against: options.against,
    state: statePrecision(model.model),
    backend: model.backend,
    library: model.library,
    batch: model.batch,
    threads: options.threads,
    session: sessionRecord(model, options),
    ...results.text,
    lastWord: results.lastWord === null ? null : { file: options.lastWord, mode: options.mode, ...results.lastWord },
    footprint: { weights, weightBytes, stateBytes, sequences: options.sequences, total: totalOf(results, options) },
  };
}

function totalOf({ footprint: { weightBytes, stateBytes } }: Results, { sequences }: EvalCommandOptions): number {
  return weightBytes + sequences * stateBytes;
}

function textOf(options: EvalCommandOptions, model: LoadedPackage, results: Results): string {
  const facts: Fact[] = [
    ["model", `${options.output}, ${model.library === null ? "portable functions" : `kernels of ${model.library}`}`],
    ...(results.text === null ? [] : textFacts(options, model, results.text)),
    ...(results.lastWord === null ? [] : lastWordFacts(options, results.lastWord)),
    ...footprintFacts(options, results),
  ];
  return `${formatFacts(facts)}${results.text === null ? "" : `\n${positionTable(results.text)}`}`;
}

type Fact = readonly [label: string, value: string];

const digits = (value: number): string => value.toFixed(4);
const percent = (value: number): string => `${(100 * value).toFixed(2)} %`;

function textFacts(options: EvalCommandOptions, model: LoadedPackage, result: Evaluation): Fact[] {
  const state = model.model.metadata.get("mambac.state") ?? statePrecision(model.model).format;
  const facts: Fact[] = [
    ["text", `${options.text}, ${result.windows} windows of ${result.window} tokens from its start`],
    ["state", `${state}; ${result.mode === "call" ? "one window a call" : `one token a call${roundedAt(model)}`}`],
    ...(result.bitsPerByte === null ? [] : [["bits per byte", digits(result.bitsPerByte)] as const]),
    ["bits per token", digits(result.bitsPerToken)],
    ["perplexity", digits(result.perplexity)],
    ["top-1 accuracy", percent(result.top1)],
  ];
  if (result.nonFinite > 0) facts.push(["not finite", `${result.nonFinite} of ${result.predictions} predictions`]);
  const { comparison } = result;
  if (comparison === null) return facts;
  const change = result.bitsPerToken / comparison.referenceBitsPerToken - 1;
  return [
    ...facts,
    ["against", options.against ?? ""],
    ["  its bits per token", `${digits(comparison.referenceBitsPerToken)} (${formatLoss(change)} here)`],
    [
      "  KL divergence",
      `mean ${comparison.meanKlBits.toExponential(2)} bits, 99th percentile ${comparison.p99KlBits.toExponential(2)}, largest ${comparison.maxKlBits.toExponential(2)}`,
    ],
    ["  same best token", percent(comparison.top1Agreement)],
  ];
}

function lastWordFacts(options: EvalCommandOptions, score: NonNullable<Results["lastWord"]>): Fact[] {
  const skipped = score.skipped === 0 ? "" : `, ${score.skipped} of one word left out`;
  return [
    ["last word", `${options.lastWord}, ${score.passages} passages${skipped}`],
    ["  accuracy", percent(score.accuracy)],
    ["  perplexity", digits(score.perplexity)],
    ...(score.nonFinite === 0 ? [] : [["  not finite", `${score.nonFinite} of ${score.passages} passages`] as const]),
  ];
}

function footprintFacts(options: EvalCommandOptions, results: Results): Fact[] {
  const { weights, weightBytes, stateBytes } = results.footprint;
  const { sequences } = options;
  const classes = FOOTPRINT_CLASSES.filter((name) => weights[name] > 0).map(
    (name) => `${name} ${formatBytes(weights[name])}`,
  );
  return [
    ["weights", `${formatBytes(weightBytes)}: ${classes.join(", ")}`],
    [
      "state",
      `${formatBytes(stateBytes)} a sequence, ${formatBytes(sequences * stateBytes)} for ${sequences}; with the weights ${formatBytes(totalOf(results, options))}`,
    ],
  ];
}

/** Errors of a quantized state that add up show as figures that grow down the table. */
function positionTable({ positions }: Evaluation): string {
  return formatTable([
    ["position", "bits per token", "KL, bits"],
    ...positions.map(({ from, to, bitsPerToken, meanKlBits }) => [
      `${from} to ${to - 1}`,
      digits(bitsPerToken),
      meanKlBits === null ? "" : meanKlBits.toExponential(2),
    ]),
  ]);
}

/** A replay state is rounded where its count says, however tokens are fed. */
function roundedAt(model: LoadedPackage): string {
  return statePrecision(model.model).requantize === "replay" ? "" : ", so rounded at every token";
}
