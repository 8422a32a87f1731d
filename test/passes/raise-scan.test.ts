import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { normalise } from "../../passes/normalise.js";
import { raiseConv } from "../../passes/raise-conv.js";
import { raiseScan } from "../../passes/raise-scan.js";
import type { Model, Node } from "../../src/ir/graph.js";
import { f32Tensor, toNumbers } from "../../src/ir/tensor.js";
import type { Family } from "../../src/ops/names.js";
import { step } from "../../src/rewrite/pipeline.js";
import { SCAN_INPUT, type ScanOp, scanNode, semanticOps } from "../../src/rewrite/semantic.js";
import { cumulativeModel, mishModel } from "../support/mamba-graphs/decoys.js";
import {
  arbitraryCase,
  DEFAULT_SIZES,
  DEFAULT_SPELLING,
  type GraphForm,
  type MambaCase,
  type Spelling,
  sabotagesOf,
  smallModel,
} from "../support/mamba-graphs.js";
import {
  difference,
  expectSame,
  expectSettled,
  expectTold,
  forMost,
  golden,
  type Outcome,
  runAll,
  runPass,
  sampleOf,
} from "../support/pass-runs.js";

const BEFORE = [step(normalise, {}), step(raiseConv, {})];

const FORMS: readonly (readonly [Family, GraphForm])[] = [
  ["mamba1", "step"],
  ["mamba1", "unrolled"],
  ["mamba1", "loop"],
  ["mamba1", "scan"],
  ["mamba2", "step"],
  ["mamba2", "unrolled"],
  ["mamba2", "chunked"],
  ["mamba2", "linear-attention"],
  ["mamba2", "loop"],
  ["mamba2", "scan"],
  ["mamba1", "cumsum"],
  ["mamba2", "cumsum"],
  ["mamba1", "associative"],
  ["mamba2", "associative"],
];

/** Tokens of a form in these tests: a number where it is written out for one. */
function lengthOf(form: GraphForm, steps: number): number | null {
  return form === "step" ? 1 : form === "unrolled" || form === "associative" ? steps : null;
}

/** Ways to compute all tokens at once. */
const PARALLEL: readonly (readonly [GraphForm, Spelling["parallel"]])[] = [
  ["cumsum", "suffix"],
  ["cumsum", "reverse"],
  ["cumsum", "negated"],
  ["cumsum", "chunks"],
  ["associative", "odd-even"],
  ["associative", "doubling"],
  ["associative", "in-place"],
];

// Folded: what a runtime computes from A_log would differ between processors.
const TINY = { layers: 1, vocabulary: 5, dModel: 4 };

async function raised(model: Model): Promise<Outcome> {
  return runPass(raiseScan, (await runAll(model, BEFORE)).model, {});
}

function caseOf(changes: Partial<Spelling>, length: number = 6): MambaCase {
  const spelling = { ...DEFAULT_SPELLING, ...changes };
  return { sizes: { ...DEFAULT_SIZES[spelling.family], layers: 1 }, spelling, seed: 5, batch: 2, length };
}

function reasons(outcome: Outcome): string {
  return outcome.remarks
    .filter(({ kind }) => kind === "missed")
    .map(({ message }) => message)
    .join("\n");
}

