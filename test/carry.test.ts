/** Graphs that look past their states are refused, and those that only seem to are not. */

import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { executor } from "../src/executable.js";
import { GraphBuilder, typed } from "../src/ir/builder.js";
import type { Model } from "../src/ir/graph.js";
import { f32Tensor, i64Tensor, type Tensor, toNumbers } from "../src/ir/tensor.js";
import { elementCount } from "../src/ir/types.js";
import { readModel } from "../src/onnx/read.js";
import { writeModel } from "../src/onnx/write.js";
import { FLOAT_STATE } from "../src/rewrite/semantic.js";
import { readSignature } from "../src/run/signature.js";
import { loadPackage } from "../src/run/stateful.js";
import { relativeError } from "./ops/scan-case.js";
import { fixture } from "./support/fixture-models.js";
import { compileWith } from "./support/fixture-row.js";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "mambac-carry-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** The prefill graph of a fixture. */
function prefill(name: string): Model {
  return readModel(fixture(`hf/${name}/prefill.onnx`)).model;
}

/** As exporters write a plain forward pass: nothing comes out but the logits. */
function withoutCaches(model: Model): Model {
  const outputs = model.graph.outputs.filter(({ name }) => name === "logits");
  return { ...model, graph: { ...model.graph, outputs } };
}

/** The graph with something done to its embeddings [B, L, D]. */
function afterEmbedding(model: Model, change: (builder: GraphBuilder, hidden: string, output: string) => void): Model {
  const { graph } = model;
  const initializers = new Map(graph.initializers);
  const at = graph.nodes.findIndex(({ op, inputs }) => op === "Gather" && inputs[1] === "input_ids");
  const node = graph.nodes[at];
  const hidden = node?.outputs[0];
  if (node === undefined || hidden === undefined) throw new Error("the graph embeds no tokens");
  const builder = new GraphBuilder("changed.");
  change(builder, "embedded", hidden);
  const nodes = graph.nodes.toSpliced(at, 1, { ...node, outputs: ["embedded"] }, ...builder.nodes);
  for (const [name, tensor] of builder.initializers) initializers.set(name, tensor);
  return { ...model, graph: { ...graph, nodes, initializers } };
}

async function compiled(name: string, model: Model): Promise<string> {
  const [input, output] = [join(folder, `${name}.onnx`), join(folder, `${name}.out.onnx`)];
  await writeModel(model, input);
  return compileWith([input], output, FLOAT_STATE).then(
    () => "compiled",
    (error: unknown) => {
      expect(readdirSync(folder)).not.toContain(`${name}.out.onnx`);
      return error instanceof Error ? error.message : String(error);
    },
  );
}

/** The one before each token, zero before the first, added to it. */
function shifted(b: GraphBuilder, hidden: string, output: string): void {
  const late = b.op("Slice", [
    b.op("Pad", [hidden, b.ints([0, 1, 0, 0, 0, 0])]),
    b.ints([0]),
    b.ints([-1]),
    b.ints([1]),
  ]);
  b.op("Add", [hidden, late], {}, output);
}

/** A tenth of the number of each token in its call, added to it. */
function counted(b: GraphBuilder, hidden: string, output: string): void {
  const length = b.op("Squeeze", [b.op("Shape", [hidden], { start: 1, end: 2 })]);
  const positions = b.op("Cast", [b.op("Range", [b.int(0), length, b.int(1)])], { to: 1 });
  b.op("Add", [hidden, b.op("Mul", [b.op("Unsqueeze", [positions, b.ints([1])]), b.float(0.1)])], {}, output);
}

/** A mean over the one token at its own place: looks like a sum over tokens, and is none. */
function alone(b: GraphBuilder, hidden: string, output: string): void {
  const columns = b.op("Unsqueeze", [hidden, b.ints([2])]);
  const both = b.op("Concat", [columns, columns], { axis: 2 });
  b.op("ReduceMean", [both, b.ints([2])], { keepdims: 0 }, output);
}

/** Two products of computed values that leave every token to itself. */
function squared(b: GraphBuilder, hidden: string, output: string): void {
  const row = b.op("Unsqueeze", [hidden, b.ints([2])]);
  const length = b.op("MatMul", [row, b.op("Transpose", [row], { perm: [0, 1, 3, 2] })]);
  b.op("Mul", [hidden, b.op("Sigmoid", [b.op("Squeeze", [length, b.ints([3])])])], {}, output);
}

test("a mask of padding may be that of the call, or of everything seen so far", async () => {
  const source = afterEmbedding(prefill("mamba2"), (b, hidden, output) => {
    const factors = b.op("Cast", [b.op("Unsqueeze", ["attention_mask", b.ints([2])])], { to: 1 });
    b.op("Mul", [hidden, factors], {}, output);
  });
  const inputs = [...source.graph.inputs, typed("attention_mask", "i64", ["s72", "s70"])];
  const input = join(folder, "masked.onnx");
  await writeModel({ ...source, graph: { ...source.graph, inputs } }, input);
  const { model } = await compileWith([input], null, FLOAT_STATE);
  const { states } = readSignature(model);
  const run = (ids: readonly number[], mask: readonly number[], from: ReadonlyMap<string, Tensor>) =>
    executor(1)(
      model,
      new Map([
        ["input_ids", i64Tensor([1, ids.length], ids)],
        ["attention_mask", i64Tensor([1, mask.length], mask)],
        ...states.map(({ input: past, output, shape }): [string, Tensor] => {
          const sizes = shape.map((dim) => (typeof dim === "number" ? dim : 1));
          const zeros = f32Tensor(
            sizes,
            Array.from({ length: elementCount(sizes) }, () => 0),
          );
          return [past, from.get(output) ?? zeros];
        }),
      ]),
    );
  // Two tokens of padding before five of text.
  const first = await run([0, 0, 7, 8, 9], [0, 0, 1, 1, 1], new Map());
  const all = await run([0, 0, 7, 8, 9, 10, 11], [0, 0, 1, 1, 1, 1, 1], new Map());
  const expected = toNumbers(all.get("logits")!).slice(5 * 96);
  for (const mask of [
    [1, 1],
    [0, 0, 1, 1, 1, 1, 1],
  ]) {
    const second = await run([10, 11], mask, first);
    expect(relativeError(toNumbers(second.get("logits")!), expected)).toBeLessThan(1e-5);
  }
  await using package_ = await loadPackage(await written(model), { library: "none" });
  const whole = (await package_.prefill([7, 8, 9, 10, 11])).data.slice(3 * 96);
  package_.reset();
  await package_.prefill([7, 8, 9]);
  expect(relativeError((await package_.prefill([10, 11])).data, whole)).toBeLessThan(1e-5);
});

