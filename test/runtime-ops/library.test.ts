/** The op library: its own native tests, and its kernels inside ONNX Runtime against the float64 reference. */

import { execFileSync } from "node:child_process";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { attr, makeValue } from "../../src/ir/graph.js";
import { f32Tensor, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import { tensorType } from "../../src/ir/types.js";
import { readModelBytes } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import { isPacked, opNames, parseOpName, replayLayout, type ScanSpec } from "../../src/ops/names.js";
import { convNode } from "../../src/ops/nodes.js";
import { causalConvReference } from "../../src/ops/reference.js";
import { ExecutionTrace } from "../../src/run/executed-ops.js";
import { allocate, type NativeSession, openNativeSession } from "../../src/run/native-session.js";
import {
  compareCodes,
  Noise,
  oneNodeModel,
  randomData,
  referenceScan,
  relativeError,
  replayDims,
  type ScanSizes,
  scanFeeds,
  scanModel,
} from "../ops/scan-case.js";
import { isBuilt, library, open, output, tests } from "./kernel-sessions.js";

const ALL_SCANS: readonly (readonly [string, ScanSpec])[] = opNames().flatMap((name) => {
  const spec = parseOpName(name);
  return spec?.kind === "scan" ? [[name, spec] as const] : [];
});
/** Replay states are compared with the reference by the parity tests. */
const SCANS = ALL_SCANS.filter(([, spec]) => spec.requantize !== "replay");

const FREE = { dtMin: Number.NEGATIVE_INFINITY, dtMax: Number.POSITIVE_INFINITY, chunkSize: 64 };

describe.skipIf(!isBuilt)("the op library", () => {
  test("passes its native tests on every instruction set of this machine", () => {
    const report = execFileSync(tests, ["quick"], { encoding: "utf8" });
    expect(report).toMatch(/^\d{7,} checks, 0 failures$/m);
  });

  test("takes the instruction set from MAMBAC_ISA where the machine has it", () => {
    const isa = (value: string): string =>
      execFileSync(tests, ["isa"], { encoding: "utf8", env: { MAMBAC_ISA: value } }).trim();
    expect(isa("portable")).toBe("portable");
    expect(isa("no such set")).toBe(isa(""));
  });

  test.each(SCANS)("%s runs as a kernel and equals the reference", async (name, spec) => {
    using trace = new ExecutionTrace();
    let session: NativeSession | null = null;
    let [codes, different] = [0, 0];
    const cases: readonly (readonly [number, number, number, number, number, number])[] = [
      [1, 1, 2, 16, 16, 1],
      [2, 7, 4, 12, 20, 2],
      [1, 40, 3, 20, 128, 3],
    ];
    for (const [seed, [batch, length, heads, headDim, dState, groups]] of cases.entries()) {
      const sizes: ScanSizes = { batch, length, heads, headDim, dState, groups, ...FREE };
      const current = await open(scanModel(spec, sizes), 2, seed === 0 ? trace.prefix : undefined);
      session ??= current;
      const data = randomData(spec, sizes, seed);
      // A state rounded after every token drifts from the reference at ties: only its first token is comparable.
      if (spec.requantize === "token" && length > 1) {
        await checkTokens(current, spec, sizes, seed);
        continue;
      }
      const outputs = current.run(scanFeeds(spec, sizes, data));
      const expected = referenceScan(spec, sizes, data);
      expect(relativeError(toNumbers(output(outputs, "y")), expected.y)).toBeLessThan(2e-6);
      const present = output(outputs, "present");
      if (isPacked(spec.format)) {
        if (expected.packed === undefined) throw new Error("the reference packed nothing");
        const difference = compareCodes(spec.format, headDim, dState, present.bytes(), expected.packed, spec.scale);
        expect(difference.largest).toBeLessThanOrEqual(1);
        expect(difference.scaleUlps).toBeLessThanOrEqual(2);
        codes += difference.codes;
        different += difference.different;
      } else {
        expect(relativeError(toNumbers(present), expected.state)).toBeLessThan(spec.format === "f16" ? 1e-3 : 2e-6);
      }
    }
    expect(different).toBeLessThanOrEqual(1e-3 * codes);
    if (session === null) throw new Error("no session");
    expect(trace.finish(session)).toContain(name);
  });

  test.each(["none", "silu"] as const)(
    "the convolution with activation %s equals the reference",
    async (activation) => {
      for (const [length, kernelSize, stateWidth] of [
        [1, 4, 3],
        [1, 4, 4],
        [3, 4, 3],
        [50, 4, 3],
        [9, 3, 5],
        [2, 1, 0],
      ] as const) {
        const [batch, channels] = [2, 70];
        const { session, feeds, reference } = await convCase(
          activation,
          batch,
          channels,
          length,
          kernelSize,
          stateWidth,
        );
        const outputs = session.run(feeds);
        expect(relativeError(toNumbers(output(outputs, "y")), reference.y)).toBeLessThan(2e-6);
        expect(toNumbers(output(outputs, "present"))).toEqual(reference.state);
      }
    },
  );

  test.each(ALL_SCANS)("%s gives the same bits in place and on two threads", async (_name, spec) => {
    const sizes: ScanSizes = { batch: 2, length: 5, heads: 4, headDim: 32, dState: 64, groups: 2, ...FREE };
    const model = scanModel(spec, sizes);
    const feeds = scanFeeds(spec, sizes, randomData(spec, sizes, 5));
    const apart = (await open(model)).run(feeds);
    const threads = (await open(model, 2)).run(feeds);
    for (const name of ["y", "present"]) {
      expect(output(threads, name).bytes()).toEqual(output(apart, name).bytes());
    }
    const session = await open(model, 2);
    using binding = session.bind();
    const state = memoryOf(output(feeds, "past"));
    for (const [name, tensor] of feeds) binding.input(name, name === "past" ? state : memoryOf(tensor));
    binding.output("present", state);
    binding.allocateOutput("y");
    expect(output(binding.run(), "y").bytes()).toEqual(output(apart, "y").bytes());
    expect(state.bytes).toEqual(Uint8Array.from(output(apart, "present").bytes()));
  });

  test("serves many sessions, whichever is closed first", async () => {
    const [, spec] = SCANS.find(([name]) => name === "Mamba2ScanH4") ?? [];
    if (spec === undefined) throw new Error("no such scan");
    const sizes: ScanSizes = { batch: 1, length: 2, heads: 2, headDim: 8, dState: 16, groups: 1, ...FREE };
    const model = scanModel(spec, sizes);
    const feeds = scanFeeds(spec, sizes, randomData(spec, sizes, 1));
    const [first, second] = [await openNativeSession(model, { library }), await openNativeSession(model, { library })];
    const before = output(first.run(feeds), "present").bytes();
    first.close();
    expect(output(second.run(feeds), "present").bytes()).toEqual(before);
    second.close();
    const third = await openNativeSession(model, { library });
    expect(output(third.run(feeds), "present").bytes()).toEqual(before);
    third.close();
  });
});

describe.skipIf(!isBuilt)("wrong calls", () => {
  const sizes: ScanSizes = { batch: 2, length: 3, heads: 2, headDim: 4, dState: 6, groups: 1, ...FREE };

  test.each([
    ["num_groups", 3n, /Mamba2ScanF32: attribute num_groups is 3; it must divide num_heads = 2/],
    ["head_dim", 0n, /Mamba2ScanF32: attribute head_dim is 0; it must be between 1 and 2\^30/],
    ["d_state", null, /Mamba2ScanF32: attribute d_state \(int\) is missing/],
    ["dt_min", null, /Mamba2ScanF32: attribute dt_min \(float\) is missing/],
  ] as const)("attribute %s = %s is refused when the model is loaded", async (name, value, message) => {
    await expect(open(looseModel(sizes, "Mamba2ScanF32", { name, value }))).rejects.toThrow(message);
  });

  test.each([
    [0n, /Mamba2ScanH8Replay: attribute replay_length is 0; it must be between 1 and 64/],
    [65n, /Mamba2ScanH8Replay: attribute replay_length is 65; it must be between 1 and 64/],
    [null, /Mamba2ScanH8Replay: attribute replay_length \(int\) is missing/],
  ] as const)("replay_length %s is refused when the model is loaded", async (value, message) => {
    const change = { name: "replay_length", value };
    await expect(open(looseModel(sizes, "Mamba2ScanH8Replay", change))).rejects.toThrow(message);
  });

  test("a replay state with more tokens than its rings hold is refused by name", async () => {
    const spec = parseOpName("Mamba2ScanH4Replay");
    if (spec?.kind !== "scan" || !isPacked(spec.format)) throw new Error("no such scan");
    const session = await open(scanModel(spec, sizes));
    const feeds = scanFeeds(spec, sizes, randomData(spec, sizes, 4));
    const good = output(feeds, "past");
    const { bytes: stride, count } = replayLayout(spec.format, replayDims(sizes));
    const bytes = Uint8Array.from(good.bytes());
    bytes[stride + count] = 16;
    const damaged = new Map([...feeds, ["past", tensorFromBytes(good.dtype, good.shape, bytes)]]);
    expect(() => session.run(damaged)).toThrow(/Mamba2ScanH4Replay: past of sequence 1 counts 16 tokens/);
    expect(output(session.run(feeds), "y").shape).toEqual([2, 3, 2, 4]);
  });

  test("any wrong shape is refused with a message that names the operator, and the next call works", async () => {
    for (const name of ["Mamba2ScanF32", "Mamba2ScanH4", "Mamba2ScanH4Replay", "Mamba1ScanF16", "Mamba1ScanH8"]) {
      const spec = parseOpName(name);
      if (spec?.kind !== "scan") throw new Error("no such scan");
      const session = await open(looseModel(sizes, name));
      const good = scanFeeds(spec, sizes, randomData(spec, sizes, 2));
      const expected = output(session.run(good), "y").bytes();
      fc.assert(
        fc.property(
          fc.constantFrom(...good.keys()),
          fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 6 }),
          (input, shape) => {
            const tensor = output(good, input);
            fc.pre(shape.join() !== tensor.shape.join());
            const width = tensor.bytes().length / tensor.shape.reduce((a, b) => a * b, 1);
            const bytes = new Uint8Array(shape.reduce((a, b) => a * b, 1) * width);
            const feeds = new Map([...good, [input, tensorFromBytes(tensor.dtype, shape, bytes)]]);
            expect(() => session.run(feeds)).toThrow(name);
          },
        ),
        { seed: 11, numRuns: 150 },
      );
      expect(output(session.run(good), "y").bytes()).toEqual(expected);
    }
  });

  test("no tokens leave the state as it is; no batch gives nothing", async () => {
    for (const [name, spec] of ALL_SCANS) {
      const session = await open(looseModel(sizes, name));
      const none = { ...sizes, length: 0 };
      const feeds = scanFeeds(spec, none, randomData(spec, none, 3));
      const outputs = session.run(feeds);
      expect(output(outputs, "y").shape[1]).toBe(0);
      expect(output(outputs, "present").bytes()).toEqual(output(feeds, "past").bytes());
      const empty = { ...sizes, batch: 0 };
      expect(output(session.run(scanFeeds(spec, empty, randomData(spec, empty, 3))), "y").shape[0]).toBe(0);
    }
  });
});

