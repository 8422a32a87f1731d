/**
 * npm run check:valgrind
 *
 * Runs the C++ example on the demo model, compiled with a replayed, an exact 4-bit and a float state, under valgrind's memcheck, and lists what it finds
 * in frames of the op library: invalid reads and writes, jumps on undefined values, memory definitely lost. Findings in
 * glibc's loader and in ONNX Runtime are counted, not judged. valgrind hides AVX-512, so the AVX2 kernels run. Needs g++
 * and valgrind; ends with 1 on a finding and with 4 where a tool is missing.
 */

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FLOAT_STATE, type StateChoice } from "../src/rewrite/semantic.js";
import { findOnnxRuntime, packageRoot } from "../src/run/locate.js";
import { EXIT } from "../src/support/errors.js";
import { compileWith } from "../test/support/fixture-row.js";
import { buildOps } from "./build-ops.js";

const STATES: readonly StateChoice[] = [
  FLOAT_STATE,
  { format: "h4", scale: "dsq-max", requantize: "call" },
  { format: "h4", scale: "dsq-max", requantize: "replay" },
];

function run(command: string, args: readonly string[]): string {
  const result = spawnSync(command, args, { encoding: "utf8" });
  if (result.error !== undefined) {
    process.stderr.write(`${command} cannot be run: ${result.error.message}\n`);
    process.exit(EXIT.unsupported);
  }
  if (result.status !== 0) throw new Error(`${command} ended with ${result.status}:\n${result.stderr}`);
  return result.stdout;
}

async function main(): Promise<void> {
  const built = await buildOps();
  if (built.kind === "unavailable") {
    process.stderr.write(`the op library cannot be built: ${built.reason}\n`);
    process.exit(EXIT.unsupported);
  }
  const folder = mkdtempSync(join(tmpdir(), "mambac-valgrind-"));
  try {
    const example = join(folder, "generate");
    run("g++", [
      "-std=c++17",
      "-g",
      "-O1",
      join(packageRoot(), "examples", "cpp", "generate.cc"),
      "-o",
      example,
      "-ldl",
    ]);
    for (const state of STATES) {
      const model = join(folder, `${state.format}-${state.requantize}.onnx`);
      await compileWith([join(packageRoot(), "examples", "demo", "prefill.onnx")], model, state);
      const log = join(folder, "log");
      const flags = ["--leak-check=full", "--num-callers=40", `--log-file=${log}`];
      const text = run("valgrind", [...flags, example, findOnnxRuntime(), model, built.library, "And God said"]);
      if (!text.includes("And God said")) throw new Error(`the example wrote ${JSON.stringify(text)}`);
      // One finding is a paragraph; the library's name stands in the frames of its functions.
      const findings = readFileSync(log, "utf8").split(/==\d+== \n/);
      const ours = findings.filter((finding) => /^==\d+==\s+(at|by) .*(libmambac_ops|mambac::)/m.test(finding));
      process.stdout.write(
        `${state.format} ${state.requantize}: ${ours.length} findings in the op library, ${findings.length} paragraphs in all\n`,
      );
      for (const finding of ours) process.stdout.write(finding);
      if (ours.length > 0) process.exitCode = EXIT.bug;
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

await main();
