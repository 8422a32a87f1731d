/** Every rule against ONNX Runtime: the same shapes, types and elements, and the same refusals. */

import { describe, expect, it } from "vitest";
import { f32Tensor, toNumbers } from "../../src/ir/tensor.js";
import { runEveryValue } from "../support/every-value.js";
import { compare, infer, modelOf, refusedByRuntime } from "../support/operator-run.js";
import { CLOSE, EXACT, NEW, OLD, OLDER, REFUSED, SHAPES } from "./operator-cases.js";

describe("operators", () => {
  it("give what the runtime gives, elements included", async () => {
    for (const [told, real] of await compare(EXACT, 21, true)) expect(told).toEqual(real);
  });

  it("give floats within two units in the last place of the runtime's", async () => {
    const { model, outputs } = modelOf(CLOSE, 21);
    const { values } = infer(model);
    const ran = await runEveryValue(model, new Map());
    for (const name of outputs.flat()) {
      const told = values.get(name)?.content ?? [];
      const real = Array.from(toNumbers(ran.get(name) ?? f32Tensor([0], [])));
      expect(told).toHaveLength(real.length);
      for (const [at, value] of told.entries()) {
        const place = 2 ** (Math.floor(Math.log2(Math.abs(value) || 1)) - 23);
        expect(Math.abs(value - (real[at] ?? Number.NaN)), `${name} ${at}`).toBeLessThanOrEqual(2 * place);
      }
    }
  });

  it("give the shapes and types that the runtime gives", async () => {
    for (const [told, real] of await compare(SHAPES, 21, false)) expect(told).toEqual(real);
  });

  it("are understood in newer and older operator sets", async () => {
    for (const [told, real] of await compare(NEW, 23, false)) expect(told).toEqual(real);
    for (const [told, real] of await compare(OLD, 12, false)) expect(told).toEqual(real);
    for (const [told, real] of await compare(OLDER, 9, false)) expect(told).toEqual(real);
  });

  it.each(REFUSED)("refuses $op where the runtime does (%#)", async (one) => {
    const { model, outputs } = modelOf([one], 21);
    const { failures, values } = infer(model);
    expect(failures.map((failure) => failure.node)).toEqual(model.graph.nodes);
    for (const name of outputs.flat()) expect(values.get(name)).toEqual({ dtype: null, shape: null, content: null });
    expect(await refusedByRuntime(one, 21)).toBe(true);
  });
});
