/** The causal depthwise convolution of a layer, over all tokens of a call or over one. */

import { silu, zeroState } from "./layer-parts.js";
import { attr, type Writer } from "./writer.js";

export interface ConvResult {
  /** [b, l, channels]. */
  readonly y: string;
  /** [b, channels, width]; null where the graph keeps none. */
  readonly state: string | null;
}

/** Columns of the public state. */
export function convStateWidth(w: Writer): number {
  return w.spelling.stateWidth === "k" ? w.sizes.kernel : w.sizes.kernel - 1;
}

/** x [b, l, channels]; `past` null starts from zeros. */
export function convolution(w: Writer, x: string, channels: number, past: string | null): ConvResult {
  const { kernel } = w.sizes;
  const { conv, convBias, convActivation, stepConv } = w.spelling;
  const weight = w.weight("conv_weight", [channels, 1, kernel], (normal) => 0.6 * normal());
  const bias = convBias === "none" ? null : w.weight("conv_bias", [channels], (normal) => 0.3 * normal());
  const columns = w.op("Transpose", [x], { perm: [0, 2, 1] });
  const width = convStateWidth(w);
  const end = w.ints([Number.MAX_SAFE_INTEGER]);
  const lastColumns = (stream: string, count: number): string =>
    w.op("Slice", [stream, w.ints([-count]), end, w.ints([2])]);
  const finish = (sum: string, biased: boolean): string => {
    let y = sum;
    if (bias !== null && !biased) y = w.op("Add", [y, w.op("Unsqueeze", [bias, w.ints([1])])]);
    if (convActivation) y = silu(w, y);
    return w.op("Transpose", [y], { perm: [0, 2, 1] });
  };
  const depthwise = (stream: string, pads: readonly number[]): string =>
    w.op("Conv", [stream, weight, ...(convBias === "conv" && bias !== null ? [bias] : [])], {
      group: channels,
      kernel_shape: [kernel],
      pads,
      strides: [1],
      dilations: [1],
    });
  if (conv === "same") return { y: sameConvolution(w, x, channels), state: null };
  if (conv === "fused") {
    const [y = "", state = ""] = w.ops(
      "CausalConvWithState",
      [columns, weight, bias ?? "", past ?? ""],
      2,
      { activation: convActivation ? "silu" : "none" },
      w.spelling.attentionDomain,
    );
    return { y: w.op("Transpose", [y], { perm: [0, 2, 1] }), state };
  }
  if (past !== null || w.single) {
    const before = past ?? zeroState(w, [channels, width]);
    const stream = w.op("Concat", [before, columns], { axis: 2 });
    const state = lastColumns(stream, width);
    if (w.single && stepConv === "sum") {
      const rolled = width === kernel ? state : stream;
      const flat = w.op("Squeeze", [weight, w.ints([1])]);
      const sum = w.op("ReduceSum", [w.op("Mul", [rolled, flat]), w.ints([-1])], { keepdims: 1 });
      return { y: finish(sum, false), state };
    }
    const result = depthwise(stream, [0, 0]);
    const fresh =
      width < kernel
        ? result
        : w.single
          ? lastColumns(result, 1)
          : w.op("Slice", [result, w.ints([1]), end, w.ints([2])]);
    return { y: finish(fresh, convBias === "conv"), state };
  }
  const state = w.spelling.states === "none" ? null : lastColumns(columns, width);
  let result: string;
  if (conv === "pad-left") result = depthwise(columns, [kernel - 1, 0]);
  else if (conv === "pad-node") {
    const pads = w.ints([0, 0, kernel - 1, 0, 0, 0]);
    result = depthwise(w.op("Pad", [columns, pads, w.float(0)], { mode: "constant" }), [0, 0]);
  } else {
    const wide = depthwise(columns, [kernel - 1, kernel - 1]);
    const { length, claimsFreeLength } = w.spelling;
    const stop = length === null || claimsFreeLength ? w.dim("l") : w.ints([length]);
    result = w.op("Slice", [wide, w.ints([0]), stop, w.ints([2]), w.ints([1])]);
  }
  return { y: finish(result, convBias === "conv"), state };
}

/** A convolution that looks both ways, as vision models use: no causal one. */
function sameConvolution(w: Writer, x: string, channels: number): string {
  const { kernel } = w.sizes;
  const weight = w.weight("conv_weight", [channels, 1, kernel], (normal) => 0.6 * normal());
  const columns = w.op("Transpose", [x], { perm: [0, 2, 1] });
  const left = Math.floor((kernel - 1) / 2);
  const y = w.op("Conv", [columns, weight], {
    group: channels,
    kernel_shape: [kernel],
    pads: attr.ints([left, kernel - 1 - left]),
  });
  return w.op("Transpose", [silu(w, y)], { perm: [0, 2, 1] });
}
