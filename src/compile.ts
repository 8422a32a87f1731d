/**
 * The driver: read, raise, merge, finish, write. Passes arrive as arguments, so that the library core never depends on a
 * particular set of them.
 */

import { lstatSync, statSync } from "node:fs";
import { type CalibrationData, vocabularyOf } from "./calibration.js";
import { ALIGNED, COMPLETE, calibrationHooks, type StatisticsRecorder } from "./calibration-tables.js";
import { requireCarried } from "./carry.js";
import { executor, withStateNames } from "./executable.js";
import type { Model, Node } from "./ir/graph.js";
import { type Dim, formatType } from "./ir/types.js";
import { readModel } from "./onnx/read.js";
import { requireWritable, type Written, writeModel } from "./onnx/write.js";
import { DEFAULT_REPLAY_LENGTH, type FloatType, isStatic, OP_DOMAIN, parseOpName } from "./ops/names.js";
import { measurePair, totalBytes } from "./pair.js";

import { tokenInput } from "./rewrite/axes.js";

import { splitBranches } from "./rewrite/branches.js";
import { readHalves } from "./rewrite/half-weight.js";
import { withPlainDims } from "./rewrite/interface-dims.js";
import type { Fact, Remark } from "./rewrite/pass.js";
import { nothingFound, type PipelineHooks, runSteps, type Step } from "./rewrite/pipeline.js";
import { FLOAT_STATE, type SemanticOp, type StateChoice, semanticOps } from "./rewrite/semantic.js";
import { slotType, stateBytes, stateSlots } from "./rewrite/states.js";
import type { DatasetDescription } from "./run/dataset.js";
import { openOrtGemm } from "./run/ort-gemm.js";
import type { NamedTable } from "./run/statistics.js";

import { identifySource, type Source, sourceFiles } from "./sources.js";
import { MambacError } from "./support/errors.js";

export const VERSION = "0.1.0";

/** The raised decode graph of a pair, and a comparison of the two sources by running them. */
export interface RaisedPair {
  readonly decode: Model;
  readonly measure: () => Promise<number | null>;
}

/** The passes the driver runs. */
export interface CompilerPasses {
  readonly raise: () => Step[];
  readonly finish: (pair: RaisedPair | null) => Step[];
  /** Makes a model between two passes executable: calibration runs it. */
  readonly executable: () => Step[];
  /** The same in the precision that is written, for measuring what that costs; `executable` unless given. */
  readonly measurable?: () => Step[];
}

/** A recipe with nothing left to decide, as data and as YAML. */
export interface DecidedRecipe {
  readonly recipe: { readonly name: string };
  readonly text: string;
}

export interface CompileOptions {
  /** One file, a prefill and a decode file in any order, or one folder that holds them. */
  readonly inputs: readonly string[];
  /** Null plans without writing. */
  readonly output: string | null;
  readonly state: StateChoice;
  /** Element type of weights and activations, for the metadata; f32 unless given. */
  readonly float?: FloatType;
  readonly externalData?: "auto" | "always" | "never";
  readonly stopAfter?: string;
  readonly threads?: number;
  /** The quantization recipe, for the metadata. */
  readonly recipe?: { readonly name: string } | null;
  /** The same as passes have decided it, for `<output>.recipe.yaml` and the metadata. Asked once they have run. */
  readonly decided?: () => DecidedRecipe | null;
  /** Data for passes that need statistics of activations. */
  readonly calibration?: CalibrationData;
  /** Tables of `mambac calibrate`: used instead of data where they have what a pass asks for. */
  readonly tables?: readonly NamedTable[];
  /** Takes what is collected from data, to make a table of it. */
  readonly recorder?: StatisticsRecorder;
  readonly onRemark?: (remark: Remark) => void;
  readonly onProgress?: (message: string) => void;
  readonly afterPass?: (name: string, model: Model, changed: number, milliseconds: number) => void;
  readonly onFailure?: (name: string, before: Model, cause: unknown) => void;
}

