/** The LinearAttention form of a scan against the float64 reference, in ONNX Runtime. */

import fc from "fast-check";
import { expect, test } from "vitest";
import { GraphBuilder } from "../../src/ir/builder.js";
import { makeModel, makeValue, type ValueInfo } from "../../src/ir/graph.js";
import { f32Tensor, toNumbers } from "../../src/ir/tensor.js";
import { type Shape, tensorType } from "../../src/ir/types.js";
import { encodeModel } from "../../src/onnx/write.js";
import { emitLinearAttention } from "../../src/ops/linear-attention.js";
import { openSession } from "../../src/run/session.js";
import { randomData, referenceScan, relativeError, type ScanSizes, scanFeeds } from "./scan-case.js";

const SPEC = { family: "mamba2", format: "f32", scale: "dsq", requantize: "call" } as const;
const INPUTS = ["x", "dt", "A", "B", "C", "D", "dt_bias", "past"];

function model(s: ScanSizes, stateLayout: "PN" | "NP"): Uint8Array {
  const { heads, headDim, dState, groups, dtMin, dtMax } = s;
  const builder = new GraphBuilder("");
  const outputs = ["y", "present"];
  emitLinearAttention(builder, {
    inputs: INPUTS,
    outputs,
    heads,
    headDim,
    dState,
    groups,
    dtMin,
    dtMax,
    stateLayout,
  });
  const value = (name: string, shape: Shape): ValueInfo => makeValue(name, tensorType("f32", shape));
  const state = ["batch", heads, ...(stateLayout === "PN" ? [headDim, dState] : [dState, headDim])];
  const graph = builder.graph(
    "scan",
    [
      value("x", ["batch", "length", heads, headDim]),
      value("dt", ["batch", "length", heads]),
      value("A", [heads]),
      value("B", ["batch", "length", groups, dState]),
      value("C", ["batch", "length", groups, dState]),
      value("D", [heads, headDim]),
      value("dt_bias", [heads]),
      value("past", state),
    ],
    [value("y", ["batch", "length", heads, headDim]), value("present", state)],
  );
  return encodeModel(
    makeModel(graph, {
      opsets: new Map([
        ["", 21],
        ["com.microsoft", 1],
      ]),
    }),
  );
}

/** [.., rows, columns] -> [.., columns, rows]. */
function transpose(values: ArrayLike<number>, rows: number, columns: number): Float32Array {
  const out = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const [block, row, column] = [Math.floor(i / (rows * columns)), Math.floor(i / columns) % rows, i % columns];
    out[block * rows * columns + column * rows + row] = values[i] ?? Number.NaN;
  }
  return out;
}

test.each(["PN", "NP"] as const)("LinearAttention with a %s state equals the reference", async (layout) => {
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        batch: fc.integer({ min: 1, max: 3 }),
        length: fc.integer({ min: 1, max: 12 }),
        groups: fc.integer({ min: 1, max: 4 }),
        perGroup: fc.integer({ min: 1, max: 3 }),
        headDim: fc.integer({ min: 1, max: 9 }),
        dState: fc.integer({ min: 1, max: 9 }),
        bounded: fc.boolean(),
        seed: fc.nat(),
      }),
      async ({ perGroup, bounded, seed, ...rest }) => {
        const s: ScanSizes = {
          ...rest,
          heads: perGroup * rest.groups,
          chunkSize: 4,
          dtMin: bounded ? 0.01 : Number.NEGATIVE_INFINITY,
          dtMax: bounded ? 0.5 : Number.POSITIVE_INFINITY,
        };
        const data = randomData(SPEC, s, seed);
        const feeds = scanFeeds(SPEC, s, data);
        if (layout === "NP") {
          const past = transpose(data.past, s.headDim, s.dState);
          feeds.set("past", f32Tensor([s.batch, s.heads, s.dState, s.headDim], past));
        }
        const session = await openSession(model(s, layout));
        const outputs = await session.run(feeds);
        await session.release();
        const expected = referenceScan(SPEC, s, data);
        const [y, present] = [outputs.get("y"), outputs.get("present")];
        if (y === undefined || present === undefined) throw new Error("the scan gave no outputs");
        const state = toNumbers(present);
        expect(relativeError(toNumbers(y), expected.y)).toBeLessThanOrEqual(1e-5);
        const natural = layout === "PN" ? state : transpose(state, s.dState, s.headDim);
        expect(relativeError(natural, expected.state)).toBeLessThanOrEqual(1e-5);
      },
    ),
    { numRuns: 60, seed: 71 },
  );
});
