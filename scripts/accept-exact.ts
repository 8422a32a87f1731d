/**
 * npm run accept:exact [-- PATTERN | PATH]
 *
 * One row for each fixture whose name has PATTERN in it, or for each PATH/models/<name> with prefill.onnx and io.npz: how
 * often each pass that must leave the function as it is found something to do, and the error of all of them together against
 * the PyTorch logits, for one prefill and token by token, in two orders with two kinds of rotation. Ends with 1 when any error is above 1e-4, or when a pass found nothing in any fixture.
 */

import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { passesFor } from "../passes/index.js";
import { compile } from "../src/compile.js";
import { toNumbers } from "../src/ir/tensor.js";
import type { Step } from "../src/rewrite/pipeline.js";
import { FLOAT_STATE } from "../src/rewrite/semantic.js";
import { loadPackage } from "../src/run/stateful.js";
import { exactSteps } from "../test/support/exact-steps.js";
import { relative } from "../test/support/fixture-row.js";
import { readNpz } from "../test/support/npz.js";

const ROOT = join(import.meta.dirname, "..", "test", "fixtures");
const GATE = 1e-4;
const VARIANTS = [
  ["absorb-first", "hadamard"],
  ["smooth-first", "dense"],
] as const;
const PASSES = [
  "align-linears",
  "absorb-norm-gain",
  "smooth-quant",
  "rotate-residual",
  "rotate-output",
  "rotate-dt",
  "rotate-state",
];

interface Fixture {
  readonly name: string;
  readonly file: string;
  readonly io: string;
}

/** Models under a folder of the caller's. */
function modelsIn(path: string): Fixture[] {
  return readdirSync(join(path, "models"))
    .map((name) => ({
      name,
      file: join(path, "models", name, "prefill.onnx"),
      io: join(path, "models", name, "io.npz"),
    }))
    .filter(({ file, io }) => existsSync(file) && existsSync(io));
}

function fixtures(): Fixture[] {
  const hf = readdirSync(join(ROOT, "hf")).map((name) => ({
    name: `hf/${name}`,
    file: join(ROOT, "hf", name, "prefill.onnx"),
    io: join(ROOT, "hf", name, "io.npz"),
  }));
  const forms = readdirSync(join(ROOT, "forms"))
    .filter((name) => name.endsWith(".onnx"))
    .map((name) => ({
      name: `forms/${name.replace(".onnx", "")}`,
      file: join(ROOT, "forms", name),
      io: join(ROOT, "forms", name.replace(".onnx", ".io.npz")),
    }));
  return [...hf, ...forms].filter(({ file }) => existsSync(file));
}

/** Sites changed by pass, in the order of `PASSES`, and the errors. */
async function measure(
  { file, io }: Fixture,
  output: string,
  extra: readonly Step[],
): Promise<{ changes: number[]; prefill: number; steps: number }> {
  const changes = new Map<string, number>();
  const passes = passesFor({ state: FLOAT_STATE });
  await compile(
    {
      inputs: [file],
      output,
      state: FLOAT_STATE,
      afterPass: (name, _model, changed) => changes.set(name, changed),
    },
    {
      ...passes,
      finish: (pair) => {
        const steps = passes.finish(pair);
        const at = steps.findIndex(({ name }) => name === "quantize-state");
        return [...steps.slice(0, at), ...extra, ...steps.slice(at)];
      },
    },
  );
  const data = readNpz(io);
  const [ids, logits] = [data.get("input_ids"), data.get("logits")];
  if (ids === undefined || logits === undefined) throw new Error(`${io} lacks input_ids or logits`);
  const [batch = 1, length = 1] = ids.shape;
  const numbers = toNumbers(ids);
  const tokens = Array.from({ length: batch }, (_, b) => Array.from(numbers.slice(b * length, (b + 1) * length)));
  const expected = toNumbers(logits);
  const width = logits.shape[2] ?? 1;
  await using model = await loadPackage(output, { batch, library: "none" });
  const prefill = relative((await model.prefill(tokens)).data, expected);
  model.reset();
  let steps = 0;
  for (let t = 0; t < length; t++) {
    const { data: actual } = await model.step(tokens.map((row) => row[t] ?? 0));
    const wanted = tokens.flatMap((_, b) =>
      Array.from(expected.slice((b * length + t) * width, (b * length + t + 1) * width)),
    );
    steps = Math.max(steps, relative(actual, wanted));
  }
  return { changes: PASSES.map((name) => changes.get(name) ?? 0), prefill, steps };
}

async function main(): Promise<void> {
  const pattern = process.argv[2] ?? "";
  const given = existsSync(join(pattern, "models"));
  const folder = mkdtempSync(join(tmpdir(), "mambac-exact-"));
  const totals = PASSES.map(() => 0);
  let failed = 0;
  process.stdout.write(`changes: ${PASSES.join(", ")}\n`);
  try {
    for (const fixture of given ? modelsIn(pattern) : fixtures().filter(({ name }) => name.includes(pattern))) {
      const cells: string[] = [];
      let ok = true;
      for (const [order, rotation] of VARIANTS) {
        try {
          const row = await measure(fixture, join(folder, "out.onnx"), exactSteps(order, rotation));
          row.changes.forEach((count, at) => {
            totals[at] = (totals[at] ?? 0) + count;
          });
          ok &&= row.prefill <= GATE && row.steps <= GATE;
          cells.push(
            `${order} ${rotation} [${row.changes.join(" ")}] prefill ${row.prefill.toExponential(1)} steps ${row.steps.toExponential(1)}`,
          );
        } catch (cause) {
          ok = false;
          cells.push(cause instanceof Error ? cause.message.slice(0, 300) : String(cause));
        }
      }
      failed += ok ? 0 : 1;
      process.stdout.write(`${ok ? "ok  " : "FAIL"}  ${fixture.name.padEnd(44)}  ${cells.join("  |  ")}\n`);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  const idle = PASSES.filter((_, at) => totals[at] === 0);
  if (idle.length > 0) process.stdout.write(`FAIL  never found anything: ${idle.join(", ")}\n`);
  process.stdout.write(`${failed} failed\n`);
  process.exitCode = failed === 0 && (idle.length === 0 || pattern !== "") ? 0 : 1;
}

await main();
