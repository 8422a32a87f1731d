/** Compiles one fixture and measures it against its PyTorch outputs. */

import { join } from "node:path";
import { passesFor } from "../../passes/index.js";
import { type CompileReport, compile } from "../../src/compile.js";
import { toNumbers } from "../../src/ir/tensor.js";
import { FLOAT_STATE, type StateChoice } from "../../src/rewrite/semantic.js";
import { loadPackage } from "../../src/run/stateful.js";
import { MambacError } from "../../src/support/errors.js";
import { readNpz } from "./npz.js";

export interface FixtureRow {
  readonly name: string;
  readonly ok: boolean;
  readonly found: number;
  readonly expected: number;
  readonly form: string;
  readonly proof: number | null;
  readonly prefill: number | null;
  readonly split: number | null;
  readonly decode: number | null;
  readonly h8: string;
  readonly h4: string;
  readonly note: string;
}

/** Scans each fixture holds, as its model was configured. */
export const EXPECTED_SCANS: Readonly<Record<string, number>> = {
  bamba: 1,
  falcon_h1: 2,
  falcon_mamba: 2,
  granitemoehybrid: 1,
  jamba: 1,
  mamba: 2,
  mamba2: 2,
  mamba2_groups: 2,
  nemotron_h: 2,
  zamba2: 3,
  mamba_130m_1l: 1,
  mamba2_130m_1l: 1,
};

/** What a model gives for a prompt and for the tokens after it. */
export interface ExpectedLogits {
  readonly batch: number;
  readonly length: number;
  readonly tokens: readonly (readonly number[])[];
  /** Vocabulary. */
  readonly width: number;
  /** [batch, length, width]. */
  readonly logits: Float64Array;
  /** Ids [batch, steps] and logits [batch, steps, width]; null where the source goes no further. */
  readonly continued: { readonly steps: number; readonly ids: Float64Array; readonly logits: Float64Array } | null;
}

/** Reads the outputs PyTorch gave. */
export function readExpected(io: string): ExpectedLogits {
  const data = readNpz(io);
  const ids = data.get("input_ids");
  const logits = data.get("logits");
  if (ids === undefined || logits === undefined) throw new Error(`${io} lacks input_ids or logits`);
  const [batch = 1, length = 1] = ids.shape;
  const [next, continued] = [data.get("next_ids"), data.get("logits_continued")];
  return {
    batch,
    length,
    tokens: rowsOf(toNumbers(ids), batch, length),
    width: logits.shape[2] ?? 1,
    logits: toNumbers(logits),
    continued:
      next === undefined || continued === undefined
        ? null
        : { steps: next.shape[1] ?? 0, ids: toNumbers(next), logits: toNumbers(continued) },
  };
}

const TOLERANCE = 1e-4;

/** Compiles with the shipped recipes. */
export function compileWith(
  inputs: readonly string[],
  output: string | null,
  state: StateChoice,
  trust: "prefill" | "decode" | null = null,
): Promise<CompileReport> {
  return compile({ inputs, output, state }, passesFor({ state, trust }));
}

/** The rows of a fixture; a pair that disagrees gives one for the refusal and one with the prefill trusted. */
export async function fixtureRow(
  name: string,
  files: readonly string[],
  wanted: ExpectedLogits,
  folder: string,
): Promise<FixtureRow[]> {
  const stem = name.split("/").at(-1) ?? name;
  const expected = EXPECTED_SCANS[stem] ?? 2;
  const rows: FixtureRow[] = [];
  let trust: "prefill" | null = null;
  if (stem === "mamba2_groups" && files.length === 2) {
    const refusal = await refusalOf(files);
    rows.push({
      ...emptyRow(`${name} as a pair`, expected),
      ok: refusal !== null,
      note: refusal ?? "the pair was accepted although it disagrees",
    });
    trust = "prefill";
  }
  try {
    rows.push(
      await measuredRow(trust === null ? name : `${name} --trust prefill`, files, wanted, folder, expected, trust),
    );
  } catch (cause) {
    rows.push({
      ...emptyRow(name, expected),
      note: cause instanceof Error ? cause.message.slice(0, 300) : String(cause),
    });
  }
  return rows;
}

function emptyRow(name: string, expected: number): FixtureRow {
  return {
    name,
    ok: false,
    found: 0,
    expected,
    form: "",
    proof: null,
    prefill: null,
    split: null,
    decode: null,
    h8: "-",
    h4: "-",
    note: "",
  };
}

