/**
 * `mambac verify`: does a compiled file compute what its source computes, however the tokens are fed?
 *
 * Random tokens go through ONNX Runtime: OUT in one call, cut anywhere, and token by token; then OUT against the prefill
 * graph in one call and against the decode graph token by token. Runs that never round a state must agree to 1e-4, those of
 * float16 packages to 32 roundings of halves.
 * A packed or f16 state is rounded between calls, so runs with different calls differ a little by design; those are held
 * to loose limits, which catch a lost or mixed-up state and nothing finer. So are files whose recipe rounds weights or
 * activations: they differ from the source by design. `mambac eval` measures what rounding costs.
 */

import { VERSION } from "../compile.js";
import { readModel } from "../onnx/read.js";
import type { StateFormat } from "../ops/names.js";
import { bindInputs, declaredBatch, declaredLength, dimNumber, isAttentionCache, viewGraph } from "../rewrite/axes.js";
import { mainOpset } from "../rewrite/trials.js";
import type { LibraryChoice } from "../run/locate.js";
import type { Logits } from "../run/logits.js";
import { compareLogits, type Difference, everyCut, feedInParts, worstOf } from "../run/parity.js";
import { isPlain } from "../run/plain-model.js";
import { type Rounding, roundingOf } from "../run/rounding.js";
import { type StatePrecision, statePrecision } from "../run/state-precision.js";
import { type LoadedPackage, loadPackage, modelFile } from "../run/stateful.js";
import { type SourceFile, sourceFiles } from "../sources.js";
import { assertNever, EXIT, type ExitCode, MambacError } from "../support/errors.js";
import { Random } from "../support/random.js";
import { isCompiled } from "./compiled-rows.js";
import { Progress, type Terminal } from "./terminal.js";
import { formatError, formatTable } from "./text-table.js";
import { verifyPlain } from "./verify-plain.js";