/** One row a layer and operator: what was found, how well it agrees, what it carries. */
export interface LayerRow {
  readonly layer: string;
  readonly kind: SemanticOp["kind"];
  readonly form: string;
  /** Largest relative error of the proof. */
  readonly error: number;
  /** Sizes for people: `H=24 P=64 N=128 G=1`. */
  readonly sizes: string;
  /** Name and type of each state, `past` and `present`. */
  readonly states: readonly { readonly past: string; readonly present: string; readonly type: string }[];
  /** Bytes of one sequence's state with f32, and as compiled. */
  readonly bytesBefore: number;
  readonly bytesAfter: number;
}

export interface CompileReport {
  readonly inputs: readonly Source[];
  readonly rows: readonly LayerRow[];
  readonly remarks: readonly Remark[];
  readonly warnings: readonly string[];
  readonly state: StateChoice;
  /** The model as compiled, or as it stood after `stopAfter`. */
  readonly model: Model;
  /** The model before anything was rounded: projections have layers and roles there. */
  readonly aligned: Model;
  readonly written: Written | null;
  /** Bytes of all weights of the result. */
  readonly weightBytes: number;
  /** The data that statistics were taken from; null where none were. Tables tell of theirs themselves. */
  readonly calibration: DatasetDescription | null;
}

/** Sources with their scans recognised: where every compilation of one source starts. */
export interface Prepared {
  readonly sources: readonly Source[];
  /** The graph that is compiled, and the decode graph of a pair. */
  readonly main: Model;
  readonly decode: Model | null;
  /** Token ids are below this. */
  readonly vocabulary: number;
  readonly remarks: readonly Remark[];
  readonly warnings: readonly string[];
  /** Facts that hold of the recognised graphs. */
  readonly facts: ReadonlySet<Fact>;
  /** Every file the sources are made of, those with weights included. */
  readonly files: readonly string[];
  /** `--stop-after` named a pass that has run already. */
  readonly stopped: boolean;
  /** How far the graphs of a pair are apart, measured once. */
  readonly measure: (report: (remark: Remark) => void) => Promise<number | null>;
}

type PrepareOptions = Omit<
  CompileOptions,
  "output" | "state" | "float" | "recipe" | "decided" | "calibration" | "tables" | "recorder"
>;

/** Compiles; see `CompileOptions`. Throws `MambacError` for whatever the user can mend; nothing is written then. */
export async function compile(options: CompileOptions, passes: CompilerPasses): Promise<CompileReport> {
  if (options.output !== null) requireWritable(options.output);
  return compilePrepared(await prepare(options, passes), options, passes);
}

/** Reads and recognises. Throws what `compile` throws. */
export async function prepare(options: PrepareOptions, passes: CompilerPasses): Promise<Prepared> {
  const sources = sourceFiles(options.inputs).map(identifySource);
  const remarks: Remark[] = [];
  const warnings: string[] = [];
  const hooks = pipelineHooks(options, remarks);
  const steps = passes.raise();
  const stopped = options.stopAfter !== undefined && steps.some(({ name }) => name === options.stopAfter);
  const raised: { role: Source["role"]; model: Model }[] = [];
  const files: string[] = [];
  for (const source of sources) {
    options.onProgress?.(`reading ${source.path}`);
    const { model, warnings: found, sideFiles } = readModel(source.path);
    files.push(source.path, ...sideFiles);
    refuseCompiled(model, source.path);
    warnings.push(...found.map((warning) => `${source.path}: ${warning}`));
    options.onProgress?.(`recognising ${source.role === "model" ? "the graph" : `the ${source.role} graph`}`);
    const { stopAfter: _ignored, ...plain } = hooks;
    const parts = source.role === "model" ? splitBranches(model) : null;
    if (parts !== null) options.onProgress?.("its layers choose between a step and a scan: taking both apart");
    const graphs: readonly { readonly role: Source["role"]; readonly model: Model }[] =
      parts === null
        ? [{ role: source.role, model }]
        : [
            { role: "prefill", model: parts.prefill },
            { role: "decode", model: parts.decode },
          ];
    for (const part of graphs) {
      const result = await runSteps(part.model, steps, stopped ? hooks : plain);
      raised.push({ role: part.role, model: result.model });
    }
  }
  const main = raised.find(({ role }) => role !== "decode")?.model;
  if (main === undefined) throw new MambacError("compile/inputs", "there is no graph to compile");
  const decode = raised.find(({ role }) => role === "decode")?.model ?? null;
  if (!stopped && !semanticOps(main.graph.nodes).some((op) => op.kind === "scan")) throw nothingFound(remarks);
  let measured: Promise<number | null> | null = null;
  return {
    sources,
    main,
    decode,
    vocabulary: vocabularyOf(main),
    remarks,
    warnings,
    files,
    facts: new Set(steps.flatMap(({ establishes }) => establishes)),
    stopped,
    measure: (report) => {
      measured ??= decode === null ? Promise.resolve(null) : measurePair(sources, main, decode, report);
      return measured;
    },
  };
}

