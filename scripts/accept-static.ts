/**
 * npm run accept:static -- PATH [WINDOWS [MODEL]]
 *
 * What static scales cost: the Mamba-2 models under PATH, which holds models/<name>/prefill.onnx, text/calib.txt and
 * text/*.valid.txt, with float states, scales measured at every rounding and scales calibrated on 64 x 512 tokens of
 * calib.txt. Bits per byte of the first WINDOWS (12) x 512 bytes of each text, zero state at each start, one token a call;
 * change and Kullback-Leibler divergence against float; bytes of a sequence's scan states. Uses the op library if it is built.
 * Ends with 1 when a static state diverges more than a tenth of a bit a byte, or 8 bits more than 4.
 */

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { passesFor } from "../passes/index.js";
import { compile } from "../src/compile.js";
import { FLOAT_STATE, type StateChoice } from "../src/rewrite/semantic.js";
import { evaluate } from "../src/run/evaluate.js";
import { type LoadedPackage, loadPackage } from "../src/run/stateful.js";
import { losses, mean } from "../test/support/state-quality.js";

/** Bits a byte. */
const MOST_DIVERGENCE = 0.1;

const CHOICES: readonly StateChoice[] = (["h4", "h8"] as const).flatMap((format) =>
  (["dsq-max", "static"] as const).map((scale): StateChoice => ({ format, scale, requantize: "call" })),
);

const [path, count = "12", only] = process.argv.slice(2);
const windows = Number(count);
const folder = mkdtempSync(join(tmpdir(), "mambac-static-"));

interface Scores {
  readonly bits: readonly number[];
  readonly divergence: number;
}

async function scores(model: LoadedPackage, reference: LoadedPackage, texts: readonly string[]): Promise<Scores> {
  const bits: number[] = [];
  const divergence: number[] = [];
  for (const text of texts) {
    const result = await evaluate({ model, reference, text: readFileSync(text), windows, window: 512, mode: "token" });
    bits.push(result.bitsPerByte ?? Number.NaN);
    divergence.push(result.comparison?.meanKlBits ?? Number.NaN);
  }
  return { bits, divergence: mean(divergence) };
}

/** Compiles and loads; also the bytes of a sequence's scan states. Null for models without Mamba-2. */
async function load(source: string, state: StateChoice, calib: string): Promise<[LoadedPackage, number] | null> {
  const output = join(folder, `${state.format}-${state.scale}.onnx`);
  const calibration = { paths: [calib], samples: 64, sequenceLength: 512, seed: 0 };
  const { rows } = await compile({ inputs: [source], output, state, calibration }, passesFor({ state }));
  const scans = rows.filter(({ kind }) => kind === "scan");
  if (!scans.every(({ form }) => form.startsWith("mamba2"))) return null;
  const bytes = scans.reduce((sum, { bytesAfter }) => sum + bytesAfter, 0);
  return [await loadPackage(output, { batch: windows, library: "auto" }), bytes];
}

async function table(source: string, texts: readonly string[], calib: string): Promise<void> {
  const float = await load(source, FLOAT_STATE, calib);
  const again = await load(source, FLOAT_STATE, calib);
  if (float === null || again === null) return;
  await using reference = float[0];
  await using plain = again[0];
  const base = await scores(plain, reference, texts);
  const names = texts.map((text) => basename(text).replace(/\..*/, ""));
  const heads = [...names.map((name) => `${name} bits`), ...names.map((name) => `${name} %`), "mean %", "KL bits"];
  process.stdout.write(
    `\n${source}, ${windows} x 512 bytes of each text\n` +
      `${["state".padEnd(14), ...heads.map((head) => head.padStart(13))].join("")}   bytes a sequence\n`,
  );
  const row = (label: string, { bits, divergence }: Scores, bytes: number): void => {
    const change = losses(bits, base.bits);
    const cells = [
      ...bits.map((value) => value.toFixed(4)),
      ...[...change, mean(change)].map((value) => value.toFixed(2)),
      divergence.toExponential(2),
    ].map((cell) => cell.padStart(13));
    process.stdout.write(`${label.padEnd(14)}${cells.join("")}   ${bytes} (${(float[1] / bytes).toFixed(2)}x less)\n`);
  };
  row("f32", base, float[1]);
  const found = new Map<string, number>();
  for (const state of CHOICES) {
    const loaded = await load(source, state, calib);
    if (loaded === null) continue;
    const [model, bytes] = loaded;
    const result = await scores(model, reference, texts);
    await model.close();
    const label = `${state.format} ${state.scale}`;
    row(label, result, bytes);
    found.set(label, result.divergence);
  }
  const [h4 = Number.NaN, h8 = Number.NaN] = ["h4 static", "h8 static"].map((label) => found.get(label));
  if (!(h8 < h4 && h4 < MOST_DIVERGENCE)) {
    process.stdout.write(`FAIL static states diverge by ${h4} (h4) and ${h8} (h8) bits a byte\n`);
    process.exitCode = 1;
  }
}

async function main(): Promise<void> {
  if (path === undefined) throw new Error("usage: npm run accept:static -- PATH [WINDOWS [MODEL]]");
  const texts = readdirSync(join(path, "text"))
    .filter((name) => name.endsWith(".valid.txt"))
    .map((name) => join(path, "text", name));
  for (const name of readdirSync(join(path, "models"))) {
    const source = join(path, "models", name, "prefill.onnx");
    if (existsSync(source) && (only === undefined || only === name)) {
      await table(source, texts, join(path, "text", "calib.txt"));
    }
  }
}

try {
  await main();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
