import { describe, expect, test } from "vitest";
import { completeStates } from "../../passes/complete-states.js";
import { fuseGate } from "../../passes/fuse-gate.js";
import { lower } from "../../passes/lower.js";
import { narrowFloats } from "../../passes/narrow-floats.js";
import { quantizeState } from "../../passes/quantize-state.js";
import { raiseRecipe } from "../../passes/recipes.js";
import { executor } from "../../src/executable.js";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import type { Model } from "../../src/ir/graph.js";
import {
  asBytes,
  f32Tensor,
  i64Tensor,
  type Tensor,
  tensorFromBytes,
  tensorFromSource,
  toNumbers,
} from "../../src/ir/tensor.js";
import { elementCount, formatType } from "../../src/ir/types.js";
import { encodeModel } from "../../src/onnx/write.js";
import { OP_DOMAIN } from "../../src/ops/names.js";
import { HalfTally, halfWeight } from "../../src/rewrite/half-weight.js";
import type { Remark } from "../../src/rewrite/pass.js";
import { runSteps, step } from "../../src/rewrite/pipeline.js";
import { FLOAT_STATE, type StateChoice } from "../../src/rewrite/semantic.js";
import { cachedAttention } from "../support/attention-graphs.js";
import { modelAround, normalWeight } from "../support/mamba-graphs/decoys.js";
import { arbitraryCase, DEFAULT_SIZES, DEFAULT_SPELLING, type Spelling, smallModel } from "../support/mamba-graphs.js";
import {
  difference,
  expectSettled,
  forMost,
  golden,
  outputsOf,
  roundingBound,
  runAll,
  runPass,
  type Sample,
  sampleOf,
  withNodes,
} from "../support/pass-runs.js";

async function lowered(source: Model, state: StateChoice = FLOAT_STATE): Promise<Model> {
  const before = [...raiseRecipe(), step(completeStates, { names: new Map() }), step(quantizeState, state)];
  return (await runAll(source, [...before, step(fuseGate, {}), step(lower, { target: "mambac" })])).model;
}

function small(changes: Partial<Spelling>, state: StateChoice = FLOAT_STATE): Promise<Model> {
  const sizes = { layers: 1, vocabulary: 5, dModel: 4 };
  return lowered(smallModel({ form: "loop", length: null, decay: "folded", ...changes }, 2, sizes), state);
}

/** A weight is rounded once, and what it meets a few times. */
const HALF_UNIT: number = 2 ** -13;

/** How far a model is from a sample, over what roundings to halves explain. */
async function excess(sample: Sample, model: Model): Promise<number> {
  const error = difference(await outputsOf(model, typedFeeds(model, sample.feeds), sample.batch), sample.expected);
  return error / (await roundingBound(sample.model, sample.feeds, sample.batch, sample.expected, HALF_UNIT));
}

/** Feeds in the types the model takes. */
function typedFeeds({ graph }: Model, feeds: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  const halves = new Set(graph.inputs.flatMap(({ name, type }) => (formatType(type).startsWith("f16") ? [name] : [])));
  return new Map(
    [...feeds].map(([name, tensor]) => [name, halves.has(name) ? halfWeight(tensor, name, new HalfTally()) : tensor]),
  );
}

