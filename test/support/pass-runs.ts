/** Runs one pass on a generated model and compares what the model computes before and after. */

import fc from "fast-check";
import { completeStates } from "../../passes/complete-states.js";
import { executableRecipe } from "../../passes/recipes.js";
import { executor } from "../../src/executable.js";
import type { Model, Node } from "../../src/ir/graph.js";
import { f32Tensor, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import { formatModel } from "../../src/ir/text.js";
import { packedBytes } from "../../src/ir/types.js";
import { encodeModel } from "../../src/onnx/write.js";
import type { Fact, Pass, PassContext, Remark } from "../../src/rewrite/pass.js";
import { runSteps, type Step, step } from "../../src/rewrite/pipeline.js";
import { semanticOps } from "../../src/rewrite/semantic.js";
import { Random } from "../../src/support/random.js";
import { type MambaCase, mambaModel, randomFeeds } from "./mamba-graphs.js";

export interface Outcome {
  readonly model: Model;
  readonly changed: number;
  readonly remarks: readonly Remark[];
}

const FACTS: ReadonlySet<Fact> = new Set<Fact>([
  "normalised",
  "conv-raised",
  "scan-raised",
  "attention-raised",
  "states-complete",
  "length-free",
  "state-format-set",
  "linears-aligned",
  "norm-gain-absorbed",
  "lowered",
]);

/** Runs steps; `changed` is what the last of them reported. Every model in between is verified. */
export async function runAll(
  model: Model,
  steps: readonly Step[],
  divergence?: PassContext["divergence"],
): Promise<Outcome> {
  const remarks: Remark[] = [];
  let changed = 0;
  const result = await runSteps(
    model,
    steps,
    {
      execute: executor(1),
      report: (remark) => remarks.push(remark),
      now: () => 0,
      ...(divergence === undefined ? {} : { divergence }),
      afterPass: (_name, _model, count) => {
        changed = count;
      },
    },
    FACTS,
  );
  return { model: result.model, changed, remarks };
}

export function runPass<Options>(
  pass: Pass<Options>,
  model: Model,
  options: Options,
  divergence?: PassContext["divergence"],
): Promise<Outcome> {
  return runAll(model, [step(pass, options)], divergence);
}

/** The model as something a runtime takes: semantic operators get states and become functions. */
async function runnable(model: Model): Promise<Model> {
  if (semanticOps(model.graph.nodes).length === 0) return model;
  return (await runAll(model, [step(completeStates, { names: new Map() }), ...executableRecipe()])).model;
}

export type Outputs = ReadonlyMap<string, Float64Array>;

/** Runs a model; inputs without a feed are states that start at zero. */
export async function outputsOf(model: Model, feeds: ReadonlyMap<string, Tensor>, batch: number): Promise<Outputs> {
  const ready = await runnable(model);
  const all = new Map<string, Tensor>();
  for (const input of ready.graph.inputs) {
    if (ready.graph.initializers.has(input.name) || input.type?.kind !== "tensor") continue;
    const shape = (input.type.shape ?? []).map((dim, axis) =>
      typeof dim === "number"
        ? dim
        : axis === 0
          ? batch
          : input.type?.kind === "tensor" && input.type.shape?.length === 4
            ? 0
            : 1,
    );
    const { dtype } = input.type;
    const zeros = tensorFromBytes(dtype, shape, new Uint8Array(packedBytes(dtype, shape) ?? 0));
    all.set(input.name, feeds.get(input.name) ?? zeros);
  }
  const results = await executor(1)(ready, all);
  return new Map([...results].map(([name, tensor]) => [name, toNumbers(tensor)]));
}

/** Largest difference over the largest expected value, output by output. Infinite when an output is missing or not finite. */
export function difference(actual: Outputs, expected: Outputs): number {
  let worst = 0;
  for (const [name, wanted] of expected) {
    const given = actual.get(name);
    if (given?.length !== wanted.length) return Number.POSITIVE_INFINITY;
    const scale = wanted.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
    for (const [i, value] of wanted.entries()) {
      const delta = Math.abs((given[i] ?? Number.NaN) - value);
      if (!Number.isFinite(delta)) return Number.POSITIVE_INFINITY;
      if (delta > 0) worst = Math.max(worst, delta / scale);
    }
  }
  return worst;
}

/** Roundings that each weight may suffer on its way through a rewritten graph: a few products and sums each. */
const ROUNDINGS = 16;

/**
 * How far outputs may move when a graph is computed in another order. Every rounding acts like a relative change of a
 * weight, so the bound is twice what 16 roundings of every weight do to this model on these inputs, plus as many
 * roundings of the result. `unit` is half the distance of neighbouring numbers, of float32 unless told.
 */
export async function roundingBound(
  model: Model,
  feeds: ReadonlyMap<string, Tensor>,
  batch: number,
  expected: Outputs,
  unit: number = 2 ** -24,
): Promise<number> {
  const random = new Random(7).split("rounding");
  const step_ = ROUNDINGS * unit;
  const initializers = new Map(
    [...model.graph.initializers].map(([name, tensor]): [string, Tensor] => [
      name,
      // Lone numbers are exponents, epsilons and factors: no rewrite rounds them, and a square must stay one.
      tensor.dtype === "f32" && tensor.shape.length > 0
        ? f32Tensor(
            tensor.shape,
            toNumbers(tensor).map((value) => value * (1 + (random.bits() & 1n ? step_ : -step_))),
          )
        : tensor,
    ]),
  );
  const moved = await outputsOf({ ...model, graph: { ...model.graph, initializers } }, feeds, batch);
  return 2 * difference(moved, expected) + 4 * ROUNDINGS * unit;
}

/** A generated model, random inputs for it, and what it gives for them. */
export interface Sample {
  readonly model: Model;
  readonly feeds: ReadonlyMap<string, Tensor>;
  readonly batch: number;
  readonly expected: Outputs;
}

export async function sampleOf(mamba: MambaCase): Promise<Sample> {
  const model = mambaModel(mamba.sizes, mamba.spelling, mamba.seed);
  const batch = mamba.spelling.batch ?? mamba.batch;
  const dims = { batch, length: mamba.length, vocabulary: mamba.sizes.vocabulary };
  const feeds = randomFeeds(model, dims, mamba.seed);
  return { model, feeds, batch, expected: await outputsOf(model, feeds, batch) };
}

/** Throws unless a rewritten model gives what the sample gives, within rounding. */
export async function expectSame(sample: Sample, after: Model): Promise<void> {
  const error = difference(await outputsOf(after, sample.feeds, sample.batch), sample.expected);
  if (error === 0) return;
  const bound = await roundingBound(sample.model, sample.feeds, sample.batch, sample.expected);
  if (!(error <= bound)) throw new Error(`outputs moved by ${error}, rounding allows ${bound}`);
}

/** Throws unless a wrong model is told from the sample by at least a hundred times the rounding bound. */
export async function expectTold(sample: Sample, wrong: Model, label: string): Promise<void> {
  const error = difference(await outputsOf(wrong, sample.feeds, sample.batch), sample.expected);
  const bound = await roundingBound(sample.model, sample.feeds, sample.batch, sample.expected);
  if (!(error > 100 * bound)) throw new Error(`${label} moves outputs by ${error} only; rounding allows ${bound}`);
}

/** Throws unless the pass gives the same bytes again, and changes nothing when run on its own result. */
export async function expectSettled<Options>(
  pass: Pass<Options>,
  before: Model,
  after: Model,
  options: Options,
): Promise<void> {
  const again = await runPass(pass, before, options);
  if (Buffer.compare(encodeModel(again.model), encodeModel(after)) !== 0)
    throw new Error(`${pass.name} gives other bytes the second time`);
  const twice = await runPass(pass, after, options);
  const [once_, twice_] = [after, twice.model].map((model) => formatModel(model, { dense: false, comments: true }));
  if (once_ !== twice_) throw new Error(`${pass.name} changes its own result`);
}

/**
 * Checks a property on random models and fails when the pass changed fewer than 60 % of them: then it would hardly be
 * tested. `check` says whether it did.
 */
export async function forMost<Case>(
  cases: fc.Arbitrary<Case>,
  runs: number,
  check: (drawn: Case) => Promise<boolean>,
): Promise<void> {
  let total = 0;
  let changed = 0;
  await fc.assert(
    fc.asyncProperty(cases, async (drawn) => {
      total += 1;
      if (await check(drawn)) changed += 1;
    }),
    { numRuns: runs, seed: 20_260_101, endOnFailure: true },
  );
  if (changed < 0.6 * total) throw new Error(`the pass changed only ${changed} of ${total} models`);
}

/** A golden: what it shows, the model before and after, and the remarks. Measured errors are left out. */
export function golden(about: string, before: Model, outcome: Outcome): string {
  const remarks = outcome.remarks.map(({ kind, code, where, message }) => `${kind} ${code} ${where}: ${message}`);
  const text = [
    about,
    "@@@ before",
    formatModel(before),
    "@@@ after",
    formatModel(outcome.model),
    "@@@ remarks",
    ...remarks,
    "",
  ].join("\n");
  return text.replaceAll(/error=[^,}]+/g, "error=_").replaceAll(/(relative error|differ by) [-+.\de]+/g, "$1 _");
}

/** The model with every node changed. */
export function withNodes(model: Model, change: (node: Node) => Node): Model {
  return { ...model, graph: { ...model.graph, nodes: model.graph.nodes.map(change) } };
}
