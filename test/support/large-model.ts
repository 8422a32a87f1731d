/** A Mamba-2 decode graph of any size whose weights are never in memory: what tests of large models compile. */

import { GraphBuilder, typed } from "../../src/ir/builder.js";
import { type Model, makeModel, type ValueInfo } from "../../src/ir/graph.js";
import { asBytes, type ByteSource, f32Tensor, tensorFromSource } from "../../src/ir/tensor.js";
import { Sampler } from "../../src/rewrite/sampler.js";

/** Repeats a block of seeded normal values, shifted by a seed, so that weights differ and cost nothing. */
class RepeatingSource implements ByteSource {
  static readonly #block: Uint8Array = asBytes(
    Float32Array.from(new Sampler("large").normal(1 << 20), (v) => v * 0.02),
  );
  readonly #shift: number;

  constructor(seed: number) {
    this.#shift = ((seed * 7919) % (1 << 18)) * 4;
  }

  read(offset: number, length: number): Uint8Array {
    const block = RepeatingSource.#block;
    const out = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const at = (offset + done + this.#shift) % block.byteLength;
      const part = Math.min(block.byteLength - at, length - done);
      out.set(block.subarray(at, at + part), done);
      done += part;
    }
    return out;
  }
}

export interface LargeSizes {
  readonly layers: number;
  readonly model: number;
  readonly heads: number;
  readonly headDim: number;
  readonly dState: number;
  readonly vocabulary: number;
}

/** Sizes of Mamba-2 2.7B, with fewer layers. */
export function sizes27B(layers: number): LargeSizes {
  return { layers, model: 2560, heads: 80, headDim: 64, dState: 128, vocabulary: 4096 };
}

/** A decode step as exporters write it, for L = 1. */
export function largeDecodeModel(sizes: LargeSizes): Model {
  const { model, heads, headDim, dState } = sizes;
  const inner = heads * headDim;
  const convChannels = inner + 2 * dState;
  const b = new GraphBuilder("");
  const inputs: ValueInfo[] = [typed("input_ids", "i64", ["batch", 1])];
  const outputs: ValueInfo[] = [typed("logits", "f32", ["batch", 1, sizes.vocabulary])];
  let seed = 0;
  const weight = (name: string, shape: readonly number[]): string => {
    seed += 1;
    b.initializers.set(name, tensorFromSource("f32", shape, new RepeatingSource(seed), 0, "lazy"));
    return name;
  };
  const small = (name: string, shape: readonly number[], value: (sampler: Sampler) => ArrayLike<number>): string => {
    b.initializers.set(name, f32Tensor(shape, value(new Sampler(name))));
    return name;
  };
  const ints = (...values: number[]): string => b.ints(values);
  const norm = (x: string, gain: string, size: number): string => {
    const mean = b.op("ReduceMean", [b.op("Mul", [x, x]), ints(-1)], { keepdims: 1 });
    const rsqrt = b.op("Reciprocal", [b.op("Sqrt", [b.op("Add", [mean, b.float(1e-5)])])]);
    return b.op("Mul", [small(gain, [size], (s) => s.normal(size).map((v) => 1 + 0.1 * v)), b.op("Mul", [x, rsqrt])]);
  };
  const silu = (x: string): string => b.op("Mul", [x, b.op("Sigmoid", [x])]);
  let residual = b.op("Gather", [weight("embedding", [sizes.vocabulary, model]), "input_ids"], { axis: 0 });
  for (let layer = 0; layer < sizes.layers; layer++) {
    const name = (part: string): string => `layers.${layer}.${part}`;
    const projected = b.op("MatMul", [
      norm(residual, name("norm"), model),
      weight(name("in_proj"), [model, inner + convChannels + heads]),
    ]);
    const [z = "", xbc = "", dt = ""] = b.ops("Split", [projected, ints(inner, convChannels, heads)], 3, { axis: 2 });
    const [pastConv, pastSsm] = [`past_conv.${layer}`, `past_ssm.${layer}`];
    inputs.push(
      typed(pastConv, "f32", ["batch", convChannels, 4]),
      typed(pastSsm, "f32", ["batch", heads, headDim, dState]),
    );
    const stream = b.op("Concat", [pastConv, b.op("Transpose", [xbc], { perm: [0, 2, 1] })], { axis: 2 });
    b.op("Slice", [stream, ints(-4), ints(2 ** 31 - 1), ints(2)], {}, `present_conv.${layer}`);
    const taps = small(name("conv"), [convChannels, 1, 4], (s) => s.normal(convChannels * 4).map((v) => 0.3 * v));
    const bias = small(name("conv_bias"), [convChannels], (s) => s.normal(convChannels).map((v) => 0.1 * v));
    const conv = b.op("Conv", [stream, taps, bias], { group: convChannels, kernel_shape: [4], pads: [0, 0] });
    const active = silu(b.op("Slice", [conv, ints(-1), ints(2 ** 31 - 1), ints(2)]));
    const [xs = "", bs = "", cs = ""] = b.ops(
      "Split",
      [b.op("Transpose", [active], { perm: [0, 2, 1] }), ints(inner, dState, dState)],
      3,
      { axis: 2 },
    );
    const x = b.op("Reshape", [xs, ints(-1, heads, headDim)]);
    const dtBias = small(name("dt_bias"), [heads], (s) => s.normal(heads).map((v) => v - 3));
    const step = b.op("Softplus", [b.op("Add", [b.op("Squeeze", [dt, ints(1)]), dtBias])]);
    const A = small(name("A"), [heads], (s) => s.normal(heads).map((v) => -Math.exp(v)));
    const decay = b.op("Exp", [b.op("Mul", [step, A])]);
    const wide = (v: string): string => b.op("Unsqueeze", [v, ints(2, 3)]);
    const row = (v: string): string => b.op("Reshape", [v, ints(-1, 1, 1, dState)]);
    const fed = b.op("Mul", [b.op("Mul", [wide(step), row(bs)]), b.op("Unsqueeze", [x, ints(3)])]);
    b.op("Add", [b.op("Mul", [pastSsm, wide(decay)]), fed], {}, `present_ssm.${layer}`);
    const read = b.op("ReduceSum", [b.op("Mul", [`present_ssm.${layer}`, row(cs)]), ints(-1)], { keepdims: 0 });
    const skip = b.op("Mul", [x, small(name("D"), [heads, 1], (s) => s.normal(heads))]);
    const y = b.op("Reshape", [b.op("Add", [read, skip]), ints(-1, 1, inner)]);
    const gated = norm(b.op("Mul", [y, silu(z)]), name("gated_norm"), inner);
    residual = b.op("Add", [residual, b.op("MatMul", [gated, weight(name("out_proj"), [inner, model])])]);
    outputs.push(
      typed(`present_conv.${layer}`, "f32", ["batch", convChannels, 4]),
      typed(`present_ssm.${layer}`, "f32", ["batch", heads, headDim, dState]),
    );
  }
  b.op("MatMul", [norm(residual, "norm_f", model), weight("lm_head", [model, sizes.vocabulary])], {}, "logits");
  return makeModel(b.graph("large", inputs, outputs), { opsets: new Map([["", 20]]) });
}
