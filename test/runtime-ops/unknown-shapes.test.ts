/** Kernels in graphs whose shapes ONNX Runtime cannot work out before it runs them. */

import { describe, expect, test } from "vitest";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import { makeModel } from "../../src/ir/graph.js";
import { f32Tensor, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { encodeModel } from "../../src/onnx/write.js";
import { opFunction } from "../../src/ops/functions.js";
import { OP_DOMAIN, OP_VERSION } from "../../src/ops/names.js";
import { convNode } from "../../src/ops/nodes.js";
import { openSession } from "../../src/run/session.js";
import { isBuilt, open, output } from "./kernel-sessions.js";

const CHANNELS = 4;

/** x [b, 8, l]: the first half of the channels, cut at a computed place, is convolved and laid out as rows of tokens. */
function halvedModel(): Uint8Array {
  const b = new GraphBuilder("");
  const channels = b.op("Gather", [b.op("Shape", ["x"]), b.ints([1])], { axis: 0 });
  const half = b.op("Div", [channels, b.ints([2])]);
  const x = b.op("Slice", ["x", b.ints([0]), half, b.ints([1])]);
  const shape = b.op("Concat", [b.op("Shape", [x], { start: 0, end: 1 }), b.ints([CHANNELS, 2])], { axis: 0 });
  const past = b.op("Expand", [b.initializer(f32Tensor([], [0])), shape]);
  const weight = b.initializer(
    f32Tensor(
      [CHANNELS, 1, 3],
      Array.from({ length: 12 }, (_, at) => 0.1 * at - 0.4),
    ),
  );
  const bias = b.initializer(f32Tensor([CHANNELS], [0.1, -0.2, 0.3, 0]));
  const params = { activation: "silu", channels: CHANNELS, kernelSize: 3, stateWidth: 2 } as const;
  b.nodes.push(convNode(params, [x, weight, bias, past], ["y", "present"]));
  // The second one sees a shape of which not even the rank is known.
  b.nodes.push(convNode(params, ["y", weight, bias, past], ["z", "present2"]));
  const tokens = b.op("Transpose", ["z"], { perm: [0, 2, 1] });
  b.op("Reshape", [tokens, b.ints([-1, CHANNELS])], { allowzero: 0 }, "rows");
  const graph = b.graph("halved", [typed("x", "f32", ["b", 8, "l"])], [typed("rows", "f32", [null, CHANNELS])]);
  const opsets = new Map([
    ["", 21],
    [OP_DOMAIN, OP_VERSION],
  ]);
  return encodeModel(makeModel(graph, { opsets, functions: [opFunction("CausalConvSilu")] }));
}

describe.skipIf(!isBuilt)("kernels where shapes are unknown", () => {
  test("a convolution of a part cut at a computed place equals its function", async () => {
    const model = halvedModel();
    const feeds = new Map<string, Tensor>([
      [
        "x",
        f32Tensor(
          [2, 8, 5],
          Array.from({ length: 80 }, (_, at) => Math.sin(at)),
        ),
      ],
    ]);
    const session = await openSession(model);
    const expected = toNumbers(output(await session.run(feeds), "rows"));
    await session.release();
    const actual = toNumbers(output((await open(model)).run(feeds), "rows"));
    expect(actual).toHaveLength(40);
    for (const [at, wanted] of expected.entries()) expect(actual[at]).toBeCloseTo(wanted, 5);
  });
});
