import { describe, expect, test } from "vitest";
import { alignLinears } from "../../passes/align-linears.js";
import { roundGptq } from "../../passes/round-gptq.js";
import { roundNearest } from "../../passes/round-nearest.js";
import type { Graph } from "../../src/ir/graph.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { calibratedStep, type Step, step } from "../../src/rewrite/pipeline.js";
import { roundedInputs } from "../../src/rewrite/rounded-weight.js";
import { compiledLogits } from "../support/compiled-logits.js";
import { fixture } from "../support/fixture-models.js";
import { roundedWeights, roundingError } from "../support/rounded-weights.js";

const scheme = parseWeightScheme("i4:channel");
const schemeFor = (): typeof scheme => scheme;

const gptqStep = (
  secondMoment: ((size: number) => Float64Array) | null,
  seen: Map<string, Float64Array> = new Map(),
): Step =>
  calibratedStep(
    roundGptq,
    (model) => roundedInputs(model, schemeFor).map((value) => ({ value, kind: "second-moment", perChannel: true })),
    (statistics) => ({
      schemeFor,
      secondMoment: (value) => {
        const found = statistics.secondMoment(value);
        seen.set(value, found.matrix);
        return secondMoment === null ? found : { ...found, matrix: secondMoment(found.size) };
      },
    }),
  );

const identity = (size: number): Float64Array => {
  const matrix = new Float64Array(size * size);
  for (let i = 0; i < size; i++) matrix[i * size + i] = 1;
  return matrix;
};

/** Summed squared error of every projection's output on its own calibration inputs: tr(E^T H E). */
async function outputErrors(steps: readonly Step[]): Promise<{ codes: string; logits: Float32Array }> {
  const parts: string[] = [];
  const { logits } = await compiledLogits(fixture("hf/mamba/prefill.onnx"), steps, (name, model) => {
    if (!name.startsWith("round-")) return;
    for (const node of model.graph.nodes) {
      const codes = node.op === "DequantizeLinear" ? model.graph.initializers.get(node.inputs[0] ?? "") : undefined;
      if (codes !== undefined) parts.push(Buffer.from(codes.bytes()).toString("hex"));
    }
  });
  return { codes: parts.join("|"), logits };
}

describe("round-gptq", () => {
  test("with H = I it is rounding to nearest, code for code", async () => {
    const nearest = await outputErrors([step(alignLinears, {}), step(roundNearest, { schemeFor })]);
    const unit = await outputErrors([step(alignLinears, {}), gptqStep(identity)]);
    expect(unit.codes).toBe(nearest.codes);
    expect([...unit.logits]).toEqual([...nearest.logits]);
  });

  test("with the H of calibration every layer's output error is below that of rounding to nearest", async () => {
    const moments = new Map<string, Float64Array>();
    const errors = async (steps: readonly Step[]): Promise<Map<string, number>> => {
      let original: Graph | null = null;
      const found = new Map<string, number>();
      await compiledLogits(fixture("hf/mamba/prefill.onnx"), steps, (name, { graph }) => {
        if (name === "align-linears") original = graph;
        const before = original;
        if (!name.startsWith("round-") || before === null) return;
        for (const weight of roundedWeights(graph)) {
          const input = before.nodes.find((node) => node.inputs[1] === weight.name)?.inputs[0] ?? "";
          found.set(weight.name, roundingError(weight, before, moments.get(input) ?? null));
        }
      });
      return found;
    };
    const gptq = await errors([step(alignLinears, {}), gptqStep(null, moments)]);
    const nearest = await errors([step(alignLinears, {}), step(roundNearest, { schemeFor })]);
    expect(gptq.size).toBeGreaterThan(6);
    expect(moments.size).toBeGreaterThan(4);
    for (const [name, error] of gptq) {
      // dt_proj of this model has two inputs: with so few, the nearest codes may be the best ones.
      if (name.includes("dt_proj")) expect(error, name).toBeLessThanOrEqual(nearest.get(name) ?? 0);
      else expect(error, name).toBeLessThan(nearest.get(name) ?? 0);
    }
  });

  test("refuses layers calibration never reached", async () => {
    const zero = (size: number): Float64Array => new Float64Array(size * size);
    await expect(outputErrors([step(alignLinears, {}), gptqStep(zero)])).rejects.toMatchObject({ exitCode: 5 });
  });
});
