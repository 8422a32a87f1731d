import { describe, expect, test } from "vitest";
import { completeStates } from "../../passes/complete-states.js";
import { lower } from "../../passes/lower.js";
import { quantizeState } from "../../passes/quantize-state.js";
import { executableRecipe, raiseRecipe } from "../../passes/recipes.js";
import type { Model } from "../../src/ir/graph.js";
import { i64Tensor } from "../../src/ir/tensor.js";
import { type Family, opName } from "../../src/ops/names.js";
import { step } from "../../src/rewrite/pipeline.js";
import { FLOAT_STATE, type StateChoice } from "../../src/rewrite/semantic.js";
import { cachedAttention } from "../support/attention-graphs.js";
import { arbitraryCase, DEFAULT_SIZES, DEFAULT_SPELLING, type Spelling, smallModel } from "../support/mamba-graphs.js";
import {
  difference,
  expectSame,
  expectSettled,
  expectTold,
  forMost,
  golden,
  type Outcome,
  outputsOf,
  runAll,
  runPass,
  sampleOf,
} from "../support/pass-runs.js";

async function ready(source: Model, state: StateChoice = FLOAT_STATE): Promise<Model> {
  const steps = [...raiseRecipe(), step(completeStates, { names: new Map() }), step(quantizeState, state)];
  return (await runAll(source, steps)).model;
}

async function small(changes: Partial<Spelling>, state: StateChoice = FLOAT_STATE): Promise<Model> {
  const sizes = { layers: 1, vocabulary: 5, dModel: 4 };
  return ready(smallModel({ form: "loop", length: null, decay: "folded", ...changes }, 2, sizes), state);
}

function ops(outcome: Outcome): string[] {
  return outcome.model.graph.nodes.flatMap((node) => (node.domain === "" ? [] : [`${node.domain}.${node.op}`]));
}

