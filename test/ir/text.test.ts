import { expect, test } from "vitest";
import { GraphBuilder, makeFunction, typed, untyped } from "../../src/ir/builder.js";
import { attr, type Graph, makeNode } from "../../src/ir/graph.js";
import {
  boolTensor,
  f32Tensor,
  i64Tensor,
  stringTensor,
  type Tensor,
  tensorFromBytes,
  tensorFromSource,
} from "../../src/ir/tensor.js";
import { formatFunction, formatGraph, formatModel, formatTensor } from "../../src/ir/text.js";
import { readModel } from "../../src/onnx/read.js";
import { FIXTURE_MODELS, fixture } from "../support/fixture-models.js";

const encoder = new TextEncoder();

function sampleGraph(prefix: string): Graph {
  const b = new GraphBuilder(prefix);
  const w = b.initializer(
    f32Tensor(
      [3, 4],
      Array.from({ length: 12 }, (_, i) => i / 8 - 0.5),
    ),
    "w",
  );
  const unused = b.initializer(i64Tensor([1], [7]), "unused");
  const body = new GraphBuilder(`${prefix}body_`);
  const step = body.op("Add", [`${prefix}h`, w]);
  const t = b.op("MatMul", [`${prefix}x`, w], {}, `${prefix}t`);
  b.nodes.push(
    makeNode(
      "Scan",
      [t, ""],
      [`${prefix}y`, ""],
      new Map([
        ["body", attr.graph(body.graph("body", [untyped(`${prefix}h`)], [untyped(step)]))],
        ["num_scan_inputs", attr.int(1)],
        ["axes", attr.ints([0, -1])],
        ["scale", attr.float(0.1)],
        ["mode", attr.string('a"b')],
        ["k", attr.tensor(f32Tensor([2], [1, -0]))],
      ]),
      { domain: "", name: `${prefix}loop`, metadata: new Map([["origin", "/layers.0"]]) },
    ),
  );
  expect(unused).toContain("unused");
  const graph = b.graph("main", [typed(`${prefix}x`, "f32", ["B", "L", 3])], [typed(`${prefix}y`, "f32", null)]);
  return { ...graph, valueInfo: new Map([[`${prefix}t`, typed(`${prefix}t`, "f32", ["B", null, 4])]]) };
}

test("dense text", () => {
  expect(formatGraph(sampleGraph("a_"))).toMatchInlineSnapshot(`
    "graph(%0: f32[B,L,3]) -> (%2: f32[*])
      $0: f32[3,4] #53b32fb8 -0.5 -0.375 -0.25 ...
      $1: i64[1] (7)
      %1 = MatMul(%0, $0) : f32[B,?,4]
      %2, _ = Scan(%1, _) {num_scan_inputs=1, axes=[0, -1], scale=0.1, mode="a\\"b", k=f32[2] (1, -0)} : f32[*], ?
        body = graph(%3: ?) -> (%4: ?)
          %4 = Add(%3, $0)
    "
  `);
});

test("text with names and comments", () => {
  expect(formatGraph(sampleGraph("a_"), { dense: false, comments: true })).toMatchInlineSnapshot(`
    "graph(%a_x: f32[B,L,3]) -> (%a_y: f32[*])
      $a_w_1: f32[3,4] #53b32fb8 -0.5 -0.375 -0.25 ...
      $a_unused_2: i64[1] (7)
      %a_t = MatMul(%a_x, $a_w_1) : f32[B,?,4]
      %a_y, _ = Scan(%a_t, _) {num_scan_inputs=1, axes=[0, -1], scale=0.1, mode="a\\"b", k=f32[2] (1, -0)} : f32[*], ?  ; a_loop origin="/layers.0"
        body = graph(%a_h: ?) -> (%a_body_add_1: ?)
          %a_body_add_1 = Add(%a_h, $a_w_1)
    "
  `);
});

