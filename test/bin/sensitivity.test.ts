import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import type { OutlierRow } from "../../src/outliers.js";
import { documentIn, mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";
import { DEMO } from "../support/state-quality.js";

const root = mkdtempSync(join(tmpdir(), "mambac-sensitivity-"));
afterAll(() => rmSync(root, { recursive: true }));

/** What is made when it is first asked for. */
function lazily<T>(make: () => Promise<T>): () => Promise<T> {
  let made: Promise<T> | null = null;
  return () => {
    made ??= make();
    return made;
  };
}

interface Row {
  readonly name: string;
  readonly meanKlBits: number;
  readonly change: number;
}

const TEXT = ["--text", join(DEMO, "kjv.txt"), "--windows", "2", "--window", "64"];

const FEW = ["--num-samples", "4", "--seq-len", "64"];
const DATA = join(DEMO, "wordnet.txt");

const calibrated = lazily(async () => {
  const argv = ["sensitivity", join(DEMO, "prefill.onnx"), ...TEXT, "--calib", DATA, ...FEW, "-q"];
  const result = await mambac(...argv, "--json");
  expect(result).toMatchObject({ code: 0, err: "" });
  return documentIn(result);
});

test("one kind and one layer at a time; outliers before and after transforms", async () => {
  const document = await calibrated();
  const types = document["types"] as readonly Row[];
  // A Mamba-2 has neither x_proj nor dt_proj.
  expect(types.map(({ name }) => name.split(" ")[0])).toEqual([
    "in_proj",
    "out_proj",
    "head",
    "embedding",
    "conv1d",
    "A",
    "D",
  ]);
  const layers = document["layers"] as readonly Row[];
  expect(layers.map(({ name }) => name)).toEqual(["layers.0", "layers.1", "layers.2", "layers.3"]);
  for (const { name, meanKlBits } of [...types, ...layers]) {
    expect(meanKlBits, name).toBeGreaterThan(1e-6);
    expect(meanKlBits, name).toBeLessThan(0.2);
  }
  const rows = document["outliers"] as readonly OutlierRow[];
  // Five transforms; two projections in each of four layers, and the head.
  expect(rows).toHaveLength(5 * 9);
  const mean = (transform: string, role: string, of: (row: OutlierRow) => number): number => {
    const found = rows.filter((row) => row.transform === transform && row.role === role);
    return found.reduce((sum, row) => sum + of(row), 0) / found.length;
  };
  const kurtosis = (transform: string): number => mean(transform, "out_proj", (row) => row.kurtosis);
  const spread = (transform: string): number => mean(transform, "out_proj", (row) => row.spread);
  // What the gate lets through is peaked and uneven; a rotation mixes it, smoothing evens channels only.
  expect(kurtosis("none")).toBeGreaterThan(20);
  expect(kurtosis("rotate")).toBeLessThan(5);
  expect(spread("smooth")).toBeLessThan(spread("none"));
  expect(spread("rotate")).toBeLessThan(spread("none") / 5);
  expect(mean("smooth", "out_proj", (row) => row.absMax)).toBeLessThan(mean("none", "out_proj", (row) => row.absMax));
});

test("eight bits cost less than four, and the tables put the costliest first", async () => {
  const source = join(DEMO, "prefill.onnx");
  const eight = await mambac("sensitivity", source, ...TEXT, "--bits", "8", "--json", "-q");
  const four = await mambac("sensitivity", source, ...TEXT, "-q");
  const types = documentIn(eight)["types"] as readonly Row[];
  const lines = four.out.split("\n");
  expect(lines[0]).toMatch(/^only +loss +KL, bits +same top$/);
  expect(four.out).not.toContain("kurtosis");
  const cost = (line: string): number => Number(/(\d\.\d\de[+-]\d+)/.exec(line)?.[1]);
  const table = lines.slice(1, lines.indexOf(""));
  const costs = table.map(cost);
  expect(costs).toEqual(costs.toSorted((a, b) => b - a));
  for (const { name, meanKlBits } of types) {
    const [kind = ""] = name.split(" ");
    const line = table.find((entry) => entry.startsWith(kind)) ?? "";
    expect(meanKlBits, kind).toBeLessThan(cost(line));
  }
});

test("refuses a missing text and a tokenizer it cannot know", async () => {
  const absent = await mambac("sensitivity", join(DEMO, "prefill.onnx"), "--text", join(DEMO, "absent.txt"));
  expect(absent).toMatchObject({ code: 2, out: "" });
  const unknown = await mambac("sensitivity", fixture("hf/mamba2/prefill.onnx"), ...TEXT);
  expect(unknown).toMatchObject({ code: 2, out: "" });
  expect(unknown.err).toContain("--tokenizer");
});

describe("--calib-table", () => {
  const source = join(DEMO, "prefill.onnx");
  const short = ["--text", join(DEMO, "kjv.txt"), "--windows", "1", "--window", "16", "-q", "--json"];
  const rowsIn = (document: Record<string, unknown>): readonly OutlierRow[] =>
    document["outliers"] as readonly OutlierRow[];

  test("gives the outliers of the float model that the data give, and tells what it cannot", async () => {
    const table = join(root, "usual.json");
    const made = await mambac("calibrate", source, "--data", DATA, ...FEW, "--second-moments", "-o", table, "-q");
    expect(made.code, made.err).toBe(0);
    const tabled = await mambac("sensitivity", source, ...short, "--calib-table", table);
    expect(tabled.code, tabled.err).toBe(0);
    expect(tabled.err).toMatch(/after smooth, rotate, rotate KLT, smooth \+ rotate are left out: .*give --calib too/);
    const document = documentIn(tabled);
    expect(document["outliersLeftOut"]).toEqual(["smooth", "rotate", "rotate KLT", "smooth + rotate"]);
    const all = rowsIn(await calibrated());
    expect(rowsIn(document)).toEqual(all.filter(({ transform }) => transform === "none"));
  });

  test("one that serves no transform, and one of another model, are refused", async () => {
    const bare = join(root, "bare.json");
    expect((await mambac("calibrate", source, "--data", DATA, ...FEW, "-o", bare, "-q")).code).toBe(0);
    const lacking = await mambac("sensitivity", source, ...short, "--calib-table", bare);
    expect(lacking.code).toBe(5);
    expect(lacking.err).toMatch(/needs second-moment by channel of .*bare\.json lacks these/);
    const other = fixture("hf/mamba2/prefill.onnx");
    const stale = await mambac("sensitivity", other, ...short, "--calib-table", bare, "--tokenizer", "bytes");
    expect(stale.code).toBe(5);
    expect(stale.err).toMatch(/made for another model/);
  });
});

test.each([
  ["sensitivity", TEXT],
  ["compare", ["--recipe", "w8a8h8", ...TEXT]],
  ["eval", TEXT],
  ["generate", ["--prompt", "x"]],
  ["bench", []],
])("%s refuses models of pictures for what they are", async (command, more) => {
  const argv = [fixture("pictures/vim_chunks.onnx"), ...more, "-q"];
  const result = await mambac(command, ...argv);
  expect(result).toMatchObject({ code: 4, out: "" });
  expect(result.err).toMatch(/this model reads no tokens, but pixels/);
});
