import { describe, expect, test } from "vitest";
import { raiseRecipe } from "../../passes/recipes.js";
import { widenHalves } from "../../passes/widen-halves.js";
import type { Attribute, Graph, Model, ValueInfo } from "../../src/ir/graph.js";
import { asBytes, f32Tensor, numberToFloat16, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import { dtypeNumber } from "../../src/ir/types.js";
import { semanticOps } from "../../src/rewrite/semantic.js";
import { Random } from "../../src/support/random.js";
import { arbitraryCase, DEFAULT_SIZES, type GraphForm, type MambaCase } from "../support/mamba-graphs.js";
import { difference, expectSettled, forMost, outputsOf, runAll, runPass, sampleOf } from "../support/pass-runs.js";

const HALF_TYPES = ["f16", "bf16"] as const;
type Half = (typeof HALF_TYPES)[number];

const bitsOf: Readonly<Record<Half, (value: number) => number>> = {
  f16: numberToFloat16,
  bf16: (value) => (new Uint32Array(Float32Array.of(value).buffer)[0] ?? 0) >>> 16,
};

function narrowTensor(tensor: Tensor, half: Half): Tensor {
  if (tensor.dtype !== "f32") return tensor;
  const bits = Uint16Array.from(toNumbers(tensor), bitsOf[half]);
  return tensorFromBytes(half, tensor.shape, asBytes(bits));
}

/** A float32 graph as an exporter of half precision writes it: every tensor, type, input, output and Cast is a half. */
function narrow(model: Model, half: Half): Model {
  const value = (info: ValueInfo): ValueInfo =>
    info.type?.kind === "tensor" && info.type.dtype === "f32" ? { ...info, type: { ...info.type, dtype: half } } : info;
  const attribute = (name: string, given: Attribute): Attribute => {
    if (given.kind === "tensor") return { ...given, value: narrowTensor(given.value, half) };
    if (given.kind === "graph") return { ...given, value: graph(given.value) };
    const isFloat = given.kind === "int" && name === "to" && Number(given.value) === dtypeNumber("f32");
    return isFloat ? { ...given, value: BigInt(dtypeNumber(half)) } : given;
  };
  const graph = (of: Graph): Graph => ({
    ...of,
    inputs: of.inputs.map(value),
    outputs: of.outputs.map(value),
    valueInfo: new Map([...of.valueInfo].map(([name, info]) => [name, value(info)])),
    initializers: new Map([...of.initializers].map(([name, tensor]) => [name, narrowTensor(tensor, half)])),
    nodes: of.nodes.map((node) => ({
      ...node,
      attributes: new Map([...node.attributes].map(([name, given]) => [name, attribute(name, given)])),
    })),
  });
  return { ...model, graph: graph(model.graph) };
}

/** The float32 model whose weights are those of the narrowed one. */
function roundedWeights(model: Model, half: Half): Model {
  const back = (tensor: Tensor): Tensor =>
    tensor.dtype === "f32" ? f32Tensor(tensor.shape, toNumbers(narrowTensor(tensor, half))) : tensor;
  const graph = (of: Graph): Graph => ({
    ...of,
    initializers: new Map([...of.initializers].map(([name, tensor]) => [name, back(tensor)])),
    nodes: of.nodes.map((node) => ({
      ...node,
      attributes: new Map(
        [...node.attributes].map(([name, given]): [string, Attribute] => [
          name,
          given.kind === "tensor"
            ? { ...given, value: back(given.value) }
            : given.kind === "graph"
              ? { ...given, value: graph(given.value) }
              : given,
        ]),
      ),
    })),
  });
  return { ...model, graph: graph(model.graph) };
}

const FORMS: readonly (readonly [MambaCase["spelling"]["family"], GraphForm])[] = [
  ["mamba1", "scan"],
  ["mamba1", "loop"],
  ["mamba2", "chunked"],
  ["mamba2", "step"],
];

describe("widen-halves", () => {
  for (const [family, form] of FORMS) {
    for (const half of HALF_TYPES) {
      test(`${family} ${form} of ${half} computes what float32 computes with its weights, and is recognised`, async () => {
        await forMost(arbitraryCase(family, form), 4, async (mamba) => {
          const sample = await sampleOf(mamba);
          const outcome = await runPass(widenHalves, narrow(sample.model, half), {});
          expect(outcome.changed).toBeGreaterThan(0);
          expect(outcome.remarks.map(({ code }) => code)).toEqual(["widen-halves/float32"]);
          const wanted = await outputsOf(roundedWeights(sample.model, half), sample.feeds, sample.batch);
          const given = await outputsOf(outcome.model, sample.feeds, sample.batch);
          expect(difference(given, wanted)).toBe(0);
          await expectSettled(widenHalves, narrow(sample.model, half), outcome.model, {});
          if (mamba.spelling.sabotage !== null) return false;
          const raised = await runAll(narrow(sample.model, half), raiseRecipe());
          const scans = semanticOps(raised.model.graph.nodes).filter(({ kind }) => kind === "scan");
          expect(scans.length).toBe(mamba.sizes.layers);
          return true;
        });
      });
    }
  }

  test("a float32 model is left alone, without a remark", async () => {
    const sample = await sampleOf({ ...(await firstCase()), seed: 3 });
    const outcome = await runPass(widenHalves, sample.model, {});
    expect(outcome.changed).toBe(0);
    expect(outcome.model).toBe(sample.model);
    expect(outcome.remarks).toEqual([]);
  });

  test("large weights are converted when they are read, any range of them", async () => {
    const sample = await sampleOf(await firstCase());
    const random = new Random(1);
    const weight = f32Tensor(
      [100, 100],
      Float32Array.from({ length: 10_000 }, () => random.normal()),
    );
    const initializers = new Map([...sample.model.graph.initializers, ["large", weight] as const]);
    const half = narrow({ ...sample.model, graph: { ...sample.model.graph, initializers } }, "f16");
    const { model } = await runPass(widenHalves, half, {});
    const large = model.graph.initializers.get("large");
    const bytes = large?.bytes() ?? new Uint8Array(0);
    expect([large?.dtype, large?.residence, bytes.byteLength]).toEqual(["f32", "lazy", 40_000]);
    for (const [from, to] of [
      [0, 4],
      [3, 11],
      [39_990, 40_000],
      [17, 17],
    ] as const)
      expect(large?.slice(from, to)).toEqual(bytes.slice(from, to));
    const read = new Float32Array(bytes.slice().buffer);
    const exact = Array.from(toNumbers(weight)).every(
      (value, at) => Math.abs((read[at] ?? 9) - value) <= 2 ** -11 * Math.abs(value),
    );
    expect(exact).toBe(true);
  });

  test("what is computed with other weights is told apart", async () => {
    const sample = await sampleOf(await firstCase());
    const { model } = await runPass(widenHalves, narrow(sample.model, "bf16"), {});
    const given = await outputsOf(model, sample.feeds, sample.batch);
    expect(difference(given, sample.expected)).toBeGreaterThan(1e-4);
  });
});

async function firstCase(): Promise<MambaCase> {
  let found: MambaCase | null = null;
  await forMost(arbitraryCase("mamba2", "chunked"), 1, (mamba) => {
    found ??= { ...mamba, sizes: DEFAULT_SIZES.mamba2, spelling: { ...mamba.spelling, sabotage: null } };
    return Promise.resolve(true);
  });
  if (found === null) throw new Error("no case");
  return found;
}
