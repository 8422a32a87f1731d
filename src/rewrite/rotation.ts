/** Rotations in graphs: online ones as small matrix products, and offline ones folded into weights. */

import type { GraphBuilder } from "../ir/builder.js";
import { makeNode } from "../ir/graph.js";
import { f32Tensor, type Tensor } from "../ir/tensor.js";
import { type HadamardRotation, hadamardRotation, rotateColumns, rotateRows } from "../linalg/hadamard.js";
import { lazyWeight, withWeightValues } from "./weights.js";

/** An orthogonal map of row vectors, x -> x R. */
export type Rotation =
  | { readonly kind: "hadamard"; readonly rotation: HadamardRotation }
  /** R [size, size], row-major. */
  | { readonly kind: "dense"; readonly size: number; readonly matrix: Float64Array };

/** Marks nodes of an online rotation, whose constant operands are no projections. */
export const ROTATION_ROLE: ReadonlyMap<string, string> = new Map([["mambac.role", "rotation"]]);

/** W [K, N] -> R^T W: what a reader of x R needs. */
export function rotateReader(weight: Tensor, rotation: Rotation): Tensor {
  return mapped(weight, (values, k, n) => {
    if (rotation.kind === "hadamard") rotateColumns(values, n, rotation.rotation, "forward");
    else multiplyTransposed(rotation.matrix, values, k, n);
  });
}

/** W [K, N] -> W R: what makes the writer of x write x R. Also turns an embedding [V, N]. */
export function rotateWriter(weight: Tensor, rotation: Rotation): Tensor {
  return mapped(weight, (values, k, n) => {
    if (rotation.kind === "hadamard") rotateRows(values, rotation.rotation, "forward");
    else multiplyRight(values, rotation.matrix, k, n);
  });
}

function mapped(weight: Tensor, map: (values: Float32Array, k: number, n: number) => void): Tensor {
  const [k = 1, n = 1] = weight.shape.length === 1 ? [1, weight.shape[0] ?? 1] : weight.shape;
  const turned = (lent: Float32Array): Float32Array => {
    const values = lent.slice();
    map(values, k, n);
    return values;
  };
  return lazyWeight(weight.shape, () => withWeightValues(weight, turned), weight);
}

/** values [k, n] := R^T values, in place, a strip of columns at a time. */
function multiplyTransposed(matrix: Float64Array, values: Float32Array, k: number, n: number): void {
  const strip = Math.min(n, 64);
  const sums = new Float64Array(k * strip);
  for (let left = 0; left < n; left += strip) {
    const width = Math.min(strip, n - left);
    sums.fill(0);
    for (let i = 0; i < k; i++) {
      for (let o = 0; o < k; o++) {
        const factor = matrix[i * k + o] ?? 0;
        for (let j = 0; j < width; j++)
          sums[o * strip + j] = (sums[o * strip + j] ?? 0) + factor * (values[i * n + left + j] ?? 0);
      }
    }
    for (let o = 0; o < k; o++) for (let j = 0; j < width; j++) values[o * n + left + j] = sums[o * strip + j] ?? 0;
  }
}

/** values [k, n] := values R, in place, row by row. */
function multiplyRight(values: Float32Array, matrix: Float64Array, k: number, n: number): void {
  const row = new Float64Array(n);
  for (let r = 0; r < k; r++) {
    row.fill(0);
    for (let i = 0; i < n; i++) {
      const factor = values[r * n + i] ?? 0;
      for (let j = 0; j < n; j++) row[j] = (row[j] ?? 0) + factor * (matrix[i * n + j] ?? 0);
    }
    for (let j = 0; j < n; j++) values[r * n + j] = row[j] ?? 0;
  }
}

/** The largest dense factor of an online transform: beyond it a second product is cheaper. */
const LARGEST_FACTOR = 64;

/**
 * Nodes for x -> x R along the last axis of x [..outer, ..lead, size], as one product for each Kronecker factor of R.
 * `lead` are sizes of fixed axes before the last; `outer` counts the axes of any size before those. `output` is the name
 * of the result, where it must have one.
 */
export function emitRotation(
  builder: GraphBuilder,
  input: string,
  rotation: HadamardRotation,
  lead: readonly number[],
  outer: number = 2,
  output?: string,
): string {
  const { size, blocks, factor, power, signs } = rotation;
  let value = input;
  if (signs !== null)
    value = builder.op("Mul", [value, builder.initializer(f32Tensor([size], Float32Array.from(signs)), "signs")]);
  // x (A x B x C) on x seen as [.., a, b, c]: A^T on the left, C on the right, B between.
  const order = factor.order;
  const kept = [...Array.from({ length: outer }, () => 0), ...lead];
  let inner = power;
  let middle = 1;
  while (inner > LARGEST_FACTOR) {
    inner /= 2;
    middle *= 2;
  }
  if (inner > 1) {
    const shaped = builder.op("Reshape", [value, builder.ints([...kept, blocks * order, middle, inner])]);
    value = product(builder, shaped, hadamardFactor(builder, inner), "right");
  }
  if (middle > 1) value = product(builder, value, hadamardFactor(builder, middle), "left");
  if (order > 1) {
    const flat = builder.op("Reshape", [value, builder.ints([...kept, blocks, order, middle * inner])]);
    const transposed = new Float32Array(order * order);
    for (let i = 0; i < order; i++) {
      for (let j = 0; j < order; j++) transposed[j * order + i] = (factor.signs[i * order + j] ?? 0) / Math.sqrt(order);
    }
    value = product(
      builder,
      flat,
      builder.initializer(f32Tensor([order, order], transposed), `hadamard${order}`),
      "left",
    );
  }
  return builder.op("Reshape", [value, builder.ints([...kept, size])], {}, output);
}

function product(builder: GraphBuilder, value: string, matrix: string, side: "left" | "right"): string {
  const output = builder.fresh("rotated");
  const inputs = side === "right" ? [value, matrix] : [matrix, value];
  builder.nodes.push(makeNode("MatMul", inputs, [output], new Map(), { metadata: ROTATION_ROLE }));
  return output;
}

/** The symmetric orthonormal Walsh-Hadamard matrix of a power of two. */
function hadamardFactor(builder: GraphBuilder, order: number): string {
  const values = new Float32Array(order * order);
  for (let i = 0; i < order; i++) values[i * order + i] = 1;
  rotateRows(values, hadamardRotation(order), "forward");
  return builder.initializer(f32Tensor([order, order], values), `walsh${order}`);
}
