/**
 * How well a model predicts a text, and how far it is from another model.
 *
 * Protocol: the first `windows` windows of `window` tokens, side by side without overlap; zero state at the start of
 * each; the cross-entropy of the token after each, so `window` predictions a window (the last one is about the token that
 * begins the next window). `call` feeds a window in one call. `token` feeds one token a call, so that a quantized state is rounded after every token: the figure to
 * quote for quantized states.
 */

import { MambacError } from "../support/errors.js";
import { type Logits, logitsRow } from "./logits.js";
import type { LoadedPackage, Tokens } from "./stateful-model.js";
import { byteTokenizer, type Tokenizer } from "./tokenizer.js";

export type EvaluateMode = "token" | "call";

export interface EvaluateOptions {
  /** Loaded with a batch of as many windows as are to run together: all of them is fastest. */
  readonly model: LoadedPackage;
  /** A model to compare with, of the same batch and vocabulary; usually the float source. */
  readonly reference?: LoadedPackage;
  /** The text: bytes or a string to be tokenized, or token ids. */
  readonly text: Uint8Array | string | readonly number[];
  /** Default: bytes as tokens. */
  readonly tokenizer?: Tokenizer;
  /** Tokens a window; default 512. */
  readonly window?: number;
  /** Default 12. */
  readonly windows?: number;
  /** Default 'token'. */
  readonly mode?: EvaluateMode;
  /** Told the share of predictions made so far. */
  readonly onProgress?: (share: number) => void;
}

export interface Evaluation {
  readonly mode: EvaluateMode;
  readonly window: number;
  readonly windows: number;
  /** Predictions scored. */
  readonly predictions: number;
  readonly bitsPerToken: number;
  /** Null when the text was given as ids without a tokenizer. */
  readonly bitsPerByte: number | null;
  readonly perplexity: number;
  /** Mean bits per token of each window. */
  readonly windowBits: readonly number[];
  /** Share of predictions whose best token is the true one. */
  readonly top1: number;
  /** Predictions with a logit that is not finite; the other figures are then NaN or infinite. */
  readonly nonFinite: number;
  readonly comparison: Comparison | null;
}

export interface Comparison {
  /** The reference's own score on the same predictions. */
  readonly referenceBitsPerToken: number;
  /** Kullback-Leibler divergence of the model from the reference, KL(reference || model), in bits. */
  readonly meanKlBits: number;
  readonly p99KlBits: number;
  readonly maxKlBits: number;
  /** Share of predictions where both have the same best token. */
  readonly top1Agreement: number;
}

/** Evaluates a model; its state is used and left at zero. Throws `evaluate/...` for texts or models that do not fit. */
export async function evaluate(options: EvaluateOptions): Promise<Evaluation> {
  const { model, reference } = options;
  const window = options.window ?? 512;
  const windows = options.windows ?? 12;
  const mode = options.mode ?? "token";
  requireCounts(window, windows);
  if (reference !== undefined && reference.batch !== model.batch) {
    throw new MambacError("evaluate/batch", `the models have batches ${model.batch} and ${reference.batch}`);
  }
  const needed = window * windows + 1;
  const { ids, tokenizer } = tokensOf(options, needed);
  if (ids.length < needed) {
    throw new MambacError(
      "evaluate/text",
      `the text has ${ids.length} tokens, but ${windows} windows of ${window} need ${needed} (with the one after)`,
    );
  }
  const parts = Array.from({ length: windows }, (_, i) => ids.slice(i * window, (i + 1) * window));
  const score = new Score(windows, window);
  for (let first = 0; first < windows; first += model.batch) {
    const count = Math.min(model.batch, windows - first);
    // A last group that is not full repeats a window; its extra results are not counted.
    const rows = Array.from({ length: model.batch }, (_, i) => parts[first + Math.min(i, count - 1)] ?? []);
    const own = await source(model, rows, mode);
    const other = reference === undefined ? null : await source(reference, rows, referenceMode(reference, mode));
    for (let t = 0; t < window; t++) {
      const logits = await own.at(t);
      const compared = other === null ? null : await other.at(t);
      for (let i = 0; i < count; i++) {
        const target = ids[(first + i) * window + t + 1] ?? 0;
        score.add(first + i, row(logits, i), target, compared === null ? null : row(compared, i));
      }
    }
    options.onProgress?.((first + count) / windows);
  }
  model.reset();
  reference?.reset();
  const bytes = tokenizer === null ? null : byteLength(tokenizer, ids.slice(1, needed));
  return { mode, window, windows, ...score.result(bytes, reference !== undefined) };
}

function requireCounts(window: number, windows: number): void {
  if (Number.isInteger(window) && window >= 1 && Number.isInteger(windows) && windows >= 1) return;
  throw new MambacError("evaluate/window", `cannot evaluate ${windows} windows of ${window} tokens`);
}

