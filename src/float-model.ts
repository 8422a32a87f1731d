/** The float model that statistics are of: recognised, with all its states, before anything is quantized, and executable. */

import { type CompileOptions, type CompilerPasses, compile } from "./compile.js";
import { executableModel } from "./executable.js";
import type { Model } from "./ir/graph.js";
import { FLOAT_STATE } from "./rewrite/semantic.js";

/** The pass after which a graph has all its states and nothing has been quantized. */
const COMPLETE = "complete-states";

/** Reads and recognises a source, and makes it run. Values keep the names that passes know them by. */
export async function floatModel(
  options: Pick<CompileOptions, "inputs" | "threads" | "onProgress" | "onRemark">,
  passes: CompilerPasses,
): Promise<Model> {
  const { model } = await compile({ ...options, output: null, stopAfter: COMPLETE, state: FLOAT_STATE }, passes);
  return executableModel(model, passes.executable(), options.threads ?? 1);
}
