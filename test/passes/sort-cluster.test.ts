import { describe, expect, test } from "vitest";
import { absorbNormGain } from "../../passes/absorb-norm-gain.js";
import { sortCluster, sortedInputs } from "../../passes/sort-cluster.js";
import type { Model } from "../../src/ir/graph.js";
import { clusterNumbers, sortAndCluster } from "../../src/quant/cluster.js";
import { CLUSTERS_KEY } from "../../src/rewrite/semantic.js";
import { sitesOf } from "../../src/rewrite/sites.js";
import { Random } from "../../src/support/random.js";
import { aligned, fold, foldSample, seeing, shifted, shiftedRows, spoiled } from "../support/fold-runs.js";
import { expectSame, expectTold, forMost, golden, type Outcome, runPass, type Sample } from "../support/pass-runs.js";
import { arbitraryRaised, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const WIDE: RaisedSpelling = { ...PLAIN, heads: 6, headDim: 5 };

/** Made-up sizes of the channels of every scan's x, over decades. */
function sizesOf(model: Model, seed: number = 1): (value: string) => Float64Array {
  const { blocks } = sitesOf(model);
  const size = Math.max(0, ...blocks.map(({ scan }) => scan.heads * scan.headDim));
  return (value) => {
    const random = new Random(seed).split(value);
    return Float64Array.from({ length: size }, () => Math.exp(2 * random.normal()));
  };
}

/** A sample from the zero state. States after the call are in the new order, so they are not compared. */
async function fromZero(spelling: RaisedSpelling): Promise<Sample> {
  return seeing(await aligned(await foldSample(spelling, "zero")), (name) => !name.startsWith("present_"));
}

const sort = (model: Model, seed: number = 1): Promise<Outcome> =>
  runPass(sortCluster, model, { channelSizes: sizesOf(model, seed), clusters: { heads: 2, channels: 2 } });

describe("sort-cluster", () => {
  test("golden", async () => {
    const { model } = await aligned(await foldSample(WIDE));
    const text = golden("Projections, convolution, scan and norm take the new order.", model, await sort(model));
    await expect(text).toMatchFileSnapshot("sort-cluster/mamba2.irtxt");
  });

  describe("the model computes the same", () => {
    test("from the zero state, for most spellings", async () => {
      // Gemm brings biases, and norms over parts may cut through groups: those keep their order (below).
      const sortable = arbitraryRaised({ family: "mamba2", decoy: null }).map(
        (spelling): RaisedSpelling => ({
          ...spelling,
          projection: spelling.projection === "transposed" ? "transposed" : "matmul",
          groups: spelling.gatedNorm === "grouped" ? 2 : spelling.groups,
        }),
      );
      await forMost(sortable, 12, async (spelling) => {
        const sample = await fromZero(spelling);
        const outcome = await fold(sample, sortCluster, { channelSizes: sizesOf(sample.model, spelling.seed) });
        await expectSame(sample, outcome.model);
        return outcome.changed === spelling.layers;
      });
    });

    test("with decoys", async () => {
      for (const decoy of ["norm-output", "gate-reader", "in-bias", "out-reader", "writer-reader"] as const) {
        const sample = await fromZero({ ...WIDE, decoy });
        await expectSame(sample, (await sort(sample.model)).model);
      }
    });

    test("after the gain was absorbed, and when sorted again", async () => {
      const sample = await fromZero({ ...WIDE, layers: 2 });
      const bare = await fold(sample, absorbNormGain, {});
      const once = await sort(bare.model);
      const twice = await sort(once.model, 2);
      expect([once.changed, twice.changed]).toEqual([2, 2]);
      await expectSame(sample, once.model);
      await expectSame(sample, twice.model);
    });
  });

  test("says which cluster each channel is in, and channels of a head ascend", async () => {
    const { model } = await aligned(await foldSample(WIDE));
    const { model: after } = await sort(model);
    const [value = ""] = sortedInputs(sitesOf(model));
    const sizes = sizesOf(model)(value);
    const sorted = sortAndCluster(sizes, { groups: 2, heads: 6, channels: 5 }, { heads: 2, channels: 2 });
    const scan = sitesOf(after).blocks[0]?.scan.node;
    expect(JSON.parse(scan?.metadata.get(CLUSTERS_KEY) ?? "null")).toEqual([...clusterNumbers(sorted)]);
    for (let head = 0; head < 6; head++) {
      const placed = [...sorted.channelOrder.subarray(head * 5, head * 5 + 5)].map((old) => sizes[old] ?? 0);
      expect(placed).toEqual([...placed].sort((a, b) => a - b));
    }
  });

  describe("keeps the order where not all that follows is known", () => {
    const cases: readonly (readonly [string, RaisedSpelling, RegExp])[] = [
      ["Mamba-1", { ...WIDE, family: "mamba1" }, /every channel of Mamba-1 is a head/],
      ["a bias behind in_proj", { ...WIDE, decoy: "in-bias" }, /something else reads|does not come|dt/],
      ["a second reader of the gate", { ...WIDE, decoy: "gate-reader" }, /something else reads the gate/],
      ["a second reader of what the scan gives", { ...WIDE, decoy: "out-reader" }, /MatMul reads/],
      ["a norm that cuts through groups", { ...WIDE, groups: 1, gatedNorm: "grouped" }, /norm over parts/],
    ];
    for (const [label, spelling, message] of cases) {
      test(label, async () => {
        const { model } = await aligned(await foldSample(spelling));
        const outcome = await sort(model);
        expect(outcome.changed).toBe(0);
        expect(outcome.remarks.map((remark) => remark.message).join()).toMatch(message);
      });
    }

    test("a norm over whole groups is fine", async () => {
      const sample = await fromZero({ ...WIDE, groups: 2, gatedNorm: "grouped" });
      const outcome = await sort(sample.model);
      expect(outcome.changed).toBe(1);
      await expectSame(sample, outcome.model);
    });
  });

  test("equal sizes keep every channel where it is", async () => {
    const sample = await aligned(await foldSample(WIDE));
    const same = (): Float64Array => new Float64Array(30);
    const { model } = await fold(sample, sortCluster, { channelSizes: same });
    await expectSame(sample, model);
  });

  describe("a wrong order is noticed", () => {
    const wrongs: Readonly<Record<string, (sample: Sample, outcome: Outcome) => Model>> = {
      "out_proj stays": ({ model }, after) => swapBack(model, after.model, /out_proj\.weight/),
      "in_proj stays": ({ model }, after) => swapBack(model, after.model, /in_proj\.weight/),
      "gain stays": ({ model }, after) => swapBack(model, after.model, /gated_norm/),
      "dt_bias moves one head": (_sample, after) => spoiled(after.model, /dt_bias.*sorted$/, shifted),
      "A moves one head": (_sample, after) => spoiled(after.model, /\.A.*sorted$/, shifted),
      "D stays": ({ model }, after) => swapBack(model, after.model, /\.D/),
      "convolution moves one row": (_sample, after) =>
        spoiled(after.model, /conv\.weight\.sorted$/, (values, shape) => shiftedRows(values, [shape[0] ?? 1, 3])),
    };
    for (const [label, make] of Object.entries(wrongs)) {
      test(label, async () => {
        const sample = await fromZero(WIDE);
        const outcome = await sort(sample.model);
        await expectSame(sample, outcome.model);
        await expectTold(sample, make(sample, outcome), label);
      });
    }
  });
});

/** The model after the pass with the one sorted parameter of this name as it was before. */
function swapBack(before: Model, after: Model, name: RegExp): Model {
  const old = [...before.graph.initializers].filter(([candidate]) => name.test(candidate));
  const fresh = [...after.graph.initializers.keys()].filter((candidate) => name.test(candidate));
  const [tensor] = old[0]?.slice(1) ?? [];
  if (old.length !== 1 || fresh.length !== 1 || tensor === undefined || typeof tensor === "string") {
    throw new Error(`${name} names ${old.length} before and ${fresh.length} after`);
  }
  const initializers = new Map([...after.graph.initializers, [fresh[0] ?? "", tensor]]);
  return { ...after, graph: { ...after.graph, initializers } };
}
