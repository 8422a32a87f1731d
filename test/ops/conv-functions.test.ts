/** The convolution functions against the float64 reference, in ONNX Runtime. */

import fc from "fast-check";
import { expect, test } from "vitest";
import { f32Tensor, toNumbers } from "../../src/ir/tensor.js";
import { tensorType } from "../../src/ir/types.js";
import { convNode } from "../../src/ops/nodes.js";
import { causalConvReference } from "../../src/ops/reference.js";
import { openSession } from "../../src/run/session.js";
import { convCase, joinedParts } from "./conv-case.js";
import { Noise, oneNodeModel, relativeError } from "./scan-case.js";

const INPUTS = ["x", "weight", "bias", "past"];

test.each(["none", "silu"] as const)("CausalConv with activation %s equals the reference", async (activation) => {
  let single = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        batch: fc.integer({ min: 1, max: 3 }),
        channels: fc.integer({ min: 1, max: 20 }),
        length: fc.oneof(fc.constant(1), fc.integer({ min: 2, max: 20 })),
        kernelSize: fc.integer({ min: 1, max: 6 }),
        extra: fc.integer({ min: 0, max: 2 }),
        optimization: fc.constantFrom("disabled", "all"),
        seed: fc.nat(),
      }),
      async ({ batch, channels, length, kernelSize, extra, optimization, seed }) => {
        if (length === 1) single += 1;
        const stateWidth = kernelSize - 1 + extra;
        const noise = new Noise(seed);
        const x = noise.normals(batch * channels * length, 2);
        const weight = noise.normals(channels * kernelSize);
        const bias = noise.normals(channels);
        const past = noise.normals(batch * channels * stateWidth);
        const node = convNode({ activation, channels, kernelSize, stateWidth }, INPUTS, ["y", "present"]);
        const types = new Map([
          ["x", tensorType("f32", ["batch", channels, "length"])],
          ["weight", tensorType("f32", [channels, 1, kernelSize])],
          ["bias", tensorType("f32", [channels])],
          ["past", tensorType("f32", ["batch", channels, stateWidth])],
          ["y", tensorType("f32", ["batch", channels, "length"])],
          ["present", tensorType("f32", ["batch", channels, stateWidth])],
        ]);
        const session = await openSession(oneNodeModel(node, INPUTS, ["y", "present"], types), { optimization });
        const outputs = await session.run(
          new Map([
            ["x", f32Tensor([batch, channels, length], x)],
            ["weight", f32Tensor([channels, 1, kernelSize], weight)],
            ["bias", f32Tensor([channels], bias)],
            ["past", f32Tensor([batch, channels, stateWidth], past)],
          ]),
        );
        await session.release();
        const expected = causalConvReference({
          batch,
          channels,
          length,
          kernelSize,
          stateWidth,
          activation,
          x,
          weight,
          bias,
          past,
        });
        const [y, present] = [outputs.get("y"), outputs.get("present")];
        if (y === undefined || present === undefined) throw new Error("the convolution gave no outputs");
        expect(y.shape).toEqual([batch, channels, length]);
        expect(relativeError(toNumbers(y), expected.y)).toBeLessThanOrEqual(1e-6);
        expect(present.shape).toEqual([batch, channels, stateWidth]);
        expect([...toNumbers(present)]).toEqual([...expected.state]);
      },
    ),
    { numRuns: 150, seed: 61 },
  );
  expect(single).toBeGreaterThan(30);
});

test.each(["rows", "split"] as const)("convolutions with tokens as %s equal the reference", async (layout) => {
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        batch: fc.integer({ min: 1, max: 3 }),
        channels: fc.integer({ min: 3, max: 20 }),
        length: fc.oneof(fc.constant(1), fc.integer({ min: 2, max: 20 })),
        kernelSize: fc.integer({ min: 1, max: 6 }),
        extra: fc.integer({ min: 0, max: 2 }),
      }),
      fc.constantFrom("none" as const, "silu" as const),
      fc.constantFrom("disabled" as const, "all" as const),
      fc.boolean(),
      fc.nat(),
      async ({ extra, ...rest }, activation, optimization, free, seed) => {
        const sizes = { ...rest, stateWidth: rest.kernelSize - 1 + extra };
        const drawn = convCase(layout, activation, sizes, seed, free);
        const session = await openSession(drawn.model, { optimization });
        const outputs = await session.run(drawn.feeds);
        await session.release();
        const present = outputs.get("present");
        if (present === undefined) throw new Error("the convolution gave no state");
        expect(relativeError(joinedParts(outputs, drawn, layout, sizes), drawn.expected.y)).toBeLessThanOrEqual(1e-6);
        expect([...toNumbers(present)]).toEqual([...drawn.expected.state]);
      },
    ),
    { numRuns: 80, seed: 67 },
  );
});
