/** Attention of a hybrid's prefill graph, in the spellings exporters use, and in kinds that are not causal attention. */

import { GraphBuilder, typed } from "../../src/ir/builder.js";
import type { Model } from "../../src/ir/graph.js";
import { boolTensor, f32Tensor } from "../../src/ir/tensor.js";
import { attentionNode } from "../../src/rewrite/semantic.js";
import { modelAround, normalWeight } from "./mamba-graphs/decoys.js";

export interface AttentionSpelling {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Where the scale 1/sqrt(d) is applied. */
  readonly scale: "scores" | "scores-div" | "query" | "both-sides" | "none";
  readonly mask: "where" | "add";
  /** What a query sees; only `causal` is causal attention. */
  readonly sees: "past" | "window" | "everything" | "past-with-bias" | "others-only";
  readonly repeat: "expand" | "tile";
  /** Rows of nothing but minus infinity become zero, as transformers exports them. */
  readonly nanGuard: boolean;
  readonly softcap: boolean;
  /** Keys and values are outputs of the graph. */
  readonly cached: boolean;
  readonly length: number | null;
}

export const PLAIN_ATTENTION: AttentionSpelling = {
  heads: 6,
  kvHeads: 2,
  headDim: 4,
  scale: "scores",
  mask: "where",
  sees: "past",
  repeat: "expand",
  nanGuard: false,
  softcap: false,
  cached: true,
  length: null,
};

/** tokens -> embedding -> attention -> projection. */
export function attentionModel(changes: Partial<AttentionSpelling>): Model {
  const spelling = { ...PLAIN_ATTENTION, ...changes };
  const { heads, kvHeads, headDim, scale, repeat, nanGuard, cached, length } = spelling;
  const b = new GraphBuilder("");
  const width = 10;
  const hidden = b.op("Gather", [normalWeight(b, "table", [11, width]), "input_ids"], { axis: 0 });
  const split = (label: string, count: number, output?: string): string => {
    const flat = b.op("MatMul", [hidden, normalWeight(b, label, [width, count * headDim], 0.5)]);
    const parts = b.op("Reshape", [flat, b.ints([0, 0, count, headDim])]);
    return b.op("Transpose", [parts], { perm: [0, 2, 1, 3] }, output);
  };
  let q = split("q", heads);
  const k = split("k", kvHeads, cached ? "present.0.key" : undefined);
  const v = split("v", kvHeads, cached ? "present.0.value" : undefined);
  const shape = b.op("Shape", ["input_ids"]);
  const dim = (axis: number): string => b.op("Gather", [shape, b.ints([axis])], { axis: 0 });
  const spread = (value: string): string => {
    if (heads === kvHeads) return value;
    const column = b.op("Unsqueeze", [value, b.ints([2])]);
    const shared = heads / kvHeads;
    const wide =
      repeat === "tile"
        ? b.op("Tile", [column, b.ints([1, 1, shared, 1, 1])])
        : b.op("Expand", [
            column,
            b.op("Concat", [dim(0), b.ints([kvHeads, shared]), dim(1), b.ints([headDim])], { axis: 0 }),
          ]);
    return b.op("Reshape", [wide, b.op("Concat", [dim(0), b.ints([heads]), dim(1), b.ints([headDim])], { axis: 0 })]);
  };
  const root = Math.sqrt(headDim);
  if (scale === "query") q = b.op("Mul", [q, b.float(1 / root)]);
  if (scale === "both-sides") q = b.op("Mul", [q, b.float(Math.sqrt(1 / root))]);
  let keys = b.op("Transpose", [spread(k)], { perm: [0, 1, 3, 2] });
  if (scale === "both-sides") keys = b.op("Mul", [keys, b.float(Math.sqrt(1 / root))]);
  let scores = b.op("MatMul", [q, keys]);
  if (scale === "scores") scores = b.op("Mul", [scores, b.float(1 / root)]);
  if (scale === "scores-div") scores = b.op("Div", [scores, b.float(root)]);
  if (spelling.softcap) scores = b.op("Mul", [b.op("Tanh", [b.op("Div", [scores, b.float(2)])]), b.float(2)]);
  let weights = b.op("Softmax", [masked(b, scores, dim(1), spelling)], { axis: -1 });
  if (nanGuard) weights = b.op("Where", [b.op("IsNaN", [weights]), b.float(0), weights]);
  const mixed = b.op("Transpose", [b.op("MatMul", [weights, spread(v)])], { perm: [0, 2, 1, 3] });
  const flat = b.op("Reshape", [mixed, b.ints([0, 0, heads * headDim])]);
  b.op("MatMul", [flat, normalWeight(b, "o", [heads * headDim, 5], 0.3)], {}, "logits");
  const long = length ?? "l";
  const cache = (name: string): ReturnType<typeof typed> => typed(name, "f32", ["b", kvHeads, long, headDim]);
  return modelAround(
    b.graph(
      "attention",
      [typed("input_ids", "i64", ["b", long])],
      [typed("logits", "f32", ["b", long, 5]), ...(cached ? [cache("present.0.key"), cache("present.0.value")] : [])],
    ),
  );
}

function masked(b: GraphBuilder, scores: string, length: string, { mask, sees }: AttentionSpelling): string {
  if (sees === "everything") return scores;
  const square = b.op("Concat", [length, length], { axis: 0 });
  const ones = b.op("Expand", [b.constant(boolTensor([], [true])), square]);
  const lower = (diagonal: number): string => b.op("Trilu", [ones, b.int(diagonal)], { upper: 0 });
  let visible = lower(sees === "others-only" ? -1 : 0);
  if (sees === "window") visible = b.op("And", [visible, b.op("Not", [lower(-2)])]);
  let biased = scores;
  if (sees === "past-with-bias") {
    const steps = b.op("Range", [b.int(0), b.op("Squeeze", [length]), b.int(1)]);
    biased = b.op("Add", [scores, b.op("Mul", [b.op("Cast", [steps], { to: 1 }), b.float(0.3)])]);
  }
  const least = b.float(-1e30);
  if (mask === "where") return b.op("Where", [visible, biased, least]);
  const zero = b.op("Expand", [b.constant(f32Tensor([], [0])), square]);
  return b.op("Add", [biased, b.op("Where", [visible, zero, least])]);
}

/** Attention over a cache, as a semantic operator: q, k and v are rows of tables. */
export function cachedAttention(): Model {
  const b = new GraphBuilder("");
  const heads = (label: string, count: number): string => {
    const rows = b.op("Gather", [normalWeight(b, label, [7, count * 4]), "input_ids"], { axis: 0 });
    return b.op("Transpose", [b.op("Reshape", [rows, b.ints([0, 0, count, 4])])], { perm: [0, 2, 1, 3] });
  };
  const shape = { layer: "layers.0", heads: 6, kvHeads: 2, headDim: 4, scale: 0.5, error: 0 };
  b.nodes.push(
    attentionNode(
      shape,
      [heads("q", 6), heads("k", 2), heads("v", 2), "past_key_values.0.key", "past_key_values.0.value"],
      ["y", "present.0.key", "present.0.value"],
    ),
  );
  const cache = (name: string, length: string): ReturnType<typeof typed> => typed(name, "f32", ["b", 2, length, 4]);
  return modelAround(
    b.graph(
      "attention",
      [
        typed("input_ids", "i64", ["b", "l"]),
        cache("past_key_values.0.key", "past"),
        cache("past_key_values.0.value", "past"),
      ],
      [typed("y", "f32", ["b", 6, "l", 4]), cache("present.0.key", "total"), cache("present.0.value", "total")],
    ),
  );
}
