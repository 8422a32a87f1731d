/**
 * Creates, runs and closes native sessions many times and reports how resident memory grows.
 *
 * `tsx scripts/soak-sessions.ts [--cycles 10000] [--warmup 1500] [--json]`. Exits with 3 when memory grew by more than
 * 512 bytes a cycle and 4 MiB, the noise of the allocator. It runs in a process of its own with one glibc arena: with
 * several, memory that moves between them looks like a leak of some kilobytes a session.
 */

import { spawnSync } from "node:child_process";
import { parseArgs } from "node:util";
import { GraphBuilder, typed } from "../src/ir/builder.js";
import { makeModel } from "../src/ir/graph.js";
import { f32Tensor } from "../src/ir/tensor.js";
import { encodeModel } from "../src/onnx/write.js";
import { allocate, openNativeSession } from "../src/run/native-session.js";
import { EXIT } from "../src/support/errors.js";

const ALLOWED_PER_CYCLE = 512;
const ALLOWED_NOISE = 4 * 2 ** 20;

if (process.env["MALLOC_ARENA_MAX"] !== "1") {
  const args = ["--expose-gc", ...process.execArgv, ...process.argv.slice(1)];
  const env = { ...process.env, MALLOC_ARENA_MAX: "1" };
  process.exit(spawnSync(process.execPath, args, { env, stdio: "inherit" }).status ?? EXIT.bug);
}

const { values } = parseArgs({
  options: {
    cycles: { type: "string", default: "10000" },
    warmup: { type: "string", default: "1500" },
    json: { type: "boolean", default: false },
  },
});
const cycles = Number(values.cycles);
const warmup = Number(values.warmup);

/** y = x W + b with 64 x 64 weights, and an output whose size only the run tells. */
function model(): Uint8Array {
  const builder = new GraphBuilder("");
  const weight = builder.initializer(f32Tensor([64, 64], new Float32Array(4096).fill(0.01)));
  builder.op("MatMul", ["x", weight], {}, "y");
  builder.op("NonZero", ["y"], {}, "hits");
  const graph = builder.graph(
    "soak",
    [typed("x", "f32", ["n", 64])],
    [typed("y", "f32", ["n", 64]), typed("hits", "i64", [2, "count"])],
  );
  return encodeModel(makeModel(graph));
}

const bytes = model();

async function cycle(): Promise<void> {
  const session = await openNativeSession(bytes);
  const binding = session.bind();
  binding.input("x", { dtype: "f32", shape: [2, 64], bytes: allocate(512).fill(1) });
  binding.output("y", { dtype: "f32", shape: [2, 64], bytes: allocate(512) });
  binding.allocateOutput("hits");
  for (let i = 0; i < 3; i++) binding.run();
  binding.close();
  session.close();
  // Failing calls must not leak either.
  await openNativeSession(Uint8Array.of(1)).catch(() => undefined);
}

function resident(): number {
  for (let i = 0; i < 3; i++) globalThis.gc?.();
  return process.memoryUsage.rss();
}

for (let i = 0; i < warmup; i++) await cycle();
const before = resident();
const started = performance.now();
for (let i = 0; i < cycles; i++) await cycle();
const growthBytes = resident() - before;
const milliseconds = (performance.now() - started) / cycles;

if (values.json) process.stdout.write(`${JSON.stringify({ cycles, growthBytes, milliseconds })}\n`);
else {
  const text = `${cycles} cycles of ${milliseconds.toFixed(2)} ms; resident memory grew by ${(growthBytes / 1024).toFixed(0)} KiB`;
  process.stdout.write(`${text}\n`);
}
if (growthBytes > ALLOWED_PER_CYCLE * cycles + ALLOWED_NOISE) process.exitCode = EXIT.belowGate;
