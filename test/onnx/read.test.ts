import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import { type Graph, type Model, makeModel, makeNode } from "../../src/ir/graph.js";
import { readModel, readModelBytes } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { fixture } from "../support/fixture-models.js";
import { field, intField, tinyModel } from "../support/wire.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-read-"));
afterAll(() => rmSync(folder, { recursive: true }));

function refusal(code: string, exitCode: number, message: RegExp): unknown {
  return expect.objectContaining({ code, exitCode, message: expect.stringMatching(message) });
}

describe("a tiny model", () => {
  test("reads without warnings", () => {
    const { model, warnings } = readModelBytes(tinyModel());
    expect(warnings).toEqual([]);
    expect(model.opsets).toEqual(new Map([["", 20]]));
    expect(model.graph.nodes).toMatchObject([{ op: "Identity", inputs: ["x"], outputs: ["y"], domain: "" }]);
    expect(model.graph.inputs).toMatchObject([{ name: "x", type: { kind: "tensor", dtype: "f32", shape: [2] } }]);
  });

  test("the domain ai.onnx is the main domain", () => {
    const { model } = readModelBytes(
      tinyModel({ node: field(7, "ai.onnx"), model: field(8, [...field(1, "ai.onnx"), ...intField(2, 20)]) }),
    );
    expect(model.graph.nodes[0]?.domain).toBe("");
    expect(model.opsets).toEqual(new Map([["", 20]]));
  });
});

describe("refusals", () => {
  test.each([
    ["an empty file", new Uint8Array(0), "onnx/malformed", 2, /empty/],
    ["a text file", new TextEncoder().encode("this is not an ONNX model at all\n"), "onnx/malformed", 2, /not|damaged/],
    ["a PNG", Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a), "onnx/malformed", 2, /./],
    ["a message without a graph", Uint8Array.from(intField(1, 8)), "onnx/malformed", 2, /no graph/],
    ["a message without an IR version", Uint8Array.from(field(7, [])), "onnx/malformed", 2, /no IR version/],
    ["an old IR version", tinyModel({ irVersion: 2 }), "onnx/ir-version", 4, /IR version 2/],
    ["opset 6", tinyModel({ opset: 6 }), "onnx/opset", 4, /operator set 6; mambac knows 7 to 27/],
    ["opset 28", tinyModel({ opset: 28 }), "onnx/opset", 4, /operator set 28/],
    ["one domain in two versions", tinyModel({ model: field(8, intField(2, 19)) }), "onnx/opset", 2, /20 and 19/],
    ["a node of a domain that is not imported", tinyModel({ node: field(7, "acme") }), "onnx/invalid", 2, /\[opsets\]/],
    ["a node without an op", tinyModel({ graph: field(1, field(2, "z")) }), "onnx/node", 2, /no op_type/],
    [
      "two attributes of one name",
      tinyModel({ node: [...attribute("a"), ...attribute("a")] }),
      "onnx/attribute",
      2,
      /two attributes/,
    ],
    ["an attribute without a type", tinyModel({ node: field(5, field(1, "a")) }), "onnx/attribute", 2, /no type/],
    [
      "an attribute of a type to come",
      tinyModel({ node: field(5, [...field(1, "a"), ...intField(20, 77)]) }),
      "onnx/attribute",
      4,
      /77/,
    ],
    [
      "an attribute without its tensor",
      tinyModel({ node: field(5, [...field(1, "a"), ...intField(20, 4)]) }),
      "onnx/attribute",
      2,
      /no tensor/,
    ],
    [
      "two weights of one name",
      tinyModel({ graph: [...weight("w"), ...weight("w")] }),
      "onnx/duplicate-name",
      2,
      /"w"/,
    ],
    ["a weight without a name", tinyModel({ graph: weight("") }), "onnx/initializer", 2, /without a name/],
    [
      "two types at once",
      tinyModel({ graph: field(13, [...field(1, "v"), ...field(2, [...field(1, intField(1, 1)), ...field(4, [])])]) }),
      "onnx/type",
      2,
      /2 types/,
    ],
    [
      "an element type to come",
      tinyModel({ graph: field(5, [...field(8, "w"), ...intField(2, 27)]) }),
      "onnx/dtype",
      4,
      /27/,
    ],
  ])("%s", (_, bytes, code, exitCode, message) => {
    expect(() => readModelBytes(bytes)).toThrow(refusal(code, exitCode, message));
  });

  test("a missing file and a folder, by name", () => {
    expect(() => readModel(join(folder, "none.onnx"))).toThrow(refusal("onnx/read", 2, /none\.onnx: cannot read/));
    expect(() => readModel(folder)).toThrow(refusal("onnx/read", 2, /not a file/));
  });

  test("a file over 2 GiB, without reading it", () => {
    const path = join(folder, "large.onnx");
    writeFileSync(path, "");
    truncateSync(path, 2 ** 31);
    expect(() => readModel(path)).toThrow(refusal("onnx/too-large", 2, /2147483648 bytes.*external data/));
    rmSync(path);
  });

  test("every truncation of a fixture", () => {
    const bytes = new Uint8Array(readFileSync(fixture("forms/mamba2_linear_attention.onnx")));
    let refused = 0;
    for (let length = 0; length < bytes.byteLength; length += 997) {
      expect(() => readModelBytes(bytes.subarray(0, length))).toThrow(expect.objectContaining({ name: "MambacError" }));
      refused += 1;
    }
    expect(refused).toBeGreaterThan(80);
  });
});

