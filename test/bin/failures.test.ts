import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { PASSES } from "../../passes/index.js";
import { compileCommand, type PassLibrary, reportFailure } from "../../src/index.js";
import { readModel } from "../../src/onnx/read.js";
import { encodeModel } from "../../src/onnx/write.js";
import type { Step } from "../../src/rewrite/pipeline.js";
import { documentIn, mambac, spawnMambac } from "../support/command.js";
import { countModelFile } from "../support/count-model.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-fail-"));
afterAll(() => rmSync(root, { recursive: true }));

const PREFILL = fixture("hf/mamba2/prefill.onnx");

function emptyFolder(): string {
  return mkdtempSync(join(root, "case-"));
}

describe("exit code 2: usage", () => {
  test.each([
    [[]],
    [["compile"]],
    [["compile", PREFILL, "--state", "h2"]],
    [["compile", PREFILL, "--threads", "0"]],
    [["compile", PREFILL, "--no-such-flag"]],
    [["no-such-command"]],
    [["compile", join(root, "absent.onnx")]],
    [["compile", PREFILL, PREFILL, PREFILL]],
    [["verify", PREFILL]],
    [["verify", PREFILL, "--against", PREFILL, "--lengths", "1,x"]],
    [["generate", PREFILL]],
    [["eval", PREFILL, "--text", join(root, "absent.txt")]],
  ])("%j", async (argv) => {
    const result = await mambac(...argv);
    expect(result).toMatchObject({ code: 2, out: "" });
    expect(result.err).not.toBe("");
    expect(result.err).not.toMatch(/^ +at /m);
  });

  test("help and version are no failures", async () => {
    expect(await mambac("--version")).toEqual({ code: 0, out: "0.1.0\n", err: "" });
    const help = await mambac("compile", "--help");
    expect(help).toMatchObject({ code: 0, err: "" });
    expect(help.out).toContain("--state-scale <scale>");
  });

  test("a damaged file is named", async () => {
    const path = join(emptyFolder(), "broken.onnx");
    writeFileSync(path, readFileSync(PREFILL).subarray(0, 5000));
    const result = await mambac("compile", path);
    expect(result.code).toBe(2);
    expect(result.err).toMatch(/^mambac: .*broken\.onnx: [^\n]*\n$/);
  });

  test("a folder without graphs, or with too many", async () => {
    const folder = emptyFolder();
    expect((await mambac("compile", folder)).err).toContain("holds no .onnx file");
    for (const name of ["a.onnx", "b.onnx"]) writeFileSync(join(folder, name), "");
    expect((await mambac("compile", folder)).err).toContain("holds 2 graphs");
  });
});

