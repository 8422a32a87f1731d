import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { normalise } from "../../passes/normalise.js";
import { raiseAttention } from "../../passes/raise-attention.js";
import type { Model, Node } from "../../src/ir/graph.js";
import { i64Tensor } from "../../src/ir/tensor.js";
import { type AttentionOp, attentionNode, semanticOps } from "../../src/rewrite/semantic.js";
import { type AttentionSpelling, attentionModel } from "../support/attention-graphs.js";
import {
  difference,
  expectSettled,
  golden,
  type Outcome,
  outputsOf,
  roundingBound,
  runPass,
} from "../support/pass-runs.js";

async function normal(changes: Partial<AttentionSpelling>): Promise<Model> {
  return (await runPass(normalise, attentionModel(changes), {})).model;
}

async function raised(changes: Partial<AttentionSpelling>): Promise<Outcome> {
  return runPass(raiseAttention, await normal(changes), {});
}

function attentionOf(model: Model): AttentionOp {
  const op = semanticOps(model.graph.nodes).find((candidate) => candidate.kind === "attention");
  if (op?.kind !== "attention") throw new Error("the model has no attention");
  return op;
}

const IDS = new Map([["input_ids", i64Tensor([2, 6], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8])]]);

/** Relative error of a raised model, and what rounding allows. */
async function compared(source: Model, model: Model): Promise<{ readonly error: number; readonly bound: number }> {
  const expected = await outputsOf(source, IDS, 2);
  const error = difference(await outputsOf(model, IDS, 2), expected);
  return { error, bound: await roundingBound(source, IDS, 2, expected) };
}

const spellings: fc.Arbitrary<Partial<AttentionSpelling>> = fc
  .record({
    kvHeads: fc.integer({ min: 1, max: 3 }),
    shared: fc.integer({ min: 1, max: 3 }),
    headDim: fc.constantFrom(2, 3, 4, 8),
    scale: fc.constantFrom("scores", "scores-div", "query", "both-sides", "none"),
    mask: fc.constantFrom("where", "add"),
    repeat: fc.constantFrom("expand", "tile"),
    nanGuard: fc.boolean(),
    length: fc.constantFrom(6, null),
  } satisfies Record<string, fc.Arbitrary<unknown>>)
  .map(({ shared, ...rest }): Partial<AttentionSpelling> => ({ ...rest, heads: shared * rest.kvHeads }));

describe("raise-attention", () => {
  test("golden: heads that share keys and values", async () => {
    const before = await normal({ heads: 4, kvHeads: 2, headDim: 2 });
    const about = "Keys and values are outputs; with an operator they become caches that can be read.";
    await expect(golden(about, before, await runPass(raiseAttention, before, {}))).toMatchFileSnapshot(
      "raise-attention/grouped.irtxt",
    );
  });

  test("golden: a window", async () => {
    const before = await normal({ sees: "window" });
    await expect(
      golden("Each query sees two keys.", before, await runPass(raiseAttention, before, {})),
    ).toMatchFileSnapshot("raise-attention/refuse-window.irtxt");
  });

  test("random spellings become one operator that computes the same", async () => {
    let [total, changed] = [0, 0];
    await fc.assert(
      fc.asyncProperty(spellings, async (spelling) => {
        total += 1;
        const outcome = await raised(spelling);
        changed += outcome.changed;
        if (outcome.changed === 0) return;
        const { heads = 0, kvHeads = 0, headDim = 0 } = spelling;
        const scale = spelling.scale === "none" ? 1 : 1 / Math.sqrt(headDim);
        const op = attentionOf(outcome.model);
        expect(op).toMatchObject({ heads, kvHeads, headDim });
        expect(op.scale).toBeCloseTo(scale, 6);
        const { error, bound } = await compared(attentionModel(spelling), outcome.model);
        expect(error).toBeLessThanOrEqual(bound);
      }),
      { numRuns: 30, seed: 4 },
    );
    expect(changed).toBe(total);
  });

  describe("what is not causal attention stays", () => {
    const cases: readonly (readonly [string, Partial<AttentionSpelling>, RegExp | null])[] = [
      ["a window", { sees: "window" }, /not causal attention/],
      ["both directions", { sees: "everything" }, /not causal attention/],
      ["a bias of its own", { sees: "past-with-bias" }, /not causal attention/],
      ["tokens that do not see themselves", { sees: "others-only", nanGuard: true }, /not causal attention/],
      ["capped scores", { softcap: true }, null],
      ["keys and values that stay inside", { cached: false }, null],
    ];
    for (const [label, spelling, reason] of cases) {
      test(label, async () => {
        for (const mask of ["where", "add"] as const) {
          const before = await normal({ ...spelling, mask });
          const outcome = await runPass(raiseAttention, before, {});
          expect(outcome.changed).toBe(0);
          expect(outcome.model).toBe(before);
          if (reason !== null) expect(outcome.remarks.map(({ message }) => message).join()).toMatch(reason);
        }
      });
    }
  });

  describe("a wrong operator in place of the right one is noticed", () => {
    const wrongs: Readonly<Record<string, (op: AttentionOp) => Node>> = {
      "another scale": (op) => attentionNode({ ...op, scale: op.scale * 1.01 }, op.node.inputs, op.node.outputs),
      "keys as values": (op) => ({
        ...op.node,
        inputs: op.node.inputs.map((name, at) => op.node.inputs[at === 2 ? 1 : at] ?? name),
      }),
    };
    for (const [label, wrong] of Object.entries(wrongs)) {
      test(label, async () => {
        const { model } = await raised({});
        const right = await compared(attentionModel({}), model);
        expect(right.error).toBeLessThanOrEqual(right.bound);
        const op = attentionOf(model);
        const nodes = model.graph.nodes.map((node) => (node === op.node ? wrong(op) : node));
        const { error, bound } = await compared(attentionModel({}), { ...model, graph: { ...model.graph, nodes } });
        expect(error).toBeGreaterThan(100 * bound);
      });
    }
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    const before = await normal({});
    await expectSettled(raiseAttention, before, (await runPass(raiseAttention, before, {})).model, {});
  });
});
