import { describe, expect, it } from "vitest";
import { GraphBuilder, typed, untyped } from "../../src/ir/builder.js";
import { attr, type Graph } from "../../src/ir/graph.js";
import { inferConcrete } from "../../src/ir/infer.js";
import { f32Tensor, i64Tensor, stringTensor, tensorFromSource } from "../../src/ir/tensor.js";

const UNKNOWN = { dtype: null, shape: null, content: null };

describe("inferConcrete", () => {
  it("takes given inputs before declared ones, and declared ones as far as they are numbers", () => {
    const inputs = [
      typed("a", "f32", ["n", 3]),
      typed("b", "f32", [2, "4"]),
      typed("c", "f32", ["n", 3]),
      typed("d", "i64", null),
      untyped("e"),
    ];
    const graph = new GraphBuilder("").graph("g", inputs, []);
    const { values } = inferConcrete(graph, new Map([["a", { dtype: "f16", shape: [7, 3] }]]));
    expect(Object.fromEntries(values)).toEqual({
      a: { dtype: "f16", shape: [7, 3], content: null },
      b: { dtype: "f32", shape: [2, 4], content: null },
      c: { dtype: "f32", shape: null, content: null },
      d: { dtype: "i64", shape: null, content: null },
      e: UNKNOWN,
    });
  });

  it("lets an input override the initialiser of its name", () => {
    const builder = new GraphBuilder("");
    builder.initializers.set("k", i64Tensor([1], [3]));
    builder.op("ConstantOfShape", ["k"], {}, "y");
    const graph = builder.graph("g", [typed("k", "i64", [1])], []);
    expect(inferConcrete(graph, new Map()).values.get("y")?.shape).toEqual([3]);
    const given = new Map([["k", { dtype: "i64", shape: [1], content: [5] }]] as const);
    expect(inferConcrete(graph, given).values.get("y")?.shape).toEqual([5]);
  });

  it("uses values of outer scopes", () => {
    const builder = new GraphBuilder("");
    builder.op("Reshape", ["x", "target"], {}, "y");
    const graph = builder.graph("branch", [], []);
    const outer = new Map([
      ["x", { dtype: "f32", shape: [6], content: null }],
      ["target", { dtype: "i64", shape: [2], content: [2, -1] }],
    ] as const);
    expect(inferConcrete(graph, new Map(), { outer }).values.get("y")?.shape).toEqual([2, 3]);
  });

  it("goes on after operators it does not know and nodes that cannot run", () => {
    const builder = new GraphBuilder("");
    builder.ops("Mystery", ["x"], ["m"], {}, "vendor");
    builder.op("MatMul", ["x", "x"], {}, "bad");
    builder.op("Add", ["bad", "m"], {}, "after");
    builder.op("Add", ["x", "x"], {}, "fine");
    const graph = builder.graph("g", [typed("x", "f32", [2, 3])], []);
    const { values, failures } = inferConcrete(graph, new Map());
    expect(failures).toEqual([{ node: graph.nodes[1], reason: "matrix product of [2,3] and [2,3]" }]);
    for (const name of ["m", "bad", "after"]) expect(values.get(name)).toEqual(UNKNOWN);
    expect(values.get("fine")?.shape).toEqual([2, 3]);
  });

  it("reads no tensor over 4096 elements, none that is still to be computed, and every other one", () => {
    const reads: number[] = [];
    const stored = (count: number, residence: "file" | "lazy"): ReturnType<typeof tensorFromSource> =>
      tensorFromSource(
        "f32",
        [count],
        {
          read: (_, length) => {
            reads.push(length);
            return new Uint8Array(length);
          },
        },
        0,
        residence,
      );
    const builder = new GraphBuilder("");
    builder.initializers.set("small", stored(4096, "file"));
    builder.initializers.set("large", stored(4097, "file"));
    builder.initializers.set("computed", stored(3, "lazy"));
    builder.initializers.set("text", stringTensor([1], [new Uint8Array(2)]));
    const { values } = inferConcrete(builder.graph("g", [], []), new Map());
    expect(reads).toEqual([4096 * 4]);
    expect(values.get("small")?.content).toHaveLength(4096);
    expect(values.get("large")).toEqual({ dtype: "f32", shape: [4097], content: null });
    expect(values.get("computed")).toEqual({ dtype: "f32", shape: [3], content: null });
    expect(values.get("text")).toEqual({ dtype: "string", shape: [1], content: null });
  });

  it("does not trust integers that doubles cannot hold", () => {
    const max = 2n ** 63n - 1n;
    const builder = new GraphBuilder("");
    builder.initializers.set("max", i64Tensor([1], [max]));
    builder.initializers.set("two", i64Tensor([1], [2]));
    builder.initializers.set("huge", i64Tensor([1], [2n ** 52n]));
    for (const op of ["Add", "Div", "Mod", "Equal"]) builder.op(op, ["max", op === "Equal" ? "max" : "two"], {}, op);
    builder.op("Mul", ["huge", "two"], {}, "Mul");
    builder.op("Min", ["max", "two"], {}, "Min");
    builder.op("Less", ["two", "max"], {}, "Less");
    builder.op("Neg", ["max"], {}, "Neg");
    const { values } = inferConcrete(builder.graph("g", [], []), new Map());
    expect(values.get("max")?.content).toEqual([2 ** 63]);
    for (const op of ["Add", "Div", "Mod", "Equal", "Mul", "Neg"]) expect(values.get(op)?.content).toBeNull();
    expect(values.get("Min")?.content).toEqual([2]);
    expect(values.get("Less")?.content).toEqual([1]);
  });

  it("leaves open what runtimes make of empty tensors that do not fit", () => {
    const builder = new GraphBuilder("");
    builder.op("Concat", ["x", "none"], { axis: 0 }, "y");
    const graph = builder.graph("g", [typed("x", "f32", [2, 3]), typed("none", "f32", [0, 5])], []);
    const { values, failures } = inferConcrete(graph, new Map());
    expect(values.get("y")).toEqual({ dtype: "f32", shape: null, content: null });
    expect(failures).toEqual([]);
  });

  it("accepts permutations that count from the back, as TorchScript writes them", () => {
    const builder = new GraphBuilder("");
    builder.op("Transpose", ["x"], { perm: [0, -2, -1, 1] }, "y");
    const graph = builder.graph("g", [typed("x", "f32", [2, 3, 4, 5])], []);
    expect(inferConcrete(graph, new Map()).values.get("y")?.shape).toEqual([2, 4, 5, 3]);
  });

  it("reads every form of Constant", () => {
    const builder = new GraphBuilder("");
    builder.op("Constant", [], { value: attr.tensor(f32Tensor([2], [1.5, -2])) }, "tensor");
    builder.op("Constant", [], { value_int: 3 }, "int");
    builder.op("Constant", [], { value_ints: [3, 4] }, "ints");
    builder.op("Constant", [], { value_float: attr.float(0.5) }, "float");
    builder.op("Constant", [], { value_floats: attr.floats([0.5, 2]) }, "floats");
    builder.op("Constant", [], { value_string: "text" }, "string");
    const { values } = inferConcrete(builder.graph("g", [], []), new Map());
    expect(Object.fromEntries(values)).toEqual({
      tensor: { dtype: "f32", shape: [2], content: [1.5, -2] },
      int: { dtype: "i64", shape: [], content: [3] },
      ints: { dtype: "i64", shape: [2], content: [3, 4] },
      float: { dtype: "f32", shape: [], content: [0.5] },
      floats: { dtype: "f32", shape: [2], content: [0.5, 2] },
      string: { dtype: "string", shape: [], content: null },
    });
  });
});

