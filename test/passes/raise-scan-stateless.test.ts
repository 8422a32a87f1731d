import { describe, expect, test } from "vitest";
import { completeStates } from "../../passes/complete-states.js";
import { freeLength } from "../../passes/free-length.js";
import { raiseScan } from "../../passes/raise-scan.js";
import { raiseRecipe } from "../../passes/recipes.js";
import type { Model } from "../../src/ir/graph.js";
import { step } from "../../src/rewrite/pipeline.js";
import { SCAN_INPUT, type ScanOp, scanNode, semanticOps } from "../../src/rewrite/semantic.js";
import { stateSlots } from "../../src/rewrite/states.js";
import { VISION_KINDS, type VisionKind, type VisionSabotage, visionModel } from "../support/mamba-graphs/vision.js";
import {
  DEFAULT_SIZES,
  DEFAULT_SPELLING,
  mambaModel,
  randomFeeds,
  type Spelling,
  smallModel,
} from "../support/mamba-graphs.js";
import {
  expectSame,
  expectSettled,
  expectTold,
  type Outcome,
  outputsOf,
  runAll,
  type Sample,
} from "../support/pass-runs.js";

const FINISH = [step(freeLength, {}), step(completeStates, { names: new Map() })];

async function sampleFor(model: Model, length: number, batch: number = 2): Promise<Sample> {
  const feeds = randomFeeds(model, { batch, length, vocabulary: 20 }, 9);
  return { model, feeds, batch, expected: await outputsOf(model, feeds, batch) };
}

function finished(model: Model): Promise<Outcome> {
  return runAll(model, [...raiseRecipe(), ...FINISH]);
}

function scans(model: Model): ScanOp[] {
  return semanticOps(model.graph.nodes).flatMap((op) => (op.kind === "scan" ? [op] : []));
}

function codes(outcome: Outcome): string[] {
  return outcome.remarks.map(({ code }) => code);
}

function interfaceOf(model: Model): string[] {
  return [...model.graph.inputs, ...model.graph.outputs].map(({ name }) => name);
}

describe("graphs that read their tokens in both directions", () => {
  const cases: readonly Partial<Spelling>[] = [
    { direction: "both", length: 7 },
    { direction: "backward", length: null, form: "loop" },
    { direction: "both", length: null, form: "chunked", family: "mamba2" },
    { direction: "both", length: 6, form: "cumsum", family: "mamba2" },
    { direction: "both", length: 7, form: "associative" },
    { direction: "shuffled", length: 8 },
    { conv: "same", length: 7 },
  ];
  for (const changes of cases) {
    test(JSON.stringify(changes), async () => {
      const sample = await sampleFor(smallModel(changes), changes.length ?? 9);
      const outcome = await finished(sample.model);
      const found = scans(outcome.model);
      expect(found.map(({ stateless }) => stateless)).toEqual(found.map(() => "turned"));
      expect(found).toHaveLength(changes.direction === "both" ? 4 : 2);
      expect(interfaceOf(outcome.model)).toEqual(["input_ids", "logits"]);
      expect(semanticOps(outcome.model.graph.nodes).flatMap(stateSlots)).toEqual([]);
      expect(codes(outcome)).toContain("raise-scan/stateless");
      await expectSame(sample, outcome.model);
    });
  }

  test("a frozen length is freed where nothing but the scan and its bookkeeping was written for it", async () => {
    const model = (length: number): Model => smallModel({ direction: "both", length });
    const { model: free } = await finished(model(7));
    for (const length of [4, 11]) await expectSame(await sampleFor(model(length), length), free);
  });

  test("a state that the source carries through such a graph is refused", async () => {
    const { model } = await runAll(
      smallModel({ direction: "backward", form: "loop", length: null, states: "both" }),
      raiseRecipe().slice(0, -1),
    );
    const outcome = await runAll(model, [step(raiseScan, {})]);
    expect(outcome.changed).toBe(0);
    expect(outcome.remarks.map(({ message }) => message).join()).toMatch(/turns its tokens around .* no state/);
  });

  test("a graph that goes forwards keeps its states", async () => {
    const outcome = await finished(smallModel({ length: 7 }));
    expect(codes(outcome)).not.toContain("raise-scan/stateless");
    expect(semanticOps(outcome.model.graph.nodes).flatMap(stateSlots)).toHaveLength(4);
  });
});

const SIZES = { ...DEFAULT_SIZES.mamba1, heads: 6, layers: 1 };

