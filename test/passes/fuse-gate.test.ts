import { describe, expect, test } from "vitest";
import { divideNorm } from "../../passes/divide-norm.js";
import { fuseGate } from "../../passes/fuse-gate.js";
import { smoothQuant } from "../../passes/smooth-quant.js";
import { attr, type Model, type Node } from "../../src/ir/graph.js";
import { ALL_ROLES, madeUpMagnitudes } from "../support/exact-steps.js";
import { aligned, fold, foldSample, shifted, spoiled } from "../support/fold-runs.js";
import { expectSame, expectSettled, expectTold, forMost, golden, runPass, type Sample } from "../support/pass-runs.js";
import { arbitraryRaised, PLAIN, type RaisedSpelling } from "../support/raised-spelling.js";

/** A sample whose norms are written as divisions, as they are when the pass runs. */
async function divided(spelling: RaisedSpelling): Promise<Sample> {
  const sample = await foldSample(spelling);
  return { ...sample, model: (await runPass(divideNorm, sample.model, {})).model };
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

  test("a gate with a constant in front of its sigmoid stays, as does one whose channels are not last", async () => {
    const sample = await aligned(await foldSample({ ...PLAIN, family: "mamba1" }));
    const channelAbsMax = madeUpMagnitudes(sample.model, 5);
    const smooth = await fold(sample, smoothQuant, { alpha: 0.5, roles: ALL_ROLES, channelAbsMax });
    expect((await runPass(fuseGate, smooth.model, {})).changed).toBe(0);
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
      (model: Model): Model => ({
        ...model,
        graph: {
          ...model.graph,
          nodes: model.graph.nodes.map((node) => (node.domain === "com.mambac" ? change(node) : node)),
        },
      });
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
  });
});
