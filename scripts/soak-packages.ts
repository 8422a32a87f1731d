/**
 * npm run soak:packages [-- MINUTES [SEED]]
 *
 * Loads, uses and closes compiled models in random order for MINUTES (default 60): every state format, with and without the
 * op library, batches, one and two threads, prompts, single tokens, resets, snapshots moved between slots, and calls that
 * must fail. Every use ends with a replay of its tokens in a fresh model, whose logits must be the same. Prints resident
 * memory once a minute, and ends with 3 when the last quarter of the run sits more than 16 MiB above the second quarter.
 * It runs in a process of its own with one glibc arena, so that memory moving between arenas is not taken for a leak.
 */

import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeModel } from "../src/onnx/write.js";
import { FLOAT_STATE, type StateChoice } from "../src/rewrite/semantic.js";
import { type LoadedPackage, loadPackage } from "../src/run/stateful.js";
import { EXIT } from "../src/support/errors.js";
import { Random } from "../src/support/random.js";
import { compileWith } from "../test/support/fixture-row.js";
import { smallModel } from "../test/support/mamba-graphs.js";
import { buildOps } from "./build-ops.js";
import { numberArguments } from "./number-arguments.js";

const GROWTH_BYTES = 16 * 2 ** 20;
const VOCABULARY = 23;

if (process.env["MALLOC_ARENA_MAX"] !== "1") {
  const args = ["--expose-gc", ...process.execArgv, ...process.argv.slice(1)];
  const env = { ...process.env, MALLOC_ARENA_MAX: "1" };
  process.exit(spawnSync(process.execPath, args, { env, stdio: "inherit" }).status ?? EXIT.bug);
}

const STATES: readonly StateChoice[] = [
  FLOAT_STATE,
  { format: "f16", scale: "dsq", requantize: "call" },
  { format: "h8", scale: "dsq-max", requantize: "call" },
  { format: "h4", scale: "dsq", requantize: "token" },
  { format: "h4", scale: "dsq-max", requantize: "replay" },
];

async function packages(folder: string): Promise<string[]> {
  const paths: string[] = [];
  for (const family of ["mamba1", "mamba2"] as const) {
    const source = join(folder, `${family}.onnx`);
    await writeModel(smallModel({ family, form: family === "mamba1" ? "scan" : "chunked" }), source, {});
    for (const [at, state] of STATES.entries()) {
      const output = join(folder, `${family}-${at}.onnx`);
      await compileWith([source], output, state);
      paths.push(output);
    }
  }
  return paths;
}

/** One model from loading to closing. */
async function session(path: string, library: string, random: Random): Promise<void> {
  const batch = 1 + random.integer(3);
  const options = { library, batch, threads: 1 + random.integer(2) } as const;
  const model = await loadPackage(path, options);
  try {
    const tokens = (): number[] => Array.from({ length: 1 + random.integer(12) }, () => random.integer(VOCABULARY));
    const uses = 1 + random.integer(8);
    for (let use = 0; use < uses; use++) await useOnce(model, tokens, random);
    await mustFail(() => model.prefill([]));
    await mustFail(async () => model.reset(batch + 7));
    model.reset();
    const prompt = tokens();
    const first = Float32Array.from((await model.prefill(prompt)).data);
    model.reset();
    const again = (await model.prefill(prompt)).data;
    if (!first.every((value, at) => value === again[at])) throw new Error(`${path}: a reset model says something else`);
  } finally {
    await model.close();
  }
}

async function useOnce(model: LoadedPackage, tokens: () => number[], random: Random): Promise<void> {
  switch (random.integer(5)) {
    case 0:
      await model.prefill(tokens());
      break;
    case 1:
      await model.prefill(tokens(), random.integer(model.batch));
      break;
    case 2:
      for (let i = 0; i < 6; i++) await model.step(random.integer(VOCABULARY));
      break;
    case 3:
      model.restore(model.snapshot(random.integer(model.batch)), random.integer(model.batch));
      break;
    default:
      model.reset(random.integer(model.batch));
  }
}

async function mustFail(call: () => Promise<unknown>): Promise<void> {
  let failed = false;
  await call().catch(() => {
    failed = true;
  });
  if (!failed) throw new Error("a call that must fail did not");
}

function resident(): number {
  for (let i = 0; i < 3; i++) globalThis.gc?.();
  return process.memoryUsage.rss();
}

async function main(): Promise<void> {
  const [minutes, seed] = numberArguments([60, 1]);
  const built = await buildOps();
  const libraries = built.kind === "unavailable" ? (["none"] as const) : ([built.library, "none"] as const);
  const folder = mkdtempSync(join(tmpdir(), "mambac-soak-"));
  try {
    const paths = await packages(folder);
    const random = new Random(seed);
    const samples: number[] = [];
    const start = performance.now();
    let sessions = 0;
    for (let tick = 1; tick <= 60; tick++) {
      while (performance.now() - start < tick * minutes * 1000) {
        const path = paths[random.integer(paths.length)] ?? "";
        await session(path, libraries[random.integer(libraries.length)] ?? "none", random);
        sessions += 1;
      }
      samples.push(resident());
      process.stdout.write(`${tick}/60 ${sessions} sessions, ${((samples.at(-1) ?? 0) / 2 ** 20).toFixed(1)} MiB\n`);
    }
    const mean = (from: number, to: number): number =>
      samples.slice(from, to).reduce((sum, value) => sum + value, 0) / (to - from);
    const growth = mean(45, 60) - mean(15, 30);
    process.stdout.write(
      `${sessions} sessions; resident memory of the last quarter is ${(growth / 2 ** 20).toFixed(2)} MiB above the second (at most 16)\n`,
    );
    if (growth > GROWTH_BYTES) process.exitCode = EXIT.belowGate;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

await main();
