import { describe, expect, test } from "vitest";
import { divideNorm } from "../../passes/divide-norm.js";
import { fuseGate } from "../../passes/fuse-gate.js";
import { smoothQuant } from "../../passes/smooth-quant.js";
import { attr, type Model, type Node } from "../../src/ir/graph.js";
import { f32Tensor, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { opFunction } from "../../src/ops/functions.js";
import { ALL_ROLES, madeUpMagnitudes } from "../support/exact-steps.js";
import { aligned, fold, foldSample, shifted, spoiled } from "../support/fold-runs.js";
import {
  expectSame,
  expectSettled,
  expectTold,
  forMost,
  golden,
  outputsOf,
  runPass,
  type Sample,
  withNodes,
} from "../support/pass-runs.js";
import { arbitraryRaised, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

/** A sample whose norms are written as divisions, as they are when the pass runs. */
async function divided(spelling: RaisedSpelling): Promise<Sample> {
  const sample = await foldSample(spelling);
  return { ...sample, model: (await runPass(divideNorm, sample.model, {})).model };
}

/** Mamba-1 with a smoothed gate: a constant in front of every sigmoid. */
async function smoothed(spelling: RaisedSpelling): Promise<Sample> {
  const sample = await aligned(await foldSample({ ...spelling, family: "mamba1" }));
  const channelAbsMax = madeUpMagnitudes(sample.model, 5);
  const { model } = await fold(sample, smoothQuant, { alpha: 0.5, roles: ALL_ROLES, channelAbsMax });
  return { ...sample, model };
}

const gatesOf = ({ graph }: Model): Node[] => graph.nodes.filter(({ domain }) => domain === "com.mambac");

const GROUPED = { ...PLAIN, gatedNorm: "grouped" } as const;

describe("fuse-gate", () => {
  describe("goldens", () => {
    const cases: readonly (readonly [string, string, RaisedSpelling])[] = [
      ["mamba2", "The gate and the norm behind it, the reshape of y too.", PLAIN],
      ["grouped", "A norm of two groups; its gain stays that of all channels.", GROUPED],
      ["mamba1", "A gate alone.", { ...PLAIN, family: "mamba1" }],
    ];
    for (const [name, about, spelling] of cases) {
      test(name, async () => {
        const { model } = await divided(spelling);
        await expect(golden(about, model, await runPass(fuseGate, model, {}))).toMatchFileSnapshot(
          `fuse-gate/${name}.irtxt`,
        );
      });
    }
    test("sloped", async () => {
      const { model } = await smoothed(PLAIN);
      const about = "A smoothed gate; its factors are already one a channel.";
      await expect(golden(about, model, await runPass(fuseGate, model, {}))).toMatchFileSnapshot(
        "fuse-gate/sloped.irtxt",
      );
    });
  });

  test("random models compute the same", async () => {
    await forMost(arbitraryRaised(), 40, async (spelling) => {
      const sample = await divided(spelling);
      const outcome = await fold(sample, fuseGate, {});
      await expectSame(sample, outcome.model);
      return outcome.changed === spelling.layers;
    });
  });

  test("every norm a gate may have is fused with it, and nothing of it is left", async () => {
    const names = {
      none: "SiluGate",
      gain: "GatedRMSNorm",
      bare: "GatedRMSNorm",
      grouped: "GatedRMSNorm",
      before: "GatedRMSNorm",
      "before-grouped": "GatedRMSNorm",
    } as const;
    for (const [gatedNorm, name] of Object.entries(names) as [keyof typeof names, string][]) {
      const sample = await divided({ ...PLAIN, gatedNorm, layers: 2, groups: 1 });
      const { model, changed } = await fold(sample, fuseGate, {});
      expect(changed, gatedNorm).toBe(2);
      await expectSame(sample, model);
      const gates = gatesOf(model);
      expect(gates.map(({ op }) => op)).toEqual([name, name]);
      expect(model.functions.map((definition) => definition.name)).toEqual([name]);
      const norm = (key: string): unknown => gates[0]?.attributes.get(key);
      if (name === "GatedRMSNorm") {
        expect(norm("group_size")).toEqual(attr.int(gatedNorm.endsWith("grouped") ? 6 : 12));
        expect(norm("norm_before_gate")).toEqual(attr.int(gatedNorm.startsWith("before") ? 1 : 0));
      }
      // What is left of norms are those before the mixers and the last one.
      expect(model.graph.nodes.filter(({ op }) => op === "Sqrt").length).toBe(3);
      expect(model.graph.nodes.some(({ op }) => op === "Sigmoid")).toBe(false);
    }
  });

  test("a smoothed gate is fused with its factors, whatever their shape, unless they are something else", async () => {
    await forMost(arbitraryRaised(), 20, async (spelling) => {
      const sample = await smoothed({ ...spelling, projection: "matmul", channelsFirst: false, decoy: null });
      const { model } = await fold(sample, fuseGate, {});
      await expectSame(sample, model);
      // Gates that smoothing leaves alone have no slope.
      const sloped = gatesOf(model).filter(({ op }) => op === "SlopedSiluGate").length;
      const smooth = [...sample.model.graph.initializers.keys()].filter((name) => name.endsWith("smooth_scale"));
      expect(sloped).toBe(smooth.length);
      return sloped === spelling.layers;
    });
    const sample = await smoothed({ ...PLAIN, layers: 1 });
    const factors = [...sample.model.graph.initializers].filter(([name]) => name.endsWith("smooth_scale"));
    expect(factors.length).toBe(1);
    const reshaped = (change: (tensor: Tensor) => Tensor): Sample => {
      const initializers = new Map(sample.model.graph.initializers);
      for (const [name, tensor] of factors) initializers.set(name, change(tensor));
      return { ...sample, model: { ...sample.model, graph: { ...sample.model.graph, initializers } } };
    };
    const leading = reshaped((tensor) => f32Tensor([1, 1, ...tensor.shape], toNumbers(tensor)));
    const one = reshaped(() => f32Tensor([], [0.7]));
    for (const changed of [leading, one]) {
      const { model } = await runPass(fuseGate, changed.model, {});
      expect(gatesOf(model).map(({ op }) => op)).toEqual(["SlopedSiluGate"]);
      const slope = model.graph.initializers.get(gatesOf(model)[0]?.inputs[2] ?? "");
      expect(slope?.shape).toEqual([24]);
      const expected = await outputsOf(changed.model, changed.feeds, changed.batch);
      await expectSame({ ...changed, expected }, model);
    }
  });

  test("a gate whose channels are not last stays", async () => {
    const first = await divided({ ...PLAIN, family: "mamba1", channelsFirst: true });
    const outcome = await fold(first, fuseGate, {});
    await expectSame(first, outcome.model);
    expect(gatesOf(outcome.model).length).toBe(outcome.changed);
  });

  test("other readers of the gated value keep what they read", async () => {
    const sample = await divided({ ...PLAIN, decoy: "out-reader" });
    const outcome = await fold(sample, fuseGate, {});
    expect(outcome.changed).toBe(1);
    await expectSame(sample, outcome.model);
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    const { model } = await divided({ ...GROUPED, layers: 2 });
    const once = await runPass(fuseGate, model, {});
    expect(once.changed).toBe(2);
    await expectSettled(fuseGate, model, once.model, {});
  });

  describe("a wrong operator is noticed", () => {
    const changedGate =
      (change: (node: Node) => Node) =>
      (model: Model): Model =>
        withNodes(model, (node) => (node.domain === "com.mambac" ? change(node) : node));
    const withAttribute = (name: string, value: ReturnType<typeof attr.int>): ((model: Model) => Model) =>
      changedGate((node) => ({ ...node, attributes: new Map([...node.attributes, [name, value]]) }));
    const wrongs: Readonly<Record<string, (model: Model) => Model>> = {
      "gate and value exchanged": changedGate((node) => {
        const [y = "", z = "", ...rest] = node.inputs;
        return { ...node, inputs: [z, y, ...rest] };
      }),
      "the norm before the gate": withAttribute("norm_before_gate", attr.int(1)),
      "groups of another size": withAttribute("group_size", attr.int(3)),
      "a larger epsilon": withAttribute("epsilon", attr.float(0.1)),
      "gains on the wrong channels": (model) => spoiled(model, /gate_weight$/, shifted),
    };
    for (const [label, wrong] of Object.entries(wrongs)) {
      test(label, async () => {
        const sample = await divided(GROUPED);
        const { model } = await fold(sample, fuseGate, {});
        await expectSame(sample, model);
        // y of a scan has its channels in two axes, z has not.
        if (label !== "gate and value exchanged") await expectTold(sample, wrong(model), label);
        else {
          const flat = await divided({ ...PLAIN, family: "mamba1" });
          await expectTold(flat, wrong((await fold(flat, fuseGate, {})).model), label);
        }
      });
    }
    const slopes: Readonly<Record<string, (model: Model) => Model>> = {
      "no slope": changedGate((node) => ({ ...node, op: "SiluGate", inputs: node.inputs.slice(0, 2) })),
      "slopes of the wrong channels": (model) => spoiled(model, /smooth_scale$/, shifted),
    };
    for (const [label, wrong] of Object.entries(slopes)) {
      test(label, async () => {
        const sample = await smoothed(PLAIN);
        const { model } = await fold(sample, fuseGate, {});
        await expectSame(sample, model);
        const plain = { ...model, functions: [...model.functions, opFunction("SiluGate")] };
        await expectTold(sample, wrong(plain), label);
      });
    }
  });
});
