/** Models of one rotation, and what they must give. */

import { f32Tensor, type Tensor } from "../../src/ir/tensor.js";
import { type Dim, tensorType } from "../../src/ir/types.js";
import { hadamardRotation } from "../../src/linalg/hadamard.js";
import { hadamardNode } from "../../src/ops/nodes.js";
import { Noise, oneNodeModel } from "./scan-case.js";

export interface RotationCase {
  readonly size: number;
  readonly order: number;
  readonly power: number;
  readonly factor: Float32Array;
}

/** The rotation of a size, as a compiled model has it. */
export function rotationCase(size: number): RotationCase {
  const { factor, power } = hadamardRotation(size);
  return { size, order: factor.order, power, factor: Float32Array.from(factor.signs) };
}

/** A model of one node on x of any lengths before the last axis. */
export function rotationModel({ size, order, power }: RotationCase, rank: number, loose: boolean = false): Uint8Array {
  const node = hadamardNode({ size, order, power }, ["x", "factor"], "y");
  const outer: Dim[] = Array.from({ length: rank - 1 }, (_, axis) => `d${axis}`);
  const types = new Map([
    ["x", tensorType("f32", loose ? null : [...outer, size])],
    ["factor", tensorType("f32", loose ? null : [order, order])],
    ["y", tensorType("f32", loose ? null : [...outer, size])],
  ]);
  return oneNodeModel(node, ["x", "factor"], ["y"], types);
}

/** Random rows; some channels are a hundred times as large. */
export function rotationFeeds(
  { size, order, factor }: RotationCase,
  outer: readonly number[],
  seed: number,
): Map<string, Tensor> {
  const rows = outer.reduce((a, b) => a * b, 1);
  const x = new Noise(seed).normals(rows * size);
  for (let i = seed % size; i < x.length; i += size) x[i] = 100 * (x[i] ?? 0);
  return new Map([
    ["x", f32Tensor([...outer, size], x)],
    ["factor", f32Tensor([order, order], factor)],
  ]);
}

/**
 * Largest error over what roundings explain. A float32 result may be off by one rounding of the scale and its product, and
 * one for every term summed, each at most 2^-24 of the row's norm.
 */
export function rotationExcess(
  { size, order, power }: RotationCase,
  terms: number,
  x: ArrayLike<number>,
  actual: ArrayLike<number>,
  expected: Float64Array,
): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  const span = order * power;
  let worst = 0;
  for (let start = 0; start < expected.length; start += span) {
    let norm = 0;
    for (let i = start; i < start + span; i++) norm += (x[i] ?? 0) ** 2;
    const allowed = (2 + terms) * 2 ** -24 * Math.sqrt(norm);
    for (let i = start; i < start + span; i++) {
      const error = Math.abs((actual[i] ?? Number.NaN) - (expected[i] ?? 0));
      if (!(error <= allowed))
        worst = Math.max(worst, Number.isNaN(error) ? Number.POSITIVE_INFINITY : error / allowed);
      else worst = Math.max(worst, allowed === 0 ? 0 : error / allowed);
    }
  }
  return size % span === 0 ? worst : Number.POSITIVE_INFINITY;
}
