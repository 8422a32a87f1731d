/** Sources that work for one length only: compiled, they work for every length. */

import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { readModel } from "../../src/onnx/read.js";
import { declaredBatch, dimNumber } from "../../src/rewrite/axes.js";
import { FLOAT_STATE } from "../../src/rewrite/semantic.js";
import { compareLogits, everyCut, feedInParts } from "../../src/run/parity.js";
import { loadPackage } from "../../src/run/stateful.js";
import { Random } from "../../src/support/random.js";
import { fixture } from "./fixture-models.js";
import { compileWith } from "./fixture-row.js";

export const LENGTHS = [1, 5, 24, 100] as const;
export const LENGTH_LIMIT = 1e-4;

/** Unrolled or frozen fixtures, by name: exports of one static length, and files that claim a free one they lack. */
export const FROZEN_FIXTURES: readonly string[] = [
  "hf/falcon_mamba/prefill.onnx",
  "hf/jamba/prefill.onnx",
  "hf/mamba/prefill.onnx",
  ...readdirSync(fixture("forms"))
    .filter((name) => /static|dynamic_axes|exported_short|scripted_loop/.test(name) && name.endsWith(".onnx"))
    .sort()
    .map((name) => `forms/${name}`),
];

export interface LengthRow {
  readonly name: string;
  /** Declared batch and length of the source; `any` for symbols. */
  readonly declared: string;
  /** Largest relative difference between one call and a call a token, at each of `LENGTHS`. */
  readonly errors: readonly number[];
}

/** Compiles a fixture and runs it at every length; a hybrid needs its decode graph for the caches of its attention. */
export async function lengthRow(name: string, folder: string): Promise<LengthRow> {
  const source = fixture(name);
  const decode = source.replace("prefill.onnx", "decode.onnx");
  const output = join(folder, "free.onnx");
  await compileWith(decode !== source && existsSync(decode) ? [source, decode] : [source], output, FLOAT_STATE);
  const { graph } = readModel(source).model;
  const shape = graph.inputs.find((input) => input.name === "input_ids")?.type;
  const dims = shape?.kind === "tensor" ? (shape.shape ?? []) : [];
  const freed = readModel(output).model.graph;
  if (declaredBatch(freed) !== null) throw new Error(`${name}: the batch is still ${declaredBatch(freed)}`);
  await using model = await loadPackage(output, { batch: 2, library: "none" });
  const random = new Random(0).split(name);
  const vocabulary = (await model.prefill([0])).vocabulary;
  const errors: number[] = [];
  for (const length of LENGTHS) {
    const rows = [0, 1].map(() => Array.from({ length }, () => random.integer(vocabulary)));
    const whole = await feedInParts(model, rows, []);
    errors.push(compareLogits(await feedInParts(model, rows, everyCut(length)), whole).relative);
  }
  return { name, declared: dims.map((dim) => dimNumber(dim) ?? "any").join(" x "), errors };
}
