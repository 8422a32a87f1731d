/** Runs passes in order: checks the order first, verifies after every pass, times, prints, stops and dumps on request. */

import type { Model } from "../ir/graph.js";
import { formatDiagnostic, verifyModel } from "../ir/verify.js";
import { type Gemm, loopGemm } from "../linalg/matrix.js";
import type { StatRequest } from "../quant/calibration.js";
import type { Statistics } from "../quant/statistics.js";
import { EXIT, InvariantError, invariant, MambacError } from "../support/errors.js";
import type { Execute, Fact, Pass, PassContext, PassResult, Remark } from "./pass.js";
import { SEMANTIC_DOMAIN } from "./semantic.js";

/** A pass with its options bound. */
export interface Step {
  readonly name: string;
  readonly requires: readonly Fact[];
  readonly establishes: readonly Fact[];
  readonly invalidates: readonly Fact[];
  /** Statistics it needs of the model as it is before the pass. */
  requests?(model: Model): readonly StatRequest[];
  /** How the model is run for them, where it is not the usual way. */
  readonly observation?: Observation;
  run(
    model: Model,
    tools: Omit<PassContext, "report">,
    report: (remark: Remark) => void,
    statistics: Statistics | null,
  ): Promise<PassResult>;
}

/** A way to run calibration data other than whole prefills of the model itself. */
export interface Observation {
  /** The model with values to watch that it does not have; it may not change those it has. */
  instrument(model: Model): Model;
  /** Tokens a call. */
  readonly window: number;
}

/** Binds options to a pass. */
export function step<Options>(pass: Pass<Options>, options: Options): Step {
  const { name, requires, establishes, invalidates } = pass;
  return {
    name,
    requires,
    establishes,
    invalidates,
    run: (model, tools, report) =>
      pass.run(model, options, { ...tools, report: (remark) => report({ ...remark, pass: name }) }),
  };
}

/** A pass whose options depend on calibration. */
export function calibratedStep<Options>(
  pass: Pass<Options>,
  requests: (model: Model) => readonly StatRequest[],
  options: (statistics: Statistics, gemm: Gemm) => Options | Promise<Options>,
  observation?: Observation,
): Step {
  const { name, requires, establishes, invalidates } = pass;
  return {
    name,
    requires,
    establishes,
    invalidates,
    requests,
    ...(observation === undefined ? {} : { observation }),
    run: async (model, tools, report, statistics) => {
      invariant(statistics !== null, `${name} ran without its statistics`);
      return pass.run(model, await options(statistics, tools.gemm), {
        ...tools,
        report: (remark) => report({ ...remark, pass: name }),
      });
    },
  };
}

export interface PipelineHooks {
  readonly execute: Execute;
  readonly report: (remark: Remark) => void;
  /** Matrix products; a plain loop unless given. */
  readonly gemm?: Gemm;
  /** Collects statistics for a pass; absent when there is no calibration. Null ends the run before that pass. */
  readonly collect?: (
    model: Model,
    requests: readonly StatRequest[],
    pass: string,
    window?: number,
  ) => Promise<Statistics | null>;
  /** Measures on calibration data; absent when no data were given. */
  readonly divergence?: PassContext["divergence"];
  /** Takes what is to be called once the weights of the last model have been read: it reports what is known only then. */
  readonly whenRead?: (tell: () => void) => void;
  /** Called after each pass with the model it made. */
  readonly afterPass?: (name: string, model: Model, changed: number, milliseconds: number) => void;
  /** Called with the model before the pass that failed. */
  readonly onFailure?: (name: string, before: Model, cause: unknown) => void;
  /** Milliseconds of a monotonic clock; timing is left to the caller, passes have no clock. */
  readonly now: () => number;
  /** Stop after the pass of this name. */
  readonly stopAfter?: string;
}

/** Refuses a list of steps whose order breaks a declared requirement. */
export function checkOrder(steps: readonly Step[], known: ReadonlySet<Fact> = new Set()): void {
  const facts = new Set(known);
  for (const { name, requires, establishes, invalidates } of steps) {
    const missing = requires.filter((fact) => !facts.has(fact));
    if (missing.length > 0) {
      throw new MambacError(
        "pipeline/order",
        `pass ${name} needs ${missing.join(", ")}, which no earlier pass establishes`,
      );
    }
    for (const fact of invalidates) facts.delete(fact);
    for (const fact of establishes) facts.add(fact);
  }
}

