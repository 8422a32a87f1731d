import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { GraphBuilder, typed } from "../../src/ir/builder.js";
import { attr, type Model, makeModel, makeNode, makeValue } from "../../src/ir/graph.js";
import { f32Tensor, toNumbers } from "../../src/ir/tensor.js";
import { requestKey, type StatRequest } from "../../src/quant/calibration.js";
import type { SampledRows } from "../../src/quant/row-sample.js";
import { findBoundaries } from "../../src/run/blocks.js";
import { observe, type RowObserver } from "../../src/run/calibrate.js";
import { type Dataset, openDataset } from "../../src/run/dataset.js";
import { readSignature } from "../../src/run/signature.js";
import { sweep } from "../../src/run/sweep.js";
import { usualRequests } from "../../src/run/usual-requests.js";
import { compiledFixture } from "../support/compiled-fixture.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-observe-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function randomData(samples: number, sequenceLength: number, shard = { index: 1, count: 1 }): Promise<Dataset> {
  return openDataset({ paths: ["random"], vocabulary: 64, samples, sequenceLength, seed: 9, shard });
}

/** Keeps everything. */
class Everything implements RowObserver {
  readonly rows: number[] = [];
  channels = 0;

  observe(rows: Float32Array, channels: number): void {
    this.rows.push(...rows);
    this.channels = channels;
  }
}

const absmax = (value: string): StatRequest => ({ value, kind: "absmax", perChannel: true });

/** A graph that makes `values` (a float for each token id, by a table) and logits from them. */
function tableModel(values: readonly number[]): Model {
  const builder = new GraphBuilder("");
  const table = builder.initializer(f32Tensor([values.length, 1], values), "table");
  builder.op("Gather", [table, "input_ids"], {}, "picked");
  builder.op("Identity", ["picked"], {}, "logits");
  builder.op("Shape", ["picked"], {}, "shape");
  const ids = typed("input_ids", "i64", [1, "length"]);
  return makeModel(builder.graph("table", [ids], [typed("logits", "f32", [1, "length", 1]), makeValue("shape", null)]));
}

