/** The function of the rotation in ONNX Runtime, and its float64 definition, against the fast transform. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { f32Tensor, toNumbers } from "../../src/ir/tensor.js";
import { hadamardRotation, rotateRows } from "../../src/linalg/hadamard.js";
import { readModelBytes } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { hadamardRotateReference } from "../../src/ops/hadamard-rotate.js";
import { openNativeSession } from "../../src/run/native-session.js";
import { openSession } from "../../src/run/session.js";
import { scratchFolder } from "../support/count-model.js";
import { rotationCase, rotationExcess, rotationFeeds, rotationModel } from "./rotation-case.js";
import { Noise, relativeError } from "./scan-case.js";

/** Powers of two, dense factors of several orders, two products for one power, blocks, and no mixing at all. */
const SIZES = [1, 2, 7, 8, 12, 48, 64, 80, 96, 128, 160, 184, 192, 256, 768, 1024, 1536, 2560];

test("the definition is the fast transform", () => {
  for (const size of SIZES.filter((candidate) => candidate < 300)) {
    const rotation = rotationCase(size);
    const x = Float64Array.from(new Noise(size).normals(3 * size));
    const expected = x.slice();
    rotateRows(expected, hadamardRotation(size), "forward");
    expect(relativeError(hadamardRotateReference({ ...rotation, x }), expected)).toBeLessThan(1e-13);
  }
});

test("the function equals the definition, for any lengths", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...SIZES),
      // Not 0: ONNX Runtime 1.30 multiplies no matrix with an empty batch of them.
      fc.array(fc.integer({ min: 1, max: 4 }), { maxLength: 3 }),
      fc.constantFrom("disabled" as const, "all" as const),
      fc.nat(),
      async (size, outer, optimization, seed) => {
        const rotation = rotationCase(size);
        const feeds = rotationFeeds(rotation, outer, seed);
        const session = await openSession(rotationModel(rotation, outer.length + 1), { optimization });
        const y = (await session.run(feeds)).get("y");
        await session.release();
        const x = toNumbers(feeds.get("x") ?? rotationFeeds(rotation, [], 0).get("x")!);
        const expected = Float64Array.from(x);
        rotateRows(expected, hadamardRotation(size), "forward");
        if (y === undefined) throw new Error("no output");
        expect(y.shape).toEqual([...outer, size]);
        // Products sum order + 64 + 64 rounded terms at most, whose matrices are rounded too.
        const { order, power } = rotation;
        const terms = 2 * (order + Math.min(power, 64) + power / Math.min(power, 64));
        expect(rotationExcess(rotation, terms, x, toNumbers(y), expected)).toBeLessThanOrEqual(1);
      },
    ),
    { numRuns: 80, seed: 71 },
  );
});

test("a runtime that folds constants is left with products and layout changes", async () => {
  for (const [size, products] of [
    [1024, 2],
    [1536, 3],
    [64, 1],
    [768, 2],
  ] as const) {
    const path = join(scratchFolder(), `optimized-${size}.onnx`);
    const rotation = rotationCase(size);
    const { model } = readModelBytes(rotationModel(rotation, 3));
    const { order, factor } = rotation;
    const initializers = new Map([["factor", f32Tensor([order, order], factor)]]);
    const inputs = model.graph.inputs.filter(({ name }) => name !== "factor");
    const bytes = encodeModel({ ...model, graph: { ...model.graph, inputs, initializers } });
    const session = await openNativeSession(bytes, { optimizedModelPath: path });
    session.close();
    const { nodes } = readModelBytes(readFileSync(path)).model.graph;
    expect(nodes.filter(({ op }) => op === "MatMul").length).toBe(products);
    // Of a power of two, the factor is a number: one multiplication is left, or none.
    expect(nodes.filter(({ op }) => !/^(MatMul|Reshape|Shape|Concat|Slice|Mul)$/.test(op))).toEqual([]);
  }
});
