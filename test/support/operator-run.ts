/** Single operators on constant inputs: what inference says about them, and what the runtime does. */

import { type AttributeInput, GraphBuilder, untyped } from "../../src/ir/builder.js";
import { type Model, makeModel } from "../../src/ir/graph.js";
import { type Inference, inferConcrete } from "../../src/ir/infer.js";
import { isFloat, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { runEveryValue } from "./every-value.js";

/** A node; null is an omitted input. */
export interface Case {
  readonly op: string;
  readonly inputs: readonly (Tensor | null)[];
  readonly attributes?: Readonly<Record<string, AttributeInput>>;
  /** How many outputs, or which ones by index. */
  readonly outputs?: number | readonly number[];
  readonly domain?: string;
}

/** A case, with the usual fields in order. */
export function node(
  op: string,
  inputs: readonly (Tensor | null)[],
  attributes: Readonly<Record<string, AttributeInput>> = {},
  outputs: number | readonly number[] = 1,
  domain: string = "",
): Case {
  return { op, inputs, attributes, outputs, domain };
}

/** A model with one node a case; inputs are initialisers, so that the runtime knows what inference knows. */
export function modelOf(cases: readonly Case[], opset: number): { model: Model; outputs: string[][] } {
  const builder = new GraphBuilder("");
  const outputs = cases.map(({ op, inputs, attributes, outputs: count, domain }, at) => {
    const names = inputs.map((tensor) => (tensor === null ? "" : builder.initializer(tensor)));
    return builder.ops(op, names, outputNames(count ?? 1, at), attributes, domain);
  });
  const made = outputs.map((names) => names.filter((name) => name !== ""));
  const model: Model = makeModel(builder.graph("cases", [], made.flat().map(untyped)), {
    opsets: new Map([
      ["", opset],
      ["com.microsoft", 1],
    ]),
  });
  return { model, outputs: made };
}

/** Names for the outputs that are wanted; the others are left out. */
function outputNames(wanted: number | readonly number[], at: number): string[] {
  const indices = typeof wanted === "number" ? [...Array(wanted).keys()] : wanted;
  return Array.from({ length: Math.max(...indices) + 1 }, (_, i) => (indices.includes(i) ? `out_${at}_${i}` : ""));
}

export function infer(model: Model): Inference {
  return inferConcrete(model.graph, new Map(), { opset: model.opsets.get("") ?? 0 });
}

/** What inference says and what the runtime does, in the same words, for each case. */
export async function compare(cases: readonly Case[], opset: number, contents: boolean): Promise<[unknown, unknown][]> {
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

/** Does the runtime refuse to load or run a node? */
export async function refusedByRuntime(one: Case, opset: number): Promise<boolean> {
  return runEveryValue(modelOf([one], opset).model, new Map()).then(
    () => false,
    () => true,
  );
}