/** The files written, and those of an earlier result that go, may be none of the source's: its weights would be lost. */
function refuseReplacing(files: readonly string[], output: string): void {
  const known = files.map((path) => statSync(path, { throwIfNoEntry: false, bigint: true }));
  for (const target of [output, `${output}.data`, `${output}.recipe.yaml`]) {
    // A link would be replaced, and what it leads to left alone.
    const there = lstatSync(target, { throwIfNoEntry: false, bigint: true });
    if (there === undefined || !known.some((file) => file?.ino === there.ino && file.dev === there.dev)) continue;
    throw new MambacError(
      "compile/output",
      `writing ${output} would replace ${target}, which belongs to the source; name another file with --output`,
    );
  }
}

/** A compiled file is no source: its weights and states may be rounded already, and its scans need no proof. */
function refuseCompiled(model: Model, path: string): void {
  const by = model.metadata.get("mambac.version");
  const isScan = ({ domain, op }: Node): boolean => domain === OP_DOMAIN && parseOpName(op)?.kind === "scan";
  if (!model.metadata.has("mambac.recipe") && !model.graph.nodes.some(isScan)) return;
  const sha256 = model.metadata.get("mambac.source_sha256")?.split(" ") ?? [];
  const hashes = sha256.length === 0 ? "" : ` (sha256 ${sha256.map((hash) => hash.slice(0, 12)).join(" and ")})`;
  throw new MambacError(
    "compile/compiled",
    `${path} was compiled by mambac${by === undefined ? "" : ` ${by}`} already: give the source it was compiled from${hashes}`,
  );
}

