/**
 * npm run accept:replay [-- PATH [WINDOWS]]
 *
 * Quality and size of replay states against states rounded at every token, for the demo model, or for the Mamba-2 models
 * under PATH, which holds models/<name>/prefill.onnx and text/*.valid.txt. Bits per byte of the first WINDOWS (12) x 512
 * bytes of each text, zero state at each start, one token a call; change and Kullback-Leibler divergence against float;
 * bytes of a sequence's scan states against float32. Function bodies, no library.
 * Ends with 1 when a replay state diverges more than the same format rounded at every token.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FLOAT_STATE, type StateChoice } from "../src/rewrite/semantic.js";
import { compileWith } from "../test/support/fixture-row.js";
import { DEMO, DEMO_TEXTS } from "../test/support/state-quality.js";
import { loadStored, StateTable, type Stored, sourcesUnder, textsUnder } from "./state-table.js";

interface Choice {
  readonly label: string;
  readonly state: StateChoice;
  /** Label of the row it must not be worse than. */
  readonly against: string | null;
}

const CHOICES: readonly Choice[] = (["h4", "h8"] as const).flatMap((format): Choice[] => {
  const every = `${format} dsq-max, every token`;
  const scale = "dsq-max";
  return [
    { label: every, state: { format, scale, requantize: "call" }, against: null },
    ...(format === "h4" ? [4, 8, 16, 32] : [8, 16]).map((replayLength): Choice => {
      const state: StateChoice = { format, scale, requantize: "replay", replayLength };
      return { label: `${format} dsq-max, replay R=${replayLength}`, state, against: every };
    }),
  ];
});

const [path, count = "12"] = process.argv.slice(2);
const windows = Number(count);
const folder = mkdtempSync(join(tmpdir(), "mambac-replay-"));

/** Compiles and loads. Null for models without Mamba-2. */
async function load(source: string, state: StateChoice, name: string): Promise<Stored | null> {
  const output = join(folder, `${name}.onnx`);
  const { rows } = await compileWith([source], output, state);
  return loadStored(output, rows, { batch: windows, library: "none" });
}

async function table(source: string, texts: readonly string[]): Promise<void> {
  const float = await load(source, FLOAT_STATE, "float");
  const again = await load(source, FLOAT_STATE, "float-again");
  if (float === null || again === null) return;
  await using _reference = float.model;
  await using _plain = again.model;
  const rows = await StateTable.open(source, texts, windows, float, again);
  const found = new Map<string, number>();
  for (const [index, { label, state, against }] of CHOICES.entries()) {
    const stored = await load(source, state, `state${index}`);
    if (stored === null) continue;
    const divergence = await rows.row(label, stored);
    found.set(label, divergence);
    if (against !== null && !(divergence <= (found.get(against) ?? Number.NaN))) {
      process.stdout.write(`FAIL ${label} diverges more than ${against}\n`);
      process.exitCode = 1;
    }
  }
}

async function main(): Promise<void> {
  if (path === undefined) await table(join(DEMO, "prefill.onnx"), DEMO_TEXTS);
  else for (const source of sourcesUnder(path).values()) await table(source, textsUnder(path));
}

try {
  await main();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
