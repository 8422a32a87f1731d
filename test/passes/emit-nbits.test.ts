import { describe, expect, test } from "vitest";
import { alignLinears } from "../../passes/align-linears.js";
import { emitNbits } from "../../passes/emit-nbits.js";
import { insertQdq } from "../../passes/insert-qdq.js";
import { roundNearest } from "../../passes/round-nearest.js";
import { attrInt } from "../../src/ir/graph.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { type Step, step } from "../../src/rewrite/pipeline.js";
import { compiledLogits } from "../support/compiled-logits.js";
import { fixture } from "../support/fixture-models.js";
import { relative } from "../support/fixture-row.js";

const MODEL = fixture("hf/mamba2/prefill.onnx");
const rounded = (scheme: string): Step[] => [
  step(alignLinears, {}),
  step(roundNearest, { schemeFor: () => parseWeightScheme(scheme) }),
];

describe("emit-nbits", () => {
  for (const scheme of ["i4:g16", "i4:channel", "i4:tensor"]) {
    test(`${scheme}: the operator at level 1 multiplies by the same weights`, async () => {
      const plain = await compiledLogits(MODEL, rounded(scheme));
      let emitted = 0;
      const nbits = await compiledLogits(
        MODEL,
        [...rounded(scheme), step(emitNbits, { accuracyLevel: 1 })],
        (name, { graph }) => {
          if (name !== "emit-nbits") return;
          const nodes = graph.nodes.filter((node) => node.op === "MatMulNBits");
          emitted = nodes.length;
          for (const node of nodes) expect(attrInt(node, "accuracy_level", 0)).toBe(1);
        },
      );
      expect(emitted).toBeGreaterThan(3);
      expect(relative(nbits.logits, plain.logits)).toBeLessThan(2e-5);
    });
  }

  test("other codes would show", async () => {
    const plain = await compiledLogits(MODEL, rounded("i4:g16"));
    const other = await compiledLogits(MODEL, rounded("i4:g32"));
    expect(relative(other.logits, plain.logits)).toBeGreaterThan(1e-3);
  });

  test("leaves 8-bit weights and integer products as they are", async () => {
    const roles = new Set(["in_proj", "out_proj"] as const);
    const { report } = await compiledLogits(MODEL, [
      ...rounded("i8:channel"),
      step(insertQdq, { roles, timing: "static", range: () => 4 }),
      step(emitNbits, { accuracyLevel: 1 }),
    ]);
    const missed = report.remarks.filter(({ code }) => code === "emit-nbits/form");
    expect(missed.some(({ message }) => message.includes("integers already"))).toBe(true);
    expect(missed.some(({ message }) => message.includes("no form"))).toBe(true);
  });
});
