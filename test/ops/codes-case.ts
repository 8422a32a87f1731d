/** One-node models that give codes, made from those that give floats, and the codes that floats have on a grid. */

import { makeValue } from "../../src/ir/graph.js";
import { f32Tensor, roundHalfEven, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import { tensorType } from "../../src/ir/types.js";
import { readModelBytes } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { opFunction } from "../../src/ops/functions.js";
import { codesNode } from "../../src/ops/nodes.js";

export interface Grid {
  readonly type: "i8" | "u8";
  readonly scale: number;
  readonly zero: number;
}

export const GRIDS: readonly Grid[] = [
  { type: "u8", scale: 0.02, zero: 128 },
  { type: "i8", scale: 0.02, zero: 0 },
  { type: "u8", scale: 0.5, zero: 3 },
  { type: "i8", scale: 0.25, zero: -5 },
];

/** The model of a rotation or gate as one that gives codes; shapes of values are left open where `loose`. */
export function codesModel(model: Uint8Array, { type }: Grid, loose: boolean = false): Uint8Array {
  const { graph, ...rest } = readModelBytes(model).model;
  const [node] = graph.nodes;
  const [result] = graph.outputs;
  if (node === undefined || result?.type?.kind !== "tensor") throw new Error("not a model of one node");
  const codes = codesNode(node, { scale: "scale", zeroPoint: "zero_point" }, result.name);
  const scalar = loose ? null : [];
  const grid = [makeValue("scale", tensorType("f32", scalar)), makeValue("zero_point", tensorType(type, scalar))];
  const outputs = [makeValue(result.name, tensorType(type, result.type.shape))];
  return encodeModel({
    ...rest,
    graph: { ...graph, inputs: [...graph.inputs, ...grid], outputs, nodes: [codes] },
    functions: [opFunction(codes.op)],
  });
}

export function gridFeeds({ type, scale, zero }: Grid): [string, Tensor][] {
  return [
    ["scale", f32Tensor([], [scale])],
    ["zero_point", tensorFromBytes(type, [], Uint8Array.of(zero & 255))],
  ];
}

/** What QuantizeLinear makes of floats. */
export function codesOf(floats: Tensor, { type, scale, zero }: Grid): number[] {
  const [low, high] = type === "i8" ? [-128, 127] : [0, 255];
  const step = Math.fround(scale);
  return Array.from(toNumbers(floats), (value) => {
    const code = roundHalfEven(Math.fround(value / step)) + zero;
    return Number.isNaN(code) ? low : Math.max(low, Math.min(high, code));
  });
}
