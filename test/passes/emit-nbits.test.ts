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
  for (const scheme of [
    "i4:g16",
    "i4:channel",
    "i4:tensor",
    "u4:g16",
    "u4:channel",
    "u4:tensor",
    "i3:g16",
    "i2:g16",
    "u2:g16",
  ]) {
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

  for (const scheme of ["i2:g16", "u2:channel"]) {
    test(`${scheme}: codes of 2 bits are the same weights in half the bytes, but for activations at level 4`, async () => {
      const bytes: number[] = [];
      const emitted = async (codeBits: 2 | 4): Promise<Float32Array> => {
        const options = { accuracyLevel: 4, codeBits: () => codeBits } as const;
        const { logits } = await compiledLogits(
          MODEL,
          [...rounded(scheme), step(emitNbits, options)],
          (name, { graph }) => {
            if (name !== "emit-nbits") return;
            const codes = [...graph.initializers].filter(([initializer]) => initializer.endsWith(".nbits"));
            bytes.push(codes.reduce((sum, [, tensor]) => sum + tensor.byteLength, 0));
          },
        );
        return logits;
      };
      const [two, four] = [await emitted(2), await emitted(4)];
      expect(bytes[0]).toBe((bytes[1] ?? 0) / 2);
      // ONNX Runtime has 2-bit products on integers for some blocks only, and keeps the activations for the others.
      const { logits: plain } = await compiledLogits(MODEL, rounded(scheme));
      expect(Math.min(relative(two, four), relative(two, plain))).toBeLessThan(2e-5);
      expect(relative(two, (await compiledLogits(MODEL, rounded("i3:g16"))).logits)).toBeGreaterThan(0.05);
    });
  }

  test("scales of input channels have no form", async () => {
    const { report } = await compiledLogits(MODEL, [
      ...rounded("i4:in-channel"),
      step(emitNbits, { accuracyLevel: 1 }),
    ]);
    expect(report.remarks.filter(({ code }) => code === "emit-nbits/form").length).toBeGreaterThan(3);
  });

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
