/** Weights and schemes to draw from. */

import fc from "fast-check";
import type { Weight } from "../../src/quant/ranges.js";
import {
  type Bits,
  type Clip,
  type Granularity,
  MSE_CLIP,
  type WeightScheme,
  type Zero,
} from "../../src/quant/scheme.js";
import { Random } from "../../src/support/random.js";

/** Normal float32 numbers with a few outliers and a few exact zeros. */
export function heavyWeight(shape: readonly number[], seed: number): Weight {
  const random = new Random(seed);
  const count = shape.reduce((product, dim) => product * dim, 1);
  const data = Float32Array.from({ length: count }, () => {
    const kind = random.uniform();
    return kind < 0.05 ? 0 : random.normal() * (kind > 0.97 ? 10 : 1);
  });
  return { label: "w", shape, data };
}

const bits: fc.Arbitrary<Bits> = fc.constantFrom(2, 3, 4, 8);
const zero: fc.Arbitrary<Zero> = fc.constantFrom<Zero>(
  { kind: "symmetric", step: "peak" },
  { kind: "symmetric", step: "span" },
  { kind: "asymmetric" },
);
const clip: fc.Arbitrary<Clip> = fc.constantFrom<Clip>({ kind: "none" }, { kind: "none" }, MSE_CLIP);

export function granularities(rank: number): fc.Arbitrary<Granularity> {
  const axis = fc.integer({ min: 0, max: rank - 1 });
  return fc.oneof(
    fc.constant<Granularity>({ kind: "tensor" }),
    axis.map((a): Granularity => ({ kind: "channel", axis: a })),
    fc.tuple(axis, fc.integer({ min: 1, max: 9 })).map(([a, size]): Granularity => ({ kind: "group", axis: a, size })),
  );
}

export function schemes(rank: number): fc.Arbitrary<WeightScheme> {
  return fc.record({
    bits,
    granularity: granularities(rank),
    zero,
    clip,
    scaleType: fc.constantFrom("f32" as const, "f16" as const),
  });
}
