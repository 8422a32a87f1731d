import { describe, expect, it } from "vitest";
import { GraphBuilder, makeFunction, typed, untyped } from "../../src/ir/builder.js";
import {
  attr,
  type FunctionDef,
  type Graph,
  type Model,
  makeModel,
  makeNode,
  type ValueInfo,
} from "../../src/ir/graph.js";
import { type ConcreteValue, inferConcrete } from "../../src/ir/infer.js";
import { boolTensor, f32Tensor, i64Tensor, type Tensor } from "../../src/ir/tensor.js";
import { encodeModel } from "../../src/onnx/write.js";
import { openSession } from "../../src/run/session.js";

const UNKNOWN: ConcreteValue = { dtype: null, shape: null, content: null };

function modelOf(graph: Graph, functions: readonly FunctionDef[] = []): Model {
  return makeModel(graph, {
    opsets: new Map([
      ["", 21],
      ["local", 1],
    ]),
    functions,
  });
}

async function shapesThatRan(model: Model, feeds: ReadonlyMap<string, Tensor> = new Map()): Promise<object> {
  const session = await openSession(encodeModel(model));
  const ran = await session.run(feeds);
  await session.release();
  return Object.fromEntries([...ran].map(([name, tensor]) => [name, [...tensor.shape]]));
}

function shapesOf(values: ReadonlyMap<string, ConcreteValue>, names: readonly string[]): object {
  return Object.fromEntries(names.map((name) => [name, values.get(name)?.shape]));
}

/** The runtime insists on types for the counter and the condition of a loop. */
function bodyInput(name: string): ValueInfo {
  if (name === "i") return typed(name, "i64", []);
  return name === "cond" ? typed(name, "bool", []) : untyped(name);
}

/** A branch or body with nothing but the nodes that `write` makes. */
function subgraph(
  prefix: string,
  inputs: readonly string[],
  write: (builder: GraphBuilder) => readonly string[],
): Graph {
  const builder = new GraphBuilder(prefix);
  const outputs = write(builder);
  return builder.graph(prefix, inputs.map(bodyInput), outputs.map(untyped));
}

describe("If", () => {
  /** Broadcasts x [2,3] with a constant of the branch's own size. */
  function conditional(thenSize: number, elseSize: number): Graph {
    const builder = new GraphBuilder("");
    const side = (name: string, size: number): Graph =>
      subgraph(name, [], (b) => [b.op("Add", ["x", b.initializer(f32Tensor([size], new Float32Array(size)))])]);
    builder.ops("If", ["c"], ["y"], {
      then_branch: attr.graph(side("t", thenSize)),
      else_branch: attr.graph(side("e", elseSize)),
    });
    return builder.graph("g", [typed("c", "bool", []), typed("x", "f32", [2, "n"])], [untyped("y")]);
  }
  const inputs = (condition: readonly number[] | null): Parameters<typeof inferConcrete>[1] =>
    new Map([
      ["c", { dtype: "bool", shape: [], ...(condition === null ? {} : { content: condition }) }],
      ["x", { dtype: "f32", shape: [2, 1] }],
    ]);

  it("takes the branch that a known condition chooses", () => {
    expect(inferConcrete(conditional(4, 5), inputs([1])).values.get("y")?.shape).toEqual([2, 4]);
    expect(inferConcrete(conditional(4, 5), inputs([0])).values.get("y")?.shape).toEqual([2, 5]);
  });

  it("keeps what both branches agree on", () => {
    expect(inferConcrete(conditional(4, 4), inputs(null)).values.get("y")).toEqual({
      dtype: "f32",
      shape: [2, 4],
      content: null,
    });
    expect(inferConcrete(conditional(4, 5), inputs(null)).values.get("y")).toEqual({ ...UNKNOWN, dtype: "f32" });
  });

  it("blames the node only for a branch that is surely taken", () => {
    const graph = conditional(4, 5);
    const wide = new Map([...inputs([1]), ["x", { dtype: "f32", shape: [2, 5] }]] as const);
    const taken = inferConcrete(graph, wide);
    expect(taken.failures.map(({ node }) => node)).toEqual(graph.nodes);
    expect(taken.failures[0]?.reason).toBe("Add: shapes [2,5] and [4] do not broadcast");
    const open = inferConcrete(graph, new Map([...wide, ["c", { dtype: "bool", shape: [] }]]));
    expect(open.failures).toEqual([]);
  });
});

