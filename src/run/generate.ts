/** Generating tokens from a model that carries its state. */

import { MambacError } from "../support/errors.js";
import { Random } from "../support/random.js";
import { logitsRow } from "./logits.js";
import { checkSampling, type SamplingOptions, sampleToken } from "./sampling.js";
import type { LoadedPackage, Tokens } from "./stateful-model.js";

export interface GenerateOptions extends SamplingOptions {
  readonly maxTokens: number;
  /** Default 0. Equal seeds, prompts and models give equal tokens. */
  readonly seed?: number | bigint;
  /** Generation of a sequence ends before one of these; they are not part of the result. */
  readonly stopTokens?: readonly number[];
  /** Called with each new token as it is chosen. */
  readonly onToken?: (token: number, slot: number) => void;
  /** Stops after the current token. */
  readonly signal?: AbortSignal;
}

export interface Generated {
  readonly tokens: readonly number[];
  readonly end: "length" | "stop" | "aborted";
}

/** Continues one prompt on a model of batch 1, from its present state. Throws `run/...`. */
export async function generate(model: LoadedPackage, prompt: Tokens, options: GenerateOptions): Promise<Generated> {
  if (model.batch !== 1) {
    throw new MambacError("run/batch", `generate needs a model of batch 1, not ${model.batch}; use generateBatch`);
  }
  const [result] = await generateBatch(model, [prompt], options);
  if (result === undefined) throw new MambacError("run/batch", "there is no sequence to continue");
  return result;
}

/**
 * Continues one prompt a slot, from the slots' present state. Prompts may differ in length where the model can fill
 * slots one by one. Each slot has random numbers of its own, so results do not depend on the other slots. Ended
 * sequences idle until the last one ends; reset the model before using it again.
 */
export async function generateBatch(
  model: LoadedPackage,
  prompts: readonly Tokens[],
  options: GenerateOptions,
): Promise<Generated[]> {
  checkSampling(options);
  if (!Number.isInteger(options.maxTokens) || options.maxTokens < 1) {
    throw new MambacError("run/generate", `maxTokens must be a positive integer, not ${options.maxTokens}`);
  }
  const rows = await firstLogits(model, prompts);
  const root = new Random(options.seed ?? 0);
  const random = prompts.map((_, slot) => root.split(`slot ${slot}`));
  const stops = new Set(options.stopTokens);
  const tokens: number[][] = prompts.map(() => []);
  const ends: (Generated["end"] | null)[] = prompts.map(() => null);
  const last = prompts.map(() => 0);
  for (;;) {
    for (const [slot, row] of rows.entries()) {
      const sequence = tokens[slot];
      const source = random[slot];
      if (sequence === undefined || source === undefined || ends[slot] !== null) continue;
      const token = sampleToken(row, options, source);
      last[slot] = token;
      if (stops.has(token)) ends[slot] = "stop";
      else {
        sequence.push(token);
        options.onToken?.(token, slot);
        if (sequence.length === options.maxTokens) ends[slot] = "length";
        else if (options.signal?.aborted === true) ends[slot] = "aborted";
      }
    }
    if (ends.every((end) => end !== null)) break;
    const logits = await model.step(last);
    rows.forEach((_, slot) => {
      rows[slot] = logitsRow(logits, slot);
    });
  }
  return tokens.map((sequence, slot) => ({ tokens: sequence, end: ends[slot] ?? "length" }));
}

async function firstLogits(model: LoadedPackage, prompts: readonly Tokens[]): Promise<Float32Array[]> {
  if (prompts.length !== model.batch) {
    throw new MambacError("run/batch", `the model has ${model.batch} slots, but there are ${prompts.length} prompts`);
  }
  if (!model.stateful) {
    throw new MambacError("run/stateless", "the model has no state to generate with; compile it with mambac first");
  }
  if (prompts.every((prompt) => prompt.length === prompts[0]?.length)) {
    const logits = await model.prefill(prompts);
    return prompts.map((_, slot) => logitsRow(logits, slot));
  }
  const rows: Float32Array[] = [];
  for (const [slot, prompt] of prompts.entries()) rows.push(logitsRow(await model.prefill(prompt, slot)));
  return rows;
}
