/** One model compiled by many recipes, each measured in the same way: loss, distance from float, bytes, kernels. */

import { rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CompileOptions, type CompilerPasses, compilePrepared, type Prepared } from "./compile.js";
import type { Model } from "./ir/graph.js";
import { TemporaryFiles } from "./onnx/temporary-files.js";
import type { FloatType } from "./ops/names.js";
import type { StateChoice } from "./rewrite/semantic.js";
import { type EvaluateOptions, evaluate } from "./run/evaluate.js";
import { type KernelCensus, kernelCensus } from "./run/kernel-census.js";
import type { LibraryChoice } from "./run/locate.js";
import { RecordedLogits } from "./run/recorded-logits.js";
import { readSignature } from "./run/signature.js";
import { type LoadedPackage, type LoadOptions, loadPackage } from "./run/stateful.js";
import type { Tokenizer } from "./run/tokenizer.js";

/** A way to compile. The first one of a comparison should be the float model. */
export interface Candidate {
  readonly name: string;
  readonly state: StateChoice;
  /** Element type of weights and activations; f32 unless given. */
  readonly float?: FloatType;
  readonly passes: CompilerPasses;
}

/** What models are judged by. */
export interface ComparedText {
  readonly name: string;
  readonly text: EvaluateOptions["text"];
}

export interface CompareOptions {
  readonly prepared: Prepared;
  readonly inputs: readonly string[];
  /** The model the others are compared with: float weights and a float state. */
  readonly reference: Candidate;
  readonly candidates: readonly Candidate[];
  readonly texts: readonly ComparedText[];
  readonly tokenizer?: Tokenizer;
  readonly window: number;
  readonly windows: number;
  readonly calibration?: NonNullable<CompileOptions["calibration"]>;
  readonly tables?: NonNullable<CompileOptions["tables"]>;
  readonly threads?: number;
  readonly library?: LibraryChoice;
  readonly onProgress?: (message: string) => void;
}

/** Figures of one candidate on one text. */
export interface TextFigures {
  readonly text: string;
  readonly bitsPerToken: number;
  /** Null where tokens are no bytes and no tokenizer tells how many they stand for. */
  readonly bitsPerByte: number | null;
  readonly perplexity: number;
  /** Loss against the reference: its bits per token are 1. 0.01 is one percent more. */
  readonly change: number;
  readonly meanKlBits: number;
  readonly top1Agreement: number;
  readonly nonFinite: number;
}

export interface ComparedRow {
  readonly name: string;
  readonly state: StateChoice;
  /** `token` where a quantized state was rounded at every token. */
  readonly mode: "token" | "call";
  readonly texts: readonly TextFigures[];
  /** Mean over the texts. */
  readonly change: number;
  readonly meanKlBits: number;
  readonly top1Agreement: number;
  readonly perplexity: number;
  /** Bytes of the file, with its weights. */
  readonly bytes: number;
  /** Bytes of the state of one sequence. */
  readonly stateBytes: number;
  readonly kernels: KernelCensus;
}

/** Logits held at a time sets how many windows run together. */
const LOGIT_BYTES = 2 ** 28;

/** The reference's logits are kept where those of all texts fit. */
const KEPT_BYTES = 2 ** 28;

/**
 * Compiles and measures; nothing is left behind. The reference comes first in the result. Figures of a quantized state are
 * of a state rounded at every token. Throws what compiling and evaluating throw.
 */
export async function compareCandidates(options: CompareOptions): Promise<ComparedRow[]> {
  const temporary = new TemporaryFiles();
  const folder = temporary.folder(tmpdir(), "mambac-compare-");
  try {
    const reference = { path: join(folder, "reference.onnx"), logits: new Map<ComparedText, RecordedLogits>() };
    const rows = [await measure(options, options.reference, reference.path, reference)];
    for (const candidate of options.candidates) {
      const path = join(folder, "candidate.onnx");
      rows.push(await measure(options, candidate, path, reference));
      for (const part of [path, `${path}.data`]) rmSync(part, { force: true });
    }
    return rows;
  } finally {
    temporary.close();
  }
}

/** What candidates are compared with. */
interface Reference {
  readonly path: string;
  /** Its logits on the texts; the model runs again for those that are not here. */
  readonly logits: Map<ComparedText, RecordedLogits>;
}

