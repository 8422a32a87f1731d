import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { normalise } from "../../passes/normalise.js";
import { GraphBuilder, makeFunction, typed, untyped } from "../../src/ir/builder.js";
import { attr, type Model, makeNode } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import { modelAround, normalWeight } from "../support/mamba-graphs/decoys.js";
import { arbitraryCase, FORMS, type GraphForm, smallModel } from "../support/mamba-graphs.js";
import { difference, expectSettled, forMost, golden, outputsOf, runPass, sampleOf } from "../support/pass-runs.js";

const TOKENS = typed("x", "f32", ["b", "4"]);

/** Constants, no-ops and old attributes around a product. */
function noisy(): Model {
  const b = new GraphBuilder("");
  const weight = normalWeight(b, "weight", [4, 3]);
  const same = b.op("Cast", ["x"], { to: 1 });
  const product = b.op("MatMul", [b.op("Identity", [same]), weight]);
  const mean = b.op("ReduceMean", [product], { axes: [-1], keepdims: 1 });
  const [low = "", high = ""] = b.ops("Split", [b.op("Sub", [product, mean]), b.ints([1, 2])], 2, { axis: 1 });
  const half = b.op("Cast", [b.op("Cast", [high], { to: 10 })], { to: 1 });
  b.op("Identity", [b.op("Mul", [half, b.float(2)])], {}, "y");
  b.op("Identity", [low], {}, "z");
  b.op("Identity", [low], {}, "z_again");
  const output = (name: string, width: string): ReturnType<typeof typed> => typed(name, "f32", ["b", width]);
  return modelAround(b.graph("noisy", [TOKENS], [output("y", "2"), output("z", "1"), output("z_again", "1")]), 17);
}

/** A function that calls a function, the inner one with an attribute of the call. */
function nested(): Model {
  const opsets = new Map([
    ["", 21],
    ["local", 1],
  ]);
  const inner = makeFunction(
    "local",
    "Elu2",
    { inputs: ["a"], outputs: ["out"], attributes: ["alpha"] },
    [makeNode("Elu", ["a"], ["out"], new Map([["alpha", attr.ref("alpha", "float")]]))],
    opsets,
    "",
  );
  const outer = makeFunction(
    "local",
    "Twice",
    { inputs: ["a", "b"], outputs: ["sum", "first"], attributes: [] },
    [
      makeNode("Elu2", ["a"], ["one"], new Map([["alpha", attr.float(0.5)]]), { domain: "local" }),
      makeNode("Elu2", ["b"], ["two"], new Map([["alpha", attr.float(2)]]), { domain: "local" }),
      makeNode("Add", ["one", "two"], ["sum"]),
      makeNode("Identity", ["a"], ["first"]),
    ],
    opsets,
    "",
  );
  const b = new GraphBuilder("");
  const [sum = "", first = ""] = b.ops("Twice", ["x", b.op("Neg", ["x"])], 2, {}, "local");
  b.op("Mul", [sum, first], {}, "y");
  const model = modelAround(b.graph("nested", [TOKENS], [typed("y", "f32", ["b", 4])]));
  return { ...model, opsets, functions: [inner, outer] };
}

/** Two Ifs: the first always takes its else branch, the second depends on the batch. */
function branching(): Model {
  const b = new GraphBuilder("");
  const branch = (prefix: string, factor: number): ReturnType<typeof attr.graph> => {
    const inner = new GraphBuilder(prefix);
    const scaled = inner.op("Mul", ["x", inner.initializer(f32Tensor([], [factor]), "factor")]);
    return attr.graph(inner.graph("branch", [], [untyped(scaled)]));
  };
  const shape = b.op("Shape", ["x"]);
  const equals = (axis: number, size: number): string =>
    b.op("Equal", [b.op("Gather", [shape, b.int(axis)], { axis: 0 }), b.int(size)]);
  const decided = b.op("If", [equals(1, 3)], { then_branch: branch("t", 2), else_branch: branch("e", 3) });
  const open = b.op("If", [equals(0, 1)], { then_branch: branch("t", 5), else_branch: branch("e", 7) });
  b.op("Add", [decided, open], {}, "y");
  return modelAround(b.graph("branching", [typed("x", "f32", ["b", 4])], [typed("y", "f32", ["b", 4])]));
}

/** What TorchScript writes for some transposes, and ONNX Runtime refuses to load. */
function negativeTranspose(): Model {
  const b = new GraphBuilder("");
  b.op("Transpose", ["x"], { perm: [-2, 0, -1] }, "y");
  return modelAround(b.graph("transpose", [typed("x", "f32", ["b", 3, 4])], [typed("y", "f32", [3, "b", 4])]));
}

/** What ONNX Runtime's optimiser makes of products, convolutions and SiLUs; what has no plain spelling stays. */
function fused(): Model {
  const b = new GraphBuilder("");
  const microsoft = (op: string, inputs: readonly string[], attributes: Parameters<GraphBuilder["op"]>[2]): string =>
    b.ops(op, inputs, 1, attributes, "com.microsoft")[0] ?? "";
  const weight = normalWeight(b, "weight", [5, 4]);
  const rows = microsoft("FusedMatMul", ["x", weight], { transB: 1, alpha: attr.float(0.25) });
  const turned = microsoft("FusedMatMul", [rows, "x"], { transA: 1, transBatchA: 0 });
  const silu = microsoft("QuickGelu", [turned], { alpha: attr.float(1) });
  const gelu = microsoft("QuickGelu", [silu], {});
  const taps = normalWeight(b, "taps", [5, 1, 3]);
  const shifted = normalWeight(b, "shifted", [5]);
  const conv = { group: 5, pads: [1, 1], activation: "Relu" } as const;
  const relu = microsoft("FusedConv", [gelu, taps, shifted, silu], conv);
  const leaky = microsoft("FusedConv", [relu, taps], {
    group: 5,
    activation: "LeakyRelu",
    activation_params: attr.floats([0.1]),
  });
  b.op("Sub", [relu, b.op("ReduceMean", [leaky, b.ints([2])], { keepdims: 1 })], {}, "y");
  const model = modelAround(b.graph("fused", [typed("x", "f32", ["b", 3, 4])], [typed("y", "f32", ["b", 5, 4])]));
  return { ...model, opsets: new Map([...model.opsets, ["com.microsoft", 1]]) };
}

