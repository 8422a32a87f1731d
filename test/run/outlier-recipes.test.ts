import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { passesFor, presetNamed } from "../../passes/index.js";
import { compile } from "../../src/compile.js";
import { FLOAT_STATE } from "../../src/rewrite/semantic.js";
import { evaluate } from "../../src/run/evaluate.js";
import { loadPackage } from "../../src/run/stateful.js";
import { withOutliers } from "../support/outliers.js";
import { DEMO } from "../support/state-quality.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-outlier-recipes-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const BATCH = 4;

/** Compiles the demo model, with outliers put in, by a recipe with a float state. */
async function compiled(name: string): Promise<string> {
  const output = join(folder, `${name}.onnx`);
  const recipe = presetNamed(name);
  const passes = passesFor({ state: FLOAT_STATE, quant: recipe });
  await compile(
    {
      inputs: [join(DEMO, "prefill.onnx")],
      output,
      state: FLOAT_STATE,
      recipe,
      calibration: { paths: [join(DEMO, "wordnet.txt")], samples: 8, sequenceLength: 256, seed: 0 },
    },
    { ...passes, finish: (pair) => withOutliers(passes.finish(pair)) },
  );
  return output;
}

/** Mean divergence from the float model, in bits a byte. */
async function divergence(path: string, float: string): Promise<number> {
  await using model = await loadPackage(path, { batch: BATCH, library: "none" });
  await using reference = await loadPackage(float, { batch: BATCH, library: "none" });
  const text = readFileSync(join(DEMO, "kjv.txt"));
  const result = await evaluate({ model, reference, text, windows: BATCH, window: 192, mode: "call" });
  return result.comparison?.meanKlBits ?? Number.NaN;
}

test("outliers break one scale a tensor; smoothing and rotation mend it", async () => {
  const float = await compiled("float");
  expect(await divergence(await compiled("naive-w8a8"), float)).toBeGreaterThan(0.5);
  // A rotation in front of out_proj alone mends half of it.
  const half = await divergence(await compiled("quamba-w8a8"), float);
  expect(half).toBeGreaterThan(0.1);
  for (const name of ["smoothquant-w8a8", "quamba2-w8a8"]) {
    expect(await divergence(await compiled(name), float), name).toBeLessThan(0.02);
  }
});