export interface VerifyCommandOptions {
  readonly output: string;
  readonly against: readonly string[];
  readonly lengths: readonly number[];
  readonly seed: number;
  readonly library: LibraryChoice;
  readonly threads: number;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** Relative difference that rounding of float32 explains. */
const EXACT_LIMIT = 1e-4;

/** A graph in half precision rounds a few times a layer where one in float32 does not. */
const HALF_ROUNDINGS = 32;
const HALF_LIMIT: number = HALF_ROUNDINGS * 2 ** -11;

/**
 * Limits on the root mean square where a state is rounded between calls: three times and more of the worst seen on random
 * and trained models fed token by token (f16 2e-4, h8 5e-3, h4 9e-2), and below what a state lost at every token gives.
 */
const ROUNDED_LIMITS: Readonly<Record<StateFormat, number>> = { f32: EXACT_LIMIT, f16: 0.003, h8: 0.03, h4: 0.27 };

/**
 * The same between a model with rounded weights or activations and its source: the worst seen on random and trained models
 * is 0.28 (4 bits), and unrelated logits are 1.4 apart.
 */
const LOSSY_LIMIT = 0.5;

/** The same between two ways to feed a model that rounds activations, where the last bit decides on a step: 0.061 at worst. */
const ACTIVATION_LIMIT = 0.15;

/** `max`: largest difference over the largest logit. `rms`: root mean square over that of the logits. */
interface Limit {
  readonly measure: "max" | "rms";
  readonly value: number;
}

interface Check {
  readonly name: string;
  readonly lengths: readonly number[];
  /** Were states rounded in one of the runs and not in the other? */
  readonly rounded: boolean;
  readonly limit: Limit;
  readonly difference: Difference | null;
  readonly passed: boolean;
  /** Why something was left out. */
  readonly note: string;
}

/** Runs the command: exit code 3 when a check fails, 4 when nothing could be compared with a source. */
export async function verifyCommand(options: VerifyCommandOptions, terminal: Terminal): Promise<ExitCode> {
  if (isPlain(readModel(modelFile(options.output)).model))
    return verifyPlain(options, { exact: EXACT_LIMIT, lossy: LOSSY_LIMIT }, terminal);
  const progress = new Progress(options.quiet ? null : terminal);
  const sources = sourceFiles(options.against);
  try {
    const subject = await openSubject(options, sources, terminal);
    await using _model = subject.model;
    const checks: Check[] = [];
    progress.say("comparing one call, cut calls and single tokens");
    checks.push(...(await consistencyChecks(subject)));
    for (const source of sources) {
      progress.say(`comparing with ${source.path}`);
      checks.push(await sourceCheck(subject, source));
    }
    const compared = checks.some((check) => !check.name.startsWith("itself") && check.difference !== null);
    const passed = checks.every((check) => check.passed);
    tell(options, subject, checks, passed && compared, terminal);
    if (!passed) return EXIT.belowGate;
    if (compared) return EXIT.ok;
    throw new MambacError(
      "verify/nothing",
      `nothing could be compared with ${options.against.join(", ")}`,
      EXIT.unsupported,
    );
  } finally {
    progress.done();
  }
}

interface Subject {
  readonly model: LoadedPackage;
  readonly precision: StatePrecision;
  readonly rounding: Rounding;
  /** Largest relative difference between runs that round nothing to steps. */
  readonly exact: number;
  readonly options: VerifyCommandOptions;
  readonly batch: number;
  readonly vocabulary: number;
  /** Lengths OUT is run at. */
  readonly lengths: readonly number[];
  readonly tokens: (length: number) => number[][];
}

async function openSubject(
  options: VerifyCommandOptions,
  sources: readonly SourceFile[],
  terminal: Terminal,
): Promise<Subject> {
  const graphs = [modelFile(options.output), ...sources.map(({ path }) => path)].map(
    (path) => readModel(path).model.graph,
  );
  const batch = graphs.map(declaredBatch).find((size) => size !== null) ?? 2;
  const model = await loadPackage(options.output, {
    batch,
    library: options.library,
    threads: options.threads,
    onNotice: (message) => (options.quiet ? undefined : terminal.err(`${message}\n`)),
  });
  const fixed = model.signature.tokens.length;
  const frozen = graphs.map(declaredLength).filter((length) => length !== null && length > 1);
  const lengths = typeof fixed === "number" && fixed > 1 ? [fixed] : [...options.lengths, ...frozen.map(Number)];
  // The logits tell the vocabulary even where the graph's types do not.
  const probe = await model.prefill(Array.from({ length: lengths[0] ?? 1 }, () => 0));
  const random = new Random(options.seed).split("verify");
  return {
    model,
    precision: statePrecision(model.model),
    rounding: roundingOf(model.model),
    exact: model.model.metadata.get("mambac.float") === "f16" ? HALF_LIMIT : EXACT_LIMIT,
    options,
    batch,
    vocabulary: probe.vocabulary,
    lengths: [...new Set(lengths)].sort((a, b) => a - b),
    tokens: (length) => {
      const source = random.split(`length ${length}`);
      return Array.from({ length: batch }, () => Array.from({ length }, () => source.integer(probe.vocabulary)));
    },
  };
}

/** OUT against itself: one call, two calls cut at the ends and the middle, one call a token. */
async function consistencyChecks(subject: Subject): Promise<Check[]> {
  const { model, lengths, precision, rounding, exact } = subject;
  const rounded = precision.format !== "f32";
  const state: Limit = rounded
    ? { measure: "rms", value: ROUNDED_LIMITS[precision.format] }
    : { measure: "max", value: exact };
  const limit = rounding.activations ? looser(state, ACTIVATION_LIMIT) : state;
  const plural = lengths.filter((length) => length > 1);
  if (!model.stateful || model.signature.tokens.length === plural[0]) {
    const note = model.stateful
      ? "the file takes one length only, so it cannot be fed in parts"
      : "the file carries no state, so it takes whole sequences";
    return [{ name: "itself, cut", lengths: [], rounded: false, limit, difference: null, passed: true, note }];
  }
  const cut: Difference[] = [];
  const single: Difference[] = [];
  for (const length of plural) {
    const rows = subject.tokens(length);
    const whole = await feedInParts(model, rows, []);
    for (const at of new Set([1, Math.floor(length / 2), length - 1])) {
      cut.push(compareLogits(await feedInParts(model, rows, [at]), whole));
    }
    single.push(compareLogits(await feedInParts(model, rows, everyCut(length)), whole));
  }
  const note = plural.length === 0 ? "no length above 1 was asked for" : "";
  const check = (name: string, found: readonly Difference[]): Check =>
    judge({ name, lengths: plural, rounded, limit, note }, found);
  return [check("itself, cut once", cut), check("itself, token by token", single)];
}

/** OUT against a source: in one call at every length the source takes, or token by token against a decode graph. */
async function sourceCheck(subject: Subject, source: SourceFile): Promise<Check> {
  const { precision, rounding, options } = subject;
  const { model } = readModel(source.path);
  const stepwise = source.role === "decode" || declaredLength(model.graph) === 1;
  const rounded = precision.format !== "f32" && (stepwise || precision.requantize !== "call");
  const state: Limit = rounded
    ? { measure: "rms", value: ROUNDED_LIMITS[precision.format] }
    : { measure: "max", value: Math.max(exactLimit(model.graph), subject.exact) };
  const limit = rounding.lossy ? looser(state, LOSSY_LIMIT) : state;
  const base = { name: `${source.role} graph, ${stepwise ? "token by token" : "one call"}`, rounded, limit };
  const differences: Difference[] = [];
  const lengths: number[] = [];
  const skipped: string[] = [];
  let reference: LoadedPackage;
  try {
    reference = await loadPackage(source.path, {
      batch: subject.batch,
      library: "none",
      threads: options.threads,
      dims: symbolicDims(model.graph),
    });
  } catch (cause) {
    if (!(cause instanceof MambacError)) throw cause;
    return { ...base, lengths, difference: null, passed: true, note: `cannot be run: ${cause.message}` };
  }
  await using _closed = reference;
  const compareAt = async (length: number): Promise<void> => {
    const rows = subject.tokens(length);
    const cuts = stepwise ? everyCut(length) : [];
    let expected: Logits;
    try {
      expected = await feedInParts(reference, rows, cuts);
    } catch (cause) {
      if (!(cause instanceof MambacError)) throw cause;
      skipped.push(`length ${length}: ${firstLine(cause.message)}`);
      return;
    }
    differences.push(compareLogits(await feedInParts(subject.model, rows, cuts), expected));
    lengths.push(length);
  };
  for (const length of subject.lengths) await compareAt(length);
  if (lengths.length === 0) {
    // A file may claim a free length and work for the one it was traced at.
    const traced = viewGraph(model.graph, mainOpset(model)).frozenLength;
    if (traced !== null && !subject.lengths.includes(traced)) await compareAt(traced);
  }
  return judge({ ...base, lengths, note: skipped.join("; ") }, differences);
}

function exactLimit(graph: ReturnType<typeof readModel>["model"]["graph"]): number {
  const types = new Set([...graph.initializers.values()].map(({ dtype }) => dtype));
  return types.has("bf16") ? HALF_ROUNDINGS * 2 ** -8 : types.has("f16") ? HALF_LIMIT : EXACT_LIMIT;
}

function firstLine(message: string): string {
  const line = message.split("\n")[0] ?? "";
  return line.length > 120 ? `${line.slice(0, 117)}...` : line;
}

/** Lengths of symbolic state axes of a source, such as the width of its convolution states. */
export function symbolicDims(graph: ReturnType<typeof readModel>["model"]["graph"]): Record<string, number> {
  const bound = bindInputs(graph, { batch: 1, length: 1, past: 0 });
  const dims: Record<string, number> = {};
  for (const input of graph.inputs) {
    if (input.type?.kind !== "tensor" || isAttentionCache(input)) continue;
    const sizes = bound.get(input.name)?.shape;
    input.type.shape?.forEach((dim, axis) => {
      const size = sizes?.[axis];
      if (axis > 0 && typeof dim === "string" && dimNumber(dim) === null && size !== undefined) dims[dim] ??= size;
    });
  }
  return dims;
}

function judge(base: Omit<Check, "difference" | "passed">, differences: readonly Difference[]): Check {
  const difference = worstOf(differences);
  const { measure, value } = base.limit;
  const passed = difference === null || (measure === "rms" ? difference.rms : difference.relative) <= value;
  return { ...base, difference, passed };
}

/** A limit on the root mean square where there was a closer one. */
function looser(limit: Limit, rms: number): Limit {
  return { measure: "rms", value: limit.measure === "rms" ? Math.max(limit.value, rms) : rms };
}

function limitText({ difference, limit }: Check): string {
  return difference === null ? "" : `${limit.measure} ${limit.value}`;
}

function whenRounded({ requantize }: StatePrecision): string {
  switch (requantize) {
    case "call":
      return "between calls";
    case "token":
      return "after every token";
    case "replay":
      return "once in so many tokens, wherever calls end";
    default:
      return assertNever(requantize);
  }
}

function tell(
  options: VerifyCommandOptions,
  subject: Subject,
  checks: readonly Check[],
  passed: boolean,
  terminal: Terminal,
): void {
  const { precision, rounding, model } = subject;
  if (options.json) {
    const document = {
      command: "verify",
      version: VERSION,
      output: options.output,
      against: options.against,
      seed: options.seed,
      lengths: subject.lengths,
      batch: subject.batch,
      backend: model.backend,
      library: model.library,
      state: precision,
      rounding,
      checks,
      passed,
    };
    terminal.out(`${JSON.stringify(document, null, 2)}\n`);
    return;
  }
  const rows = checks.map((check) => [
    check.passed ? (check.difference === null ? "-" : "ok") : "FAIL",
    check.name,
    check.lengths.join(","),
    formatError(check.difference?.relative ?? null),
    formatError(check.difference?.rms ?? null),
    check.difference === null ? "-" : `${(100 * check.difference.top1).toFixed(1)} %`,
    limitText(check),
    check.note,
  ]);
  const heading = ["", "against", "lengths", "max error", "rms error", "same best token", "limit", ""];
  const states =
    precision.format === "f32"
      ? ""
      : `\nThe state is kept as ${precision.format} and rounded ${whenRounded(precision)}: ` +
        "runs that round it at different places differ by design, and are held to the loose rms limit.\n";
  const runs = `\n${options.output} on ${subject.batch} random sequences, seed ${options.seed}, ${model.library === null ? "portable functions" : `kernels of ${model.library}`}: ${passed ? "passed" : "FAILED"}\n`;
  terminal.out(
    `${formatTable([heading, ...rows])}${states}${lossText(rounding)}${strangerText(options.output, model)}${runs}`,
  );
}

/** Arguments are easily swapped, and a source agrees with what was compiled from it as well. */
function strangerText(output: string, { model }: LoadedPackage): string {
  return isCompiled(model) ? "" : `\n${output} was not compiled by mambac: is it the source?\n`;
}

function lossText({ lossy, activations, recipe }: Rounding): string {
  if (!lossy) return "";
  const by = recipe === null ? "The file" : `The recipe ${recipe}`;
  return (
    `\n${by} rounds ${activations ? "weights and activations" : "weights"}: the file differs from its source by design, ` +
    "and is held to a limit that only a broken one is above. `mambac eval OUT --against SOURCE --text FILE` measures the loss.\n"
  );
}
