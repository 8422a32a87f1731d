/** `mambac generate`: continues a text, printing it as it comes, or all of it as a document. */

import { dirname } from "node:path";
import { VERSION } from "../compile.js";
import { readModel } from "../onnx/read.js";
import { endTokens } from "../run/end-tokens.js";
import { generate } from "../run/generate.js";
import type { LibraryChoice } from "../run/locate.js";
import { requireTokens } from "../run/plain-model.js";
import type { SamplingOptions } from "../run/sampling.js";
import { type LoadedPackage, loadPackage, modelFile } from "../run/stateful.js";
import { tokenizerFolder } from "../run/tokenizer.js";
import { EXIT, type ExitCode, MambacError } from "../support/errors.js";
import { tokenizerFor } from "./model-tokenizer.js";
import { Progress, type Terminal } from "./terminal.js";

export interface GenerateCommandOptions extends SamplingOptions {
  readonly output: string;
  readonly prompt: string;
  readonly maxTokens: number;
  readonly seed: number;
  /** Ids the text ends before; those that the files beside tokenizer and model name, unless given. */
  readonly stopTokens?: readonly number[];
  /** Path of a tokenizer.json, or `bytes`; null for what fits the model. */
  readonly tokenizer: string | null;
  readonly library: LibraryChoice;
  readonly threads: number;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** Runs the command: prompt and continuation to the result channel, speed to the other one. */
export async function generateCommand(options: GenerateCommandOptions, terminal: Terminal): Promise<ExitCode> {
  const progress = new Progress(options.quiet ? null : terminal);
  progress.say(`loading ${options.output}`);
  requireTokens(readModel(modelFile(options.output)).model, "generate");
  await using model = await loadPackage(options.output, {
    library: options.library,
    threads: options.threads,
    onNotice: (message) => (options.quiet ? undefined : terminal.err(`${message}\n`)),
  });
  progress.done();
  const tokenizer = tokenizerFor(model, options.tokenizer);
  const prompt = tokenizer.encode(options.prompt);
  if (prompt.length === 0) throw new MambacError("generate/prompt", "the prompt is empty: give at least one token");
  const notice = (message: string): void => (options.quiet ? undefined : terminal.err(`${message}\n`));
  const ends = options.stopTokens === undefined ? endTokens(foldersOf(model, options), tokenizer, notice) : null;
  if (ends !== null) notice(`ends before token ${ends.ids.join(" or ")} (${ends.path}; --stop-tokens overrides)`);
  const stopTokens = options.stopTokens ?? ends?.ids ?? [];
  const stream = tokenizer.stream();
  const show = (text: string): void => (options.json ? undefined : terminal.out(text));
  const { temperature, topK, topP, maxTokens, seed } = options;
  const start = performance.now();
  let first: number | null = null;
  const { tokens, end } = await generate(model, prompt, {
    maxTokens,
    seed,
    ...(temperature === undefined ? {} : { temperature }),
    ...(topK === undefined ? {} : { topK }),
    ...(topP === undefined ? {} : { topP }),
    stopTokens,
    onToken: (token) => {
      // What cannot be generated from is told before anything is shown.
      if (first === null) {
        first = performance.now();
        show(options.prompt);
      }
      show(stream.push(token));
    },
  });
  show(`${stream.flush()}\n`);
  const done = performance.now();
  const prefillMs = (first ?? done) - start;
  const rate = tokens.length > 1 ? (1000 * (tokens.length - 1)) / (done - (first ?? done)) : null;
  if (options.json) {
    const document = {
      command: "generate",
      version: VERSION,
      output: options.output,
      prompt: options.prompt,
      text: tokenizer.decode(tokens),
      promptTokens: prompt,
      tokens,
      end,
      stopTokens,
      stopTokensFrom: ends?.path ?? null,
      sampling: { temperature: temperature ?? 0, topK: topK ?? null, topP: topP ?? null, seed },
      backend: model.backend,
      library: model.library,
      prefillMs,
      tokensPerSecond: rate,
    };
    terminal.out(`${JSON.stringify(document, null, 2)}\n`);
  } else if (!options.quiet) {
    const then = rate === null ? "" : `, then ${rate.toFixed(0)} tokens/s`;
    terminal.err(`${prompt.length} prompt tokens in ${prefillMs.toFixed(0)} ms${then}\n`);
  }
  return EXIT.ok;
}

/** Where files say what ends a text: beside the tokenizer, and beside the model. */
function foldersOf({ modelPath }: LoadedPackage, { tokenizer }: GenerateCommandOptions): string[] {
  return [...(tokenizer === null ? [] : tokenizerFolder(tokenizer)), dirname(modelPath)];
}
