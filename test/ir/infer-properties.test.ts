/** Random nodes, a few hundred of a kind in one session: inference and the runtime must agree on every one. */

import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { boolTensor, f32Tensor, i64Tensor, type Tensor } from "../../src/ir/tensor.js";
import { type Case, compare, infer, modelOf, node, refusedByRuntime } from "../support/operator-run.js";

const SAMPLES = 300;
/** Each refusal needs a session of its own. */
const REFUSALS = 25;

const dims = (least: number, most: number): fc.Arbitrary<number[]> =>
  fc.array(fc.integer({ min: 0, max: 4 }), { minLength: least, maxLength: most });

/** int64 or float32 with small values of both signs. */
function tensorOf(shape: readonly number[]): fc.Arbitrary<Tensor> {
  const count = shape.reduce((product, dim) => product * dim, 1);
  const values = fc.array(fc.integer({ min: -6, max: 6 }), { minLength: count, maxLength: count });
  return fc.tuple(values, fc.boolean()).map(([data, whole]) => (whole ? i64Tensor : f32Tensor)(shape, data));
}

const ints = (values: readonly (number | bigint)[]): Tensor => i64Tensor([values.length], values);

/** Bounds near the axis, far outside it, and the extremes of int64. */
const bound: fc.Arbitrary<bigint> = fc.oneof(
  fc.integer({ min: -6, max: 6 }).map(BigInt),
  fc.constantFrom(-(2n ** 63n), 2n ** 63n - 1n, 2n ** 31n, 2n ** 31n - 1n, -(2n ** 31n)),
);
const step = fc.constantFrom(1n, 2n, 3n, -1n, -2n, 2n ** 63n - 1n);

const slices: fc.Arbitrary<Case> = dims(1, 3).chain((shape) =>
  fc
    .tuple(
      tensorOf(shape),
      fc.subarray([...shape.keys()], { minLength: 1 }),
      fc.array(fc.tuple(bound, bound, step), { minLength: 3, maxLength: 3 }),
      fc.boolean(),
    )
    .map(([x, axes, bounds, fromBack]) => {
      const used = bounds.slice(0, axes.length);
      const named = axes.map((axis) => (fromBack ? axis - shape.length : axis));
      return node("Slice", [
        x,
        ints(used.map(([start]) => start)),
        ints(used.map(([, end]) => end)),
        ints(named),
        ints(used.map(([, , by]) => by)),
      ]);
    }),
);

const reshapes: fc.Arbitrary<Case> = fc
  .tuple(dims(0, 3), fc.array(fc.constantFrom(-1, 0, 1, 2, 3, 4, 6, 8, 12), { maxLength: 3 }))
  .chain(([shape, target]) => tensorOf(shape).map((x) => node("Reshape", [x, ints(target)])));

const pads: fc.Arbitrary<Case> = dims(1, 3).chain((shape) =>
  fc
    .tuple(
      tensorOf(shape),
      fc.array(fc.integer({ min: -2, max: 3 }), { minLength: 2 * shape.length, maxLength: 2 * shape.length }),
    )
    .map(([x, amounts]) => node("Pad", [x, ints(amounts)])),
);

/** Shapes that mostly broadcast: each operand drops leading axes or stretches some from 1. */
const broadcasts: fc.Arbitrary<Case> = fc
  .tuple(
    dims(0, 3),
    fc.integer({ min: 0, max: 3 }),
    fc.infiniteStream(fc.boolean()),
    fc.constantFrom("Add", "Sub", "Mul", "Max", "Min", "Less", "Equal"),
  )
  .chain(([shape, dropped, stretch, op]) => {
    const other = shape.slice(Math.min(dropped, shape.length)).map((dim) => (stretch.next().value ? 1 : dim));
    return fc
      .tuple(tensorOf(shape), tensorOf(other), fc.boolean())
      .filter(([a, b]) => a.dtype === b.dtype)
      .map(([a, b, swap]) => node(op, swap ? [b, a] : [a, b]));
  });

