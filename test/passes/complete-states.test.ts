import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { completeStates } from "../../passes/complete-states.js";
import { raiseRecipe } from "../../passes/recipes.js";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import type { Model } from "../../src/ir/graph.js";
import { f32Tensor, i64Tensor, type Tensor } from "../../src/ir/tensor.js";
import { convNode, semanticOps } from "../../src/rewrite/semantic.js";
import { stateSlots } from "../../src/rewrite/states.js";
import { modelAround } from "../support/mamba-graphs/decoys.js";
import { arbitraryCase, type GraphForm, type Spelling, smallModel } from "../support/mamba-graphs.js";
import {
  difference,
  expectSettled,
  forMost,
  golden,
  outputsOf,
  roundingBound,
  runAll,
  runPass,
  sampleOf,
} from "../support/pass-runs.js";

const NAMES = { names: new Map<string, string>() };

async function raised(changes: Partial<Spelling>): Promise<Model> {
  return (await runAll(smallModel(changes), raiseRecipe())).model;
}

function names(model: Model): string[] {
  return [...model.graph.inputs.slice(1), ...model.graph.outputs.slice(1)].map(({ name }) => name);
}

/** Only a convolution: x -> CausalConv -> y, its state read by a Cast. */
function convGraph(presentIsOutput: boolean): Model {
  const b = new GraphBuilder("");
  const hidden = b.op("Gather", [b.initializer(f32Tensor([3, 2], [1, 2, 3, 4, 5, 6])), "input_ids"], { axis: 0 });
  const columns = b.op("Transpose", [hidden], { perm: [0, 2, 1] });
  const [weight, bias] = [f32Tensor([2, 1, 2], [1, -1, 2, 0.5]), f32Tensor([2], [0, 1])].map((t) => b.initializer(t));
  const op = {
    layer: "layers.0",
    form: "conv",
    channels: 2,
    kernelSize: 2,
    stateWidth: 1,
    activation: "none",
    error: 0,
  } as const;
  b.nodes.push(convNode(op, [columns, weight ?? "", bias ?? "", ""], ["y", presentIsOutput ? "state" : "inner"]));
  if (!presentIsOutput) b.op("Neg", ["inner"], {}, "state");
  return modelAround(
    b.graph(
      "conv",
      [typed("input_ids", "i64", ["b", "l"])],
      [typed("y", "f32", ["b", 2, "l"]), typed("state", "f32", ["b", 2, 1])],
    ),
  );
}

