import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { passesFor, presetNamed } from "../../passes/index.js";
import { compile } from "../../src/compile.js";
import { kernelCensus } from "../../src/run/kernel-census.js";
import { fixture } from "../support/fixture-models.js";
import { DEMO } from "../support/state-quality.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-census-test-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Weight-only recipes: whether their activations really stay float is up to the operator ONNX Runtime picks. */
test.each([
  ["rtn-w4a16", 8, 0],
  ["ptqssm-w8-inout-pc", 8, 8],
  ["float", 0, 0],
] as const)(
  "%s: %i projections on low-bit kernels, %i of them round activations",
  async (name, quantized, rounding) => {
    const output = join(folder, `${name}.onnx`);
    const recipe = presetNamed(name);
    const { state } = recipe;
    await compile({ inputs: [join(DEMO, "prefill.onnx")], output, state, recipe }, passesFor({ state, quant: recipe }));
    const census = await kernelCensus(output);
    expect(census).toMatchObject({ quantized, projections: 9, roundsActivations: rounding });
    expect(census.float.length).toBe(9 - quantized);
  },
);

/** Queries, keys and values read one value, so do the two halves of a gated MLP: their codes have several readers. */
test("projections that share an input run on integers as the others do", async () => {
  const output = join(folder, "shared.onnx");
  const recipe = presetNamed("w8a8h8");
  const { state } = recipe;
  const calibration = { paths: ["random"], samples: 4, sequenceLength: 16 };
  await compile(
    { inputs: [fixture("hf/bamba/prefill.onnx")], output, state, recipe, calibration },
    passesFor({ state, quant: recipe }),
  );
  expect(await kernelCensus(output)).toMatchObject({ quantized: 12, projections: 13 });
});
