import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import type { Graph, Model, ValueInfo } from "../../src/ir/graph.js";
import { asBytes, f32Tensor, i64Tensor, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import type { DType } from "../../src/ir/types.js";
import { encodeModel } from "../../src/onnx/write.js";
import { allocate, type Memory, openNativeSession } from "../../src/run/native-session.js";
import { addressOf, loadOrt } from "../../src/run/ort-capi.js";
import { openSession } from "../../src/run/session.js";
import { countModel } from "../support/count-model.js";
import { fixture } from "../support/fixture-models.js";

function modelOf(graph: Graph): Uint8Array {
  const model: Model = { ...countModel(), graph, functions: [] };
  return encodeModel(model);
}

/** A graph of one node `op` from inputs to outputs. */
function single(op: string, inputs: readonly ValueInfo[], outputs: readonly ValueInfo[]): Uint8Array {
  const builder = new GraphBuilder("");
  builder.ops(
    op,
    inputs.map((i) => i.name),
    outputs.map((o) => o.name),
  );
  return modelOf(builder.graph("single", inputs, outputs));
}

function view(bytes: Uint8Array): Float32Array {
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

function floats(values: readonly number[], shape: readonly number[] = [values.length]): Memory {
  const bytes = allocate(values.length * 4);
  view(bytes).set(values);
  return { dtype: "f32", shape, bytes };
}

function read(memory: Memory): number[] {
  return Array.from(view(memory.bytes));
}

const ADD: Uint8Array = single("Add", [typed("a", "f32", ["n"]), typed("b", "f32", ["n"])], [typed("c", "f32", ["n"])]);

describe("NativeSession", () => {
  it("gives what onnxruntime-node gives, to the bit", async () => {
    const path = fixture("hf/mamba2/prefill.onnx");
    using native = await openNativeSession(path);
    const node = await openSession(path, { optimization: "all" });
    expect(native.inputNames).toEqual(node.inputNames);
    expect(native.outputNames).toEqual(node.outputNames);
    const feeds = new Map([["input_ids", i64Tensor([2, 5], [1, 2, 3, 4, 5, 90, 80, 70, 60, 50])]]);
    const expected = await node.run(feeds);
    const actual = native.run(feeds);
    await node.release();
    expect([...actual.keys()]).toEqual([...expected.keys()]);
    for (const [name, tensor] of expected) {
      expect(actual.get(name)?.shape).toEqual(tensor.shape);
      expect(actual.get(name)?.bytes()).toEqual(tensor.bytes());
    }
  });

  it("loads from bytes and runs on chosen outputs", async () => {
    using session = await openNativeSession(readFileSync(fixture("hf/mamba2/prefill.onnx")));
    const results = session.run(new Map([["input_ids", i64Tensor([1, 2], [7, 8])]]), ["logits"]);
    expect([...results.keys()]).toEqual(["logits"]);
    expect(results.get("logits")?.shape).toEqual([1, 2, 96]);
  });

  it.each<readonly [DType, readonly number[], ArrayBufferView]>([
    ["f32", [2], Float32Array.of(1.5, -2)],
    ["f16", [2], Uint16Array.of(0x3c00, 0xc000)],
    ["f64", [2], Float64Array.of(1e300, -2)],
    ["i64", [], BigInt64Array.of(-(2n ** 62n))],
    ["i32", [2, 1], Int32Array.of(-5, 6)],
    ["i8", [3], Int8Array.of(-128, 0, 127)],
    ["u8", [3], Uint8Array.of(0, 1, 255)],
    ["bool", [2], Uint8Array.of(0, 1)],
    ["bf16", [2], Uint16Array.of(0x3f80, 0xc000)],
  ])("passes %s through unchanged", async (dtype, shape, data) => {
    const model = single("Identity", [typed("x", dtype, shape)], [typed("y", dtype, shape)]);
    using session = await openNativeSession(model);
    const x: Tensor = tensorFromBytes(dtype, shape, asBytes(data));
    const y = session.run(new Map([["x", x]])).get("y");
    expect(y?.dtype).toBe(dtype);
    expect(y?.shape).toEqual(shape);
    expect(y?.bytes()).toEqual(asBytes(data));
  });

  it("takes and gives tensors without elements", async () => {
    using session = await openNativeSession(
      single("Abs", [typed("x", "f32", ["n", 2])], [typed("y", "f32", ["n", 2])]),
    );
    const y = session.run(new Map([["x", f32Tensor([0, 2], [])]])).get("y");
    expect(y?.shape).toEqual([0, 2]);
    expect(y?.byteLength).toBe(0);
  });

  it("reports errors of loading and running with the runtime's words", async () => {
    await expect(openNativeSession(Uint8Array.of(1, 2, 3))).rejects.toMatchObject({
      code: "ort/CreateSessionFromArray",
      message: expect.stringContaining("protobuf"),
    });
    using session = await openNativeSession(ADD);
    expect(() => session.run(new Map([["nonsense", f32Tensor([1], [1])]]))).toThrow(/nonsense/);
    expect(() => session.run(new Map([["a", f32Tensor([1], [1])]]))).toThrow(
      expect.objectContaining({ code: "ort/RunWithBinding" }),
    );
    expect(() => session.tensor({ dtype: "f32", shape: [3], bytes: allocate(8) })).toThrow(/needs 12 bytes, not 8/);
  });

  it("refuses to work once closed, and may be closed twice", async () => {
    const session = await openNativeSession(ADD);
    session.close();
    session.close();
    expect(() => session.bind()).toThrow(/closed/);
  });
});

it("memory starts on a cache line", async () => {
  await loadOrt();
  for (const length of [0, 8, 100, 4480, 300_000]) {
    const bytes = allocate(length);
    expect(bytes.byteLength).toBe(length);
    expect(Number(addressOf(bytes) % 64n)).toBe(0);
  }
});

describe("NativeBinding", () => {
  it("reads and writes the caller's memory on every run", async () => {
    using session = await openNativeSession(ADD);
    using binding = session.bind();
    const [a, b, c] = [floats([1, 2]), floats([10, 20]), floats([0, 0])];
    binding.input("a", a);
    binding.input("b", b);
    binding.output("c", c);
    expect(binding.run().size).toBe(0);
    expect(read(c)).toEqual([11, 22]);
    view(a.bytes)[0] = 5;
    binding.run();
    expect(read(c)).toEqual([15, 22]);
  });

  it("carries state in place when one memory is input and output", async () => {
    using session = await openNativeSession(ADD);
    using binding = session.bind();
    const state = floats([1, 0]);
    binding.input("a", state);
    binding.input("b", floats([10, 1]));
    binding.output("c", state);
    for (let i = 0; i < 3; i++) binding.run();
    expect(read(state)).toEqual([31, 3]);
  });

  it("mixes bound outputs with outputs the runtime allocates", async () => {
    const builder = new GraphBuilder("");
    builder.op("Abs", ["x"], {}, "bound");
    builder.op("NonZero", ["x"], {}, "free");
    const graph = builder.graph(
      "mixed",
      [typed("x", "f32", ["n"])],
      [typed("free", "i64", [1, "hits"]), typed("bound", "f32", ["n"])],
    );
    using session = await openNativeSession(modelOf(graph));
    using binding = session.bind();
    const bound = floats([0, 0, 0]);
    binding.input("x", floats([0, -3, 4]));
    binding.allocateOutput("free");
    binding.output("bound", bound);
    const free = binding.run().get("free");
    expect(read(bound)).toEqual([0, 3, 4]);
    expect(free?.shape).toEqual([1, 2]);
    expect(free === undefined ? [] : Array.from(toNumbers(free))).toEqual([1, 2]);
  });

  it("pins small arrays that Node keeps on its moving heap", async () => {
    using session = await openNativeSession(ADD);
    using binding = session.bind();
    const one = Uint8Array.of(0, 0, 0x80, 0x3f);
    const sum = new Uint8Array(4);
    binding.input("a", { dtype: "f32", shape: [1], bytes: one });
    binding.input("b", { dtype: "f32", shape: [1], bytes: Uint8Array.of(0, 0, 0, 0x40) });
    binding.output("c", { dtype: "f32", shape: [1], bytes: sum });
    const young: number[][] = [];
    for (let i = 0; i < 300_000; i++) young[i % 1000] = [i, i + 1, i + 2, i + 3];
    binding.run();
    expect(young).toHaveLength(1000);
    expect(Array.from(sum)).toEqual([0, 0, 0x40, 0x40]);
  });

  it("keeps memory alive that the caller has dropped", async () => {
    using session = await openNativeSession(ADD);
    using binding = session.bind();
    const size = 1 << 16;
    const ones = (): Memory => floats(Array.from({ length: size }, () => 1));
    binding.input("a", ones());
    binding.input("b", ones());
    const c = floats(Array.from({ length: size }, () => 0));
    binding.output("c", c);
    const pressure: Float32Array[] = [];
    for (let i = 0; i < 200; i++) {
      pressure[i % 8] = new Float32Array(size).fill(i);
      binding.run();
    }
    expect(read(c).every((value) => value === 2)).toBe(true);
  });
});

describe("memory", () => {
  it("stays flat over 300 sessions", () => {
    const script = join(import.meta.dirname, "..", "..", "scripts", "soak-sessions.ts");
    const out = execFileSync(process.execPath, ["--import", "tsx", script, "--cycles", "300", "--json"], {
      encoding: "utf8",
    });
    const { cycles, growthBytes } = JSON.parse(out) as { readonly cycles: number; readonly growthBytes: number };
    expect(cycles).toBe(300);
    // 300 leaked sessions of this model would be far more.
    expect(growthBytes).toBeLessThan(4 * 2 ** 20);
  });
});
