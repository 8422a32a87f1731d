import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { normalise } from "../../passes/normalise.js";
import { raiseConv } from "../../passes/raise-conv.js";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import { type Model, type Node } from "../../src/ir/graph.js";
import { f32Tensor, toNumbers } from "../../src/ir/tensor.js";
import { CONV_INPUT, type ConvOp, convNode, semanticOps } from "../../src/rewrite/semantic.js";
import { modelAround, normalWeight } from "../support/mamba-graphs/decoys.js";
import {
  arbitraryCase,
  DEFAULT_SIZES,
  DEFAULT_SPELLING,
  type MambaCase,
  type Spelling,
} from "../support/mamba-graphs.js";
import {
  expectSame,
  expectSettled,
  expectTold,
  forMost,
  golden,
  type Outcome,
  runPass,
  type Sample,
  sampleOf,
} from "../support/pass-runs.js";

async function raised(model: Model): Promise<Outcome> {
  return runPass(raiseConv, (await runPass(normalise, model, {})).model, {});
}

function caseOf(changes: Partial<Spelling>, length: number = 6): MambaCase {
  const spelling = { ...DEFAULT_SPELLING, ...changes };
  return { sizes: { ...DEFAULT_SIZES[spelling.family], layers: 1 }, spelling, seed: 5, batch: 2, length };
}

function convOf(model: Model): ConvOp {
  const op = semanticOps(model.graph.nodes).find((candidate) => candidate.kind === "conv");
  if (op?.kind !== "conv") throw new Error("the model has no convolution");
  return op;
}

interface ConvGraph {
  /** First column of the state that is kept; -2 are the newest two. */
  readonly keptFrom?: number;
  readonly pads: readonly [number, number];
  readonly stride?: number;
  readonly dilation?: number;
  readonly group?: number;
  readonly states?: boolean;
}

/** tokens -> embedding [b, l, 6] -> depthwise convolution of 3 taps -> logits. */
function convModel({ pads, stride = 1, dilation = 1, group = 6, states = false, keptFrom = -2 }: ConvGraph): Model {
  const b = new GraphBuilder("");
  const hidden = b.op("Gather", [normalWeight(b, "table", [11, 6]), "input_ids"], { axis: 0 });
  const columns = b.op("Transpose", [hidden], { perm: [0, 2, 1] });
  const stream = states ? b.op("Concat", ["past_conv.0", columns], { axis: 2 }) : columns;
  const y = b.op("Conv", [stream, normalWeight(b, "taps", [6, 6 / group, 3])], {
    group,
    pads,
    strides: [stride],
    dilations: [dilation],
  });
  const end = b.ints([keptFrom === -2 ? Number.MAX_SAFE_INTEGER : keptFrom + 2]);
  if (states) b.op("Slice", [stream, b.ints([keptFrom]), end, b.ints([2])], {}, "present_conv.0");
  b.op("Transpose", [y], { perm: [0, 2, 1] }, "logits");
  const state = typed("", "f32", ["b", 6, 2]);
  return modelAround(
    b.graph(
      "conv",
      [typed("input_ids", "i64", ["b", "l"]), ...(states ? [{ ...state, name: "past_conv.0" }] : [])],
      [typed("logits", "f32", ["b", null, 6]), ...(states ? [{ ...state, name: "present_conv.0" }] : [])],
    ),
  );
}

