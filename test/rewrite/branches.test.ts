import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { GraphBuilder, typed, untyped } from "../../src/ir/builder.js";
import { attr, type Graph, type Model } from "../../src/ir/graph.js";
import { f32Tensor, i64Tensor, type Tensor, toNumbers } from "../../src/ir/tensor.js";
import { verifyModel } from "../../src/ir/verify.js";
import { writeModel } from "../../src/onnx/write.js";
import { inlineDecidedBranches, splitBranches } from "../../src/rewrite/branches.js";
import { FLOAT_STATE } from "../../src/rewrite/semantic.js";
import { openSession } from "../../src/run/session.js";
import { loadPackage } from "../../src/run/stateful.js";
import { compileWith, relative } from "../support/fixture-row.js";
import { modelAround } from "../support/mamba-graphs/decoys.js";
import { DEFAULT_SIZES, type Spelling, smallModel } from "../support/mamba-graphs.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-branches-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const SPELLING: Partial<Spelling> = { form: "branches", states: "both", length: null, stateNames: "transformersjs" };

/** y = x times 2 or 3, as `test` of the length decides. */
function choosing(test_: (b: GraphBuilder, length: string) => string): Model {
  const b = new GraphBuilder("");
  const length = b.op("Gather", [b.op("Shape", ["x"]), b.int(1)], { axis: 0 });
  const branch = (factor: number): Graph => {
    const inner = new GraphBuilder("inner.");
    const scaled = inner.op("Mul", ["x", inner.initializer(f32Tensor([], [factor]), "factor")]);
    return inner.graph("branch", [], [untyped(scaled)]);
  };
  b.ops("If", [test_(b, length)], ["y"], { then_branch: attr.graph(branch(2)), else_branch: attr.graph(branch(3)) });
  return modelAround(b.graph("choosing", [typed("x", "f32", ["b", "l"])], [typed("y", "f32", ["b", "l"])]));
}

describe("inlineDecidedBranches", () => {
  const cases: readonly (readonly [string, (b: GraphBuilder, length: string) => string, number])[] = [
    ["a length is never negative", (b, length) => b.op("Less", [length, b.int(0)]), 1],
    ["one token or more", (b, length) => b.op("Equal", [length, b.int(1)]), 0],
    ["a long context", (b, length) => b.op("Greater", [length, b.int(4096)]), 0],
    ["what the data says", (b) => b.op("Greater", [b.op("ReduceSum", ["x"], { keepdims: 0 }), b.float(0)]), 0],
  ];
  for (const [label, condition, changed] of cases) {
    test(label, () => {
      const model = choosing(condition);
      const result = inlineDecidedBranches(model);
      expect(result.changed).toBe(changed);
      expect(result.graph.nodes.filter(({ op }) => op === "If").length).toBe(1 - changed);
      if (changed === 0) expect(result.graph).toBe(model.graph);
    });
  }
});

describe("splitBranches", () => {
  test("a model without Ifs is no pair", () => {
    expect(splitBranches(smallModel({ form: "loop", length: null }))).toBeNull();
  });

  test("an If that more than one token does not decide is no pair", () => {
    expect(splitBranches(choosing((b, length) => b.op("Greater", [length, b.int(4096)])))).toBeNull();
    expect(splitBranches(choosing((b, length) => b.op("Less", [length, b.int(0)])))).toBeNull();
  });

  test("both parts are sound graphs without Ifs; the decode part takes one token", () => {
    for (const branch of ["scan", "conv-and-scan", "mixer"] as const) {
      for (const branchTest of ["equal", "greater", "input"] as const) {
        const parts = splitBranches(smallModel({ ...SPELLING, family: "mamba2", branch, branchTest }));
        expect(parts).not.toBeNull();
        if (parts === null) continue;
        for (const part of [parts.prefill, parts.decode]) {
          expect(verifyModel(part).filter(({ severity }) => severity === "error")).toEqual([]);
          expect(part.graph.nodes.filter(({ op }) => op === "If")).toEqual([]);
          expect(part.graph.inputs.map(({ name }) => name)).not.toContain("use_cache_branch");
        }
        const [tokens] = parts.decode.graph.inputs;
        expect(tokens?.type).toMatchObject({ shape: ["batch_size", 1] });
        expect(parts.decode.graph.inputs.length).toBe(5);
        // The multi-token branch forgets the recurrent state; a convolution outside the If reads its own.
        expect(parts.prefill.graph.inputs.length).toBe(branch === "scan" ? 3 : 1);
      }
    }
  });
});

