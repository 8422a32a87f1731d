/** `mambac compile`: compiles, and tells what was found and what became of it. */

import { resolve } from "node:path";
import {
  type CompileOptions,
  type CompileReport,
  type CompilerPasses,
  compile,
  type DecidedRecipe,
  stateText,
  VERSION,
} from "../compile.js";
import type { Model } from "../ir/graph.js";
import { formatModel } from "../ir/text.js";
import { type KeptProjection, keptProjections } from "../kept-projections.js";
import { requireWritable, type WriteOptions, writtenSizes } from "../onnx/write.js";
import type { FloatType } from "../ops/names.js";
import type { StateChoice } from "../rewrite/semantic.js";
import { readCalibration } from "../run/calibration-files.js";
import { type KernelCensus, kernelCensus } from "../run/kernel-census.js";
import { defaultOutput, type SourceFile, sourceFiles } from "../sources.js";
import { closestWord } from "../support/closest-word.js";
import { EXIT, type ExitCode, InvariantError, MambacError } from "../support/errors.js";
import { keptLines } from "./kept-table.js";
import { formatLayers, formatRemarks, formatStateTotal, layerDocument, stateTotals } from "./layer-table.js";
import { writeRepro } from "./repro.js";
import { Progress, type Terminal } from "./terminal.js";
import { formatBytes, formatFacts, formatTable } from "./text-table.js";

/** The recipe a command runs, and the names of all passes, for options that name one. */
export interface PassLibrary extends CompilerPasses {
  readonly names: readonly string[];
}

export interface CompileCommandOptions {
  readonly inputs: readonly string[];
  /** Null: beside the source, as `<name>.mambac.onnx`. */
  readonly output: string | null;
  readonly state: StateChoice;
  /** Element type of weights and activations. */
  readonly float: FloatType;
  /** The quantization recipe; null leaves weights and activations float. */
  readonly recipe?: { readonly name: string } | null;
  /** The same as passes have decided it, as it is written beside the result. */
  readonly decided?: () => DecidedRecipe | null;
  /** Why this recipe, where mambac chose it. */
  readonly choice?: { readonly text: string; readonly document: object } | null;
  readonly calibration?: NonNullable<CompileOptions["calibration"]>;
  /** Files of `mambac calibrate`. */
  readonly tables?: readonly string[];
  readonly externalData: NonNullable<WriteOptions["externalData"]>;
  readonly threads: number;
  /** Everything but writing. */
  readonly dryRun: boolean;
  readonly json: boolean;
  readonly quiet: boolean;
  /** Name of a pass, `all`, or `changed` for those that changed something. */
  readonly printIr: string | null;
  readonly stopAfter: string | null;
  readonly timing: boolean;
  /** Folder for what a bug report needs, should one be needed. */
  readonly repro: string | null;
  /** The arguments as they were typed. */
  readonly commandLine: readonly string[];
}

/** What `--float f16` means for whoever runs the file. */
const FLOAT16 =
  "float16 weights, activations, convolution windows and attention caches; residual stream and logits float32";

interface PassRun {
  readonly name: string;
  readonly graph: string;
  readonly changed: number;
  readonly milliseconds: number;
}

/** Runs the command. Throws what `compile` throws. */
export async function compileCommand(
  options: CompileCommandOptions,
  library: PassLibrary,
  terminal: Terminal,
): Promise<ExitCode> {
  requirePass(library, options.stopAfter, "--stop-after");
  if (options.printIr !== "all" && options.printIr !== "changed")
    requirePass(library, options.printIr, "--print-ir", ["all", "changed"]);
  const sources = sourceFiles(options.inputs);
  const output = options.output ?? defaultOutput(sources);
  refuseOverwriting(sources, output);
  if (!options.dryRun && options.stopAfter === null) requireWritable(output);
  const progress = new Progress(options.quiet ? null : terminal);
  const start = performance.now();
  const runs: PassRun[] = [];
  let failed: { readonly pass: string; readonly before: Model } | null = null;
  let report: CompileReport;
  try {
    report = await compile(
      {
        inputs: sources.map(({ path }) => path),
        output: options.dryRun ? null : output,
        state: options.state,
        float: options.float,
        externalData: options.externalData,
        threads: options.threads,
        recipe: options.recipe ?? null,
        ...(options.decided === undefined ? {} : { decided: options.decided }),
        ...(options.calibration === undefined ? {} : { calibration: options.calibration }),
        tables: (options.tables ?? []).map((path) => ({ label: path, table: readCalibration(path) })),
        ...(options.stopAfter === null ? {} : { stopAfter: options.stopAfter }),
        onProgress: (message) => progress.say(message),
        afterPass: (name, model, changed, milliseconds) => {
          runs.push({ name, graph: graphOf(sources, library, runs.length), changed, milliseconds });
          if (prints(options.printIr, name, changed)) terminal.err(irText(name, model));
        },
        onFailure: (pass, before) => {
          failed = { pass, before };
        },
      },
      library,
    );
  } catch (cause) {
    if (options.repro !== null && !(cause instanceof MambacError))
      terminal.err(`mambac: ${writeRepro(options.repro, { failed, cause, options, version: VERSION })}\n`);
    throw asBug(cause);
  } finally {
    progress.done();
  }
  const elapsed = performance.now() - start;
  const census =
    options.recipe == null || report.written === null ? null : await kernelCensus(report.written.model.path);
  if (options.json) terminal.out(`${JSON.stringify(documentOf(report, output, options, runs, census), null, 2)}\n`);
  else if (options.stopAfter !== null) terminal.out(formatModel(report.model, { comments: true }));
  else if (!options.quiet) terminal.out(textOf(report, output, options, census));
  else tellWarnings(report, terminal);
  if (options.timing && !options.json) terminal.out(`\n${timingText(runs, elapsed)}`);
  return EXIT.ok;
}

