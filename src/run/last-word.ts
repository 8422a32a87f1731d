/**
 * Accuracy on the last word of passages, as LAMBADA measures it: the model reads everything before the last word and must
 * give all of its tokens, each the best one after those before it.
 * Source: D. Paperno et al., "The LAMBADA dataset" (2016); scored as greedy continuation, as language model harnesses do.
 */

import { EXIT, MambacError } from "../support/errors.js";
import { summarise } from "./logits.js";
import { type EvaluateMode, logitsSource, possibleMode } from "./logits-source.js";
import type { LoadedPackage } from "./stateful-model.js";
import type { Tokenizer } from "./tokenizer.js";

/** A passage in tokens; those from `start` on are the last word, with the space before it. */
export interface LastWordPassage {
  readonly ids: readonly number[];
  readonly start: number;
}

export interface LastWordScore {
  readonly passages: number;
  /** Share of passages whose last word is given in full. */
  readonly accuracy: number;
  /** 2 to the mean bits of a last word. */
  readonly perplexity: number;
  /** Passages whose last word got a probability that is no number. */
  readonly nonFinite: number;
}

/** The texts of a JSON Lines file: objects with a `text`. Throws `eval/last-word` (exit code 5) naming the line. */
export function passageTexts(source: string, label: string): string[] {
  const texts = source.split(/\r?\n/).flatMap((line, at) => {
    if (line.trim() === "") return [];
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (cause) {
      throw dataProblem(`${label}:${at + 1}: it is not JSON`, { cause });
    }
    if (typeof value === "object" && value !== null && "text" in value && typeof value.text === "string") {
      return [value.text];
    }
    throw dataProblem(`${label}:${at + 1}: a line must be an object with a text, such as {"text": "..."}`);
  });
  if (texts.length === 0) throw dataProblem(`${label} holds no passage`);
  return texts;
}

/** Tokens of a text, split before its last word; null where there is nothing before it. */
export function splitLastWord(text: string, tokenizer: Tokenizer): LastWordPassage | null {
  const trimmed = text.trimEnd();
  const context = trimmed.replace(/\s+\S+$/u, "");
  if (context === trimmed || context.trim() === "") return null;
  const ids = tokenizer.encode(trimmed, false);
  const start = tokenizer.encode(context, false).length;
  return start >= 1 && start < ids.length ? { ids, start } : null;
}

/**
 * Scores passages; the state of the model is used and left at zero. Throws `eval/last-word` (exit code 5) for tokens the
 * model does not know.
 */
export async function lastWordScore(options: {
  readonly model: LoadedPackage;
  readonly passages: readonly LastWordPassage[];
  readonly mode: EvaluateMode;
  readonly onProgress?: (share: number) => void;
}): Promise<LastWordScore> {
  const { model, passages } = options;
  if (passages.length === 0) throw dataProblem("there is no passage with two words or more");
  const mode = possibleMode(model, options.mode);
  // Passages of about one length run together; what a short one is padded with comes after its end.
  const order = passages.toSorted((a, b) => a.ids.length - b.ids.length);
  let [correct, bits, nonFinite] = [0, 0, 0];
  for (let first = 0; first < order.length; first += model.batch) {
    const group = order.slice(first, first + model.batch);
    const length = Math.max(...group.map(({ ids }) => ids.length)) - 1;
    const rows = Array.from({ length: model.batch }, (_, slot) =>
      Array.from({ length }, (_unused, t) => group[slot]?.ids[t] ?? 0),
    );
    const source = await logitsSource(model, rows, mode);
    const words = group.map(() => ({ right: true, bits: 0 }));
    for (let t = 0; t < length; t++) {
      const row = await source.at(t);
      for (const [slot, { ids, start }] of group.entries()) {
        const target = ids[t + 1];
        const word = words[slot];
        if (target === undefined || t + 1 < start || word === undefined) continue;
        const logits = row(slot);
        if (target >= logits.length) {
          throw dataProblem(`a passage has token ${target}, but the model knows ${logits.length}; use its tokenizer`);
        }
        const { best, logSum } = summarise(logits);
        word.right &&= best === target;
        word.bits += (logSum - (logits[target] ?? 0)) / Math.LN2;
      }
    }
    for (const word of words) {
      bits += word.bits;
      if (!Number.isFinite(word.bits)) nonFinite += 1;
      else if (word.right) correct += 1;
    }
    options.onProgress?.(Math.min(1, (first + group.length) / order.length));
  }
  model.reset();
  return {
    passages: passages.length,
    accuracy: correct / passages.length,
    perplexity: 2 ** (bits / passages.length),
    nonFinite,
  };
}

function dataProblem(message: string, options?: ErrorOptions): MambacError {
  return new MambacError("eval/last-word", message, EXIT.calibration, options);
}
