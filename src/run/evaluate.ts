/**
 * How well a model predicts a text, and how far it is from another model.
 *
 * Protocol: the first `windows` windows of `window` tokens, side by side without overlap; zero state at the start of
 * each; the cross-entropy of the token after each, so `window` predictions a window (the last one is about the token that
 * begins the next window). `call` feeds a window in one call. `token` feeds one token a call, so that a quantized state is rounded after every token: the figure to
 * quote for quantized states.
 */

import { MambacError } from "../support/errors.js";
import { klBits, summarise } from "./logits.js";
import { type EvaluateMode, logitsSource, possibleMode } from "./logits-source.js";
import { RecordedLogits } from "./recorded-logits.js";
import type { LoadedPackage } from "./stateful-model.js";
import { byteTokenizer, type Tokenizer } from "./tokenizer.js";

/** Sequences with the token to predict after each of their tokens but the last: all of one length. */
export interface Passages {
  readonly sequences: readonly ArrayLike<number>[];
}

export interface EvaluateOptions {
  /** Loaded with a batch of as many windows as are to run together: all of them is fastest. */
  readonly model: LoadedPackage;
  /** A model to compare with, of the same batch and vocabulary, or its logits on this text; usually the float source. */
  readonly reference?: LoadedPackage | RecordedLogits;
  /** Takes the model's own logits. As the reference, too, it compares the model with itself. */
  readonly record?: RecordedLogits;
  /** The text: bytes or a string to be tokenized, or token ids; or passages, each a window and the token after it. */
  readonly text: Uint8Array | string | readonly number[] | Passages;
  /** Default: bytes as tokens. */
  readonly tokenizer?: Tokenizer;
  /** Tokens a window; default 512. */
  readonly window?: number;
  /** Default 12. */
  readonly windows?: number;
  /** Default 'token'. */
  readonly mode?: EvaluateMode;
  /** How the reference is fed; default: as the model. Makes no difference for a float state but for speed. */
  readonly referenceMode?: EvaluateMode;
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
  /** The same figures by how far into its window a prediction is: what drifts shows here. */
  readonly positions: readonly PositionRange[];
  /** Share of predictions whose best token is the true one. */
  readonly top1: number;
  /** Predictions with a logit that is not finite; the other figures are then NaN or infinite. */
  readonly nonFinite: number;
  readonly comparison: Comparison | null;
}

/** Predictions after the tokens [from, to) of each window. */
export interface PositionRange {
  readonly from: number;
  readonly to: number;
  readonly bitsPerToken: number;
  /** Null without a reference. */
  readonly meanKlBits: number | null;
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
  const { model, record } = options;
  const recorded = options.reference instanceof RecordedLogits ? options.reference : null;
  const reference = options.reference instanceof RecordedLogits ? undefined : options.reference;
  const mode = options.mode ?? "token";
  if (reference !== undefined && reference.batch !== model.batch) {
    throw new MambacError("evaluate/batch", `the models have batches ${model.batch} and ${reference.batch}`);
  }
  const { passages, bytes } = passagesOf(options);
  const windows = passages.length;
  const window = (passages[0]?.length ?? 0) - 1;
  requireCounts(window, windows);
  const score = new Score(windows, window);
  for (let first = 0; first < windows; first += model.batch) {
    const count = Math.min(model.batch, windows - first);
    // A last group that is not full repeats a window; its extra results are not counted.
    const rows = Array.from({ length: model.batch }, (_, i) =>
      Array.from(passages[first + Math.min(i, count - 1)] ?? []).slice(0, window),
    );
    const own = await logitsSource(model, rows, mode);
    const other =
      reference === undefined
        ? null
        : await logitsSource(reference, rows, possibleMode(reference, options.referenceMode ?? mode));
    for (let t = 0; t < window; t++) {
      const logits = await own.at(t);
      const compared = other === null ? null : await other.at(t);
      for (let i = 0; i < count; i++) {
        const target = passages[first + i]?.[t + 1] ?? 0;
        const row = logits(i);
        record?.add(first + i, t, row);
        score.add(first + i, t, row, target, recorded?.row(first + i, t) ?? compared?.(i) ?? null);
      }
    }
    options.onProgress?.((first + count) / windows);
  }
  model.reset();
  reference?.reset();
  return { mode, window, windows, ...score.result(bytes, options.reference !== undefined) };
}

