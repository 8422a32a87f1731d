import { expect, test } from "vitest";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import { makeModel } from "../../src/ir/graph.js";
import { type Tensor, tensorFromBytes } from "../../src/ir/tensor.js";
import { encodeModel } from "../../src/onnx/write.js";
import { openSession } from "../../src/run/session.js";

const floats = (...values: readonly number[]): { readonly values: Float32Array; readonly tensor: Tensor } => {
  const own = Float32Array.from(values);
  return { values: own, tensor: tensorFromBytes("f32", [values.length], new Uint8Array(own.buffer)) };
};

test("tensors given for outputs are written to, and no other outputs come", async () => {
  const builder = new GraphBuilder("");
  builder.op("Add", ["a", "b"], {}, "sum");
  builder.op("Mul", ["a", "b"], {}, "product");
  const value = (name: string): ReturnType<typeof typed> => typed(name, "f32", [2]);
  const graph = builder.graph("g", [value("a"), value("b")], [value("sum"), value("product")]);
  const session = await openSession(encodeModel(makeModel(graph, { opsets: new Map([["", 21]]) })));
  const feeds = new Map([
    ["a", floats(2, 3).tensor],
    ["b", floats(5, 7).tensor],
  ]);
  const mine = floats(0, 0);
  const results = await session.run(feeds, new Map([["product", mine.tensor]]));
  expect([...results.keys()]).toEqual(["product"]);
  expect([...mine.values]).toEqual([10, 21]);
  expect([...(await session.run(feeds, ["sum"])).keys()]).toEqual(["sum"]);
  expect([...(await session.run(feeds)).keys()]).toEqual(["sum", "product"]);
  await session.release();
});
