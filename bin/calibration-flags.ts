/** The flags that say what to calibrate with. */

import type { Command } from "commander";
import { type CompileOptions, loadTokenizer } from "../src/index.js";
import { integer, positiveInteger } from "./flag-values.js";

export interface CalibrationFlags {
  readonly calib?: string[];
  readonly numSamples: number;
  readonly seqLen: number;
  readonly seed: number;
  readonly tokenizer?: string;
}

/** Adds them. */
export function withCalibration(command: Command): Command {
  return command
    .option(
      "--calib <file...>",
      "text, JSONL, npy, npz, safetensors or Parquet for recipes that need calibration; npy of pictures for models of them",
    )
    .option("--num-samples <n>", "sequences of calibration data", positiveInteger, 64)
    .option("--seq-len <n>", "tokens of a calibration sequence", positiveInteger, 512)
    .option("--seed <n>", "seed of the choice of sequences", integer, 0)
    .option(
      "--tokenizer <file>",
      "tokenizer.json or its folder, or 'bytes' (default: the one beside the source; bytes for a vocabulary of 256)",
    );
}

/** What they say; undefined where no data were given. */
export function calibrationOf(flags: CalibrationFlags): CompileOptions["calibration"] {
  if (flags.calib === undefined) return undefined;
  return {
    paths: flags.calib,
    samples: flags.numSamples,
    sequenceLength: flags.seqLen,
    seed: flags.seed,
    ...(flags.tokenizer === undefined ? {} : { tokenizer: loadTokenizer(flags.tokenizer) }),
  };
}
