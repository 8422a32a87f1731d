/** Single passes on a graph of one's own, and places in a list of passes. */

import type { Step } from "../passes/index.js";
import { executor, type Fact, MambacError, type Model, openOrtGemm, type Remark, runSteps } from "../src/index.js";

export interface ApplyOptions {
  /** What is known to hold of the model already, where passes require it; nothing unless given. */
  readonly facts?: Iterable<Fact>;
  /** Threads of proofs and matrix products; default 1. The result does not depend on it. */
  readonly threads?: number;
}

export interface Applied {
  readonly model: Model;
  /** Diagnostics, in order: what was done, what could not be and why, and warnings; each names its pass and place. */
  readonly remarks: readonly Remark[];
  /** Sites each pass changed, in order. */
  readonly changed: readonly { readonly pass: string; readonly sites: number }[];
}

/**
 * Runs passes in order, without files. The order is checked first, and the model after every pass. Throws `MambacError` for
 * an order that breaks a requirement and for what passes refuse, and `InvariantError` for a pass that breaks the model.
 * Passes that need calibration are for `compile`.
 */
export async function applyPasses(model: Model, steps: readonly Step[], options: ApplyOptions = {}): Promise<Applied> {
  const remarks: Remark[] = [];
  const changed: { pass: string; sites: number }[] = [];
  await using products = openOrtGemm({ threads: options.threads ?? 1 });
  const result = await runSteps(
    model,
    steps,
    {
      execute: executor(options.threads ?? 1),
      gemm: products.gemm,
      report: (remark) => remarks.push(remark),
      now: () => performance.now(),
      afterPass: (pass, _model, sites) => changed.push({ pass, sites }),
    },
    new Set(options.facts),
  );
  return { model: result.model, remarks, changed };
}

/** A place in a list of passes. */
export type StepPlace = { readonly before: string } | { readonly after: string };

/** The list with one more pass right before or after the one of a name. Throws `pipeline/place` where there is none. */
export function insertStep(steps: readonly Step[], place: StepPlace, step: Step): Step[] {
  const name = "before" in place ? place.before : place.after;
  const at = steps.findIndex((one) => one.name === name);
  if (at < 0) {
    throw new MambacError(
      "pipeline/place",
      `there is no pass ${name} here; passes: ${steps.map((one) => one.name).join(", ")}`,
    );
  }
  return steps.toSpliced("before" in place ? at : at + 1, 0, step);
}
