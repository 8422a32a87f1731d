/** What people do wrong on their first day, and what they are told. */

import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { readModel } from "../../src/onnx/read.js";
import { writeModel } from "../../src/onnx/write.js";
import { documentIn, mambac, spawnMambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";
import { DEMO } from "../support/state-quality.js";

const root = mkdtempSync(join(tmpdir(), "mambac-mistakes-"));
afterAll(() => rmSync(root, { recursive: true }));

const PREFILL = fixture("hf/mamba2/prefill.onnx");

describe("compile", () => {
  test("a compiled file is no source, and its source is named by its hash", async () => {
    const out = join(root, "out.onnx");
    expect((await mambac("compile", PREFILL, "-o", out, "-q")).code).toBe(0);
    for (const argv of [
      ["compile", out, "-o", join(root, "again.onnx")],
      ["calibrate", out, "--data", "random", "-o", join(root, "table.json")],
    ]) {
      const { code, err } = await mambac(...argv);
      expect(code).toBe(2);
      expect(err).toMatch(
        /out\.onnx was compiled by mambac [\d.]+ already: give the source .*\(sha256 [0-9a-f]{12}\)\n$/,
      );
    }
  });

  test("one file twice is no pair", async () => {
    const { code, err } = await mambac("compile", PREFILL, PREFILL, "-o", join(root, "twice.onnx"));
    expect(code).toBe(2);
    expect(err).toContain("was given twice");
  });

  test("a folder with two prefill graphs leaves open which is meant", async () => {
    const folder = mkdtempSync(join(root, "folder-"));
    for (const name of ["a_prefill.onnx", "b_prefill.onnx", "a_decode.onnx"]) writeFileSync(join(folder, name), "");
    const { code, err } = await mambac("compile", folder);
    expect(code).toBe(2);
    expect(err).toContain("holds a_prefill.onnx and b_prefill.onnx");
  });

  test.each([
    ["no/such/folder/out.onnx", /there is no folder .*folder; create it first/],
    ["", /the name of the output file is empty/],
  ])("an output %j that cannot be written is told before any work is done", async (name, message) => {
    const output = name === "" ? "" : join(root, name);
    const { code, err, out } = await mambac("compile", PREFILL, "-o", output, "--timing");
    expect({ code, out }).toEqual({ code: 2, out: "" });
    expect(err).toMatch(message);
    const auto = ["--recipe", "auto", "--max-loss", "1%", "--calib", "random"];
    expect((await mambac("compile", PREFILL, "-o", output, ...auto)).err).toMatch(message);
  });

  test("an output inside a file", async () => {
    const file = join(root, "file");
    writeFileSync(file, "");
    const { code, err } = await mambac("compile", PREFILL, "-o", join(file, "out.onnx"));
    expect(code).toBe(2);
    expect(err).toContain("is not a folder");
  });

  test.each([
    ["--stop-after", "lowr", "did you mean lower?"],
    ["--print-ir", "raise_scan", "did you mean raise-scan?"],
    ["--print-ir", "al", "did you mean all?"],
  ])("%s %s: %s", async (flag, name, hint) => {
    const { code, err } = await mambac("compile", PREFILL, "-o", join(root, "x.onnx"), flag, name);
    expect(code).toBe(2);
    expect(err).toContain(hint);
  });

  test("what belonged to a replaced model goes with it", async () => {
    const folder = mkdtempSync(join(root, "replaced-"));
    const out = join(folder, "out.onnx");
    const first = await mambac(
      "compile",
      PREFILL,
      "-o",
      out,
      "-q",
      "--recipe",
      "rtn-w4a16",
      "--external-data",
      "always",
    );
    expect(first.code).toBe(0);
    expect([`${out}.data`, `${out}.recipe.yaml`].map((path) => existsSync(path))).toEqual([true, true]);
    expect((await mambac("compile", PREFILL, "-o", out, "-q", "--external-data", "never")).code).toBe(0);
    expect([out, `${out}.data`, `${out}.recipe.yaml`].map((path) => existsSync(path))).toEqual([true, false, false]);
  });

  test("files beside an output that is new are nobody's business", async () => {
    const folder = mkdtempSync(join(root, "new-"));
    const out = join(folder, "out.onnx");
    writeFileSync(`${out}.data`, "of something else");
    expect((await mambac("compile", PREFILL, "-o", out, "-q", "--external-data", "never")).code).toBe(0);
    expect(existsSync(`${out}.data`)).toBe(true);
  });
});

test("a source's side file is never lost to an output of its name, or to the side file of one", async () => {
  const folder = mkdtempSync(join(root, "external-"));
  const { model } = readModel(PREFILL);
  await writeModel(model, join(folder, "out.onnx"), { externalData: "always" });
  const [source, weights] = [join(folder, "source.onnx"), join(folder, "out.onnx.data")];
  renameSync(join(folder, "out.onnx"), source);
  const before = readFileSync(weights);
  for (const output of [weights, join(folder, "out.onnx")]) {
    const { code, err } = await mambac("compile", source, "-o", output);
    expect(code).toBe(2);
    expect(err).toContain("out.onnx.data, which belongs to the source");
  }
  expect(readFileSync(weights)).toEqual(before);
  expect(readdirSync(folder).sort()).toEqual(["out.onnx.data", "source.onnx"]);
});

test("calibration data are reported, and so is that they are few or made up", async () => {
  const out = join(root, "calibrated.onnx");
  const recipe = ["compile", PREFILL, "-o", out, "--recipe", "w8a8h8", "--seq-len", "8"];
  const ids = join(root, "ids.jsonl");
  writeFileSync(ids, `${JSON.stringify({ input_ids: Array.from({ length: 40 }, (_, at) => (7 * at) % 96) })}\n`);
  const few = await mambac(...recipe, "--calib", ids, "--num-samples", "1000");
  expect(few.out).toMatch(
    /\ncalibration +\d+ sequences of 1000 asked for, \d+ tokens, seed 0: .*\.jsonl \(sha256 [0-9a-f]{12}\)\n/,
  );
  expect(few.out).toMatch(/warning \(calibration\) data: there are \d+ tokens only/);
  const random = documentIn(await mambac(...recipe, "--calib", "random", "--num-samples", "2", "--json"));
  expect(random["calibration"]).toMatchObject({ sequences: 2, tokens: 16, random: true });
  expect(random["remarks"]).toContainEqual(expect.objectContaining({ code: "calibration/random", kind: "warning" }));
});

describe("a process of its own", () => {
  test("tells ONNX Runtime to keep its telemetry to itself", async () => {
    const home = mkdtempSync(join(root, "home-"));
    // In what looks like continuous integration ONNX Runtime sends nothing anyway.
    const quiet = ["CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS"];
    const env = {
      ...Object.fromEntries(quiet.map((name) => [name, undefined])),
      HOME: home,
      XDG_CACHE_HOME: undefined,
    };
    for (const argv of [
      ["compile", PREFILL, "-o", join(root, "telemetry.onnx"), "-q"],
      ["verify", join(root, "telemetry.onnx"), "--against", PREFILL, "-q", "--lengths", "3"],
    ]) {
      expect((await spawnMambac(argv, { env })).code).toBe(0);
    }
    expect(readdirSync(home, { recursive: true })).toEqual([]);
  });

  test.skipIf(!existsSync("/dev/full"))("tells that results cannot be written, without a trace", async () => {
    const result = await spawnMambac(["recipe", "list"], { stdout: "/dev/full" });
    expect(result).toEqual({
      code: 2,
      out: "",
      err: "mambac: cannot write to the standard output: the disk is full\n",
    });
  });

  test("leaves no folder behind when a comparison is interrupted", async () => {
    const folder = mkdtempSync(join(root, "tmp-"));
    const argv = ["compare", join(DEMO, "prefill.onnx"), "--recipe", "rtn-w4a16", "--text", join(DEMO, "kjv.txt")];
    // Which stages take long enough to be told differs from machine to machine: the first one told will do.
    const result = await spawnMambac(argv, { env: { TMPDIR: folder }, interruptAfter: "ing " });
    expect(result.code, result.err).toBe(130);
    expect(readdirSync(folder).filter((name) => name.startsWith("mambac-"))).toEqual([]);
  });
});

test("files that cannot be read are told without the system's words", async () => {
  const absent = join(root, "absent");
  mkdirSync(join(root, "folder.txt"));
  for (const [argv, message] of [
    [["compile", `${absent}.onnx`], "absent.onnx: it does not exist"],
    [["compile", PREFILL, "--recipe", `${absent}.yaml`], "absent.yaml: it does not exist"],
    [["compile", PREFILL, "--recipe", "w8a8h8", "--calib", `${absent}.txt`], "absent.txt: it does not exist"],
    [["compare", PREFILL, "--recipe", "float", "--text", join(root, "folder.txt")], "folder.txt: it is a folder"],
  ] as const) {
    const { code, err } = await mambac(...argv);
    expect(code).toBeGreaterThan(1);
    expect(err).toContain(message);
    expect(err).not.toContain("ENOENT");
  }
});

test("usage errors are documents of mambac's own with --json", async () => {
  const result = await mambac("compile", PREFILL, "--state", "h5", "--json");
  expect(documentIn(result)).toMatchObject({
    error: { code: "usage/invalid-argument", message: expect.stringMatching(/^option '--state/), exitCode: 2 },
  });
});