/** Windows with the token after each, and the bytes of what is predicted; null where they are not known. */
function passagesOf(options: EvaluateOptions): {
  readonly passages: readonly ArrayLike<number>[];
  readonly bytes: number | null;
} {
  const { text, tokenizer } = options;
  if (isPassages(text)) {
    const [first, ...others] = text.sequences;
    if (first === undefined || others.some(({ length }) => length !== first.length)) {
      throw new MambacError("evaluate/text", "the passages to evaluate are not of one length, or there are none");
    }
    const bytes =
      tokenizer === undefined
        ? null
        : text.sequences.reduce((sum, ids) => sum + byteLength(tokenizer, Array.from(ids).slice(1)), 0);
    return { passages: text.sequences, bytes };
  }
  const [window, windows] = [options.window ?? 512, options.windows ?? 12];
  requireCounts(window, windows);
  const needed = window * windows + 1;
  const read = tokensOf(text, tokenizer, needed);
  if (read.ids.length < needed) {
    throw new MambacError(
      "evaluate/text",
      `the text has ${read.ids.length} tokens, but ${windows} windows of ${window} need ${needed} (with the one after): ` +
        "give a longer text, or fewer or shorter windows",
    );
  }
  return {
    passages: Array.from({ length: windows }, (_, i) => read.ids.slice(i * window, (i + 1) * window + 1)),
    bytes: read.tokenizer === null ? null : byteLength(read.tokenizer, read.ids.slice(1, needed)),
  };
}

function isPassages(text: EvaluateOptions["text"]): text is Passages {
  return typeof text === "object" && "sequences" in text;
}

function requireCounts(window: number, windows: number): void {
  if (Number.isInteger(window) && window >= 1 && Number.isInteger(windows) && windows >= 1) return;
  throw new MambacError("evaluate/window", `cannot evaluate ${windows} windows of ${window} tokens`);
}

function tokensOf(
  text: Uint8Array | string | readonly number[],
  given: Tokenizer | undefined,
  needed: number,
): { readonly ids: readonly number[]; readonly tokenizer: Tokenizer | null } {
  const tokenizer = given ?? byteTokenizer;
  if (typeof text !== "string" && !(text instanceof Uint8Array)) {
    return { ids: text, tokenizer: given ?? null };
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

/** Sums of a running evaluation. */
class Score {
  readonly #windowBits: Float64Array;
  readonly #positionBits: Float64Array;
  readonly #positionKl: Float64Array;
  readonly #perWindow: number;
  readonly #kl: number[] = [];
  #hits = 0;
  #agreements = 0;
  #nonFinite = 0;
  #referenceBits = 0;

  constructor(windows: number, perWindow: number) {
    this.#windowBits = new Float64Array(windows);
    this.#positionBits = new Float64Array(perWindow);
    this.#positionKl = new Float64Array(perWindow);
    this.#perWindow = perWindow;
  }

  add(window: number, position: number, logits: Float32Array, target: number, reference: Float32Array | null): void {
    if (target >= logits.length) {
      throw new MambacError(
        "evaluate/vocabulary",
        `the text has token ${target}, but the model knows ${logits.length}; use the model's tokenizer`,
      );
    }
    const own = summarise(logits);
    if (!own.finite) this.#nonFinite += 1;
    const bits = (own.logSum - logits[target]!) / Math.LN2;
    this.#windowBits[window]! += bits;
    this.#positionBits[position]! += bits;
    if (own.best === target) this.#hits += 1;
    if (reference === null) return;
    if (reference.length !== logits.length) {
      throw new MambacError("evaluate/vocabulary", `vocabularies of ${logits.length} and ${reference.length} differ`);
    }
    const other = summarise(reference);
    this.#referenceBits += (other.logSum - reference[target]!) / Math.LN2;
    if (own.best === other.best) this.#agreements += 1;
    const kl = klBits(reference, other.logSum, logits, own.logSum);
    this.#kl.push(kl);
    this.#positionKl[position]! += kl;
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
      positions: this.#positions(compared),
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

  #positions(compared: boolean): PositionRange[] {
    const windows = this.#windowBits.length;
    return positionRanges(this.#perWindow).map(({ from, to }) => {
      const mean = (sums: Float64Array): number =>
        sums.subarray(from, to).reduce((sum, value) => sum + value, 0) / ((to - from) * windows);
      return {
        from,
        to,
        bitsPerToken: mean(this.#positionBits),
        meanKlBits: compared ? mean(this.#positionKl) : null,
      };
    });
  }
}

/** The first 16 positions, then as many again and again; the last range ends with the window. */
function positionRanges(window: number): { readonly from: number; readonly to: number }[] {
  const ranges: { readonly from: number; readonly to: number }[] = [];
  for (let from = 0; from < window; ) {
    const to = Math.min(window, Math.max(16, 2 * from));
    ranges.push({ from, to });
    from = to;
  }
  return ranges;
}