describe("raise-scan", () => {
  describe("goldens", () => {
    const cases: readonly (readonly [string, string, Partial<Spelling>])[] = [
      [
        "mamba1-step",
        "A decode step of Mamba-1: every token is read through states.",
        { form: "step", length: 1, states: "both" },
      ],
      ["mamba1-unrolled", "Two unrolled steps of Mamba-1.", { length: 2, precomputed: true }],
      [
        "mamba2-chunked",
        "Chunked Mamba-2 with a final state and no initial one.",
        { family: "mamba2", form: "chunked", length: null, states: "present" },
      ],
      ["mamba2-scan", "An ONNX Scan over Mamba-2 steps.", { family: "mamba2", form: "scan", length: null }],
      [
        "refuse-decay-twice",
        "The decay is applied twice in each step: no selective scan.",
        { form: "loop", length: null, sabotage: "decay-twice" },
      ],
    ];
    for (const [name, about, changes] of cases) {
      test(name, async () => {
        const before = (await runAll(smallModel({ ...changes, decay: "folded" }, 3, TINY), BEFORE)).model;
        await expect(golden(about, before, await runPass(raiseScan, before, {}))).toMatchFileSnapshot(
          `raise-scan/${name}.irtxt`,
        );
      });
    }
  });

  describe("every spelling becomes one scan that computes the same", () => {
    for (const [family, form] of FORMS) {
      test(`${family} ${form}`, async () => {
        await forMost(arbitraryCase(family, form), 7, async (mamba) => {
          const sample = await sampleOf(mamba);
          const outcome = await raised(sample.model);
          expect(reasons(outcome)).toBe("");
          expect(outcome.changed).toBe(mamba.sizes.layers);
          const { heads, headDim, dState, groups } = mamba.sizes;
          expect(scanOf(outcome.model)).toMatchObject({ family, form, heads, headDim, dState, groups });
          await expectSame(sample, outcome.model);
          return outcome.changed > 0;
        });
      });
    }
  });

  test("parameters are those the model was built with", async () => {
    const clamp = "clip";
    for (const [family, form] of FORMS) {
      const mamba = caseOf({
        family,
        form,
        clamp,
        length: lengthOf(form, 6),
        states: form === "step" ? "both" : "none",
      });
      const { model } = await raised((await sampleOf(mamba)).model);
      const op = scanOf(model);
      const { heads, headDim, dState, groups } = mamba.sizes;
      expect(op).toMatchObject({ family, form, heads, headDim, dState, groups });
      expect([op.dtMin, op.dtMax]).toEqual([Math.fround(0.15), Math.fround(0.9)]);
    }
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    for (const [family, form] of FORMS) {
      const length = lengthOf(form, 4);
      const source = smallModel({ family, form, length, states: form === "step" ? "both" : "present" });
      const { model } = await runAll(source, BEFORE);
      await expectSettled(raiseScan, model, (await runPass(raiseScan, model, {})).model, {});
    }
  });

  test("a scan of one length becomes a scan of any: sizes equal to the length do not mislead", async () => {
    for (const layout of ["tokens-first", "channels-first"] as const) {
      const sizes = { heads: 4, headDim: 3, dState: 4, groups: 2, dModel: 4, layers: 1 };
      const mamba = {
        ...caseOf({ family: "mamba2", length: 4, layout }, 4),
        sizes: { ...DEFAULT_SIZES.mamba2, ...sizes },
      };
      const sample = await sampleOf(mamba);
      const outcome = await raised(sample.model);
      expect(outcome.changed).toBe(1);
      await expectSame(sample, outcome.model);
    }
  });

  test("where the source divides by what is rounded to zero, the scan is right and says so", async () => {
    const length = 60;
    const steps = await sampleOf(caseOf({ length }, length));
    const sums = await sampleOf(caseOf({ length, form: "cumsum" }, length));
    expect(difference(sums.expected, steps.expected)).toBeGreaterThan(0.1);
    const outcome = await raised(sums.model);
    expect(outcome.remarks.map(({ code }) => code)).toEqual(["raise-scan/divided"]);
    await expectSame(steps, outcome.model);
  });

  test("a value that does not depend on x is no y, even where all sizes are 2", async () => {
    const spelling = {
      family: "mamba2",
      form: "chunked",
      length: 2,
      padding: "static",
      layout: "channels-first",
    } as const;
    for (const contraction of ["einsum", "mul-sum", "minimal"] as const) {
      const mamba = caseOf({ ...spelling, contraction, gate: "none", decay: "neg-exp", skip: "channel" }, 2);
      const sizes = { layers: 1, dModel: 9, heads: 2, headDim: 7, dState: 2, groups: 1, kernel: 2, chunk: 3 };
      const sample = await sampleOf({ ...mamba, sizes: { ...DEFAULT_SIZES.mamba2, ...sizes } });
      const outcome = await raised(sample.model);
      expect(outcome.changed).toBe(1);
      await expectSame(sample, outcome.model);
    }
  });

  describe("what is no selective scan stays", () => {
    for (const [family, form] of FORMS) {
      test(`${family} ${form}`, async () => {
        for (const sabotage of sabotagesOf(form)) {
          // More than one chunk, so that the state between chunks matters.
          const length = lengthOf(form, 5);
          const mamba = caseOf(
            { family, form, length, sabotage, states: form === "step" ? "both" : "present" },
            length ?? 11,
          );
          const sample = await sampleOf(mamba);
          const { model } = await runAll(sample.model, BEFORE);
          const outcome = await runPass(raiseScan, model, {});
          expect(outcome.changed, sabotage).toBe(0);
          expect(outcome.model, sabotage).toBe(model);
          expect(reasons(outcome), sabotage).toMatch(/looks like a selective scan but is left as it is: /);
        }
      });
    }

    for (const [form, parallel] of PARALLEL) {
      test(`${form} ${parallel}`, async () => {
        for (const family of ["mamba1", "mamba2"] as const) {
          for (const sabotage of ["other-sum", "late-readout", "decay-twice"] as const) {
            // Chunks of 8: what goes from one to the next matters.
            const sample = await sampleOf(caseOf({ family, form, parallel, length: 11, sabotage }, 11));
            const outcome = await raised(sample.model);
            expect(outcome.changed, sabotage).toBe(0);
            expect(reasons(outcome), sabotage).toMatch(/looks like a selective scan but is left as it is: /);
          }
        }
      });
    }

    test("a state that is only added to the cumulated sums", async () => {
      // Right for one token or a zero state, wrong for what the states mean otherwise.
      const sample = await sampleOf(
        caseOf({ form: "cumsum", length: null, states: "both", sabotage: "other-start" }, 7),
      );
      expect((await raised(sample.model)).changed).toBe(0);
    });

    test("random spellings with something wrong are never replaced by something else", async () => {
      const wrong = fc.constantFrom(...FORMS).chain(([family, form]) =>
        fc.tuple(arbitraryCase(family, form), fc.constantFrom(...sabotagesOf(form))).map(([mamba, sabotage]) => ({
          ...mamba,
          spelling: { ...mamba.spelling, sabotage, dtBias: "add" as const },
        })),
      );
      await fc.assert(
        fc.asyncProperty(wrong, async (mamba) => {
          const sample = await sampleOf(mamba);
          const outcome = await raised(sample.model);
          // One chunk with a zero start carries no state, so there nothing is wrong.
          const { sabotage, form, parallel } = mamba.spelling;
          if (
            (sabotage === "state-not-carried" && form === "chunked") ||
            (sabotage === "other-sum" && form === "cumsum" && parallel === "chunks")
          )
            await expectSame(sample, outcome.model);
          else expect(outcome.changed).toBe(0);
        }),
        { numRuns: 25, seed: 11 },
      );
    });

    test("a D on something else is left outside, and the scan has none", async () => {
      for (const [family, form] of FORMS) {
        const length = lengthOf(form, 5);
        const sabotage = "skip-on-input-term";
        const sample = await sampleOf(
          caseOf({ family, form, length, sabotage, states: form === "step" ? "both" : "none" }, length ?? 7),
        );
        const outcome = await raised(sample.model);
        expect(outcome.changed).toBe(1);
        expect(weightOf(outcome.model, SCAN_INPUT.D).every((value) => value === 0)).toBe(true);
        await expectSame(sample, outcome.model);
      }
    });

    test("a Scan that goes backwards by itself", async () => {
      const outcome = await raised(
        smallModel({ direction: "scan-attribute", form: "scan", length: null, family: "mamba2" }),
      );
      expect(outcome.changed).toBe(0);
      expect(reasons(outcome)).toMatch(/turns its tokens around/);
    });

    test("cumulative sums and doubled reach that are no recurrence", async () => {
      for (const kind of ["weighted-mean", "running-maximum"] as const) {
        const outcome = await raised(cumulativeModel(kind));
        expect(outcome.changed).toBe(0);
        expect(reasons(outcome), kind).toMatch(/looks like a selective scan but is left as it is: /);
      }
    });

    test("a softplus that feeds no recurrence (Mish) is no candidate", async () => {
      const outcome = await raised(mishModel());
      expect(outcome.changed).toBe(0);
      expect(outcome.remarks).toEqual([]);
    });
  });

  describe("a wrong scan in place of the right one is noticed", () => {
    const wrongs: Readonly<Record<string, (model: Model) => Model>> = {
      "B and C swapped": (model) => withScan(model, (op) => swapped(op, SCAN_INPUT.B, SCAN_INPUT.C)),
      "no dt bias": (model) => withWeight(model, SCAN_INPUT.dtBias, () => 0),
      "another D": (model) => withWeight(model, SCAN_INPUT.D, (value) => value * 1.01),
      "another A": (model) => withWeight(model, SCAN_INPUT.A, (value) => value * 1.01),
      "no lower clamp": (model) =>
        withScan(model, (op) => scanNode({ ...op, dtMin: 0 }, op.node.inputs, op.node.outputs)),
      "heads in another order": (model) => withReversed(model, SCAN_INPUT.A),
    };
    for (const [label, make] of Object.entries(wrongs)) {
      test(label, async () => {
        for (const family of ["mamba1", "mamba2"] as const) {
          const sample = await sampleOf(caseOf({ family, form: "loop", length: null, clamp: "clip", states: "both" }));
          const outcome = await raised(sample.model);
          expect(outcome.changed).toBe(1);
          await expectSame(sample, outcome.model);
          await expectTold(sample, make(outcome.model), label);
        }
      });
    }
  });
});

