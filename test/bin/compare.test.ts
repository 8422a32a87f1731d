import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { readRecipe } from "../../passes/index.js";
import { readModel } from "../../src/onnx/read.js";
import { documentIn, mambac } from "../support/command.js";
import { DEMO } from "../support/state-quality.js";

const root = mkdtempSync(join(tmpdir(), "mambac-compare-test-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const SOURCE = join(DEMO, "prefill.onnx");
const CALIB = ["--calib", join(DEMO, "wordnet.txt"), "--num-samples", "8", "--seq-len", "128"];
const TEXT = ["--text", join(DEMO, "kjv.txt"), "--windows", "4", "--window", "96"];

interface Row {
  readonly name: string;
  readonly change: number;
  readonly meanKlBits: number;
  readonly bytes: number;
  readonly stateBytes: number;
  readonly mode: string;
  readonly texts: readonly { readonly bitsPerByte: number }[];
  readonly kernels: { readonly quantized: number; readonly projections: number };
}

describe("compare", () => {
  test("measures a preset and a file against float, and agrees with compile and eval", async () => {
    const file = join(root, "coarse.yaml");
    writeFileSync(file, "name: coarse\nweights:\n  - {roles: [in_proj, out_proj], scheme: 'i3:tensor'}\n");
    const list = `w8a8h8,${file}`;
    const result = await mambac("compare", SOURCE, "--recipe", list, ...CALIB, ...TEXT, "--json", "-q");
    expect(result).toMatchObject({ code: 0, err: "" });
    const rows = documentIn(result)["rows"] as readonly Row[];
    expect(rows.map(({ name, mode }) => [name, mode])).toEqual([
      ["float", "call"],
      ["w8a8h8", "token"],
      ["coarse", "call"],
    ]);
    const [float, fine, coarse] = rows;
    expect(Math.abs(float?.change ?? 1)).toBeLessThan(1e-12);
    expect(float?.meanKlBits).toBe(0);
    expect(Math.abs(fine?.change ?? 1)).toBeLessThan(0.01);
    expect(fine?.kernels).toMatchObject({ quantized: 8, projections: 9 });
    expect(coarse?.change).toBeGreaterThan(0.1);
    expect(coarse?.meanKlBits).toBeGreaterThan(100 * (fine?.meanKlBits ?? 1));
    expect(fine?.bytes).toBeLessThan(0.5 * (float?.bytes ?? 0));
    expect(fine?.stateBytes).toBeLessThan(0.4 * (float?.stateBytes ?? 0));
    // The same by hand.
    const out = join(root, "w8a8h8.onnx");
    expect((await mambac("compile", SOURCE, "-o", out, "--recipe", "w8a8h8", ...CALIB, "-q")).code).toBe(0);
    const score = documentIn(await mambac("eval", out, ...TEXT, "--json", "-q"));
    expect(score["bitsPerByte"]).toBeCloseTo(fine?.texts[0]?.bitsPerByte ?? 0, 9);
    expect(readdirSync(root).sort()).toEqual(["coarse.yaml", "w8a8h8.onnx", "w8a8h8.onnx.recipe.yaml"]);
  });

  test("from a table of statistics as from the data it was made of", async () => {
    const table = join(root, "table.json");
    const data = ["--data", ...CALIB.slice(1)];
    expect((await mambac("calibrate", SOURCE, "--recipe", "w8a8h8", ...data, "-o", table, "-q")).code).toBe(0);
    const compared = async (...flags: string[]): Promise<unknown> =>
      documentIn(await mambac("compare", SOURCE, "--recipe", "w8a8h8", ...flags, ...TEXT, "--json", "-q"))["rows"];
    expect(await compared("--calib-table", table)).toEqual(await compared(...CALIB));
    const other = await mambac(
      "compare",
      SOURCE,
      "--recipe",
      "smoothquant-w8a8",
      "--calib-table",
      table,
      ...TEXT,
      "-q",
    );
    expect(other).toMatchObject({ code: 5, out: "" });
    rmSync(table);
    rmSync(`${table}.bin`);
  });

  test("as a table and as CSV", async () => {
    const argv = ["compare", SOURCE, "--recipe", "ptqssm-w8-inout-pc", ...TEXT, "-q"];
    const people = await mambac(...argv);
    expect(people.out).toMatch(/^recipe +kjv\.txt, bits per byte +perplexity +loss +KL, bits/);
    expect(people.out).toMatch(/\nptqssm-w8-inout-pc +\d\.\d{4} .* \d of 9\n$/);
    const csv = await mambac(...argv, "--csv");
    expect(csv.out.split("\n")[0]).toMatch(/^recipe,text,state,mode,bits_per_byte,/);
    expect(csv.out.trimEnd().split("\n")).toHaveLength(3);
    expect((await mambac(...argv, "--csv", "--json")).code).toBe(2);
  });

  test("refuses unknown recipes, missing texts and missing data", async () => {
    const unknown = await mambac("compare", SOURCE, "--recipe", "w8a8h8,w8a8h9", ...CALIB, ...TEXT);
    expect(unknown).toMatchObject({ code: 2, out: "" });
    expect(unknown.err).toContain("did you mean w8a8h8?");
    const absent = await mambac("compare", SOURCE, "--recipe", "float", "--text", join(root, "absent.txt"));
    expect(absent).toMatchObject({ code: 2, out: "" });
    expect(absent.err).toContain("absent.txt");
    const bare = await mambac("compare", SOURCE, "--recipe", "w8a8h8", ...TEXT);
    expect(bare).toMatchObject({ code: 5, out: "" });
    expect(bare.err).toContain("--calib");
  });
});

describe("compile --recipe auto", () => {
  const auto = (out: string, ...flags: string[]): Promise<Awaited<ReturnType<typeof mambac>>> => {
    const candidates = ["--recipe", "auto", "--candidates", "w8a8h8,qmamba-w8a8h4"];
    return mambac("compile", SOURCE, "-o", join(root, out), ...candidates, ...CALIB, ...flags);
  };

  test("takes the smallest that keeps the loss, says why, and gives the same bytes again", async () => {
    const first = await auto("one.onnx", "--max-loss", "50");
    expect(first.code).toBe(0);
    expect(first.out).toMatch(
      /^auto took qmamba-w8a8h4: the smallest whose loss is small enough \(3 of 3 keep the budget\)/,
    );
    expect(first.out).toMatch(
      /measured on 2 passages of 127 tokens held out of the calibration data\nrecipe +held out, bits per token/,
    );
    const recipe = readRecipe(readFileSync(join(root, "one.onnx.recipe.yaml"), "utf8"), "one");
    expect(recipe.name).toBe("qmamba-w8a8h4");
    const { metadata } = readModel(join(root, "one.onnx")).model;
    expect(JSON.parse(metadata.get("mambac.recipe") ?? "")).toEqual(recipe);
    expect((await auto("two.onnx", "--max-loss", "50", "-q")).code).toBe(0);
    for (const end of ["", ".recipe.yaml"]) {
      const [one, two] = ["one", "two"].map((name) => readFileSync(join(root, `${name}.onnx${end}`)));
      expect(one?.equals(two ?? Buffer.alloc(0)), end).toBe(true);
    }
  });

  test("a size instead of a loss takes the best that is small enough", async () => {
    const result = await auto("small.onnx", "--max-size", "1.2MB", "--json");
    expect(result.code).toBe(0);
    const document = documentIn(result);
    const { chosen, rows } = document["auto"] as { chosen: string; rows: readonly Row[] };
    const small = rows.filter(({ bytes, stateBytes }) => bytes + stateBytes <= 1.2e6);
    expect(small.length).toBe(2);
    expect(chosen).toBe(small.toSorted((a, b) => a.change - b.change)[0]?.name);
    expect(document).toMatchObject({ recipe: { name: chosen } });
  });

  test("what other flags change is measured as it will be written", async () => {
    const flags = ["--state", "h4", "--max-loss", "50", "--candidates", "rtn-w4a16", "--json"];
    const result = await auto("state.onnx", ...flags);
    expect(result.code, result.err).toBe(0);
    const document = documentIn(result);
    const { rows } = document["auto"] as { rows: readonly (Row & { readonly state: { readonly format: string } })[] };
    expect(rows.map(({ name, state }) => [name, state.format])).toEqual([
      ["reference", "f32"],
      ["float", "h4"],
      ["rtn-w4a16", "h4"],
    ]);
    expect(document).toMatchObject({ state: { format: "h4" }, recipe: { name: "rtn-w4a16" } });
  });

  test("a budget none keeps ends with exit code 3 and the table; nothing is written", async () => {
    const result = await auto("none.onnx", "--max-size", "10kB");
    expect(result).toMatchObject({ code: 3, out: "" });
    expect(result.err).toMatch(
      /no recipe keeps the budget \(at most 10\.0 kB for file and state\)\. The least loss is/,
    );
    expect(result.err).toMatch(/\nqmamba-w8a8h4 /);
    expect(readdirSync(root)).not.toContain("none.onnx");
  });

  test("needs data, and enough of them; its flags need it", async () => {
    const bare = await mambac("compile", SOURCE, "--recipe", "auto");
    expect(bare).toMatchObject({ code: 5, out: "" });
    const calib = ["--calib", join(DEMO, "wordnet.txt"), "--num-samples", "3"];
    const few = await mambac("compile", SOURCE, "--recipe", "auto", ...calib);
    expect(few).toMatchObject({ code: 5, out: "" });
    expect(few.err).toContain("there are 3 sequences, too few to hold some out");
    const alone = await mambac("compile", SOURCE, "--max-loss", "1");
    expect(alone).toMatchObject({ code: 2, out: "" });
    expect(alone.err).toContain("go with --recipe auto");
    expect((await mambac("compile", SOURCE, "--recipe", "auto", "--max-size", "big")).code).toBe(2);
  });
});
