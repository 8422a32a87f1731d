/** The functions of the gates in ONNX Runtime against their float64 definition. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { readModelBytes } from "../../src/onnx/read.js";
import { gateReference } from "../../src/ops/gate.js";
import { openNativeSession } from "../../src/run/native-session.js";
import { openSession } from "../../src/run/session.js";
import { scratchFolder } from "../support/count-model.js";
import { GATES, type GateCase, gateError, gateFeeds, gateModel } from "./gate-case.js";

test("the definition, by hand", () => {
  const silu = (z: number): number => z / (1 + Math.exp(-z));
  expect([...gateReference({ channels: 2, y: Float64Array.of(2, 3), z: Float64Array.of(1, -1), norm: null })]).toEqual([
    2 * silu(1),
    3 * silu(-1),
  ]);
  const slope = Float64Array.of(0.5, -2);
  const sloped = gateReference({
    channels: 2,
    y: Float64Array.of(2, 3),
    z: Float64Array.of(1, -1),
    norm: null,
    slope,
  });
  expect([...sloped]).toEqual([2 / (1 + Math.exp(-0.5)), -3 / (1 + Math.exp(-2))]);
  // Two groups of one channel: what is left of y is its sign.
  const norm = { groupSize: 1, beforeGate: true, epsilon: 0, weight: Float64Array.of(5, 7) };
  const signs = gateReference({ channels: 2, y: Float64Array.of(2, -3), z: Float64Array.of(1, 1), norm });
  expect([...signs]).toEqual([5 * silu(1), -7 * silu(1)]);
  const after = { groupSize: 2, beforeGate: false, epsilon: 1, weight: Float64Array.of(1, 2) };
  const [a = 0, b = 0] = gateReference({
    channels: 2,
    y: Float64Array.of(2, 3),
    z: Float64Array.of(1, 2),
    norm: after,
  });
  const [g, h] = [2 * silu(1), 3 * silu(2)];
  const root = Math.sqrt((g * g + h * h) / 2 + 1);
  expect(a).toBeCloseTo(g / root, 14);
  expect(b).toBeCloseTo((2 * h) / root, 14);
});

test("the functions equal the definition, whatever shape y has", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...GATES),
      fc.constantFrom(null, 2, 4),
      fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 9 })),
      fc.constantFrom("disabled" as const, "all" as const),
      fc.nat(),
      async (gate: GateCase, heads, outer, optimization, seed) => {
        const session = await openSession(gateModel(gate, heads), { optimization });
        const feeds = gateFeeds(gate, heads, outer, seed);
        const out = (await session.run(feeds)).get("out");
        await session.release();
        if (out === undefined) throw new Error("no output");
        expect(out.shape).toEqual([...outer, gate.channels]);
        expect(gateError(gate, feeds, out)).toBeLessThan(3e-6);
      },
    ),
    { numRuns: 100, seed: 73 },
  );
});

test.each(GATES)("a runtime that fuses keeps few kernels of %j", async (gate) => {
  const path = join(scratchFolder(), "optimized.onnx");
  (await openNativeSession(gateModel(gate, 2), { optimizedModelPath: path })).close();
  const { nodes } = readModelBytes(readFileSync(path)).model.graph;
  const kernels = nodes.map(({ op }) => op).filter((op) => !/^(Shape|Reshape)$/.test(op));
  const group = gate.norm !== null && gate.norm.groupSize < gate.channels;
  // Without a gain behind it, the norm of a group is not fused.
  const norm =
    gate.norm === null
      ? []
      : group
        ? ["Add", "Div", "Mul", "Pow", "ReduceMean", "Sqrt"]
        : ["SimplifiedLayerNormalization"];
  const silu = gate.sloped === true ? ["Mul", "Mul", "Sigmoid"] : ["QuickGelu"];
  expect(kernels.toSorted()).toEqual([...norm, "Mul", ...silu].toSorted());
});