describe("complete-states", () => {
  test("golden: a convolution without states", async () => {
    const before = convGraph(true);
    await expect(
      golden("A past is added; the present keeps its name.", before, await runPass(completeStates, before, NAMES)),
    ).toMatchFileSnapshot("complete-states/conv.irtxt");
  });

  test("golden: a forward pass", async () => {
    const before = await raised({ family: "mamba2", form: "loop", length: null, decay: "folded" });
    const about = "Each scan and convolution gets a past and a present, named by default.";
    await expect(golden(about, before, await runPass(completeStates, before, NAMES))).toMatchFileSnapshot(
      "complete-states/forward.irtxt",
    );
  });

  test("a state that something else reads keeps its reader", async () => {
    const before = convGraph(false);
    const { model } = await runPass(completeStates, before, NAMES);
    expect(names(model)).toEqual(["past_conv.0", "state", "present_conv.0"]);
    const feeds = new Map([["input_ids", i64Tensor([1, 2], [0, 2])]]);
    const outputs = await outputsOf(model, feeds, 1);
    expect(outputs.get("state")).toEqual(outputs.get("present_conv.0")?.map((value) => -value));
  });

  test("every op has a past and a present, and zeros change nothing", async () => {
    const cases = fc
      .constantFrom<GraphForm>("unrolled", "chunked", "loop", "scan", "linear-attention")
      .chain((form) => arbitraryCase("mamba2", form))
      .filter(({ spelling }) => spelling.states !== "both");
    await forMost(cases, 10, async (mamba) => {
      const sample = await sampleOf(mamba);
      const before = (await runAll(sample.model, raiseRecipe())).model;
      const { model, changed } = await runPass(completeStates, before, NAMES);
      const inputs = new Set(model.graph.inputs.map(({ name }) => name));
      const outputs = new Set(model.graph.outputs.map(({ name }) => name));
      for (const slot of semanticOps(model.graph.nodes).flatMap(stateSlots)) {
        expect(inputs.has(slot.op.node.inputs[slot.input] ?? "")).toBe(true);
        expect(outputs.has(slot.op.node.outputs[slot.output] ?? "")).toBe(true);
      }
      const error = difference(await outputsOf(model, sample.feeds, sample.batch), sample.expected);
      expect(error).toBeLessThanOrEqual(await roundingBound(sample.model, sample.feeds, sample.batch, sample.expected));
      return changed > 0;
    });
  });

  test("what comes out goes in again: tokens in two calls give what they give in one", async () => {
    for (const family of ["mamba1", "mamba2"] as const) {
      for (const states of ["none", "present", "both"] as const) {
        const model = (
          await runPass(completeStates, await raised({ family, form: "loop", length: null, states }), NAMES)
        ).model;
        const tokens = [1, 2, 3, 4, 5, 6, 7];
        const call = (
          ids: readonly number[],
          past: ReadonlyMap<string, Tensor>,
        ): Promise<ReadonlyMap<string, Float64Array>> =>
          outputsOf(model, new Map([...past, ["input_ids", i64Tensor([1, ids.length], ids)]]), 1);
        const whole = await call(tokens, new Map());
        const head = await call(tokens.slice(0, 4), new Map());
        const past = new Map<string, Tensor>();
        for (const { op, input, output } of semanticOps(model.graph.nodes).flatMap(stateSlots)) {
          const type = model.graph.inputs.find(({ name }) => name === op.node.inputs[input])?.type;
          const data = head.get(op.node.outputs[output] ?? "");
          if (type?.kind !== "tensor" || data === undefined) throw new Error("a state is missing");
          const shape = (type.shape ?? []).map((dim) => (typeof dim === "number" ? dim : 1));
          past.set(op.node.inputs[input] ?? "", f32Tensor(shape, data));
        }
        const tail = await call(tokens.slice(4), past);
        const width = (whole.get("logits")?.length ?? 0) / tokens.length;
        const expected = whole.get("logits")?.slice(4 * width) ?? new Float64Array();
        expect(
          difference(new Map([["logits", tail.get("logits") ?? new Float64Array()]]), new Map([["logits", expected]])),
        ).toBeLessThan(1e-5);
        const forgetful = await call(tokens.slice(4), new Map());
        expect(
          difference(
            new Map([["logits", forgetful.get("logits") ?? new Float64Array()]]),
            new Map([["logits", expected]]),
          ),
        ).toBeGreaterThan(1e-3);
      }
    }
  });

  test("names: the source's own, those of a decode graph, those its outputs suggest, or numbered ones", async () => {
    const loop = { form: "loop", length: null } as const;
    const named = async (
      changes: Partial<Spelling>,
      given: ReadonlyMap<string, string> = new Map(),
    ): Promise<string[]> =>
      names((await runPass(completeStates, await raised(changes), { names: given })).model).slice(0, 2);
    expect(await named(loop)).toEqual(["past_conv.0", "past_ssm.0"]);
    expect(await named({ ...loop, states: "both", stateNames: "plain" })).toEqual(["window_0", "memory_0"]);
    expect(await named({ ...loop, states: "present", stateNames: "hf" })).toEqual([
      "input.cache_params.layers.0.conv_states.0",
      "input.cache_params.layers.0.recurrent_states.0",
    ]);
    expect(await named({ ...loop, states: "present", stateNames: "mobius" })).toEqual([
      "past_states.0.conv_state",
      "past_states.0.ssm_state",
    ]);
    expect(await named({ ...loop, states: "present", stateNames: "plain" })).toEqual(["past_conv.0", "past_ssm.0"]);
    const given = new Map([["memory_out_0", "memory_in_0"]]);
    expect(await named({ ...loop, states: "present", stateNames: "plain" }, given)).toEqual([
      "past_conv.0",
      "memory_in_0",
    ]);
  });

  test("a name that is taken gets a number", async () => {
    const before = await raised({ form: "loop", length: null });
    const inputs = [...before.graph.inputs, typed("past_ssm.0", "f32", [1])];
    const { model } = await runPass(completeStates, { ...before, graph: { ...before.graph, inputs } }, NAMES);
    expect(names(model)).toContain("past_ssm.0.2");
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    const before = await raised({ family: "mamba2", form: "chunked", length: null, states: "present" });
    await expectSettled(completeStates, before, (await runPass(completeStates, before, NAMES)).model, NAMES);
  });
});
