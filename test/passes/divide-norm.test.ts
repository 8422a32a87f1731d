import { describe, expect, test } from "vitest";
import { absorbNormGain } from "../../passes/absorb-norm-gain.js";
import { divideNorm } from "../../passes/divide-norm.js";
import type { Model, Node } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import { aligned, fold, foldSample } from "../support/fold-runs.js";
import { difference, expectSame, expectSettled, forMost, golden, outputsOf, runPass } from "../support/pass-runs.js";
import { arbitraryRaised, PLAIN } from "../support/raised-spelling.js";

const count = (model: Model, op: string): number => model.graph.nodes.filter((node) => node.op === op).length;

describe("divide-norm", () => {
  test("golden", async () => {
    const { model } = await foldSample(PLAIN);
    const text = golden("Norms with and without a gain.", model, await runPass(divideNorm, model, {}));
    await expect(text).toMatchFileSnapshot("divide-norm/norms.irtxt");
  });

  test("every spelling of a norm becomes a quotient with a gain, and the model computes the same", async () => {
    await forMost(arbitraryRaised(), 20, async (spelling) => {
      const sample = await foldSample(spelling);
      const outcome = await fold(sample, divideNorm, {});
      await expectSame(sample, outcome.model);
      return outcome.changed > 0;
    });
  });

  test("what a recognised norm becomes does not depend on its spelling", async () => {
    const kinds = async (root: typeof PLAIN.root): Promise<string> => {
      const { model } = await foldSample({ ...PLAIN, root });
      const after = (await runPass(divideNorm, model, {})).model;
      return ["Div", "Mul", "Reciprocal", "Sqrt"].map((op) => `${op} ${count(after, op)}`).join(", ");
    };
    const plain = await kinds("reciprocal");
    expect(plain).toContain("Reciprocal 0");
    expect(await kinds("div")).toBe(plain);
    expect(await kinds("direct")).toBe(plain);
  });

  test("a gain that was folded away comes back as ones", async () => {
    const sample = await aligned(await foldSample(PLAIN));
    const absorbed = await fold(sample, absorbNormGain, {});
    const divided = await fold({ ...sample, model: absorbed.model }, divideNorm, {});
    const gains = [...divided.model.graph.initializers].filter(([name]) => name.endsWith(".unit_gain"));
    expect(gains.length).toBe(divided.changed);
    await expectSame(sample, divided.model);
  });

  test("a second run changes nothing", async () => {
    for (const norm of ["gain-left", "bare"] as const) {
      const { model } = await foldSample({ ...PLAIN, norm, layers: 2 });
      const once = await runPass(divideNorm, model, {});
      expect(once.changed).toBeGreaterThan(2);
      await expectSettled(divideNorm, model, once.model, {});
      expect((await runPass(divideNorm, once.model, {})).changed).toBe(0);
    }
  });

  describe("a wrong rewrite is noticed", () => {
    const swapped = (model: Model, wrong: (node: Node) => Node): Model => ({
      ...model,
      graph: { ...model.graph, nodes: model.graph.nodes.map((node) => (node.op === "Div" ? wrong(node) : node)) },
    });
    const wrongs: Readonly<Record<string, (model: Model) => Model>> = {
      "a quotient turned over": (model) => swapped(model, (node) => ({ ...node, inputs: [...node.inputs].reverse() })),
      "a product": (model) => swapped(model, (node) => ({ ...node, op: "Mul" })),
      "a gain that is not one": (model) => ({
        ...model,
        graph: {
          ...model.graph,
          initializers: new Map(
            [...model.graph.initializers].map(([name, tensor]) => [
              name,
              name.endsWith(".unit_gain")
                ? f32Tensor(tensor.shape, new Float32Array(tensor.shape[0] ?? 0).fill(1.01))
                : tensor,
            ]),
          ),
        },
      }),
    };
    for (const [name, wrong] of Object.entries(wrongs)) {
      test(name, async () => {
        const sample = await foldSample({ ...PLAIN, norm: "bare" });
        const { model } = await runPass(divideNorm, sample.model, {});
        const expected = await outputsOf(sample.model, sample.feeds, sample.batch);
        expect(difference(await outputsOf(model, sample.feeds, sample.batch), expected)).toBeLessThan(1e-5);
        expect(difference(await outputsOf(wrong(model), sample.feeds, sample.batch), expected)).toBeGreaterThan(1e-3);
      });
    }
  });
});
