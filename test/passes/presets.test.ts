import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { candidateOf, floatCandidate } from "../../bin/recipe-command.js";
import { AUTO_CANDIDATES, PRESETS, presetNamed } from "../../passes/index.js";
import { type ComparedRow, compareCandidates } from "../../src/compare.js";
import { prepare } from "../../src/compile.js";
import { Random } from "../../src/support/random.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-presets-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const random = new Random(4);
const IDS = Array.from({ length: 2 * 16 + 1 }, () => random.integer(96));

/** Every preset on a small model of random weights, whose logits are all but arbitrary. */
async function all(name: string): Promise<ReadonlyMap<string, ComparedRow>> {
  const file = fixture(name);
  const reference = floatCandidate(null);
  const rows = await compareCandidates({
    prepared: await prepare({ inputs: [file] }, reference.passes),
    inputs: [file],
    reference,
    candidates: PRESETS.filter((recipe) => recipe.name !== "float").map((recipe) => candidateOf(recipe, null)),
    texts: [{ name: "made up", text: IDS }],
    windows: 2,
    window: 16,
    calibration: { paths: ["random"], samples: 3, sequenceLength: 16, seed: 0 },
    library: "none",
  });
  return new Map(rows.map((row) => [row.name, row]));
}

const BITS4 = /w4/;

describe.each(["hf/mamba/prefill.onnx", "hf/mamba2/prefill.onnx"])("presets on %s", (name) => {
  test("all compile and run; 8 bits stay near the float model, 4 bits farther, and files shrink", async () => {
    const rows = await all(name);
    expect([...rows.keys()].sort()).toEqual(PRESETS.map((preset) => preset.name).sort());
    for (const [preset, { meanKlBits, texts, kernels, stateBytes }] of rows) {
      expect(texts[0]?.nonFinite, preset).toBe(0);
      expect(meanKlBits, preset).toBeLessThan(BITS4.test(preset) ? 0.5 : 0.05);
      if (preset === "float") continue;
      expect(meanKlBits, preset).toBeGreaterThan(0);
      if (!preset.includes("tanh")) expect(kernels.quantized, preset).toBeGreaterThan(0);
      const packed = presetNamed(preset).state.format !== "f32";
      expect(stateBytes < (rows.get("float")?.stateBytes ?? 0), preset).toBe(packed);
    }
  });
});

test("what auto measures are presets, and cheap ones are among them", () => {
  const names = PRESETS.map(({ name }) => name);
  for (const name of AUTO_CANDIDATES) expect(names).toContain(name);
  expect(AUTO_CANDIDATES.some((name) => BITS4.test(name))).toBe(true);
  expect(new Set(names).size).toBe(names.length);
});
