/** The online Hadamard rotation from standard ops, and what it must give, in float64. */

import { invariant } from "../support/errors.js";
import type { Body } from "./body.js";

/** Largest Walsh-Hadamard matrix of one product: beyond it two products are cheaper. */
const LARGEST_FACTOR = 64;
/** Bits of a row number of a Walsh-Hadamard matrix; sizes end at 2^30, of which the first factor takes 6. */
const INDEX_BITS = 24;

/**
 * x [.., size] -> x (I x F x W), W the orthonormal Walsh-Hadamard matrix of order `power`, F = factor / sqrt(order). The
 * matrices depend on attributes only, so a runtime that folds constants makes them once.
 */
export function hadamardRotate(body: Body, x: string, factor: string): string {
  const [order, power] = [body.size("order"), body.size("power")];
  const inner = body.op("Min", [power, body.ints(LARGEST_FACTOR)]);
  const middle = body.div(power, inner);
  const rows = body.reshape(x, -1, inner);
  let value = body.matmul(rows, walsh(body, inner));
  [value = ""] = body.branch(
    body.op("Greater", [middle, body.ints(1)]),
    (then) => [then.reshape(then.matmul(walsh(then, middle), then.reshape(value, -1, middle, inner)), -1, inner)],
    (otherwise) => [otherwise.op("Identity", [value])],
  );
  const left = body.div(body.transpose(factor, 1, 0), body.op("Sqrt", [body.cast(body.op("Squeeze", [order]), "f32")]));
  [value = ""] = body.branch(
    body.op("Greater", [order, body.ints(1)]),
    (then) => [then.matmul(left, then.reshape(value, -1, order, power))],
    (otherwise) => [otherwise.mul(value, otherwise.op("Squeeze", [left]))],
  );
  return body.op("Reshape", [value, body.op("Shape", [x])], { allowzero: 1 });
}

/** The orthonormal Walsh-Hadamard matrix: entry (i, j) is negative where i and j share an odd number of bits. */
function walsh(body: Body, size: string): string {
  const scalar = body.op("Squeeze", [size]);
  const index = body.unsqueeze(body.op("Range", [body.int(0), scalar, body.int(1)]), 1);
  const powers = body.ints(...Array.from({ length: INDEX_BITS }, (_, bit) => 2 ** bit));
  const bits = body.cast(body.op("Mod", [body.div(index, powers), body.int(2)]), "f32");
  const shared = body.matmul(bits, body.transpose(bits, 1, 0));
  const odd = body.op("Mod", [shared, body.float(2)], { fmod: 1 });
  const signs = body.sub(body.float(1), body.mul(odd, body.float(2)));
  return body.div(signs, body.op("Sqrt", [body.cast(scalar, "f32")]));
}

/** The operator by its definition: rows of x [.., size] times I x F x W. */
export function hadamardRotateReference(args: {
  readonly size: number;
  readonly order: number;
  readonly power: number;
  /** [.., size]. */
  readonly x: Float32Array | Float64Array;
  /** [order, order]. */
  readonly factor: Float32Array | Float64Array;
}): Float64Array {
  const { size, order, power, x, factor } = args;
  const span = order * power;
  invariant(size % span === 0 && x.length % size === 0, "hadamardRotateReference: sizes do not fit");
  const y = new Float64Array(x.length);
  for (let start = 0; start < x.length; start += span) {
    for (let at = 0; at < span; at++) {
      const [target, column] = [Math.floor(at / power), at % power];
      let sum = 0;
      for (let from = 0; from < span; from++) {
        const [row, inside] = [Math.floor(from / power), from % power];
        sum += x[start + from]! * factor[row * order + target]! * walshSign(inside, column);
      }
      y[start + at] = sum / Math.sqrt(span);
    }
  }
  return y;
}

function walshSign(i: number, j: number): number {
  let sign = 1;
  for (let shared = i & j; shared !== 0; shared &= shared - 1) sign = -sign;
  return sign;
}
