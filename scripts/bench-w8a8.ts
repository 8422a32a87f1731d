/**
 * npm run bench:w8a8 [-- RECIPE [LAYERS [ROUNDS [wall|cpu [float|pairs]]]]]
 *
 * Makes a Mamba-2 of the 130M size with random weights (d_model 768, 24 heads of 64, d_state 128, 24 layers, 50 288 tokens),
 * compiles it with float weights and with a recipe (default: smoothquant-w8a8), calibrated on random tokens, which weights without
 * meaning allow, the head included, and compares both: prefill of 256 tokens and decoding, one thread, op library. 8-bit weights and
 * activations must be 2.5 times as fast at prefill and 1.5 times at decoding, with all projections on integer kernels. Ends with 3 below a gate.
 * `pairs` compares with the same recipe where no operator gives codes itself (without the pass fuse-quantize); that has no gate.
 */

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fuseQuantize, passesFor, presetNamed, type QuantRecipe, type RecipePasses } from "../passes/index.js";
import type { RuleScope } from "../passes/quant-recipes.js";
import { benchRows } from "../src/commands/bench.js";
import { formatTable } from "../src/commands/text-table.js";
import { compile } from "../src/compile.js";
import { writeModel } from "../src/onnx/write.js";
import { runBench } from "../src/run/bench.js";
import type { BenchSubject } from "../src/run/bench-plan.js";
import { kernelCensus } from "../src/run/kernel-census.js";
import { EXIT } from "../src/support/errors.js";
import { Random } from "../src/support/random.js";
import { DEFAULT_SPELLING, mambaModel } from "../test/support/mamba-graphs.js";
import { buildOps } from "./build-ops.js";

const PREFILL_GATE = 2.5;
const DECODE_GATE = 1.5;
const VOCABULARY = 50_288;

async function compileTo(
  input: string,
  output: string,
  recipe: QuantRecipe,
  calib: string,
  keepPairs: boolean = false,
): Promise<void> {
  const { state } = recipe;
  const passes = passesFor({ state, quant: recipe });
  await compile(
    {
      inputs: [input],
      output,
      state,
      recipe,
      calibration: { paths: [calib], samples: 2, sequenceLength: 64, seed: 0 },
    },
    keepPairs ? withPairs(passes) : passes,
  );
}

function withPairs(passes: RecipePasses): RecipePasses {
  return { ...passes, finish: (pair) => passes.finish(pair).filter(({ name }) => name !== fuseQuantize.name) };
}

/** The recipe with the head as its other projections are: at this size it is a third of all weights. */
function withHead(recipe: QuantRecipe): QuantRecipe {
  const head = <Rule extends RuleScope>(rules: readonly Rule[]): Rule[] =>
    rules.map((rule) => ({ ...rule, roles: [...new Set([...rule.roles, "lm_head" as const])] }));
  return { ...recipe, weights: head(recipe.weights), activations: head(recipe.activations) };
}

async function main(): Promise<void> {
  const [name = "smoothquant-w8a8", layers = "24", rounds = "7", clock = "wall", against = "float"] =
    process.argv.slice(2);
  const pairs = against === "pairs";
  const built = await buildOps();
  if (built.kind === "unavailable") throw new Error(built.reason);
  const { library } = built;
  const folder = mkdtempSync(join(tmpdir(), "mambac-bench-w8a8-"));
  try {
    const at = (file: string): string => join(folder, file);
    const sizes = {
      vocabulary: VOCABULARY,
      dModel: 768,
      layers: Number(layers),
      heads: 24,
      headDim: 64,
      dState: 128,
      groups: 1,
      kernel: 4,
      dtRank: 0,
      chunk: 64,
    };
    const spelling = { ...DEFAULT_SPELLING, family: "mamba2", form: "chunked" } as const;
    await writeModel(mambaModel(sizes, spelling, 1), at("source.onnx"), { externalData: "always" });
    const random = new Random(1);
    const line = (): string =>
      JSON.stringify({ input_ids: Array.from({ length: 64 }, () => random.integer(VOCABULARY)) });
    writeFileSync(at("calib.jsonl"), `${line()}\n${line()}\n`);
    const recipe = withHead(presetNamed(name));
    const other: QuantRecipe = pairs ? recipe : { ...presetNamed("float"), state: recipe.state };
    await compileTo(at("source.onnx"), at("other.onnx"), other, at("calib.jsonl"), pairs);
    await compileTo(at("source.onnx"), at("quantized.onnx"), recipe, at("calib.jsonl"));
    const census = await kernelCensus(at("quantized.onnx"));
    process.stdout.write(`${name}: ${census.quantized} of ${census.projections} projections on integer kernels\n`);
    for (const { node } of census.float) process.stdout.write(`  float: ${node}\n`);
    const subjects: BenchSubject[] = [
      { kind: "package", name, path: at("quantized.onnx"), library },
      { kind: "package", name: against, path: at("other.onnx"), library },
    ];
    const settings = {
      batch: 1,
      threads: 1,
      prefill: 256,
      steps: 32,
      rounds: Number(rounds),
      clock: clock === "cpu" ? "cpu" : "wall",
    } as const;
    const rows = benchRows(settings, await runBench(subjects, settings));
    const ratio = rows.find((row) => row.name === against);
    const cells = rows.map((row) => [
      row.name,
      row.prefill?.median.toFixed(0) ?? "-",
      row.decode?.median.toFixed(0) ?? "-",
      row.notes.join("; "),
    ]);
    process.stdout.write(formatTable([["", "prefill tok/s", "decode tok/s", ""], ...cells]));
    const [prefill, decode] = [ratio?.prefillRatio?.median ?? 0, ratio?.decodeRatio?.median ?? 0];
    if (pairs) {
      process.stdout.write(`prefill ${prefill.toFixed(3)}x\ndecode  ${decode.toFixed(3)}x\n`);
      return;
    }
    const verdict = (value: number, gate: number): string =>
      `${value.toFixed(2)}x (at least ${gate}) ${value >= gate ? "PASS" : "FAIL"}`;
    process.stdout.write(`prefill ${verdict(prefill, PREFILL_GATE)}\ndecode  ${verdict(decode, DECODE_GATE)}\n`);
    if (prefill < PREFILL_GATE || decode < DECODE_GATE) process.exitCode = EXIT.belowGate;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

await main();
