import { describe, expect, test } from "vitest";
import { lower, type ScanTarget } from "../../passes/lower.js";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import type { Model } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import { hadamardRotation, rotateRows } from "../../src/linalg/hadamard.js";
import { onlineRotation } from "../../src/rewrite/online-rotation.js";
import { Noise, relativeError } from "../ops/scan-case.js";
import { modelAround } from "../support/mamba-graphs/decoys.js";
import { outputsOf, runPass } from "../support/pass-runs.js";

/** y = x R, and z, which reads y by its name. */
function rotating(size: number): Model {
  const b = new GraphBuilder("");
  const y = onlineRotation(b, "x", hadamardRotation(size), 3);
  b.op("Identity", [y], {}, "y");
  b.op("Neg", [y], {}, "z");
  const shape = ["b", "l", size];
  return modelAround(
    b.graph("rotating", [typed("x", "f32", shape)], [typed("y", "f32", shape), typed("z", "f32", shape)]),
  );
}

async function lowered(size: number, target: ScanTarget): Promise<Model> {
  return (await runPass(lower, rotating(size), { target })).model;
}

describe("an online rotation", () => {
  test.each([
    ["mambac", 24, ["HadamardRotate"]],
    ["mambac", 420, []], // its factor has order 420
    ["linear-attention", 24, []],
  ] as const)("for %s, of %d channels, becomes %j and turns rows", async (target, size, names) => {
    const model = await lowered(size, target);
    expect(model.graph.nodes.flatMap(({ domain, op }) => (domain === "" ? [] : [op]))).toEqual(names);
    expect(model.functions.map(({ name }) => name)).toEqual(names);
    expect(model.opsets.has("com.mambac")).toBe(names.length > 0);
    const x = new Noise(size).normals(6 * size);
    const expected = Float64Array.from(x);
    rotateRows(expected, hadamardRotation(size), "forward");
    const outputs = await outputsOf(model, new Map([["x", f32Tensor([2, 3, size], x)]]), 2);
    expect(relativeError(outputs.get("y") ?? [], expected)).toBeLessThan(2e-6);
    expect(
      relativeError(
        outputs.get("z") ?? [],
        expected.map((value) => -value),
      ),
    ).toBeLessThan(2e-6);
  });
});