/** What is left of a compilation once its source is prepared; one source can be compiled in many ways. */
export async function compilePrepared(
  prepared: Prepared,
  options: CompileOptions,
  passes: CompilerPasses,
): Promise<CompileReport> {
  const { main, decode } = prepared;
  if (options.output !== null) refuseReplacing(prepared.files, options.output);
  const remarks: Remark[] = [...prepared.remarks];
  if (prepared.stopped)
    return report(options, prepared, main, main, semanticOps(main.graph.nodes), remarks, null, null);
  await using products = openOrtGemm({ threads: options.threads ?? 1 });
  let complete: Model | null = null;
  let calibration: DatasetDescription | null = null;
  const hooks = {
    ...pipelineHooks(options, remarks),
    gemm: products.gemm,
    ...calibrationHooks({
      calibration: options.calibration ?? null,
      tables: options.tables ?? [],
      recorder: options.recorder ?? null,
      complete: () => complete,
      inputs: options.inputs,
      executable: passes.executable,
      ...(passes.measurable === undefined ? {} : { measurable: passes.measurable }),
      threads: options.threads ?? 1,
      ...(options.onProgress === undefined ? {} : { onProgress: options.onProgress }),
      onDataset: (description) => {
        calibration = description;
      },
    }),
  };
  let before: readonly SemanticOp[] = [];
  let aligned: Model | null = null;
  const known: (() => void)[] = [];
  const pair = decode === null ? null : { decode, measure: () => prepared.measure(hooks.report) };
  const finished = await runSteps(
    main,
    carrying(passes.finish(pair), prepared.vocabulary, options, passes),
    {
      ...hooks,
      whenRead: (tell) => known.push(tell),
      afterPass: (name, model, changed, milliseconds) => {
        const ops = semanticOps(model.graph.nodes);
        if (ops.length > 0) before = ops;
        if (name === COMPLETE) complete = model;
        if (name === ALIGNED && complete !== null && ops.length > 0) aligned ??= model;
        options.afterPass?.(name, model, changed, milliseconds);
      },
    },
    prepared.facts,
  );
  const state = finished.stopped ? options.state : takenState(options.state, before);
  const model = finished.stopped
    ? finished.model
    : described(finished.model, before, prepared.sources, { ...options, state });
  let written: Written | null = null;
  if (options.output !== null && !finished.stopped) {
    options.onProgress?.(`writing ${options.output}`);
    const { output } = options;
    const text = options.decided?.()?.text ?? null;
    written = await writeModel(model, output, {
      externalData: options.externalData ?? "auto",
      companions: text === null ? [] : [{ path: `${output}.recipe.yaml`, text }],
      outdated: [`${output}.recipe.yaml`],
    });
  }
  if (!finished.stopped) {
    // What writing would refuse, a dry run refuses too.
    if (written === null && known.length > 0) readHalves(model.graph);
    for (const tell of known) tell();
  }
  remarks.push(...calibrationRemarks(calibration, options.calibration));
  return report(
    { ...options, state },
    prepared,
    model,
    aligned ?? complete ?? main,
    before,
    remarks,
    written,
    calibration,
  );
}

/** The steps, of which the one that completes the states refuses graphs whose results would depend on where calls end. */
function carrying(
  steps: readonly Step[],
  vocabulary: number,
  { threads = 1 }: CompileOptions,
  { executable }: CompilerPasses,
): Step[] {
  return steps.map((step) => {
    if (step.name !== COMPLETE) return step;
    const run: Step["run"] = async (...given) => {
      const result = await step.run(...given);
      await requireCarried(result.model, { executable, vocabulary, threads });
      return result;
    };
    return { ...step, run };
  });
}

function pipelineHooks(options: PrepareOptions, remarks: Remark[]): PipelineHooks {
  return {
    execute: executor(options.threads ?? 1),
    report: (remark) => {
      remarks.push(remark);
      options.onRemark?.(remark);
    },
    now: () => performance.now(),
    ...(options.afterPass === undefined ? {} : { afterPass: options.afterPass }),
    ...(options.onFailure === undefined ? {} : { onFailure: options.onFailure }),
    ...(options.stopAfter === undefined ? {} : { stopAfter: options.stopAfter }),
  };
}

/** The model with what mambac says about itself in the metadata; no dates, hosts or paths. */
function described(
  model: Model,
  ops: readonly SemanticOp[],
  sources: readonly Source[],
  { state, ...options }: CompileOptions,
): Model {
  const named = withStateNames(withPlainDims(model, ops), ops);
  const metadata = new Map(named.metadata);
  metadata.set("mambac.version", VERSION);
  metadata.set("mambac.source_sha256", sources.map((source) => source.sha256).join(" "));
  metadata.set("mambac.state", stateText(state));
  if (options.float === "f16") metadata.set("mambac.float", options.float);
  const recipe = options.decided?.()?.recipe ?? options.recipe ?? null;
  if (recipe !== null) metadata.set("mambac.recipe", JSON.stringify(recipe));
  return { ...named, producerName: "mambac", producerVersion: VERSION, metadata };
}

/** `h4 dsq-max requantize=call`, or `... requantize=replay R=16`. */
export function stateText(state: StateChoice): string {
  if (state.format === "f32") return "f32";
  const scale = state.format === "f16" ? "" : ` ${state.scale}`;
  return `${state.format}${scale} requantize=${state.requantize}${replayText(state)}`;
}

