import { describe, expect, test } from "vitest";
import { compile } from "../../api/index.js";
import type { Model } from "../../passes/index.js";
import { fixture } from "../support/fixture-models.js";

async function interfaceOf(...inputs: string[]): Promise<Map<string, readonly unknown[]>> {
  const { model } = await compile({ inputs: inputs.map(fixture), state: "f32" });
  return shapes(model);
}

function shapes({ graph }: Model): Map<string, readonly unknown[]> {
  return new Map(
    [...graph.inputs, ...graph.outputs].map(({ name, type }) => [
      name,
      type?.kind === "tensor" ? (type.shape ?? []) : [],
    ]),
  );
}

describe("dimensions of inputs and outputs", () => {
  test("a pair: names that an exporter made up become the usual ones", async () => {
    const dims = await interfaceOf("hf/bamba/prefill.onnx", "hf/bamba/decode.onnx");
    expect(dims.get("input_ids")).toEqual(["batch_size", "sequence_length"]);
    expect(dims.get("position_ids")).toEqual(["batch_size", "sequence_length"]);
    expect(dims.get("logits")).toEqual(["batch_size", "sequence_length", 96]);
    expect([...dims.entries()].filter(([name]) => name.includes("conv_states"))).toEqual([
      ["input.past_key_values.layers.0.conv_states.0", ["batch_size", 80, 4]],
      ["output.past_key_values.layers.0.conv_states.0", ["batch_size", 80, 4]],
    ]);
    expect([...dims.values()].flat().filter((dim) => typeof dim === "string" && /^s\d+$/.test(dim))).toEqual([]);
  });

  test("a step alone: states have the sizes their operators have", async () => {
    const dims = await interfaceOf("hf/mamba/decode.onnx");
    expect(dims.get("input_ids")).toEqual(["batch_size", 1]);
    const states = [...dims].filter(([name]) => name.includes("states"));
    expect(states).toHaveLength(8);
    for (const [name, shape] of states) {
      expect(shape[0], name).toBe("batch_size");
      expect(shape.slice(1).every((dim) => typeof dim === "number")).toBe(true);
    }
  });

  test("names that someone chose stay", async () => {
    const dims = await interfaceOf("forms/mamba_torchscript_dynamic_axes.onnx");
    const [batch] = dims.get("input_ids") ?? [];
    expect(batch).not.toBe("batch_size");
    expect(dims.get("past_ssm.0")?.[0]).toBe(batch);
  });
});
