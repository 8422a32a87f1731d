import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type Model, makeValue } from "../../src/ir/graph.js";
import { i64Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import { encodeModel } from "../../src/onnx/write.js";
import { findBoundaries } from "../../src/run/blocks.js";
import { type Dataset, openDataset } from "../../src/run/dataset.js";
import { openSession } from "../../src/run/session.js";
import { readSignature } from "../../src/run/signature.js";
import { callLengths, type SweepOptions, sweep } from "../../src/run/sweep.js";
import { compiledFixture, floatValues } from "../support/compiled-fixture.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-sweep-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function randomData(vocabulary: number, samples: number, sequenceLength: number): Promise<Dataset> {
  return openDataset({ paths: ["random"], vocabulary, samples, sequenceLength, seed: 5 });
}

/** Rows of every value in token order, by sequence: calls joined along the token axis of [1, L, ...] values. */
async function collect(options: Omit<SweepOptions, "temporaryFolder">): Promise<Map<string, number[][]>> {
  const out = new Map<string, number[][]>();
  const ended: string[] = [];
  await sweep(
    { ...options, temporaryFolder: folder },
    {
      value(name, tensor, { sequence, start, length }) {
        expect(ended).not.toContain(name);
        expect(tensor.shape.slice(0, 2)).toEqual([1, length]);
        const rows = out.get(name) ?? [];
        out.set(name, rows);
        const list = rows[sequence] ?? [];
        rows[sequence] = list;
        expect(list.length).toBe((start * toNumbers(tensor).length) / length);
        list.push(...toNumbers(tensor));
      },
      blockDone(names) {
        ended.push(...names);
      },
    },
  );
  expect(ended.toSorted()).toEqual(options.values.toSorted());
  expect(readdirSync(folder)).toEqual([]);
  return out;
}

/** One call for each sequence, without a sweep: the model with the values as outputs. */
async function direct(model: Model, values: readonly string[], dataset: Dataset): Promise<Map<string, number[][]>> {
  const outputs = values.map((name) => makeValue(name, null));
  const session = await openSession(encodeModel({ ...model, graph: { ...model.graph, outputs } }));
  const { states, tokens, auxiliaries } = readSignature(model);
  const out = new Map<string, number[][]>(values.map((name) => [name, []]));
  for await (const sequence of dataset.sequences()) {
    const length = sequence.tokens.length;
    const feeds = new Map([[tokens.name, i64Tensor([1, length], [...sequence.tokens])]]);
    for (const input of auxiliaries)
      feeds.set(
        input.name,
        i64Tensor(
          [1, length],
          Array.from({ length }, (_, i) => i),
        ),
      );
    for (const state of states) {
      const shape = state.shape.map((dim, axis) => (axis === 0 ? 1 : axis === state.growthAxis ? 0 : Number(dim)));
      feeds.set(state.input, tensorFromBytes("f32", shape, new Uint8Array(4 * shape.reduce((a, b) => a * b, 1))));
    }
    const results = await session.run(feeds);
    for (const name of values) {
      const tensor = results.get(name);
      if (tensor !== undefined) out.get(name)?.push([...toNumbers(tensor)]);
    }
  }
  await session.release();
  return out;
}

/** Values of shape [1, L, channels]. */
async function tokenValues(model: Model, dataset: Dataset): Promise<string[]> {
  const shapes = new Map<string, readonly number[]>();
  await sweep(
    { model, dataset, values: floatValues(model), decodeShare: 0 },
    {
      value: (name, tensor) => void shapes.set(name, tensor.dtype === "f32" ? tensor.shape : []),
      blockDone: () => undefined,
    },
  );
  return [...shapes].filter(([, shape]) => shape.length === 3 && shape[1] === dataset.longest).map(([name]) => name);
}

function expectClose(actual: ReadonlyMap<string, number[][]>, expected: ReadonlyMap<string, number[][]>): void {
  expect([...actual.keys()].toSorted()).toEqual([...expected.keys()].toSorted());
  for (const [name, sequences] of expected) {
    const scale = Math.max(...sequences.flat().map(Math.abs));
    sequences.forEach((list, at) => {
      const got = actual.get(name)?.[at] ?? [];
      expect(got.length, name).toBe(list.length);
      const difference = Math.max(...list.map((value, i) => Math.abs(value - (got[i] ?? Number.NaN))));
      expect(difference / scale, name).toBeLessThan(1e-5);
    });
  }
}