describe("a file whose layers choose becomes one graph with states", () => {
  for (const family of ["mamba1", "mamba2"] as const) {
    for (const branch of ["scan", "conv-and-scan", "mixer"] as const) {
      test(`${family} ${branch}`, async () => {
        const branchLong = family === "mamba1" ? "loop" : "chunked";
        for (const branchForgets of [true, false]) {
          const source = smallModel({ ...SPELLING, family, branch, branchForgets, branchLong, clamp: "clip" });
          await expectSameGeneration(source, DEFAULT_SIZES[family].layers);
        }
      });
    }
  }

  test("branches of two different layers are refused", async () => {
    const source = smallModel({ ...SPELLING, family: "mamba2", branch: "mixer" });
    for (const label of ["D", "dt_bias", "conv_bias"]) {
      const path = join(folder, "different.onnx");
      await writeModel(withOtherWeight(source, label), path);
      await expect(compileWith([path], null, FLOAT_STATE)).rejects.toMatchObject({
        code: "merge-pair/different",
        exitCode: 4,
      });
    }
  });

  test("a branch that is no scan is refused", async () => {
    const path = join(folder, "wrong.onnx");
    await writeModel(smallModel({ ...SPELLING, family: "mamba2", branchLong: "loop", sabotage: "decay-twice" }), path);
    await expect(compileWith([path], null, FLOAT_STATE)).rejects.toMatchObject({
      code: "compile/no-scan",
      exitCode: 4,
    });
  });
});

/** The step branch with a weight of its own, a tenth larger. */
function withOtherWeight(model: Model, label: string): Model {
  const name = [...model.graph.initializers.keys()].find((key) => key.startsWith(`layers.0.${label}_`));
  const tensor = model.graph.initializers.get(name ?? "");
  if (name === undefined || tensor === undefined) throw new Error(`no weight ${label}`);
  let done = false;
  const nodes = model.graph.nodes.map((node) => {
    const branch = node.attributes.get("then_branch");
    if (branch?.kind !== "graph" || done) return node;
    done = true;
    const inner = branch.value.nodes.map((each) => ({
      ...each,
      inputs: each.inputs.map((input) => (input === name ? "other" : input)),
    }));
    return {
      ...node,
      attributes: new Map([
        ...node.attributes,
        ["then_branch", attr.graph({ ...branch.value, nodes: inner })] as const,
      ]),
    };
  });
  const other = f32Tensor(
    tensor.shape,
    toNumbers(tensor).map((value) => value * 1.1),
  );
  return {
    ...model,
    graph: { ...model.graph, nodes, initializers: new Map([...model.graph.initializers, ["other", other]]) },
  };
}

/** Prefill of all tokens, and of all but one and then a step, in the source and in the compiled file. */
async function expectSameGeneration(source: Model, layers: number): Promise<void> {
  const [path, output] = [join(folder, "source.onnx"), join(folder, "out.onnx")];
  await writeModel(source, path);
  const report = await compileWith([path], output, FLOAT_STATE);
  expect(report.rows.filter(({ kind }) => kind === "scan").length).toBe(layers);
  expect(report.rows.filter(({ kind }) => kind === "conv").length).toBe(layers);
  expect(report.remarks.filter(({ kind }) => kind === "missed")).toEqual([]);
  const tokens = [
    [3, 1, 4, 1, 5, 9],
    [2, 6, 5, 3, 5, 8],
  ];
  const session = await openSession(path);
  const run = async (
    rows: readonly (readonly number[])[],
    past: ReadonlyMap<string, Tensor>,
  ): Promise<Map<string, Tensor>> => {
    const feeds = new Map<string, Tensor>([["input_ids", i64Tensor([rows.length, rows[0]?.length ?? 0], rows.flat())]]);
    for (const { name, type } of source.graph.inputs) {
      if (name === "input_ids" || type?.kind !== "tensor") continue;
      const shape = (type.shape ?? []).map((dim) => (typeof dim === "number" ? dim : rows.length));
      const zeros = f32Tensor(shape, new Float32Array(shape.reduce((a, b) => a * b, 1)));
      feeds.set(name, past.get(name.replace("past_", "present_")) ?? zeros);
    }
    return session.run(feeds);
  };
  const logits = (outputs: ReadonlyMap<string, Tensor>): Float64Array => {
    const tensor = outputs.get("logits");
    if (tensor === undefined) throw new Error("no logits");
    return toNumbers(tensor);
  };
  try {
    await using model = await loadPackage(output, { batch: tokens.length, library: "none" });
    const whole = await model.prefill(tokens);
    expect(relative(whole.data, logits(await run(tokens, new Map())))).toBeLessThan(1e-5);
    const [head, last] = [tokens.map((row) => row.slice(0, -1)), tokens.map((row) => row.slice(-1))];
    const next = logits(await run(last, await run(head, new Map())));
    model.reset();
    await model.prefill(head);
    expect(relative((await model.step(last.map((row) => row[0] ?? 0))).data, next)).toBeLessThan(1e-5);
  } finally {
    await session.release();
  }
}
