/** Models that have parts of a Mamba layer and no scan. */

import { GraphBuilder, typed } from "../../../src/ir/builder.js";
import { type Graph, type Model, makeModel } from "../../../src/ir/graph.js";
import { f32Tensor } from "../../../src/ir/tensor.js";
import { elementCount } from "../../../src/ir/types.js";
import { Random } from "../../../src/support/random.js";

/** A model around a graph, opset 21. */
export function modelAround(graph: Graph, opset: number = 21): Model {
  return makeModel(graph, {
    opsets: new Map([
      ["", opset],
      ["com.microsoft", 1],
    ]),
  });
}

/** A weight of normal numbers, the same for the same label. */
export function normalWeight(
  builder: GraphBuilder,
  label: string,
  shape: readonly number[],
  scale: number = 1,
): string {
  const random = new Random(3).split(label);
  return builder.initializer(
    f32Tensor(
      shape,
      Float32Array.from({ length: elementCount(shape) }, () => scale * random.normal()),
    ),
    label,
  );
}

/** Embedding, a layer with Mish (x tanh(softplus(x))), head: a softplus that feeds no recurrence. */
export function mishModel(): Model {
  const b = new GraphBuilder("");
  const hidden = b.op("Gather", [normalWeight(b, "table", [11, 6]), "input_ids"], { axis: 0 });
  const wide = b.op("MatMul", [hidden, normalWeight(b, "up", [6, 8])]);
  const mish = b.op("Mul", [wide, b.op("Tanh", [b.op("Softplus", [wide])])]);
  b.op("MatMul", [mish, normalWeight(b, "head", [8, 11])], {}, "logits");
  return modelAround(
    b.graph("mish", [typed("input_ids", "i64", ["b", "l"])], [typed("logits", "f32", ["b", "l", 11])]),
  );
}

/**
 * Models with a softplus d, an x, and two more values that take part like B and C, and no scan: a mean of what was so far
 * weighted by d, made of cumulative sums; or the largest of what was so far, made by doubling.
 */
export function cumulativeModel(kind: "weighted-mean" | "running-maximum"): Model {
  const b = new GraphBuilder("");
  const [channels, dState, length] = [6, 4, 9];
  const hidden = b.op("Gather", [normalWeight(b, "table", [11, 5]), "input_ids"], { axis: 0 });
  const projected = (label: string, size: number): string =>
    b.op("MatMul", [hidden, normalWeight(b, label, [5, size])]);
  const column = (value: string): string => b.op("Unsqueeze", [value, b.ints([3])]);
  const row = (value: string): string => b.op("Unsqueeze", [value, b.ints([2])]);
  const bias = normalWeight(b, "bias", [channels]);
  const d = b.op("Softplus", [b.op("Add", [projected("dt", channels), bias])]);
  const rate = b.initializer(f32Tensor([channels, dState], new Float32Array(channels * dState).fill(-0.5)), "A");
  const decay = b.op("Exp", [b.op("Mul", [column(d), rate])]);
  const fed = b.op("Mul", [b.op("Mul", [column(d), row(projected("B", dState))]), column(projected("x", channels))]);
  let states: string;
  if (kind === "weighted-mean") {
    const sum = (value: string): string => b.op("CumSum", [value, b.ints([1])]);
    states = b.op("Div", [sum(b.op("Mul", [fed, decay])), sum(decay)]);
  } else {
    states = b.op("Mul", [fed, decay]);
    for (let reach = 1; reach < length; reach *= 2) {
      const cut = (from: number, to: number): string =>
        b.op("Slice", [states, b.ints([from]), b.ints([to]), b.ints([1])]);
      const end = Number.MAX_SAFE_INTEGER;
      const taken = b.op("Max", [cut(0, -reach), cut(reach, end)]);
      states = b.op("Concat", [cut(0, reach), taken], { axis: 1 });
    }
  }
  const read = b.op("ReduceSum", [b.op("Mul", [states, row(projected("C", dState))]), b.ints([3])], { keepdims: 0 });
  b.op("MatMul", [read, normalWeight(b, "head", [channels, 11])], {}, "logits");
  return modelAround(
    b.graph("cumulative", [typed("input_ids", "i64", ["b", length])], [typed("logits", "f32", ["b", length, 11])]),
  );
}