/** The choice as the layers could take it: without replay, static scales or any state, where none of them has it. */
function takenState(choice: StateChoice, ops: readonly SemanticOp[]): StateChoice {
  const scans = ops.flatMap((op) => (op.kind === "scan" ? [op] : []));
  const states = scans.map(({ state }) => state);
  // Nothing is kept between calls, so nothing is rounded.
  if (scans.length > 0 && scans.every(({ stateless }) => stateless !== undefined)) return FLOAT_STATE;
  if (isStatic(choice)) return states.find(isStatic) ?? states[0] ?? choice;
  if (choice.requantize !== "replay") return choice;
  return states.find(({ requantize }) => requantize === "replay") ?? states[0] ?? choice;
}

function report(
  options: CompileOptions,
  { sources, warnings }: Prepared,
  model: Model,
  aligned: Model,
  ops: readonly SemanticOp[],
  remarks: readonly Remark[],
  written: Written | null,
  calibration: DatasetDescription | null,
): CompileReport {
  const tokens = tokenInput(model.graph)?.type;
  const batch = (tokens?.kind === "tensor" ? tokens.shape?.[0] : null) ?? "batch_size";
  return {
    inputs: sources,
    rows: ops.map((op) => layerRow(op, batch, options.float)),
    remarks,
    warnings,
    state: options.state,
    model,
    aligned,
    written,
    weightBytes: totalBytes(model),
    calibration,
  };
}

/** Fewer tokens than this say little, where more were asked for. */
const FEW_TOKENS = 1024;

function calibrationRemarks(data: DatasetDescription | null, asked: CalibrationData | undefined): Remark[] {
  if (data === null) return [];
  const warning = (code: string, message: string): Remark => ({
    pass: "calibration",
    kind: "warning",
    code: `calibration/${code}`,
    where: "data",
    message,
  });
  const short = typeof asked?.samples === "number" && data.sequences < asked.samples && data.tokens < FEW_TOKENS;
  return [
    ...(data.random ? [warning("random", "the data are made up: ranges from them are no basis for a release")] : []),
    ...(short
      ? [warning("few", `there are ${data.tokens} tokens only: ranges from so few are chance; give more`)]
      : []),
  ];
}

/** The row of one semantic operator; `batch` as the token input has it. */
function layerRow(op: SemanticOp, batch: Dim, float: FloatType = "f32"): LayerRow {
  const slots = stateSlots(op);
  const plain: SemanticOp = op.kind === "scan" ? { ...op, state: { ...op.state, format: "f32" } } : op;
  const bytes = (of: SemanticOp, type: FloatType): number =>
    stateSlots(of).reduce((sum, slot) => sum + stateBytes(slot, type), 0);
  return {
    layer: op.layer,
    kind: op.kind,
    form: op.kind === "attention" ? "softmax" : op.kind === "scan" ? `${op.family} ${op.form}` : op.form,
    error: op.error,
    sizes: sizesText(op),
    states: slots.map((slot) => ({
      past: op.node.inputs[slot.input] ?? "",
      present: op.node.outputs[slot.output] ?? "",
      type: formatType(slotType(slot, batch, op.node.inputs[slot.input] ?? "", float).type),
    })),
    bytesBefore: bytes(plain, "f32"),
    bytesAfter: bytes(op, float),
  };
}

function replayText({ requantize, replayLength }: StateChoice): string {
  return requantize === "replay" ? ` R=${replayLength ?? DEFAULT_REPLAY_LENGTH}` : "";
}

function sizesText(op: SemanticOp): string {
  switch (op.kind) {
    case "scan":
      return op.family === "mamba1"
        ? `E=${op.heads} N=${op.dState} G=${op.groups}`
        : `H=${op.heads} P=${op.headDim} N=${op.dState} G=${op.groups}${replayText(op.state)}`;
    case "conv":
      return `E=${op.channels} K=${op.kernelSize} W=${op.stateWidth}${op.activation === "silu" ? " SiLU" : ""}`;
    default:
      return `Hq=${op.heads} Hkv=${op.kvHeads} d=${op.headDim}`;
  }
}