/** A scan model whose inputs may have any shape, so that only the kernel can refuse; one attribute changed or left off. */
function looseModel(sizes: ScanSizes, name: string, change?: { name: string; value: bigint | null }): Uint8Array {
  const spec = parseOpName(name);
  if (spec?.kind !== "scan") throw new Error("no such scan");
  const { model } = readModelBytes(scanModel(spec, sizes));
  const loose = ({ name, type }: (typeof model.graph.inputs)[number]): (typeof model.graph.inputs)[number] =>
    makeValue(name, type?.kind === "tensor" ? tensorType(type.dtype, null) : type);
  const nodes = model.graph.nodes.map((node) => {
    if (change === undefined) return node;
    const attributes = new Map(node.attributes);
    if (change.value === null) attributes.delete(change.name);
    else attributes.set(change.name, attr.int(Number(change.value)));
    return { ...node, attributes };
  });
  const { inputs, outputs } = model.graph;
  const graph = { ...model.graph, nodes, inputs: inputs.map(loose), outputs: outputs.map(loose) };
  return encodeModel({ ...model, graph });
}

/** A call of several tokens must be the same as its tokens one by one, and its first token that of the reference. */
async function checkTokens(session: NativeSession, spec: ScanSpec, sizes: ScanSizes, seed: number): Promise<void> {
  const data = randomData(spec, sizes, seed);
  const feeds = scanFeeds(spec, sizes, data);
  const whole = session.run(feeds);
  const expected = toNumbers(output(whole, "y"));
  const width = expected.length / (sizes.batch * sizes.length);
  let past = output(feeds, "past");
  for (let token = 0; token < sizes.length; token++) {
    const step = new Map([...feeds].map(([name, tensor]) => [name, tokenOf(name, tensor, token)]));
    step.set("past", past);
    const outputs = session.run(step);
    const y = toNumbers(output(outputs, "y"));
    for (let b = 0; b < sizes.batch; b++) {
      const from = (b * sizes.length + token) * width;
      expect(y.slice(b * width, (b + 1) * width)).toEqual(expected.slice(from, from + width));
    }
    past = output(outputs, "present");
  }
  expect(past.bytes()).toEqual(output(whole, "present").bytes());
  const reference = referenceScan({ ...spec, requantize: "call" }, sizes, data);
  const [first, exact] = [expected.slice(0, width), reference.y.slice(0, width)];
  expect(relativeError(first, exact)).toBeLessThan(2e-6);
}

