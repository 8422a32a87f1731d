import { readFileSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";
import fc from "fast-check";
import { onnx } from "onnx-proto";
import { describe, expect, test } from "vitest";
import type { Model } from "../../src/ir/graph.js";
import { dtypeNumber } from "../../src/ir/types.js";
import { readModel, readModelBytes } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { arbitraryModel } from "../support/arbitrary-model.js";
import { FIXTURE_MODELS, fixture, plainModel } from "../support/fixture-models.js";

/** Compares with deep equality first, since a diff of two large models takes minutes. */
function expectSame(actual: Model, expected: Model): void {
  const a = plainModel(actual);
  const b = plainModel(expected);
  if (!isDeepStrictEqual(a, b)) expect(a).toStrictEqual(b);
}

describe("fixtures", () => {
  test("there are the families and the forms", () => {
    expect(FIXTURE_MODELS.filter((name) => name.startsWith("hf/"))).toHaveLength(20);
    expect(FIXTURE_MODELS.filter((name) => name.startsWith("forms/"))).toHaveLength(16);
  });

  test.each(FIXTURE_MODELS)("%s reads without warnings and survives write and read", (name) => {
    const { model, warnings } = readModel(fixture(name));
    expect(warnings).toEqual([]);
    const bytes = encodeModel(model);
    expectSame(readModelBytes(bytes).model, model);
    expect(Buffer.compare(encodeModel(readModelBytes(bytes).model), bytes)).toBe(0);
  });

  test.each(FIXTURE_MODELS.filter((name) => name.startsWith("hf/")))(
    "%s is written byte for byte as it was",
    (name) => {
      const path = fixture(name);
      expect(Buffer.compare(encodeModel(readModel(path).model), readFileSync(path))).toBe(0);
    },
  );

  test.each(FIXTURE_MODELS)("onnx-proto sees the same in %s", (name) => {
    expectAgrees(readModel(fixture(name)).model);
  });
});

describe("random models", () => {
  test("read(write(m)) = m, and equal models have equal bytes", () => {
    let nodes = 0;
    fc.assert(
      fc.property(arbitraryModel, (model) => {
        nodes += model.graph.nodes.length;
        const bytes = encodeModel(model);
        const back = readModelBytes(bytes);
        expectSame(back.model, model);
        expect(back.warnings).toEqual([]);
        expect(Buffer.compare(encodeModel(back.model), bytes)).toBe(0);
      }),
      { seed: 1, numRuns: 400 },
    );
    expect(nodes).toBeGreaterThan(400);
  });

  test("onnx-proto reads what is written", () => {
    fc.assert(fc.property(arbitraryModel, expectAgrees), { seed: 2, numRuns: 200 });
  });
});

/** The independent reader finds the same graph in our bytes. */
function expectAgrees(model: Model): void {
  const theirs = onnx.ModelProto.decode(encodeModel(model));
  expect(Number(theirs.irVersion)).toBe(model.irVersion);
  expect(theirs.opsetImport.map((entry) => [entry.domain, Number(entry.version)])).toEqual([...model.opsets]);
  const graph = theirs.graph;
  expect(graph?.node?.map((node) => [node.opType, node.input, node.output])).toEqual(
    model.graph.nodes.map((node) => [node.op, node.inputs, node.outputs]),
  );
  expect(graph?.node?.map((node) => node.attribute?.map((attribute) => attribute.name))).toEqual(
    model.graph.nodes.map((node) => [...node.attributes.keys()]),
  );
  expect(graph?.input?.map((value) => value.name)).toEqual(model.graph.inputs.map((value) => value.name));
  expect(graph?.output?.map((value) => value.name)).toEqual(model.graph.outputs.map((value) => value.name));
  const weights = [...model.graph.initializers];
  expect(graph?.initializer?.map((tensor) => [tensor.name, tensor.dataType, tensor.dims?.map(Number)])).toEqual(
    weights.map(([name, tensor]) => [name, dtypeNumber(tensor.dtype), tensor.shape]),
  );
  weights.forEach(([, tensor], i) => {
    const other = graph?.initializer?.[i];
    if (tensor.strings === null) expect(Buffer.compare(other?.rawData ?? Buffer.alloc(0), tensor.bytes())).toBe(0);
    else expect(other?.stringData?.map((s) => [...s])).toEqual(tensor.strings.map((s) => [...s]));
  });
}