describe("structure", () => {
  test("a circle is refused", () => {
    const nodes = [makeNode("Add", ["x", "b"], ["a"]), makeNode("Neg", ["a"], ["b"])];
    const bytes = encodeModel(modelOf(graphOf(nodes, "b")));
    expect(() => readModelBytes(bytes)).toThrow(refusal("onnx/invalid", 2, /circle \[cycle\]/));
  });

  test("nodes in another order are sorted, with a warning", () => {
    const nodes = [makeNode("Neg", ["a"], ["b"]), makeNode("Abs", ["x"], ["a"])];
    const { model, warnings } = readModelBytes(encodeModel(modelOf(graphOf(nodes, "b"))));
    expect(model.graph.nodes.map((node) => node.op)).toEqual(["Abs", "Neg"]);
    expect(warnings).toEqual(["the nodes of the main graph are not in topological order; sorted"]);
  });

  test("a name defined twice is refused", () => {
    const nodes = [makeNode("Neg", ["x"], ["a"]), makeNode("Abs", ["x"], ["a"])];
    const bytes = encodeModel(modelOf(graphOf(nodes, "a")));
    expect(() => readModelBytes(bytes)).toThrow(refusal("onnx/invalid", 2, /unique-names/));
  });
});

describe("what the IR does not model", () => {
  test.each([
    ["model", { model: field(99, "m") }, "ModelProto has an unknown field 99 (wire type 2); kept unread"],
    ["graph", { graph: intField(98, 5) }, "GraphProto has an unknown field 98 (wire type 0); kept unread"],
    ["node", { node: field(97, "n") }, "NodeProto has an unknown field 97 (wire type 2); kept unread"],
    [
      "attribute",
      { node: attribute("a", field(96, "a")) },
      "AttributeProto has an unknown field 96 (wire type 2); kept unread",
    ],
    [
      "value",
      { graph: field(13, [...field(1, "y"), ...field(95, "v")]) },
      "ValueInfoProto has an unknown field 95 (wire type 2); kept unread",
    ],
    [
      "function",
      { model: functionWith(field(94, "f")) },
      "FunctionProto has an unknown field 94 (wire type 2); kept unread",
    ],
    [
      "configurations",
      { model: field(26, field(1, "cfg")) },
      "ModelProto.configuration is not interpreted; kept as it is",
    ],
    [
      "node devices",
      { node: field(10, field(1, "cfg")) },
      "NodeProto.device_configurations is not interpreted; kept as it is",
    ],
    [
      "quantization",
      { graph: field(14, field(1, "x")) },
      "GraphProto.quantization_annotation is not interpreted; kept as it is",
    ],
    [
      "attribute text",
      { node: attribute("a", field(13, "doc")) },
      "AttributeProto.doc_string is not interpreted; kept as it is",
    ],
    [
      "a sparse attribute",
      { node: field(5, [...field(1, "a"), ...intField(20, 11), ...field(22, [])]) },
      "NodeProto.attribute is not interpreted; kept as it is",
    ],
  ])("%s: told, and written back", (_, more, warning) => {
    const bytes = tinyModel(more);
    const { model, warnings } = readModelBytes(bytes);
    expect(warnings).toEqual([warning]);
    const again = readModelBytes(encodeModel(model));
    expect(again.warnings).toEqual([warning]);
    expect(again.model).toEqual(model);
    // Everything is there; the empty domain of the main opset import, two bytes, is written out.
    expect(encodeModel(model).byteLength).toBe(bytes.byteLength + 2);
  });

  test.each([
    ["tensor", { graph: weight("w", field(93, "t")) }, "TensorProto has an unknown field 93 (wire type 2); dropped"],
    [
      "training",
      { model: field(20, field(1, [])) },
      "ModelProto.training_info is dropped: mambac makes models for inference",
    ],
    [
      "entry",
      { model: field(14, [...field(1, "k"), ...field(92, "e")]) },
      "StringStringEntryProto has an unknown field 92 (wire type 2); dropped",
    ],
    [
      "repeated key",
      {
        model: [...field(14, [...field(1, "k"), ...field(2, "1")]), ...field(14, [...field(1, "k"), ...field(2, "2")])],
      },
      'the metadata of the model: "k" is given twice; the last one counts',
    ],
    ["newer IR", { irVersion: 14 }, "IR version 14 is newer than 13, the newest one mambac describes"],
    [
      "value beside type",
      { node: field(5, [...field(1, "a"), ...intField(20, 2), ...intField(3, 1), ...field(4, "s")]) },
      'attribute "a" of node 0 (Identity) of the main graph has a value in AttributeProto.s beside its type; dropped',
    ],
  ])("%s: told when it is dropped", (_, more, warning) => {
    expect(readModelBytes(tinyModel(more)).warnings).toEqual([warning]);
  });

  test("repeated remarks are told once with a count", () => {
    const more = [...field(97, "n"), ...field(97, "n"), ...field(97, "n")];
    expect(readModelBytes(tinyModel({ node: more })).warnings).toEqual([
      "NodeProto has an unknown field 97 (wire type 2); kept unread, 3 times",
    ]);
  });

  test("an operator nobody defines is a warning", () => {
    const acme = field(8, [...field(1, "acme"), ...intField(2, 1)]);
    expect(readModelBytes(tinyModel({ node: field(7, "acme"), model: acme })).warnings).toEqual([
      "the main graph: node 0 (acme.Identity): acme.Identity has no function in the model; it needs an operator library [calls]",
    ]);
  });
});

