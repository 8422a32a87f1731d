/** How well the demo model predicts its texts when its state is rounded by a scheme after every token. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { f32Tensor, type Tensor } from "../../src/ir/tensor.js";
import type { HeadRounding } from "../../src/ops/reference.js";
import { type StateScheme, schemeRounding } from "../../src/ops/state-schemes.js";
import { evaluate } from "../../src/run/evaluate.js";
import { toFloats } from "../../src/run/logits.js";
import type { LoadedPackage, StateSnapshot } from "../../src/run/stateful-model.js";

export const DEMO: string = join(import.meta.dirname, "..", "..", "examples", "demo");

export const TEXTS = ["kjv", "wordnet", "jargon"] as const;

export const DEMO_TEXTS: readonly string[] = TEXTS.map((name) => join(DEMO, `${name}.txt`));

/** One way to keep the state. */
export interface SchemeRow {
  readonly label: string;
  readonly scheme: (bits: number) => StateScheme;
  /** Tokens between roundings. */
  readonly every: number;
}

type SchemeOf = (bits: number) => StateScheme;

function dsq(norm: "mean" | "max", gamma: number, order: "channel" | "state" = "channel"): SchemeOf {
  return (bits) => ({ kind: "dsq", norm, gamma, order, bits });
}

const tensor: SchemeOf = (bits) => ({ kind: "tensor", bits });
const channel: SchemeOf = (bits) => ({ kind: "channel", bits });
const state: SchemeOf = (bits) => ({ kind: "state", bits });
const group: SchemeOf = (bits) => ({ kind: "group", size: 32, bits });

/** The ways to compare. */
export const SCHEMES: Readonly<
  Record<"tensor" | "channel" | "state" | "group" | "dsq" | "dsqMax" | "swapped" | "noRoot" | "sparse", SchemeRow>
> = {
  tensor: { label: "per tensor", scheme: tensor, every: 1 },
  channel: { label: "per channel", scheme: channel, every: 1 },
  state: { label: "per state", scheme: state, every: 1 },
  group: { label: "per channel, groups of 32", scheme: group, every: 1 },
  dsq: { label: "dsq", scheme: dsq("mean", 0.5), every: 1 },
  dsqMax: { label: "dsq-max", scheme: dsq("max", 1), every: 1 },
  swapped: { label: "dsq, axes swapped", scheme: dsq("mean", 0.5, "state"), every: 1 },
  noRoot: { label: "dsq without square root", scheme: dsq("mean", 1), every: 1 },
  sparse: { label: "dsq-max, every 16 tokens", scheme: dsq("max", 1), every: 16 },
};

/** One figure a text. */
export interface TextScores {
  /** Bits per byte; NaN where the model gave something that is no number. */
  readonly bits: readonly number[];
  /** Divergence from the float model in bits a byte: what is left of `bits` without the luck of the text. */
  readonly divergence: readonly number[];
}

/** Scores on each text (files; of the demo unless told) against a float model: the first `windows` windows of `window` bytes, one token a call. */
export async function textScores(
  model: LoadedPackage,
  reference: LoadedPackage,
  protocol: { readonly windows: number; readonly window: number },
  texts: readonly string[] = DEMO_TEXTS,
): Promise<TextScores> {
  const bits: number[] = [];
  const divergence: number[] = [];
  for (const path of texts) {
    const text = readFileSync(path);
    const result = await evaluate({ model, reference, text, mode: "token", ...protocol });
    bits.push(result.nonFinite > 0 ? Number.NaN : (result.bitsPerByte ?? Number.NaN));
    divergence.push(result.comparison?.meanKlBits ?? Number.NaN);
  }
  return { bits, divergence };
}

/** Change in percent, text by text. */
export function losses(bits: readonly number[], float: readonly number[]): number[] {
  return bits.map((value, i) => 100 * (value / (float[i] ?? Number.NaN) - 1));
}

export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** A model with float state [batch, heads, P, N] whose scan states are rounded by a scheme after `every` steps. */
export class RoundedState implements LoadedPackage {
  readonly #model: LoadedPackage;
  readonly #round: HeadRounding;
  readonly #every: number;
  #steps = 0;

  constructor(model: LoadedPackage, scheme: StateScheme, every: number) {
    this.#model = model;
    this.#round = schemeRounding(scheme);
    this.#every = every;
  }

  get modelPath(): string {
    return this.#model.modelPath;
  }
  get model(): LoadedPackage["model"] {
    return this.#model.model;
  }
  get signature(): LoadedPackage["signature"] {
    return this.#model.signature;
  }
  get backend(): LoadedPackage["backend"] {
    return this.#model.backend;
  }
  get library(): string | null {
    return this.#model.library;
  }
  get batch(): number {
    return this.#model.batch;
  }
  get positions(): readonly number[] {
    return this.#model.positions;
  }
  get stateful(): boolean {
    return this.#model.stateful;
  }
  get statesInPlace(): ReadonlySet<string> {
    return this.#model.statesInPlace;
  }

  async step(...args: Parameters<LoadedPackage["step"]>): ReturnType<LoadedPackage["step"]> {
    const logits = await this.#model.step(...args);
    this.#steps += 1;
    if (this.#steps % this.#every === 0) {
      const { positions, states } = this.#model.snapshot();
      const rounded = [...states].map(([name, tensor]): [string, Tensor] => [name, this.#rounded(tensor)]);
      this.#model.restore({ positions, states: new Map(rounded) });
    }
    return logits;
  }

  /** Scan states have four axes, convolution states three. */
  #rounded(tensor: Tensor): Tensor {
    const [, , headDim, dState] = tensor.shape;
    if (headDim === undefined || dState === undefined) return tensor;
    const values = new Float64Array(toFloats(tensor));
    for (let offset = 0; offset < values.length; offset += headDim * dState)
      this.#round(values, offset, headDim, dState);
    return f32Tensor(tensor.shape, values);
  }

  async prefill(...args: Parameters<LoadedPackage["prefill"]>): ReturnType<LoadedPackage["prefill"]> {
    throw new Error(`a rounded state is fed token by token, not ${args.length} sequences`);
  }

  reset(slot?: number): void {
    this.#steps = 0;
    this.#model.reset(slot);
  }
  snapshot(slot?: number): StateSnapshot {
    return this.#model.snapshot(slot);
  }
  restore(snapshot: StateSnapshot, slot?: number): void {
    this.#model.restore(snapshot, slot);
  }
  executedOps(): ReturnType<LoadedPackage["executedOps"]> {
    return this.#model.executedOps();
  }
  close(): Promise<void> {
    return this.#model.close();
  }
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
