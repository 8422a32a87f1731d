import { describe, expect, test } from "vitest";
import { alignLinears } from "../../passes/align-linears.js";
import { insertQdq, quantizedValues } from "../../passes/insert-qdq.js";
import { roundNearest } from "../../passes/round-nearest.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { calibratedStep, type Step, step } from "../../src/rewrite/pipeline.js";
import type { LinearRole } from "../../src/rewrite/sites.js";
import { compiledLogits } from "../support/compiled-logits.js";
import { fixture } from "../support/fixture-models.js";
import { relative } from "../support/fixture-row.js";

const ROLES = new Set<LinearRole>(["in_proj", "x_proj", "dt_proj", "out_proj"]);

const weights = (scheme: string): Step[] => [
  step(alignLinears, {}),
  step(roundNearest, { schemeFor: (site) => (ROLES.has(site.role) ? parseWeightScheme(scheme) : null) }),
];

const staticStep = (shrink: number): Step =>
  calibratedStep(
    insertQdq,
    (model) =>
      quantizedValues(model, (site) => ROLES.has(site.role)).map(({ value }) => ({
        value,
        kind: "absmax",
        perChannel: false,
      })),
    (statistics) => ({
      roles: ROLES,
      timing: "static" as const,
      range: (value: string) => statistics.absMax(value) * shrink,
    }),
  );

describe("insert-qdq", () => {
  for (const name of ["hf/mamba2/prefill.onnx", "hf/mamba/prefill.onnx"]) {
    test(`${name}: static and dynamic scales stay close; a clipped range does not`, async () => {
      const exact = (await compiledLogits(fixture(name), [])).logits;
      const loss = async (extra: Step): Promise<number> =>
        relative((await compiledLogits(fixture(name), [...weights("i8:channel"), extra])).logits, exact);
      const good = await loss(staticStep(1));
      const live = await loss(step(insertQdq, { roles: ROLES, timing: "dynamic", range: () => 0 }));
      const clipped = await loss(staticStep(0.1));
      expect(good).toBeLessThan(0.1);
      expect(live).toBeLessThan(0.1);
      expect(clipped).toBeGreaterThan(3 * good);
    });
  }

  test("one pair serves all readers of a value, and the scan's inputs stay float", async () => {
    await compiledLogits(fixture("hf/mamba/prefill.onnx"), [...weights("i8:channel"), staticStep(1)], (name, model) => {
      if (name !== "insert-qdq") return;
      const pairs = model.graph.nodes.filter((node) => node.op === "QuantizeLinear");
      expect(new Set(pairs.map((node) => node.inputs[0])).size).toBe(pairs.length);
      for (const node of model.graph.nodes) {
        if (node.domain !== "mambac.ir") continue;
        for (const input of node.inputs) expect(input).not.toMatch(/DequantizeLinear/);
      }
    });
  });

  test("leaves projections with float weights alone, and says so", async () => {
    const { report } = await compiledLogits(fixture("hf/mamba2/prefill.onnx"), [
      step(alignLinears, {}),
      step(roundNearest, { schemeFor: (site) => (site.role === "in_proj" ? parseWeightScheme("i8:channel") : null) }),
      staticStep(1),
    ]);
    expect(report.remarks.filter(({ code }) => code === "insert-qdq/float-weight").length).toBeGreaterThan(0);
  });

  test("refuses block weights when the scale is measured in the call", async () => {
    const { report } = await compiledLogits(fixture("hf/mamba2/prefill.onnx"), [
      ...weights("i4:g16"),
      step(insertQdq, { roles: ROLES, timing: "dynamic", range: () => 0 }),
    ]);
    expect(report.remarks.filter(({ code }) => code === "insert-qdq/blocks").length).toBeGreaterThan(0);
  });
});