function requirePass(library: PassLibrary, name: string | null, flag: string, words: readonly string[] = []): void {
  if (name === null || library.names.includes(name)) return;
  const meant = closestWord(name, [...words, ...library.names]);
  throw new MambacError(
    "compile/pass-name",
    `${flag}: there is no pass ${name}; ${meant === null ? "" : `did you mean ${meant}? `}${words.length === 0 ? "passes" : `say ${words.join(", ")} or a pass`}: ${library.names.join(", ")}`,
  );
}

function refuseOverwriting(sources: readonly SourceFile[], output: string): void {
  if (!sources.some(({ path }) => resolve(path) === resolve(output))) return;
  throw new MambacError("compile/output", `the output ${output} is also the source; name another file with --output`);
}

/** Which graph the pass with this number worked on: raising runs on each source, the rest on the merged graph. */
function graphOf(sources: readonly SourceFile[], library: PassLibrary, at: number): string {
  return sources[Math.floor(at / library.raise().length)]?.role ?? "model";
}

function prints(choice: string | null, name: string, changed: number): boolean {
  return choice === "all" || choice === name || (choice === "changed" && changed > 0);
}

function irText(name: string, model: Model): string {
  return `; after ${name}\n${formatModel(model, { comments: true })}\n`;
}

/** Anything that is no message for people is a bug, whatever threw it. */
function asBug(cause: unknown): unknown {
  if (cause instanceof MambacError || cause instanceof InvariantError) return cause;
  return new InvariantError(cause instanceof Error ? cause.message : String(cause), { cause });
}

interface Files {
  readonly model: { readonly path: string; readonly bytes: number };
  readonly data: { readonly path: string; readonly bytes: number } | null;
  readonly companions: readonly { readonly path: string; readonly bytes: number }[];
}

/** What was written, or what would be. Null where there is nothing to write yet. */
function filesOf(report: CompileReport, output: string, options: CompileCommandOptions): Files | null {
  if (report.written !== null) return report.written;
  if (options.stopAfter !== null) return null;
  const text = options.decided?.()?.text ?? null;
  const { model, data } = writtenSizes(report.model, output, { externalData: options.externalData });
  return {
    model: { path: output, bytes: model },
    data: data === null ? null : { path: `${output}.data`, bytes: data },
    companions: text === null ? [] : [{ path: `${output}.recipe.yaml`, bytes: Buffer.byteLength(text) }],
  };
}

/**
 * Most memory a real run takes. A dry run does everything but writing, and writing streams one weight at a time, so this
 * is the peak so far and room for the largest weight.
 */
function peakMemory(model: Model): number {
  const largest = Math.max(0, ...[...model.graph.initializers.values()].map((tensor) => tensor.byteLength));
  return process.resourceUsage().maxRSS * 1024 + largest;
}

