/** The gate y * silu(z) with its RMS norm, from standard ops, and what it must give, in float64. */

import { invariant } from "../support/errors.js";
import type { Body } from "./body.js";

/** y of as many elements as z -> y * silu(z), shaped like z. */
export function siluGate(body: Body, y: string, z: string): string {
  return body.mul(like(body, y, z), silu(body, z));
}

/** y * z * sigmoid(slope * z), slope [channels]: silu(s z) / s where a smoothed z was divided by s = slope. */
export function slopedGate(body: Body, y: string, z: string, slope: string): string {
  return body.mul(like(body, y, z), body.mul(z, body.op("Sigmoid", [body.mul(z, slope)])));
}

/**
 * z [.., channels], y of as many elements, weight [channels] -> [.., channels]. Attributes alone decide the branches, so a
 * runtime that folds constants keeps one of each; the norm is spelled as runtimes fuse it.
 */
export function gatedNorm(
  body: Body,
  inputs: { readonly y: string; readonly z: string; readonly weight: string },
): string {
  const { z, weight } = inputs;
  const y = like(body, inputs.y, z);
  const [channels, group] = [body.size("channels"), body.size("group_size")];
  const before = body.op("Equal", [body.size("norm_before_gate"), body.ints(1)]);
  const epsilon = body.floatOf("epsilon");
  const [x = ""] = body.branch(
    before,
    (then) => [then.op("Identity", [y])],
    (otherwise) => [otherwise.mul(y, silu(otherwise, z))],
  );
  const [normed = ""] = body.branch(
    body.op("Equal", [channels, group]),
    (then) => [then.mul(quotient(then, x, epsilon), weight)],
    (otherwise) => {
      const grouped = otherwise.reshape(x, -1, group);
      return [otherwise.mul(like(otherwise, quotient(otherwise, grouped, epsilon), z), weight)];
    },
  );
  const [out = ""] = body.branch(
    before,
    (then) => [then.mul(normed, silu(then, z))],
    (otherwise) => [otherwise.op("Identity", [normed])],
  );
  return out;
}

function silu(body: Body, z: string): string {
  return body.mul(z, body.op("Sigmoid", [z]));
}

/** x over the root of its mean square along the last axis. */
function quotient(body: Body, x: string, epsilon: string): string {
  const mean = body.op("ReduceMean", [body.op("Pow", [x, body.float(2)]), body.ints(-1)], { keepdims: 1 });
  return body.div(x, body.op("Sqrt", [body.add(mean, epsilon)]));
}

function like(body: Body, value: string, other: string): string {
  return body.op("Reshape", [value, body.op("Shape", [other])], { allowzero: 1 });
}

type Numbers = Float32Array | Float64Array;

/** `SiluGate`, `SlopedSiluGate` where there is a slope, and `GatedRMSNorm` where there is a norm. */
export function gateReference(args: {
  readonly channels: number;
  /** [rows, channels]. */
  readonly y: Numbers;
  readonly z: Numbers;
  readonly norm: {
    /** Channels that share a norm; divides `channels`. */
    readonly groupSize: number;
    readonly beforeGate: boolean;
    readonly epsilon: number;
    /** [channels]. */
    readonly weight: Numbers;
  } | null;
  /** [channels]. */
  readonly slope?: Numbers;
}): Float64Array {
  const { channels, y, z, norm, slope } = args;
  invariant(y.length === z.length && z.length % channels === 0, "gateReference: sizes do not fit");
  const gate = Float64Array.from(z, (value, i) => value / (1 + Math.exp(-value * (slope?.[i % channels] ?? 1))));
  const out = Float64Array.from(y, (value, i) => (norm?.beforeGate === true ? value : value * gate[i]!));
  if (norm === null) return out;
  for (let start = 0; start < out.length; start += norm.groupSize) {
    let sum = 0;
    for (let i = start; i < start + norm.groupSize; i++) sum += out[i]! ** 2;
    const root = Math.sqrt(sum / norm.groupSize + norm.epsilon);
    for (let i = start; i < start + norm.groupSize; i++) out[i] = (out[i]! / root) * norm.weight[i % channels]!;
  }
  return norm.beforeGate ? out.map((value, i) => value * gate[i]!) : out;
}