async function measure(
  options: CompareOptions,
  candidate: Candidate,
  path: string,
  reference: Reference,
): Promise<ComparedRow> {
  options.onProgress?.(`compiling ${candidate.name}`);
  const { state, name, float = "f32" } = candidate;
  const report = await compilePrepared(
    options.prepared,
    {
      inputs: options.inputs,
      output: path,
      state,
      float,
      threads: options.threads ?? 1,
      ...(options.calibration === undefined ? {} : { calibration: options.calibration }),
      ...(options.tables === undefined ? {} : { tables: options.tables }),
    },
    candidate.passes,
  );
  const kernels = await kernelCensus(path);
  options.onProgress?.(`measuring ${name}`);
  const mode = state.format === "f32" ? "call" : "token";
  const texts = await allFigures(options, report.model, path, reference, mode);
  const mean = (of: (entry: TextFigures) => number): number =>
    texts.reduce((sum, entry) => sum + of(entry), 0) / texts.length;
  return {
    name,
    state,
    mode,
    texts,
    change: mean(({ change }) => change),
    meanKlBits: mean(({ meanKlBits }) => meanKlBits),
    top1Agreement: mean(({ top1Agreement }) => top1Agreement),
    perplexity: 2 ** mean(({ bitsPerToken }) => bitsPerToken),
    bytes: (report.written?.model.bytes ?? 0) + (report.written?.data?.bytes ?? 0),
    stateBytes: report.rows.reduce((sum, { bytesAfter }) => sum + bytesAfter, 0),
    kernels,
  };
}

async function allFigures(
  options: CompareOptions,
  compiled: Model,
  path: string,
  reference: Reference,
  mode: "token" | "call",
): Promise<TextFigures[]> {
  const { texts, windows, window } = options;
  const vocabulary = vocabularyOf(compiled);
  const batch = Math.max(1, Math.min(windows, Math.floor(LOGIT_BYTES / RecordedLogits.bytes(1, window, vocabulary))));
  const settings: LoadOptions = { batch, threads: options.threads ?? 1, library: options.library ?? "auto" };
  const isReference = path === reference.path;
  if (isReference && texts.length * RecordedLogits.bytes(windows, window, vocabulary) <= KEPT_BYTES) {
    for (const text of texts) reference.logits.set(text, new RecordedLogits(windows, window));
  }
  await using model = await loadPackage(path, settings);
  await using other = reference.logits.size > 0 ? null : await loadPackage(reference.path, settings);
  const found: TextFigures[] = [];
  for (const text of texts) {
    const logits = reference.logits.get(text);
    found.push(
      await figures(options, text, { model, other: logits ?? other, mode, record: isReference ? logits : undefined }),
    );
  }
  return found;
}

async function figures(
  { window, windows, tokenizer }: CompareOptions,
  { name, text }: ComparedText,
  run: {
    readonly model: LoadedPackage;
    readonly other: LoadedPackage | RecordedLogits | null;
    readonly mode: "token" | "call";
    readonly record: RecordedLogits | undefined;
  },
): Promise<TextFigures> {
  const result = await evaluate({
    model: run.model,
    ...(run.other === null ? {} : { reference: run.other }),
    ...(run.record === undefined ? {} : { record: run.record }),
    text,
    window,
    windows,
    mode: run.mode,
    referenceMode: "call",
    ...(tokenizer === undefined ? {} : { tokenizer }),
  });
  const { comparison } = result;
  return {
    text: name,
    bitsPerToken: result.bitsPerToken,
    bitsPerByte: result.bitsPerByte,
    perplexity: result.perplexity,
    change: result.bitsPerToken / (comparison?.referenceBitsPerToken ?? Number.NaN) - 1,
    meanKlBits: comparison?.meanKlBits ?? Number.NaN,
    top1Agreement: comparison?.top1Agreement ?? Number.NaN,
    nonFinite: result.nonFinite,
  };
}

/** Taken for a vocabulary that the graph does not tell. */
const UNKNOWN_VOCABULARY: number = 2 ** 16;

function vocabularyOf(model: Model): number {
  const vocabulary = readSignature(model).logits.shape.at(-1);
  return typeof vocabulary === "number" ? vocabulary : UNKNOWN_VOCABULARY;
}