function tokensOf(
  options: EvaluateOptions,
  needed: number,
): { readonly ids: readonly number[]; readonly tokenizer: Tokenizer | null } {
  const { text, tokenizer = byteTokenizer } = options;
  if (typeof text !== "string" && !(text instanceof Uint8Array)) {
    return { ids: text, tokenizer: options.tokenizer ?? null };
  }
  if (tokenizer.kind === "bytes") {
    // Bytes stay bytes, whatever their encoding.
    const bytes = typeof text === "string" ? new TextEncoder().encode(text) : text;
    return { ids: Array.from(bytes.subarray(0, needed)), tokenizer };
  }
  const string = typeof text === "string" ? text : new TextDecoder().decode(text);
  return { ids: tokenizer.encode(string, false), tokenizer };
}

function byteLength(tokenizer: Tokenizer, ids: readonly number[]): number {
  return tokenizer.kind === "bytes" ? ids.length : Buffer.byteLength(tokenizer.decode(ids), "utf8");
}

/** A plain forward graph cannot step; its logits do not depend on how tokens are fed. */
function referenceMode(reference: LoadedPackage, mode: EvaluateMode): EvaluateMode {
  return reference.stateful ? mode : "call";
}

interface Located {
  readonly logits: Logits;
  readonly position: number;
}

interface LogitsSource {
  at(position: number): Promise<Located>;
}

async function source(model: LoadedPackage, rows: readonly Tokens[], mode: EvaluateMode): Promise<LogitsSource> {
  model.reset();
  if (mode === "token") {
    return { at: async (t) => ({ logits: await model.step(rows.map((ids) => ids[t] ?? 0)), position: 0 }) };
  }
  const logits = await model.prefill(rows);
  const length = rows[0]?.length ?? 0;
  if (logits.length !== length) {
    throw new MambacError(
      "evaluate/logits",
      `the model gives logits for ${logits.length} of ${length} positions; evaluate it with mode 'token'`,
    );
  }
  return { at: async (position) => ({ logits, position }) };
}

function row(located: Located, slot: number): Float32Array {
  return logitsRow(located.logits, slot, located.position);
}

/** Sums of a running evaluation. */
class Score {
  readonly #windowBits: Float64Array;
  readonly #perWindow: number;
  readonly #kl: number[] = [];
  #hits = 0;
  #agreements = 0;
  #nonFinite = 0;
  #referenceBits = 0;

  constructor(windows: number, perWindow: number) {
    this.#windowBits = new Float64Array(windows);
    this.#perWindow = perWindow;
  }

  add(window: number, logits: Float32Array, target: number, reference: Float32Array | null): void {
    if (target >= logits.length) {
      throw new MambacError(
        "evaluate/vocabulary",
        `the text has token ${target}, but the model knows ${logits.length}; use the model's tokenizer`,
      );
    }
    const own = normalise(logits);
    if (!own.finite) this.#nonFinite += 1;
    this.#windowBits[window]! += (own.logSum - logits[target]!) / Math.LN2;
    if (own.best === target) this.#hits += 1;
    if (reference === null) return;
    if (reference.length !== logits.length) {
      throw new MambacError("evaluate/vocabulary", `vocabularies of ${logits.length} and ${reference.length} differ`);
    }
    const other = normalise(reference);
    this.#referenceBits += (other.logSum - reference[target]!) / Math.LN2;
    if (own.best === other.best) this.#agreements += 1;
    let kl = 0;
    for (let i = 0; i < logits.length; i++) {
      const logP = reference[i]! - other.logSum;
      const p = Math.exp(logP);
      if (p > 0) kl += p * (logP - (logits[i]! - own.logSum));
    }
    this.#kl.push(kl / Math.LN2);
  }

  result(bytes: number | null, compared: boolean): Omit<Evaluation, "mode" | "window" | "windows"> {
    const predictions = this.#windowBits.length * this.#perWindow;
    const total = this.#windowBits.reduce((sum, bits) => sum + bits, 0);
    const kl = this.#kl.toSorted((a, b) => a - b);
    return {
      predictions,
      bitsPerToken: total / predictions,
      bitsPerByte: bytes === null ? null : total / bytes,
      perplexity: 2 ** (total / predictions),
      windowBits: Array.from(this.#windowBits, (bits) => bits / this.#perWindow),
      top1: this.#hits / predictions,
      nonFinite: this.#nonFinite,
      comparison: compared
        ? {
            referenceBitsPerToken: this.#referenceBits / predictions,
            meanKlBits: kl.reduce((sum, value) => sum + value, 0) / predictions,
            p99KlBits: kl[Math.ceil(0.99 * kl.length) - 1] ?? Number.NaN,
            maxKlBits: kl.at(-1) ?? Number.NaN,
            top1Agreement: this.#agreements / predictions,
          }
        : null,
    };
  }
}

/** Logarithm of the sum of exponentials, and the best index. */
function normalise(logits: Float32Array): { readonly logSum: number; readonly best: number; readonly finite: boolean } {
  let best = 0;
  let finite = true;
  for (let i = 0; i < logits.length; i++) {
    if (!Number.isFinite(logits[i]!)) finite = false;
    if (logits[i]! > logits[best]!) best = i;
  }
  const top = logits[best]!;
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - top);
  return { logSum: top + Math.log(sum), best, finite };
}
