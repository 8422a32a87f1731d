/**
 * npm run bench:model
 *
 * `tsx scripts/bench-model.ts [IN...] [--state h4] [--threads 1,2] [--batch 1] [--rounds 7]
 * [--clock wall|cpu] [--profile]`
 *
 * Compiles each source (a file, or a folder with one graph or a pair; default: examples/demo) and measures decoding with the
 * op library, with the functions in the file, of the file with a float state and no library, and of the source in
 * onnxruntime-node. The library must decode three times as fast as the source, and the run exits with 3 where it does not. A
 * plain forward graph has no decode graph and is beaten by far; what such a graph would be shows the file with a float
 * state and no library: the same recurrence in standard operators, as ONNX Runtime inlines them. `--profile` tells which operators a step spends its time in.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { parseArgs } from "node:util";
import { passesFor } from "../passes/index.js";
import { type BenchRow, benchRows, sourceSubject } from "../src/commands/bench.js";
import { formatTable } from "../src/commands/text-table.js";
import { compile } from "../src/compile.js";
import { STATE_FORMATS, type StateFormat } from "../src/ops/names.js";
import { runBench } from "../src/run/bench.js";
import type { BenchSubject } from "../src/run/bench-plan.js";
import { packageRoot } from "../src/run/locate.js";
import { sourceFiles } from "../src/sources.js";
import { EXIT } from "../src/support/errors.js";
import { buildOps } from "./build-ops.js";
import { profileStep } from "./profile-nodes.js";

const GATE = 3;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    state: { type: "string", default: "h4" },
    threads: { type: "string", default: "1,2" },
    batch: { type: "string", default: "1" },
    prefill: { type: "string", default: "64" },
    steps: { type: "string", default: "64" },
    rounds: { type: "string", default: "7" },
    clock: { type: "string", default: "wall" },
    profile: { type: "boolean", default: false },
  },
});
const state = STATE_FORMATS.find((format) => format === values.state);
if (state === undefined) throw new Error(`--state is one of ${STATE_FORMATS.join(", ")}`);
const list = (text: string): number[] => text.split(",").map(Number);

const built = await buildOps();
if (built.kind === "unavailable") {
  process.stderr.write(`the op library cannot be built: ${built.reason}\n`);
  process.exit(EXIT.unsupported);
}
const library = built.library;
const folder = mkdtempSync(join(tmpdir(), "mambac-bench-model-"));
try {
  const inputs = positionals.length === 0 ? [join(packageRoot(), "examples", "demo")] : positionals;
  for (const [at, input] of inputs.entries()) await benchSource(input, String(at), state);
} finally {
  rmSync(folder, { recursive: true, force: true });
}

async function benchSource(input: string, key: string, format: StateFormat): Promise<void> {
  const sources = sourceFiles([input]);
  const paths = sources.map(({ path }) => path);
  const packed = join(folder, `${key}-${format}.onnx`);
  const float = join(folder, `${key}-f32.onnx`);
  await compileTo(paths, packed, format);
  if (format !== "f32") await compileTo(paths, float, "f32");
  const source = sourceSubject(sources);
  const subjects: BenchSubject[] = [
    { kind: "package", name: `${format}, op library`, path: packed, library },
    { kind: "package", name: `${format}, functions`, path: packed, library: null },
    ...(format === "f32" ? [] : [{ kind: "package", name: "f32, op library", path: float, library } as const]),
    ...(format === "f32" ? [] : [{ kind: "package", name: "f32, functions", path: float, library: null } as const]),
    source,
  ];
  const rows: BenchRow[] = [];
  for (const batch of list(values.batch)) {
    for (const threads of list(values.threads)) {
      const [prefill, steps, rounds] = [values.prefill, values.steps, values.rounds].map(Number);
      const clock = values.clock === "cpu" ? "cpu" : "wall";
      const settings = {
        batch,
        threads,
        prefill: prefill ?? 64,
        steps: steps ?? 64,
        rounds: rounds ?? 7,
        clock,
      } as const;
      rows.push(...benchRows(settings, await runBench(subjects, settings)));
    }
  }
  process.stdout.write(`${basename(input)}: the library must decode ${GATE}x as fast as the source\n`);
  process.stdout.write(
    formatTable([
      ["batch", "threads", "", "decode tok/s", "rounds", "library ahead by", "rounds", "gate", ""],
      ...rows.map((row) => cells(row, source.name)),
    ]),
  );
  if (values.profile)
    for (const [name, path] of [
      [format, packed],
      ["f32", float],
    ] as const)
      await tellProfile(name, path);
}

async function compileTo(inputs: readonly string[], output: string, format: StateFormat): Promise<void> {
  const choice = { format, scale: "dsq-max", requantize: "call" } as const;
  await compile({ inputs, output, state: choice }, passesFor({ state: choice }));
}

function cells(row: BenchRow, gated: string): string[] {
  const ratio = row.decodeRatio;
  let verdict = "";
  if (row.name === gated) {
    const passed = ratio !== null && ratio.median >= GATE;
    verdict = passed ? "PASS" : "FAIL";
    if (!passed) process.exitCode = EXIT.belowGate;
  }
  return [
    String(row.batch),
    String(row.threads),
    row.name,
    row.decode?.median.toFixed(0) ?? "-",
    row.decode === null ? "" : `${row.decode.min.toFixed(0)}..${row.decode.max.toFixed(0)}`,
    ratio === null ? "" : `${ratio.median.toFixed(2)}x`,
    ratio === null ? "" : `${ratio.min.toFixed(2)}..${ratio.max.toFixed(2)}`,
    verdict,
    row.notes.join("; "),
  ];
}

async function tellProfile(name: string, path: string): Promise<void> {
  for (const kernels of [library, null]) {
    const { operators, step, nodes } = await profileStep(path, kernels);
    const inside = operators.reduce((sum, { microseconds }) => sum + microseconds, 0);
    process.stdout.write(
      `\n${name}, ${kernels === null ? "functions" : "op library"}: ${step.toFixed(0)} us of CPU a step, ${nodes} nodes\n`,
    );
    process.stdout.write(
      formatTable([
        ["operator", "nodes", "us a step", "share"],
        ...operators
          .slice(0, 14)
          .map(({ op, nodes: count, microseconds }) => [
            op,
            String(count),
            microseconds.toFixed(1),
            `${((100 * microseconds) / inside).toFixed(0)} %`,
          ]),
      ]),
    );
  }
}