test("attributes without a type are told by their one field", () => {
  const node = [
    ...field(5, [...field(1, "i"), ...intField(3, 7)]),
    ...field(5, [...field(1, "s"), ...field(4, "text")]),
    ...field(5, [...field(1, "ints"), ...intField(8, 1), ...intField(8, 2)]),
  ];
  const { model } = readModelBytes(tinyModel({ node }));
  expect(model.graph.nodes[0]?.attributes).toEqual(
    new Map([
      ["i", { kind: "int", value: 7n }],
      ["s", { kind: "string", value: new TextEncoder().encode("text") }],
      ["ints", { kind: "ints", value: [1n, 2n] }],
    ]),
  );
});

test("reading leaves no files behind", () => {
  readModel(fixture("forms/mamba2_linear_attention.onnx"));
  expect(readdirSync(folder)).toEqual([]);
});

function attribute(name: string, more: readonly number[] = []): number[] {
  return field(5, [...field(1, name), ...intField(20, 2), ...intField(3, 5), ...more]);
}

function weight(name: string, more: readonly number[] = []): number[] {
  const bytes = [0, 0, 128, 63];
  return field(5, [...intField(1, 1), ...intField(2, 1), ...field(8, name), ...field(9, bytes), ...more]);
}

function functionWith(more: readonly number[]): number[] {
  const opsets = field(8, [...field(1, "acme"), ...intField(2, 1)]);
  return [...opsets, ...field(25, [...field(1, "F"), ...field(10, "acme"), ...more])];
}

function graphOf(nodes: Graph["nodes"], output: string): Graph {
  const builder = new GraphBuilder("");
  builder.nodes.push(...nodes);
  return builder.graph("g", [typed("x", "f32", [2])], [typed(output, "f32", [2])]);
}

function modelOf(graph: Graph): Model {
  return makeModel(graph, { opsets: new Map([["", 20]]) });
}
