/** What a pass is, and what it may use. Passes see the model and this context; no files, no clock, no runtime. */

import type { Model } from "../ir/graph.js";
import type { Tensor } from "../ir/tensor.js";
import type { Gemm } from "../linalg/matrix.js";

/** Runs a small model on given inputs. Injected, so that passes never import a runtime. */
export type Execute = (model: Model, feeds: ReadonlyMap<string, Tensor>) => Promise<Map<string, Tensor>>;

/**
 * How far a model is from a reference on calibration data: the mean Kullback-Leibler divergence of the next token, in bits.
 * `label` tells people what is measured.
 */
export type DivergenceFrom = (model: Model, label: string) => Promise<number>;

/** How close a pass keeps the model to what it was. */
export type Exactness =
  /** The same bits. */
  | "bitwise"
  /** Equal over the reals; float rounding differs. */
  | "real-exact"
  /** Loses accuracy; the pass names its metric and budget. */
  | "lossy";

/** What is known to hold of a model once a pass has run. */
export type Fact =
  | "normalised"
  | "conv-raised"
  | "scan-raised"
  | "attention-raised"
  | "states-complete"
  | "length-free"
  | "linears-aligned"
  | "norm-gain-absorbed"
  | "weights-rounded"
  | "qdq-inserted"
  | "state-format-set"
  | "lowered";

export type RemarkKind = "applied" | "missed" | "warning";

/** Something a pass wants a person to know; `where` is a node, value or layer of the source. */
export interface Remark {
  readonly pass: string;
  readonly kind: RemarkKind;
  readonly code: string;
  readonly where: string;
  readonly message: string;
}

export interface PassContext {
  readonly execute: Execute;
  /** Matrix products at the speed of a runtime. */
  readonly gemm: Gemm;
  /** Measures against a model, on so many sequences of the calibration data. */
  readonly divergence: (reference: Model, sequences: number) => Promise<DivergenceFrom>;
  report(remark: Omit<Remark, "pass">): void;
}

export interface PassResult {
  readonly model: Model;
  /** Sites changed. Zero is not an error by itself: the recipe decides which passes must match. */
  readonly changed: number;
  /** What can be told only once the weights of the result have been read; null where there is nothing to tell. */
  readonly whenRead?: () => Omit<Remark, "pass"> | null;
}

export interface Pass<Options> {
  /** CLI spelling, file stem and diagnostic prefix. */
  readonly name: string;
  readonly summary: string;
  readonly exactness: Exactness;
  readonly requires: readonly Fact[];
  readonly establishes: readonly Fact[];
  readonly invalidates: readonly Fact[];
  run(model: Model, options: Options, context: PassContext): Promise<PassResult>;
}

/** Declares a pass; exists so that its type is checked where it is written. */
export function definePass<Options>(pass: Pass<Options>): Pass<Options> {
  return Object.freeze(pass);
}