function documentOf(
  report: CompileReport,
  output: string,
  options: CompileCommandOptions,
  runs: readonly PassRun[],
  census: KernelCensus | null,
): object {
  const { before, after } = stateTotals(report.rows);
  return {
    command: "compile",
    version: VERSION,
    inputs: report.inputs,
    dryRun: options.dryRun,
    files: filesOf(report, output, options),
    state: report.state,
    float: options.float,
    recipe: options.decided?.()?.recipe ?? options.recipe ?? null,
    ...(options.choice == null ? {} : { auto: options.choice.document }),
    calibration: report.calibration,
    ...(census === null ? {} : { kernels: kernelsDocument(census, report) }),
    layers: report.rows.map(layerDocument),
    totals: { weightBytes: report.weightBytes, stateBytesBefore: before, stateBytesAfter: after },
    remarks: report.remarks,
    warnings: report.warnings,
    ...(options.dryRun ? { peakMemoryBytes: peakMemory(report.model) } : {}),
    ...(options.timing ? { passes: runs } : {}),
    ...(options.stopAfter === null ? {} : { ir: formatModel(report.model, { comments: true }) }),
  };
}

function textOf(
  report: CompileReport,
  output: string,
  options: CompileCommandOptions,
  census: KernelCensus | null,
): string {
  const files = filesOf(report, output, options);
  const named = (file: Files["model"]): string => `${file.path} (${formatBytes(file.bytes)})`;
  const facts: [string, string][] = report.inputs.map((source) => [
    source.role === "model" ? "source" : source.role,
    named(source),
  ]);
  facts.push(["state", `${stateText(report.state)}, ${formatStateTotal(report.rows)}`]);
  facts.push(["weights", formatBytes(report.weightBytes)]);
  if (options.float === "f16") facts.push(["floats", FLOAT16]);
  if (options.recipe != null) facts.push(["recipe", options.recipe.name]);
  if (report.calibration !== null) {
    const { sequences, tokens, random, seed, sha256 } = report.calibration;
    const asked = options.calibration?.samples ?? sequences;
    const of = sequences < asked ? ` of ${asked} asked for` : "";
    const files = random
      ? "made up"
      : `${(options.calibration?.paths ?? []).join(", ")} (sha256 ${sha256.slice(0, 12)})`;
    const { sequenceLength } = report.calibration;
    const amount = sequenceLength === 1 ? `${sequences} items${of}` : `${sequences} sequences${of}, ${tokens} tokens`;
    facts.push(["calibration", `${amount}, seed ${seed}: ${files}`]);
  }
  if (census !== null) {
    facts.push(["projections", censusText(census)]);
    const kept = keptLines(keptOf(census, report));
    facts.push(...kept.map((line, at): [string, string] => [at === 0 ? "in float" : "", line]));
  }
  if (files !== null) {
    const list = [files.model, ...(files.data === null ? [] : [files.data]), ...files.companions].map(named).join(", ");
    facts.push([options.dryRun ? "would write" : "written", list]);
  }
  if (options.dryRun) facts.push(["peak memory", `about ${formatBytes(peakMemory(report.model))}`]);
  return `${options.choice == null ? "" : `${options.choice.text}\n`}${formatLayers(report.rows)}\n${formatFacts(facts)}${formatRemarks(report.remarks, report.warnings)}`;
}

/** Every projection that stays float, with the reason; the counts are of all. */
function kernelsDocument(census: KernelCensus, report: CompileReport): object {
  return { ...census, kernels: Object.fromEntries(census.kernels), float: keptOf(census, report) };
}

function keptOf(census: KernelCensus, { aligned, model: compiled, remarks }: CompileReport): KeptProjection[] {
  return keptProjections(census, { aligned, compiled }, remarks);
}

/** What ONNX Runtime makes of the projections, read from its optimised graph. */
function censusText({ quantized, projections, roundsActivations, kernels }: KernelCensus): string {
  const list = [...kernels].map(([name, count]) => `${count} ${name}`).join(", ");
  const inside =
    roundsActivations === 0
      ? ""
      : `; ${roundsActivations} of them round their activations to 8 bits inside the operator`;
  return `${quantized} of ${projections} run as integer or low-bit kernels in ONNX Runtime (${list})${inside}`;
}

function tellWarnings(report: CompileReport, terminal: Terminal): void {
  const remarks = report.remarks.filter(({ kind }) => kind === "warning");
  const text = formatRemarks(remarks, report.warnings).trimStart();
  if (text !== "") terminal.err(text);
}

function timingText(runs: readonly PassRun[], elapsed: number): string {
  const rest = elapsed - runs.reduce((sum, run) => sum + run.milliseconds, 0);
  const ms = (value: number): string => value.toFixed(1).padStart(9);
  return formatTable([
    ["pass", "graph", "changed", "milliseconds"],
    ...runs.map((run) => [run.name, run.graph, String(run.changed).padStart(7), ms(run.milliseconds)]),
    ["read, compare, write", "", "", ms(rest)],
    ["all", "", "", ms(elapsed)],
  ]);
}
