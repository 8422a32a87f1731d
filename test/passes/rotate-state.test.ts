import { describe, expect, test } from "vitest";
import { rotateState } from "../../passes/rotate-state.js";
import type { Model, Node } from "../../src/ir/graph.js";
import { f32Tensor, type Tensor } from "../../src/ir/tensor.js";
import { hadamardRotation, rotationMatrix } from "../../src/linalg/hadamard.js";
import { readSemantic, SCAN_INPUT } from "../../src/rewrite/semantic.js";
import { flipped, fold, foldSample, seeing, timesRight } from "../support/fold-runs.js";
import {
  difference,
  expectSame,
  expectTold,
  forMost,
  golden,
  outputsOf,
  roundingBound,
  runPass,
  type Sample,
} from "../support/pass-runs.js";
import { arbitraryRaised, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const MAMBA2: RaisedSpelling = { ...PLAIN, dState: 12 };

/** From the zero state, which is the same in every basis; the state after the call is not compared. */
async function stateSample(spelling: RaisedSpelling): Promise<Sample> {
  return seeing(await foldSample(spelling, "zero"), (name) => !name.startsWith("present_ssm"));
}

describe("rotate-state", () => {
  test("golden", async () => {
    const { model } = await foldSample(MAMBA2);
    const text = golden(
      "B and C turn by the Hadamard matrix of order 12.",
      model,
      await runPass(rotateState, model, {}),
    );
    await expect(text).toMatchFileSnapshot("rotate-state/mamba2.irtxt");
  });

  test("the model computes the same from the zero state", async () => {
    await forMost(arbitraryRaised({ family: "mamba2" }), 16, async (spelling) => {
      const sample = await stateSample(spelling);
      const outcome = await fold(sample, rotateState, {});
      await expectSame(sample, outcome.model);
      expect(outcome.changed).toBe(spelling.layers);
      return outcome.changed > 0;
    });
  });

  test("the state is the old one times the rotation, and later calls go on from it", async () => {
    for (const dState of [8, 12]) {
      const sample = await foldSample({ ...MAMBA2, dState }, "zero");
      const { model: after } = await fold(sample, rotateState, {});
      const bound = await roundingBound(sample.model, sample.feeds, sample.batch, sample.expected);
      const turned = await outputsOf(after, sample.feeds, sample.batch);
      const [old, fresh] = [sample.expected.get("present_ssm.0"), turned.get("present_ssm.0")];
      if (old === undefined || fresh === undefined) throw new Error("the model has a state");
      const matrix = rotationMatrix(hadamardRotation(dState)).data;
      const error = (expected: Float64Array): number =>
        difference(new Map([["state", fresh]]), new Map([["state", expected]]));
      expect(error(timesRight(old, matrix, dState))).toBeLessThan(bound);
      // The order-12 matrix is not its own transpose, so a wrong direction would show.
      expect(error(old)).toBeGreaterThan(100 * bound);
      if (dState === 12) expect(error(timesRight(old, flipped(matrix, dState), dState))).toBeGreaterThan(100 * bound);
      const next = async (model: Model, states: ReadonlyMap<string, Float64Array>): Promise<Float64Array> => {
        const feeds = new Map(sample.feeds);
        for (const [name, values] of states) {
          const past = name.replace("present", "past");
          if (past !== name) feeds.set(past, stateTensor(past, values, sample.batch, dState));
        }
        return (await outputsOf(model, feeds, sample.batch)).get("logits") ?? new Float64Array();
      };
      const [expected, actual] = [await next(sample.model, sample.expected), await next(after, turned)];
      expect(difference(new Map([["logits", actual]]), new Map([["logits", expected]]))).toBeLessThan(2 * bound);
      // The old state in the new basis is a wrong state.
      const mixed = await next(after, sample.expected);
      expect(difference(new Map([["logits", mixed]]), new Map([["logits", expected]]))).toBeGreaterThan(100 * bound);
    }
  });

  test("refuses Mamba-1, whose decay differs along the state", async () => {
    const sample = await foldSample({ ...MAMBA2, family: "mamba1" });
    const outcome = await fold(sample, rotateState, {});
    expect(outcome.model).toBe(sample.model);
    expect(outcome.remarks.map(({ code }) => code)).toEqual(["rotate-state/mamba1"]);
  });

  describe("a wrong rotation is noticed", () => {
    const wrongs: Readonly<Record<string, (before: Node, after: Node) => string[]>> = {
      "only B turned": (before, after) => withInput(after, SCAN_INPUT.C, before.inputs[SCAN_INPUT.C] ?? ""),
      "only C turned": (before, after) => withInput(after, SCAN_INPUT.B, before.inputs[SCAN_INPUT.B] ?? ""),
      "B and C exchanged": (_before, after) =>
        after.inputs.map(
          (name, at) =>
            after.inputs[at === SCAN_INPUT.B ? SCAN_INPUT.C : at === SCAN_INPUT.C ? SCAN_INPUT.B : at] ?? name,
        ),
    };
    for (const [label, inputs] of Object.entries(wrongs)) {
      test(label, async () => {
        const sample = await stateSample(MAMBA2);
        const { model } = await fold(sample, rotateState, {});
        await expectSame(sample, model);
        const [before, after] = [scanOf(sample.model), scanOf(model)];
        const nodes = model.graph.nodes.map((node) =>
          node === after ? { ...node, inputs: inputs(before, after) } : node,
        );
        await expectTold(sample, { ...model, graph: { ...model.graph, nodes } }, label);
      });
    }

    test("turned the other way on one side", async () => {
      const sample = await stateSample(MAMBA2);
      const { model } = await fold(sample, rotateState, {});
      const matrices = [...model.graph.initializers.keys()].filter((name) => /hadamard12/.test(name));
      expect(matrices.length).toBe(2);
      const [name = ""] = matrices;
      const initializers = new Map(model.graph.initializers);
      const values = model.graph.initializers.get(name);
      if (values === undefined) throw new Error("no matrix");
      const numbers = new Float64Array(new Float32Array(values.bytes().slice().buffer));
      initializers.set(name, f32Tensor(values.shape, flipped(numbers, 12)));
      await expectTold(sample, { ...model, graph: { ...model.graph, initializers } }, "the other way");
    });
  });
});

function scanOf(model: Model): Node {
  const node = model.graph.nodes.find((candidate) => readSemantic(candidate)?.kind === "scan");
  if (node === undefined) throw new Error("the model has no scan");
  return node;
}

function withInput(node: Node, at: number, name: string): string[] {
  return node.inputs.map((input, i) => (i === at ? name : input));
}

/** A state as the next call reads it: [batch, heads, P, N], or [batch, channels, width] of a convolution. */
function stateTensor(name: string, values: Float64Array, batch: number, dState: number): Tensor {
  const { heads, headDim } = MAMBA2;
  return name.startsWith("past_ssm")
    ? f32Tensor([batch, heads, headDim, dState], values)
    : f32Tensor([batch, values.length / batch / 2, 2], values);
}
