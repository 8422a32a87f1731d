/**
 * `mambac bench`: tokens a second of a compiled file with the op library, with the functions in the file, of its source as
 * exported, and of the same source on ONNX Runtime's own `LinearAttention`.
 */

import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CompilerPasses, compile, VERSION } from "../compile.js";
import { readModel } from "../onnx/read.js";
import { TemporaryFiles } from "../onnx/temporary-files.js";
import { runBench, type SubjectResult } from "../run/bench.js";
import { type BenchSettings, type BenchSubject, rateOf, ratioOf, type Spread, spreadOf } from "../run/bench-plan.js";
import { countCustomOps } from "../run/executed-ops.js";
import { findOpsLibrary, type LibraryChoice } from "../run/locate.js";
import { requireTokens } from "../run/plain-model.js";
import { modelFile } from "../run/stateful.js";
import { type SourceFile, sourceFiles } from "../sources.js";
import { EXIT, type ExitCode, MambacError } from "../support/errors.js";
import { Progress, type Terminal } from "./terminal.js";
import { formatBytes, formatTable } from "./text-table.js";
import { symbolicDims } from "./verify.js";

export interface BenchCommandOptions {
  readonly output: string;
  /** Its source; null to leave out what needs it. */
  readonly against: readonly string[] | null;
  readonly batches: readonly number[];
  readonly threads: readonly number[];
  readonly prefill: number;
  readonly steps: number;
  readonly rounds: number;
  readonly library: LibraryChoice;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** The subject all others are compared with comes first. */
interface Lineup {
  readonly subjects: readonly BenchSubject[];
  /** What is not measured at all, and why. */
  readonly left: readonly { readonly name: string; readonly reason: string }[];
}

/** A figure of a subject in one setting; rates in tokens a second over all sequences. */
export interface BenchRow {
  readonly name: string;
  readonly batch: number;
  readonly threads: number;
  readonly prefill: Spread | null;
  readonly decode: Spread | null;
  /** How many times faster the first subject is, from the rounds' own quotients. */
  readonly prefillRatio: Spread | null;
  readonly decodeRatio: Spread | null;
  readonly stateBytes: number | null;
  readonly ran: string;
  readonly notes: readonly string[];
}

/** A baseline that varies more than this within a run makes its ratios doubtful. */
const STEADY = 1.25;

/**
 * Runs the command. `linearAttention` compiles for ONNX Runtime's own operators. Throws `bench/registration` when the
 * library was registered and did not take.
 */
export async function benchCommand(
  options: BenchCommandOptions,
  linearAttention: CompilerPasses,
  terminal: Terminal,
): Promise<ExitCode> {
  const temporary = new TemporaryFiles();
  const folder = temporary.folder(tmpdir(), "mambac-bench-");
  const progress = new Progress(options.quiet ? null : terminal);
  try {
    const lineup = await lineUp(options, linearAttention, folder, progress);
    const rows: BenchRow[] = [];
    for (const batch of options.batches) {
      for (const threads of options.threads) {
        const { prefill, steps, rounds } = options;
        const settings: BenchSettings = { batch, threads, prefill, steps, rounds };
        const say = (message: string): void => progress.say(`batch ${batch}, threads ${threads}: ${message}`);
        rows.push(...benchRows(settings, await runBench(lineup.subjects, settings, say)));
      }
    }
    progress.done();
    tell(options, lineup, rows, terminal);
    if (rows.some((row) => row.decode !== null)) return EXIT.ok;
    // The document holds the reasons already, and there must be one document only.
    if (options.json) return EXIT.unsupported;
    throw new MambacError("bench/nothing", "nothing could be measured; the reasons are above", EXIT.unsupported);
  } finally {
    progress.done();
    temporary.close();
  }
}

async function lineUp(
  options: BenchCommandOptions,
  linearAttention: CompilerPasses,
  folder: string,
  progress: Progress,
): Promise<Lineup> {
  const path = modelFile(options.output);
  const subjects: BenchSubject[] = [];
  const left: { name: string; reason: string }[] = [];
  const { model } = readModel(path);
  requireTokens(model, "bench");
  const hasOps = countCustomOps(model).size > 0;
  const library = findOpsLibrary(options.library);
  if (!hasOps) left.push({ name: "op library", reason: "the file holds no operator of mambac" });
  else if (library.kind === "absent") left.push({ name: "op library", reason: library.reason });
  else subjects.push({ kind: "package", name: "op library", path, library: library.path });
  subjects.push({ kind: "package", name: hasOps ? "functions" : "compiled file", path, library: null });
  if (options.against === null) return { subjects, left };
  const sources = sourceFiles(options.against);
  subjects.push(sourceSubject(sources));
  progress.say("compiling the source for LinearAttention");
  const baseline = join(folder, "linear-attention.onnx");
  try {
    const state = { format: "f32", scale: "dsq-max", requantize: "call" } as const;
    await compile({ inputs: sources.map((source) => source.path), output: baseline, state }, linearAttention);
    subjects.push({ kind: "package", name: "LinearAttention", path: baseline, library: null });
  } catch (cause) {
    if (!(cause instanceof MambacError)) throw cause;
    left.push({ name: "LinearAttention", reason: cause.message });
  }
  return { subjects, left };
}

/** How to run a source as it was exported. */
export function sourceSubject(sources: readonly SourceFile[]): BenchSubject {
  const prefill = sources.find(({ role }) => role === "prefill")?.path ?? null;
  const decode = sources.find(({ role }) => role === "decode")?.path ?? sources[0]?.path ?? "";
  const { model } = readModel(decode);
  const dims = symbolicDims(model.graph);
  const takesState = model.graph.inputs.some(({ type }) => type?.kind === "tensor" && (type.shape?.length ?? 0) > 2);
  if (takesState) return { kind: "pair", name: "source", prefill, decode, dims };
  return { kind: "forward", name: "source", path: prefill ?? decode };
}

/** Figures of one setting, the ratios to its first measured subject. */
export function benchRows(settings: BenchSettings, results: readonly SubjectResult[]): BenchRow[] {
  const rates = (result: SubjectResult, phase: "prefill" | "decode"): (number | null)[] =>
    result.kind === "measured" ? result.rounds.map((round) => rateOf(round[phase])) : [];
  const first = results.find((result) => result.kind === "measured");
  return results.map((result) => {
    const { batch, threads } = settings;
    const base = { name: result.subject.name, batch, threads };
    if (result.kind === "refused" || first === undefined) {
      const notes = result.kind === "refused" ? [result.reason] : [];
      const none = { prefill: null, decode: null, prefillRatio: null, decodeRatio: null, stateBytes: null };
      return { ...base, ...none, ran: "not measured", notes };
    }
    const [prefill, decode] = [rates(result, "prefill"), rates(result, "decode")];
    const spreads = [present(prefill), present(decode)].map(spreadOf);
    const restless = spreads.some((spread) => spread !== null && spread.max > STEADY * spread.min);
    const notes = restless
      ? [...result.facts.notes, "the machine was busy: rounds differ by more than 25 %"]
      : result.facts.notes;
    return {
      ...base,
      prefill: spreads[0] ?? null,
      decode: spreads[1] ?? null,
      prefillRatio: result === first ? null : ratioOf(rates(first, "prefill"), prefill),
      decodeRatio: result === first ? null : ratioOf(rates(first, "decode"), decode),
      stateBytes: result.facts.stateBytes,
      ran: ranText(result.facts),
      notes,
    };
  });
}

function present(values: readonly (number | null)[]): number[] {
  return values.filter((value) => value !== null);
}

function ranText(facts: (SubjectResult & { readonly kind: "measured" })["facts"]): string {
  const runtime = facts.backend === "node" ? "onnxruntime-node" : "C API";
  const place = facts.inPlace === 0 ? "" : `, ${facts.inPlace} of ${facts.states} states in place`;
  if (facts.kernels.length > 0) return `kernels ${facts.kernels.join(", ")} (${runtime}${place})`;
  if (facts.functions.length > 0) return `functions ${facts.functions.join(", ")} (${runtime})`;
  return runtime;
}

function tell(options: BenchCommandOptions, lineup: Lineup, rows: readonly BenchRow[], terminal: Terminal): void {
  const { prefill, steps, rounds } = options;
  if (options.json) {
    const { output, against } = options;
    const document = {
      command: "bench",
      version: VERSION,
      output,
      against,
      prefill,
      steps,
      rounds,
      rows,
      left: lineup.left,
    };
    terminal.out(`${JSON.stringify(document, null, 2)}\n`);
    return;
  }
  const heading = [
    "batch",
    "threads",
    "",
    "prefill tok/s",
    "",
    "decode tok/s",
    "",
    "ahead by: prefill",
    "decode",
    "state",
    "ran",
  ];
  const body = rows.map((row) => [
    String(row.batch),
    String(row.threads),
    row.name,
    ...rateCells(row.prefill),
    ...rateCells(row.decode),
    ratioCell(row.prefillRatio),
    ratioCell(row.decodeRatio),
    row.stateBytes === null ? "" : formatBytes(row.stateBytes),
    row.ran,
  ]);
  terminal.out(formatTable([heading, ...body]));
  terminal.out(
    `\nMedians of ${rounds} interleaved rounds (smallest..largest), prompt of ${prefill} tokens, ${steps} decoded; ` +
      `'ahead by' is how much faster ${lineup.subjects[0]?.name ?? ""} is; state in bytes a sequence.\n`,
  );
  const notes = new Map<string, Set<string>>();
  for (const { name, batch, threads, notes: lines } of rows) {
    for (const line of lines) {
      const key = `${name}: ${line}`;
      notes.set(key, (notes.get(key) ?? new Set()).add(`batch ${batch}, threads ${threads}`));
    }
  }
  const settings = options.batches.length * options.threads.length;
  for (const [line, where] of notes) {
    terminal.out(`${line}${where.size === settings ? "" : ` (${[...where].join("; ")})`}\n`);
  }
  for (const { name, reason } of lineup.left) terminal.out(`${name}: not measured: ${reason}\n`);
}

function rateCells(spread: Spread | null): string[] {
  if (spread === null) return ["-", ""];
  return [rateText(spread.median), `(${rateText(spread.min)}..${rateText(spread.max)})`];
}

function rateText(rate: number): string {
  return rate >= 100 ? rate.toFixed(0) : rate.toPrecision(3);
}

function ratioCell(spread: Spread | null): string {
  if (spread === null) return "";
  return `${spread.median.toFixed(2)}x (${spread.min.toFixed(2)}..${spread.max.toFixed(2)})`;
}
