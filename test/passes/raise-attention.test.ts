import { describe, expect, test } from "vitest";
import { normalise } from "../../passes/normalise.js";
import { raiseAttention } from "../../passes/raise-attention.js";
import { executor } from "../../src/compile.js";
import type { Model, Node } from "../../src/ir/graph.js";
import { loopGemm } from "../../src/linalg/matrix.js";
import { readModel } from "../../src/onnx/read.js";
import type { Remark } from "../../src/rewrite/pass.js";
import { type AttentionOp, semanticOps } from "../../src/rewrite/semantic.js";
import { fixture } from "../support/fixture-models.js";

const HYBRIDS = [
  { name: "bamba", heads: 4, kvHeads: 2, layers: 1 },
  { name: "jamba", heads: 4, kvHeads: 2, layers: 1 },
  { name: "zamba2", heads: 4, kvHeads: 4, layers: 1 },
  { name: "nemotron_h", heads: 4, kvHeads: 2, layers: 1 },
  { name: "falcon_h1", heads: 4, kvHeads: 2, layers: 2 },
] as const;

async function raise(source: Model): Promise<{ model: Model; ops: AttentionOp[]; remarks: Remark[] }> {
  const remarks: Remark[] = [];
  const context = {
    execute: executor(1),
    gemm: loopGemm,
    report: (remark: Omit<Remark, "pass">): void => {
      remarks.push({ ...remark, pass: "raise-attention" });
    },
  };
  const normal = await normalise.run(source, {}, context);
  const { model } = await raiseAttention.run(normal.model, {}, context);
  return { model, ops: semanticOps(model.graph.nodes).filter((op) => op.kind === "attention"), remarks };
}

const prefill = (name: string): Model => readModel(fixture(`hf/${name}/prefill.onnx`)).model;

/** The model with some nodes changed. */
function spoiled(model: Model, change: (node: Node) => Node): Model {
  return { ...model, graph: { ...model.graph, nodes: model.graph.nodes.map(change) } };
}

describe("raise-attention", () => {
  for (const { name, heads, kvHeads, layers } of HYBRIDS) {
    test(`${name}: finds and proves every attention, with its head counts`, async () => {
      const { ops } = await raise(prefill(name));
      expect(ops.map((op) => [op.heads, op.kvHeads])).toEqual(Array.from({ length: layers }, () => [heads, kvHeads]));
      for (const op of ops) {
        expect(op.error).toBeLessThan(1e-5);
        // Families scale differently; the factor is read from the graph and confirmed by the proof.
        expect(op.scale).toBeGreaterThan(0);
      }
    });
  }

  test("keys and values stay outputs under their names", async () => {
    const source = prefill("bamba");
    const { model } = await raise(source);
    expect(model.graph.outputs.map(({ name }) => name)).toEqual(source.graph.outputs.map(({ name }) => name));
  });

  test("a second run finds nothing", async () => {
    const once = await raise(prefill("bamba"));
    const twice = await raise(once.model);
    expect(twice.model.graph.nodes.length).toBe(once.model.graph.nodes.length);
  });

  test("a graph that reads a cache keeps its attention", async () => {
    const { ops } = await raise(readModel(fixture("hf/bamba/decode.onnx")).model);
    expect(ops).toEqual([]);
  });

  test("refuses attention that looks ahead, or not at itself", async () => {
    for (const op of ["GreaterOrEqual", "Less"]) {
      const source = spoiled(prefill("bamba"), (node) => (node.op === "LessOrEqual" ? { ...node, op } : node));
      const { ops, remarks } = await raise(source);
      expect(ops, op).toEqual([]);
      expect(remarks.map(({ code }) => code)).toContain("raise-attention/not-proved");
    }
  });

  test("refuses a softmax of something else", async () => {
    const source = spoiled(prefill("bamba"), (node) =>
      node.op === "Softmax" ? { ...node, op: "HardSigmoid", attributes: new Map() } : node,
    );
    expect((await raise(source)).ops).toEqual([]);
  });
});
