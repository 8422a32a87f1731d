import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { absorbNormGain } from "../../passes/absorb-norm-gain.js";
import { alignLinears } from "../../passes/align-linears.js";
import { completeStates } from "../../passes/complete-states.js";
import { executableRecipe, raiseRecipe } from "../../passes/recipes.js";
import { rotateOutput } from "../../passes/rotate-output.js";
import { tidy } from "../../passes/tidy.js";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import { attr, attrInts, type Model, type Node, subgraphs } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import { step } from "../../src/rewrite/pipeline.js";
import { foldSample } from "../support/fold-runs.js";
import { modelAround } from "../support/mamba-graphs/decoys.js";
import { arbitraryCase, type GraphForm, smallModel } from "../support/mamba-graphs.js";
import {
  difference,
  expectSame,
  expectSettled,
  forMost,
  golden,
  outputsOf,
  runAll,
  runPass,
  sampleOf,
} from "../support/pass-runs.js";
import { arbitraryRaised } from "../support/raised-spelling.js";

const LOWERED = [...raiseRecipe(), step(completeStates, { names: new Map() }), ...executableRecipe()];

/** Transposes in a row, a Reshape to the same shape, equal constants, equal large weights, an output that must stay. */
function untidy(): Model {
  const b = new GraphBuilder("");
  const swap = (name: string, output?: string): string => b.op("Transpose", [name], { perm: [0, 2, 1] }, output);
  const back = swap(swap("x"));
  const same = b.op("Reshape", [back, b.ints([0, 0, 4])]);
  const turned = b.op("Transpose", [b.op("Transpose", [same], { perm: [1, 0, 2] })], { perm: [2, 0, 1] });
  const twice = b.op("Mul", [b.op("Mul", [turned, b.float(3)]), b.float(3)]);
  const [left = "", right = ""] = [1, 2].map(() => b.initializer(f32Tensor([64], new Float32Array(64).fill(0.5))));
  b.op("Add", [left, right], {}, "weights");
  b.op("Identity", [twice], {}, "y");
  swap(swap("x"), "z");
  return modelAround(
    b.graph(
      "untidy",
      [typed("x", "f32", ["b", "l", 4])],
      [typed("y", "f32", [4, "l", "b"]), typed("z", "f32", ["b", "l", 4]), typed("weights", "f32", [64])],
    ),
  );
}

