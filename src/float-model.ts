/** The float model that statistics are of: recognised, with all its states, before anything is quantized, and executable. */

import { ALIGNED, COMPLETE } from "./calibration-tables.js";
import { type CompileOptions, type CompilerPasses, compile } from "./compile.js";
import { executableModel } from "./executable.js";
import type { Model } from "./ir/graph.js";
import { graphDigest } from "./onnx/model-digest.js";
import { FLOAT_STATE } from "./rewrite/semantic.js";
import { invariant } from "./support/errors.js";

export interface FloatModel {
  /** Executable; values keep the names that passes know them by. */
  readonly model: Model;
  /** Hash of it as it was before its projections were brought into one form: what tables are about. */
  readonly modelSha256: string;
}

/** Reads and recognises a source, and makes it run as the first pass of a recipe finds it. `passes` align projections. */
export async function floatModel(
  options: Pick<CompileOptions, "inputs" | "threads" | "onProgress" | "onRemark">,
  passes: CompilerPasses,
): Promise<FloatModel> {
  let complete: Model | null = null;
  const { model } = await compile(
    {
      ...options,
      output: null,
      stopAfter: ALIGNED,
      state: FLOAT_STATE,
      afterPass: (name, made) => {
        if (name === COMPLETE) complete = made;
      },
    },
    passes,
  );
  invariant(complete !== null, `there is no pass ${COMPLETE}`);
  const ready = (of: Model): Promise<Model> => executableModel(of, passes.executable(), options.threads ?? 1);
  return { model: await ready(model), modelSha256: graphDigest(await ready(complete)) };
}
