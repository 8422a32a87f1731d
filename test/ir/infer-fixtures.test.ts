import { readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import type { Model } from "../../src/ir/graph.js";
import { type Inference, inferConcrete } from "../../src/ir/infer.js";
import { isFloat, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { readModel } from "../../src/onnx/read.js";
import { concreteInputs, feedsFor, madeTensors, runEveryValue, type Sizes } from "../support/every-value.js";

const FIXTURES = fileURLToPath(new URL("../fixtures", import.meta.url));

const FILES = readdirSync(FIXTURES, { recursive: true, encoding: "utf8" })
  .filter((name) => name.endsWith(".onnx"))
  .toSorted();

const TRACED: Sizes = { batch: 2, length: 24 };
const OTHER: readonly Sizes[] = [
  { batch: 3, length: 5 },
  { batch: 1, length: 1 },
];

/** Files whose symbolic dimensions promise more than the graph can do, and the sizes at which they do run. */
const RESTRICTED: ReadonlyMap<string, readonly Sizes[]> = new Map([
  ["forms/mamba2_groups_torchscript_dynamic_axes.onnx", [TRACED]],
  ["forms/mamba2_prefill_exported_short.onnx", OTHER],
  ["forms/mamba_torchscript_dynamic_axes.onnx", [TRACED]],
  ["hf/mamba2_groups/prefill.onnx", [TRACED]],
]);

function infer(model: Model, sizes: Sizes): Inference {
  const opset = model.opsets.get("") ?? 0;
  return inferConcrete(model.graph, concreteInputs(model, sizes), { opset, functions: model.functions });
}

/** Every way in which what was inferred differs from what ran. */
function differences({ values }: Inference, ran: ReadonlyMap<string, Tensor>): string[] {
  const wrong: string[] = [];
  for (const [name, tensor] of ran) {
    const value = values.get(name);
    if (value === undefined || value.shape === null) wrong.push(`${name} is unknown`);
    else if (value.shape.join() !== tensor.shape.join())
      wrong.push(`${name}: ${value.shape.join()} is ${tensor.shape.join()}`);
    else if (value.dtype !== tensor.dtype) wrong.push(`${name}: ${value.dtype} is ${tensor.dtype}`);
    else if (value.content !== null && !isFloat(tensor.dtype)) {
      const real = toNumbers(tensor);
      if (!value.content.every((element, i) => Object.is(element, real[i]))) wrong.push(`${name} has other elements`);
    }
  }
  return wrong;
}

describe.each(FILES)("%s", (file) => {
  const { model } = readModel(join(FIXTURES, file));
  const runnable = RESTRICTED.get(file) ?? [TRACED, ...OTHER];
  const refused = [TRACED, ...OTHER].filter((sizes) => !runnable.includes(sizes));

  it.each(runnable)("knows every value at batch $batch, length $length", async (sizes) => {
    const inference = infer(model, sizes);
    const ran = await runEveryValue(model, feedsFor(concreteInputs(model, sizes)));
    expect(inference.failures).toEqual([]);
    expect(ran.size).toBe(new Set(madeTensors(model)).size);
    expect(differences(inference, ran)).toEqual([]);
  });

  it.each(refused)("refuses the node that fails at batch $batch, length $length", async (sizes) => {
    const names = infer(model, sizes).failures.map(({ node }) => node.name);
    const message = await runEveryValue(model, feedsFor(concreteInputs(model, sizes))).then(
      () => "it ran",
      (error: unknown) => String(error),
    );
    expect(names).toContain(/Name:'([^']*)'/.exec(message)?.[1] ?? message);
  });

  it("is inferred without reading a large weight", () => {
    const initializers = new Map(
      [...model.graph.initializers].map(([name, tensor]): [string, Tensor] => [name, unreadable(tensor)]),
    );
    const locked = { ...model, graph: { ...model.graph, initializers } };
    expect(infer(locked, TRACED)).toEqual(infer(model, TRACED));
  });
});

/** The tensor, with its bytes out of reach when it is a weight. */
function unreadable(tensor: Tensor): Tensor {
  if (!isFloat(tensor.dtype) || tensor.shape.reduce((a, b) => a * b, 1) <= 4096) return tensor;
  const refuse = (): never => {
    throw new Error("a weight was read");
  };
  return {
    ...tensor,
    dtype: tensor.dtype,
    shape: tensor.shape,
    byteLength: tensor.byteLength,
    bytes: refuse,
    slice: refuse,
  };
}

describe("shape arithmetic of dynamic exports", () => {
  const files = ["hf/mamba2/prefill.onnx", "hf/granitemoehybrid/prefill.onnx", "forms/mamba_scripted_loop.onnx"];

  it.each(files)("%s is known completely", async (file) => {
    const { model } = readModel(join(FIXTURES, file));
    const ran = await runEveryValue(model, feedsFor(concreteInputs(model, TRACED)));
    const { values } = infer(model, TRACED);
    // Questions about data: the threshold of softplus, the guard of attention's softmax.
    const asking = model.graph.nodes.filter((node) => node.op === "Greater" || node.op === "IsNaN");
    const compared = new Set(asking.flatMap((node) => node.outputs));
    const whole = [...ran].filter(([name, tensor]) => !isFloat(tensor.dtype) && !compared.has(name));
    expect(whole.length).toBeGreaterThan(50);
    expect(whole.filter(([name]) => values.get(name)?.content === null).map(([name]) => name)).toEqual([]);
  });
});
