/** The rotation as a kernel inside ONNX Runtime, against its definition and its function; what it refuses. */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { attr } from "../../src/ir/graph.js";
import { f32Tensor, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { readModelBytes } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { hadamardRotateReference } from "../../src/ops/hadamard-rotate.js";
import { ExecutionTrace } from "../../src/run/executed-ops.js";
import { type NativeSession, openNativeSession } from "../../src/run/native-session.js";
import { type RotationCase, rotationCase, rotationExcess, rotationFeeds, rotationModel } from "../ops/rotation-case.js";
import { isBuilt, open, output } from "./kernel-sessions.js";

function result(session: NativeSession, feeds: ReadonlyMap<string, Tensor>): Tensor {
  return output(session.run(feeds), "y");
}

const input = (feeds: ReadonlyMap<string, Tensor>): Float64Array => {
  const x = feeds.get("x");
  if (x === undefined) throw new Error("no input");
  return Float64Array.from(toNumbers(x));
};

describe.skipIf(!isBuilt)("HadamardRotate", () => {
  test("runs as a kernel and equals its definition and its function", async () => {
    using trace = new ExecutionTrace();
    let first: NativeSession | null = null;
    for (const [seed, size] of [1536, 12, 7, 160, 1024, 96, 320].entries()) {
      const rotation = rotationCase(size);
      const model = rotationModel(rotation, 3);
      const session = await open(model, 1, first === null ? trace.prefix : undefined);
      first ??= session;
      const body = await openNativeSession(model);
      for (const outer of [
        [1, 1],
        [2, 9],
      ]) {
        const feeds = rotationFeeds(rotation, outer, seed);
        const [x, y] = [input(feeds), result(session, feeds)];
        expect(y.shape).toEqual([...outer, size]);
        const terms = Math.log2(rotation.power) + rotation.order;
        const expected = hadamardRotateReference({ ...rotation, x });
        expect(rotationExcess(rotation, terms, x, toNumbers(y), expected)).toBeLessThanOrEqual(1);
        const { order, power } = rotation;
        const inner = Math.min(power, 64);
        const products = 2 * (order + inner + power / inner);
        const other = Float64Array.from(toNumbers(result(body, feeds)));
        expect(rotationExcess(rotation, terms + products, x, toNumbers(y), other)).toBeLessThanOrEqual(1);
      }
      body.close();
    }
    if (first === null) throw new Error("no session");
    expect(trace.finish(first)).toContain("HadamardRotate");
  });

  test("two threads give the bits of one; a tensor may have any rank, and no rows", async () => {
    const rotation = rotationCase(768);
    for (const outer of [[], [70], [1, 1, 5, 9], [0], [3, 0]]) {
      const model = rotationModel(rotation, outer.length + 1);
      const feeds = rotationFeeds(rotation, outer, 4);
      const one = result(await open(model), feeds);
      expect(one.shape).toEqual([...outer, 768]);
      expect(result(await open(model, 2), feeds).bytes()).toEqual(one.bytes());
    }
  });

  test.each([
    ["power", 3, /HadamardRotate: attribute power is 3; it must be a power of two/],
    ["order", 257, /HadamardRotate: attribute order is 257; it must be between 1 and 256/],
    ["size", 100, /HadamardRotate: attributes order = 12 and power = 4; their product must divide size = 100/],
    ["size", 0, /HadamardRotate: attribute size is 0; it must be between 1 and 2\^30/],
    ["size", null, /HadamardRotate: attribute size \(int\) is missing/],
  ] as const)("attribute %s = %s is refused when the model is loaded", async (name, value, message) => {
    await expect(open(changed(rotationCase(48), name, value))).rejects.toThrow(message);
  });

  test("any wrong shape is refused with a message that names the operator, and the next call works", async () => {
    const rotation = rotationCase(12);
    const session = await open(rotationModel(rotation, 2, true));
    const good = rotationFeeds(rotation, [5], 1);
    const expected = result(session, good).bytes();
    let wrong = 0;
    fc.assert(
      fc.property(
        fc.constantFrom("x", "factor"),
        fc.array(fc.constantFrom(0, 1, 2, 11, 12, 13), { maxLength: 4 }),
        (name, shape) => {
          fc.pre(name === "x" ? shape.at(-1) !== 12 : shape.join() !== "12,12");
          wrong += 1;
          const zeros = new Float32Array(shape.reduce<number>((a, b) => a * b, 1));
          const feeds = new Map([...good, [name, f32Tensor(shape, zeros)]]);
          expect(() => session.run(feeds)).toThrow(/HadamardRotate: input (x|factor) has shape/);
        },
      ),
      { seed: 12, numRuns: 200 },
    );
    expect(wrong).toBeGreaterThan(100);
    expect(result(session, good).bytes()).toEqual(expected);
  });
});

/** A model whose node has one attribute changed, or left off. */
function changed(rotation: RotationCase, name: string, value: number | null): Uint8Array {
  const { model } = readModelBytes(rotationModel(rotation, 2, true));
  const nodes = model.graph.nodes.map((node) => {
    const attributes = new Map(node.attributes);
    if (value === null) attributes.delete(name);
    else attributes.set(name, attr.int(value));
    return { ...node, attributes };
  });
  return encodeModel({ ...model, graph: { ...model.graph, nodes } });
}