function scanOf(model: Model): ScanOp {
  const op = semanticOps(model.graph.nodes).find((candidate) => candidate.kind === "scan");
  if (op?.kind !== "scan") throw new Error("the model has no scan");
  return op;
}

function weightOf(model: Model, input: number): Float64Array {
  const tensor = model.graph.initializers.get(scanOf(model).node.inputs[input] ?? "");
  if (tensor === undefined) throw new Error(`input ${input} of the scan is no weight`);
  return toNumbers(tensor);
}

function withScan(model: Model, change: (op: ScanOp) => Node): Model {
  const op = scanOf(model);
  const nodes = model.graph.nodes.map((node) => (node === op.node ? change(op) : node));
  return { ...model, graph: { ...model.graph, nodes } };
}

function swapped(op: ScanOp, a: number, b: number): Node {
  const inputs = op.node.inputs.map((name, at) => op.node.inputs[at === a ? b : at === b ? a : at] ?? name);
  return { ...op.node, inputs };
}

function withValues(model: Model, input: number, change: (values: Float64Array) => ArrayLike<number>): Model {
  const name = scanOf(model).node.inputs[input] ?? "";
  const tensor = model.graph.initializers.get(name);
  if (tensor === undefined) throw new Error(`input ${input} of the scan is no weight`);
  const initializers = new Map([
    ...model.graph.initializers,
    [name, f32Tensor(tensor.shape, change(toNumbers(tensor)))] as const,
  ]);
  return { ...model, graph: { ...model.graph, initializers } };
}

function withWeight(model: Model, input: number, change: (value: number) => number): Model {
  return withValues(model, input, (values) => values.map(change));
}

function withReversed(model: Model, input: number): Model {
  return withValues(model, input, (values) => [...values].reverse());
}
