/** Generated models as rows of the acceptance table; what they should give comes from running them as they are. */

import { join } from "node:path";
import type { Model } from "../../src/ir/graph.js";
import { f32Tensor, i64Tensor, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { writeModel } from "../../src/onnx/write.js";
import { openSession } from "../../src/run/session.js";
import { Random } from "../../src/support/random.js";
import type { ExpectedLogits } from "./fixture-row.js";
import { transformersPair } from "./mamba-graphs/transformers-pair.js";
import { type Spelling, smallModel } from "./mamba-graphs.js";

export interface GeneratedRow {
  readonly name: string;
  readonly length: number;
  /** One graph, or a prefill and a decode graph. */
  readonly make: () => readonly [Model] | readonly [prefill: Model, decode: Model];
}

const free = { length: null, states: "both" } as const;

const SMALL: Readonly<Record<string, Partial<Spelling>>> = {
  branches_mamba1: { ...free, form: "branches", branchLong: "loop", stateNames: "transformersjs" },
  branches_mamba2: { ...free, family: "mamba2", form: "branches", branch: "mixer", stateNames: "transformersjs" },
  scan_mamba1: { ...free, form: "scan", bodyFunction: true },
  scan_mamba2: { ...free, family: "mamba2", form: "scan", scanAxes: "attributes" },
  loop_scatter_mamba2: { ...free, family: "mamba2", form: "loop", carry: "scatter" },
  chunked_minimal: { ...free, family: "mamba2", form: "chunked", contraction: "minimal" },
  chunked_mul_sum: { ...free, family: "mamba2", form: "chunked", contraction: "mul-sum", segments: "difference" },
  // Over more tokens the source loses its digits.
  cumsum_suffix: { form: "cumsum", length: 5, parallel: "suffix" },
  cumsum_chunks: { form: "cumsum", length: 21, parallel: "chunks", layout: "channels-first", readout: "einsum" },
  cumsum_mamba2: { ...free, family: "mamba2", form: "cumsum", parallel: "negated" },
  associative_odd_even: { form: "associative", length: 13, parallel: "odd-even" },
  associative_doubling_mamba2: { family: "mamba2", form: "associative", length: 9, parallel: "doubling" },
  associative_in_place: { form: "associative", length: 11, parallel: "in-place", layout: "channels-first" },
  log_softplus: { form: "unrolled", length: 7, softplus: "stable", selector: "split", claimsFreeLength: true },
};

/** Every generated row. */
export const GENERATED_ROWS: readonly GeneratedRow[] = [
  { name: "generated/mamba_130m_1l", length: 24, make: () => pairOf("mamba1") },
  { name: "generated/mamba2_130m_1l", length: 24, make: () => pairOf("mamba2") },
  ...Object.entries(SMALL).map(
    ([name, changes]): GeneratedRow => ({
      name: `generated/${name}`,
      length: changes.length ?? 11,
      make: () => [smallModel(changes)],
    }),
  ),
];

function pairOf(family: "mamba1" | "mamba2"): readonly [Model, Model] {
  const { prefill, decode } = transformersPair(family);
  return [prefill, decode];
}

const BATCH = 2;
const STEPS = 5;

/** Writes a row's files and runs them: a prompt, and then tokens one by one where the files take states. */
export async function writeGenerated(
  row: GeneratedRow,
  folder: string,
): Promise<{ readonly files: readonly string[]; readonly expected: ExpectedLogits }> {
  const models = row.make();
  const names = models.length === 1 ? ["model.onnx"] : ["prefill.onnx", "decode.onnx"];
  const files = names.map((name) => join(folder, name));
  for (const [at, model] of models.entries()) await writeModel(model, files[at] ?? "");
  const [first] = models;
  const last = models.at(-1) ?? first;
  const random = new Random(1).split(row.name);
  const ids = (length: number): number[] => Array.from({ length: BATCH * length }, () => random.integer(20));
  const prompt = ids(row.length);
  const start = await run(files[0] ?? "", first, prompt, row.length, new Map());
  const logits = numbersOf(start, "logits");
  const width = logits.length / (BATCH * row.length);
  const base = {
    batch: BATCH,
    length: row.length,
    tokens: rows(prompt, row.length),
    width,
    logits,
  };
  if (last.graph.inputs.length === 1) return { files, expected: { ...base, continued: null } };
  const next = ids(STEPS);
  const continued = new Float64Array(BATCH * STEPS * width);
  let states: ReadonlyMap<string, Tensor> = start;
  for (let step = 0; step < STEPS; step++) {
    const tokens = Array.from({ length: BATCH }, (_, b) => next[b * STEPS + step] ?? 0);
    const results = await run(files.at(-1) ?? "", last, tokens, 1, states);
    const data = numbersOf(results, "logits");
    for (let b = 0; b < BATCH; b++)
      continued.set(data.subarray(b * width, (b + 1) * width), (b * STEPS + step) * width);
    states = results;
  }
  return {
    files,
    expected: { ...base, continued: { steps: STEPS, ids: Float64Array.from(next), logits: continued } },
  };
}

function rows(ids: readonly number[], length: number): number[][] {
  return Array.from({ length: BATCH }, (_, b) => ids.slice(b * length, (b + 1) * length));
}

async function run(
  path: string,
  model: Model,
  ids: readonly number[],
  length: number,
  states: ReadonlyMap<string, Tensor>,
): Promise<ReadonlyMap<string, Tensor>> {
  const feeds = new Map<string, Tensor>([["input_ids", i64Tensor([BATCH, length], ids)]]);
  for (const { name, type } of model.graph.inputs) {
    if (name === "input_ids" || type?.kind !== "tensor") continue;
    const shape = (type.shape ?? []).map((dim) => (typeof dim === "number" ? dim : BATCH));
    const zeros = f32Tensor(shape, new Float32Array(shape.reduce((a, b) => a * b, 1)));
    feeds.set(name, states.get(name.replace("input.", "output.").replace("past_", "present_")) ?? zeros);
  }
  const session = await openSession(path);
  try {
    return await session.run(feeds);
  } finally {
    await session.release();
  }
}

function numbersOf(outputs: ReadonlyMap<string, Tensor>, name: string): Float64Array {
  const tensor = outputs.get(name);
  if (tensor === undefined) throw new Error(`no output ${name}`);
  return toNumbers(tensor);
}
