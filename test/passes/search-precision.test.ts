import { describe, expect, test } from "vitest";
import { roundNearest } from "../../passes/round-nearest.js";
import {
  type PrecisionCandidate,
  type SearchPrecisionOptions,
  searchPrecision,
} from "../../passes/search-precision.js";
import type { Model } from "../../src/ir/graph.js";
import { encodeModel } from "../../src/onnx/write.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { linearsOf } from "../support/exact-steps.js";
import { aligned, foldSample } from "../support/fold-runs.js";
import { difference, golden, outputsOf, runPass, type Sample } from "../support/pass-runs.js";
import { PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const SPELLING: RaisedSpelling = { ...PLAIN, layers: 2, dModel: 24, heads: 6 };

const uniform = (spelling: string): PrecisionCandidate => ({
  name: spelling,
  schemeFor: ({ role }) => (role === "lm_head" ? null : parseWeightScheme(spelling)),
});
const CANDIDATES = [uniform("i8:channel"), uniform("i4:channel"), uniform("i2:channel")];

/** Bytes of the codes and scales of a candidate in one layer: in_proj [24, 46] and out_proj [18, 24]. */
async function bytesAt(model: Model, candidate: PrecisionCandidate): Promise<number> {
  const { model: after } = await runPass(roundNearest, model, { schemeFor: candidate.schemeFor });
  let bytes = 0;
  for (const node of after.graph.nodes) {
    if (node.op !== "DequantizeLinear") continue;
    for (const input of node.inputs) bytes += after.graph.initializers.get(input)?.byteLength ?? 0;
  }
  return bytes / 2;
}

/** Loss: how far outputs are from the float model's. */
const lossOf = (sample: Sample): SearchPrecisionOptions["measure"] => {
  return async (model) => difference(await outputsOf(model, sample.feeds, sample.batch), sample.expected);
};

/** A loss that only counts bits of layers: layer 0 bears nothing, layer 1 everything. */
const madeUp: SearchPrecisionOptions["measure"] = (model) => {
  const costs: Readonly<Record<string, number>> = { i8: 0.01, i4: 1, i2: 5 };
  let loss = 2;
  for (const [name, { dtype }] of model.graph.initializers) {
    if (name.startsWith("layers.0.in_proj") && name.endsWith("_quantized")) loss += costs[dtype] ?? 0;
    if (name.startsWith("layers.1.in_proj") && name.endsWith("_quantized")) loss += (costs[dtype] ?? 0) / 1000;
  }
  return Promise.resolve(loss);
};

describe("search-precision", () => {
  test("golden", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const budget = { kind: "loss", most: 0.1 } as const;
    const outcome = await runPass(searchPrecision, model, { candidates: CANDIDATES, budget, measure: madeUp });
    await expect(golden("The layer that bears less keeps more bits.", model, outcome)).toMatchFileSnapshot(
      "search-precision/mamba2.irtxt",
    );
  });

  test("a budget of bytes leaves the bits to the layer that needs them", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const [eight = 0, four = 0, two = 0] = await Promise.all(CANDIDATES.map((candidate) => bytesAt(model, candidate)));
    const dtypes = async (most: number): Promise<string[]> => {
      const budget = { kind: "bytes", most } as const;
      const outcome = await runPass(searchPrecision, model, { candidates: CANDIDATES, budget, measure: madeUp });
      return linearsOf(outcome.model)
        .filter(({ role }) => role === "in_proj")
        .map(({ weight }) => {
          const node = outcome.model.graph.nodes.find(({ outputs }) => outputs[0] === weight);
          return outcome.model.graph.initializers.get(node?.inputs[0] ?? "")?.dtype ?? "f32";
        });
    };
    expect(await dtypes(2 * eight)).toEqual(["i8", "i8"]);
    expect(await dtypes(eight + four)).toEqual(["i8", "i4"]);
    expect(await dtypes(eight + two)).toEqual(["i8", "i2"]);
    expect(await dtypes(four + two)).toEqual(["i4", "i2"]);
    expect(await dtypes(2 * two)).toEqual(["i2", "i2"]);
    await expect(dtypes(2 * two - 1)).rejects.toMatchObject({ code: "search-precision/budget", exitCode: 3 });
  });

  test("with real losses the sum of the parts foretells the whole, and a budget of loss is kept", async () => {
    const sample = await aligned(await foldSample(SPELLING));
    const measure = lossOf(sample);
    const candidates = [uniform("i8:channel"), uniform("i4:channel")];
    let asked = 0;
    const counted: typeof measure = (model) => {
      asked += 1;
      return measure(model);
    };
    const all4 = await runPass(roundNearest, sample.model, { schemeFor: uniform("i4:channel").schemeFor });
    const most = (await measure(all4.model)) / 2;
    const budget = { kind: "loss", most } as const;
    const outcome = await runPass(searchPrecision, sample.model, { candidates, budget, measure: counted });
    expect(asked).toBe(1 + 2 * candidates.length);
    expect(outcome.changed).toBe(4);
    expect(await measure(outcome.model)).toBeLessThan(1.5 * most);
  });

  test("one candidate is rounding to nearest, byte for byte; none that rounds changes nothing", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const budget = { kind: "bytes", most: 1e9 } as const;
    const one = uniform("i4:g8");
    const searched = await runPass(searchPrecision, model, { candidates: [one], budget, measure: madeUp });
    const nearest = await runPass(roundNearest, model, { schemeFor: one.schemeFor });
    expect(Buffer.compare(encodeModel(searched.model), encodeModel(nearest.model))).toBe(0);
    const float = { name: "float", schemeFor: () => null };
    const none = await runPass(searchPrecision, model, { candidates: [float], budget, measure: madeUp });
    expect(none.changed).toBe(0);
    const wide = await runPass(searchPrecision, model, { candidates: [float, one], budget, measure: madeUp });
    expect(wide.changed).toBe(0);
  });

  test("refuses losses that are no numbers", async () => {
    const { model } = await aligned(await foldSample(SPELLING));
    const options = { candidates: CANDIDATES, budget: { kind: "bytes", most: 1e9 } } as const;
    for (const loss of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const measure = (): Promise<number> => Promise.resolve(loss);
      await expect(runPass(searchPrecision, model, { ...options, measure })).rejects.toMatchObject({
        code: "search-precision/loss",
        exitCode: 5,
      });
    }
  });
});