function picture(kind: VisionKind, changes: Partial<Spelling> = {}, sabotage?: VisionSabotage): Model {
  const spelling = { ...DEFAULT_SPELLING, ...changes };
  return visionModel(SIZES, spelling, { kind, side: 4, ...(sabotage === undefined ? {} : { sabotage }) }, 3);
}

describe("graphs of pictures", () => {
  const spellings: readonly Partial<Spelling>[] = [
    { form: "unrolled" },
    { form: "unrolled", layout: "channels-first", selector: "split", batch: 2 },
    { form: "cumsum", parallel: "chunks", layout: "channels-first", readout: "einsum" },
    { form: "associative", parallel: "odd-even", softplus: "where" },
    { form: "loop", readout: "einsum" },
  ];
  for (const kind of VISION_KINDS) {
    for (const changes of spellings) {
      test(`${kind} ${JSON.stringify(changes)}`, async () => {
        const sample = await sampleFor(picture(kind, changes), 1);
        const outcome = await finished(sample.model);
        const found = scans(outcome.model);
        expect(found).toHaveLength(kind === "vim" ? 2 : 1);
        const expected =
          kind === "ss2d" ? { heads: 24, groups: 4, stateless: "inner" } : { heads: 6, groups: 1, stateless: "inner" };
        for (const op of found) expect(op).toMatchObject({ ...expected, family: "mamba1", form: changes.form });
        expect(interfaceOf(outcome.model)).toEqual(["pixels", "classes"]);
        await expectSame(sample, outcome.model);
      });
    }
  }

  test("any number of pictures", async () => {
    for (const kind of VISION_KINDS) {
      const { model } = await finished(picture(kind));
      for (const batch of [1, 3]) await expectSame(await sampleFor(picture(kind), 1, batch), model);
    }
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    for (const kind of VISION_KINDS) {
      const { model } = await runAll(picture(kind), raiseRecipe().slice(0, -1));
      await expectSettled(raiseScan, model, (await runAll(model, [step(raiseScan, {})])).model, {});
    }
  });

  test("what is no scan stays", async () => {
    for (const kind of VISION_KINDS) {
      for (const sabotage of ["decay-twice", "late-readout", "input-without-dt"] as const) {
        const { model } = await runAll(picture(kind, { sabotage }), raiseRecipe().slice(0, -1));
        const outcome = await runAll(model, [step(raiseScan, {})]);
        expect(outcome.changed, `${kind} ${sabotage}`).toBe(0);
        expect(outcome.model).toBe(model);
        expect(outcome.remarks.map(({ message }) => message).join()).toMatch(/left as it is/);
      }
    }
  });

  test("a direction that reads B of another is that scan, and nothing else", async () => {
    for (const sabotage of ["other-b", "state-of-steps"] as const) {
      const sample = await sampleFor(picture("ss2d", {}, sabotage), 1);
      const outcome = await finished(sample.model);
      expect(scans(outcome.model)).toHaveLength(1);
      await expectSame(sample, outcome.model);
    }
  });

  test("a wrong scan in place of the right one is noticed", async () => {
    const sample = await sampleFor(picture("ss2d"), 1);
    const { model } = await finished(sample.model);
    const change = (make: (op: ScanOp) => ScanOp["node"]): Model => {
      const [op] = scans(model);
      if (op === undefined) throw new Error("the model has no scan");
      const nodes = model.graph.nodes.map((node) => (node === op.node ? make(op) : node));
      return { ...model, graph: { ...model.graph, nodes } };
    };
    const swapped = change(({ node }) => ({
      ...node,
      inputs: node.inputs
        .with(SCAN_INPUT.B, node.inputs[SCAN_INPUT.C] ?? "")
        .with(SCAN_INPUT.C, node.inputs[SCAN_INPUT.B] ?? ""),
    }));
    await expectTold(sample, swapped, "B and C swapped");
    const bounded = change((op) => scanNode({ ...op, dtMax: 0.3 }, op.node.inputs, op.node.outputs));
    await expectTold(sample, bounded, "steps bounded");
  });

  test("graphs with token ids are not read by lengths inside them", async () => {
    const spelling = { ...DEFAULT_SPELLING, sabotage: "decay-twice" } as const;
    const { model } = await runAll(mambaModel({ ...SIZES, heads: 6 }, spelling, 3), raiseRecipe().slice(0, -1));
    const outcome = await runAll(model, [step(raiseScan, {})]);
    expect(outcome.changed).toBe(0);
  });
});