describe("observe", () => {
  it("shows observers every row of every sequence, once, and hands them on block by block", async () => {
    const model = await compiledFixture("mamba2");
    const dataset = await randomData(3, 20);
    const signature = readSignature(model);
    const requests = usualRequests(model, signature.states, { secondMoments: true });
    const seen: string[] = [];
    const blocks: number[] = [];
    let block = 0;
    await observe<Everything>(
      {
        model,
        dataset,
        requests,
        boundaries: findBoundaries(model, signature),
        window: 8,
        makeObserver: () => new Everything(),
        onProgress: (progress) => {
          block = progress.block;
        },
      },
      {
        statistic(request, observer) {
          seen.push(requestKey(request));
          blocks.push(block);
          expect(observer.rows.length % (20 * 3), request.value).toBe(0);
        },
      },
    );
    expect(seen.toSorted()).toEqual([...new Set(requests.map(requestKey))].toSorted());
    expect(new Set(blocks)).toEqual(new Set([0, 1]));
    expect(blocks).toEqual(blocks.toSorted((a, b) => a - b));
  });

  it("gives the same numbers in shards as in one", async () => {
    const model = await compiledFixture("mamba2");
    const values = usualRequests(model, readSignature(model).states, { secondMoments: false })
      .filter(({ perChannel }) => perChannel)
      .map(({ value }) => value);
    const rowsOf = async (dataset: Dataset): Promise<Map<string, string[]>> => {
      const out = new Map<string, string[]>();
      const requests = values.map(absmax);
      await observe<Everything>(
        { model, dataset, requests, makeObserver: () => new Everything() },
        {
          statistic(request, { rows, channels }) {
            const list = Array.from({ length: rows.length / channels }, (_, i) =>
              rows.slice(i * channels, (i + 1) * channels).join(),
            );
            out.set(request.value, list.toSorted());
          },
        },
      );
      return out;
    };
    const whole = await rowsOf(await randomData(5, 12));
    const [first, second] = [
      await rowsOf(await randomData(5, 12, { index: 1, count: 2 })),
      await rowsOf(await randomData(5, 12, { index: 2, count: 2 })),
    ];
    for (const [value, rows] of whole) {
      expect([...(first.get(value) ?? []), ...(second.get(value) ?? [])].toSorted()).toEqual(rows);
    }
  });

  it("samples the same tokens of every value, whatever the calls and blocks", async () => {
    const model = await compiledFixture("mamba2");
    const signature = readSignature(model);
    const dataset = await randomData(4, 25);
    const linears = usualRequests(model, signature.states, { secondMoments: false })
      .filter(({ kind }) => kind === "meanabs")
      .map(({ value }) => value);
    expect(linears.length).toBeGreaterThan(3);
    const sampled = async (options: { window: number; boundaries: string[] }): Promise<Map<string, SampledRows>> => {
      const out = new Map<string, SampledRows>();
      const samples = linears.map((value) => ({ value, rows: 10 }));
      await observe(
        { model, dataset, requests: [], samples, makeObserver: () => new Everything(), ...options },
        { statistic: () => undefined, sample: (value, rows) => void out.set(value, rows) },
      );
      return out;
    };
    const whole = await sampled({ window: 512, boundaries: [] });
    const cut = await sampled({ window: 4, boundaries: findBoundaries(model, signature) });
    expect([...whole.keys()].toSorted()).toEqual(linears.toSorted());
    const [first] = whole.values();
    for (const [value, rows] of whole) {
      expect(rows.rows).toBe(10);
      expect(rows.sequences).toEqual(first?.sequences);
      expect(rows.positions).toEqual(first?.positions);
      expect(cut.get(value)?.positions).toEqual(rows.positions);
      cut.get(value)?.data.forEach((number, i) => expect(number).toBeCloseTo(rows.data[i] ?? Number.NaN, 4));
    }
    // The rows are those of the values at these places.
    const [value = ""] = linears;
    await sweep(
      { model, dataset, values: [value], decodeShare: 0 },
      {
        value(_, tensor, { sequence }) {
          const numbers = toNumbers(tensor);
          const { channels = 0, sequences = [], positions = [], data = [] } = whole.get(value) ?? {};
          for (let row = 0; row < sequences.length; row++) {
            if (sequences[row] !== sequence) continue;
            const start = (positions[row] ?? 0) * channels;
            const expected = numbers.slice(start, start + channels);
            expected.forEach((number, i) => expect(data[row * channels + i]).toBeCloseTo(number, 4));
          }
        },
        blockDone: () => undefined,
      },
    );
  });

  it.each([
    [Number.NaN, /NaN in sequence \d, tokens 0 to 19/],
    [Number.POSITIVE_INFINITY, /Infinity/],
  ])("refuses data on which the model gives %d", async (bad, message) => {
    const values = Array.from({ length: 64 }, (_, id) => id);
    const run = (table: readonly number[]): Promise<void> =>
      randomData(2, 20).then((dataset) =>
        observe(
          { model: tableModel(table), dataset, requests: [absmax("picked")], makeObserver: () => new Everything() },
          { statistic: () => undefined },
        ),
      );
    await expect(run(values)).resolves.toBeUndefined();
    const failure = run(values.map((value) => (value % 2 === 0 ? bad : value)));
    await expect(failure).rejects.toMatchObject({ code: "calibrate/not-finite", exitCode: 5 });
    await expect(failure).rejects.toThrow(message);
  });

  it("refuses channels where the last axis follows the tokens", async () => {
    const compiled = await compiledFixture("mamba2");
    const conv = compiled.graph.nodes.find((node) => node.op.startsWith("CausalConv"))?.outputs[0] ?? "";
    const turn = makeNode("Transpose", [conv], ["turned"], new Map([["perm", attr.ints([0, 2, 1])]]));
    const model = { ...compiled, graph: { ...compiled.graph, nodes: [...compiled.graph.nodes, turn] } };
    const run = async (perChannel: boolean): Promise<void> => {
      const requests: StatRequest[] = [{ value: "turned", kind: "absmax", perChannel }];
      const dataset = await randomData(2, 20);
      await observe({ model, dataset, requests, makeObserver: () => new Everything() }, { statistic: () => undefined });
    };
    await expect(run(true)).rejects.toMatchObject({ code: "calibrate/channels", exitCode: 5 });
    await expect(run(false)).resolves.toBeUndefined();
  });

  it("refuses values that are not float", async () => {
    const dataset = await randomData(2, 20);
    const running = observe(
      {
        model: tableModel(new Array<number>(64).fill(1)),
        dataset,
        requests: [absmax("shape")],
        makeObserver: () => new Everything(),
      },
      { statistic: () => undefined },
    );
    await expect(running).rejects.toMatchObject({ code: "calibrate/dtype", exitCode: 5 });
  });
});