describe("raise-conv", () => {
  describe("goldens", () => {
    const cases: readonly (readonly [string, string, ConvGraph])[] = [
      ["padded-left", "A causal convolution without a state.", { pads: [2, 0] }],
      ["with-state", "A convolution over the stream of a state and the new columns.", { pads: [0, 0], states: true }],
      ["refuse-same", "Padding on both sides: each token sees its successor.", { pads: [1, 1] }],
    ];
    for (const [name, about, shape] of cases) {
      test(name, async () => {
        const before = (await runPass(normalise, convModel(shape), {})).model;
        await expect(golden(about, before, await runPass(raiseConv, before, {}))).toMatchFileSnapshot(
          `raise-conv/${name}.irtxt`,
        );
      });
    }
  });

  describe("every spelling becomes one convolution that computes the same", () => {
    const cases = [
      ["prefill", arbitraryCase("mamba1", "loop"), 14],
      ["unrolled", arbitraryCase("mamba2", "unrolled"), 8],
      ["decode", fc.oneof(arbitraryCase("mamba1", "step"), arbitraryCase("mamba2", "step")), 12],
      ["fused", arbitraryCase("mamba2", "linear-attention"), 10],
    ] as const;
    for (const [label, spellings, runs] of cases) {
      test(label, async () => {
        await forMost(spellings, runs, async (mamba) => {
          const sample = await sampleOf(mamba);
          const outcome = await raised(sample.model);
          expect(outcome.changed).toBe(mamba.sizes.layers);
          const op = convOf(outcome.model);
          expect(op.kernelSize).toBe(mamba.sizes.kernel);
          expect(op.activation).toBe(mamba.spelling.convActivation ? "silu" : "none");
          await expectSame(sample, outcome.model);
          return outcome.changed > 0;
        });
      });
    }
  });

  test("a second run changes nothing, and the same model gives the same bytes", async () => {
    for (const changes of [
      { form: "loop", length: null },
      { form: "step", length: 1, states: "both" },
    ] as const) {
      const { model } = await runPass(normalise, (await sampleOf(caseOf(changes, changes.length ?? 6))).model, {});
      await expectSettled(raiseConv, model, (await runPass(raiseConv, model, {})).model, {});
    }
  });

  test("nothing of the source's convolution is left behind", async () => {
    for (const form of ["step", "loop"] as const) {
      const length = form === "step" ? 1 : null;
      const { model } = await raised((await sampleOf(caseOf({ form, length, states: "both" }))).model);
      expect(model.graph.nodes.filter((node) => node.op === "Conv")).toEqual([]);
    }
  });

  describe("what is no causal convolution stays", () => {
    const cases: readonly (readonly [string, ConvGraph])[] = [
      ["padded on both sides", { pads: [1, 1] }],
      ["padded on the right", { pads: [0, 2] }],
      ["strided", { pads: [2, 0], stride: 2 }],
      ["dilated", { pads: [4, 0], dilation: 2 }],
      ["mixing channels", { pads: [2, 0], group: 1 }],
    ];
    for (const [label, shape] of cases) {
      test(label, async () => {
        const { model } = await runPass(normalise, convModel(shape), {});
        const outcome = await runPass(raiseConv, model, {});
        expect(outcome.changed).toBe(0);
        expect(outcome.model).toBe(model);
      });
    }

    test("the state is not the newest columns", async () => {
      for (const keptFrom of [0, 1]) {
        const outcome = await raised(convModel({ pads: [0, 0], states: true, keptFrom }));
        expect(outcome.changed).toBe(0);
        expect(outcome.remarks.map(({ message }) => message).join()).toMatch(/left as it is/);
      }
    });

    test("a convolution of vision models beside a scan", async () => {
      const sample = await sampleOf(caseOf({ conv: "same" }));
      const outcome = await raised(sample.model);
      expect(outcome.changed).toBe(0);
      expect(outcome.remarks.map(({ message }) => message).join()).toMatch(/no reading of it is a causal convolution/);
    });
  });

  describe("a wrong convolution in place of the right one is noticed", () => {
    const wrongs: Readonly<Record<string, (model: Model) => Model>> = {
      "taps in reverse": (model) => withValues(model, CONV_INPUT.weight, reversedTaps),
      "no bias": (model) => withValues(model, CONV_INPUT.bias, (values) => values.map(() => 0)),
      "no activation": (model) =>
        withConv(model, (op) => convNode({ ...op, activation: "none" }, op.node.inputs, op.node.outputs)),
      "no state": (model) => withConv(model, (op) => ({ ...op.node, inputs: [...op.node.inputs.slice(0, 3), ""] })),
    };
    for (const [label, make] of Object.entries(wrongs)) {
      test(label, async () => {
        const sample: Sample = await sampleOf(caseOf({ form: "loop", length: null, states: "both" }));
        const outcome = await raised(sample.model);
        expect(outcome.changed).toBe(1);
        await expectSame(sample, outcome.model);
        await expectTold(sample, make(outcome.model), label);
      });
    }
  });
});

function withConv(model: Model, change: (op: ConvOp) => Node): Model {
  const op = convOf(model);
  const nodes = model.graph.nodes.map((node) => (node === op.node ? change(op) : node));
  return { ...model, graph: { ...model.graph, nodes } };
}

function withValues(model: Model, input: number, change: (values: Float64Array) => ArrayLike<number>): Model {
  const name = convOf(model).node.inputs[input] ?? "";
  const tensor = model.graph.initializers.get(name);
  if (tensor === undefined) throw new Error(`input ${input} of the convolution is no weight`);
  const changed = [name, f32Tensor(tensor.shape, change(toNumbers(tensor)))] as const;
  return { ...model, graph: { ...model.graph, initializers: new Map([...model.graph.initializers, changed]) } };
}

function reversedTaps(values: Float64Array): Float64Array {
  const taps = DEFAULT_SIZES.mamba1.kernel;
  return values.map((_, at) => values[at - (at % taps) + (taps - 1 - (at % taps))] ?? 0);
}
