/**
 * npm run accept:static -- PATH [WINDOWS [MODEL]]
 *
 * What static scales cost: the Mamba-2 models under PATH, which holds models/<name>/prefill.onnx, text/calib.txt and
 * text/*.valid.txt, with float states, scales measured at every rounding and scales calibrated on 64 x 512 tokens of
 * calib.txt. Bits per byte of the first WINDOWS (12) x 512 bytes of each text, zero state at each start, one token a call;
 * change and Kullback-Leibler divergence against float; bytes of a sequence's scan states. Uses the op library if it is built.
 * Ends with 1 when a static state diverges more than a tenth of a bit a byte, or 8 bits more than 4.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { passesFor } from "../passes/index.js";
import { compile } from "../src/compile.js";
import { FLOAT_STATE, type StateChoice } from "../src/rewrite/semantic.js";
import { loadStored, StateTable, type Stored, sourcesUnder, textsUnder } from "./state-table.js";

/** Bits a byte. */
const MOST_DIVERGENCE = 0.1;

const CHOICES: readonly StateChoice[] = (["h4", "h8"] as const).flatMap((format) =>
  (["dsq-max", "static"] as const).map((scale): StateChoice => ({ format, scale, requantize: "call" })),
);

const [path, count = "12", only] = process.argv.slice(2);
const windows = Number(count);
const folder = mkdtempSync(join(tmpdir(), "mambac-static-"));

/** Compiles and loads. Null for models without Mamba-2. */
async function load(source: string, state: StateChoice, calib: string): Promise<Stored | null> {
  const output = join(folder, `${state.format}-${state.scale}.onnx`);
  const calibration = { paths: [calib], samples: 64, sequenceLength: 512, seed: 0 };
  const { rows } = await compile({ inputs: [source], output, state, calibration }, passesFor({ state }));
  return loadStored(output, rows, { batch: windows, library: "auto" });
}

async function table(source: string, texts: readonly string[], calib: string): Promise<void> {
  const float = await load(source, FLOAT_STATE, calib);
  const again = await load(source, FLOAT_STATE, calib);
  if (float === null || again === null) return;
  await using _reference = float.model;
  await using _plain = again.model;
  const rows = await StateTable.open(source, texts, windows, float, again);
  const found = new Map<string, number>();
  for (const state of CHOICES) {
    const stored = await load(source, state, calib);
    const label = `${state.format} ${state.scale}`;
    if (stored !== null) found.set(label, await rows.row(label, stored));
  }
  const [h4 = Number.NaN, h8 = Number.NaN] = ["h4 static", "h8 static"].map((label) => found.get(label));
  if (!(h8 < h4 && h4 < MOST_DIVERGENCE)) {
    process.stdout.write(`FAIL static states diverge by ${h4} (h4) and ${h8} (h8) bits a byte\n`);
    process.exitCode = 1;
  }
}

async function main(): Promise<void> {
  if (path === undefined) throw new Error("usage: npm run accept:static -- PATH [WINDOWS [MODEL]]");
  for (const [name, source] of sourcesUnder(path)) {
    if (only === undefined || only === name) await table(source, textsUnder(path), join(path, "text", "calib.txt"));
  }
}

try {
  await main();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