describe("Loop", () => {
  /** h [2,3] carried, a counter carried, h collected in a sequence and as scan output. */
  function counted(
    limit: number | null,
    again: (b: GraphBuilder) => string = () => "cond",
    begin: boolean = true,
  ): Graph {
    const builder = new GraphBuilder("");
    const body = subgraph("b", ["i", "cond", "h", "n", "s"], (b) => {
      const step = b.op("Cast", ["i"], { to: 1 });
      const h = b.op("Add", ["h", b.op("Mul", [step, "w"])]);
      return [
        again(b),
        h,
        b.op("Add", ["n", b.int(1)]),
        b.op("SequenceInsert", ["s", h]),
        b.op("Cast", [h], { to: 7 }),
      ];
    });
    const trips = limit === null ? "m" : builder.int(limit);
    const start = builder.constant(boolTensor([], [begin]));
    const zero = builder.op("ConstantOfShape", [builder.ints([2, 3])]);
    builder.ops("Loop", [trips, start, zero, builder.int(0), builder.op("SequenceEmpty", [])], LOOP_OUTPUTS, {
      body: attr.graph(body),
    });
    builder.op("ConcatFromSequence", ["seq"], { axis: 1, new_axis: 1 }, "stack");
    builder.op("ConcatFromSequence", ["seq"], { axis: -1 }, "joined");
    builder.op("SequenceLength", ["seq"], {}, "length");
    builder.op("SequenceAt", ["seq", builder.int(0)], {}, "first");
    return builder.graph("g", [typed("w", "f32", [3]), typed("m", "i64", [])], TENSORS.map(untyped));
  }
  const LOOP_OUTPUTS = ["h", "n", "seq", "scan"];
  const TENSORS = ["h", "n", "scan", "stack", "joined", "length", "first"];
  const feeds = new Map([
    ["w", f32Tensor([3], [1, 2, 3])],
    ["m", i64Tensor([], [5])],
  ]);

  it("knows carried values, scan outputs and sequences of a known number of iterations", async () => {
    const graph = counted(5);
    const { values, failures } = inferConcrete(graph, new Map());
    expect(failures).toEqual([]);
    expect(shapesOf(values, TENSORS)).toEqual(await shapesThatRan(modelOf(graph), feeds));
    expect(values.get("stack")?.shape).toEqual([2, 5, 3]);
    expect(values.get("length")?.content).toEqual([5]);
    expect(values.get("n")).toEqual({ dtype: "i64", shape: [], content: null });
    expect(values.get("scan")?.dtype).toBe("i64");
  });

  it("counts one iteration when the condition then fails", async () => {
    const graph = counted(5, (b) => b.constant(boolTensor([], [false])));
    const { values } = inferConcrete(graph, new Map());
    expect(shapesOf(values, TENSORS)).toEqual(await shapesThatRan(modelOf(graph), feeds));
    expect(values.get("stack")?.shape).toEqual([2, 1, 3]);
  });

  it.each([
    ["the limit is 0", counted(0)],
    ["the condition fails at once", counted(5, () => "cond", false)],
  ])("gives the initial values back when %s", (_, graph) => {
    const { values } = inferConcrete(graph, new Map());
    expect(values.get("h")?.content).toEqual([0, 0, 0, 0, 0, 0]);
    expect(values.get("n")?.content).toEqual([0]);
    expect(values.get("length")?.content).toEqual([0]);
    expect(values.get("scan")?.shape).toEqual([0, 2, 3]);
    expect(values.get("stack")?.shape).toBeNull();
  });

  it("knows what does not depend on an unknown number of iterations", () => {
    const { values } = inferConcrete(counted(null), new Map());
    expect(values.get("h")).toEqual({ dtype: "f32", shape: [2, 3], content: null });
    expect(values.get("first")?.shape).toEqual([2, 3]);
    expect(values.get("scan")).toEqual({ dtype: "i64", shape: null, content: null });
    expect(values.get("stack")).toEqual({ dtype: "f32", shape: null, content: null });
    expect(values.get("length")?.content).toBeNull();
  });

  it("gives up the shape of a carried value that grows", () => {
    const builder = new GraphBuilder("");
    const body = subgraph("b", ["i", "cond", "h"], (b) => ["cond", b.op("Concat", ["h", "x"], { axis: 0 })]);
    builder.ops("Loop", [builder.int(4), "", "x"], ["y"], { body: attr.graph(body) });
    const graph = builder.graph("g", [typed("x", "f32", [2, 3])], [untyped("y")]);
    expect(inferConcrete(graph, new Map()).values.get("y")).toEqual({ dtype: "f32", shape: null, content: null });
  });

  it("blames the node for a body that cannot run even once", () => {
    const body = subgraph("b", ["i", "cond", "h"], (b) => ["cond", b.op("MatMul", ["h", "x"])]);
    const looping = (limit: string): Graph => {
      const builder = new GraphBuilder("");
      builder.initializers.set("four", i64Tensor([], [4]));
      builder.ops("Loop", [limit, "", "x"], ["y"], { body: attr.graph(body) });
      return builder.graph("g", [typed("x", "f32", [2, 3]), typed("m", "i64", [])], [untyped("y")]);
    };
    const sure = inferConcrete(looping("four"), new Map());
    expect(sure.failures.map(({ reason }) => reason)).toEqual(["MatMul: matrix product of [2,3] and [2,3]"]);
    expect(inferConcrete(looping("m"), new Map()).failures).toEqual([]);
  });
});

