/** What a benchmark measures, and what it found: plain data, sent between processes. */

import { elementCount, packedBytes } from "../ir/types.js";
import type { Signature } from "./signature.js";

/** One way to run a model. Every subject runs in a process of its own. */
export type BenchSubject =
  | {
      /** A compiled file. */
      readonly kind: "package";
      readonly name: string;
      readonly path: string;
      /** Path of the op library, or null for the functions in the model. */
      readonly library: string | null;
    }
  | {
      /** An exported decode graph that is stepped in onnxruntime-node, with the prefill graph beside it. */
      readonly kind: "pair";
      readonly name: string;
      readonly prefill: string | null;
      readonly decode: string;
      /** Lengths of state axes that the decode graph leaves symbolic. */
      readonly dims: Readonly<Record<string, number>>;
    }
  | {
      /** An exported graph without state: every new token runs the whole prefix again. */
      readonly kind: "forward";
      readonly name: string;
      readonly path: string;
    };

export interface BenchSettings {
  readonly batch: number;
  readonly threads: number;
  /** Tokens of the prompt. */
  readonly prefill: number;
  /** Tokens decoded after it. */
  readonly steps: number;
  readonly rounds: number;
  /** 'cpu': processor time instead of the wall clock, for one thread on a machine that others use too; default 'wall'. */
  readonly clock?: "wall" | "cpu";
}

/** What a subject is, before anything is timed. */
export interface SubjectFacts {
  /** Bytes of state of one sequence after prompt and decoding; 0 for graphs without state. */
  readonly stateBytes: number;
  readonly backend: "c-api" | "node";
  /** Operators of mambac by what ran them. */
  readonly kernels: readonly string[];
  readonly functions: readonly string[];
  /** State inputs that share a buffer with their output, and how many there are. */
  readonly inPlace: number;
  readonly states: number;
  /** Sentences on what is measured differently from what was asked for. */
  readonly notes: readonly string[];
}

/** Times of one round. */
export interface RoundTimes {
  /** Null where the subject cannot take a prompt. */
  readonly prefill: Timing | null;
  readonly decode: Timing;
}

export interface Timing {
  readonly tokens: number;
  readonly milliseconds: number;
}

/** Median and range of figures, one a round. */
export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/** Median, smallest and largest. Null for no values. */
export function spreadOf(values: readonly number[]): Spread | null {
  const sorted = [...values].sort((a, b) => a - b);
  const [min, max] = [sorted[0], sorted.at(-1)];
  if (min === undefined || max === undefined) return null;
  const half = sorted.length / 2;
  const [low = min, high = min] = [sorted[Math.ceil(half) - 1], sorted[Math.floor(half)]];
  return { median: (low + high) / 2, min, max };
}

/** Median and range of the quotients of two subjects' figures, round by round; rounds that lack one are left out. */
export function ratioOf(above: readonly (number | null)[], below: readonly (number | null)[]): Spread | null {
  return spreadOf(
    above.flatMap((value, round) => {
      const other = below[round] ?? null;
      return value === null || other === null ? [] : [value / other];
    }),
  );
}

/** Tokens a second. */
export function rateOf(timing: Timing | null): number | null {
  return timing === null ? null : (1000 * timing.tokens) / timing.milliseconds;
}

/** Bytes of one sequence's state after `tokens` tokens. */
export function stateBytes(signature: Signature, dims: Readonly<Record<string, number>>, tokens: number): number {
  let sum = 0;
  for (const { dtype, shape, growthAxis } of signature.states) {
    const sizes = shape.map((dim, axis) => {
      if (axis === 0) return 1;
      if (axis === growthAxis) return tokens;
      return typeof dim === "number" ? dim : (dims[dim ?? ""] ?? 0);
    });
    sum += packedBytes(dtype, sizes) ?? elementCount(sizes);
  }
  return sum;
}
