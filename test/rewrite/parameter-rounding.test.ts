import { describe, expect, test } from "vitest";
import { executableRecipe, raiseRecipe } from "../../passes/recipes.js";
import { prepare } from "../../src/compile.js";
import type { Model } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { roundParameter } from "../../src/rewrite/parameter-rounding.js";
import { weightValues } from "../../src/rewrite/weights.js";
import { fixture } from "../support/fixture-models.js";

const passes = { raise: raiseRecipe, executable: executableRecipe, finish: () => [] };

async function raised(name: string): Promise<Model> {
  return (await prepare({ inputs: [fixture(name)] }, passes)).main;
}

/** Names and values of the initialisers that differ. */
function changes(before: Model, after: Model): [string, Float32Array, Float32Array][] {
  return [...before.graph.initializers].flatMap(([name, tensor]) => {
    const other = after.graph.initializers.get(name);
    return other === undefined || other === tensor ? [] : [[name, weightValues(tensor), weightValues(other)]];
  });
}

describe.each(["hf/mamba/prefill.onnx", "hf/mamba2/prefill.onnx"])("%s", (name) => {
  test.each(["conv1d", "A", "D"] as const)("%s is put on the grid, and nothing else", async (kind) => {
    const model = await raised(name);
    const { model: after, changed } = roundParameter(model, kind, parseWeightScheme("i4:tensor"));
    expect(changed).toBeGreaterThan(0);
    const found = changes(model, after);
    expect(found).toHaveLength(changed);
    for (const [label, old, fresh] of found) {
      const peak = old.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const step = peak / 7;
      for (const [at, value] of fresh.entries()) {
        const code = step === 0 ? 0 : value / step;
        expect(Math.abs(code - Math.round(code)), label).toBeLessThan(1e-4);
        expect(Math.abs(value - (old[at] ?? 0)), label).toBeLessThanOrEqual(step / 2 + 1e-6);
      }
    }
    expect(after.graph.nodes).toBe(model.graph.nodes);
  });

  test("values that are no numbers are refused", async () => {
    const model = await raised(name);
    const [target = ""] =
      changes(model, roundParameter(model, "conv1d", parseWeightScheme("i8:tensor")).model)[0] ?? [];
    const shape = model.graph.initializers.get(target)?.shape ?? [];
    const values = new Float32Array(shape.reduce((product, size) => product * size, 1)).fill(Number.NaN);
    const initializers = new Map(model.graph.initializers).set(target, f32Tensor(shape, values));
    const broken = { ...model, graph: { ...model.graph, initializers } };
    expect(() => roundParameter(broken, "conv1d", parseWeightScheme("i8:tensor"))).toThrow(
      expect.objectContaining({ exitCode: 5 }),
    );
  });
});
