/**
 * Fuzzes the model reader with damaged fixtures: `tsx scripts/fuzz-read.ts [count=10000] [first seed=1]`.
 *
 * Fails on any error that is not a MambacError, on a read that hangs, and on any file that appears. Prints how often
 * each refusal came up. One failing seed is repeated with a count of 1.
 */

import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { FIXTURE_MODELS, fixture } from "../test/support/fixture-models.js";
import { fuzzRead } from "../test/support/fuzz-read.js";
import { numberArguments } from "./number-arguments.js";

/** A step that takes longer than this is a hang, in milliseconds. */
const HANG_MS = 60_000;

const [count, first] = numberArguments([10_000, 1]);
const files = FIXTURE_MODELS.map((name) => new Uint8Array(readFileSync(fixture(name))));
const folder = mkdtempSync(join(tmpdir(), "mambac-fuzz-"));

// A hang blocks this thread, so another one watches the seed advance.
const progress = new Int32Array(new SharedArrayBuffer(4));
const watchdog = new Worker(
  `const { workerData } = require("node:worker_threads");
   const progress = new Int32Array(workerData.shared);
   let last = -1;
   setInterval(() => {
     const now = Atomics.load(progress, 0);
     if (now === last) { console.error("seed " + now + ": hangs"); process.kill(process.pid, "SIGKILL"); }
     last = now;
   }, workerData.every);`,
  { eval: true, workerData: { shared: progress.buffer, every: HANG_MS } },
);

const outcomes = new Map<string, number>();
try {
  for (let seed = first; seed < first + count; seed++) {
    Atomics.store(progress, 0, seed);
    const outcome = fuzzRead(files, seed, folder);
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    const appeared = readdirSync(folder);
    if (appeared.length > 0) throw new Error(`seed ${seed}: ${appeared.join(", ")} appeared`);
  }
} finally {
  await watchdog.terminate();
  rmSync(folder, { recursive: true });
}
for (const [outcome, times] of [...outcomes].sort((a, b) => b[1] - a[1]))
  console.log(`${String(times).padStart(7)} ${outcome}`);
