import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Model } from "../../src/ir/graph.js";
import { toNumbers } from "../../src/ir/tensor.js";
import { graphDigest } from "../../src/onnx/model-digest.js";
import type { CalibrationTable, StatRequest } from "../../src/quant/calibration.js";
import { findBoundaries } from "../../src/run/blocks.js";
import {
  type CalibrateOptions,
  calibrate,
  calibrateToFile,
  mergeToFile,
  tableStatistics,
} from "../../src/run/calibrate.js";
import { readCalibration } from "../../src/run/calibration-files.js";
import { type Dataset, openDataset, type Shard } from "../../src/run/dataset.js";
import { type OrtGemm, openOrtGemm } from "../../src/run/ort-gemm.js";
import { readSignature } from "../../src/run/signature.js";
import { collectStatistics, missingIn, tabledStatistics } from "../../src/run/statistics.js";
import { sweep } from "../../src/run/sweep.js";
import { usualRequests } from "../../src/run/usual-requests.js";
import { compiledFixture } from "../support/compiled-fixture.js";

const folder = mkdtempSync(join(tmpdir(), "mambac-statistics-test-"));
let products: OrtGemm;
let model: Model;
let requests: StatRequest[];
beforeAll(async () => {
  products = openOrtGemm();
  model = await compiledFixture("mamba2");
  requests = usualRequests(model, readSignature(model).states, { secondMoments: true });
});
afterAll(async () => {
  await products[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

function data(shard: Shard = { index: 1, count: 1 }, seed = 9): Promise<Dataset> {
  return openDataset({ paths: ["random"], vocabulary: 64, samples: 7, sequenceLength: 30, seed, shard });
}

async function options(dataset: Dataset): Promise<CalibrateOptions> {
  const { gemm } = products;
  return { model, dataset, requests, window: 11, version: "0.1.0", modelSha256: graphDigest(model), gemm };
}

/** All rows of each value, from whole sequences in one call each. */
async function allRows(values: readonly string[]): Promise<Map<string, number[][]>> {
  const out = new Map<string, number[][]>();
  await sweep(
    { model, dataset: await data(), values, decodeShare: 0 },
    {
      value(name, tensor) {
        const numbers = [...toNumbers(tensor)];
        const channels = tensor.shape.at(-1) ?? 1;
        const rows = out.get(name) ?? [];
        out.set(name, rows);
        for (let at = 0; at < numbers.length; at += channels) rows.push(numbers.slice(at, at + channels));
      },
      blockDone: () => undefined,
    },
  );
  return out;
}

/** Largest difference over the largest expected value. */
function relative(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(actual.length).toBe(expected.length);
  const scale = Math.max(...Array.from(expected, Math.abs));
  return Math.max(...Array.from(expected, (value, i) => Math.abs(value - (actual[i] ?? Number.NaN)))) / scale;
}

describe("statistics of real activations", () => {
  it("are those of a direct computation", async () => {
    const table = await calibrate(await options(await data()));
    const statistics = tableStatistics(table, "the table");
    const rowsOf = await allRows([...new Set(requests.map(({ value }) => value))]);
    let moments = 0;
    for (const { value, kind, perChannel } of requests) {
      const rows = rowsOf.get(value) ?? [];
      const channels = rows[0]?.length ?? 0;
      const magnitudes = rows.map((row) => row.map(Math.abs));
      const column = (c: number): number[] => magnitudes.map((row) => row[c] ?? Number.NaN);
      const each = Array.from({ length: channels }, (_, c) => c);
      const sorted = magnitudes.flat().toSorted((a, b) => a - b);
      switch (kind) {
        case "absmax": {
          const peaks = each.map((c) => Math.max(...column(c)));
          if (perChannel) expect(relative(statistics.channelAbsMax(value), peaks)).toBeLessThan(1e-5);
          expect(relative([statistics.absMax(value)], [Math.max(...peaks)])).toBeLessThan(1e-5);
          break;
        }
        case "meanabs": {
          const means = each.map((c) => column(c).reduce((sum, x) => sum + x, 0) / rows.length);
          expect(relative(statistics.channelMeanAbs(value), means)).toBeLessThan(1e-5);
          break;
        }
        case "percentile":
          for (const share of [0.5, 0.99, 0.9999]) {
            const exact = sorted[Math.ceil(share * sorted.length) - 1] ?? Number.NaN;
            const got = statistics.percentile(value, share);
            expect(got / exact).toBeGreaterThan(1 - 1e-4);
            expect(got / exact).toBeLessThan(1.0041);
          }
          expect(statistics.percentile(value, 1)).toBeCloseTo(sorted.at(-1) ?? Number.NaN, 4);
          break;
        default: {
          const { size, count, matrix } = statistics.secondMoment(value);
          expect([size, count]).toEqual([channels, rows.length]);
          const expected = each.flatMap((i) =>
            each.map((j) => rows.reduce((sum, row) => sum + (row[i] ?? 0) * (row[j] ?? 0), 0) / rows.length),
          );
          expect(relative(matrix, expected)).toBeLessThan(1e-5);
          moments += 1;
        }
      }
    }
    expect(moments).toBeGreaterThan(3);
  });

  it("are the same block by block, to rounding", async () => {
    const whole = tableStatistics(await calibrate(await options(await data())), "whole");
    const boundaries = findBoundaries(model, readSignature(model));
    const cut = tableStatistics(await calibrate({ ...(await options(await data())), boundaries }), "cut");
    for (const { value, kind, perChannel } of requests) {
      if (kind === "absmax" && perChannel)
        expect(relative(cut.channelAbsMax(value), whole.channelAbsMax(value))).toBeLessThan(1e-5);
      if (kind !== "second-moment") continue;
      expect(relative(cut.secondMoment(value).matrix, whole.secondMoment(value).matrix)).toBeLessThan(1e-5);
    }
  });

  it("repeat to the last bit", async () => {
    await calibrateToFile(await options(await data()), join(folder, "one.json"));
    await calibrateToFile(await options(await data()), join(folder, "two.json"));
    for (const ending of ["", ".bin"]) {
      const one = readFileSync(join(folder, `one.json${ending}`));
      expect(one.equals(readFileSync(join(folder, `two.json${ending}`)))).toBe(true);
    }
  });

  it("refuse what was not asked for", async () => {
    const [{ value }] = requests as [StatRequest];
    const table = await calibrate({
      ...(await options(await data())),
      requests: [{ value, kind: "absmax", perChannel: true }],
    });
    const statistics = tableStatistics(table, "t.json");
    expect(statistics.absMax(value)).toBe(Math.max(...statistics.channelAbsMax(value)));
    for (const ask of [
      () => statistics.percentile(value, 0.5),
      () => statistics.secondMoment(value),
      () => statistics.channelMeanAbs(value),
      () => statistics.absMax("other"),
    ]) {
      expect(ask).toThrow(expect.objectContaining({ code: "calibration/missing", exitCode: 5 }));
    }
  });

  it("from tables know which graph they are of", async () => {
    const table = await calibrate(await options(await data()));
    const [{ value }] = requests as [StatRequest];
    const { modelSha256 } = table.header;
    const tables = [{ label: "t.json", table }];
    expect(missingIn(tables, modelSha256, requests)).toEqual([]);
    expect(tabledStatistics(tables, modelSha256).absMax(value)).toBeGreaterThan(0);
    const more: StatRequest = { value, kind: "minmax", perChannel: true };
    expect(missingIn(tables, modelSha256, [...requests, more])).toEqual([more]);
    expect(missingIn(tables, "00", requests)).toEqual(requests);
    expect(() => tabledStatistics(tables, "00").absMax(value)).toThrow(/t\.json has no absmax/);
    const of = requests.map((request) => ({ ...request, graph: "00" }));
    const other = await calibrate({ ...(await options(await data())), requests: of });
    const both = [...tables, { label: "u.json", table: other }];
    expect(missingIn(both, "00", requests)).toEqual([]);
    expect(tabledStatistics(both, "00").absMax(value)).toBe(tabledStatistics(tables, modelSha256).absMax(value));
  });

  it("are collected for passes in a file that goes away", async () => {
    const { values } = { values: tableStatistics(await calibrate(await options(await data())), "t") };
    const [{ value }] = requests as [StatRequest];
    const before = readdirSync(tmpdir()).filter((name) => name.includes("mambac-statistics."));
    {
      using statistics = await collectStatistics(model, requests, await data());
      expect(relative(statistics.channelAbsMax(value), values.channelAbsMax(value))).toBeLessThan(1e-5);
    }
    expect(readdirSync(tmpdir()).filter((name) => name.includes("mambac-statistics."))).toEqual(before);
  });
});

function bytesOf(table: CalibrationTable, request: StatRequest): string {
  return Buffer.from(table.encoded(request) ?? []).toString("hex");
}

describe("shards", () => {
  async function shards(count: number): Promise<CalibrationTable[]> {
    const tables: CalibrationTable[] = [];
    for (let index = 1; index <= count; index++) {
      const path = join(folder, `shard${index}of${count}.json`);
      tables.push(await calibrateToFile(await options(await data({ index, count })), path));
    }
    return tables;
  }

  it.each([2, 3])("of %d merge to the table of the whole, in any order", async (count) => {
    const whole = await calibrate(await options(await data()));
    const tables = await shards(count);
    expect(tables[0]?.header.shards).toEqual({ count, done: [1] });
    const merged = mergeToFile(tables, join(folder, "merged.json"));
    expect(merged.header).toEqual(whole.header);
    expect(merged.requests).toEqual(whole.requests);
    const [a, b] = [tableStatistics(merged, "merged"), tableStatistics(whole, "whole")];
    for (const { value, kind, perChannel } of requests) {
      switch (kind) {
        case "absmax":
          // Sequences pass the model in the same calls, so that extremes and counts are equal exactly.
          expect(a.absMax(value)).toBe(b.absMax(value));
          if (perChannel) expect(a.channelAbsMax(value)).toEqual(b.channelAbsMax(value));
          break;
        case "percentile":
          expect(a.percentile(value, 0.999)).toBe(b.percentile(value, 0.999));
          expect(bytesOf(merged, { value, kind, perChannel })).toBe(bytesOf(whole, { value, kind, perChannel }));
          break;
        case "meanabs":
          expect(relative(a.channelMeanAbs(value), b.channelMeanAbs(value))).toBeLessThan(1e-13);
          break;
        default:
          expect(a.secondMoment(value).count).toBe(b.secondMoment(value).count);
          expect(relative(a.secondMoment(value).matrix, b.secondMoment(value).matrix)).toBeLessThan(1e-12);
      }
    }
    mergeToFile(tables.toReversed(), join(folder, "other-way.json"));
    for (const ending of ["", ".bin"]) {
      const one = readFileSync(join(folder, `merged.json${ending}`));
      expect(one.equals(readFileSync(join(folder, `other-way.json${ending}`)))).toBe(true);
    }
  });

  it("merge step by step, onto one of their own", async () => {
    const [one, two, three] = await shards(3);
    if (one === undefined || two === undefined || three === undefined) throw new Error("three shards");
    const part = mergeToFile([three, one], join(folder, "shard1of3.json"));
    expect(part.header.shards).toEqual({ count: 3, done: [1, 3] });
    expect(mergeToFile([part, two], join(folder, "all.json")).header.shards).toEqual({ count: 1, done: [1] });
  });

  it("of other data, or twice the same, are refused", async () => {
    const [one, two] = await shards(2);
    if (one === undefined || two === undefined) throw new Error("two shards");
    const other = await calibrate(await options(await data({ index: 2, count: 2 }, 10)));
    const path = join(folder, "refused.json");
    const mismatch = expect.objectContaining({ code: "calibration/mismatch", exitCode: 5 }) as Error;
    expect(() => mergeToFile([one, one], path)).toThrow(mismatch);
    expect(() => mergeToFile([one, other], path)).toThrow(mismatch);
    expect(() => readCalibration(path)).toThrow(/no such file/);
  });
});

describe("graphDigest", () => {
  it("tells weights and names apart, and nothing else", () => {
    const digest = graphDigest(model);
    const { graph } = model;
    expect(graphDigest({ ...model, metadata: new Map([["a", "b"]]), producerVersion: "9", functions: [] })).toBe(
      digest,
    );
    const [name = "", tensor] = [...graph.initializers].at(-1) ?? [];
    if (tensor === undefined) throw new Error("no weights");
    const changed = tensor.bytes().slice();
    changed[changed.length - 1] = (changed.at(-1) ?? 0) ^ 1;
    const other = {
      ...tensor,
      byteLength: tensor.byteLength,
      strings: null,
      slice: (a: number, b: number) => changed.subarray(a, b),
      bytes: () => changed,
    };
    expect(
      graphDigest({ ...model, graph: { ...graph, initializers: new Map([...graph.initializers, [name, other]]) } }),
    ).not.toBe(digest);
    const renamed = graph.nodes.map((node, at) => (at === 0 ? { ...node, name: "renamed" } : node));
    expect(graphDigest({ ...model, graph: { ...graph, nodes: renamed } })).not.toBe(digest);
  });
});
