import { expect, test } from "vitest";
import { makeFunction, typed, untyped } from "../../src/ir/builder.js";
import {
  attr,
  type FunctionDef,
  type Graph,
  type Model,
  makeModel,
  makeNode,
  makeValue,
  type Node,
} from "../../src/ir/graph.js";
import { f32Tensor, stringTensor, type Tensor } from "../../src/ir/tensor.js";
import { type Diagnostic, formatDiagnostic, VERIFY_RULES, type VerifyRule, verifyModel } from "../../src/ir/verify.js";
import { readModel } from "../../src/onnx/read.js";
import { FIXTURE_MODELS, fixture } from "../support/fixture-models.js";

function graph(nodes: readonly Node[], rest: Partial<Graph> = {}): Graph {
  return {
    name: "g",
    doc: "",
    inputs: [typed("x", "f32", [2])],
    outputs: [untyped("y")],
    nodes,
    initializers: new Map(),
    valueInfo: new Map(),
    metadata: new Map(),
    ...rest,
  };
}

function model(
  main: Graph,
  functions: readonly FunctionDef[] = [],
  opsets: readonly (readonly [string, number])[] = [],
): Model {
  return makeModel(main, { opsets: new Map([["", 20], ...opsets]), functions });
}

/** y = If(c) { x + w } else { x }, with captures of inputs, initialisers and an earlier output. */
function branches(inner: Graph): Graph {
  const bypass = graph([makeNode("Identity", ["x"], ["e"])], { inputs: [], outputs: [untyped("e")] });
  const attributes = new Map([
    ["then_branch", attr.graph(inner)],
    ["else_branch", attr.graph(bypass)],
  ]);
  return graph([makeNode("Neg", ["x"], ["n"]), makeNode("If", ["c"], ["y"], attributes)], {
    inputs: [typed("x", "f32", [2]), typed("c", "bool", [])],
    initializers: new Map([["w", f32Tensor([2], [1, 2])]]),
  });
}

const thenBranch = graph([makeNode("Add", ["n", "w"], ["t"])], { inputs: [], outputs: [untyped("t")] });

function fn(name: string, nodes: readonly Node[], rest: Partial<FunctionDef> = {}): FunctionDef {
  const signature = { inputs: ["a"], outputs: ["b"], attributes: [] };
  return {
    ...makeFunction(
      "acme",
      name,
      signature,
      nodes,
      new Map([
        ["", 20],
        ["acme", 1],
      ]),
      "",
    ),
    ...rest,
  };
}

const double = fn("Double", [makeNode("Add", ["a", "a"], ["b"])]);
const call = makeNode("Double", ["x"], ["y"], new Map(), { domain: "acme" });

test("sound models have no diagnostics", () => {
  expect(verifyModel(model(graph([makeNode("Neg", ["x"], ["y"])])))).toEqual([]);
  expect(verifyModel(model(graph([], { outputs: [untyped("x")] })))).toEqual([]);
  expect(verifyModel(model(graph([makeNode("Clip", ["x", "", ""], ["y", ""])])))).toEqual([]);
  expect(verifyModel(model(branches(thenBranch)))).toEqual([]);
  expect(verifyModel(model(graph([call]), [double], [["acme", 1]]))).toEqual([]);
  const withDefault = graph([makeNode("Neg", ["x"], ["y"])], {
    initializers: new Map([["x", f32Tensor([2], [1, 2])]]),
  });
  expect(verifyModel(model(withDefault))).toEqual([]);
});

test.each(FIXTURE_MODELS)("%s is sound", (name) => {
  expect(verifyModel(readModel(fixture(name)).model)).toEqual([]);
});

const short: Tensor = { ...f32Tensor([2], [1, 2]), dtype: "f32", shape: [3], byteLength: 8, strings: null };
const fewStrings: Tensor = {
  ...stringTensor([1], [Uint8Array.of(1)]),
  dtype: "string",
  shape: [2],
  byteLength: 1,
  strings: [Uint8Array.of(1)],
};
const neg = makeNode("Neg", ["x"], ["y"]);