describe("Scan", () => {
  it("slices its inputs and stacks its outputs along their axes", async () => {
    const builder = new GraphBuilder("");
    const body = subgraph("b", ["h", "xt", "yt"], (b) => {
      const h = b.op("Add", ["h", b.op("Mul", ["xt", "yt"])]);
      return [h, h, b.op("ReduceSum", [h, b.ints([0])], { keepdims: 0 })];
    });
    builder.ops("Scan", ["h0", "x", "y"], ["h", "a", "s"], {
      body: attr.graph(body),
      num_scan_inputs: 2,
      scan_input_axes: [1, -1],
      scan_output_axes: [-1, 0],
    });
    const inputs = [typed("h0", "f32", [2, 3]), typed("x", "f32", [2, 5, 1]), typed("y", "f32", [3, 5])];
    const graph = builder.graph("g", inputs, ["h", "a", "s"].map(untyped));
    const feeds = new Map([
      ["h0", f32Tensor([2, 3], new Float32Array(6))],
      ["x", f32Tensor([2, 5, 1], new Float32Array(10))],
      ["y", f32Tensor([3, 5], new Float32Array(15))],
    ]);
    const { values, failures } = inferConcrete(graph, new Map());
    expect(failures).toEqual([]);
    expect(shapesOf(values, ["h", "a", "s"])).toEqual(await shapesThatRan(modelOf(graph), feeds));
    expect(values.get("a")?.shape).toEqual([2, 3, 5]);

    const uneven = inferConcrete(graph, new Map([["y", { dtype: "f32", shape: [3, 4] }]]));
    expect(uneven.failures.map(({ reason }) => reason)).toEqual(["scan inputs of 5 and 4 steps"]);
  });
});

describe("sequences", () => {
  it("follow construction, splitting and erasing", async () => {
    const builder = new GraphBuilder("");
    builder.op("SequenceConstruct", ["x", "x"], {}, "pair");
    builder.op("SequenceErase", ["pair"], {}, "single");
    builder.op("SequenceLength", ["single"], {}, "one");
    builder.op("SplitToSequence", ["x"], { axis: 1, keepdims: 0 }, "columns");
    builder.op("ConcatFromSequence", ["columns"], { axis: 0, new_axis: 1 }, "turned");
    builder.op("SplitToSequence", ["x", builder.int(2)], { axis: 1 }, "halves");
    builder.op("ConcatFromSequence", ["halves"], { axis: 0 }, "stacked");
    builder.op("ConcatFromSequence", ["pair"], { axis: 0 }, "tall");
    const outputs = ["one", "turned", "stacked", "tall"];
    const graph = builder.graph("g", [typed("x", "f32", [3, 4])], outputs.map(untyped));
    const feeds = new Map([["x", f32Tensor([3, 4], new Float32Array(12))]]);
    const { values } = inferConcrete(graph, new Map());
    expect(shapesOf(values, outputs)).toEqual(await shapesThatRan(modelOf(graph), feeds));
    expect(values.get("one")?.content).toEqual([1]);
  });
});

