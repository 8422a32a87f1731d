import { describe, expect, test } from "vitest";
import { roundNearest } from "../../passes/round-nearest.js";
import {
  type Precision,
  type PrecisionChoice,
  type SearchPrecisionOptions,
  searchPrecision,
} from "../../passes/search-precision.js";
import type { Model } from "../../src/ir/graph.js";
import { encodeModel } from "../../src/onnx/write.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import type { PassContext } from "../../src/rewrite/pass.js";
import { aligned, foldSample } from "../support/fold-runs.js";
import { difference, golden, type Outcome, outputsOf, runPass, type Sample } from "../support/pass-runs.js";
import { PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const SPELLING: RaisedSpelling = { ...PLAIN, layers: 2, dModel: 24, heads: 6 };

type Divergence = PassContext["divergence"];

const uniform = (spelling: string): Precision => ({ name: spelling, schemeFor: () => parseWeightScheme(spelling) });
const FLOAT: Precision = { name: "float", schemeFor: () => null };
const PRECISIONS = [uniform("i4:channel"), uniform("i8:channel"), FLOAT];

/** Rounds what the choices name, to nearest. */
const quantizeBy =
  (precisions: readonly Precision[]): SearchPrecisionOptions["quantize"] =>
  async (model, choices) => {
    const schemeFor: Precision["schemeFor"] = (site) => {
      const choice = choices.find(({ role, layer }) => role === site.role && layer === site.layer);
      return precisions.find(({ name }) => name === choice?.precision)?.schemeFor(site) ?? null;
    };
    return (await runPass(roundNearest, model, { schemeFor })).model;
  };

interface Search extends Outcome {
  /** `layer role` -> precision. */
  readonly decided: ReadonlyMap<string, string>;
}

async function search(
  model: Model,
  divergence: Divergence,
  options: Partial<SearchPrecisionOptions> & Pick<SearchPrecisionOptions, "budget">,
): Promise<Search> {
  const precisions = options.precisions ?? PRECISIONS;
  let decided: readonly PrecisionChoice[] = [];
  const outcome = await runPass(
    searchPrecision,
    model,
    {
      precisions,
      includes: ({ role }) => role !== "lm_head",
      each: "projection",
      sequences: 3,
      quantize: quantizeBy(precisions),
      decide: (choices) => {
        decided = choices;
      },
      ...options,
    },
    divergence,
  );
  return {
    ...outcome,
    decided: new Map(decided.map(({ layer, role, precision }) => [`${layer} ${role}`, precision])),
  };
}

/** Bytes of codes and scales of the rounded projections. */
async function bytesOf(model: Model): Promise<number> {
  let bytes = 0;
  for (const node of model.graph.nodes) {
    if (node.op !== "DequantizeLinear") continue;
    for (const input of node.inputs) bytes += model.graph.initializers.get(input)?.byteLength ?? 0;
  }
  return bytes;
}

/** A divergence that only counts bits: in_proj of layer 0 bears nothing, the rest more and more. */
const madeUp: Divergence = (reference) => {
  const costs: Readonly<Record<string, number>> = { i8: 1, i4: 5 };
  const weights: readonly (readonly [string, number])[] = [
    ["layers.0.in_proj", 1],
    ["layers.0.out_proj", 0.1],
    ["layers.1.in_proj", 0.01],
    ["layers.1.out_proj", 0.001],
  ];
  expect([...reference.graph.initializers.keys()].some((name) => name.endsWith("_quantized"))).toBe(false);
  return Promise.resolve((model) => {
    let sum = 0;
    for (const [name, { dtype }] of model.graph.initializers) {
      const weight = name.endsWith("_quantized") ? weights.find(([part]) => name.startsWith(part)) : undefined;
      sum += (weight?.[1] ?? 0) * (costs[dtype] ?? 0);
    }
    return Promise.resolve(sum);
  });
};

/** How far outputs are from the reference's. */
const realDivergence =
  ({ feeds, batch }: Sample): Divergence =>
  async (reference) => {
    const expected = await outputsOf(reference, feeds, batch);
    return async (model) => difference(await outputsOf(model, feeds, batch), expected);
  };

describe("search-precision", () => {
  test("golden", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const outcome = await search(model, madeUp, { budget: { kind: "divergence", most: 0.2 } });
    expect([...outcome.decided.values()]).toEqual(["float", "i8:channel", "i4:channel", "i4:channel"]);
    await expect(golden("What bears less gets more bits; the graph stays.", model, outcome)).toMatchFileSnapshot(
      "search-precision/mamba2.irtxt",
    );
  });

  test("the model stays as it is, to the byte; the decision is about every projection but those left out", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const { model: after, decided, changed } = await search(model, madeUp, { budget: { kind: "bits", most: 8 } });
    expect(Buffer.compare(encodeModel(after), encodeModel(model))).toBe(0);
    expect([...decided.keys()]).toEqual([
      "layers.0 in_proj",
      "layers.0 out_proj",
      "layers.1 in_proj",
      "layers.1 out_proj",
    ]);
    expect(changed).toBe(4);
  });

  test("a budget of bytes is kept by what is really stored, and used as well as the parts allow", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const precisions = PRECISIONS.slice(0, 2);
    const stored = async (decided: ReadonlyMap<string, string>): Promise<number> => {
      const choices = [...decided].map(([key, precision]) => {
        const [layer = "", role = ""] = key.split(" ");
        return { layer, role: role as PrecisionChoice["role"], precision };
      });
      const tools = {
        execute: () => Promise.reject(new Error("nothing runs")),
        gemm: () => Promise.reject(new Error()),
      };
      return bytesOf(await quantizeBy(precisions)(model, choices, tools));
    };
    const all = async (name: string): Promise<number> => {
      const only = precisions.filter((precision) => precision.name === name);
      const { decided } = await search(model, madeUp, { precisions: only, budget: { kind: "bytes", most: 1e9 } });
      return stored(decided);
    };
    const [four, eight] = [await all("i4:channel"), await all("i8:channel")];
    let best = Number.POSITIVE_INFINITY;
    for (const most of [four, four + 500, (four + eight) / 2, eight - 1, eight]) {
      const { decided, remarks } = await search(model, madeUp, { precisions, budget: { kind: "bytes", most } });
      const bytes = await stored(decided);
      expect(bytes).toBeLessThanOrEqual(most);
      expect(remarks.at(-1)?.message).toContain(`${bytes} bytes`);
      const loss = Number(/divergence (\S+) bits/.exec(remarks.at(-1)?.message ?? "")?.[1]);
      expect(loss).toBeLessThanOrEqual(best);
      best = loss;
    }
    const tight = search(model, madeUp, { precisions, budget: { kind: "bytes", most: four - 1 } });
    await expect(tight).rejects.toMatchObject({ code: "search-precision/budget", exitCode: 3 });
    await expect(tight).rejects.toThrow(`the least is ${four};`);
    await expect(search(model, madeUp, { precisions, budget: { kind: "bits", most: 1 } })).rejects.toThrow(
      /the least is 5\.4386;/,
    );
  });

  test("a share of raised weights counts what has another precision than the first", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const precisions = [uniform("i4:channel"), uniform("i8:channel")];
    const raised = async (most: number): Promise<string[]> => {
      const { decided } = await search(model, madeUp, { precisions, budget: { kind: "raised", most } });
      return [...decided].flatMap(([part, name]) => (name === "i8:channel" ? [part] : []));
    };
    expect(await raised(0)).toEqual([]);
    // in_proj is [24, 58] and out_proj [18, 24]: 38 % and 12 % of the weights.
    expect(await raised(0.15)).toEqual(["layers.0 out_proj"]);
    expect(await raised(0.4)).toEqual(["layers.0 in_proj"]);
    expect(await raised(1)).toHaveLength(4);
  });

  test("layer by layer both projections of a layer get one precision", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const { decided } = await search(model, madeUp, { each: "layer", budget: { kind: "bits", most: 7.5 } });
    const [first, second, third, fourth] = [...decided.values()];
    expect(first).toBe(second);
    expect(third).toBe(fourth);
    expect(first).toBe("i8:channel");
    expect(third).not.toBe("i8:channel");
  });

  test("with real outputs a budget of divergence is kept, and everything is measured once", async () => {
    const sample = await aligned(await foldSample(SPELLING));
    const labels: string[] = [];
    const precisions = [uniform("i4:channel"), uniform("i8:channel")];
    const counted: Divergence = async (reference, sequences) => {
      expect(sequences).toBe(3);
      const from = await realDivergence(sample)(reference, sequences);
      return (model, label) => {
        labels.push(label);
        return from(model, label);
      };
    };
    const from = await realDivergence(sample)(sample.model, 1);
    const all4 = await runPass(roundNearest, sample.model, { schemeFor: uniform("i4:channel").schemeFor });
    const most = (await from(all4.model, "all")) / 2;
    const { decided } = await search(sample.model, counted, { precisions, budget: { kind: "divergence", most } });
    expect(labels).toHaveLength(4 * precisions.length + 1);
    expect(labels[1]).toBe("layers.0 in_proj as i8:channel (2 of 9)");
    expect(new Set(decided.values()).size).toBe(2);
  });

  test("float is a precision that costs its bytes and nothing else", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const precisions = [uniform("i4:channel"), FLOAT];
    const wide = await search(model, madeUp, { precisions, budget: { kind: "bits", most: 32 } });
    expect(new Set(wide.decided.values())).toEqual(new Set(["float"]));
    const none = await search(model, madeUp, { precisions: [FLOAT], budget: { kind: "bits", most: 32 } });
    expect(none.changed).toBe(0);
  });

  test("refuses divergences that are no numbers, and models without data", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const budget = { kind: "bits", most: 8 } as const;
    for (const found of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const broken: Divergence = () => Promise.resolve(() => Promise.resolve(found));
      await expect(search(model, broken, { budget })).rejects.toMatchObject({
        code: "search-precision/divergence",
        exitCode: 5,
      });
    }
    const options = {
      precisions: PRECISIONS,
      includes: () => true,
      each: "layer",
      sequences: 1,
      budget,
      quantize: quantizeBy(PRECISIONS),
      decide: () => undefined,
    } as const;
    await expect(runPass(searchPrecision, model, options)).rejects.toMatchObject({
      code: "pipeline/no-data",
      exitCode: 5,
    });
  });
});