/** Each rule with the corruptions it catches, alone. */
const CORRUPTIONS: readonly (readonly [VerifyRule, string, Model])[] = [
  ["unique-names", "two nodes make y", model(graph([neg, makeNode("Abs", ["x"], ["y"])]))],
  ["unique-names", "a node makes one name twice", model(graph([makeNode("Split", ["x"], ["y", "y"])]))],
  [
    "unique-names",
    "a node makes an input",
    model(graph([makeNode("Neg", ["w"], ["x"]), neg], { initializers: new Map([["w", f32Tensor([2], [1, 2])]]) })),
  ],
  [
    "unique-names",
    "a node makes an initialiser",
    model(graph([neg], { initializers: new Map([["y", f32Tensor([], [1])]]) })),
  ],
  ["unique-names", "two inputs of a name", model(graph([neg], { inputs: [untyped("x"), untyped("x")] }))],
  [
    "unique-names",
    "a subgraph hides an outer name",
    model(branches(graph([makeNode("Add", ["x", "w"], ["n"])], { inputs: [], outputs: [untyped("n")] }))),
  ],
  [
    "unique-names",
    "a function makes its input",
    model(
      graph([call]),
      [fn("Double", [makeNode("Add", ["a", "a"], ["b"]), makeNode("Neg", ["b"], ["a"])])],
      [["acme", 1]],
    ),
  ],
  ["order", "a reader comes first", model(graph([makeNode("Neg", ["a"], ["y"]), makeNode("Abs", ["x"], ["a"])]))],
  [
    "order",
    "a subgraph reads what comes later",
    model({ ...branches(thenBranch), nodes: branches(thenBranch).nodes.toReversed() }),
  ],
  [
    "cycle",
    "two nodes need each other",
    model(graph([makeNode("Add", ["x", "y"], ["a"]), makeNode("Neg", ["a"], ["y"])])),
  ],
  ["cycle", "a node needs itself", model(graph([makeNode("Add", ["x", "y"], ["y"])]))],
  [
    "cycle",
    "a function needs itself through its nodes",
    model(graph([call]), [fn("Double", [makeNode("Add", ["a", "b"], ["b"])])], [["acme", 1]]),
  ],
  ["dangling", "a node reads nothing", model(graph([makeNode("Add", ["x", "gone"], ["y"])]))],
  [
    "dangling",
    "a function reads a value of the main graph",
    model(graph([call]), [fn("Double", [makeNode("Add", ["a", "x"], ["b"])])], [["acme", 1]]),
  ],
  [
    "captures",
    "a subgraph reads nothing",
    model(branches(graph([makeNode("Add", ["x", "gone"], ["t"])], { inputs: [], outputs: [untyped("t")] }))),
  ],
  [
    "captures",
    "a subgraph reads from its neighbour",
    model(branches(graph([makeNode("Add", ["x", "e"], ["t"])], { inputs: [], outputs: [untyped("t")] }))),
  ],
  ["outputs", "nobody makes the output", model(graph([makeNode("Neg", ["x"], ["z"])]))],
  [
    "outputs",
    "a subgraph's output is an outer value",
    model(branches(graph([], { inputs: [], outputs: [untyped("x")] }))),
  ],
  [
    "outputs",
    "nobody makes a function's output",
    model(graph([call]), [fn("Double", [makeNode("Neg", ["a"], ["c"])])], [["acme", 1]]),
  ],
  ["tensor-size", "an initialiser is short", model(graph([neg], { initializers: new Map([["w", short]]) }))],
  [
    "tensor-size",
    "an initialiser has too few strings",
    model(graph([neg], { initializers: new Map([["w", fewStrings]]) })),
  ],
  [
    "tensor-size",
    "a constant is short",
    model(graph([neg, makeNode("Constant", [], ["k"], new Map([["value", attr.tensor(short)]]))])),
  ],
  [
    "tensor-size",
    "a tensor of a list is short",
    model(graph([makeNode("Neg", ["x"], ["y"], new Map([["l", { kind: "tensors", value: [short] }]]))])),
  ],
  [
    "initializer-type",
    "another shape than the input's",
    model(graph([neg], { initializers: new Map([["x", f32Tensor([3], [1, 2, 3])]]) })),
  ],
  [
    "initializer-type",
    "another rank",
    model(graph([neg], { initializers: new Map([["x", f32Tensor([2, 1], [1, 2])]]) })),
  ],
  [
    "initializer-type",
    "another element type",
    model(
      graph([neg], {
        initializers: new Map([["w", f32Tensor([], [1])]]),
        valueInfo: new Map([["w", typed("w", "i64", [])]]),
      }),
    ),
  ],
  [
    "initializer-type",
    "a sequence",
    model(
      graph([neg], {
        initializers: new Map([["w", f32Tensor([], [1])]]),
        valueInfo: new Map([["w", makeValue("w", { kind: "sequence", element: null })]]),
      }),
    ),
  ],
  ["opsets", "the main domain", { ...model(graph([neg])), opsets: new Map() }],
  ["opsets", "a function's domain", model(graph([call]), [double])],
  [
    "opsets",
    "in a function",
    model(graph([call]), [fn("Double", [makeNode("Add", ["a", "a"], ["b"])], { opsets: new Map() })], [["acme", 1]]),
  ],
  [
    "opsets",
    "in a subgraph",
    model(
      branches(
        graph([makeNode("Gelu", ["x"], ["t"], new Map(), { domain: "com.microsoft" })], {
          inputs: [],
          outputs: [untyped("t")],
        }),
      ),
    ),
  ],
  [
    "calls",
    "no such function",
    model(graph([makeNode("Triple", ["x"], ["y"], new Map(), { domain: "acme" })]), [double], [["acme", 1]]),
  ],
  ["calls", "no such overload", model(graph([{ ...call, overload: "f64" }]), [double], [["acme", 1]])],
  ["functions", "two of a name", model(graph([call]), [double, double], [["acme", 1]])],
  [
    "functions",
    "a function calls itself",
    model(
      graph([call]),
      [fn("Double", [makeNode("Double", ["a"], ["b"], new Map(), { domain: "acme" })])],
      [["acme", 1]],
    ),
  ],
  [
    "functions",
    "two functions call each other",
    model(
      graph([call]),
      [
        fn("Double", [makeNode("Twice", ["a"], ["b"], new Map(), { domain: "acme" })]),
        fn("Twice", [makeNode("Double", ["a"], ["b"], new Map(), { domain: "acme" })]),
      ],
      [["acme", 1]],
    ),
  ],
  [
    "references",
    "outside a function",
    model(graph([makeNode("Neg", ["x"], ["y"], new Map([["k", attr.ref("alpha", "float")]]))])),
  ],
  [
    "references",
    "to no attribute of the function",
    model(
      graph([call]),
      [
        fn("Double", [makeNode("Add", ["a", "a"], ["b"], new Map([["k", attr.ref("beta", "float")]]))], {
          attributes: ["alpha"],
        }),
      ],
      [["acme", 1]],
    ),
  ],
];

