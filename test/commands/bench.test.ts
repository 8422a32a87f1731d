import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { buildOps } from "../../scripts/build-ops.js";
import { type BenchRow, benchRows } from "../../src/commands/bench.js";
import type { SubjectResult } from "../../src/run/bench.js";
import type { BenchSettings, SubjectFacts } from "../../src/run/bench-plan.js";
import { documentIn, mambac } from "../support/command.js";
import { scratchFolder } from "../support/count-model.js";
import { fixture } from "../support/fixture-models.js";
import { compileWith } from "../support/fixture-row.js";

const built = await buildOps();
if (built.kind === "unavailable") process.stderr.write(`bench is not tested with the op library: ${built.reason}\n`);

const folder = scratchFolder();
const QUICK = ["--threads", "1", "--prefill", "6", "--steps", "3", "--rounds", "2", "--json"];

async function rowsOf(
  batch: number,
  ...argv: string[]
): Promise<{ rows: BenchRow[]; left: { name: string; reason: string }[] }> {
  const result = await mambac("bench", ...argv, ...QUICK, "--batch", String(batch));
  expect(result).toMatchObject({ code: 0 });
  return documentIn(result) as unknown as { rows: BenchRow[]; left: { name: string; reason: string }[] };
}

describe("a file compiled from a pair", () => {
  const model = join(folder, "pair.onnx");
  const pair = ["prefill", "decode"].map((role) => fixture(`hf/mamba2/${role}.onnx`));
  beforeAll(async () => {
    await compileWith(pair, model, { format: "h4", scale: "dsq-max", requantize: "call" });
  });

  test.skipIf(built.kind !== "built")("is measured four ways, each saying what really ran", async () => {
    const library = built.kind === "built" ? built.library : "";
    const { rows, left } = await rowsOf(1, model, "--against", ...pair, "--library", library);
    expect(left).toEqual([]);
    expect(rows.map((row) => row.name)).toEqual(["op library", "functions", "source", "LinearAttention"]);
    const [kernels, functions, source, attention] = rows;
    expect(kernels?.ran).toBe(
      "kernels CausalConvSiluSplit, GatedRMSNorm, Mamba2ScanH4Max (C API, 4 of 4 states in place)",
    );
    expect(functions?.ran).toBe("functions CausalConvSiluSplit, GatedRMSNorm, Mamba2ScanH4Max (C API)");
    expect(source?.ran).toBe("onnxruntime-node");
    expect(attention?.ran).toBe("C API");
    for (const { prefill, decode } of rows) {
      expect(prefill?.median).toBeGreaterThan(0);
      expect(decode?.min).toBeGreaterThan(0);
      expect(decode?.max).toBeGreaterThanOrEqual(decode?.median ?? Number.POSITIVE_INFINITY);
    }
    expect(kernels?.decodeRatio).toBeNull();
    expect(functions?.decodeRatio?.median).toBeGreaterThan(0);
    // Float states of the source are larger than packed ones, and both hold the convolution's window too.
    expect(source?.stateBytes).toBeGreaterThan(kernels?.stateBytes ?? Number.POSITIVE_INFINITY);
    expect(attention?.stateBytes).toBe(source?.stateBytes);
  });

  test("says why the library is left out", async () => {
    const { rows, left } = await rowsOf(1, model, "--library", "none");
    expect(rows.map((row) => row.name)).toEqual(["functions"]);
    expect(left).toEqual([{ name: "op library", reason: "switched off" }]);
  });
});

describe("a plain forward graph", () => {
  test("is run again for every token, at the one length it takes, and that is said", async () => {
    // Frozen at batch 2 and one length.
    const source = fixture("forms/mamba_dynamo_static.onnx");
    const model = join(folder, "forward.onnx");
    await compileWith([source], model, { format: "h8", scale: "dsq-max", requantize: "call" });
    const { rows, left } = await rowsOf(2, model, "--against", source, "--library", "none");
    const found = rows.find((row) => row.name === "source");
    expect(found?.notes).toContain("it has no state: every token runs its whole prefix again");
    expect(found?.notes.join()).toMatch(/takes \d+ tokens a call and nothing else/);
    expect(found?.stateBytes).toBe(0);
    expect(left.find(({ name }) => name === "LinearAttention")?.reason).toMatch(/Mamba-1/);
  });

  test("without state is refused as the file to measure", async () => {
    const source = fixture("forms/mamba_dynamo_static.onnx");
    const result = await mambac("bench", source, ...QUICK, "--batch", "2", "--library", "none");
    expect(result.code).toBe(4);
    expect(documentIn(result)["rows"]).toMatchObject([
      { notes: [expect.stringMatching(/has no state: compile it first/)] },
    ]);
  });
});

describe("figures", () => {
  const settings: BenchSettings = { batch: 2, threads: 1, prefill: 4, steps: 4, rounds: 3 };
  const facts: SubjectFacts = {
    stateBytes: 8,
    backend: "c-api",
    kernels: [],
    functions: [],
    inPlace: 0,
    states: 1,
    notes: [],
  };
  const measured = (name: string, ...milliseconds: readonly number[]): SubjectResult => ({
    kind: "measured",
    subject: { kind: "package", name, path: "", library: null },
    facts,
    rounds: milliseconds.map((ms) => ({ prefill: null, decode: { tokens: 10, milliseconds: ms } })),
  });

  test("are medians with their range, and ratios are taken round by round", () => {
    const [first, second] = benchRows(settings, [measured("a", 1, 2, 10), measured("b", 3, 4, 50)]);
    expect(first?.decode).toEqual({ median: 5000, min: 1000, max: 10_000 });
    expect(first?.prefill).toBeNull();
    expect(first?.decodeRatio).toBeNull();
    // The rounds' own quotients are 3, 2 and 5; the quotient of the medians would be 2.
    expect(second?.decodeRatio).toEqual({ median: 3, min: 2, max: 5 });
    expect(second?.notes).toEqual(["the machine was busy: rounds differ by more than 25 %"]);
  });

  test("of an even number of rounds are the middle of the two", () => {
    const [row] = benchRows(settings, [measured("a", 10, 8, 10, 8)]);
    expect(row?.decode).toEqual({ median: 1125, min: 1000, max: 1250 });
    expect(row?.notes).toEqual([]);
  });

  test("of a subject that cannot run are its reason", () => {
    const refused: SubjectResult = {
      kind: "refused",
      subject: { kind: "forward", name: "source", path: "" },
      code: "run/batch",
      reason: "the graph is fixed to batch 1, not 2",
    };
    const [row, other] = benchRows(settings, [refused, measured("b", 1)]);
    expect(row).toMatchObject({ decode: null, ran: "not measured", notes: ["the graph is fixed to batch 1, not 2"] });
    // The first that could be measured is what others are compared with.
    expect(other?.decodeRatio).toBeNull();
  });
});
