/**
 * npm run accept:recipes -- PATH [RECIPE,RECIPE...]
 *
 * PATH holds models/<name>/prefill.onnx and text/{calib.txt,*.valid.txt}.
 * Protocol: first 12 x 512 bytes of each text, windows apart, zero state at each start, bits per byte; a quantized state is
 * rounded at every token; calibration on 32 x 512 bytes of calib.txt, seed 0. One table a model: bits per byte and change
 * against float on each text, mean change, file size, state bytes of one sequence, and how many projections ONNX Runtime
 * really runs as integer or low-bit kernels.
 */

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  executableRecipe,
  finishRecipe,
  PRESETS,
  presetNamed,
  type QuantRecipe,
  raiseRecipe,
} from "../passes/index.js";
import { compile } from "../src/compile.js";
import { evaluate } from "../src/run/evaluate.js";
import { kernelCensus } from "../src/run/kernel-census.js";
import { loadPackage } from "../src/run/stateful.js";

const WINDOWS = 12;

interface Row {
  readonly bits: readonly number[];
  readonly text: string;
}

async function measure(
  model: string,
  recipe: QuantRecipe,
  calib: string,
  texts: readonly string[],
  folder: string,
): Promise<Row> {
  const output = join(folder, `${recipe.name}.onnx`);
  const { state } = recipe;
  const report = await compile(
    {
      inputs: [model],
      output,
      state,
      recipe,
      calibration: { paths: [calib], samples: 32, sequenceLength: 512, seed: 0 },
    },
    {
      raise: raiseRecipe,
      executable: executableRecipe,
      finish: (pair) => finishRecipe({ pair, trust: null, quant: recipe, state, stateNames: null, target: "mambac" }),
    },
  );
  const census = await kernelCensus(output);
  const bits: number[] = [];
  for (const text of texts) {
    await using loaded = await loadPackage(output, { batch: WINDOWS });
    const mode = state.format === "f32" ? "call" : "token";
    const result = await evaluate({ model: loaded, text: readFileSync(text), windows: WINDOWS, window: 512, mode });
    bits.push(result.bitsPerByte ?? Number.NaN);
  }
  const data = `${output}.data`;
  const bytes = statSync(output).size + (existsSync(data) ? statSync(data).size : 0);
  const stateBytes = report.rows.reduce((sum, row) => sum + row.bytesAfter, 0);
  const facts = `${(bytes / 1e6).toFixed(2)} MB  ${(stateBytes / 1e3).toFixed(1)} kB  ${census.quantized} of ${census.projections}`;
  return { bits, text: facts };
}

async function main(): Promise<void> {
  const [path, list] = process.argv.slice(2);
  const recipes = list === undefined ? PRESETS : ["float", ...list.split(",")].map(presetNamed);
  if (path === undefined) throw new Error("usage: npm run accept:recipes -- PATH [RECIPE,RECIPE...]");
  const textFolder = join(path, "text");
  const texts = readdirSync(textFolder)
    .filter((name) => name.endsWith(".valid.txt"))
    .sort()
    .map((name) => join(textFolder, name));
  const calib = join(textFolder, "calib.txt");
  const models = readdirSync(join(path, "models")).map((name) => join(path, "models", name));
  const folder = mkdtempSync(join(tmpdir(), "mambac-recipes-"));
  try {
    for (const model of models) {
      const file = join(model, "prefill.onnx");
      if (!existsSync(file)) continue;
      process.stdout.write(`\n${file}\n`);
      let float: readonly number[] | null = null;
      for (const recipe of recipes) {
        const row = await measure(file, recipe, calib, texts, folder);
        float ??= row.bits;
        const changes = row.bits.map((bits, at) => (bits / (float?.[at] ?? bits) - 1) * 100);
        const mean = changes.reduce((sum, change) => sum + change, 0) / changes.length;
        const cells = row.bits.map((bits, at) => `${bits.toFixed(4)} ${signed(changes[at] ?? 0)}`);
        process.stdout.write(`${recipe.name.padEnd(20)} ${cells.join("  ")}  mean ${signed(mean)}  ${row.text}\n`);
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function signed(percent: number): string {
  return `${percent < 0 ? "" : "+"}${percent.toFixed(2)}%`.padStart(8);
}

await main();
