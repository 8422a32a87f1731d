import { describe, expect, test } from "vitest";
import { alignLinears } from "../../passes/align-linears.js";
import { roundNearest } from "../../passes/round-nearest.js";
import type { Graph } from "../../src/ir/graph.js";
import { f32Tensor, type Tensor } from "../../src/ir/tensor.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { type Step, step } from "../../src/rewrite/pipeline.js";
import { MambacError } from "../../src/support/errors.js";
import { compiledLogits } from "../support/compiled-logits.js";
import { fixture } from "../support/fixture-models.js";
import { relative } from "../support/fixture-row.js";
import { roundedWeights, roundingError } from "../support/rounded-weights.js";

const MODELS = ["hf/mamba2/prefill.onnx", "hf/mamba/prefill.onnx"] as const;

const rounded = (scheme: string): Step[] => [
  step(alignLinears, {}),
  step(roundNearest, { schemeFor: () => parseWeightScheme(scheme) }),
];

describe("round-nearest", () => {
  for (const name of MODELS) {
    test(`${name}: 8 bits a channel lose little, 4 bits more`, async () => {
      const exact = (await compiledLogits(fixture(name), [])).logits;
      const loss = async (scheme: string): Promise<number> =>
        relative((await compiledLogits(fixture(name), rounded(scheme))).logits, exact);
      const [channel8, channel4] = [await loss("i8:channel"), await loss("i4:channel")];
      expect(channel8).toBeLessThan(0.03);
      expect(channel4).toBeLessThan(0.5);
      expect(channel4).toBeGreaterThan(channel8);
    });
  }

  test("finer scales are closer to every weight", async () => {
    const errors = async (scheme: string): Promise<number[]> => {
      let original: Graph | null = null;
      let found: number[] = [];
      await compiledLogits(fixture(MODELS[0]), rounded(scheme), (name, { graph }) => {
        if (name === "align-linears") original = graph;
        const before = original;
        if (name === "round-nearest" && before !== null)
          found = roundedWeights(graph).map((weight) => roundingError(weight, before, null));
      });
      return found;
    };
    const [tensor, channel, group] = [await errors("i4:tensor"), await errors("i4:channel"), await errors("i4:g8")];
    expect(tensor.length).toBeGreaterThan(4);
    channel.forEach((error, at) => expect(error).toBeLessThan(tensor[at] ?? 0));
    group.forEach((error, at) => expect(error).toBeLessThan(channel[at] ?? 0));
  });

  test("puts every projection behind codes of its own, in [K, N]", async () => {
    let graph: Graph | null = null;
    await compiledLogits(fixture(MODELS[0]), rounded("u4:g16"), (name, model) => {
      if (name === "round-nearest") graph = model.graph;
    });
    const nodes = (graph as Graph | null)?.nodes ?? [];
    const codes = nodes.filter((node) => node.op === "DequantizeLinear").map((node) => node.inputs[0] ?? "");
    const products = nodes.filter((node) => node.op === "MatMul");
    expect(codes.length).toBe(products.length);
    expect(new Set(codes).size).toBe(codes.length);
    for (const name of codes) expect((graph as Graph | null)?.initializers.get(name)?.dtype).toBe("u4");
  });

  test("refuses weights that are not numbers", async () => {
    const poison: Step = {
      ...step(alignLinears, {}),
      name: "poison",
      run: (model) => {
        const initializers = new Map<string, Tensor>(model.graph.initializers);
        for (const [name, tensor] of initializers) {
          if (tensor.dtype !== "f32" || tensor.shape.length !== 2 || !name.includes("val_")) continue;
          initializers.set(name, f32Tensor(tensor.shape, new Float32Array(tensor.byteLength / 4).fill(Number.NaN)));
        }
        return Promise.resolve({ model: { ...model, graph: { ...model.graph, initializers } }, changed: 1 });
      },
    };
    const [align, round] = rounded("i8:channel");
    if (align === undefined || round === undefined) throw new Error("no steps");
    await expect(compiledLogits(fixture(MODELS[0]), [align, poison, round])).rejects.toThrow(MambacError);
  });
});
