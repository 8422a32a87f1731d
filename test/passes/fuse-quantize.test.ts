import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { alignLinears } from "../../passes/align-linears.js";
import { completeStates } from "../../passes/complete-states.js";
import { divideNorm } from "../../passes/divide-norm.js";
import { fuseGate } from "../../passes/fuse-gate.js";
import { fuseQuantize } from "../../passes/fuse-quantize.js";
import { insertQdq } from "../../passes/insert-qdq.js";
import { lower } from "../../passes/lower.js";
import { quantizeState } from "../../passes/quantize-state.js";
import { rotateOutput } from "../../passes/rotate-output.js";
import { roundNearest } from "../../passes/round-nearest.js";
import { GraphBuilder, untyped } from "../../src/ir/builder.js";
import type { Graph, Model, Node } from "../../src/ir/graph.js";
import { f32Tensor, type Tensor, tensorFromBytes } from "../../src/ir/tensor.js";
import { codesOp } from "../../src/ops/names.js";
import { parseWeightScheme } from "../../src/quant/scheme.js";
import { step } from "../../src/rewrite/pipeline.js";
import { FLOAT_STATE } from "../../src/rewrite/semantic.js";
import type { LinearRole } from "../../src/rewrite/sites.js";
import { foldSample } from "../support/fold-runs.js";
import {
  difference,
  expectSettled,
  expectTold,
  forMost,
  golden,
  type Outcome,
  outputsOf,
  runAll,
  runPass,
  type Sample,
} from "../support/pass-runs.js";
import { arbitraryRaised, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

const ROLES = new Set<LinearRole>(["in_proj", "x_proj", "out_proj"]);

interface Choices {
  /** Rotates the input of out_proj, behind the gate. */
  readonly rotated: boolean;
  readonly timing?: "static" | "dynamic";
}

/** A lowered model whose projections read codes. */
async function quantized(spelling: RaisedSpelling, { rotated, timing = "static" }: Choices): Promise<Sample> {
  const { model: source, ...sample } = await foldSample(spelling);
  const { model } = await runAll(source, [
    step(completeStates, { names: new Map() }),
    step(alignLinears, {}),
    ...(rotated ? [step(rotateOutput, {})] : []),
    step(roundNearest, { schemeFor: ({ role }) => (ROLES.has(role) ? parseWeightScheme("i8:channel") : null) }),
    step(insertQdq, { roles: ROLES, timing, range: (value: string) => 1 + (value.length % 3) }),
    step(divideNorm, {}),
    step(quantizeState, FLOAT_STATE),
    step(fuseGate, {}),
    step(lower, { target: "mambac" }),
  ]);
  return { ...sample, model, expected: await outputsOf(model, sample.feeds, sample.batch) };
}

const ours = ({ graph }: Model): Node[] =>
  graph.nodes.filter(({ op, domain }) => domain !== "" && !/^(Mamba|Causal)/.test(op));
const isCodes = ({ op }: Node): boolean => op.endsWith("Q8");

/** A golden without the functions of scans and convolutions, which are long and stay as they are. */
function shortGolden(about: string, before: Model, outcome: Outcome): string {
  const short = (model: Model): Model => ({
    ...model,
    functions: model.functions.filter(({ name }) => !/^(Mamba|Causal)/.test(name)),
  });
  return golden(about, short(before), { ...outcome, model: short(outcome.model) });
}

async function moved(sample: Sample, model: Model): Promise<number> {
  return difference(await outputsOf(model, sample.feeds, sample.batch), sample.expected);
}

describe("fuse-quantize", () => {
  describe("goldens", () => {
    test("rotation", async () => {
      const { model } = await quantized(PLAIN, { rotated: true });
      const about = "The rotation gives codes, the gate in front of it floats.";
      await expect(shortGolden(about, model, await runPass(fuseQuantize, model, {}))).toMatchFileSnapshot(
        "fuse-quantize/rotation.irtxt",
      );
    });
    test("gate", async () => {
      const { model } = await quantized({ ...PLAIN, family: "mamba1" }, { rotated: false });
      const about = "The gate gives codes.";
      await expect(shortGolden(about, model, await runPass(fuseQuantize, model, {}))).toMatchFileSnapshot(
        "fuse-quantize/gate.irtxt",
      );
    });
    test("refuse-other-readers", async () => {
      const { model } = await quantized(PLAIN, { rotated: false });
      const graph = withOutput(model.graph, resultOf(model, "GatedRMSNorm"));
      const about = "Something else reads what the norm gives, as floats.";
      await expect(
        shortGolden(about, { ...model, graph }, await runPass(fuseQuantize, { ...model, graph }, {})),
      ).toMatchFileSnapshot("fuse-quantize/refuse-other-readers.irtxt");
    });
  });

  test("gives the bits that the pair gave, one operator a block, and settles", async () => {
    await forMost(fc.tuple(arbitraryRaised(), fc.boolean()), 25, async ([spelling, rotated]) => {
      const sample = await quantized(spelling, { rotated });
      const outcome = await runPass(fuseQuantize, sample.model, {});
      expect(await moved(sample, outcome.model)).toBe(0);
      expect(ours(outcome.model).filter(isCodes).length).toBe(outcome.changed);
      const names = new Set(outcome.model.functions.map(({ name }) => name));
      for (const { op } of ours(outcome.model)) expect(names).toContain(op);
      for (const name of names)
        if (codesOp(name) !== null) expect(ours(outcome.model).map(({ op }) => op)).toContain(name);
      await expectSettled(fuseQuantize, sample.model, outcome.model, {});
      return outcome.changed === spelling.layers;
    });
  });

  test("a wrong grid is told", async () => {
    for (const rotated of [false, true]) {
      const sample = await quantized(PLAIN, { rotated });
      const { model } = await runPass(fuseQuantize, sample.model, {});
      for (const [label, wrong] of [
        ["a code beside the right one", changedGrid(model, 1, tensorFromBytes("u8", [], Uint8Array.of(127)))],
        ["another scale", changedGrid(model, 2, f32Tensor([], [0.02]))],
      ] as const)
        await expectTold(sample, wrong, label);
    }
  });

  test.each<[string, (model: Model) => Model]>([
    [
      "fuse-quantize/other-readers",
      (model) => ({ ...model, graph: withOutput(model.graph, resultOf(model, "GatedRMSNorm")) }),
    ],
    [
      "fuse-quantize/codes-read",
      (model) => ({ ...model, graph: withOutput(model.graph, quantizer(model).outputs[0] ?? "") }),
    ],
    ["fuse-quantize/codes-read", (model) => withReader(model, quantizer(model).outputs[0] ?? "")],
    [
      "fuse-quantize/grid",
      (model) =>
        withGrid(
          model,
          f32Tensor(
            [12],
            Array.from({ length: 12 }, () => 0.02),
          ),
          "i8",
        ),
    ],
    ["fuse-quantize/grid", (model) => withGrid(model, null, "u16")],
  ])("%s leaves the pair as it is", async (code, change) => {
    const { model, ...sample } = await quantized(PLAIN, { rotated: false });
    const changed = change(model);
    const outcome = await runPass(fuseQuantize, changed, {});
    expect(outcome.remarks.map((remark) => remark.code)).toEqual([code]);
    expect(outcome.changed).toBe(0);
    expect(outcome.model).toBe(changed);
    expect(sample.batch).toBeGreaterThan(0);
  });

  test("float results and scales measured in the call are no matter for remarks", async () => {
    const { model } = await quantized(PLAIN, { rotated: true, timing: "dynamic" });
    expect(await runPass(fuseQuantize, model, {})).toEqual({ model, changed: 0, remarks: [] });
  });
});

function resultOf(model: Model, op: string): string {
  return model.graph.nodes.find((node) => node.op === op)?.outputs[0] ?? "";
}

/** The node that rounds what the norm gives. */
function quantizer(model: Model): Node {
  const result = resultOf(model, "GatedRMSNorm");
  const node = model.graph.nodes.find(({ op, inputs }) => op === "QuantizeLinear" && inputs[0] === result);
  if (node === undefined) throw new Error("nothing rounds the gate");
  return node;
}

function withOutput(graph: Graph, name: string): Graph {
  return { ...graph, outputs: [...graph.outputs, untyped(name)] };
}

/** A reader of a value that is no DequantizeLinear. */
function withReader(model: Model, name: string): Model {
  const builder = new GraphBuilder("other.");
  const output = builder.op("Cast", [name], { to: 1 });
  return { ...model, graph: withOutput({ ...model.graph, nodes: [...model.graph.nodes, ...builder.nodes] }, output) };
}

/** The pair behind the norm on another grid. */
function withGrid(model: Model, scale: Tensor | null, type: "i8" | "u16"): Model {
  const { inputs, outputs } = quantizer(model);
  const scaleName = "other.scale";
  const zeroName = "other.zero";
  const old = model.graph.initializers.get(inputs[1] ?? "");
  const used = scale ?? old;
  if (used === undefined) throw new Error("no scale");
  const zeros = new Uint8Array((type === "u16" ? 2 : 1) * (used.shape[0] ?? 1));
  const initializers = new Map([
    ...model.graph.initializers,
    [scaleName, used] as const,
    [zeroName, tensorFromBytes(type, used.shape, zeros)] as const,
  ]);
  const nodes = model.graph.nodes.map((node) =>
    node.outputs[0] === outputs[0] || node.inputs[0] === outputs[0]
      ? { ...node, inputs: [node.inputs[0] ?? "", scaleName, zeroName] }
      : node,
  );
  return { ...model, graph: { ...model.graph, nodes, initializers } };
}

/** The operators that give codes on another grid: `back` counts from the last input. */
function changedGrid(model: Model, back: number, tensor: Tensor): Model {
  const initializers = new Map([...model.graph.initializers, ["other.grid", tensor] as const]);
  const nodes = model.graph.nodes.map((node) =>
    isCodes(node) ? { ...node, inputs: node.inputs.with(node.inputs.length - back, "other.grid") } : node,
  );
  return { ...model, graph: { ...model.graph, nodes, initializers } };
}
