/** The gates as kernels inside ONNX Runtime, against their definition; what they refuse. */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Attribute, attr } from "../../src/ir/graph.js";
import { f32Tensor, type Tensor } from "../../src/ir/tensor.js";
import { readModelBytes } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { ExecutionTrace } from "../../src/run/executed-ops.js";
import type { NativeSession } from "../../src/run/native-session.js";
import { GATES, type GateCase, gateError, gateFeeds, gateModel, nameOf } from "../ops/gate-case.js";
import { isBuilt, open, output } from "./kernel-sessions.js";

function result(session: NativeSession, feeds: ReadonlyMap<string, Tensor>): Tensor {
  return output(session.run(feeds), "out");
}

const LARGE: readonly GateCase[] = [
  { channels: 1536, norm: { groupSize: 1536, beforeGate: false, epsilon: 1e-5 } },
  { channels: 1024, norm: { groupSize: 256, beforeGate: true, epsilon: 1e-5 } },
  { channels: 1000, norm: null },
  { channels: 1000, norm: null, sloped: true },
];

describe.skipIf(!isBuilt)("gates", () => {
  test.each([...GATES, ...LARGE])("%j runs as a kernel and equals its definition", async (gate) => {
    using trace = new ExecutionTrace();
    const model = gateModel(gate, 4);
    const session = await open(model, 1, trace.prefix);
    const two = await open(model, 2);
    for (const [seed, outer] of (
      [
        [1, 1],
        [2, 40],
        [0, 3],
      ] as const
    ).entries()) {
      const feeds = gateFeeds(gate, 4, outer, seed);
      const out = result(session, feeds);
      expect(out.shape).toEqual([...outer, gate.channels]);
      expect(gateError(gate, feeds, out)).toBeLessThan(2e-6);
      expect(result(two, feeds).bytes()).toEqual(out.bytes());
    }
    expect(trace.finish(session)).toContain(nameOf(gate));
  });

  test.each<[string, RegExp, Attribute | null]>([
    ["channels", /GatedRMSNorm: attribute channels is 0; it must be between 1 and 2\^30/, attr.int(0)],
    ["group_size", /GatedRMSNorm: attribute group_size is 5; it must divide channels = 96/, attr.int(5)],
    ["norm_before_gate", /GatedRMSNorm: attribute norm_before_gate is 2; it must be 0 or 1/, attr.int(2)],
    ["epsilon", /GatedRMSNorm: attribute epsilon is -1; it must be at least 0/, attr.float(-1)],
    ["epsilon", /GatedRMSNorm: attribute epsilon is nan; it must be at least 0/, attr.float(Number.NaN)],
    ["epsilon", /GatedRMSNorm: attribute epsilon \(float\) is missing/, null],
    ["group_size", /GatedRMSNorm: attribute group_size \(int\) is missing/, null],
  ])("attribute %s is refused when the model is loaded: %s", async (name, message, value) => {
    const gate = GATES.find(({ norm }) => norm !== null);
    if (gate === undefined) throw new Error("no such gate");
    await expect(open(changed(gate, name, value))).rejects.toThrow(message);
  });

  test("any wrong shape is refused with a message that names the operator, and the next call works", async () => {
    for (const gate of [GATES[0], GATES[2], GATES[5]]) {
      if (gate === undefined) throw new Error("no such gate");
      const { channels } = gate;
      const session = await open(gateModel(gate, null, true));
      const good = gateFeeds(gate, null, [2, 3], 1);
      const expected = result(session, good).bytes();
      const sizes = [0, 1, 2, 3, 6, channels - 1, channels];
      let wrong = 0;
      fc.assert(
        fc.property(
          fc.constantFrom(...good.keys()),
          fc.array(fc.constantFrom(...sizes), { maxLength: 4 }),
          (name, shape) => {
            const count = shape.reduce((a, b) => a * b, 1);
            if (name === "weight" || name === "slope") fc.pre(shape.join() !== String(channels));
            else if (name === "y") fc.pre(count !== 6 * channels);
            else fc.pre(shape.at(-1) !== channels || count !== 6 * channels);
            wrong += 1;
            const feeds = new Map([...good, [name, f32Tensor(shape, new Float32Array(count))]]);
            expect(() => session.run(feeds)).toThrow(nameOf(gate));
          },
        ),
        { seed: 13, numRuns: 150 },
      );
      expect(wrong).toBeGreaterThan(100);
      expect(result(session, good).bytes()).toEqual(expected);
    }
  });
});

/** A model whose node has one attribute changed, or left off. */
function changed(gate: GateCase, name: string, value: Attribute | null): Uint8Array {
  const { model } = readModelBytes(gateModel(gate, null, true));
  const nodes = model.graph.nodes.map((node) => {
    const attributes = new Map(node.attributes);
    if (value === null) attributes.delete(name);
    else attributes.set(name, value);
    return { ...node, attributes };
  });
  return encodeModel({ ...model, graph: { ...model.graph, nodes } });
}
