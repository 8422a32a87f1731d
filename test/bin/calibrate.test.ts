import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import type { ObservedStatistics } from "../../src/quant/observed-statistics.js";
import { readCalibration } from "../../src/run/calibration-files.js";
import { tabledStatistics } from "../../src/run/statistics.js";
import { Random } from "../../src/support/random.js";
import { documentIn, mambac, spawnMambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-calibrate-cli-"));
afterAll(() => rmSync(root, { recursive: true }));

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(root, "case-"));
});

const PAIR = fixture("hf/mamba2");

/** Sequences of ids as JSON lines. */
function dataFile(vocabulary: number): string {
  const random = new Random(1);
  const line = (): string =>
    JSON.stringify({ input_ids: Array.from({ length: 40 }, () => random.integer(vocabulary)) });
  const path = join(folder, "ids.jsonl");
  writeFileSync(path, Array.from({ length: 12 }, line).join("\n"));
  return path;
}

/** What a table says of the one graph it is about: that with its projections in one form. */
function statisticsIn(path: string): ObservedStatistics {
  const table = readCalibration(path);
  const graphs = new Set(table.requests.map(({ graph }) => graph ?? table.header.modelSha256));
  expect(graphs.size).toBe(1);
  return tabledStatistics([{ label: path, table }], [...graphs][0] ?? "");
}

const FEW = ["--num-samples", "6", "--seq-len", "24"];

