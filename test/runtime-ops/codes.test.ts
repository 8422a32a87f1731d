/** Operators that give codes as kernels inside ONNX Runtime: the codes of their float kernels, and integer products behind. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { GraphBuilder } from "../../src/ir/builder.js";
import { makeValue } from "../../src/ir/graph.js";
import { f32Tensor, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import { tensorType } from "../../src/ir/types.js";
import { readModelBytes } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { codesOp } from "../../src/ops/names.js";
import { ExecutionTrace } from "../../src/run/executed-ops.js";
import { openNativeSession } from "../../src/run/native-session.js";
import { codesModel, codesOf, GRIDS, gridFeeds } from "../ops/codes-case.js";
import { GATES, type GateCase, gateFeeds, gateModel, nameOf } from "../ops/gate-case.js";
import { halfFeeds, halfModel, widenedFeeds } from "../ops/half-case.js";
import { rotationCase, rotationFeeds, rotationModel } from "../ops/rotation-case.js";
import { scratchFolder } from "../support/count-model.js";
import { isBuilt, library, open, output } from "./kernel-sessions.js";

interface Case {
  readonly op: string;
  readonly model: Uint8Array;
  readonly feeds: Map<string, Tensor>;
  readonly activations: readonly string[];
  readonly result: string;
}

const LARGE: GateCase = { channels: 1536, norm: { groupSize: 1536, beforeGate: false, epsilon: 1e-5 } };
const gateCaseOf = (gate: GateCase, outer: readonly [number, number], seed: number): Case => ({
  op: nameOf(gate),
  model: gateModel(gate, 4),
  feeds: gateFeeds(gate, 4, outer, seed),
  activations: ["y", "z"],
  result: "out",
});
const rotationOf = (size: number, outer: readonly number[], seed: number): Case => ({
  op: "HadamardRotate",
  model: rotationModel(rotationCase(size), outer.length + 1),
  feeds: rotationFeeds(rotationCase(size), outer, seed),
  activations: ["x"],
  result: "y",
});
const CASES: readonly Case[] = [
  ...GATES.map((gate, seed) => gateCaseOf(gate, [2, 9], seed)),
  gateCaseOf(LARGE, [1, 40], 3),
  gateCaseOf(LARGE, [0, 3], 3),
  ...[1536, 12, 7, 160].map((size, seed) => rotationOf(size, [2, 9], seed)),
  rotationOf(768, [70], 5),
  rotationOf(768, [], 6),
  rotationOf(96, [3, 0], 7),
];

describe.skipIf(!isBuilt)("operators that give codes", () => {
  test.each(CASES)("$op, case %#: the codes of its floats, of any grid, type and number of threads", async (given) => {
    const { op, model, feeds, result } = given;
    const floats = output((await open(model)).run(feeds), result);
    for (const grid of GRIDS) {
      using trace = new ExecutionTrace();
      const all = new Map([...feeds, ...gridFeeds(grid)]);
      const session = await open(codesModel(model, grid), 1, trace.prefix);
      const codes = output(session.run(all), result);
      expect([codes.dtype, codes.shape]).toEqual([grid.type, floats.shape]);
      expect([...toNumbers(codes)]).toEqual(codesOf(floats, grid));
      expect(trace.finish(session)).toContain(codesOp(op));
      const two = output((await open(codesModel(model, grid), 2)).run(all), result);
      expect(two.bytes()).toEqual(codes.bytes());
    }
  });

  test.each(CASES)("$op, case %#: float16 values have the codes of the same floats", async (given) => {
    const { model, feeds, activations, result } = given;
    const halves = halfFeeds(model, feeds);
    const floats = output((await open(model)).run(widenedFeeds(halves, feeds)), result);
    for (const grid of GRIDS.slice(0, 2)) {
      const session = await open(halfModel(codesModel(model, grid), activations));
      const codes = output(session.run(new Map([...halves, ...gridFeeds(grid)])), result);
      expect([...toNumbers(codes)]).toEqual(codesOf(floats, grid));
    }
  });

  test("values that are no numbers, or too large, are the codes that QuantizeLinear gives them", async () => {
    const [grid] = GRIDS;
    if (grid === undefined) throw new Error("no grid");
    const odd = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 3e38, -3e38, 0.03, -0.05, 0];
    const x = f32Tensor([odd.length, 1], odd);
    const model = rotationModel(rotationCase(1), 2);
    const feeds = new Map([["x", x], ["factor", f32Tensor([1, 1], [1])], ...gridFeeds(grid)]);
    const codes = output((await open(codesModel(model, grid))).run(feeds), "y");
    expect([...codes.bytes()]).toEqual(codesOf(x, grid));
    const builder = new GraphBuilder("");
    builder.op("QuantizeLinear", ["x", "scale", "zero_point"], {}, "y");
    const { model: shell } = readModelBytes(codesModel(model, grid));
    const inputs = shell.graph.inputs.filter(({ name }) => name !== "factor");
    const pair = encodeModel({ ...shell, functions: [], graph: { ...shell.graph, inputs, nodes: builder.nodes } });
    feeds.delete("factor");
    expect(output((await open(pair)).run(feeds), "y").bytes()).toEqual(codes.bytes());
  });

  test("a grid that is no scalar of the right type is refused by name, and the next call works", async () => {
    for (const given of [CASES[0], CASES[5], rotationOf(12, [3], 1)]) {
      const [grid] = GRIDS;
      if (given === undefined || grid === undefined) throw new Error("no case");
      const { op, model, feeds, result } = given;
      const session = await open(codesModel(model, grid, true));
      const all = new Map([...feeds, ...gridFeeds(grid)]);
      const expected = output(session.run(all), result).bytes();
      const one = Uint8Array.of(128);
      for (const [name, tensor, message] of [
        ["scale", f32Tensor([1], [1]), "input scale has shape [1]; expected a scalar"],
        ["zero_point", tensorFromBytes("u8", [1, 1], one), "input zero_point has shape [1, 1]; expected a scalar"],
      ] as const)
        expect(() => session.run(new Map([...all, [name, tensor]]))).toThrow(`${codesOp(op)}: ${message}`);
      expect(() => session.run(new Map([...all, ["zero_point", tensorFromBytes("i8", [], one)]]))).toThrow();
      expect(output(session.run(all), result).bytes()).toEqual(expected);
    }
  });

  test.each([true, false])("uint8 codes are multiplied as integers; with the library: %s", async (withLibrary) => {
    for (const given of [gateCaseOf(LARGE, [1, 2], 3), rotationOf(1536, [2, 1], 2)]) {
      const [grid] = GRIDS;
      if (grid === undefined) throw new Error("no grid");
      const { model, feeds, result } = given;
      const { graph, ...rest } = readModelBytes(codesModel(model, grid)).model;
      const builder = new GraphBuilder("product.");
      const [scale, zero] = gridFeeds(grid);
      const weight = Int8Array.from({ length: 1536 * 8 }, (_, at) => (at % 201) - 100);
      const codes = builder.initializer(tensorFromBytes("i8", [1536, 8], new Uint8Array(weight.buffer)));
      const step = builder.initializer(f32Tensor([], [0.01]));
      const left = builder.op("DequantizeLinear", [result, "scale", "zero_point"]);
      const right = builder.op("DequantizeLinear", [
        codes,
        step,
        builder.initializer(tensorFromBytes("i8", [], new Uint8Array(1))),
      ]);
      builder.op("MatMul", [left, right], {}, "product");
      const own = new Set(["scale", "zero_point", "factor", "weight"]);
      const constants = [...feeds, ...(scale === undefined || zero === undefined ? [] : [scale, zero])];
      const product = encodeModel({
        ...rest,
        graph: {
          ...graph,
          inputs: graph.inputs.filter(({ name }) => !own.has(name)),
          outputs: [makeValue("product", tensorType("f32", null))],
          initializers: new Map([...builder.initializers, ...constants.filter(([name]) => own.has(name))]),
          nodes: [...graph.nodes, ...builder.nodes],
        },
      });
      const path = join(scratchFolder(), `${given.op}-${withLibrary}.onnx`);
      const session = await openNativeSession(product, {
        optimizedModelPath: path,
        ...(withLibrary ? { library } : {}),
      });
      session.close();
      const { nodes } = readModelBytes(readFileSync(path)).model.graph;
      const products = nodes.filter(
        ({ op, inputs }) => /MatMul/.test(op) && inputs.some((name) => /product/.test(name)),
      );
      expect(products.map(({ op }) => op)).toEqual(["MatMulIntegerToFloat"]);
      expect(nodes.some(({ op }) => op === codesOp(given.op))).toBe(withLibrary);
    }
  });
});
