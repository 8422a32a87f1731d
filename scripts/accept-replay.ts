/**
 * npm run accept:replay [-- PATH [WINDOWS]]
 *
 * Quality and size of replay states against states rounded at every token, for the demo model, or for the Mamba-2 models
 * under PATH, which holds models/<name>/prefill.onnx and text/*.valid.txt. Bits per byte of the first WINDOWS (12) x 512
 * bytes of each text, zero state at each start, one token a call; change and Kullback-Leibler divergence against float;
 * bytes of a sequence's scan states against float32. Function bodies, no library.
 * Ends with 1 when a replay state diverges more than the same format rounded at every token.
 */

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { FLOAT_STATE, type StateChoice } from "../src/rewrite/semantic.js";
import { evaluate } from "../src/run/evaluate.js";
import { type LoadedPackage, loadPackage } from "../src/run/stateful.js";
import { compileWith } from "../test/support/fixture-row.js";
import { DEMO, losses, mean, TEXTS } from "../test/support/state-quality.js";

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

/** Compiles and loads; also the bytes of a sequence's scan states as float32 and as compiled. */
async function load(source: string, state: StateChoice, name: string): Promise<[LoadedPackage, number, number] | null> {
  const output = join(folder, `${name}.onnx`);
  const { rows } = await compileWith([source], output, state);
  const scans = rows.filter(({ kind }) => kind === "scan");
  if (!scans.every(({ form }) => form.startsWith("mamba2"))) return null;
  const total = (of: (row: (typeof scans)[number]) => number): number => scans.reduce((sum, row) => sum + of(row), 0);
  const model = await loadPackage(output, { batch: windows, library: "none" });
  return [model, total(({ bytesBefore }) => bytesBefore), total(({ bytesAfter }) => bytesAfter)];
}

async function table(source: string, texts: readonly string[]): Promise<void> {
  const float = await load(source, FLOAT_STATE, "float");
  const again = await load(source, FLOAT_STATE, "float-again");
  if (float === null || again === null) return;
  await using reference = float[0];
  await using plain = again[0];
  const base = await scores(plain, reference, texts);
  const names = texts.map((text) => basename(text).replace(/\..*/, ""));
  const heads = [...names.map((name) => `${name} bits`), ...names.map((name) => `${name} %`), "mean %", "KL bits"];
  process.stdout.write(
    `\n${source}, ${windows} x 512 bytes of each text\n` +
      `${["state".padEnd(26), ...heads.map((head) => head.padStart(13))].join("")}   bytes a sequence\n`,
  );
  const row = (label: string, { bits, divergence }: Scores, before: number, after: number): void => {
    const change = losses(bits, base.bits);
    const cells = [
      ...bits.map((value) => value.toFixed(4)),
      ...[...change, mean(change)].map((value) => value.toFixed(2)),
      divergence.toExponential(2),
    ].map((cell) => cell.padStart(13));
    process.stdout.write(
      `${label.padEnd(26)}${cells.join("")}   ${after} (${(before / after).toFixed(2)}x less than f32)\n`,
    );
  };
  row("f32", base, float[1], float[2]);
  const found = new Map<string, number>();
  for (const [index, { label, state, against }] of CHOICES.entries()) {
    const loaded = await load(source, state, `state${index}`);
    if (loaded === null) continue;
    const [model, before, after] = loaded;
    const result = await scores(model, reference, texts);
    await model.close();
    row(label, result, before, after);
    found.set(label, result.divergence);
    if (against !== null && !(result.divergence <= (found.get(against) ?? Number.NaN))) {
      process.stdout.write(`FAIL ${label} diverges more than ${against}\n`);
      process.exitCode = 1;
    }
  }
}

async function main(): Promise<void> {
  if (path === undefined) {
    await table(
      join(DEMO, "prefill.onnx"),
      TEXTS.map((name) => join(DEMO, `${name}.txt`)),
    );
    return;
  }
  const texts = readdirSync(join(path, "text"))
    .filter((name) => name.endsWith(".valid.txt"))
    .map((name) => join(path, "text", name));
  for (const name of readdirSync(join(path, "models"))) {
    const source = join(path, "models", name, "prefill.onnx");
    if (existsSync(source)) await table(source, texts);
  }
}

try {
  await main();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
