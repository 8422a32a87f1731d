/** The float model that statistics are of: recognised, with all its states, before anything is quantized, and executable. */

import { type CompileOptions, type CompilerPasses, compile, executor, withStateNames } from "./compile.js";
import type { Model } from "./ir/graph.js";
import { runSteps } from "./rewrite/pipeline.js";
import { semanticOps } from "./rewrite/semantic.js";
import { invariant } from "./support/errors.js";

/** The pass after which a graph has all its states and nothing has been quantized. */
const COMPLETE = "complete-states";

/** Reads and recognises a source, and makes it run. Values keep the names that passes know them by. */
export async function floatModel(
  options: Pick<CompileOptions, "inputs" | "threads" | "onProgress" | "onRemark">,
  passes: CompilerPasses,
): Promise<Model> {
  const { model } = await compile(
    { ...options, output: null, stopAfter: COMPLETE, state: { format: "f32", scale: "dsq", requantize: "call" } },
    passes,
  );
  invariant(passes.executable !== undefined, "calibration needs the steps that make a model executable");
  const steps = passes.executable();
  const { model: ready } = await runSteps(
    model,
    steps,
    { execute: executor(options.threads ?? 1), report: () => undefined, now: () => performance.now() },
    new Set(steps.flatMap(({ requires }) => requires)),
  );
  return withStateNames(ready, semanticOps(model.graph.nodes));
}