const inputs = (shape: readonly number[]): Map<string, ReturnType<typeof f32Tensor>> =>
  new Map([
    [
      "x",
      f32Tensor(
        shape,
        Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(i)),
      ),
    ],
  ]);

describe("normalise", () => {
  describe("goldens", () => {
    const cases: readonly (readonly [string, string, () => Model])[] = [
      ["no-ops", "No-ops go, the Cast to half and back stays; one value with two public names keeps both.", noisy],
      ["functions", "Functions are inlined, attributes of the call included.", nested],
      ["branches", "An If that is decided whatever the sizes goes; one that is not stays.", branching],
      ["negative-perm", "Negative axes of a Transpose are made positive.", negativeTranspose],
      ["fused", "Operators that ONNX Runtime fused are spelled out, but for an activation with parameters.", fused],
    ];
    for (const [name, about, make] of cases) {
      test(name, async () => {
        const before = make();
        await expect(golden(about, before, await runPass(normalise, before, {}))).toMatchFileSnapshot(
          `normalise/${name}.irtxt`,
        );
      });
    }
  });

  test("what runs before gives the same bits after", async () => {
    for (const make of [noisy, nested, branching]) {
      const before = make();
      const { model } = await runPass(normalise, before, {});
      for (const batch of [1, 2]) {
        const feeds = inputs([batch, 4]);
        expect(difference(await outputsOf(model, feeds, batch), await outputsOf(before, feeds, batch))).toBe(0);
      }
    }
    const plain = (await runPass(normalise, fused(), {})).model;
    const feeds = inputs([2, 3, 4]);
    expect(difference(await outputsOf(plain, feeds, 2), await outputsOf(fused(), feeds, 2))).toBeLessThan(1e-6);
    const repaired = (await runPass(normalise, negativeTranspose(), {})).model;
    const { y } = Object.fromEntries(await outputsOf(repaired, inputs([2, 3, 4]), 2));
    expect(y?.[4]).toBe(Math.fround(Math.sin(12)));
  });

  test("random Mamba graphs of every form give the same bits", async () => {
    const forms = fc.constantFrom<GraphForm>(...FORMS.filter((form) => form !== "branches"));
    const cases = forms.chain((form) => arbitraryCase("mamba2", form));
    await forMost(cases, 30, async (mamba) => {
      const sample = await sampleOf(mamba);
      const { model, changed } = await runPass(normalise, sample.model, {});
      expect(difference(await outputsOf(model, sample.feeds, sample.batch), sample.expected)).toBe(0);
      expect(model.functions).toEqual([]);
      expect(model.opsets.get("")).toBe(21);
      expect(model.graph.nodes.filter(({ op }) => op === "Constant")).toEqual([]);
      return changed > 0;
    });
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    for (const before of [
      noisy(),
      nested(),
      branching(),
      fused(),
      smallModel({ form: "scan", length: null, wrapped: true, noise: 0.3 }),
    ])
      await expectSettled(normalise, before, (await runPass(normalise, before, {})).model, {});
  });

  test("weights that are inputs too are no inputs", async () => {
    const before = noisy();
    const { graph } = before;
    const weights = [...graph.initializers].map(([name, { dtype, shape }]) => typed(name, dtype, shape));
    const listed = { ...before, graph: { ...graph, inputs: [...weights, ...graph.inputs] } };
    const { model } = await runPass(normalise, listed, {});
    expect(model.graph.inputs.map(({ name }) => name)).toEqual(["x"]);
    expect([...model.graph.initializers.keys()]).toEqual([
      ...(await runPass(normalise, before, {})).model.graph.initializers.keys(),
    ]);
  });

  test("leaves the opset alone where an operator changed its meaning, and says so", async () => {
    const b = new GraphBuilder("");
    b.op("AveragePool", ["x"], { kernel_shape: [2] }, "y");
    const before = modelAround(b.graph("pool", [typed("x", "f32", [1, 2, 6])], [typed("y", "f32", [1, 2, 5])]), 17);
    const { model, remarks } = await runPass(normalise, before, {});
    expect(model.opsets.get("")).toBe(17);
    expect(remarks.map(({ code, message }) => `${code} ${message}`)).toEqual([
      "normalise/opset the opset stays 17: AveragePool cannot be raised to 21",
    ]);
  });

  test("refuses functions that call each other without end", async () => {
    const model = nested();
    const [inner, outer] = model.functions;
    if (inner === undefined || outer === undefined) throw new Error("two functions");
    const circular = {
      ...inner,
      nodes: [makeNode("Twice", ["a", "a"], ["out", "rest"], new Map(), { domain: "local" })],
    };
    await expect(runPass(normalise, { ...model, functions: [circular, outer] }, {})).rejects.toMatchObject({
      code: "normalise/functions",
      exitCode: 4,
    });
  });
});