test("dense text with comments tells the names", () => {
  expect(formatGraph(sampleGraph("a_"), { comments: true })).toMatchInlineSnapshot(`
    "graph(%0 a_x: f32[B,L,3]) -> (%2 a_y: f32[*])
      $0: f32[3,4] #53b32fb8 -0.5 -0.375 -0.25 ...  ; a_w_1
      $1: i64[1] (7)  ; a_unused_2
      %1 = MatMul(%0, $0) : f32[B,?,4]
      %2, _ = Scan(%1, _) {num_scan_inputs=1, axes=[0, -1], scale=0.1, mode="a\\"b", k=f32[2] (1, -0)} : f32[*], ?  ; a_loop origin="/layers.0"
        body = graph(%3 a_h: ?) -> (%4 a_body_add_1: ?)
          %4 = Add(%3, $0)
    "
  `);
});

test("dense text does not depend on names", () => {
  expect(formatGraph(sampleGraph("another/"))).toBe(formatGraph(sampleGraph("a_")));
});

test("functions", () => {
  const b = new GraphBuilder("f_");
  b.nodes.push(makeNode("Scale", ["x"], ["y"], new Map([["alpha", attr.ref("alpha", "float")]]), { domain: "acme" }));
  const signature = { inputs: ["x"], outputs: ["y"], attributes: ["beta"] };
  const fn = makeFunction(
    "com.mambac",
    "F",
    signature,
    b.nodes,
    new Map([
      ["", 20],
      ["acme", 1],
    ]),
    "",
  );
  const withDefault = { ...fn, overload: "v2", attributeDefaults: new Map([["alpha", attr.float(0.5)]]) };
  expect(formatFunction(withDefault)).toBe(
    [
      "function com.mambac.F:v2(%0) {beta, alpha=0.5} -> (%1) opset 20, acme 1",
      "  %1 = acme.Scale(%0) {alpha=@alpha}",
      "",
    ].join("\n"),
  );
});

test.each<[string, Tensor]>([
  ["f32[] (0.1)", f32Tensor([], [0.1])],
  ["f32[4] (-0, NaN, Infinity, 1e-45)", f32Tensor([4], [-0, Number.NaN, Number.POSITIVE_INFINITY, 2 ** -149])],
  ["f32[2] (16777216, 0.33333334)", f32Tensor([2], [2 ** 24, 1 / 3])],
  ["i64[2] (9223372036854775807, -9223372036854775808)", i64Tensor([2], [2n ** 63n - 1n, -(2n ** 63n)])],
  ["bool[2] (1, 0)", boolTensor([2], [true, false])],
  ["f32[0,3] ()", f32Tensor([0, 3], [])],
  ['string[2] ("a", "\\n")', stringTensor([2], [encoder.encode("a"), encoder.encode("\n")])],
  ["f64[1] (0.1)", tensorFromBytes("f64", [1], new Uint8Array(Float64Array.of(0.1).buffer))],
  ["f16[1] (1.5)", tensorFromBytes("f16", [1], Uint8Array.of(0, 0x3e))],
])("%s", (text, tensor) => {
  expect(formatTensor(tensor)).toBe(text);
});

test("large tensors have a hash of their content, whatever their residence", () => {
  const data = Float32Array.from({ length: 100 }, (_, i) => i);
  const memory = f32Tensor([100], data);
  const source = { read: (offset: number, length: number) => memory.slice(offset, offset + length) };
  const text = formatTensor(memory);
  expect(text).toMatch(/^f32\[100\] #[0-9a-f]{8} 0 1 2 \.\.\.$/);
  expect(formatTensor(tensorFromSource("f32", [100], source, 0, "file"))).toBe(text);
  expect(formatTensor(tensorFromSource("f32", [100], source, 0, "lazy"))).toBe(text);
  expect(formatTensor(f32Tensor([100], data.with(99, 1)))).not.toBe(text);
  expect(formatTensor(tensorFromBytes("i4", [3], Uint8Array.of(1, 2)))).toMatch(/^i4\[3\] #[0-9a-f]{8}$/);
});

test.each(FIXTURE_MODELS)("%s has a line for each node and names nothing unknown", (name) => {
  const { model } = readModel(fixture(name));
  const text = formatModel(model);
  expect(text).not.toContain("?%");
  expect(text).not.toMatch(/[(,] ?\?[^,\])]/);
  expect(
    text.split("\n").filter((line) => line.startsWith("  ") && !line.startsWith("   ") && line.includes(" = ")).length,
  ).toBe(model.graph.nodes.length);
});
