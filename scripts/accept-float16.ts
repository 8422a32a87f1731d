/**
 * npm run accept:float16 -- PATH [WINDOWS]
 *
 * What float16 costs: the models under PATH, which holds models/<name>/prefill.onnx and text/*.valid.txt, compiled with
 * float32 and with float16 weights and activations, for float and 8-bit states. Bits per byte of the first WINDOWS (12) x 512
 * bytes of each text, zero state at each start, one token a call; change and Kullback-Leibler divergence against float32
 * with the same state. Uses the op library if it is built. Ends with 1 when one text loses more than 0.05 %.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { passesFor } from "../passes/index.js";
import { compile } from "../src/compile.js";
import type { FloatType } from "../src/ops/names.js";
import { FLOAT_STATE, type StateChoice } from "../src/rewrite/semantic.js";
import { type LoadedPackage, loadPackage } from "../src/run/stateful.js";
import { losses, mean, textScores } from "../test/support/state-quality.js";
import { sourcesUnder, textsUnder } from "./state-table.js";

/** Change of bits per byte, in percent. */
const MOST_CHANGE = 0.05;

const STATES: readonly StateChoice[] = [FLOAT_STATE, { format: "h8", scale: "dsq-max", requantize: "call" }];

const [path, count = "12"] = process.argv.slice(2);
const windows = Number(count);
const folder = mkdtempSync(join(tmpdir(), "mambac-float16-"));

async function load(source: string, state: StateChoice, float: FloatType): Promise<LoadedPackage> {
  const output = join(folder, `${state.format}-${float}.onnx`);
  await compile({ inputs: [source], output, state, float }, passesFor({ state, float }));
  return loadPackage(output, { batch: windows, library: "auto" });
}

async function main(): Promise<void> {
  if (path === undefined) throw new Error("usage: npm run accept:float16 -- PATH [WINDOWS]");
  const texts = textsUnder(path);
  for (const [name, source] of sourcesUnder(path)) {
    for (const state of STATES) {
      await using whole = await load(source, state, "f32");
      await using again = await load(source, state, "f32");
      await using half = await load(source, state, "f16");
      const float = await textScores(again, whole, { windows, window: 512 }, texts);
      const scores = await textScores(half, whole, { windows, window: 512 }, texts);
      const changes = losses(scores.bits, float.bits);
      const text = changes.map((change) => `${change.toFixed(4)} %`).join(", ");
      const divergence = mean(scores.divergence).toExponential(1);
      process.stdout.write(`${name}, ${state.format} states: ${text}; divergence ${divergence} bits a byte\n`);
      if (changes.some((change) => !(Math.abs(change) <= MOST_CHANGE))) {
        process.stdout.write(`FAIL ${name}: float16 moves bits per byte by more than ${MOST_CHANGE} %\n`);
        process.exitCode = 1;
      }
    }
  }
}

try {
  await main();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
