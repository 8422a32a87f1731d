import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import { f32Tensor, type Tensor } from "../../src/ir/tensor.js";
import { roundToNearest } from "../../src/quant/round-nearest.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { GraphEdit } from "../../src/rewrite/edit.js";
import { replaceWeight } from "../../src/rewrite/rounded-weight.js";
import type { LinearSite } from "../../src/rewrite/sites.js";
import { Random } from "../../src/support/random.js";

/** Initialisers that stand for two rounded weights [256, 24], and how often each was rounded. */
function rounded(spelling: string): { tensors: Tensor[]; fresh: Tensor[]; rounds: number[] } {
  const scheme = parseWeightScheme(spelling);
  const rounds = [0, 0];
  const make = (counts: number[]): Tensor[] => {
    const b = new GraphBuilder("");
    const random = new Random(4);
    for (const w of ["w0", "w1"]) {
      b.initializers.set(
        w,
        f32Tensor(
          [256, 24],
          Float32Array.from({ length: 256 * 24 }, () => random.normal()),
        ),
      );
      b.op("MatMul", ["x", w], {}, `y${w}`);
    }
    const graph = b.graph(
      "g",
      [typed("x", "f32", [1, 256])],
      [typed("yw0", "f32", [1, 24]), typed("yw1", "f32", [1, 24])],
    );
    const edit = new GraphEdit(graph);
    graph.nodes.forEach((node, at) => {
      const weight = b.initializers.get(`w${at}`);
      if (weight === undefined) throw new Error("no weight");
      const site: LinearSite = {
        node,
        layer: `layers.${at}`,
        role: "other",
        input: "x",
        weight: `w${at}`,
        output: node.outputs[0] ?? "",
        transposed: false,
        weightSide: "right",
        inFeatures: 256,
        outFeatures: 24,
      };
      const data = new Float32Array(weight.bytes().buffer);
      replaceWeight(edit, site, scheme, {
        weight,
        round: (room) => {
          counts[at] = (counts[at] ?? 0) + 1;
          return roundToNearest({ label: `w${at}`, shape: weight.shape, data }, scheme, room);
        },
      });
    });
    return [...edit.commit().initializers].filter(([name]) => name.includes("_")).map(([, tensor]) => tensor);
  };
  return { tensors: make(rounds), fresh: make([]), rounds };
}

describe.each(["i8:channel", "u8:tensor", "i4:g128", "u4:g32", "i2:g64"])("%s", (spelling) => {
  test("codes and scales are the same in any order, lent or read", () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(5), fc.boolean()), { minLength: 1, maxLength: 12 }), (wishes) => {
        const { tensors, fresh } = rounded(spelling);
        for (const [pick, lent] of wishes) {
          const at = pick % tensors.length;
          const [tensor, expected] = [tensors[at], fresh[at]?.bytes()];
          if (tensor === undefined || expected === undefined) throw new Error("no tensor");
          const actual = lent
            ? tensor.lend(0, tensor.byteLength, (bytes) => Buffer.from(bytes))
            : Buffer.from(tensor.bytes());
          expect(actual.equals(expected)).toBe(true);
        }
      }),
      { seed: 6, numRuns: 30 },
    );
  });

  test("in the order of a file, each weight is rounded once", () => {
    const { tensors, rounds } = rounded(spelling);
    for (const tensor of tensors) tensor.lend(0, tensor.byteLength, () => 0);
    expect(rounds).toEqual([1, 1]);
  });
});
