/**
 * npm run accept:large [-- LAYERS]
 *
 * Writes a synthetic Mamba-2 decode graph with the layer sizes of the 2.7B model and 3 GB of external weights, compiles
 * it with an h4 state in a process of its own, and prints time and peak memory. Ends with 1 above 700 MB.
 */

import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeModel } from "../src/onnx/write.js";
import { compileWith } from "../test/support/fixture-row.js";
import { largeDecodeModel, sizes27B } from "../test/support/large-model.js";

const LIMIT_MB = 700;

async function compileChild(input: string, output: string): Promise<void> {
  const start = performance.now();
  const report = await compileWith([input], output, { format: "h4", scale: "dsq-max", requantize: "call" });
  const seconds = (performance.now() - start) / 1000;
  const megabytes = process.resourceUsage().maxRSS / 1024;
  process.stdout.write(
    JSON.stringify({ seconds, megabytes, scans: report.rows.filter((row) => row.kind === "scan").length }),
  );
}

async function main(): Promise<void> {
  const [first, second, third] = process.argv.slice(2);
  if (first === "child" && second !== undefined && third !== undefined) return compileChild(second, third);
  const layers = Number(first ?? 19);
  const folder = mkdtempSync(join(tmpdir(), "mambac-large-"));
  try {
    const input = join(folder, "large.onnx");
    const made = performance.now();
    await writeModel(largeDecodeModel(sizes27B(layers)), input, { externalData: "always" });
    const bytes = statSync(`${input}.data`).size;
    process.stdout.write(
      `made ${(bytes / 1e9).toFixed(2)} GB in ${((performance.now() - made) / 1000).toFixed(1)} s\n`,
    );
    const child = spawnSync(
      process.execPath,
      ["--import", "tsx", import.meta.filename, "child", input, join(folder, "out.onnx")],
      {
        encoding: "utf8",
      },
    );
    if (child.status !== 0) throw new Error(child.stderr);
    const result = JSON.parse(child.stdout) as { seconds: number; megabytes: number; scans: number };
    const ok = result.megabytes <= LIMIT_MB && result.scans === layers;
    process.stdout.write(
      `${ok ? "ok  " : "FAIL"} compiled ${result.scans}/${layers} layers in ${result.seconds.toFixed(1)} s, peak ${result.megabytes.toFixed(0)} MB (limit ${LIMIT_MB})\n`,
    );
    process.exitCode = ok ? 0 : 1;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

await main();
