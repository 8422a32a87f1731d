/** `mambac generate`: continues a text, printing it as it comes. */

import { generate } from "../run/generate.js";
import type { LibraryChoice } from "../run/locate.js";
import type { SamplingOptions } from "../run/sampling.js";
import { loadPackage } from "../run/stateful.js";
import { EXIT, type ExitCode, MambacError } from "../support/errors.js";
import { tokenizerFor } from "./model-tokenizer.js";
import { Progress, type Terminal } from "./terminal.js";

export interface GenerateCommandOptions extends SamplingOptions {
  readonly output: string;
  readonly prompt: string;
  readonly maxTokens: number;
  readonly seed: number;
  /** Path of a tokenizer.json, or `bytes`; null for what fits the model. */
  readonly tokenizer: string | null;
  readonly library: LibraryChoice;
  readonly threads: number;
  readonly quiet: boolean;
}

/** Runs the command: prompt and continuation to the result channel, speed to the other one. */
export async function generateCommand(options: GenerateCommandOptions, terminal: Terminal): Promise<ExitCode> {
  const progress = new Progress(options.quiet ? null : terminal);
  progress.say(`loading ${options.output}`);
  await using model = await loadPackage(options.output, {
    library: options.library,
    threads: options.threads,
    onNotice: (message) => (options.quiet ? undefined : terminal.err(`${message}\n`)),
  });
  progress.done();
  const tokenizer = tokenizerFor(model, options.tokenizer);
  const prompt = tokenizer.encode(options.prompt);
  if (prompt.length === 0) throw new MambacError("generate/prompt", "the prompt is empty: give at least one token");
  terminal.out(options.prompt);
  const stream = tokenizer.stream();
  const { temperature, topK, topP, maxTokens, seed } = options;
  const start = performance.now();
  let first = start;
  const { tokens } = await generate(model, prompt, {
    maxTokens,
    seed,
    ...(temperature === undefined ? {} : { temperature }),
    ...(topK === undefined ? {} : { topK }),
    ...(topP === undefined ? {} : { topP }),
    onToken: (token) => {
      if (first === start) first = performance.now();
      terminal.out(stream.push(token));
    },
  });
  terminal.out(`${stream.flush()}\n`);
  if (!options.quiet) {
    const seconds = (performance.now() - first) / 1000;
    const rate = tokens.length > 1 ? `, then ${((tokens.length - 1) / seconds).toFixed(0)} tokens/s` : "";
    terminal.err(`${prompt.length} prompt tokens in ${(first - start).toFixed(0)} ms${rate}\n`);
  }
  return EXIT.ok;
}
