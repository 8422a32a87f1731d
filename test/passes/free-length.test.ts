import type fc from "fast-check";
import { describe, expect, test } from "vitest";
import { freeLength } from "../../passes/free-length.js";
import { raiseRecipe } from "../../passes/recipes.js";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import { type Model, makeNode } from "../../src/ir/graph.js";
import { f32Tensor } from "../../src/ir/tensor.js";
import { formatModel } from "../../src/ir/text.js";
import { FLOAT_STATE, scanNode } from "../../src/rewrite/semantic.js";
import { modelAround, normalWeight } from "../support/mamba-graphs/decoys.js";
import { arbitraryCase, type MambaCase, mambaModel, randomFeeds, smallModel } from "../support/mamba-graphs.js";
import {
  difference,
  expectSettled,
  forMost,
  golden,
  outputsOf,
  roundingBound,
  runAll,
  runPass,
} from "../support/pass-runs.js";

async function raised(model: Model): Promise<Model> {
  return (await runAll(model, raiseRecipe())).model;
}

function tokenDims(model: Model): unknown {
  const [tokens] = model.graph.inputs;
  return tokens?.type?.kind === "tensor" ? tokens.type.shape : null;
}

/** A scan between a Reshape and an Expand that hold the traced batch 2 and length 3. */
function frozen(): Model {
  const b = new GraphBuilder("");
  const rows = b.op("Gather", [normalWeight(b, "table", [5, 4]), "input_ids"], { axis: 0 });
  const part = (label: string, width: number, shape: readonly number[]): string =>
    b.op("Reshape", [b.op("MatMul", [rows, normalWeight(b, label, [4, width])]), b.ints(shape)]);
  const weights = [f32Tensor([2], [-1, -0.5]), f32Tensor([2, 2], [1, 2, 3, 4]), f32Tensor([2], [0, 0.5])];
  const [A = "", D = "", bias = ""] = weights.map((tensor) => b.initializer(tensor));
  const y = b.fresh("y");
  b.nodes.push(
    scanNode(
      {
        layer: "layers.0",
        form: "chunked",
        family: "mamba2",
        heads: 2,
        headDim: 2,
        dState: 3,
        groups: 1,
        dtMin: Number.NEGATIVE_INFINITY,
        dtMax: Number.POSITIVE_INFINITY,
        stateLayout: "PN",
        error: 0,
        state: FLOAT_STATE,
      },
      [
        part("x", 4, [2, 3, 2, 2]),
        part("dt", 2, [2, 3, 2]),
        A,
        part("B", 3, [2, 3, 1, 3]),
        part("C", 3, [2, 3, 1, 3]),
        D,
        bias,
        "",
      ],
      [y, ""],
    ),
  );
  const wide = b.op("Expand", [b.initializer(f32Tensor([1, 1, 4], [1, 2, 3, 4])), b.ints([2, 3, 4])]);
  b.op("Add", [b.op("Reshape", [y, b.ints([2, 3, 4])]), wide], {}, "logits");
  return modelAround(b.graph("frozen", [typed("input_ids", "i64", [2, 3])], [typed("logits", "f32", [2, 3, 4])]));
}

/** The model with a table of one row a position added to the embeddings. */
function withPositions(model: Model, length: number, width: number): Model {
  const { graph } = model;
  const at = graph.nodes.findIndex((node) => node.op === "Gather" && node.inputs[1] === "input_ids");
  const lookup = graph.nodes[at];
  const [output] = lookup?.outputs ?? [];
  if (lookup === undefined || output === undefined) throw new Error("no embeddings");
  const table = f32Tensor(
    [1, length, width],
    Float32Array.from({ length: length * width }, (_, i) => Math.sin(i)),
  );
  const nodes = [
    ...graph.nodes.slice(0, at),
    { ...lookup, outputs: ["plain"] },
    makeNode("Add", ["plain", "positions"], [output]),
    ...graph.nodes.slice(at + 1),
  ];
  return { ...model, graph: { ...graph, nodes, initializers: new Map([...graph.initializers, ["positions", table]]) } };
}

describe("free-length", () => {
  test("golden", async () => {
    const before = frozen();
    const about = "Shapes that hold the traced batch and length follow the tokens instead.";
    await expect(golden(about, before, await runPass(freeLength, before, {}))).toMatchFileSnapshot(
      "free-length/frozen.irtxt",
    );
  });

  describe("a raised graph of one length works for others", () => {
    const cases: readonly (readonly [string, fc.Arbitrary<MambaCase>, number])[] = [
      ["mamba1 unrolled", arbitraryCase("mamba1", "unrolled"), 5],
      ["mamba2 unrolled", arbitraryCase("mamba2", "unrolled"), 5],
      ["mamba2 chunked", arbitraryCase("mamba2", "chunked").filter(({ spelling }) => spelling.length !== null), 4],
      ["mamba2 loop", arbitraryCase("mamba2", "loop").filter(({ spelling }) => spelling.length !== null), 4],
    ];
    for (const [label, spellings, runs] of cases) {
      test(label, async () => {
        await forMost(spellings, runs, async (mamba) => {
          const source = mambaModel(mamba.sizes, mamba.spelling, mamba.seed);
          const before = await raised(source);
          const { model, remarks } = await runPass(freeLength, before, {});
          if (remarks.some(({ kind }) => kind === "warning")) {
            expect(model).toBe(before);
            return false;
          }
          expect(tokenDims(model)).toEqual([expect.any(String), expect.any(String)]);
          const dynamic = {
            ...mamba.spelling,
            form: "loop",
            length: null,
            batch: null,
            claimsFreeLength: false,
          } as const;
          const free = mambaModel(mamba.sizes, dynamic, mamba.seed);
          for (const [batch, length] of [
            [1, mamba.sizes.kernel],
            [3, 13],
          ] as const) {
            const feeds = randomFeeds(free, { batch, length, vocabulary: mamba.sizes.vocabulary }, mamba.seed);
            const expected = await outputsOf(free, feeds, batch);
            const error = difference(await outputsOf(model, feeds, batch), expected);
            expect(error).toBeLessThanOrEqual(await roundingBound(free, feeds, batch, expected));
          }
          return formatModel(model, { dense: false }) !== formatModel(before, { dense: false });
        });
      });
    }
  });

  test("refuses a graph that knows its positions, names the place, and leaves it as it is", async () => {
    for (const family of ["mamba1", "mamba2"] as const) {
      const before = await raised(withPositions(smallModel({ family, length: 6 }), 6, 10));
      const { model, changed, remarks } = await runPass(freeLength, before, {});
      expect(changed).toBe(0);
      expect(model).toBe(before);
      expect(remarks.map(({ code, message }) => `${code} ${message}`)).toEqual([
        expect.stringMatching(/^free-length\/frozen the file works only for batch any and length 6: /),
      ]);
    }
  });

  test("leaves graphs without scans alone", async () => {
    const b = new GraphBuilder("");
    b.op("Reshape", ["x", b.ints([2, 3])], {}, "y");
    const before = modelAround(b.graph("plain", [typed("x", "f32", [3, 2])], [typed("y", "f32", [2, 3])]));
    expect((await runPass(freeLength, before, {})).model).toBe(before);
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    for (const before of [frozen(), await raised(smallModel({ family: "mamba2", length: 4, batch: 2 }))])
      await expectSettled(freeLength, before, (await runPass(freeLength, before, {})).model, {});
  });
});
