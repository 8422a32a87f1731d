/** `mambac calibrate --recipe`: the statistics that the passes of one recipe ask for, as they ask for them. */

import { type CompilerPasses, compile, VERSION } from "../compile.js";
import { requireWritable } from "../onnx/write.js";
import type { StatRequest } from "../quant/calibration.js";
import type { StateChoice } from "../rewrite/semantic.js";
import { calibrationHeader } from "../run/calibrate.js";
import { CalibrationWriter, readCalibration } from "../run/calibration-files.js";
import type { Dataset } from "../run/dataset.js";
import { loadTokenizer } from "../run/tokenizer.js";
import { EXIT, type ExitCode, MambacError } from "../support/errors.js";
import { type CalibrateCommandOptions, tellTable } from "./calibrate.js";
import { Progress, type Terminal } from "./terminal.js";

export interface CalibrateRecipeCommandOptions extends Omit<CalibrateCommandOptions, "secondMoments"> {
  readonly recipe: { readonly name: string; readonly state: StateChoice };
  /** Tables that hold the first of the statistics already. */
  readonly tables: readonly string[];
}

/**
 * Runs the command. A pass is calibrated on the model that the passes before it have left, so the shards of a calibration
 * hold what the next such pass needs, and no more. Throws what compiling throws, `dataset/...` and `calibration/...` with exit code 5.
 */
export async function calibrateRecipeCommand(
  options: CalibrateRecipeCommandOptions,
  passes: CompilerPasses,
  terminal: Terminal,
): Promise<ExitCode> {
  const progress = new Progress(options.quiet ? null : terminal);
  const { inputs, output, samples, sequenceLength, seed, shard, threads, recipe } = options;
  requireWritable(output);
  const start = performance.now();
  const writer = new CalibrationWriter(output);
  const requests: StatRequest[] = [];
  const calibrated: { readonly pass: string; readonly modelSha256: string; readonly dataset: Dataset }[] = [];
  try {
    await compile(
      {
        inputs,
        output: null,
        state: recipe.state,
        threads,
        calibration: {
          paths: options.data,
          samples,
          sequenceLength,
          seed,
          ...(shard === null ? {} : { shard }),
          ...(options.tokenizer === null ? {} : { tokenizer: loadTokenizer(options.tokenizer) }),
        },
        tables: options.tables.map((path) => ({ label: path, table: readCalibration(path) })),
        recorder: {
          begin: (pass, modelSha256, dataset) => {
            calibrated.push({ pass, modelSha256, dataset });
          },
          add: (request, encoded) => {
            requests.push(request);
            writer.add(request, encoded);
          },
        },
        onProgress: (message) => progress.say(message),
      },
      passes,
    );
    const [about] = calibrated;
    if (about === undefined) throw nothingToCalibrate(options);
    const table = writer.finish(calibrationHeader({ ...about, version: VERSION, requests }));
    progress.done();
    tellTable("calibrate", options, table, (performance.now() - start) / 1000, terminal);
    if (!options.quiet)
      terminal.err(`calibrated ${calibrated.map(({ pass }) => pass).join(", ")} of the recipe ${recipe.name}\n`);
    if (!options.quiet && shard !== null && shard.count > 1) {
      terminal.err(
        "merge the shards, then calibrate with --calib-table and the merged table, should passes after it need more\n",
      );
    }
  } finally {
    writer.close();
    progress.done();
  }
  return EXIT.ok;
}

function nothingToCalibrate({ recipe, tables }: CalibrateRecipeCommandOptions): MambacError {
  return new MambacError(
    "calibrate/nothing",
    tables.length === 0
      ? `the recipe ${recipe.name} needs no calibration`
      : `the recipe ${recipe.name} needs nothing beyond ${tables.join(", ")}`,
  );
}