describe("tidy", () => {
  test("golden", async () => {
    const before = untidy();
    const about = "Large equal weights and outputs that only repeat an input stay.";
    await expect(golden(about, before, await runPass(tidy, before, {}))).toMatchFileSnapshot("tidy/untidy.irtxt");
  });

  test("notes of exporters go, everything else stays", async () => {
    const plain = untidy();
    const metadata = new Map([
      ["pkg.torch.onnx.stack_trace", 'File "/home/someone/model.py", line 1'],
      ["namespace", "backbone"],
      ["mambac.role", "rotation"],
    ]);
    const nodes = plain.graph.nodes.map((node, at) => ({
      ...node,
      metadata,
      doc: at % 2 === 0 ? 'File "model.py", line 2' : "said by a person",
    }));
    const { model } = await runPass(tidy, { ...plain, graph: { ...plain.graph, nodes } }, {});
    for (const node of model.graph.nodes) {
      expect([...node.metadata.keys()].filter((key) => key !== "mambac.role")).toEqual([]);
      expect(node.doc).not.toContain("File");
    }
    expect(model.graph.nodes.some((node) => node.doc === "said by a person")).toBe(true);
    expect(model.graph.nodes.some((node) => node.metadata.has("mambac.role"))).toBe(true);
  });

  test("every node has a name of its own, in functions and subgraphs too", async () => {
    const names = (nodes: readonly Node[]): void => {
      expect(nodes.map(({ name }) => name)).not.toContain("");
      expect(new Set(nodes.map(({ name }) => name)).size).toBe(nodes.length);
      for (const graph of nodes.flatMap(subgraphs)) names(graph.nodes);
    };
    for (const source of [smallModel({ form: "loop", length: null, states: "both" }), smallModel({})]) {
      const lowered = (await runAll(source, LOWERED)).model;
      const [first, ...rest] = lowered.graph.nodes;
      if (first === undefined) throw new Error("there are no nodes");
      // A node may have the name of another's output.
      const taken = { ...first, name: rest[0]?.outputs[0] ?? "" };
      const { model } = await runPass(tidy, { ...lowered, graph: { ...lowered.graph, nodes: [taken, ...rest] } }, {});
      names(model.graph.nodes);
      expect(model.functions.length).toBeGreaterThan(0);
      for (const fn of model.functions) names(fn.nodes);
    }
  });

  test("random compiled graphs give the same bits and get smaller", async () => {
    const cases = fc
      .constantFrom<GraphForm>("step", "unrolled", "chunked", "loop")
      .chain((form) => arbitraryCase("mamba2", form));
    await forMost(cases, 10, async (mamba) => {
      const sample = await sampleOf(mamba);
      const before = (await runAll(sample.model, LOWERED)).model;
      const { model, changed } = await runPass(tidy, before, {});
      const outputs = await outputsOf(before, sample.feeds, sample.batch);
      const error = difference(await outputsOf(model, sample.feeds, sample.batch), outputs);
      // ONNX Runtime multiplies by a weight in another order than by the transpose of a transposed weight.
      if (mamba.spelling.projection === "transposed") await expectSame(sample, model);
      else expect(error).toBe(0);
      expect(model.graph.nodes.length).toBeLessThan(before.graph.nodes.length);
      return changed > 0;
    });
  });

  test("interface and large weights stay as they are", async () => {
    const before = (
      await runAll(smallModel({ form: "loop", length: null, states: "both", shareWeights: true }), LOWERED)
    ).model;
    const { model } = await runPass(tidy, before, {});
    expect(model.graph.inputs).toEqual(before.graph.inputs);
    expect(model.graph.outputs).toEqual(before.graph.outputs);
    const large = ({ graph }: Model): string[] =>
      [...graph.initializers].flatMap(([name, { byteLength }]) => (byteLength >= 256 ? [name] : []));
    expect(large(model)).toEqual(large(before));
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    for (const before of [untidy(), (await runAll(smallModel({ family: "mamba2" }), LOWERED)).model])
      await expectSettled(tidy, before, (await runPass(tidy, before, {})).model, {});
  });

  test("what folds leave behind goes, and the bits stay", async () => {
    const folds = [step(alignLinears, {}), step(absorbNormGain, {}), step(rotateOutput, {})];
    let shorter = 0;
    await forMost(arbitraryRaised(), 14, async (spelling) => {
      const sample = await foldSample(spelling);
      const before = (await runAll(sample.model, folds)).model;
      const { model, changed } = await runPass(tidy, before, {});
      const bits = await outputsOf(before, sample.feeds, sample.batch);
      expect(difference(await outputsOf(model, sample.feeds, sample.batch), bits)).toBe(0);
      const transposes = (one: Model): number => one.graph.nodes.filter(({ op }) => op === "Transpose").length;
      if (transposes(model) < transposes(before)) shorter += 1;
      return changed > 0;
    });
    expect(shorter).toBeGreaterThan(3);
  });

  test("equal small vectors become one, equal small weights stay two", async () => {
    const b = new GraphBuilder("");
    const add = (shape: readonly number[]): string => b.initializer(f32Tensor(shape, [1, 2, 3, 4]), "weight");
    const product = (x: string): string => b.op("MatMul", [x, add([2, 2])]);
    b.op("Add", [product(product("x")), b.op("Mul", [add([4]), add([4])])], {}, "y");
    const model = modelAround(b.graph("equal", [typed("x", "f32", ["b", 2, 2])], [typed("y", "f32", ["b", 2, 4])]));
    const { model: after } = await runPass(tidy, model, {});
    expect([...after.graph.initializers.values()].map(({ shape }) => shape)).toEqual([[2, 2], [2, 2], [4]]);
  });

  describe("a wrong tidying is noticed", () => {
    const wrongs: Readonly<Record<string, readonly number[]>> = {
      // (1,0,2) then (2,0,1) is (2,1,0); the other way round it is (0,2,1).
      "permutations joined in the wrong order": [0, 2, 1],
      "the first permutation dropped": [2, 0, 1],
    };
    for (const [label, perm] of Object.entries(wrongs)) {
      test(label, async () => {
        const before = untidy();
        const values = Float32Array.from({ length: 64 }, (_, i) => Math.sin(i));
        const feeds = new Map([["x", f32Tensor([4, 4, 4], values)]]);
        const expected = await outputsOf(before, feeds, 4);
        const { model } = await runPass(tidy, before, {});
        expect(difference(await outputsOf(model, feeds, 4), expected)).toBe(0);
        const nodes = model.graph.nodes.map((node) =>
          attrInts(node, "perm")?.join() === "2,1,0"
            ? { ...node, attributes: new Map([["perm", attr.ints(perm)]]) }
            : node,
        );
        expect(nodes).not.toEqual(model.graph.nodes);
        const wrong = { ...model, graph: { ...model.graph, nodes } };
        expect(difference(await outputsOf(wrong, feeds, 4), expected)).toBeGreaterThan(0.1);
      });
    }
  });
});
