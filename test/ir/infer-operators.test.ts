/** Every rule against ONNX Runtime: the same shapes, types and elements, and the same refusals. */

import { describe, expect, it } from "vitest";
import { GraphBuilder, untyped } from "../../src/ir/builder.js";
import type { Model } from "../../src/ir/graph.js";
import { type Inference, inferConcrete } from "../../src/ir/infer.js";
import { isFloat, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { runEveryValue } from "../support/every-value.js";
import { type Case, EXACT, OLD, OLDER, REFUSED, SHAPES } from "./operator-cases.js";

/** A model with one node a case; inputs are initialisers, so that the runtime knows what inference knows. */
function modelOf(cases: readonly Case[], opset: number): { model: Model; outputs: string[][] } {
  const builder = new GraphBuilder("");
  const outputs = cases.map(({ op, inputs, attributes, outputs: count, domain }, at) => {
    const names = inputs.map((tensor) => (tensor === null ? "" : builder.initializer(tensor)));
    return builder.ops(op, names, outputNames(count ?? 1, at), attributes, domain);
  });
  const made = outputs.map((names) => names.filter((name) => name !== ""));
  const model: Model = {
    irVersion: 10,
    producerName: "",
    producerVersion: "",
    domain: "",
    modelVersion: 0n,
    doc: "",
    opsets: new Map([
      ["", opset],
      ["com.microsoft", 1],
    ]),
    graph: builder.graph("cases", [], made.flat().map(untyped)),
    functions: [],
    metadata: new Map(),
  };
  return { model, outputs: made };
}

/** Names for the outputs that are wanted; the others are left out. */
function outputNames(wanted: number | readonly number[], at: number): string[] {
  const indices = typeof wanted === "number" ? [...Array(wanted).keys()] : wanted;
  return Array.from({ length: Math.max(...indices) + 1 }, (_, i) => (indices.includes(i) ? `out_${at}_${i}` : ""));
}

function infer(model: Model): Inference {
  return inferConcrete(model.graph, new Map(), { opset: model.opsets.get("") ?? 0 });
}

/** What inference says and what the runtime does, in the same words, for each case. */
async function compare(cases: readonly Case[], opset: number, contents: boolean): Promise<[unknown, unknown][]> {
  const { model, outputs } = modelOf(cases, opset);
  const inference = infer(model);
  const ran = await runEveryValue(model, new Map());
  return outputs.map((names, at): [unknown, unknown] => {
    const told = names.map((name) => {
      const { dtype, shape, content } = inference.values.get(name) ?? { dtype: null, shape: null, content: null };
      return { dtype, shape, ...(contents ? { content } : {}) };
    });
    const real = names.map((name) => {
      const tensor = ran.get(name);
      if (tensor === undefined) throw new Error(`${name} did not run`);
      const { dtype, shape } = tensor;
      return { dtype, shape: [...shape], ...(contents ? { content: elements(tensor) } : {}) };
    });
    const label = `${cases[at]?.op} ${at}`;
    return [
      { label, told },
      { label, told: real },
    ];
  });
}

function elements(tensor: Tensor): number[] {
  const values = Array.from(toNumbers(tensor));
  return isFloat(tensor.dtype) ? values : values.map((value) => value + 0);
}

async function refusedByRuntime(one: Case, opset: number): Promise<boolean> {
  return runEveryValue(modelOf([one], opset).model, new Map()).then(
    () => false,
    () => true,
  );
}

describe("operators", () => {
  it("give what the runtime gives, elements included", async () => {
    for (const [told, real] of await compare(EXACT, 21, true)) expect(told).toEqual(real);
  });

  it("give the shapes and types that the runtime gives", async () => {
    for (const [told, real] of await compare(SHAPES, 21, false)) expect(told).toEqual(real);
  });

  it("are understood in their older forms", async () => {
    for (const [told, real] of await compare(OLD, 12, false)) expect(told).toEqual(real);
    for (const [told, real] of await compare(OLDER, 9, false)) expect(told).toEqual(real);
  });

  it.each(REFUSED)("$op refuses what the runtime refuses: $inputs", async (one) => {
    const { model, outputs } = modelOf([one], 21);
    const { failures, values } = infer(model);
    expect(failures.map((failure) => failure.node)).toEqual(model.graph.nodes);
    for (const name of outputs.flat()) expect(values.get(name)).toEqual({ dtype: null, shape: null, content: null });
    expect(await refusedByRuntime(one, 21)).toBe(true);
  });
});