describe("com.mambac operators", () => {
  function scanned(op: string, attributes: Readonly<Record<string, number>>, past: readonly number[] | null): Graph {
    const builder = new GraphBuilder("");
    const inputs = ["x", "dt", "A", "B", "C", "D", "bias", "past"];
    builder.ops(op, inputs, ["y", "present"], attributes, "com.mambac");
    const x = op.startsWith("Mamba2") ? [2, 5, 8, 64] : [2, 5, 512];
    return builder.graph("g", [typed("x", "f32", x), typed("past", "u8", past)], []);
  }
  const two = { num_heads: 8, head_dim: 64, d_state: 128, num_groups: 2 };
  const one = { channels: 512, head_dim: 64, d_state: 16, num_groups: 1 };

  it.each([
    ["Mamba2ScanF32", two, "f32", [2, 8, 64, 128]],
    ["Mamba2ScanF16Token", two, "f16", [2, 8, 64, 128]],
    ["Mamba2ScanH8", two, "u8", [2, 8, 64 * 128 + 2 * 64 + 2 * 128]],
    ["Mamba2ScanH4MaxToken", two, "u8", [2, 8, 64 * 64 + 2 * 64 + 2 * 128]],
    ["Mamba1ScanF32", one, "f32", [2, 512, 16]],
    ["Mamba1ScanH8Max", one, "u8", [2, 8, 64 * 16 + 2 * 64 + 2 * 16]],
    ["Mamba1ScanH4", one, "u8", [2, 8, 64 * 8 + 2 * 64 + 2 * 16]],
  ] as const)("%s gives y like x and its packed state", (op, attributes, dtype, shape) => {
    const { values, failures } = inferConcrete(scanned(op, attributes, shape), new Map());
    expect(failures).toEqual([]);
    expect(values.get("y")).toEqual(values.get("x"));
    expect(values.get("present")).toEqual({ dtype, shape, content: null });
    expect(inferConcrete(scanned(op, attributes, [2, 8, 7]), new Map()).failures).toHaveLength(1);
  });

  it("CausalConv keeps the last columns of its stream", () => {
    const builder = new GraphBuilder("");
    const attributes = { channels: 6, kernel_size: 4, state_width: 3 };
    builder.ops("CausalConvSilu", ["x", "w", "b", "past"], ["y", "present"], attributes, "com.mambac");
    const graph = builder.graph("g", [typed("x", "f32", [2, 6, 5]), typed("past", "f32", [2, 6, "w"])], []);
    const { values } = inferConcrete(graph, new Map());
    expect(values.get("y")?.shape).toEqual([2, 6, 5]);
    expect(values.get("present")).toEqual({ dtype: "f32", shape: [2, 6, 3], content: null });
    expect(inferConcrete(graph, new Map([["past", { dtype: "f32", shape: [2, 6, 2] }]])).failures).toHaveLength(1);
  });
});