async function refusalOf(files: readonly string[]): Promise<string | null> {
  try {
    await compileWith(files, null, FLOAT_STATE);
    return null;
  } catch (cause) {
    return cause instanceof MambacError && cause.code === "merge-pair/disagree" && cause.exitCode === 4
      ? `refused: ${cause.message
          .split("\n")
          .slice(1, 4)
          .map((line) => line.trim())
          .join("; ")}`
      : null;
  }
}

async function measuredRow(
  name: string,
  files: readonly string[],
  wanted: ExpectedLogits,
  folder: string,
  expected: number,
  trust: "prefill" | null,
): Promise<FixtureRow> {
  const output = join(folder, "out.onnx");
  const report = await compileWith(files, output, FLOAT_STATE, trust);
  const scans = report.rows.filter((row) => row.kind === "scan");
  const { batch, length, tokens, width } = wanted;
  const expectedLogits = wanted.logits;
  await using model = await loadPackage(output, { batch, library: "none" });
  const prefill = relative((await model.prefill(tokens)).data, expectedLogits);
  const split = await splitError(model, tokens, expectedLogits, { batch, length, width });
  let decode: number | null = null;
  if (wanted.continued !== null) {
    const { steps, ids, logits } = wanted.continued;
    model.reset();
    await model.prefill(tokens);
    decode = 0;
    for (let t = 0; t < steps; t++) {
      const result = await model.step(Array.from({ length: batch }, (_, b) => ids[b * steps + t] ?? 0));
      const row = Array.from({ length: batch }, (_, b) =>
        logits.slice((b * steps + t) * width, (b * steps + t + 1) * width),
      ).flatMap((part) => [...part]);
      decode = Math.max(decode, relative(result.data, row));
    }
  }
  const formats = await Promise.all([
    runsPacked(files, folder, "h8", trust, tokens),
    runsPacked(files, folder, "h4", trust, tokens),
  ]);
  const [h8, h4] = formats;
  const errors = [prefill, split, ...(decode === null ? [] : [decode])];
  return {
    name,
    ok: scans.length === expected && errors.every((error) => error <= TOLERANCE) && h8 === "runs" && h4 === "runs",
    found: scans.length,
    expected,
    form: [...new Set(scans.map((row) => row.form))].join(","),
    proof: Math.max(...report.rows.map((row) => row.error)),
    prefill,
    split,
    decode,
    h8,
    h4,
    note: "",
  };
}

function rowsOf(ids: Float64Array, batch: number, length: number): number[][] {
  return Array.from({ length: batch }, (_, b) => Array.from(ids.slice(b * length, (b + 1) * length)));
}

type Loaded = Awaited<ReturnType<typeof loadPackage>>;

/** Largest error over prefills cut after 1, a third, and all but one of the tokens. */
async function splitError(
  model: Loaded,
  tokens: readonly (readonly number[])[],
  expected: Float64Array,
  dims: { readonly batch: number; readonly length: number; readonly width: number },
): Promise<number> {
  const { batch, length, width } = dims;
  let worst = 0;
  for (const cut of [1, Math.max(2, Math.floor(length / 3)), length - 1]) {
    model.reset();
    const parts = [tokens.map((row) => row.slice(0, cut)), tokens.map((row) => row.slice(cut))];
    let start = 0;
    for (const part of parts) {
      const result = await model.prefill(part);
      const steps = part[0]?.length ?? 0;
      const wanted: number[] = [];
      for (let b = 0; b < batch; b++)
        wanted.push(...expected.slice((b * length + start) * width, (b * length + start + steps) * width));
      worst = Math.max(worst, relative(result.data, wanted));
      start += steps;
    }
  }
  return worst;
}

async function runsPacked(
  files: readonly string[],
  folder: string,
  format: "h8" | "h4",
  trust: "prefill" | null,
  tokens: readonly (readonly number[])[],
): Promise<string> {
  const output = join(folder, `${format}.onnx`);
  await compileWith(files, output, { format, scale: "dsq", requantize: "call" }, trust);
  await using model = await loadPackage(output, { batch: tokens.length, library: "none" });
  const first = await model.prefill(tokens);
  const second = await model.step(tokens.map((row) => row[0] ?? 0));
  return [...first.data, ...second.data].every((value) => Number.isFinite(value)) ? "runs" : "not finite";
}

/** Largest difference over the largest expected value. */
export function relative(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  let difference = 0;
  let scale = 0;
  for (let i = 0; i < actual.length; i++) {
    const delta = Math.abs((actual[i] ?? Number.NaN) - (expected[i] ?? Number.NaN));
    if (Number.isNaN(delta)) return Number.POSITIVE_INFINITY;
    difference = Math.max(difference, delta);
    scale = Math.max(scale, Math.abs(expected[i] ?? 0));
  }
  return difference / scale;
}