/** One token of an input that has a length axis. */
function tokenOf(name: string, tensor: Tensor, token: number): Tensor {
  if (!["x", "dt", "B", "C"].includes(name)) return tensor;
  const [batch = 0, length = 0, ...rest] = tensor.shape;
  const width = rest.reduce((a, b) => a * b, 1);
  const values = toNumbers(tensor);
  const out = new Float32Array(batch * width);
  for (let b = 0; b < batch; b++) {
    out.set(values.slice((b * length + token) * width, (b * length + token + 1) * width), b * width);
  }
  return f32Tensor([batch, 1, ...rest], out);
}

function memoryOf(tensor: Tensor): { dtype: Tensor["dtype"]; shape: readonly number[]; bytes: Uint8Array } {
  const bytes = allocate(tensor.byteLength);
  bytes.set(tensor.bytes());
  return { dtype: tensor.dtype, shape: tensor.shape, bytes };
}

async function convCase(
  activation: "none" | "silu",
  batch: number,
  channels: number,
  length: number,
  kernelSize: number,
  stateWidth: number,
): Promise<{
  session: NativeSession;
  feeds: Map<string, Tensor>;
  reference: ReturnType<typeof causalConvReference>;
}> {
  const noise = new Noise(length * 31 + stateWidth);
  const x = noise.normals(batch * channels * length, 2);
  const weight = noise.normals(channels * kernelSize);
  const bias = noise.normals(channels);
  const past = noise.normals(batch * channels * stateWidth);
  const shapes: [string, readonly number[], Float32Array][] = [
    ["x", [batch, channels, length], x],
    ["weight", [channels, 1, kernelSize], weight],
    ["bias", [channels], bias],
    ["past", [batch, channels, stateWidth], past],
  ];
  const node = convNode(
    { activation, channels, kernelSize, stateWidth },
    ["x", "weight", "bias", "past"],
    ["y", "present"],
  );
  const types = new Map(
    [...shapes, ["y", shapes[0]?.[1] ?? []] as const, ["present", [batch, channels, stateWidth]] as const].map(
      ([name, shape]) => [name, tensorType("f32", shape)] as const,
    ),
  );
  const session = await open(oneNodeModel(node, ["x", "weight", "bias", "past"], ["y", "present"], types), 2);
  return {
    session,
    feeds: new Map(shapes.map(([name, shape, values]) => [name, f32Tensor(shape, values)])),
    reference: causalConvReference({
      batch,
      channels,
      length,
      kernelSize,
      stateWidth,
      activation,
      x,
      weight,
      bias,
      past,
    }),
  };
}
