import { describe, expect, test } from "vitest";
import { completeStates } from "../../passes/complete-states.js";
import { raiseRecipe } from "../../passes/recipes.js";
import { renameStates, STATE_STYLES } from "../../passes/rename-states.js";
import { typed } from "../../src/ir/builder.js";
import { attr, type Model } from "../../src/ir/graph.js";
import { step } from "../../src/rewrite/pipeline.js";
import { arbitraryCase, type Spelling, smallModel } from "../support/mamba-graphs.js";
import {
  difference,
  expectSettled,
  forMost,
  golden,
  outputsOf,
  runAll,
  runPass,
  sampleOf,
} from "../support/pass-runs.js";

const COMPLETE = [...raiseRecipe(), step(completeStates, { names: new Map() })];

async function complete(changes: Partial<Spelling>): Promise<Model> {
  return (await runAll(smallModel({ form: "loop", length: null, decay: "folded", ...changes }), COMPLETE)).model;
}

function stateNames(model: Model): string[] {
  return [...model.graph.inputs, ...model.graph.outputs]
    .map(({ name }) => name)
    .filter((name) => name !== "input_ids" && name !== "logits");
}

describe("rename-states", () => {
  test("golden", async () => {
    const before = await complete({ family: "mamba2" });
    const outcome = await runPass(renameStates, before, { style: "genai" });
    // Dense text has no names: the golden prints them.
    await expect(
      [
        golden("Names of ONNX Runtime GenAI; nothing else changes.", before, outcome),
        "@@@ names",
        ...stateNames(before).map((name, at) => `${name} -> ${stateNames(outcome.model)[at]}`),
        "",
      ].join("\n"),
    ).toMatchFileSnapshot("rename-states/genai.irtxt");
  });

  test("names of every style, for every style they had", async () => {
    const expected: Readonly<Record<string, readonly string[]>> = {
      hf: [
        "input.cache_params.layers.1.conv_states.0",
        "input.cache_params.layers.1.recurrent_states.0",
        "output.cache_params.layers.1.conv_states.0",
        "output.cache_params.layers.1.recurrent_states.0",
      ],
      genai: [
        "past_key_values.1.conv_state",
        "past_key_values.1.recurrent_state",
        "present.1.conv_state",
        "present.1.recurrent_state",
      ],
      transformersjs: ["past_conv.1", "past_ssm.1", "present_conv.1", "present_ssm.1"],
      mobius: ["past_states.1.conv_state", "past_states.1.ssm_state", "present.1.conv_state", "present.1.ssm_state"],
    };
    for (const from of ["hf", "transformersjs", "mobius", "plain"] as const) {
      const before = await complete({ states: "both", stateNames: from });
      for (const style of STATE_STYLES) {
        const names = stateNames((await runPass(renameStates, before, { style })).model);
        expect(
          names.filter((name) => /\D1\D|\D1$/.test(name)),
          `${from} to ${style}`,
        ).toEqual(expected[style]);
      }
    }
  });

  test("random models compute the same under new names", async () => {
    await forMost(arbitraryCase("mamba2", "loop"), 6, async (mamba) => {
      const sample = await sampleOf(mamba);
      const before = (await runAll(sample.model, COMPLETE)).model;
      const { model } = await runPass(renameStates, before, { style: "genai" });
      const rename = new Map(stateNames(before).map((name, at) => [name, stateNames(model)[at] ?? ""]));
      const feeds = new Map([...sample.feeds].map(([name, tensor]) => [rename.get(name) ?? name, tensor]));
      const expected = await outputsOf(before, sample.feeds, sample.batch);
      const renamed = new Map([...expected].map(([name, data]) => [rename.get(name) ?? name, data]));
      expect(difference(await outputsOf(model, feeds, sample.batch), renamed)).toBe(0);
      return stateNames(before).join() !== stateNames(model).join();
    });
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    const before = await complete({ family: "mamba2" });
    for (const style of STATE_STYLES)
      await expectSettled(renameStates, before, (await runPass(renameStates, before, { style })).model, { style });
  });

  test("refuses layers whose numbers are not unique", async () => {
    const before = await complete({});
    const nodes = before.graph.nodes.map((node) =>
      node.domain === "mambac.ir"
        ? { ...node, attributes: new Map([...node.attributes, ["layer", attr.string("layers.0")] as const]) }
        : node,
    );
    await expect(
      runPass(renameStates, { ...before, graph: { ...before.graph, nodes } }, { style: "genai" }),
    ).rejects.toMatchObject({ code: "rename-states/clash" });
  });

  test("refuses a name that another input has", async () => {
    const before = await complete({});
    const inputs = [...before.graph.inputs, typed("past_key_values.0.conv_state", "f32", [1])];
    await expect(
      runPass(renameStates, { ...before, graph: { ...before.graph, inputs } }, { style: "genai" }),
    ).rejects.toMatchObject({ code: "rename-states/clash" });
  });
});