describe("callLengths", () => {
  it("covers the sequence: windows, what is left of one, then single tokens", () => {
    expect(callLengths(100, { window: 32, decodeShare: 1 / 10, fixed: null })).toEqual([
      32,
      32,
      26,
      ...Array(10).fill(1),
    ]);
    expect(callLengths(20, { window: 32, decodeShare: 1 / 32, fixed: null })).toEqual([19, 1]);
    expect(callLengths(1, { window: 32, decodeShare: 1 / 32, fixed: null })).toEqual([1]);
    expect(callLengths(64, { window: 32, decodeShare: 0, fixed: null })).toEqual([32, 32]);
    expect(callLengths(3, { window: 32, decodeShare: 1, fixed: null })).toEqual([1, 1, 1]);
    expect(callLengths(23, { window: 32, decodeShare: 1 / 32, fixed: 5 })).toEqual([5, 5, 5, 5]);
  });
});

describe("sweep", () => {
  it.each(["mamba2", "mamba", "bamba", "zamba2"])(
    "%s: windows, steps and blocks show what one call shows",
    async (name) => {
      const model = await compiledFixture(name);
      const dataset = await randomData(64, 3, 23);
      const values = await tokenValues(model, dataset);
      expect(values.length).toBeGreaterThan(10);
      const expected = await direct(model, values, dataset);
      const boundaries = findBoundaries(model, readSignature(model));
      expect(boundaries.length).toBeGreaterThan(0);
      const steps: number[] = [];
      const cut = await collect({
        model,
        dataset,
        values,
        boundaries,
        window: 9,
        decodeShare: 0.2,
        onProgress: ({ block, sequence }) => steps.push(10 * block + sequence),
      });
      expectClose(cut, expected);
      expect(steps).toEqual(
        [...boundaries, ""].flatMap((_, block) => [1, 2, 3].map((sequence) => 10 * block + sequence)),
      );
      expectClose(await collect({ model, dataset, values, window: 9, decodeShare: 0.2 }), expected);
    },
  );

  it("leaves out blocks after the last value, and keeps a graph whole where state is shared", async () => {
    const model = await compiledFixture("mamba2");
    const dataset = await randomData(64, 1, 8);
    const [boundary = ""] = findBoundaries(model, readSignature(model));
    const blocks: number[] = [];
    const onProgress = ({ blocks: count }: { readonly blocks: number }): void => void blocks.push(count);
    await collect({ model, dataset, values: [boundary], boundaries: [boundary], onProgress });
    expect(blocks).toEqual([1]);
    const inside = model.graph.nodes.find((node) => node.op.startsWith("CausalConv"))?.outputs[0] ?? "";
    const notices: string[] = [];
    const values = floatValues(model).slice(-1);
    const whole = await collect({
      model,
      dataset,
      values,
      boundaries: [inside, boundary],
      onNotice: (m) => notices.push(m),
    });
    expect(notices.join()).toContain(inside);
    expectClose(await collect({ model, dataset, values }), whole);
  });

  it("refuses values the graph does not make", async () => {
    const model = await compiledFixture("mamba2");
    const dataset = await randomData(64, 1, 8);
    for (const name of ["nothing", "input_ids", [...model.graph.initializers.keys()][0] ?? ""]) {
      await expect(sweep({ model, dataset, values: [name] }, { value() {}, blockDone() {} })).rejects.toMatchObject({
        code: "calibrate/value",
        exitCode: 5,
      });
    }
  });

  it("stops between calls when asked to, leaving no file behind", async () => {
    const model = await compiledFixture("mamba2");
    const dataset = await randomData(64, 4, 16);
    const abort = new AbortController();
    let calls = 0;
    const running = sweep(
      {
        model,
        dataset,
        values: floatValues(model).slice(-1),
        boundaries: findBoundaries(model, readSignature(model)),
        signal: abort.signal,
        temporaryFolder: folder,
        onProgress: ({ block, sequence }) => {
          if (block === 1 && sequence === 2) abort.abort();
        },
      },
      {
        value() {
          calls += 1;
        },
        blockDone() {},
      },
    );
    await expect(running).rejects.toMatchObject({ code: "calibrate/interrupted", exitCode: 130 });
    expect(calls).toBe(4);
    expect(readdirSync(folder)).toEqual([]);
  });
});