const gathers: fc.Arbitrary<Case> = fc.tuple(dims(1, 3), dims(0, 2), fc.nat()).chain(([shape, chosen, seed]) => {
  const axis = seed % shape.length;
  const size = shape[axis] ?? 0;
  const count = chosen.reduce((product, dim) => product * dim, 1);
  const index = fc.integer({ min: -size, max: Math.max(0, size - 1) });
  return fc
    .tuple(tensorOf(shape), fc.array(index, { minLength: count, maxLength: count }))
    .map(([x, indices]) => node("Gather", [x, i64Tensor(chosen, indices)], { axis }));
});

const reductions: fc.Arbitrary<Case> = dims(1, 4).chain((shape) =>
  fc
    .tuple(
      tensorOf(shape),
      fc.subarray([...shape.keys()]),
      fc.constantFrom("ReduceSum", "ReduceProd", "ReduceSumSquare", "ReduceL1"),
      fc.boolean(),
    )
    .map(([x, axes, op, keep]) => node(op, [x, ints(axes)], { keepdims: Number(keep) })),
);

const moves: fc.Arbitrary<Case> = dims(1, 4).chain((shape) =>
  fc
    .tuple(tensorOf(shape), fc.shuffledSubarray([...shape.keys()], { minLength: shape.length }), fc.nat(), fc.boolean())
    .map(([x, perm, seed, tile]) => {
      if (!tile) return node("Transpose", [x], { perm });
      return node("Tile", [x, ints(shape.map((_, axis) => (seed >> (2 * axis)) % 3))]);
    }),
);

const wheres: fc.Arbitrary<Case> = fc.tuple(dims(0, 3), fc.infiniteStream(fc.boolean())).chain(([shape, random]) => {
  const squeezed = (): number[] => shape.map((dim) => (random.next().value ? 1 : dim));
  const mask = squeezed();
  const count = mask.reduce((product, dim) => product * dim, 1);
  const condition = boolTensor(
    mask,
    Array.from({ length: count }, () => random.next().value),
  );
  return fc
    .tuple(tensorOf(squeezed()), tensorOf(squeezed()))
    .filter(([a, b]) => a.dtype === b.dtype)
    .map(([a, b]) => node("Where", [condition, a, b]));
});

const LETTERS: readonly string[] = ["a", "b", "c", "d", "e"];

/** Two-operand products over letters of size 2 to 5. */
const einsums: fc.Arbitrary<Case> = fc
  .tuple(
    fc.shuffledSubarray([...LETTERS], { minLength: 1 }),
    fc.shuffledSubarray([...LETTERS], { minLength: 1 }),
    fc.nat(),
  )
  .map(([left, right, seed]) => {
    const zeros = (letters: readonly string[]): Tensor => {
      const shape = letters.map((letter) => 2 + (LETTERS.indexOf(letter) % 4));
      return f32Tensor(shape, new Float32Array(shape.reduce((product, dim) => product * dim, 1)));
    };
    const all = [...new Set([...left, ...right])];
    const kept = all.filter((_, at) => (seed >> at) % 2 === 0);
    return node("Einsum", [zeros(left), zeros(right)], {
      equation: `${left.join("")},${right.join("")}->${kept.join("")}`,
    });
  });

const KINDS: readonly [string, fc.Arbitrary<Case>, number][] = [
  ["Slice", slices, 1],
  ["Reshape", reshapes, 2],
  ["Pad", pads, 3],
  ["broadcasting", broadcasts, 4],
  ["Gather", gathers, 5],
  ["reductions", reductions, 6],
  ["Transpose and Tile", moves, 7],
  ["Where", wheres, 8],
];

function isRefused(one: Case): boolean {
  return infer(modelOf([one], 21).model).failures.length > 0;
}

describe("random nodes", () => {
  it.each(KINDS)("%s", async (_, arbitrary, seed) => {
    const cases = fc.sample(arbitrary, { numRuns: SAMPLES, seed });
    const refused = cases.filter(isRefused);
    const running = cases.filter((one) => !refused.includes(one));
    expect(running.length).toBeGreaterThan(SAMPLES / 8);
    for (const [told, real] of await compare(running, 21, true)) expect(told).toEqual(real);
    for (const one of refused.slice(0, REFUSALS)) expect([one, await refusedByRuntime(one, 21)]).toEqual([one, true]);
  });

  it("Einsum", async () => {
    const cases = fc.sample(einsums, { numRuns: SAMPLES, seed: 9 });
    for (const [told, real] of await compare(cases, 21, false)) expect(told).toEqual(real);
  });
});
