/**
 * Fuzzes the whole compiler with damaged fixtures: `tsx scripts/fuzz-compile.ts [count=500] [first seed=1]`.
 *
 * Each damaged file is compiled for real. It must end in a finished file or in a MambacError, never in another error, and
 * nothing may be left in the folder when it is refused. Prints how often each outcome came up.
 */

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MambacError } from "../src/support/errors.js";
import { FIXTURE_MODELS, fixture } from "../test/support/fixture-models.js";
import { compileWith } from "../test/support/fixture-row.js";
import { mutate, seededDraw } from "../test/support/mutate.js";
import { numberArguments } from "./number-arguments.js";

const [count, first] = numberArguments([500, 1]);
const files = FIXTURE_MODELS.map((name) => new Uint8Array(readFileSync(fixture(name))));
const folder = mkdtempSync(join(tmpdir(), "mambac-fuzz-"));
const outcomes = new Map<string, number>();
let slowest = { seed: 0, seconds: 0 };
let failed = 0;
try {
  for (let seed = first; seed < first + count; seed++) {
    const random = seededDraw(seed);
    const [file, donor] = [files[random(files.length)], files[random(files.length)]];
    if (file === undefined || donor === undefined) throw new Error("nothing to damage");
    const [input, output] = [join(folder, "in.onnx"), join(folder, "out.onnx")];
    writeFileSync(input, mutate(file, donor, random));
    const start = performance.now();
    let outcome = "compiled";
    try {
      await compileWith([input], output, { format: "h8", scale: "dsq-max", requantize: "call" });
    } catch (error) {
      outcome = error instanceof MambacError ? error.code : "BUG";
      if (!(error instanceof MambacError)) {
        failed += 1;
        console.error(`seed ${seed}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
      }
      if (existsSync(output) || readdirSync(folder).length > 1) {
        failed += 1;
        console.error(`seed ${seed}: left ${readdirSync(folder).join(", ")} behind`);
      }
    }
    const seconds = (performance.now() - start) / 1000;
    if (seconds > slowest.seconds) slowest = { seed, seconds };
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    for (const name of readdirSync(folder)) rmSync(join(folder, name), { recursive: true });
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
for (const [outcome, times] of [...outcomes].sort((a, b) => b[1] - a[1]))
  console.log(`${String(times).padStart(7)} ${outcome}`);
console.log(`slowest: seed ${slowest.seed}, ${slowest.seconds.toFixed(1)} s; ${failed} failures`);
process.exitCode = failed === 0 ? 0 : 1;
