import { describe, expect, test } from "vitest";
import { completeStates } from "../../passes/complete-states.js";
import { lower } from "../../passes/lower.js";
import { quantizeState } from "../../passes/quantize-state.js";
import { raiseRecipe } from "../../passes/recipes.js";
import type { Model } from "../../src/ir/graph.js";
import { i64Tensor, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import { packedBytes } from "../../src/ir/types.js";
import { encodeModel } from "../../src/onnx/write.js";
import { REQUANTIZE_MODES, STATE_FORMATS, STATE_SCALES } from "../../src/ops/names.js";
import { step } from "../../src/rewrite/pipeline.js";
import { type StateChoice, semanticOps } from "../../src/rewrite/semantic.js";
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
          const choice = { format, scale, requantize };
          await expectSettled(quantizeState, before, (await runPass(quantizeState, before, choice)).model, choice);
        }
      }
    }
  });
});
