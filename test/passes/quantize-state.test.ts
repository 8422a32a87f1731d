import { describe, expect, test } from "vitest";
import { completeStates } from "../../passes/complete-states.js";
import { lower } from "../../passes/lower.js";
import { quantizeState } from "../../passes/quantize-state.js";
import { raiseRecipe } from "../../passes/recipes.js";
import { type Model, makeValue } from "../../src/ir/graph.js";
import { i64Tensor, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import { packedBytes } from "../../src/ir/types.js";
import { encodeModel } from "../../src/onnx/write.js";
import { REQUANTIZE_MODES, STATE_FORMATS, STATE_SCALES } from "../../src/ops/names.js";
import type { GivenSteps } from "../../src/quant/static-steps.js";
import { step } from "../../src/rewrite/pipeline.js";
import { type ScanOp, type StateChoice, scanNode, semanticOps } from "../../src/rewrite/semantic.js";
import { stateSlots } from "../../src/rewrite/states.js";
import { openSession } from "../../src/run/session.js";
import { Random } from "../../src/support/random.js";
import { type MambaSizes, type Spelling, smallModel } from "../support/mamba-graphs.js";
import { expectSettled, golden, runAll, runPass } from "../support/pass-runs.js";

const COMPLETE = [...raiseRecipe(), step(completeStates, { names: new Map() })];
const PLAIN: StateChoice = { format: "h8", scale: "dsq", requantize: "call" };

async function complete(changes: Partial<Spelling>, sizes: Partial<MambaSizes> = {}): Promise<Model> {
  const source = smallModel({ form: "loop", length: null, decay: "folded", ...changes }, 2, {
    dState: 8,
    layers: 1,
    ...sizes,
  });
  return (await runAll(source, COMPLETE)).model;
}

/** Logits of a sequence fed a few tokens at a time, the states handed on as they come; or lost each time. */
async function generate(
  model: Model,
  tokens: readonly number[],
  width: number,
  forgets: boolean = false,
): Promise<Float64Array[]> {
  const { model: ready } = await runPass(lower, model, { target: "mambac" });
  const slots = semanticOps(model.graph.nodes).flatMap(stateSlots);
  const zeros = new Map<string, Tensor>();
  for (const { name, type } of model.graph.inputs) {
    if (name === "input_ids" || type?.kind !== "tensor") continue;
    const shape = (type.shape ?? []).map((dim) => (typeof dim === "number" ? dim : 1));
    // Zero bytes are the zero state in every format.
    zeros.set(name, tensorFromBytes(type.dtype, shape, new Uint8Array(packedBytes(type.dtype, shape) ?? 0)));
  }
  const states = new Map(zeros);
  const out: Float64Array[] = [];
  const session = await openSession(encodeModel(ready));
  try {
    for (let at = 0; at < tokens.length; at += width) {
      const ids = tokens.slice(at, at + width);
      const past = forgets ? zeros : states;
      const results = await session.run(new Map([...past, ["input_ids", i64Tensor([1, ids.length], ids)]]));
      for (const { op, input, output } of slots) {
        const state = results.get(op.node.outputs[output] ?? "");
        if (state === undefined) throw new Error("a state is missing");
        states.set(op.node.inputs[input] ?? "", state);
      }
      const logits = results.get("logits");
      if (logits === undefined) throw new Error("no logits");
      out.push(toNumbers(logits));
    }
  } finally {
    await session.release();
  }
  return out;
}

const TOKENS = Array.from({ length: 24 }, (_, at) => new Random(9).split(String(at)).integer(23));

/** Root mean square difference over root mean square. */
function loss(actual: readonly Float64Array[], expected: readonly Float64Array[]): number {
  let [difference, scale] = [0, 0];
  for (const [call, wanted] of expected.entries()) {
    for (const [i, value] of wanted.entries()) {
      difference += ((actual[call]?.[i] ?? Number.NaN) - value) ** 2;
      scale += value ** 2;
    }
  }
  return Math.sqrt(difference / scale);
}

/** The same step everywhere. */
function evenSteps({ heads, headDim, groups, dState }: ScanOp, step: number = 1 / 16): GivenSteps {
  return {
    rows: new Float32Array(heads * headDim).fill(1),
    columns: new Float32Array(groups * dState).fill(step),
  };
}

/** The model with its scan once more, as if it were Mamba-1. */
function withMamba1Twin(model: Model): Model {
  const [scan] = semanticOps(model.graph.nodes).filter((op) => op.kind === "scan");
  if (scan === undefined) throw new Error("there is no scan");
  const op = { ...scan, family: "mamba1", layer: "layers.twin" } as const;
  const twin = scanNode(op, [...scan.node.inputs.slice(0, 7), ""], ["twin.y", ""]);
  const { nodes, outputs } = model.graph;
  return {
    ...model,
    graph: { ...model.graph, nodes: [...nodes, twin], outputs: [...outputs, makeValue("twin.y", null)] },
  };
}

describe("quantize-state", () => {
  test("golden", async () => {
    const before = await complete({ family: "mamba2" });
    const about = "The recurrent state becomes bytes: 4-bit codes and their scales. The convolution keeps floats.";
    await expect(
      golden(about, before, await runPass(quantizeState, before, { ...PLAIN, format: "h4", scale: "dsq-max" })),
    ).toMatchFileSnapshot("quantize-state/h4.irtxt");
  });

  test("states have the type their format says, and nothing but states changes", async () => {
    const types = { f32: "f32", f16: "f16", h8: "u8", h4: "u8" } as const;
    for (const family of ["mamba1", "mamba2"] as const) {
      const before = await complete({ family });
      for (const format of STATE_FORMATS) {
        const { model, changed } = await runPass(quantizeState, before, { ...PLAIN, format });
        expect(changed).toBe(1);
        for (const values of [model.graph.inputs, model.graph.outputs]) {
          const found = values.flatMap(({ name, type }) => (type?.kind === "tensor" ? [`${name} ${type.dtype}`] : []));
          expect(found.filter((text) => text.includes("ssm"))).toEqual([expect.stringMatching(` ${types[format]}$`)]);
          expect(found.filter((text) => text.includes("conv"))).toEqual([expect.stringMatching(" f32$")]);
        }
        expect(model.graph.nodes.length).toBe(before.graph.nodes.length);
      }
    }
  });

  test("loses no more than its budget: f16 a thousandth, h8 a hundredth, h4 a quarter; in that order", async () => {
    for (const family of ["mamba1", "mamba2"] as const) {
      const before = await complete({ family });
      for (const width of [1, 6]) {
        const losses: number[] = [];
        const exact = await generate(
          (await runPass(quantizeState, before, { ...PLAIN, format: "f32" })).model,
          TOKENS,
          width,
        );
        for (const format of ["f16", "h8", "h4"] as const) {
          const { model } = await runPass(quantizeState, before, { ...PLAIN, format });
          losses.push(loss(await generate(model, TOKENS, width), exact));
        }
        const [f16 = 1, h8 = 1, h4 = 1] = losses;
        expect(f16).toBeLessThan(1e-3);
        expect(h8).toBeLessThan(1e-2);
        expect(h4).toBeLessThan(0.25);
        expect(f16).toBeLessThan(h8);
        expect(h8).toBeLessThan(h4);
        expect(f16).toBeGreaterThan(0);
      }
    }
  });

  test("rounding once a call loses less than after every token, and the same when calls have one", async () => {
    const before = await complete({ family: "mamba2" });
    const run = async (choice: StateChoice, width: number): Promise<Float64Array[]> =>
      generate((await runPass(quantizeState, before, choice)).model, TOKENS, width);
    const exact = await run({ ...PLAIN, format: "f32" }, 12);
    const h4 = { ...PLAIN, format: "h4" } as const;
    const call = loss(await run({ ...h4, requantize: "call" }, 12), exact);
    const token = loss(await run({ ...h4, requantize: "token" }, 12), exact);
    expect(call).toBeLessThan(token);
    const [one, other] = [await run({ ...h4, requantize: "call" }, 1), await run({ ...h4, requantize: "token" }, 1)];
    expect(loss(one, other)).toBeLessThan(1e-5);
  });

  test("replay: the same wherever calls end, and the less is lost the more seldom it rounds", async () => {
    const before = await complete({ family: "mamba2" });
    const exact = await generate((await runPass(quantizeState, before, { ...PLAIN, format: "f32" })).model, TOKENS, 1);
    const run = async (replayLength: number, width: number): Promise<Float64Array[]> => {
      const choice = { ...PLAIN, format: "h4", requantize: "replay", replayLength } as const;
      return generate((await runPass(quantizeState, before, choice)).model, TOKENS, width);
    };
    const flat = (calls: readonly Float64Array[]): Float64Array =>
      Float64Array.from(calls.flatMap((call) => [...call]));
    const losses: number[] = [];
    for (const replayLength of [1, 5, 30]) {
      const single = await run(replayLength, 1);
      losses.push(loss(single, exact));
      for (const width of [3, 8, 24]) {
        expect(loss([flat(await run(replayLength, width))], [flat(single)])).toBeLessThan(1e-5);
      }
    }
    const [every = 0, some = 0, never = 0] = losses;
    const token = (await runPass(quantizeState, before, { ...PLAIN, format: "h4" })).model;
    expect(loss(await generate(token, TOKENS, 1), exact) / every).toBeCloseTo(1, 1);
    expect(some).toBeLessThan(every / 1.5);
    // 24 tokens in rings of 30: only u and B are rounded, to halves.
    expect(never).toBeLessThan(1e-3);
    expect(never).toBeGreaterThan(0);
  });

  test("replay: a remark for layers without, and a warning where no layer has it", async () => {
    const replay = { ...PLAIN, requantize: "replay", replayLength: 4 } as const;
    const states = (model: Model): StateChoice[] =>
      semanticOps(model.graph.nodes).flatMap((op) => (op.kind === "scan" ? [op.state] : []));
    const old = await complete({ family: "mamba1" });
    const none = await runPass(quantizeState, old, replay);
    expect(states(none.model)).toEqual([PLAIN]);
    expect(none.remarks).toMatchObject([{ kind: "warning", where: "model", code: "quantize-state/no-replay" }]);
    expect(none.remarks[0]?.message).toContain("no layer is Mamba-2");

    const next = await complete({ family: "mamba2" });
    expect(await runPass(quantizeState, next, replay)).toMatchObject({ remarks: [] });
    const float = await runPass(quantizeState, next, { ...replay, format: "f32" });
    expect(float.remarks).toMatchObject([{ kind: "warning", where: "model" }]);
    expect(states(float.model)).toEqual([{ ...PLAIN, format: "f32" }]);

    const both = await runPass(quantizeState, withMamba1Twin(next), replay);
    expect(both.remarks).toMatchObject([{ kind: "missed", where: "layers.twin" }]);
    expect(states(both.model)).toEqual([replay, PLAIN]);

    await expect(runPass(quantizeState, next, { ...replay, replayLength: 65 })).rejects.toMatchObject({
      code: "state/replay-length",
    });
  });

  test("static steps become inputs of the scan, and codes are in their units", async () => {
    const choice: StateChoice = { format: "h8", scale: "static", requantize: "call" };
    const before = await complete({ family: "mamba2" });
    const exact = await generate((await runPass(quantizeState, before, { ...PLAIN, format: "f32" })).model, TOKENS, 1);
    const lossAt = async (step: number): Promise<number> => {
      const steps = (op: ScanOp): GivenSteps => evenSteps(op, step);
      const { model, remarks } = await runPass(quantizeState, before, { ...choice, steps });
      expect(remarks).toEqual([]);
      const [scan] = semanticOps(model.graph.nodes).filter((op) => op.kind === "scan");
      expect(scan?.node.inputs).toHaveLength(10);
      expect(model.graph.initializers.get(scan?.node.inputs[8] ?? "")?.shape).toEqual([scan?.heads, scan?.headDim]);
      expect(model.graph.initializers.get(scan?.node.inputs[9] ?? "")?.shape).toEqual([scan?.groups, scan?.dState]);
      return loss(await generate(model, TOKENS, 1), exact);
    };
    // Too coarse rounds everything away, too fine clips; in between it is close.
    expect(await lossAt(1 / 16)).toBeLessThan(0.06);
    expect(await lossAt(100)).toBeGreaterThan(0.1);
    expect(await lossAt(1e-6)).toBeGreaterThan(0.1);
  });

  test("static scales are for Mamba-2 without replay, and need steps", async () => {
    const choice: StateChoice = { format: "h4", scale: "static", requantize: "call" };
    const before = await complete({ family: "mamba2" });
    const both = await runPass(quantizeState, withMamba1Twin(before), { ...choice, steps: evenSteps });
    expect(both.remarks).toMatchObject([{ kind: "missed", where: "layers.twin", code: "quantize-state/no-static" }]);
    const states = semanticOps(both.model.graph.nodes).flatMap((op) => (op.kind === "scan" ? [op.state] : []));
    expect(states).toEqual([choice, { ...choice, scale: "dsq-max" }]);
    await expect(runPass(quantizeState, before, { ...choice, requantize: "replay" })).rejects.toMatchObject({
      code: "quantize-state/static-replay",
    });
    await expect(runPass(quantizeState, before, choice)).rejects.toThrow(/need steps/);
    // Of a float state the scale says nothing.
    expect(await runPass(quantizeState, before, { ...choice, format: "f16" })).toMatchObject({ remarks: [] });
  });

  test("a state that is lost is told from one that is rounded", async () => {
    const before = await complete({ family: "mamba2" });
    const exact = await generate((await runPass(quantizeState, before, { ...PLAIN, format: "f32" })).model, TOKENS, 1);
    const { model } = await runPass(quantizeState, before, { ...PLAIN, format: "h4" });
    expect(loss(await generate(model, TOKENS, 1), exact)).toBeLessThan(0.25);
    expect(loss(await generate(model, TOKENS, 1, true), exact)).toBeGreaterThan(0.25);
  });

  test("choices can be changed, and the last one counts", async () => {
    const before = await complete({ family: "mamba1" });
    const first = (await runPass(quantizeState, before, { ...PLAIN, format: "h4" })).model;
    const second = (await runPass(quantizeState, first, PLAIN)).model;
    expect(semanticOps(second.graph.nodes).flatMap((op) => (op.kind === "scan" ? [op.state] : []))).toEqual([PLAIN]);
    expect(second.graph.inputs).toEqual((await runPass(quantizeState, before, PLAIN)).model.graph.inputs);
  });

  test("refuses h4 where d_state is odd", async () => {
    const before = await complete({ family: "mamba2" }, { dState: 5 });
    await expect(runPass(quantizeState, before, { ...PLAIN, format: "h4" })).rejects.toMatchObject({
      code: "quantize-state/odd",
      exitCode: 4,
    });
    expect((await runPass(quantizeState, before, PLAIN)).changed).toBe(1);
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    const before = await complete({ family: "mamba2" });
    for (const format of STATE_FORMATS) {
      for (const scale of STATE_SCALES) {
        for (const requantize of REQUANTIZE_MODES) {
          if (scale === "static" && requantize === "replay") continue;
          const choice = { format, scale, requantize, ...(scale === "static" ? { steps: evenSteps } : {}) };
          await expectSettled(quantizeState, before, (await runPass(quantizeState, before, choice)).model, choice);
        }
      }
    }
  });
});
