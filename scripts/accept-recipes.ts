/**
 * npm run accept:recipes -- PATH [RECIPE,RECIPE...]
 *
 * PATH holds models/<name>/prefill.onnx and text/{calib.txt,*.valid.txt}.
 * Protocol: first 12 x 512 bytes of each text, windows apart, zero state at each start, bits per byte; a quantized state is
 * rounded at every token; calibration on 32 x 512 bytes of calib.txt, seed 0. One table a model, that of `mambac compare`:
 * bits per byte and change against float on each text, mean change, KL divergence and agreement with float, file size,
 * state bytes of one sequence, and how many projections ONNX Runtime really runs as integer or low-bit kernels.
 */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { candidateOf, floatCandidate } from "../bin/recipe-command.js";
import { PRESETS, presetNamed } from "../passes/index.js";
import { comparedTable } from "../src/commands/compare-table.js";
import { compareCandidates } from "../src/compare.js";
import { prepare } from "../src/compile.js";

const [path, list] = process.argv.slice(2);
if (path === undefined) throw new Error("usage: npm run accept:recipes -- PATH [RECIPE,RECIPE...]");
const recipes = list === undefined ? PRESETS : list.split(",").map(presetNamed);
const textFolder = join(path, "text");
const texts = readdirSync(textFolder)
  .filter((name) => name.endsWith(".valid.txt"))
  .sort()
  .map((name) => ({ name: name.replace(".valid.txt", ""), text: readFileSync(join(textFolder, name)) }));
const reference = floatCandidate(null);
for (const name of readdirSync(join(path, "models"))) {
  const file = join(path, "models", name, "prefill.onnx");
  if (!existsSync(file)) continue;
  const rows = await compareCandidates({
    prepared: await prepare({ inputs: [file] }, reference.passes),
    inputs: [file],
    reference,
    candidates: recipes.filter((recipe) => recipe.name !== "float").map((recipe) => candidateOf(recipe, null)),
    texts,
    windows: 12,
    window: 512,
    calibration: { paths: [join(textFolder, "calib.txt")], samples: 32, sequenceLength: 512, seed: 0 },
    onProgress: (message) => process.stderr.write(`${message}\n`),
  });
  process.stdout.write(`\n${file}\n${comparedTable(rows)}`);
}
