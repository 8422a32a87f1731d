/** `mambac eval`: how well a compiled model predicts a text, and how far it is from its source. */

import { readFileSync } from "node:fs";
import { VERSION } from "../compile.js";
import { readModel } from "../onnx/read.js";
import { type EvaluateMode, type Evaluation, evaluate } from "../run/evaluate.js";
import type { LibraryChoice } from "../run/locate.js";
import { readSignature } from "../run/signature.js";
import { statePrecision } from "../run/state-precision.js";
import { type LoadedPackage, type LoadOptions, loadPackage, modelFile } from "../run/stateful.js";
import { sourceFiles } from "../sources.js";
import { EXIT, type ExitCode, MambacError } from "../support/errors.js";
import { tokenizerFor } from "./model-tokenizer.js";
import { Progress, type Terminal } from "./terminal.js";
import { formatFacts } from "./text-table.js";

export interface EvalCommandOptions {
  readonly output: string;
  readonly text: string;
  /** The source, or any other model of the same vocabulary. */
  readonly against: string | null;
  readonly windows: number;
  readonly window: number;
  readonly mode: EvaluateMode;
  readonly tokenizer: string | null;
  readonly library: LibraryChoice;
  readonly threads: number;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** Logits held at a time when a model is fed whole windows; sets how many windows run together. */
const LOGIT_BYTES = 2 ** 28;

/** Taken for a vocabulary that the graph does not tell. */
const UNKNOWN_VOCABULARY = 2 ** 16;

/** Runs the command. Throws `eval/text` and what loading and evaluating throw. */
export async function evalCommand(options: EvalCommandOptions, terminal: Terminal): Promise<ExitCode> {
  const progress = new Progress(options.quiet ? null : terminal);
  try {
    const text = readText(options.text);
    progress.say(`loading ${options.output}`);
    const settings: LoadOptions = {
      batch: batchFor(options),
      library: options.library,
      threads: options.threads,
      onNotice: (message) => (options.quiet ? undefined : terminal.err(`${message}\n`)),
    };
    await using model = await loadPackage(options.output, settings);
    await using reference = await openReference(options.against, settings);
    const tokenizer = tokenizerFor(model, options.tokenizer);
    progress.say("evaluating");
    const result = await evaluate({
      model,
      ...(reference === null ? {} : { reference }),
      text,
      tokenizer,
      window: options.window,
      windows: options.windows,
      mode: options.mode,
      onProgress: (share) => (share < 1 ? progress.say(`evaluated ${Math.round(100 * share)} %`) : undefined),
    });
    tell(options, model, result, terminal);
  } finally {
    progress.done();
  }
  return EXIT.ok;
}

function readText(path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new MambacError("eval/text", `cannot read the text ${path}: ${reason}`, EXIT.usage, { cause });
  }
}

/** All windows at once where their logits fit. */
function batchFor(options: EvalCommandOptions): number {
  const { logits } = readSignature(readModel(modelFile(options.output)).model);
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

function tell(options: EvalCommandOptions, model: LoadedPackage, result: Evaluation, terminal: Terminal): void {
  const state = statePrecision(model.model);
  if (options.json) {
    const document = {
      command: "eval",
      version: VERSION,
      output: options.output,
      text: options.text,
      against: options.against,
      state,
      backend: model.backend,
      library: model.library,
      batch: model.batch,
      threads: options.threads,
      ...result,
    };
    terminal.out(`${JSON.stringify(document, null, 2)}\n`);
    return;
  }
  const digits = (value: number): string => value.toFixed(4);
  const percent = (value: number): string => `${(100 * value).toFixed(2)} %`;
  const facts: [string, string][] = [
    ["model", `${options.output}, ${model.library === null ? "portable functions" : `kernels of ${model.library}`}`],
    ["text", `${options.text}, ${result.windows} windows of ${result.window} tokens from its start`],
    [
      "state",
      `${model.model.metadata.get("mambac.state") ?? state.format}; ${result.mode === "token" ? "one token a call, so rounded at every token" : "one window a call"}`,
    ],
    ...(result.bitsPerByte === null ? [] : [["bits per byte", digits(result.bitsPerByte)] as [string, string]]),
    ["bits per token", digits(result.bitsPerToken)],
    ["perplexity", digits(result.perplexity)],
    ["top-1 accuracy", percent(result.top1)],
  ];
  if (result.nonFinite > 0) facts.push(["not finite", `${result.nonFinite} of ${result.predictions} predictions`]);
  const { comparison } = result;
  if (comparison !== null) {
    const change = result.bitsPerToken / comparison.referenceBitsPerToken - 1;
    facts.push(
      ["against", options.against ?? ""],
      [
        "  its bits per token",
        `${digits(comparison.referenceBitsPerToken)} (${change < 0 ? "" : "+"}${percent(change)} here)`,
      ],
      [
        "  KL divergence",
        `mean ${comparison.meanKlBits.toExponential(2)} bits, 99th percentile ${comparison.p99KlBits.toExponential(2)}, largest ${comparison.maxKlBits.toExponential(2)}`,
      ],
      ["  same best token", percent(comparison.top1Agreement)],
    );
  }
  terminal.out(formatFacts(facts));
}
