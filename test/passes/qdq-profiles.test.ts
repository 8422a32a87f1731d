import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { passesFor } from "../../passes/index.js";
import { insertQdq, quantizedValues } from "../../passes/insert-qdq.js";
import { PRESETS, presetNamed, type QuantRecipe } from "../../passes/quant-recipes.js";
import { quantSteps } from "../../passes/quant-steps.js";
import { roundNearest } from "../../passes/round-nearest.js";
import { compile } from "../../src/compile.js";
import { attrInt, type Graph, type Model, makeValue, type Node, type UseIndex, useIndex } from "../../src/ir/graph.js";
import { type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { tensorType } from "../../src/ir/types.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { step } from "../../src/rewrite/pipeline.js";
import type { ValueRange } from "../../src/rewrite/qdq-pair.js";
import { QDQ_PROFILES, type QdqProfile } from "../../src/rewrite/qdq-profile.js";
import { sitesOf } from "../../src/rewrite/sites.js";
import { loadPackage } from "../../src/run/stateful.js";
import { compiledLogits } from "../support/compiled-logits.js";
import { ALL_ROLES } from "../support/exact-steps.js";
import { fixture } from "../support/fixture-models.js";
import { relative } from "../support/fixture-row.js";
import { aligned, foldSample } from "../support/fold-runs.js";
import { difference, golden, type Outcome, outputsOf, runAll, type Sample } from "../support/pass-runs.js";
import { arbitraryRaised, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const MAMBA1: RaisedSpelling = { ...PLAIN, family: "mamba1", outBias: true };

/** Rounded and quantized for a profile; grids span what the sample's values are. */
async function quantized(sample: Sample, profile: QdqProfile, scheme: string): Promise<[Model, Outcome]> {
  const { model: rounded } = await runAll(sample.model, [
    step(roundNearest, { schemeFor: () => parseWeightScheme(scheme) }),
  ]);
  const names = quantizedValues(rounded, () => true, profile).map(({ value }) => value);
  const known = new Set(rounded.graph.outputs.map(({ name }) => name));
  const outputs = [
    ...rounded.graph.outputs,
    ...names.filter((name) => !known.has(name)).map((name) => makeValue(name, tensorType("f32", null))),
  ];
  const values = await outputsOf({ ...rounded, graph: { ...rounded.graph, outputs } }, sample.feeds, sample.batch);
  const range = (value: string): ValueRange => {
    const seen = values.get(value);
    if (seen === undefined) throw new Error(`no range of ${value}`);
    return { low: Math.min(...seen), high: Math.max(...seen) };
  };
  const outcome = await runAll(rounded, [
    // For the order of passes only: everything is rounded already.
    step(roundNearest, { schemeFor: () => null }),
    step(insertQdq, { roles: ALL_ROLES, timing: "static", profile, range }),
  ]);
  return [rounded, outcome];
}

interface Dequantized {
  readonly node: Node;
  readonly scale: Tensor;
  readonly zero: Tensor | null;
  /** Codes of a constant; null for those of a QuantizeLinear. */
  readonly codes: Tensor | null;
}

function dequantized({ graph }: Model): Dequantized[] {
  const constant = (name: string | undefined): Tensor | null => graph.initializers.get(name ?? "") ?? null;
  return graph.nodes.flatMap((node) => {
    if (node.op !== "DequantizeLinear") return [];
    const scale = constant(node.inputs[1]);
    if (scale === null) throw new Error("a scale is no constant");
    return [{ node, scale, zero: constant(node.inputs[2]), codes: constant(node.inputs[0]) }];
  });
}

/** Every rule that holds of all pairs and weights in a file of this profile; fails where one is broken. */
function expectProfile(model: Model, profile: QdqProfile): void {
  const index = useIndex(model.graph);
  const type = { "ort-cpu": "i8", tensorrt: "i8", qnn: "u8", "qnn-16": "u16" }[profile];
  for (const { node, scale, zero, codes } of dequantized(model)) {
    expect(attrInt(node, "block_size", 0)).toBe(0);
    expect(Math.min(...toNumbers(scale))).toBeGreaterThan(0);
    if (codes?.shape.length === 2) {
      // Weights [K, N]: signed, zero at code 0, one scale or one for each output.
      expect(codes.dtype).toMatch(/^i[48]$/);
      expect(zero).toBeNull();
      if (scale.shape.length > 0) {
        expect(scale.shape).toEqual([codes.shape[1]]);
        expect(attrInt(node, "axis", 1)).toBe(1);
      }
      continue;
    }
    expect(scale.shape).toEqual([]);
    // Codes that several projections read are int8's, moved up by 128.
    const shared = profile === "ort-cpu" && readersOf(index, node) > 1;
    expect(zero?.dtype).toBe(shared ? "u8" : type);
    if (type === "i8") expect([...(zero?.bytes() ?? [])]).toEqual([shared ? 128 : 0]);
    if (codes !== null) continue;
    const q = index.producer.get(node.inputs[0] ?? "");
    expect(q?.op).toBe("QuantizeLinear");
    expect(q?.inputs.slice(1)).toEqual(node.inputs.slice(1));
  }
  for (const node of index.producer.values()) expect(node.op).not.toMatch(/^(DynamicQuantizeLinear|MatMulNBits)$/);
}

/** Projections that read what a node makes. */
function readersOf(index: UseIndex, { outputs }: Node): number {
  return (index.users.get(outputs[0] ?? "") ?? []).filter(({ op }) => op === "MatMul").length;
}

const isDequantized = (graph: Graph, name: string): boolean =>
  useIndex(graph).producer.get(name)?.op === "DequantizeLinear";

/** Is every reader of a value its QuantizeLinear? */
function isQuantizedOnly(graph: Graph, name: string): boolean {
  const { users, outputs } = useIndex(graph);
  const readers = users.get(name) ?? [];
  return readers.length === 1 && readers[0]?.op === "QuantizeLinear" && !outputs.has(name);
}

const MOVES = new Set(["Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"]);

describe.each(QDQ_PROFILES)("%s", (profile) => {
  for (const [name, spelling] of [
    ["mamba1", MAMBA1],
    ["mamba2", PLAIN],
  ] as const) {
    test(`golden: ${name}`, async () => {
      const [before, outcome] = await quantized(await aligned(await foldSample(spelling)), profile, "i8:channel");
      await expect(golden(`Activations for ${profile}.`, before, outcome)).toMatchFileSnapshot(
        `insert-qdq/${profile}-${name}.irtxt`,
      );
    });
  }

  test("types, zero points and axes are what the runtime takes, operators are complete, and the loss is small", async () => {
    await fc.assert(
      fc.asyncProperty(arbitraryRaised(), fc.constantFrom("i8:channel", "i8:tensor"), async (spelling, scheme) => {
        const sample = await aligned(await foldSample(spelling));
        const [rounded, { model, changed }] = await quantized(sample, profile, scheme);
        fc.pre(changed > 0);
        expectProfile(model, profile);
        const { graph } = model;
        const { producer } = useIndex(graph);
        for (const site of sitesOf(rounded).linears) {
          const node = graph.nodes.find(({ outputs }) => outputs.some((output) => output.startsWith(site.output)));
          if (node?.op !== "MatMul" || !isDequantized(graph, site.weight)) continue;
          for (const input of node.inputs)
            expect(isDequantized(graph, input), `${site.output} reads ${input}`).toBe(true);
          if (profile === "qnn" || profile === "qnn-16") {
            expect(isQuantizedOnly(graph, node.outputs[0] ?? ""), `what ${site.output} makes`).toBe(true);
          }
        }
        if (profile === "qnn" || profile === "qnn-16") {
          for (const node of graph.nodes) {
            const from = producer.get(node.inputs[0] ?? "");
            const fromProjection =
              from?.op === "DequantizeLinear" && from.inputs[0]?.endsWith("_QuantizeLinear_Output") === true;
            if (!MOVES.has(node.op) || !fromProjection) continue;
            for (const output of node.outputs) {
              const [q] = useIndex(graph).users.get(output) ?? [];
              if (q === undefined) continue;
              expect(isQuantizedOnly(graph, output), `what ${node.op} makes`).toBe(true);
              expect(q.inputs.slice(1)).toEqual(from.inputs.slice(1));
            }
          }
        }
        const loss = difference(await outputsOf(model, sample.feeds, sample.batch), sample.expected);
        const weightsOnly = difference(await outputsOf(rounded, sample.feeds, sample.batch), sample.expected);
        expect(loss).toBeLessThan(weightsOnly + 0.15);
      }),
      { seed: 20_261_122, numRuns: 8 },
    );
  });

  for (const name of ["hf/mamba2/prefill.onnx", "hf/mamba/prefill.onnx", "hf/bamba/prefill.onnx"]) {
    test(`${name}: ONNX Runtime's CPU provider runs the file`, async () => {
      const exact = (await compiledLogits(fixture(name), [])).logits;
      const recipe: QuantRecipe = { ...presetNamed("smoothquant-w8a8"), qdqProfile: profile };
      const { logits, report } = await compiledLogits(fixture(name), quantSteps(recipe));
      expect(relative(logits, exact)).toBeLessThan(0.1);
      expectProfile(report.model, profile);
    });
  }
});

test.each(["h8", "h4"] as const)(
  "Mamba-1 with a state of %s loads in ONNX Runtime with all optimisations",
  async (format) => {
    const folder = mkdtempSync(join(tmpdir(), "mambac-test-"));
    try {
      const output = join(folder, "out.onnx");
      const quant: QuantRecipe = { ...presetNamed("w8a8h4"), qdqProfile: "qnn" };
      const state = { ...quant.state, format };
      const calibration = { paths: ["random"], samples: 2, sequenceLength: 24 };
      await compile(
        { inputs: [fixture("hf/mamba/prefill.onnx")], output, state, calibration },
        passesFor({ state, quant }),
      );
      await using model = await loadPackage(output, { library: "none" });
      const { data } = await model.prefill([3, 14, 15, 92, 65]);
      expect(data.every((logit) => Number.isFinite(logit))).toBe(true);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
);

test("two bytes of activations lose less than one", async () => {
  const name = "hf/mamba2/prefill.onnx";
  const exact = (await compiledLogits(fixture(name), [])).logits;
  const loss = async (qdqProfile: QdqProfile): Promise<number> => {
    const recipe: QuantRecipe = { ...presetNamed("naive-w8a8"), weights: [], qdqProfile };
    const weights = [{ roles: ["in_proj", "out_proj"], scheme: "i8:channel", method: "nearest" }] as const;
    return relative((await compiledLogits(fixture(name), quantSteps({ ...recipe, weights }))).logits, exact);
  };
  expect(await loss("qnn-16")).toBeLessThan(0.7 * (await loss("qnn")));
});

describe("a recipe that its profile cannot take", () => {
  const base = presetNamed("smoothquant-w8a8");
  const roles = ["in_proj"] as const;
  const weights = (scheme: string, method: "nearest" | "tanh" = "nearest"): Partial<QuantRecipe> => ({
    weights: [{ roles, scheme, method }],
  });
  const dynamic: Partial<QuantRecipe> = { activations: [{ roles, timing: "dynamic", share: 1 }] };
  const scanInput: Partial<QuantRecipe> = { scanInput: { share: 1, clusters: false } };
  test.each<[QdqProfile, Partial<QuantRecipe>, RegExp]>([
    ["tensorrt", weights("u8:channel"), /u8:channel .*tensorrt: zero points/],
    ["tensorrt", weights("i8:in-channel"), /output channel/],
    ["tensorrt", weights("i8:g128"), /output channel/],
    ["tensorrt", weights("i4:channel"), /blocks of 64 or 128/],
    ["tensorrt", weights("i4:g32"), /blocks of 64 or 128/],
    ["tensorrt", weights("i2:g64"), /8 and 4 bits/],
    ["tensorrt", weights("i8:channel:f16"), /leave out f16/],
    ["tensorrt", weights("i8:tensor", "tanh"), /curve/],
    ["tensorrt", dynamic, /timing: static/],
    ["tensorrt", scanInput, /recurrences/],
    ["qnn", weights("i4:g128"), /output channel/],
    ["qnn", weights("u8:channel"), /symmetric/],
    ["qnn", weights("i3:channel"), /8 and 4 bits/],
    ["qnn", weights("i8:channel:f16"), /leave out f16/],
    ["qnn-16", dynamic, /timing: static/],
    ["qnn-16", scanInput, /recurrences/],
  ])("%s %j", (qdqProfile, change, message) => {
    const recipe: QuantRecipe = { ...base, ...change, qdqProfile };
    expect(() => quantSteps(recipe)).toThrow(message);
    expect(() => quantSteps({ ...recipe, qdqProfile: "ort-cpu" })).not.toThrow();
  });

  test.each<[QdqProfile, string]>([
    ["tensorrt", "i8:tensor"],
    ["tensorrt", "i4:g64"],
    ["qnn", "u8:tensor"],
    ["qnn", "i4:channel"],
    ["qnn-16", "i8:channel"],
  ])("%s takes %s", (qdqProfile, scheme) => {
    expect(() => quantSteps({ ...base, ...weights(scheme), qdqProfile })).not.toThrow();
  });

  test("presets fit or are refused in words, for every profile", () => {
    const fitting = QDQ_PROFILES.map((qdqProfile) =>
      PRESETS.filter((recipe) => {
        try {
          quantSteps({ ...recipe, qdqProfile });
          return true;
        } catch (cause) {
          expect(cause).toMatchObject({ code: "recipe/qdq-profile", exitCode: 2 });
          return false;
        }
      }).map(({ name }) => name),
    );
    for (const names of fitting)
      expect(names).toEqual(expect.arrayContaining(["smoothquant-w8a8", "w8a8h8", "naive-w8a8"]));
    expect(fitting[0]).toHaveLength(PRESETS.length);
    expect(fitting[1]).toContain("rtn-w4a16");
    expect(fitting[2]).not.toContain("rtn-w4a16");
  });
});

test("4-bit weights stay standard operators where MatMulNBits is unknown", async () => {
  const recipe: QuantRecipe = { ...presetNamed("rtn-w4a16"), qdqProfile: "tensorrt" };
  const sample = await aligned(await foldSample({ ...PLAIN, dModel: 64, heads: 4, headDim: 32 }));
  const { model } = await runAll(
    sample.model,
    quantSteps({ ...recipe, weights: [{ roles: ["out_proj"], scheme: "i4:g64", method: "nearest" }] }),
  );
  const [weight, ...others] = dequantized(model);
  expect(others).toEqual([]);
  expect(weight?.codes?.dtype).toBe("i4");
  expect(attrInt(weight?.node ?? model.graph.nodes[0]!, "block_size", 0)).toBe(64);
});
