import { describe, expect, test } from "vitest";
import { completeStates } from "../../passes/complete-states.js";
import { type MergePairOptions, mergePair, type Trust } from "../../passes/merge-pair.js";
import { raiseRecipe } from "../../passes/recipes.js";
import type { Model } from "../../src/ir/graph.js";
import { f32Tensor, i64Tensor, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { step } from "../../src/rewrite/pipeline.js";
import { semanticOps } from "../../src/rewrite/semantic.js";
import { stateSlots } from "../../src/rewrite/states.js";
import {
  arbitraryCase,
  DEFAULT_SPELLING,
  type MambaCase,
  type MambaSizes,
  mambaModel,
  type Spelling,
  smallModel,
} from "../support/mamba-graphs.js";
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

/** How far the logits of the two files are from each other; null when they were not run. */
type Measured = number | null;

interface Pair {
  readonly prefill: Model;
  readonly decode: Model;
}

async function raise(model: Model): Promise<Model> {
  return (await runAll(model, raiseRecipe())).model;
}

const PREFILL = { form: "chunked", length: null, states: "present" } as const;
const DECODE = { form: "step", length: 1, states: "both" } as const;

/** A prefill and a decode graph of one model, each with changes of its own. */
async function pairOf(
  shared: Partial<Spelling>,
  prefill: Partial<Spelling> = {},
  decode: Partial<Spelling> = {},
  sizes: { readonly prefill?: Partial<MambaSizes>; readonly decode?: Partial<MambaSizes>; readonly seed?: number } = {},
): Promise<Pair> {
  const family = shared.family ?? "mamba2";
  const form = family === "mamba2" ? "chunked" : "loop";
  const first = smallModel({ family, ...shared, ...PREFILL, form, ...prefill }, 1, sizes.prefill);
  const second = smallModel({ family, ...shared, ...DECODE, ...decode }, sizes.seed ?? 1, sizes.decode);
  return { prefill: await raise(first), decode: await raise(second) };
}

function options(
  pair: Pair,
  trust: Trust | null,
  measured: Measured,
  names: Map<string, string> = new Map(),
): MergePairOptions {
  return { decode: pair.decode, trust, measure: () => Promise.resolve(measured), names };
}

function clamps(model: Model): number[] {
  return semanticOps(model.graph.nodes).flatMap((op) => (op.kind === "scan" ? [op.dtMin, op.dtMax] : []));
}

const LOW = Math.fround(0.15);
const HIGH = Math.fround(0.9);
const OPEN = [Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY];

describe("merge-pair", () => {
  test("golden: one layer, the decode graph's clamp trusted", async () => {
    const sizes = { layers: 1, vocabulary: 5, dModel: 4 };
    const pair = await pairOf(
      { decay: "folded" },
      { form: "loop", clamp: "clip" },
      {},
      { prefill: sizes, decode: sizes },
    );
    const outcome = await runPass(mergePair, pair.prefill, options(pair, "decode", null));
    await expect(golden("Only the clamp of dt changes.", pair.prefill, outcome)).toMatchFileSnapshot(
      "merge-pair/trust-decode.irtxt",
    );
  });

  test("a pair that agrees is the prefill graph, and the state names are known", async () => {
    for (const stateNames of ["hf", "plain"] as const) {
      const pair = await pairOf({ stateNames });
      const names = new Map<string, string>();
      const { model, remarks } = await runPass(mergePair, pair.prefill, options(pair, null, 1e-6, names));
      expect(model.graph).toBe(pair.prefill.graph);
      expect(remarks).toEqual([]);
      const layers = [0, 1].flatMap((layer) =>
        stateNames === "plain"
          ? [
              [`memory_out_${layer}`, `memory_${layer}`],
              [`window_out_${layer}`, `window_${layer}`],
            ]
          : ["conv_states", "recurrent_states"].map((kind) =>
              ["output", "input"].map((side) => `${side}.cache_params.layers.${layer}.${kind}.0`),
            ),
      );
      expect(Object.fromEntries(names)).toEqual(Object.fromEntries(layers));
      expect(names.size).toBe(4);
    }
  });

  test("random pairs make one model: prefill and then steps are what the two files give", async () => {
    for (const family of ["mamba1", "mamba2"] as const) {
      await forMost(arbitraryCase(family, "step"), 5, async (mamba) => {
        const { prefill, decode } = sourcesOf(mamba);
        const pair = { prefill: await raise(prefill), decode: await raise(decode) };
        const names = new Map<string, string>();
        const merged = await runPass(mergePair, pair.prefill, options(pair, null, 0, names));
        const { model } = await runAll(merged.model, [step(completeStates, { names })]);
        await expectSameGeneration({ prefill, decode }, model, mamba);
        return merged.changed > 0;
      });
    }
  });

  describe("a clamp in one graph only", () => {
    const both = [
      ["prefill", { clamp: "clip" }, {}],
      ["decode", {}, { clamp: "clip" }],
    ] as const;
    for (const [where, prefill, decode] of both) {
      test(`${where}: refused, with layer, values, and how to go on`, async () => {
        const pair = await pairOf({}, prefill, decode);
        for (const measured of [null, 0.3]) {
          await expect(runPass(mergePair, pair.prefill, options(pair, null, measured))).rejects.toMatchObject({
            code: "merge-pair/disagree",
            exitCode: 4,
            message: expect.stringMatching(
              /layers\.0: dt is .*clamped.* in prefill and .*clamped.* in decode[^]*--trust/,
            ),
          });
        }
      });

      test(`${where}: harmless when the logits agree all the same`, async () => {
        const pair = await pairOf({}, prefill, decode);
        const { model, remarks } = await runPass(mergePair, pair.prefill, options(pair, null, 5e-5));
        expect(model.graph).toBe(pair.prefill.graph);
        expect(remarks.map(({ code }) => code)).toEqual(["merge-pair/harmless", "merge-pair/harmless"]);
      });

      test(`${where}: trust says which counts`, async () => {
        const pair = await pairOf({}, prefill, decode);
        for (const trust of ["prefill", "decode"] as const) {
          const { model, remarks } = await runPass(mergePair, pair.prefill, options(pair, trust, 0.3));
          const clamped = trust === where;
          expect(clamps(model)).toEqual(clamped ? [LOW, HIGH, LOW, HIGH] : [...OPEN, ...OPEN]);
          const said = remarks.map(({ code, message }) => `${code}: ${message}`);
          expect(said).toHaveLength(2);
          for (const text of said) expect(text).toMatch(new RegExp(`^merge-pair/trusted: .*; trusting ${trust}$`));
        }
      });
    }

    test("a lower bound of zero is no bound", async () => {
      const pair = await pairOf({});
      const nodes = pair.prefill.graph.nodes.map((node) => {
        const op = semanticOps([node])[0];
        return op?.kind === "scan"
          ? { ...node, attributes: new Map([...node.attributes, ["dt_min", { kind: "float", value: 0 }] as const]) }
          : node;
      });
      const zero = { ...pair.prefill, graph: { ...pair.prefill.graph, nodes } };
      expect((await runPass(mergePair, zero, options(pair, null, 1e-6))).remarks).toEqual([]);
    });
  });

  describe("files of different models are refused", () => {
    const refusal = (detail: RegExp): object => ({
      code: "merge-pair/different",
      exitCode: 4,
      message: expect.stringMatching(detail),
    });
    const cases: readonly (readonly [string, () => Promise<Pair>, RegExp])[] = [
      ["other weights", () => pairOf({}, {}, {}, { seed: 2 }), /layers\.0: (A|D|dt_bias)\[0\] is/],
      ["other heads", () => pairOf({}, {}, {}, { decode: { heads: 4 } }), /heads is 6 in prefill and 4 in decode/],
      ["other states", () => pairOf({}, {}, {}, { decode: { dState: 8 } }), /dState is 4 in prefill and 8 in decode/],
      [
        "other kernels",
        () => pairOf({}, {}, {}, { decode: { kernel: 4 } }),
        /kernelSize is 3 in prefill and 4 in decode/,
      ],
      ["no D in one", () => pairOf({}, {}, { skip: "none" }), /D\[0\] is .* in prefill and 0 in decode/],
      ["no dt bias in one", () => pairOf({}, { dtBias: "none" }, {}), /dt_bias\[0\] is 0 in prefill/],
      [
        "another family",
        async () => ({ ...(await pairOf({})), decode: (await pairOf({ family: "mamba1" })).decode }),
        /is .* in prefill and .* in decode/,
      ],
    ];
    for (const [label, make, detail] of cases) {
      test(label, async () => {
        const pair = await make();
        for (const trust of [null, "prefill", "decode"] as const)
          await expect(runPass(mergePair, pair.prefill, options(pair, trust, 0))).rejects.toMatchObject(
            refusal(detail),
          );
      });
    }

    test.each([null, 0.3, 2e-4])("more layers in the prefill graph, the logits %s apart", async (measured) => {
      const pair = await pairOf({}, {}, {}, { decode: { layers: 1 } });
      for (const trust of [null, "prefill", "decode"] as const)
        await expect(runPass(mergePair, pair.prefill, options(pair, trust, measured))).rejects.toMatchObject(
          refusal(/2 selective scans and the decode graph 1/),
        );
    });

    test("more layers in the decode graph, whatever the logits", async () => {
      const pair = await pairOf({}, {}, {}, { prefill: { layers: 1 } });
      await expect(runPass(mergePair, pair.prefill, options(pair, null, 0))).rejects.toMatchObject(
        refusal(/1 selective scans and the decode graph 2/),
      );
    });

    test("layers alike, logits not", async () => {
      const pair = await pairOf({});
      await expect(runPass(mergePair, pair.prefill, options(pair, null, 2e-4))).rejects.toMatchObject(
        refusal(/their layers look alike, but their logits differ by 2\.0e-4/),
      );
    });

    test("one weight of one head", async () => {
      const pair = await pairOf({});
      const name = semanticOps(pair.decode.graph.nodes).find(({ kind }) => kind === "scan")?.node.inputs[2] ?? "";
      const tensor = pair.decode.graph.initializers.get(name);
      if (tensor === undefined) throw new Error("no A");
      const values = toNumbers(tensor).map((value, at) => (at === 3 ? value * 1.001 : value));
      const initializers = new Map([
        ...pair.decode.graph.initializers,
        [name, f32Tensor(tensor.shape, values)] as const,
      ]);
      const other = { ...pair, decode: { ...pair.decode, graph: { ...pair.decode.graph, initializers } } };
      await expect(runPass(mergePair, pair.prefill, options(other, null, 0))).rejects.toMatchObject(
        refusal(/layers\.0: A\[3\] is/),
      );
    });
  });

  test("a layer that was not recognised in the decode graph is no matter where running both shows that they agree", async () => {
    const pair = await pairOf({});
    // The second scan of the decode graph as recognition leaves what it does not know.
    const scans = semanticOps(pair.decode.graph.nodes).filter(({ kind }) => kind === "scan");
    const unknown = scans[1]?.node;
    const nodes = pair.decode.graph.nodes.map((node) => (node === unknown ? { ...node, op: "Unknown" } : node));
    const partly = { ...pair, decode: { ...pair.decode, graph: { ...pair.decode.graph, nodes } } };
    const names = new Map<string, string>();
    const { model, remarks } = await runPass(mergePair, pair.prefill, options(partly, null, 5e-5, names));
    expect(model.graph).toBe(pair.prefill.graph);
    expect(remarks.map(({ code }) => code)).toEqual(["merge-pair/unrecognised"]);
    expect(remarks[0]?.message).toMatch(/2 selective scans and the decode graph 1; run on the same tokens .* 5\.0e-5/);
    expect([...names.values()]).toEqual(
      semanticOps(nodes).flatMap(({ kind, node }) => node.inputs[kind === "scan" ? 7 : 3] ?? []),
    );
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    const pair = await pairOf({}, { clamp: "clip" });
    for (const trust of ["prefill", "decode"] as const) {
      const given = options(pair, trust, null);
      await expectSettled(mergePair, pair.prefill, (await runPass(mergePair, pair.prefill, given)).model, given);
    }
  });
});

/** A prefill and a decode graph of the same weights; spelled differently where the forms allow. */
function sourcesOf(mamba: MambaCase): Pair {
  const { family } = mamba.spelling;
  const spelling: Spelling = { ...DEFAULT_SPELLING, ...mamba.spelling };
  const form = family === "mamba1" ? "loop" : "chunked";
  const long: Spelling = {
    ...spelling,
    form,
    length: null,
    states: "present",
    dtToChannels: false,
    broadcastA: "no",
    groupRepeat: "expand",
  };
  return { prefill: mambaModel(mamba.sizes, long, mamba.seed), decode: mambaModel(mamba.sizes, spelling, mamba.seed) };
}

async function expectSameGeneration(sources: Pair, merged: Model, mamba: MambaCase): Promise<void> {
  const batch = mamba.spelling.batch ?? 2;
  const prompt = mamba.sizes.kernel + 2;
  const ids = (from: number, length: number): Tensor =>
    i64Tensor(
      [batch, length],
      Array.from({ length: batch * length }, (_, at) => (from + 7 * at) % mamba.sizes.vocabulary),
    );
  const first = new Map([["input_ids", ids(1, prompt)]]);
  const expected = await outputsOf(sources.prefill, first, batch);
  const actual = await outputsOf(merged, first, batch);
  expect(difference(actual, expected)).toBeLessThanOrEqual(
    await roundingBound(sources.prefill, first, batch, expected),
  );
  const carried = (outputs: ReadonlyMap<string, Float64Array>): Map<string, Tensor> => {
    const feeds = new Map([["input_ids", ids(3, 1)]]);
    for (const { op, input, output } of semanticOps(merged.graph.nodes).flatMap(stateSlots)) {
      const [past = "", present = ""] = [op.node.inputs[input], op.node.outputs[output]];
      const type = merged.graph.inputs.find(({ name }) => name === past)?.type;
      const data = outputs.get(present);
      if (type?.kind !== "tensor" || data === undefined) throw new Error(`no state ${present}`);
      feeds.set(
        past,
        f32Tensor(
          (type.shape ?? []).map((dim) => (typeof dim === "number" ? dim : batch)),
          data,
        ),
      );
    }
    return feeds;
  };
  const next = carried(expected);
  const wanted = await outputsOf(sources.decode, next, batch);
  const bound = await roundingBound(sources.decode, next, batch, wanted);
  // The states it starts from moved a little too.
  expect(difference(await outputsOf(merged, carried(actual), batch), wanted)).toBeLessThanOrEqual(4 * bound);
}
