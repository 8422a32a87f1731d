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
