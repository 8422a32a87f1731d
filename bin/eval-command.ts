/** `mambac eval`: parsing only. */

import { type Command, Option } from "commander";
import { type EvaluateMode, evalCommand, type Terminal } from "../src/index.js";
import { positiveInteger } from "./flag-values.js";

interface EvalFlags {
  readonly text?: string;
  readonly lastWord?: string;
  readonly against?: string;
  readonly windows: number;
  readonly window: number;
  readonly mode: EvaluateMode;
  readonly sequences: number;
  readonly tokenizer?: string;
  readonly library: string;
  readonly threads: number;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

/** Adds the command. */
export function addEval(program: Command, terminal: Terminal, outcome: { code: number }): void {
  program
    .command("eval")
    .description("how well a model predicts a text or the last word of passages, its distance from another, its bytes")
    .argument("<out>", "the compiled file")
    .option("--text <file>", "a text: bits per byte, perplexity, and both by position in the window")
    .option("--last-word <file>", 'passages as JSON lines, {"text": ...} each: is the last word predicted (LAMBADA)')
    .option("--against <in>", "the source, or any model of the same vocabulary: KL and agreement on the text")
    .option("--windows <n>", "windows from the start of the text, each from zero state", positiveInteger, 12)
    .option("--window <n>", "tokens a window", positiveInteger, 512)
    .addOption(
      new Option("--mode <mode>", "one token a call (a quantized state is then rounded at every token), or one window")
        .choices(["token", "call"])
        .default("token"),
    )
    .option("--sequences <n>", "sequences the footprint counts the state of", positiveInteger, 1)
    .option("--tokenizer <file>", "tokenizer.json or its folder, or 'bytes' (default for a vocabulary of 256)")
    .option("--library <file>", "the op library: auto, none or a path", "auto")
    .option("--threads <n>", "threads inside one operator", positiveInteger, 1)
    .option("--json", "one JSON document on stdout")
    .option("-q, --quiet", "nothing but results asked for, warnings and errors")
    .action(async (output: string, flags: EvalFlags) => {
      const { windows, window, mode, sequences, library, threads } = flags;
      outcome.code = await evalCommand(
        {
          output,
          text: flags.text ?? null,
          lastWord: flags.lastWord ?? null,
          against: flags.against ?? null,
          windows,
          window,
          mode,
          sequences,
          tokenizer: flags.tokenizer ?? null,
          library,
          threads,
          json: flags.json ?? false,
          quiet: flags.quiet ?? false,
        },
        terminal,
      );
    });
}
