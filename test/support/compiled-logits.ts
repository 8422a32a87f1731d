/** Compiles a model with extra steps and runs it on fixed tokens: what tests of lossy passes compare. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { passesFor } from "../../passes/index.js";
import { type CompileReport, compile } from "../../src/compile.js";
import type { Model } from "../../src/ir/graph.js";
import type { Step } from "../../src/rewrite/pipeline.js";
import { FLOAT_STATE } from "../../src/rewrite/semantic.js";
import { loadPackage } from "../../src/run/stateful.js";

export interface Compiled {
  readonly report: CompileReport;
  readonly logits: Float32Array;
}

const TOKENS = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43];

/** Steps run between complete states and the choice of the state format. Calibration data are made up, by name. */
export async function compiledLogits(
  input: string,
  extra: readonly Step[],
  inspect: (name: string, model: Model, changed: number) => void = () => undefined,
): Promise<Compiled> {
  const folder = mkdtempSync(join(tmpdir(), "mambac-test-"));
  try {
    const output = join(folder, "out.onnx");
    const passes = passesFor({ state: FLOAT_STATE });
    const report = await compile(
      {
        inputs: [input],
        output,
        state: FLOAT_STATE,
        afterPass: inspect,
        calibration: { paths: ["random"], samples: 4, sequenceLength: 24 },
      },
      {
        ...passes,
        finish: (pair) => {
          const steps = passes.finish(pair);
          const at = steps.findIndex(({ name }) => name === "quantize-state");
          return [...steps.slice(0, at), ...extra, ...steps.slice(at)];
        },
      },
    );
    // Left to itself, ONNX Runtime fuses 4-bit weights at a level that quantizes the activations too.
    const config = { "session.qdq_matmulnbits_accuracy_level": "1" };
    await using model = await loadPackage(output, { library: "none", config });
    return { report, logits: (await model.prefill(TOKENS)).data.slice() };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