describe("narrow-floats", () => {
  for (const [family, runs] of [
    ["mamba1", 8],
    ["mamba2", 8],
  ] as const) {
    test(`random ${family} models give the same within roundings to halves`, async () => {
      await forMost(arbitraryCase(family, "scan"), runs, async (mamba) => {
        const sample = await sampleOf(mamba);
        const { model, changed } = await runPass(narrowFloats, await lowered(sample.model), {});
        expect(await excess(sample, model)).toBeLessThanOrEqual(1);
        const products = model.graph.nodes.flatMap(({ op, inputs }) => (op === "MatMul" ? inputs : []));
        const { initializers } = model.graph;
        expect(products.filter((name) => initializers.get(name)?.dtype === "f32")).toEqual([]);
        expect([...initializers.values()].some(({ dtype, shape }) => dtype === "f16" && shape.length === 2)).toBe(true);
        return changed > 0;
      });
    });
  }

  test("golden", async () => {
    const before = await small({ family: "mamba2", states: "both" });
    const outcome = await runPass(narrowFloats, before, {});
    const bare = (model: Model): Model => ({ ...model, functions: [] });
    const about = "Functions are tested where they are made and left out here.";
    await expect(golden(about, bare(before), { ...outcome, model: bare(outcome.model) })).toMatchFileSnapshot(
      "narrow-floats/mamba2.irtxt",
    );
  });

  test("windows of convolutions become float16; states and logits keep their types", async () => {
    for (const format of ["f32", "f16", "h8"] as const) {
      const before = await small({ family: "mamba2", states: "both" }, { ...FLOAT_STATE, format });
      const { graph } = (await runPass(narrowFloats, before, {})).model;
      const kind = format === "h8" ? "u8" : format;
      const types = (values: typeof graph.inputs): string[] => values.map(({ type }) => formatType(type).slice(0, 3));
      expect(types(graph.inputs)).toEqual(["i64", "f16", kind.padEnd(3, "[")].map((type) => type.slice(0, 3)));
      expect(types(graph.outputs)).toEqual(["f32", "f16", kind.padEnd(3, "[")].map((type) => type.slice(0, 3)));
    }
  });

  test("attention caches become float16, softmax stays float32", async () => {
    const before = (await runPass(lower, cachedAttention(), { target: "mambac" })).model;
    const { model } = await runPass(narrowFloats, before, {});
    const types = [...model.graph.inputs, ...model.graph.outputs].map(({ type }) => formatType(type).split("[")[0]);
    expect(types).toEqual(["i64", "f16", "f16", "f32", "f16", "f16"]);
    const feeds = new Map([["input_ids", i64Tensor([1, 4], [1, 2, 3, 4])]]);
    const [expected, actual] = [await outputsOf(before, feeds, 1), await outputsOf(model, feeds, 1)];
    expect(difference(actual, expected)).toBeLessThan(await roundingBound(before, feeds, 1, expected, HALF_UNIT));
    const softmax = model.graph.nodes.find(({ op }) => op === "Softmax");
    const cast = model.graph.nodes.find(({ inputs }) => inputs[0] === softmax?.outputs[0]);
    expect([cast?.op, cast?.attributes.get("to")]).toEqual(["Cast", { kind: "int", value: 10n }]);
  });

  test("what is wrong with halves is noticed", async () => {
    const spelling = { ...DEFAULT_SPELLING, family: "mamba2", form: "loop", length: null, states: "both" } as const;
    const sample = await sampleOf({ sizes: DEFAULT_SIZES.mamba2, spelling, seed: 5, batch: 2, length: 6 });
    const { model } = await runPass(narrowFloats, await lowered(sample.model), {});
    expect(await excess(sample, model)).toBeLessThanOrEqual(1);
    const scan = (order: readonly number[]): Model =>
      withNodes(model, (node) =>
        node.op === "Mamba2ScanF32" ? { ...node, inputs: order.map((at) => node.inputs[at] ?? "") } : node,
      );
    expect(await excess(sample, scan([0, 1, 2, 4, 3, 5, 6, 7]))).toBeGreaterThan(3);
    expect(await excess(sample, scan([0, 1, 6, 3, 4, 5, 2, 7]))).toBeGreaterThan(3);
    const coarse = (tensor: Tensor): Tensor => {
      if (tensor.dtype !== "f16" || tensor.shape.length !== 2) return tensor;
      const bytes = tensor.bytes().slice();
      const bits = new Uint16Array(bytes.buffer);
      bits.forEach((half, at) => {
        bits[at] = half & 0xff00;
      });
      return tensorFromBytes("f16", tensor.shape, bytes);
    };
    const initializers = new Map([...model.graph.initializers].map(([name, tensor]) => [name, coarse(tensor)]));
    expect(await excess(sample, { ...model, graph: { ...model.graph, initializers } })).toBeGreaterThan(3);
  });

  test("weights that are not halves are refused by name, those that are too small are counted", async () => {
    const before = await small({ family: "mamba2" });
    const product = before.graph.nodes.find(({ op }) => op === "MatMul")?.inputs[1] ?? "";
    const weight = before.graph.initializers.get(product);
    if (weight === undefined) throw new Error("no weight");
    const changed = (...values: readonly number[]): Model => {
      const all = Float32Array.from(toNumbers(weight));
      all.set(values);
      const initializers = new Map([...before.graph.initializers, [product, f32Tensor(weight.shape, all)]]);
      return { ...before, graph: { ...before.graph, initializers } };
    };
    await expect(runPass(narrowFloats, changed(1, 65600), {})).rejects.toMatchObject({
      code: "narrow-floats/overflow",
      exitCode: 4,
      message: expect.stringContaining(`weight ${product} [${weight.shape.join(", ")}] has the value 65600`),
    });
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const refused = runPass(narrowFloats, changed(value), {});
      await expect(refused).rejects.toMatchObject({ code: "narrow-floats/overflow" });
    }
    const count = async (model: Model): Promise<number[]> => {
      const [remark] = (await runPass(narrowFloats, model, {})).remarks;
      const counts = /of \d+ weights (\d+) are too small .*, (\d+) keep/.exec(remark?.message ?? "") ?? [0, 0, 0];
      return counts.slice(1).map(Number);
    };
    const [zeroed = 0, subnormal = 0] = await count(changed(1, 1, 1, 1, 1));
    // 65504 is a half; 2^-25 is as near to zero as to 2^-24, and goes to the even one.
    expect(await count(changed(65504, 2 ** -25, 1e-20, 2 ** -24, -1e-5))).toEqual([zeroed + 2, subnormal + 2]);
  });

  test("a weight that is computed when it is read is computed once, and what it loses is told then", async () => {
    const before = await small({ family: "mamba2" });
    const product = before.graph.nodes.find(({ op }) => op === "MatMul")?.inputs[1] ?? "";
    const shape = before.graph.initializers.get(product)?.shape ?? [];
    const values = new Float32Array(elementCount(shape)).fill(2 ** -20);
    values[1] = 1e-20;
    let computed = 0;
    const lazy = (tensor: Tensor): Tensor => {
      const compute = (): Uint8Array => {
        computed += 1;
        return asBytes(values);
      };
      const read = (offset: number, length: number): Uint8Array => compute().subarray(offset, offset + length);
      return tensorFromSource("f32", tensor.shape, { read }, 0, "lazy");
    };
    const initializers = new Map(
      [...before.graph.initializers].map(([name, tensor]) => [name, name === product ? lazy(tensor) : tensor]),
    );
    const told: Remark[] = [];
    const open: (() => void)[] = [];
    const source = { ...before, graph: { ...before.graph, initializers } };
    const { model } = await runSteps(
      source,
      [step(narrowFloats, {})],
      {
        execute: executor(1),
        report: (remark) => told.push(remark),
        whenRead: (tell) => open.push(tell),
        now: () => 0,
      },
      new Set(["lowered"]),
    );
    expect([computed, told.length, open.length]).toEqual([0, 0, 1]);
    encodeModel(model);
    expect(computed).toBe(1);
    for (const tell of open) tell();
    expect(told.map(({ pass, code }) => [pass, code])).toEqual([["narrow-floats", "narrow-floats/subnormal"]]);
    const [, zeroed, subnormal] = /weights (\d+) are .*, (\d+) keep/.exec(told[0]?.message ?? "") ?? [];
    expect([Number(zeroed) >= 1, Number(subnormal) >= values.length - 1]).toEqual([true, true]);
  });

  test("quantized activations are refused", async () => {
    const b = new GraphBuilder("");
    const x = b.op("Gather", [normalWeight(b, "table", [7, 4]), "input_ids"], { axis: 0 });
    const scale = b.float(0.1);
    const q = b.op("DequantizeLinear", [b.op("QuantizeLinear", [x, scale]), scale]);
    b.op("MatMul", [q, normalWeight(b, "w", [4, 4])], {}, "y");
    const model = modelAround(
      b.graph("quantized", [typed("input_ids", "i64", ["b", "l"])], [typed("y", "f32", ["b", "l", 4])]),
    );
    const lowering = { model, steps: [step(lower, { target: "mambac" }), step(narrowFloats, {})] } as const;
    await expect(runAll(lowering.model, lowering.steps)).rejects.toMatchObject({
      code: "narrow-floats/quantized",
      exitCode: 4,
    });
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    for (const family of ["mamba1", "mamba2"] as const) {
      const before = await small({ family });
      const after = (await runPass(narrowFloats, before, {})).model;
      await expectSettled(narrowFloats, before, after, {});
      expect(after.functions.every(({ domain }) => domain === OP_DOMAIN)).toBe(true);
    }
  });
});
