import { describe, expect, test } from "vitest";
import { completeStates } from "../../passes/complete-states.js";
import { fuseConv } from "../../passes/fuse-conv.js";
import { lower } from "../../passes/lower.js";
import { quantizeState } from "../../passes/quantize-state.js";
import { raiseRecipe } from "../../passes/recipes.js";
import { tidy } from "../../passes/tidy.js";
import { attr, attrInt, type Model, makeNode, makeValue, type Node } from "../../src/ir/graph.js";
import { tensorType } from "../../src/ir/types.js";
import { step } from "../../src/rewrite/pipeline.js";
import { FLOAT_STATE } from "../../src/rewrite/semantic.js";
import { arbitraryCase, DEFAULT_SIZES, DEFAULT_SPELLING, type Spelling } from "../support/mamba-graphs.js";
import {
  expectSame,
  expectSettled,
  expectTold,
  forMost,
  golden,
  outputsOf,
  runAll,
  runPass,
  type Sample,
  sampleOf,
  withNodes,
} from "../support/pass-runs.js";

/** The model with its semantic operators and their states. */
async function ready(sample: Sample): Promise<Sample> {
  const states = [step(completeStates, { names: new Map() }), step(quantizeState, FLOAT_STATE), step(tidy, {})];
  return { ...sample, model: (await runAll(sample.model, [...raiseRecipe(), ...states])).model };
}

async function small(changes: Partial<Spelling> = {}): Promise<Sample> {
  const spelling = { ...DEFAULT_SPELLING, family: "mamba2", form: "chunked", ...changes } as const;
  const sizes = { ...DEFAULT_SIZES[spelling.family], layers: 1 };
  return ready(await sampleOf({ sizes, spelling, seed: 5, batch: 2, length: 6 }));
}

const opsOf = ({ graph }: Model): string[] => graph.nodes.map(({ op }) => op);
const convsOf = ({ graph }: Model): Node[] => graph.nodes.filter(({ op }) => op.startsWith("CausalConv"));
/** Names of the convolutions after lowering. */
async function lowered(model: Model): Promise<string[]> {
  return convsOf((await runPass(lower, model, { target: "mambac" })).model).map(({ op }) => op);
}
/** Turns of tokens and channels around a convolution. */
const turnsOf = ({ graph }: Model): number =>
  graph.nodes.filter(({ op, attributes }) => {
    const perm = attributes.get("perm");
    return op === "Transpose" && perm?.kind === "ints" && perm.value.join() === "0,2,1";
  }).length;

/** The model with one value as a further output. */
function showing(model: Model, name: string, width: number): Model {
  const outputs = [...model.graph.outputs, makeValue(name, tensorType("f32", ["b", "l", width]))];
  return { ...model, graph: { ...model.graph, outputs } };
}