describe("lower", () => {
  describe("goldens", () => {
    test("mambac", async () => {
      const before = await small({ family: "mamba2", states: "both" });
      const outcome = await runPass(lower, before, { target: "mambac" });
      const { functions, ...rest } = outcome.model;
      expect(functions.map(({ name }) => name)).toEqual(["CausalConvSilu", "Mamba2ScanF32"]);
      const about = "Operators of com.mambac; their functions are tested where they are made and left out here.";
      await expect(golden(about, before, { ...outcome, model: { ...rest, functions: [] } })).toMatchFileSnapshot(
        "lower/mambac.irtxt",
      );
    });

    test("linear-attention", async () => {
      const before = await small({ family: "mamba2", states: "both", stateWidth: "k" });
      const outcome = await runPass(lower, before, { target: "linear-attention" });
      const about = "Operators ONNX Runtime has; the convolution's state is a column wider than its operator's.";
      await expect(golden(about, before, outcome)).toMatchFileSnapshot("lower/linear-attention.irtxt");
    });

    test("attention", async () => {
      const before = cachedAttention();
      const about = "Merged attention in standard operators: any number of tokens over a cache of any length.";
      await expect(golden(about, before, await runPass(lower, before, { target: "mambac" }))).toMatchFileSnapshot(
        "lower/attention.irtxt",
      );
    });
  });

  for (const [family, target, runs] of [
    ["mamba1", "mambac", 6],
    ["mamba2", "mambac", 6],
    ["mamba2", "linear-attention", 6],
  ] as const) {
    test(`random ${family} models compute the same as ${target}`, async () => {
      await forMost(arbitraryCase(family, "scan"), runs, async (mamba) => {
        const sample = await sampleOf(mamba);
        const outcome = await runPass(lower, await ready(sample.model), { target });
        expect(ops(outcome).filter((op) => op.startsWith("mambac.ir"))).toEqual([]);
        await expectSame(sample, outcome.model);
        return outcome.changed > 0;
      });
    });
  }

  test("NP states, as LinearAttention graphs have them, keep their layout", async () => {
    await forMost(arbitraryCase("mamba2", "linear-attention"), 4, async (mamba) => {
      const sample = await sampleOf({ ...mamba, spelling: { ...mamba.spelling, states: "both" } });
      for (const target of ["mambac", "linear-attention"] as const) {
        const outcome = await runPass(lower, await ready(sample.model), { target });
        await expectSame(sample, outcome.model);
      }
      return true;
    });
  });

  test("each format has its operator, and the file carries its function", async () => {
    for (const family of ["mamba1", "mamba2"] satisfies Family[]) {
      for (const state of [
        FLOAT_STATE,
        { format: "f16", scale: "dsq", requantize: "token" },
        { format: "h8", scale: "dsq", requantize: "call" },
        { format: "h4", scale: "dsq-max", requantize: "token" },
      ] satisfies StateChoice[]) {
        const outcome = await runPass(lower, await small({ family }, state), { target: "mambac" });
        const name = opName({ family, ...state });
        expect(ops(outcome)).toContain(`com.mambac.${name}`);
        expect(outcome.model.functions.map((def) => def.name)).toContain(name);
        expect(outcome.model.opsets.get("com.mambac")).toBe(1);
      }
    }
  });

  test("replay lengths reach their nodes, one function serves them all", async () => {
    const state = { format: "h4", scale: "dsq-max", requantize: "replay" } as const;
    for (const [replayLength, written] of [
      [5, 5n],
      [undefined, 16n],
    ] as const) {
      const choice = replayLength === undefined ? state : { ...state, replayLength };
      const { model } = await runPass(lower, await small({ family: "mamba2" }, choice), { target: "mambac" });
      const scans = model.graph.nodes.filter(({ op }) => op === "Mamba2ScanH4MaxReplay");
      expect(scans.map(({ attributes }) => attributes.get("replay_length"))).toEqual([{ kind: "int", value: written }]);
      expect(model.functions.filter(({ name }) => name === "Mamba2ScanH4MaxReplay")).toHaveLength(1);
    }
  });

  test("refuses linear-attention for Mamba-1 and for states it does not have", async () => {
    const refusal = { code: "lower/linear-attention", exitCode: 4 };
    const options = { target: "linear-attention" } as const;
    await expect(runPass(lower, await small({ family: "mamba1" }), options)).rejects.toMatchObject(refusal);
    const packed = await small({ family: "mamba2" }, { ...FLOAT_STATE, format: "h8" });
    await expect(runPass(lower, packed, options)).rejects.toMatchObject(refusal);
  });

  test("an operator with other attributes or operands is noticed", async () => {
    const spelling = { ...DEFAULT_SPELLING, family: "mamba2", form: "loop", length: null, states: "both" } as const;
    const sample = await sampleOf({ sizes: DEFAULT_SIZES.mamba2, spelling, seed: 5, batch: 2, length: 6 });
    const { model } = await runPass(lower, await ready(sample.model), { target: "mambac" });
    await expectSame(sample, model);
    const wrong = (label: string, change: (inputs: readonly string[]) => readonly string[]): Promise<void> => {
      const nodes = model.graph.nodes.map((node) =>
        node.op === "Mamba2ScanF32" ? { ...node, inputs: change(node.inputs) } : node,
      );
      return expectTold(sample, { ...model, graph: { ...model.graph, nodes } }, label);
    };
    const at = (inputs: readonly string[], ...order: readonly number[]): string[] => order.map((i) => inputs[i] ?? "");
    await wrong("B and C swapped", (inputs) => at(inputs, 0, 1, 2, 4, 3, 5, 6, 7));
    await wrong("A and dt bias swapped", (inputs) => at(inputs, 0, 1, 6, 3, 4, 5, 2, 7));
  });

  test("merged attention sees its cache and nothing later", async () => {
    const { model } = await runPass(lower, cachedAttention(), { target: "mambac" });
    const whole = await outputsOf(model, new Map([["input_ids", i64Tensor([1, 4], [1, 2, 3, 4])]]), 1);
    const part = await outputsOf(model, new Map([["input_ids", i64Tensor([1, 2], [1, 2])]]), 1);
    const rows = (data: Float64Array | undefined, length: number): Float64Array =>
      Float64Array.from(
        { length: 6 * 2 * 4 },
        (_, i) => data?.[Math.floor(i / 8) * length * 4 + (i % 8)] ?? Number.NaN,
      );
    const first = (outputs: ReadonlyMap<string, Float64Array>, length: number): Map<string, Float64Array> =>
      new Map([["y", rows(outputs.get("y"), length)]]);
    expect(difference(first(whole, 4), first(part, 2))).toBeLessThan(1e-6);
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    for (const target of ["mambac", "linear-attention"] as const) {
      const before = await small({ family: "mamba2" });
      await expectSettled(lower, before, (await runPass(lower, before, { target })).model, { target });
    }
  });

  test("the executable recipe is this lowering of float states", () => {
    expect(executableRecipe().map(({ name }) => name)).toEqual(["quantize-state", "lower"]);
  });
});
