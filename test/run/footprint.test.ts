import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { readModel } from "../../src/onnx/read.js";
import { FOOTPRINT_CLASSES, type Footprint, footprint } from "../../src/run/footprint.js";
import { readSignature } from "../../src/run/signature.js";
import { mambac } from "../support/command.js";
import { DEMO } from "../support/state-quality.js";

const root = mkdtempSync(join(tmpdir(), "mambac-footprint-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

async function compiled(...flags: string[]): Promise<Footprint> {
  const out = join(root, "out.onnx");
  const result = await mambac("compile", join(DEMO, "prefill.onnx"), "-o", out, "-q", ...flags);
  expect(result.code).toBe(0);
  const { model } = readModel(out);
  const found = footprint(model, readSignature(model));
  const all = [...model.graph.initializers.values()].reduce((sum, tensor) => sum + tensor.byteLength, 0);
  expect(found.weightBytes).toBe(all);
  expect(FOOTPRINT_CLASSES.reduce((sum, name) => sum + found.weights[name], 0)).toBe(all);
  return found;
}

// The demo: vocabulary 256, d_model 128, d_inner 256, d_state 64, four heads, four layers.
test("every byte is in one class, and the classes are what the sizes of the model say", async () => {
  const float = await compiled("--state", "f32");
  expect(float.weights.embedding).toBe(4 * 256 * 128);
  // One table serves both; it counts as the embedding.
  expect(float.weights.head).toBe(0);
  expect(float.weights.projections).toBe(4 * 4 * (128 * (2 * 256 + 2 * 64 + 4) + 256 * 128));
  expect(float.weights.conv).toBe(4 * 4 * 384 * (4 + 1));
  expect(float.weights.scales).toBe(0);
  expect(float.stateBytes).toBe(4 * 4 * (384 * 3 + 4 * 64 * 64));
  expect(float.weights.other).toBeLessThan(1000);
});

test("8-bit projections take a quarter and have scales; a 4-bit state takes an eighth and scales", async () => {
  const float = await compiled("--state", "f32");
  const packed = await compiled("--recipe", "ptqssm-w8-inout-pc", "--state", "h4");
  expect(packed.weights.projections).toBe(float.weights.projections / 4);
  expect(packed.weights.scales).toBe(4 * 4 * (2 * 256 + 2 * 64 + 4 + 128));
  expect(packed.weights.embedding).toBe(float.weights.embedding);
  // Projections get weights of one layout, so the head has its own now.
  expect(packed.weights.head).toBe(4 * 256 * 128);
  expect(packed.stateBytes).toBe(4 * (4 * 384 * 3 + 4 * ((64 * 64) / 2 + 2 * 64 + 2 * 64)));
});