describe("fuse-conv", () => {
  describe("goldens", () => {
    for (const [name, about, spelling] of [
      ["mamba2", "Cut off the projection, written as x, B and C.", {}],
      ["mamba1", "Cut off the projection, written as one value.", { family: "mamba1", form: "loop" }],
    ] as const) {
      test(name, async () => {
        const { model } = await small(spelling);
        const outcome = await runPass(fuseConv, model, {});
        await expect(golden(about, model, outcome)).toMatchFileSnapshot(`fuse-conv/${name}.irtxt`);
      });
    }
  });

  for (const [family, operator] of [
    ["mamba1", "CausalConvSiluRows"],
    ["mamba2", "CausalConvSiluSplit"],
  ] as const) {
    test(`random ${family} models compute the same`, async () => {
      let seen = 0;
      await forMost(arbitraryCase(family, "scan"), 10, async (mamba) => {
        const sample = await ready(await sampleOf(mamba));
        const { model, changed } = await runPass(fuseConv, sample.model, {});
        await expectSame(sample, model);
        expect(convsOf(model).filter(({ attributes }) => attributes.has("first")).length).toBe(changed);
        expect(turnsOf(model)).toBeLessThanOrEqual(turnsOf(sample.model) - changed);
        seen += (await lowered(model)).includes(operator) ? 1 : 0;
        return changed > 0;
      });
      expect(seen).toBeGreaterThan(1);
    });
  }

  test("nothing is left of the turns and splits around", async () => {
    const sample = await small();
    expect(turnsOf(sample.model)).toBe(2);
    const splits = opsOf(sample.model).filter((op) => op === "Split").length;
    const { model } = await runPass(fuseConv, sample.model, {});
    expect(turnsOf(model)).toBe(0);
    expect(opsOf(model).filter((op) => op === "Split").length).toBe(splits - 2);
    expect(await lowered(model)).toEqual(["CausalConvSiluSplit"]);
  });

  test("what something else reads stays", async () => {
    const sample = await small();
    const [conv] = convsOf(sample.model);
    const producer = (name: string): Node | undefined =>
      sample.model.graph.nodes.find(({ outputs }) => outputs.includes(name));
    const turned = producer(conv?.inputs[0] ?? "");
    const channels = conv === undefined ? 0 : attrInt(conv, "channels", 0);
    const rows = turned?.inputs[0] ?? "";
    const again = async (model: Model): Promise<Sample> => {
      return { ...sample, model, expected: await outputsOf(model, sample.feeds, sample.batch) };
    };
    // The channels before the convolution: they are read in their own value then.
    const before = await again(showing(sample.model, rows, channels));
    const kept = await runPass(fuseConv, before.model, {});
    await expectSame(before, kept.model);
    expect(convsOf(kept.model)[0]?.inputs[0]).toBe(rows);
    expect(convsOf(kept.model)[0]?.attributes.get("first")).toEqual(attr.int(0));
    // The result behind the turn: it is written whole.
    const back = sample.model.graph.nodes.find(({ inputs }) => inputs.includes(conv?.outputs[0] ?? ""));
    const behind = await again(showing(sample.model, back?.outputs[0] ?? "", channels));
    const whole = await runPass(fuseConv, behind.model, {});
    await expectSame(behind, whole.model);
    expect(await lowered(whole.model)).toEqual(["CausalConvSiluRows"]);
    // The result as it is.
    const y = conv?.outputs[0] ?? "";
    const nodes = [...sample.model.graph.nodes, makeNode("Exp", [y], ["grown"])];
    const read = showing({ ...sample.model, graph: { ...sample.model.graph, nodes } }, "grown", channels);
    const shown = makeValue("grown", tensorType("f32", ["b", channels, "l"]));
    const outputs = [...read.graph.outputs.slice(0, -1), shown];
    expect((await runPass(fuseConv, { ...read, graph: { ...read.graph, outputs } }, {})).changed).toBe(0);
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    const { model } = await small({ family: "mamba1", form: "loop" });
    const once = await runPass(fuseConv, model, {});
    expect(once.changed).toBe(1);
    await expectSettled(fuseConv, model, once.model, {});
  });

  describe("a wrong operator is noticed", () => {
    const changedConv =
      (change: (node: Node) => Node) =>
      (model: Model): Model =>
        withNodes(model, (node) => (node.op === "CausalConv" ? change(node) : node));
    const less = (name: string): ((model: Model) => Model) =>
      changedConv((node) => {
        const value = attr.int(attrInt(node, name, 0) - 1);
        return { ...node, attributes: new Map([...node.attributes, [name, value]]) };
      });
    const wrongs: Readonly<Record<string, (model: Model) => Model>> = {
      "channels beside those": less("first"),
      "B and C exchanged": changedConv((node) => {
        const [y = "", present = "", B = "", C = ""] = node.outputs;
        return { ...node, outputs: [y, present, C, B] };
      }),
    };
    for (const [label, wrong] of Object.entries(wrongs)) {
      test(label, async () => {
        const sample = await small();
        const { model } = await runPass(fuseConv, sample.model, {});
        await expectSame(sample, model);
        await expectTold(sample, wrong(model), label);
      });
    }
  });
});
