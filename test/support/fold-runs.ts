/** Raised models to fold, with inputs and expected outputs, and ways to spoil a fold. */

import { alignLinears } from "../../passes/align-linears.js";
import { completeStates } from "../../passes/complete-states.js";
import type { Model } from "../../src/ir/graph.js";
import { f32Tensor, i64Tensor, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { elementCount } from "../../src/ir/types.js";
import type { Pass } from "../../src/rewrite/pass.js";
import { Random } from "../../src/support/random.js";
import { type Outcome, outputsOf, runPass, type Sample } from "./pass-runs.js";
import { raisedModel, VOCABULARY } from "./raised-models.js";
import type { RaisedSpelling } from "./raised-spelling.js";

const BATCH = 2;
const LENGTH = 5;

/** The model of a spelling with what it gives for random tokens, from random states or from zero. */
export async function foldSample(spelling: RaisedSpelling, states: "random" | "zero" = "random"): Promise<Sample> {
  const model = raisedModel(spelling);
  const feeds = await feedsFor(model, spelling.seed, states);
  return { model, feeds, batch: BATCH, expected: await outputsOf(model, feeds, BATCH) };
}

async function feedsFor(model: Model, seed: number, states: "random" | "zero"): Promise<Map<string, Tensor>> {
  const { model: complete } = await runPass(completeStates, model, { names: new Map() });
  const feeds = new Map<string, Tensor>();
  for (const { name, type } of complete.graph.inputs) {
    if (type?.kind !== "tensor") continue;
    const random = new Random(seed).split(name);
    const shape = (type.shape ?? []).map((dim, axis) => (typeof dim === "number" ? dim : axis === 0 ? BATCH : LENGTH));
    const count = elementCount(shape);
    const fill = (value: () => number): number[] => Array.from({ length: count }, value);
    if (type.dtype === "i64")
      feeds.set(
        name,
        i64Tensor(
          shape,
          fill(() => random.integer(VOCABULARY)),
        ),
      );
    else if (states === "random")
      feeds.set(
        name,
        f32Tensor(
          shape,
          fill(() => random.normal()),
        ),
      );
  }
  return feeds;
}

/** The same sample after its projections are aligned, which folds need. */
export async function aligned(sample: Sample): Promise<Sample> {
  return { ...sample, model: (await runPass(alignLinears, sample.model, {})).model };
}

/** The sample without outputs a fold may change. */
export function seeing(sample: Sample, keep: (output: string) => boolean): Sample {
  return { ...sample, expected: new Map([...sample.expected].filter(([name]) => keep(name))) };
}

/** Runs a pass on the model of a sample. */
export function fold<Options>(sample: Sample, pass: Pass<Options>, options: Options): Promise<Outcome> {
  return runPass(pass, sample.model, options);
}

/** Changes the values of the one initialiser whose name matches. */
export function spoiled(
  model: Model,
  name: RegExp,
  change: (values: Float64Array, shape: readonly number[]) => ArrayLike<number>,
): Model {
  const found = [...model.graph.initializers.keys()].filter((candidate) => name.test(candidate));
  const tensor = model.graph.initializers.get(found[0] ?? "");
  if (found.length !== 1 || tensor === undefined) {
    throw new Error(`${name} names ${found.length} of ${[...model.graph.initializers.keys()].join(", ")}`);
  }
  const values = f32Tensor(tensor.shape, change(toNumbers(tensor), tensor.shape));
  const initializers = new Map([...model.graph.initializers, [found[0] ?? "", values]]);
  return { ...model, graph: { ...model.graph, initializers } };
}

/** The values of the one initialiser whose name matches. */
export function valuesOf(model: Model, name: RegExp): Float64Array {
  let values: Float64Array = new Float64Array();
  spoiled(model, name, (found) => {
    values = found;
    return found;
  });
  return values;
}

/** W [K, N] with its rows moved on by one: scales land on the wrong channels. */
export function shiftedRows(values: Float64Array, shape: readonly number[]): Float64Array {
  const [, columns = 1] = shape;
  return Float64Array.from(values, (_, i) => values[(i + columns) % values.length] ?? 0);
}

/** A vector moved on by one. */
export function shifted(values: Float64Array): Float64Array {
  return Float64Array.from(values, (_, i) => values[(i + 1) % values.length] ?? 0);
}

/** values [K, N] := M values, M [K, K] row-major. */
export function timesLeft(matrix: Float64Array, values: Float64Array, k: number): Float64Array {
  const n = values.length / k;
  return Float64Array.from(values, (_, at) => {
    const [i, j] = [Math.floor(at / n), at % n];
    let sum = 0;
    for (let x = 0; x < k; x++) sum += (matrix[i * k + x] ?? 0) * (values[x * n + j] ?? 0);
    return sum;
  });
}

/** values [K, N] := values M, M [N, N] row-major. */
export function timesRight(values: Float64Array, matrix: Float64Array, n: number): Float64Array {
  return Float64Array.from(values, (_, at) => {
    const [i, j] = [Math.floor(at / n), at % n];
    let sum = 0;
    for (let x = 0; x < n; x++) sum += (values[i * n + x] ?? 0) * (matrix[x * n + j] ?? 0);
    return sum;
  });
}

/** The transpose of M [rows, columns], as its numbers in a row. */
export function flipped(matrix: Float64Array, rows: number, columns: number = rows): Float64Array {
  return Float64Array.from(matrix, (_, at) => matrix[(at % rows) * columns + Math.floor(at / rows)] ?? 0);
}