async function written(model: Model): Promise<string> {
  const path = join(folder, "written.onnx");
  await writeModel(model, path);
  return path;
}

test.each(["nemotron_h", "jamba"])("attention of %s without caches is refused by name", async (name) => {
  expect(await compiled(name, withoutCaches(prefill(name)))).toMatch(
    /its attention \(Softmax \w+\) has no cache.*use_cache=True/,
  );
});

/** A convolution over tokens that mixes channels, too: nothing here keeps a window for it. */
function mixed(b: GraphBuilder, hidden: string, output: string): void {
  const weight = b.initializer(
    f32Tensor(
      [32, 32, 2],
      Array.from({ length: 2048 }, (_, i) => Math.sin(i) / 8),
    ),
  );
  const columns = b.op("Transpose", [hidden], { perm: [0, 2, 1] });
  b.op("Transpose", [b.op("Conv", [columns, weight], { pads: [1, 0] })], { perm: [0, 2, 1] }, output);
}

test.each(["mamba2", "mamba"])("a convolution of %s that has no window is refused by name", async (name) => {
  expect(await compiled(`mixed-${name}`, afterEmbedding(prefill(name), mixed))).toMatch(
    /its Conv \S+ was not recognised as a causal convolution/,
  );
});

test.each(["mamba2", "mamba"])("logits of the last token alone leave the length of %s free", async (name) => {
  const { graph, ...model } = prefill(name);
  const b = new GraphBuilder("last.");
  b.op("Slice", ["all", b.ints([-1]), b.ints([2 ** 31]), b.ints([1])], {}, "logits");
  const nodes = graph.nodes.map((node) => ({
    ...node,
    outputs: node.outputs.map((output) => (output === "logits" ? "all" : output)),
  }));
  const outputs = [typed("logits", "f32", ["s72", 1, 96])];
  const input = join(folder, `last-${name}.onnx`);
  await writeModel({ ...model, graph: { ...graph, nodes: [...nodes, ...b.nodes], outputs } }, input);
  const path = await written((await compileWith([input], null, FLOAT_STATE)).model);
  await using last = await loadPackage(path, { library: "none" });
  const whole = await last.prefill([7, 8, 9, 10, 11, 12, 13]);
  expect(whole.length).toBe(1);
  const expected = whole.data.slice();
  last.reset();
  await last.prefill([7, 8, 9, 10]);
  await last.step(11);
  expect(relativeError((await last.prefill([12, 13])).data, expected)).toBeLessThan(1e-5);
});

/** The graph behind its table of embeddings, which come in after the positions. */
function ofEmbeddings({ graph, ...model }: Model): Model {
  const nodes = graph.nodes.filter(({ op, inputs }) => op !== "Gather" || inputs[1] !== "input_ids");
  const [hidden = ""] = graph.nodes.find((node) => !nodes.includes(node))?.outputs ?? [];
  const renamed = nodes.map((node) => ({
    ...node,
    inputs: node.inputs.map((name) => (name === "input_ids" ? hidden : name)),
  }));
  const others = graph.inputs.filter(({ name }) => name !== "input_ids");
  return {
    ...model,
    graph: { ...graph, nodes: renamed, inputs: [...others, typed(hidden, "f32", ["s72", "s70", 32])] },
  };
}

test("a hybrid of embeddings keeps its states, and is refused without caches, too", async () => {
  const source = ofEmbeddings(prefill("nemotron_h"));
  expect(source.graph.inputs[0]?.name).toBe("position_ids");
  expect(await compiled("embeddings", source)).toBe("compiled");
  const { graph } = readModel(join(folder, "embeddings.out.onnx")).model;
  expect(graph.inputs.filter(({ name }) => name.startsWith("input.past_key_values"))).toHaveLength(6);
  expect(await compiled("embeddings-without", withoutCaches(source))).toMatch(
    /its attention \(Softmax \w+\) has no cache/,
  );
});

test.each([
  ["tokens before each token", shifted],
  ["places counted inside", counted],
])("%s are refused", async (_what, change) => {
  expect(await compiled(change.name, afterEmbedding(prefill("mamba2"), change))).toMatch(
    /something besides scans and convolutions .* logits of 9 tokens move by \d\.\de[-+]\d of the largest/,
  );
});

test.each([alone, squared])("what only looks so is compiled: %o", async (change) => {
  expect(await compiled(change.name, afterEmbedding(prefill("mamba2"), change))).toBe("compiled");
});

test.each(["mamba2", "mamba"])("%s without caches gets them", async (name) => {
  expect(await compiled(name, withoutCaches(prefill(name)))).toBe("compiled");
});
