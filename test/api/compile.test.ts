import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { applyPasses, compile, insertStep, MambacError, type Remark, readModel } from "../../api/index.js";
import { definePass, normalise, PASSES, passesFor, raiseScan, step, tidy } from "../../passes/index.js";
import { mambac } from "../support/command.js";
import { fixture } from "../support/fixture-models.js";

const root = mkdtempSync(join(tmpdir(), "mambac-api-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const PREFILL = fixture("hf/mamba2/prefill.onnx");

describe("compile", () => {
  test.each([
    [[], {}],
    [
      ["--state", "h4", "--requantize", "replay", "--replay-length", "4"],
      { state: { format: "h4", requantize: "replay", replayLength: 4 } },
    ],
    [
      ["--recipe", "rtn-w4a16", "--state", "h8", "--state-names", "genai"],
      { recipe: "rtn-w4a16", state: "h8", stateNames: "genai" },
    ],
    [["--state", "f32", "--scan", "linear-attention"], { state: "f32", scan: "linear-attention" }],
  ] as const)("gives the bytes of the command line: %j", async (flags, options) => {
    const [own, other] = [join(root, "api.onnx"), join(root, "cli.onnx")];
    const report = await compile({ inputs: PREFILL, output: own, externalData: "never", ...options });
    expect((await mambac("compile", PREFILL, "-o", other, "-q", "--external-data", "never", ...flags)).code).toBe(0);
    expect(readFileSync(own).equals(readFileSync(other))).toBe(true);
    expect(report.written?.model.path).toBe(own);
    if (flags[0] === "--recipe") {
      expect(readFileSync(`${own}.recipe.yaml`, "utf8")).toBe(readFileSync(`${other}.recipe.yaml`, "utf8"));
    }
  });

  test("writes nothing without an output, and tells what it found", async () => {
    const remarks: Remark[] = [];
    const report = await compile({ inputs: [PREFILL], onRemark: (remark) => remarks.push(remark) });
    expect(report.written).toBeNull();
    expect(report.rows.map(({ kind }) => kind)).toEqual(["conv", "scan", "conv", "scan"]);
    expect(report.remarks).toEqual(remarks);
    expect(report.model.metadata.get("mambac.state")).toBe("h8 dsq-max requantize=call");
  });

  test("refuses an order of passes before any runs", async () => {
    let ran = 0;
    const reversed = compile({
      inputs: PREFILL,
      passes: (usual) => usual.toReversed(),
      afterPass: (name) => {
        if (name === "tidy" || name === "lower") ran += 1;
      },
    });
    await expect(reversed).rejects.toMatchObject({ code: "pipeline/order", exitCode: 2 });
    expect(ran).toBe(0);
  });

  test("fails as the command line does, with codes and exit codes", async () => {
    const output = join(root, "absent", "out.onnx");
    for (const [options, code, exitCode] of [
      [{ output }, "onnx/write", 2],
      [{ recipe: "w8a8" }, "recipe/unknown", 2],
      [{ recipe: "w8a8h8" }, "pipeline/no-data", 5],
      [{ qdqProfile: "qnn" }, "usage/qdq-profile", 2],
      [{ state: "h8", scan: "linear-attention" }, "lower/linear-attention", 4],
    ] as const) {
      const failure: unknown = await Promise.resolve()
        .then(() => compile({ inputs: PREFILL, ...options }))
        .catch((cause: unknown) => cause);
      expect(failure).toBeInstanceOf(MambacError);
      expect(failure).toMatchObject({ code, exitCode });
    }
    expect(existsSync(output)).toBe(false);
  });
});

describe("single passes", () => {
  const source = readModel(PREFILL).model;
  const raise = passesFor({ state: { format: "f32", scale: "dsq-max", requantize: "call" } }).raise();

  test("run on a model, with remarks and counts", async () => {
    const { model, remarks, changed } = await applyPasses(source, raise);
    expect(changed.map(({ pass }) => pass)).toEqual(["widen-halves", "normalise", "raise-conv", "raise-scan"]);
    expect(changed.find(({ pass }) => pass === "raise-scan")?.sites).toBe(2);
    expect(remarks.every(({ pass }) => pass in PASSES)).toBe(true);
    expect(source.graph.nodes.length).toBeGreaterThan(model.graph.nodes.length);
  });

  test("need what they require, unless it is known to hold", async () => {
    await expect(applyPasses(source, [step(raiseScan, {})])).rejects.toMatchObject({ code: "pipeline/order" });
    const { model } = await applyPasses(source, [step(normalise, {})]);
    const { changed } = await applyPasses(model, [step(raiseScan, {})], { facts: ["normalised", "conv-raised"] });
    expect(changed).toHaveLength(1);
  });

  test("that break a model are told by name", async () => {
    const breaking = definePass<Record<string, never>>({
      name: "breaking",
      summary: "takes all nodes away",
      exactness: "lossy",
      requires: [],
      establishes: [],
      invalidates: [],
      run: (model) => Promise.resolve({ model: { ...model, graph: { ...model.graph, nodes: [] } }, changed: 1 }),
    });
    await expect(applyPasses(source, [step(breaking, {})])).rejects.toThrow(/pass breaking broke the model/);
  });

  test("have places in a list", () => {
    const names = (steps: readonly { readonly name: string }[]): string[] => steps.map(({ name }) => name);
    const cleaning = step(tidy, {});
    expect(names(insertStep(raise, { before: "raise-conv" }, cleaning)).slice(1, 4)).toEqual([
      "normalise",
      "tidy",
      "raise-conv",
    ]);
    expect(names(insertStep(raise, { after: "raise-scan" }, cleaning)).at(-1)).toBe("tidy");
    expect(() => insertStep(raise, { after: "raise" }, cleaning)).toThrow(/there is no pass raise here; passes: widen/);
  });
});
