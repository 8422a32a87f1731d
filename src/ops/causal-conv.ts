/** The causal depthwise convolution with its window of past inputs, from standard ops. */

import { attr } from "../ir/graph.js";
import type { Body } from "./body.js";

/** x [B,E,L], past [B,E,W] -> y [B,E,L] and present [B,E,W]. */
export function causalConv(
  body: Body,
  activation: "none" | "silu",
  inputs: { readonly x: string; readonly weight: string; readonly bias: string; readonly past: string },
): { y: string; present: string } {
  const { x, weight, bias, past } = inputs;
  const width = body.size("state_width");
  const stream = body.op("Concat", [past, x], { axis: 2 });
  const taps = body.size("kernel_size");
  const unread = body.sub(body.add(width, body.ints(1)), taps);
  const read = body.slice(stream, 2, unread, END); // [B,E,K-1+L]
  const single = body.op("Equal", [body.shapeOf(x, 2, 3), body.ints(1)]);
  const [sum = ""] = body.branch(
    single,
    (then) => {
      // All of it; where the length is known not to be 1, shape inference looks at this branch nevertheless.
      const window = then.slice(read, 2, then.ints(0), taps);
      const products = then.mul(window, then.op("Squeeze", [weight, then.ints(1)]));
      return [then.add(then.op("ReduceSum", [products, then.ints(-1)]), then.unsqueeze(bias, -1))];
    },
    (otherwise) => [otherwise.op("Conv", [read, weight, bias], { group: attr.ref("channels", "int") })],
  );
  const y = activation === "silu" ? body.mul(sum, body.op("Sigmoid", [sum])) : sum;
  return { y, present: body.slice(stream, 2, body.shapeOf(x, 2, 3), END) };
}

/**
 * Channels first .. first + E of x [B,L,..] -> y [B,L,E], in three parts where `split`, and present [B,E,W]. The convolution
 * between two transposes, as a runtime has it.
 */
export function causalConvRows(
  body: Body,
  activation: "none" | "silu",
  inputs: { readonly x: string; readonly weight: string; readonly bias: string; readonly past: string },
  split: boolean,
): { readonly parts: readonly string[]; readonly present: string } {
  const [first, channels] = [body.size("first"), body.size("channels")];
  const rows = body.slice(inputs.x, 2, first, body.add(first, channels));
  const { y, present } = causalConv(body, activation, { ...inputs, x: body.transpose(rows, 0, 2, 1) });
  const turned = body.transpose(y, 0, 2, 1);
  if (!split) return { parts: [turned], present };
  const [one, two] = [body.size("first_size"), body.size("second_size")];
  const sizes = body.shape(one, two, body.sub(body.sub(channels, one), two));
  return { parts: body.builder.ops("Split", [turned, sizes], 3, { axis: 2 }), present };
}

/** Slices to the end of an axis. */
const END = 2 ** 31;
