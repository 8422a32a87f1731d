import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { readCalibration } from "../../src/run/calibration-files.js";
import { Random } from "../../src/support/random.js";
import { documentIn, mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-calib-table-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const MAMBA1 = fixture("hf/mamba/prefill.onnx");
const MAMBA2 = fixture("hf/mamba2/prefill.onnx");
const FEW = ["--num-samples", "6", "--seq-len", "24"];

/** Sequences of ids as JSON lines. */
function dataFile(seed: number): string {
  const random = new Random(seed);
  const line = (): string => JSON.stringify({ input_ids: Array.from({ length: 30 }, () => random.integer(64)) });
  const path = join(root, `ids${seed}.jsonl`);
  writeFileSync(path, Array.from({ length: 10 }, line).join("\n"));
  return path;
}

const DATA = dataFile(1);
let made = 0;
const fresh = (): string => {
  made += 1;
  return join(mkdtempSync(join(root, "case-")), `file${made}`);
};

/** The table of a calibration. */
async function calibrated(model: string, ...flags: string[]): Promise<string> {
  const out = `${fresh()}.json`;
  const result = await mambac("calibrate", model, "--data", DATA, ...FEW, "-q", "-o", out, ...flags);
  expect(result, result.err).toMatchObject({ code: 0 });
  return out;
}

/** The table of two shards merged. */
async function sharded(model: string, ...flags: string[]): Promise<string> {
  const parts = [
    await calibrated(model, "--shard", "2/2", ...flags),
    await calibrated(model, "--shard", "1/2", ...flags),
  ];
  const out = `${fresh()}.json`;
  expect((await mambac("calibrate", "merge", ...parts, "-q", "-o", out)).code).toBe(0);
  return out;
}

async function compiled(model: string, recipe: string, ...flags: string[]): Promise<Buffer> {
  const out = `${fresh()}.onnx`;
  const result = await mambac(
    "compile",
    model,
    "-o",
    out,
    "-q",
    "--recipe",
    recipe,
    "--external-data",
    "never",
    ...flags,
  );
  expect(result, result.err).toMatchObject({ code: 0 });
  return readFileSync(out);
}

const fromData = (model: string, recipe: string): Promise<Buffer> => compiled(model, recipe, "--calib", DATA, ...FEW);

async function refused(model: string, recipe: string, ...flags: string[]): Promise<string> {
  const out = `${fresh()}.onnx`;
  const result = await mambac("compile", model, "-o", out, "--recipe", recipe, ...flags);
  expect(result, result.err).toMatchObject({ code: 5, out: "" });
  expect(readdirSync(join(out, ".."))).toEqual([]);
  return result.err;
}

describe("compile --calib-table", () => {
  test.each([
    ["Mamba-1", "mambaquant-w8a8", MAMBA1],
    ["Mamba-2", "mambaquant-w8a8", MAMBA2],
    ["Mamba-2", "gptq-w4a16", MAMBA2],
    ["Mamba-1", "w8a8h4", MAMBA1],
  ])("%s, %s: one table for the recipe gives the bytes that the data give", async (_, recipe, model) => {
    const table = await calibrated(model, "--recipe", recipe);
    const expected = await fromData(model, recipe);
    expect((await compiled(model, recipe, "--calib-table", table)).equals(expected)).toBe(true);
    // Beside the data it is used too, and nothing is calibrated again.
    const both = await compiled(model, recipe, "--calib-table", table, "--calib", DATA, ...FEW);
    expect(both.equals(expected)).toBe(true);
  });

  test("shards, stage by stage, merge to tables that give the bytes that the data give", async () => {
    const recipe = "smoothquant-w8a8";
    const first = await sharded(MAMBA2, "--recipe", recipe);
    const lacking = await refused(MAMBA2, recipe, "--calib-table", first);
    expect(lacking).toMatch(
      /pass insert-qdq needs absmax of \S+, \S+, \S+ and \d+ more, of the model as the recipe has left it/,
    );
    expect(lacking).toContain(`${first} knows nothing of that model. From the same data, mambac calibrate --recipe`);
    expect(lacking).toContain(`--calib-table ${first} makes a table of the rest`);
    const second = await sharded(MAMBA2, "--recipe", recipe, "--calib-table", first);
    const result = await compiled(MAMBA2, recipe, "--calib-table", first, second);
    expect(result.equals(await fromData(MAMBA2, recipe))).toBe(true);
    // One shard stops where the model of the next pass would depend on the other.
    const kinds = (path: string): Set<string> =>
      new Set(readCalibration(path).requests.map(({ kind, perChannel }) => `${kind} ${perChannel}`));
    expect([kinds(first), kinds(second)]).toEqual([new Set(["absmax true"]), new Set(["absmax false"])]);
    const whole = await calibrated(MAMBA2, "--recipe", recipe);
    expect(readCalibration(whole).requests).toHaveLength(
      readCalibration(first).requests.length + readCalibration(second).requests.length,
    );
  });

  test("the usual statistics serve recipes that ask of the float model alone", async () => {
    const table = await calibrated(MAMBA2, "--second-moments");
    const gptq = await compiled(MAMBA2, "gptq-w4a16", "--calib-table", table);
    expect(gptq.equals(await fromData(MAMBA2, "gptq-w4a16"))).toBe(true);
    // AWQ rounds what it has scaled: the second moments of that are others.
    expect(await refused(MAMBA2, "awq-w4a16", "--calib-table", table)).toContain("pass round-clipped needs");
    const bare = await calibrated(MAMBA2);
    expect(await refused(MAMBA2, "gptq-w4a16", "--calib-table", bare)).toMatch(
      /pass round-gptq needs second-moment by channel of .*; \S+ lacks these\./,
    );
    expect(await refused(MAMBA2, "quamba2-w4a16", "--calib-table", table)).toContain("round-gptq");
  });

  test("tables of another model, other data, another recipe, or of one shard are refused with what to do", async () => {
    const table = await calibrated(MAMBA2, "--recipe", "w8a8h8");
    expect(await refused(MAMBA1, "w8a8h8", "--calib-table", table)).toMatch(
      /was made for another model.*calibrate again/,
    );
    const other = dataFile(2);
    expect(await refused(MAMBA2, "w8a8h8", "--calib-table", table, "--calib", other, ...FEW)).toMatch(
      /made from other data/,
    );
    expect(await refused(MAMBA2, "quamba-w8a8", "--calib-table", table)).toMatch(
      /pass insert-qdq needs .*knows nothing/,
    );
    const shard = await calibrated(MAMBA2, "--recipe", "gptq-w4a16", "--shard", "2/2");
    expect(await refused(MAMBA2, "gptq-w4a16", "--calib-table", shard)).toContain("lacks shard 1 of 2");
    writeFileSync(`${table}.bin`, "");
    expect(await refused(MAMBA2, "w8a8h8", "--calib-table", table)).toContain("keep the two files together");
    expect(await refused(MAMBA2, "w8a8h8", "--calib-table", join(root, "absent.json"))).toContain("no such file");
  });

  test("what measures needs data; auto takes none", async () => {
    const table = await calibrated(MAMBA2, "--recipe", "quamba2-w4a8");
    expect(await refused(MAMBA2, "quamba2-w4ax", "--calib-table", table)).toMatch(/--calib/);
    const auto = await mambac("compile", MAMBA2, "--recipe", "auto", "--calib-table", table, "--calib", DATA);
    expect(auto).toMatchObject({ code: 2, out: "" });
  });
});

describe("calibrate --recipe", () => {
  test("tells what it calibrated", async () => {
    const out = `${fresh()}.json`;
    const result = await mambac("calibrate", MAMBA2, "--data", DATA, ...FEW, "-o", out, "--recipe", "w8a8h8");
    expect(result.code, result.err).toBe(0);
    expect(result.err).toContain("calibrated smooth-quant, insert-qdq of the recipe w8a8h8\n");
    expect(result.out).toMatch(/statistics +\d+ of \d+ values/);
    const again = await mambac(
      "calibrate",
      MAMBA2,
      "--data",
      DATA,
      ...FEW,
      "-o",
      `${fresh()}.json`,
      "--recipe",
      "w8a8h8",
      "--json",
    );
    expect(documentIn(again)["requestsSha256"]).toBe(readCalibration(out).header.requestsSha256);
  });

  test("refuses recipes without calibration, with a search, and tables where no recipe is", async () => {
    const run = async (...flags: string[]): Promise<string> => {
      const out = `${fresh()}.json`;
      const result = await mambac("calibrate", MAMBA2, "--data", DATA, ...FEW, "-o", out, ...flags);
      expect(result, result.err).toMatchObject({ code: 2, out: "" });
      expect(readdirSync(join(out, ".."))).toEqual([]);
      return result.err;
    };
    expect(await run("--recipe", "ptqssm-w8-inout")).toContain("needs no calibration");
    const table = await calibrated(MAMBA2, "--recipe", "gptq-w4a16");
    expect(await run("--recipe", "gptq-w4a16", "--calib-table", table)).toContain(`needs nothing beyond ${table}`);
    expect(await run("--recipe", "quamba2-w4ax")).toContain("searches on data");
    expect(await run("--calib-table", table)).toContain("--calib-table goes with --recipe");
  });
});