describe("mambac calibrate", () => {
  test("writes a table, tells what it is of, and repeats to the bit", async () => {
    const data = dataFile(64);
    const out = join(folder, "table.json");
    const result = await mambac("calibrate", PAIR, "--data", data, "-o", out, ...FEW);
    expect(result.code).toBe(0);
    expect(result.out).toMatch(/data +6 sequences of up to 24 tokens, 1\d\d tokens, seed 0, sha256 [0-9a-f]{12}/);
    expect(result.out).toContain(`written     ${out} and ${out}.bin`);
    const bytes = readFileSync(`${out}.bin`);
    const again = join(folder, "again.json");
    expect((await mambac("calibrate", PAIR, "--data", data, "--output", again, ...FEW, "-q")).out).toBe("");
    expect(readFileSync(`${again}.bin`).equals(bytes)).toBe(true);
    expect(readFileSync(again).equals(readFileSync(out))).toBe(true);
    const table = readCalibration(out);
    const statistics = statisticsIn(out);
    for (const { value, kind, perChannel } of table.requests) {
      if (kind === "absmax" && perChannel) expect(Math.max(...statistics.channelAbsMax(value))).toBeGreaterThan(0);
    }
    expect(table.requests.some(({ kind }) => kind === "second-moment")).toBe(false);
  });

  test("shards merge to the whole, also with underscores and JSON", async () => {
    const data = dataFile(64);
    const run = async (name: string, ...flags: string[]): Promise<Record<string, unknown>> => {
      const out = join(folder, name);
      const result = await mambac(
        "calibrate",
        PAIR,
        "--data",
        data,
        "-o",
        out,
        ...FEW,
        "--second_moments",
        "--json",
        ...flags,
      );
      expect(result.code).toBe(0);
      return documentIn(result);
    };
    const whole = await run("whole.json");
    expect(whole).toMatchObject({ command: "calibrate", sequences: 6, random: false, shards: { count: 1, done: [1] } });
    expect(await run("one.json", "--shard", "1/2")).toMatchObject({ shards: { count: 2, done: [1] } });
    await run("two.json", "--shard=2/2");
    const merged = join(folder, "merged.json");
    const tables = ["two.json", "one.json"].map((name) => join(folder, name));
    const result = await mambac("calibrate", "merge", ...tables, "-o", merged, "--json");
    expect(result.code).toBe(0);
    const document = documentIn(result);
    expect(document).toMatchObject({ command: "calibrate merge", shards: { count: 1, done: [1] } });
    for (const key of ["modelSha256", "dataSha256", "tokensSha256", "requestsSha256", "statistics"]) {
      expect(document[key]).toEqual(whole[key]);
    }
    const [a, b] = [merged, join(folder, "whole.json")].map(statisticsIn);
    for (const { value, kind } of readCalibration(merged).requests) {
      if (kind === "percentile") expect(a?.percentile(value, 0.99)).toBe(b?.percentile(value, 0.99));
    }
  });

  test("made-up data are marked", async () => {
    const out = join(folder, "random.json");
    const result = await mambac("calibrate", PAIR, "--data", "random", "-o", out, ...FEW, "--quiet");
    expect(result).toMatchObject({ code: 0, out: "" });
    expect(result.err).toMatch(/^warning: the data are made up/);
    expect(readCalibration(out).header.random).toBe(true);
  });

  test("fewer sequences than asked for are told", async () => {
    const out = join(folder, "few.json");
    const result = await mambac("calibrate", PAIR, "--data", dataFile(64), "-o", out, "--seq-len", "40", "-q");
    expect(result.err).toContain("the data give 12 sequences, not 128");
    const all = await mambac("calibrate", PAIR, "--data", dataFile(64), "-o", out, "--num-samples", "all", "-q");
    expect(all).toEqual({ code: 0, out: "", err: "" });
  });

  test("an interruption leaves no file behind", async () => {
    const out = join(folder, "table.json");
    const argv = ["calibrate", PAIR, "--data", "random", "-o", out, "--num-samples", "3000", "--seq-len", "64"];
    const result = await spawnMambac(argv, { interruptAfter: "calibrated" });
    expect(result.code).toBe(130);
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe("exit codes", () => {
  const out = (): string => join(folder, "t.json");

  test.each([
    ["ids above the vocabulary", () => ["--data", dataFile(2000)], /holds the id \d+, but the model knows 0 to \d+/],
    ["no such data", () => ["--data", join(folder, "absent.npy")], /cannot read .*absent\.npy/],
    ["data of another type", () => ["--data", fixture("data/float.npy")], /<f4/],
    ["an empty shard", () => ["--data", dataFile(64), "--num-samples", "2", "--shard", "3/3"], /too few for shard 3/],
  ])("5: %s", async (_, flags, message) => {
    const result = await mambac("calibrate", PAIR, "-o", out(), ...flags());
    expect(result).toMatchObject({ code: 5, out: "" });
    expect(result.err).toMatch(message);
    expect(readdirSync(folder).filter((name) => name.startsWith("t.json"))).toEqual([]);
  });

  test("5: text, where the tokenizer is not known", async () => {
    const path = join(folder, "a.txt");
    writeFileSync(path, "some text");
    const result = await mambac("calibrate", PAIR, "-o", out(), "--data", path);
    expect(result.code).toBe(5);
    expect(result.err).toContain("--tokenizer");
  });

  test("2: a folder that is not there; 5: tables that do not belong together", async () => {
    const data = dataFile(64);
    const far = join(folder, "absent", "t.json");
    expect((await mambac("calibrate", PAIR, "-o", far, "--data", data, ...FEW)).code).toBe(2);
    await mambac("calibrate", PAIR, "-o", out(), "--data", data, ...FEW, "--shard", "1/2", "-q");
    const other = join(folder, "other.json");
    await mambac("calibrate", PAIR, "-o", other, "--data", data, ...FEW, "--shard", "2/2", "--seed", "4", "-q");
    const result = await mambac("calibrate", "merge", out(), other, "-o", join(folder, "m.json"));
    expect(result).toMatchObject({ code: 5, out: "" });
    expect(result.err).toMatch(/different .*seeds/);
  });

  test.each([
    [["calibrate"]],
    [["calibrate", PAIR, "-o", "t.json"]],
    [["calibrate", PAIR, "--data", "random"]],
    [["calibrate", PAIR, "--data", "random", "-o", "t.json", "--shard", "3/2"]],
    [["calibrate", PAIR, "--data", "random", "-o", "t.json", "--num-samples", "none"]],
    [["calibrate", "merge"]],
  ])("2: %j", async (argv) => {
    const result = await mambac(...argv);
    expect(result).toMatchObject({ code: 2, out: "" });
    expect(result.err).not.toBe("");
  });
});