describe("a long unrolled graph", () => {
  /** `steps` links of h' = X[:, :, t] * h + Y[:, :, t] with a readout each, joined at the end: ten nodes a step. */
  function unrolled(steps: number): Graph {
    const builder = new GraphBuilder("");
    const outputs: string[] = [];
    let h = "h0";
    for (let t = 0; t < steps; t++) {
      const [step, axis] = [builder.int(t), builder.ints([-1])];
      const decay = builder.op("Gather", ["X", step], { axis: 2 });
      const added = builder.op("Gather", ["Y", step], { axis: 2 });
      h = builder.op("Add", [builder.op("Mul", [decay, h]), added]);
      const read = builder.op("Unsqueeze", [builder.op("Gather", ["C", step], { axis: 1 }), axis]);
      outputs.push(builder.op("MatMul", [h, read]));
    }
    builder.op("Concat", outputs, { axis: 2 }, "y");
    const long = [1, 8, steps, 4];
    const inputs = [typed("h0", "f32", [1, 8, 4]), typed("X", "f32", long), typed("Y", "f32", long)];
    return builder.graph("g", [...inputs, typed("C", "f32", [1, steps, 4])], []);
  }

  it("of 50 000 nodes is inferred within a second", () => {
    const graph = unrolled(5556);
    expect(graph.nodes.length).toBeGreaterThan(50_000);
    const times = [1, 2, 3].map(() => {
      const start = performance.now();
      const { values, failures } = inferConcrete(graph, new Map());
      expect(failures).toEqual([]);
      expect(values.get("y")?.shape).toEqual([1, 8, 5556]);
      return performance.now() - start;
    });
    expect(Math.min(...times)).toBeLessThan(1000);
  });
});