test.each(CORRUPTIONS)("%s catches: %s", (rule, _, corrupt) => {
  const found = verifyModel(corrupt);
  expect(found.map((diagnostic) => diagnostic.rule)).toContain(rule);
  // A corruption of names may break a second rule as well, but never goes unnoticed by its own.
  expect(new Set(found.map((diagnostic) => diagnostic.rule)).size).toBeLessThanOrEqual(2);
});

test("every rule has a corruption", () => {
  expect(new Set(CORRUPTIONS.map(([rule]) => rule))).toEqual(new Set(Object.keys(VERIFY_RULES)));
});

test("references to attributes of the function and to their defaults are sound", () => {
  const attributes = new Map([
    ["k", attr.ref("alpha", "float")],
    ["l", attr.ref("beta", "float")],
  ]);
  const body = [makeNode("Add", ["a", "a"], ["b"], attributes)];
  const withAttributes = fn("Double", body, {
    attributes: ["alpha"],
    attributeDefaults: new Map([["beta", attr.float(1)]]),
  });
  expect(verifyModel(model(graph([call]), [withAttributes], [["acme", 1]]))).toEqual([]);
});

test("an operator of an unknown domain is a warning, an overload an error", () => {
  const severity = (node: Node): Diagnostic["severity"][] =>
    verifyModel(model(graph([node]), [], [["acme", 1]])).map((diagnostic) => diagnostic.severity);
  expect(severity(call)).toEqual(["warning"]);
  expect(severity({ ...call, overload: "f64" })).toEqual(["error"]);
});

test("messages say where", () => {
  const inner = graph([{ ...makeNode("Add", ["x", "gone"], ["t"]), name: "sum" }], {
    inputs: [],
    outputs: [untyped("t")],
  });
  expect(verifyModel(model(branches(inner))).map(formatDiagnostic)).toEqual([
    'the main graph, "then_branch" of node 1 (If): node 0 (Add "sum") reads "gone", which nothing defines [captures]',
  ]);
});
