/**
 * Every kernel on every instruction set of this machine: against the float64 reference, against the function of the same
 * name, with past and present in one buffer, and over 2000 tokens.
 */

import { execFile, execFileSync } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { beforeAll, describe, expect, test } from "vitest";
import { buildOps } from "../../scripts/build-ops.js";
import { isPacked, opNames, parseOpName } from "../../src/ops/names.js";
import type { ReplayReport } from "./parity-replay.js";
import type { LongReport, OpReport } from "./parity-worker.js";

const built = await buildOps({ tests: true });
if (built.kind === "unavailable")
  process.stderr.write(`kernels are not compared with the reference: ${built.reason}\n`);

/** Those this machine has: asked for another, a process takes the best it can. */
const SETS: readonly string[] =
  built.kind === "built"
    ? ["avx512", "avx2", "portable"].filter((isa) => {
        const env = { ...process.env, MAMBAC_ISA: isa };
        return execFileSync(built.tests, ["isa"], { encoding: "utf8", env }).trim() === isa;
      })
    : [];
/** Replay states, and operators without a state, are compared otherwise. */
const OPS = opNames().filter((op) => /^Mamba.*(?<!Replay)$|^Causal/.test(op));
const REPLAYS = opNames().filter((op) => op.endsWith("Replay"));
const LONG = OPS.filter((op) => {
  const spec = parseOpName(op);
  return spec?.kind === "scan" && spec.requantize === "call";
});

/** Codes may differ near a tie, in at most one place of a thousand. */
const CODE_FRACTION = 1e-3;
const Y_ERROR = 1e-5;
/** One unit of the largest half. */
const HALF_ERROR = 2 ** -10;

async function work(isa: string, job: "calls" | "long" | "replay"): Promise<unknown[]> {
  const worker = join(import.meta.dirname, "parity-worker.ts");
  const library = built.kind === "built" ? built.library : "";
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ["--import", import.meta.resolve("tsx"), worker, library, job],
    {
      env: { ...process.env, MAMBAC_ISA: isa },
      maxBuffer: 1 << 24,
    },
  );
  return JSON.parse(stdout) as unknown[];
}

test.skipIf(built.kind === "unavailable")("the portable kernels run everywhere", () => {
  expect(SETS).toContain("portable");
});

describe.each(SETS)("on %s", (isa) => {
  const calls = new Map<string, OpReport>();
  const long = new Map<string, LongReport>();
  const replays = new Map<string, ReplayReport>();
  beforeAll(async () => {
    const [reports, runs] = await Promise.all([work(isa, "calls"), work(isa, "long")]);
    for (const report of (await work(isa, "replay")) as ReplayReport[]) replays.set(report.op, report);
    for (const report of reports as OpReport[]) calls.set(report.op, report);
    for (const report of runs as LongReport[]) long.set(report.op, report);
  }, 240_000);

  test.each(OPS)("%s equals the reference and its function", (op) => {
    const report = calls.get(op);
    if (report === undefined) throw new Error(`the worker says nothing about ${op}`);
    expect(report.fault).toBeNull();
    expect(report.calls).toBeGreaterThanOrEqual(5);
    const spec = parseOpName(op);
    for (const worst of [report.reference, report.function]) {
      expect(worst.y).toBeLessThanOrEqual(Y_ERROR);
      expect(worst.state).toBeLessThanOrEqual(spec?.kind === "scan" && spec.format === "f16" ? HALF_ERROR : Y_ERROR);
      expect(worst.largest).toBeLessThanOrEqual(1);
      // Another rounding of a channel scale moves it by one place, and a state scale by two just above a power of two.
      expect(worst.scaleUlps).toBeLessThanOrEqual(2);
      expect(worst.different).toBeLessThanOrEqual(CODE_FRACTION * worst.codes);
    }
    if (spec?.kind === "scan" && isPacked(spec.format)) expect(report.reference.codes).toBeGreaterThan(50_000);
  });

  test.each(LONG)("%s stays with the reference over 2000 tokens", (op) => {
    const report = long.get(op);
    if (report === undefined) throw new Error(`the worker says nothing about ${op}`);
    const { each, tokens, drift, kernelCost, referenceCost } = report;
    expect(tokens).toBe(2000);
    expect(each.y).toBeLessThanOrEqual(Y_ERROR);
    expect(each.state).toBeLessThanOrEqual(op.includes("F16") ? HALF_ERROR : Y_ERROR);
    expect(each.largest).toBeLessThanOrEqual(1);
    expect(each.different).toBeLessThanOrEqual(CODE_FRACTION * each.codes);
    // Where states are rounded, two runs part for good at the first tie; what rounding costs must stay the same.
    if (op.endsWith("F32")) expect(drift).toBeLessThanOrEqual(Y_ERROR);
    else expect(Math.abs(kernelCost / referenceCost - 1)).toBeLessThan(0.25);
  });

  test.each(REPLAYS)("%s equals the reference and its function, in any call and token by token", (op) => {
    const report = replays.get(op);
    if (report === undefined) throw new Error(`the worker says nothing about ${op}`);
    expect(report.fault).toBeNull();
    expect(report.calls).toBeGreaterThanOrEqual(10);
    for (const worst of [report.reference, report.function, report.long]) {
      expect(worst.y).toBeLessThanOrEqual(Y_ERROR);
      expect(worst.codes).toBeGreaterThan(5000);
      expect(worst.slots).toBeGreaterThan(5000);
      expect(worst.largest).toBeLessThanOrEqual(1);
      expect(worst.scaleUlps).toBeLessThanOrEqual(2);
      expect(worst.different).toBeLessThanOrEqual(CODE_FRACTION * worst.codes);
      // Step sizes are exact here, and so is all that the rings store of them.
      expect(worst.differentSlots).toBe(0);
    }
    expect(report.roundings).toBe(Math.floor(report.tokens / 16));
  });
});