/** Runs the steps; a model that breaks a rule after a pass is a bug of that pass. */
export async function runSteps(
  model: Model,
  steps: readonly Step[],
  hooks: PipelineHooks,
  known: ReadonlySet<Fact> = new Set(),
): Promise<{ readonly model: Model; readonly stopped: boolean }> {
  checkOrder(steps, known);
  if (hooks.stopAfter !== undefined && !steps.some(({ name }) => name === hooks.stopAfter)) {
    throw new MambacError(
      "pipeline/stop-after",
      `there is no pass ${hooks.stopAfter} here; passes: ${steps.map(({ name }) => name).join(", ")}`,
    );
  }
  let current = model;
  for (const next of steps) {
    const { name } = next;
    const start = hooks.now();
    let result: PassResult;
    try {
      const statistics = await gather(next, current, hooks);
      if (statistics === null && next.requests !== undefined) return { model: current, stopped: true };
      result = await next.run(
        current,
        {
          execute: hooks.execute,
          gemm: hooks.gemm ?? loopGemm,
          divergence: hooks.divergence ?? (() => Promise.reject(nothingToMeasure(name))),
        },
        hooks.report,
        statistics,
      );
      assertSound(name, result.model);
    } catch (cause) {
      hooks.onFailure?.(name, current, cause);
      if (cause instanceof MambacError || cause instanceof InvariantError) throw cause;
      throw new InvariantError(`pass ${name} failed: ${cause instanceof Error ? cause.message : String(cause)}`, {
        cause,
      });
    }
    current = result.model;
    const { whenRead } = result;
    if (whenRead !== undefined) {
      hooks.whenRead?.(() => {
        const remark = whenRead();
        if (remark !== null) hooks.report({ ...remark, pass: name });
      });
    }
    hooks.afterPass?.(name, current, result.changed, hooks.now() - start);
    if (name === hooks.stopAfter) return { model: current, stopped: true };
  }
  return { model: current, stopped: false };
}

async function gather(step: Step, model: Model, hooks: PipelineHooks): Promise<Statistics | null> {
  const { name } = step;
  const wanted = step.requests?.(model) ?? null;
  if (wanted === null) return null;
  if (hooks.collect === undefined) {
    throw noData(name);
  }
  const { observation } = step;
  return observation === undefined
    ? hooks.collect(model, wanted, name)
    : hooks.collect(observation.instrument(model), wanted, name, observation.window);
}

function noData(pass: string): MambacError {
  return new MambacError(
    "pipeline/no-data",
    `pass ${pass} needs calibration data: give --calib FILE or a table of them (--calib-table FILE), or take a recipe without it`,
    EXIT.calibration,
  );
}

function nothingToMeasure(pass: string): MambacError {
  return new MambacError(
    "pipeline/no-data",
    `pass ${pass} measures models on calibration data: give --calib FILE; the recipe it leaves beside the result needs no measuring`,
    EXIT.calibration,
  );
}

function assertSound(name: string, model: Model): void {
  const opsets = new Map([...model.opsets, [SEMANTIC_DOMAIN, 1]]);
  const broken = verifyModel({ ...model, opsets }).filter((found) => found.severity === "error");
  if (broken.length > 0) {
    throw new InvariantError(
      `pass ${name} broke the model:\n  ${broken.slice(0, 5).map(formatDiagnostic).join("\n  ")}`,
    );
  }
}

/** What to say when nothing was found. */
export function nothingFound(remarks: readonly Remark[]): MambacError {
  const missed = remarks
    .filter((remark) => remark.kind === "missed")
    .map((remark) => `\n  ${remark.where}: ${remark.message}`);
  return new MambacError(
    "compile/no-scan",
    missed.length === 0
      ? "no selective scan was found in this graph: mambac compiles Mamba models, and no softplus here feeds a recurrence"
      : `no selective scan could be proved in this graph:${missed.join("")}`,
    EXIT.unsupported,
  );
}