describe("exit code 4: not supported", () => {
  test("a graph without a scan", async () => {
    const path = countModelFile();
    const out = join(emptyFolder(), "out.onnx");
    const result = await mambac("compile", path, "-o", out);
    expect(result).toMatchObject({ code: 4, out: "" });
    expect(result.err).toContain("no selective scan was found");
    expect((await mambac("inspect", path)).code).toBe(4);
  });

  test("a scan with a changed step in it is not one", async () => {
    const { model } = readModel(PREFILL);
    const folder = emptyFolder();
    const path = join(folder, "changed.onnx");
    // exp becomes cosine: a recurrence of the same shape that no scan computes.
    const nodes = model.graph.nodes.map((node) => (node.op === "Exp" ? { ...node, op: "Cos" } : node));
    writeFileSync(path, encodeModel({ ...model, graph: { ...model.graph, nodes } }));
    const result = await mambac("compile", path, "-o", join(folder, "out.onnx"));
    expect(result.code).toBe(4);
    expect(readdirSync(folder)).toEqual(["changed.onnx"]);
  });

  test("a pair of two different models", async () => {
    const folder = emptyFolder();
    const out = join(folder, "out.onnx");
    const result = await mambac("compile", PREFILL, fixture("hf/bamba/decode.onnx"), "-o", out);
    expect(result).toMatchObject({ code: 4, out: "" });
    expect(result.err).toContain("not the prefill and the decode graph of one model");
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe("failures with --json", () => {
  test("are one document too", async () => {
    const missing = await mambac("compile", join(root, "absent.onnx"), "--json");
    expect(documentIn(missing)).toMatchObject({ error: { code: "compile/input", exitCode: 2 } });
    const usage = await mambac("compile", "--json");
    expect(documentIn(usage)).toMatchObject({ error: { exitCode: 2 } });
    expect([missing.code, usage.code]).toEqual([2, 2]);
  });
});

/** The shipped passes' names with a recipe whose only step fails as `cause` says. */
function failingLibrary(cause: Error): PassLibrary {
  const failing: Step = {
    name: "raise-scan",
    requires: [],
    establishes: [],
    invalidates: [],
    run: () => Promise.reject(cause),
  };
  return { names: Object.keys(PASSES), raise: () => [failing], finish: () => [], executable: () => [] };
}

describe("exit code 1: bugs", () => {
  test("are told with a trace and a request, and --repro collects what a report needs", async () => {
    const folder = emptyFolder();
    const repro = join(folder, "re", "pro");
    let err = "";
    const terminal = { out: () => undefined, err: (text: string) => void (err += text) };
    const argv = ["compile", PREFILL, "--state", "h4", "--repro", repro, "--output", "it's.onnx"];
    const failure = await compileCommand(
      {
        inputs: [PREFILL],
        output: join(folder, "out.onnx"),
        state: { format: "h4", scale: "dsq", requantize: "call" },
        float: "f32",
        externalData: "auto",
        threads: 1,
        dryRun: false,
        json: false,
        quiet: false,
        printIr: null,
        stopAfter: null,
        timing: false,
        repro,
        commandLine: argv,
      },
      failingLibrary(new TypeError("a planted bug")),
      terminal,
    ).catch((cause: unknown) => cause);
    expect(reportFailure(failure, terminal, { json: false })).toBe(1);
    expect(err).toContain("mambac: internal error: pass raise-scan failed: a planted bug");
    expect(err).toContain("Please report it");
    expect(err).toMatch(/^ +at /m);
    expect(readdirSync(repro).sort()).toEqual(["before-raise-scan.irtxt", "command.txt", "options.json", "trace.txt"]);
    expect(readFileSync(join(repro, "command.txt"), "utf8")).toBe(
      `mambac compile ${PREFILL} --state h4 --repro ${repro} --output 'it'\\''s.onnx'\n`,
    );
    expect(readFileSync(join(repro, "before-raise-scan.irtxt"), "utf8")).toMatch(/^model ir 10 /);
    expect(readFileSync(join(repro, "trace.txt"), "utf8")).toContain("a planted bug");
    expect(JSON.parse(readFileSync(join(repro, "options.json"), "utf8"))).toMatchObject({ state: { format: "h4" } });
    expect(readdirSync(folder)).toEqual(["re"]);
  });
});

describe("a process of its own", () => {
  test("ends with 130 when interrupted, at any moment, and leaves no file", async () => {
    for (const moment of ["; after normalise", "; after raise-conv", "; after raise-scan", "; after tidy"]) {
      const folder = emptyFolder();
      const argv = ["compile", fixture("hf/mamba2"), "-o", join(folder, "out.onnx"), "--print-ir", "all"];
      const result = await spawnMambac(argv, { interruptAfter: moment });
      const left = readdirSync(folder);
      // The last signal may come when the file is whole and the process is leaving.
      if (moment === "; after tidy" && left.length > 0) {
        expect(left).toEqual(["out.onnx"]);
        continue;
      }
      expect(result.code, `${moment}: ${result.err.slice(-300)}`).toBe(130);
      expect(left).toEqual([]);
    }
  });

  test("tells of a disk that takes no more, and leaves no file", async () => {
    const folder = emptyFolder();
    const argv = ["compile", PREFILL, "-o", join(folder, "out.onnx")];
    const result = await spawnMambac(argv, { fileLimit: 2 ** 16 });
    expect(result).toMatchObject({ code: 2, out: "" });
    expect(result.err).toMatch(/mambac: cannot write .*out\.onnx/);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("compiles, with the table on stdout", async () => {
    const folder = emptyFolder();
    const result = await spawnMambac(["compile", PREFILL, "-o", "out.onnx"], { cwd: folder });
    expect(result).toMatchObject({ code: 0 });
    expect(result.out).toContain("written  out.onnx (");
    expect(readdirSync(folder)).toEqual(["out.onnx"]);
  });
});
