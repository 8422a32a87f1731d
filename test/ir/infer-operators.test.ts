/** Every rule against ONNX Runtime: the same shapes, types and elements, and the same refusals. */

import { describe, expect, it } from "vitest";
import { compare, infer, modelOf, refusedByRuntime } from "../support/operator-run.js";
import { EXACT, OLD, OLDER, REFUSED, SHAPES } from "./operator-cases.js";

describe("operators", () => {
  it("give what the runtime gives, elements included", async () => {
    for (const [told, real] of await compare(EXACT, 21, true)) expect(told).toEqual(real);
  });

  it("give the shapes and types that the runtime gives", async () => {
    for (const [told, real] of await compare(SHAPES, 21, false)) expect(told).toEqual(real);
  });

  it("are understood in their older forms", async () => {
    for (const [told, real] of await compare(OLD, 12, false)) expect(told).toEqual(real);
    for (const [told, real] of await compare(OLDER, 9, false)) expect(told).toEqual(real);
  });

  it.each(REFUSED)("$op refuses what the runtime refuses: $inputs", async (one) => {
    const { model, outputs } = modelOf([one], 21);
    const { failures, values } = infer(model);
    expect(failures.map((failure) => failure.node)).toEqual(model.graph.nodes);
    for (const name of outputs.flat()) expect(values.get(name)).toEqual({ dtype: null, shape: null, content: null });
    expect(await refusedByRuntime(one, 21)).toBe(true);
  });
});