describe("functions", () => {
  const opsets = new Map([
    ["", 21],
    ["local", 1],
  ]);
  /** Joins x with itself along an axis that the caller gives (1 unless it does). */
  function doubling(): FunctionDef {
    const nodes = [makeNode("Concat", ["a", "a"], ["r"], new Map([["axis", attr.ref("axis", "int")]]))];
    const def = makeFunction("local", "Double", { inputs: ["a"], outputs: ["r"], attributes: [] }, nodes, opsets, "");
    return { ...def, attributeDefaults: new Map([["axis", attr.int(1)]]) };
  }
  /** Calls the other function, so that attributes pass through two levels. */
  function quadrupling(): FunctionDef {
    const call = (from: string, to: string): ReturnType<typeof makeNode> =>
      makeNode("Double", [from], [to], new Map([["axis", attr.ref("along", "int")]]), { domain: "local" });
    const nodes = [call("a", "b"), call("b", "r")];
    const signature = { inputs: ["a"], outputs: ["r"], attributes: ["along"] };
    return makeFunction("local", "Quadruple", signature, nodes, opsets, "");
  }

  it("are inferred through their bodies with the caller's attributes", async () => {
    const builder = new GraphBuilder("");
    builder.ops("Double", ["x"], ["wide"], {}, "local");
    builder.ops("Double", ["x"], ["tall"], { axis: 0 }, "local");
    builder.ops("Quadruple", ["x"], ["taller"], { along: 0 }, "local");
    const outputs = ["wide", "tall", "taller"];
    const graph = builder.graph("g", [typed("x", "f32", [3, 4])], outputs.map(untyped));
    const functions = [doubling(), quadrupling()];
    const { values } = inferConcrete(graph, new Map(), { functions });
    const feeds = new Map([["x", f32Tensor([3, 4], new Float32Array(12))]]);
    expect(shapesOf(values, outputs)).toEqual(await shapesThatRan(modelOf(graph, functions), feeds));
    expect(values.get("taller")?.shape).toEqual([12, 4]);
  });

  it("see nothing of the graph that calls them, and their faults are the call's", () => {
    const nodes = [makeNode("Identity", ["x"], ["s"]), makeNode("MatMul", ["a", "a"], ["r"])];
    const def = makeFunction("local", "Odd", { inputs: ["a"], outputs: ["r", "s"], attributes: [] }, nodes, opsets, "");
    const builder = new GraphBuilder("");
    builder.ops("Odd", ["x"], ["r", "s"], {}, "local");
    const graph = builder.graph("g", [typed("x", "f32", [3, 4])], []);
    const { values, failures } = inferConcrete(graph, new Map(), { functions: [def] });
    expect(values.get("s")).toEqual(UNKNOWN);
    expect(failures).toEqual([{ node: graph.nodes[0], reason: "MatMul in Odd: matrix product of [3,4] and [3,4]" }]);
  });

  it("that call themselves end", () => {
    const nodes = [makeNode("Self", ["a"], ["r"], new Map(), { domain: "local" })];
    const def = makeFunction("local", "Self", { inputs: ["a"], outputs: ["r"], attributes: [] }, nodes, opsets, "");
    const builder = new GraphBuilder("");
    builder.ops("Self", ["x"], ["r"], {}, "local");
    const graph = builder.graph("g", [typed("x", "f32", [3])], []);
    expect(inferConcrete(graph, new Map(), { functions: [def] }).values.get("r")).toEqual(UNKNOWN);
  });
});
