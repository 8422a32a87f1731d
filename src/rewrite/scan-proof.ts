/**
 * Proves that a candidate region is a selective scan: runs the region and the float64 reference on the same random
 * inputs, for every assignment of roles that the sizes allow, and accepts an assignment only if they agree.
 */

import type { Inference } from "../ir/infer.js";
import { floatValues, type Tensor, toNumbers } from "../ir/tensor.js";
import { elementCount } from "../ir/types.js";
import { pseudoHeadDim } from "../ops/names.js";
import { type SelectiveScanArguments, selectiveScanReference } from "../ops/reference.js";
import type { Sizes } from "./axes.js";
import { aboveLayout, layoutOf, toCanonical } from "./layout.js";
import { cutRegion, type ExecuteGraph, type Leaf, tensorFromNumbers } from "./region.js";
import { Sampler } from "./sampler.js";
import {
  type Hypothesis,
  makeHypotheses,
  type Part,
  type ScanParameters,
  type StateLayout,
} from "./scan-hypotheses.js";
import type { ScanRegion } from "./scan-region.js";
import { failsInSample } from "./scan-sample.js";
import { beforeSoftplus, gentleSteps, proveSteps, type StepValue, withoutSkip } from "./scan-steps.js";
import type { Tracer } from "./trace.js";

/** Largest |difference| / largest |reference| that counts as agreement for float32 graphs. */
export const PROOF_TOLERANCE = 1e-4;

/** Trials up to this length also see extreme steps. */
const EXTREME_LENGTH = 32;

export interface ProvedScan {
  readonly region: ScanRegion;
  readonly parameters: ScanParameters;
  readonly x: Part;
  readonly dt: Part;
  readonly B: Part;
  readonly C: Part;
  readonly y: Part;
  readonly presentState: string | null;
  readonly stateLayout: StateLayout;
  /** Largest relative error seen. */
  readonly error: number;
  readonly lengths: readonly number[];
}

export interface RefusedScan {
  readonly region: ScanRegion;
  readonly reason: string;
  /** Smallest error of any assignment tried; null when nothing could be run. */
  readonly error: number | null;
}

/** A concretisation of the whole graph to prove at. */
export interface Trial {
  readonly sizes: Sizes;
  readonly inference: Inference;
}

/** Tries every assignment; the first trial must be the tracer's own view. */
export async function proveScan(
  tracer: Tracer,
  region: ScanRegion,
  trials: readonly Trial[],
  execute: ExecuteGraph,
): Promise<
  { readonly kind: "proved"; readonly scan: ProvedScan } | { readonly kind: "refused"; readonly refused: RefusedScan }
> {
  const refuse = (reason: string, error: number | null): { kind: "refused"; refused: RefusedScan } => ({
    kind: "refused",
    refused: { region, reason, error },
  });
  if (layoutOf(tracer.view, region.dt) === null)
    return refuse(`dt (${region.dt}) has no batch, length and channel axes`, null);
  const hypotheses = await makeHypotheses(tracer, region, execute);
  if (hypotheses.length === 0) return refuse("no assignment of x, B, C and A fits the sizes", null);
  let steps: StepValue | null = null;
  if (region.form === "cumsum" && trials[0] !== undefined) {
    steps = await proveSteps(tracer, region, hypotheses, trials[0], execute);
    if (steps === null) return refuse("no value in it is the softplus of dt and its bias", null);
  }
  let best = Number.POSITIVE_INFINITY;
  let trouble: string | null = null;
  const measured = new Map<string, Promise<Measurement>>();
  // Most assignments fail in the first heads already. Where all of them fail, they are measured in full for the report.
  const sweeps = [true, false].flatMap((sieved) => hypotheses.map((hypothesis) => ({ hypothesis, sieved })));
  for (const { hypothesis, sieved } of sweeps) {
    let worst = 0;
    const lengths: number[] = [];
    for (const trial of trials) {
      const key = `${hypothesis.y.name}|${hypothesis.presentState}|${trial.sizes.length}|${trial.sizes.batch}`;
      let measurement = measured.get(key);
      if (measurement === undefined) {
        measurement = measure(tracer, region, steps, hypothesis, trial, execute);
        measured.set(key, measurement);
      }
      const result = await measurement;
      if (result.kind === "failed") {
        trouble = result.reason;
        if (trial === trials[0]) worst = Number.POSITIVE_INFINITY;
        break;
      }
      const error = compare(region, steps, hypothesis, trial, result, sieved);
      worst = Math.max(worst, error);
      if (!(error <= PROOF_TOLERANCE)) break;
      lengths.push(trial.sizes.length);
    }
    if (!sieved) best = Math.min(best, worst);
    if (worst > PROOF_TOLERANCE || lengths.length === 0) continue;
    const { parameters, x, dt, B, C, presentState, stateLayout } = hypothesis;
    const y = aboveLayout(tracer, hypothesis.y.name, hypothesis.y.layout);
    return {
      kind: "proved",
      scan: { region, parameters, x, dt, B, C, y, presentState, stateLayout, error: worst, lengths },
    };
  }
  if (!Number.isFinite(best)) return refuse(trouble ?? "the region could not be run on its own", null);
  return refuse("no assignment of roles reproduces the region", best);
}

type Measurement =
  | { readonly kind: "ran"; readonly feeds: ReadonlyMap<string, Draw>; readonly outputs: ReadonlyMap<string, Tensor> }
  | { readonly kind: "failed"; readonly reason: string };

/** Runs the region once on random inputs at the sizes of the trial; from its step sizes on where they are given. */
async function measure(
  tracer: Tracer,
  region: ScanRegion,
  steps: StepValue | null,
  hypothesis: Hypothesis,
  trial: Trial,
  execute: ExecuteGraph,
): Promise<Measurement> {
  const start = steps?.name ?? region.dt;
  const leaves = [start, ...region.roots, ...(region.pastState === null ? [] : [region.pastState])];
  const outputs = [hypothesis.y.name, ...(hypothesis.presentState === null ? [] : [hypothesis.presentState])];
  const cut = cutRegion(tracer.graph, trial.inference, leaves, outputs);
  if (cut.kind === "open") return { kind: "failed", reason: `the region cannot be cut out: ${cut.reason}` };
  // A value that does not hang on every leaf would be compared with a recurrence of nothing.
  const unread = leaves.find((name) => !cut.leaves.some((leaf) => leaf.name === name));
  if (unread !== undefined) return { kind: "failed", reason: `${hypothesis.y.name} does not depend on ${unread}` };
  const { batch, length } = trial.sizes;
  const feeds = new Map(
    cut.leaves.map((leaf, at) => {
      if (steps !== null && leaf.name === start) {
        const values = gentleSteps(steps, `steps/${batch}/${length}`, batch, length);
        const tensor = tensorFromNumbers(leaf.dtype, leaf.shape, values);
        return [leaf.name, { tensor, numbers: toNumbers(tensor) }] as const;
      }
      const distribution = leaf.name !== region.dt ? "normal" : length <= EXTREME_LENGTH ? "extreme" : "moderate";
      return [leaf.name, draw(tracer, `${at}/${batch}/${length}`, distribution, leaf)] as const;
    }),
  );
  try {
    const tensors = new Map([...feeds].map(([name, { tensor }]) => [name, tensor]));
    return { kind: "ran", feeds, outputs: await execute(cut.graph, tensors) };
  } catch (cause) {
    return { kind: "failed", reason: cause instanceof Error ? cause.message : String(cause) };
  }
}

/** Random data for a leaf, and its values as the region reads them. */
interface Draw {
  readonly tensor: Tensor;
  readonly numbers: Float64Array;
}

/** Draws by place, distribution, type and shape: layers of one model mostly read alike, so few are ever made. */
const draws = new WeakMap<Tracer, Map<string, Draw>>();

/** Larger ones are made anew each time, so that a pass does not keep them. */
const KEPT_ELEMENTS = 1 << 21;

/** Leaves at different places of a region get different numbers, whatever their shapes. */
function draw(tracer: Tracer, place: string, distribution: "normal" | "extreme" | "moderate", leaf: Leaf): Draw {
  let known = draws.get(tracer);
  if (known === undefined) draws.set(tracer, (known = new Map<string, Draw>()));
  const label = `${place}/${distribution}/${leaf.dtype}/${leaf.shape.join("x")}`;
  const made = known.get(label);
  if (made !== undefined) return made;
  const sampler = new Sampler(label);
  const count = elementCount(leaf.shape);
  const values =
    distribution === "normal" ? sampler.normal(count) : sampler.timeSteps(count, distribution === "extreme");
  const tensor = tensorFromNumbers(leaf.dtype, leaf.shape, values);
  const result = { tensor, numbers: toNumbers(tensor) };
  if (count <= KEPT_ELEMENTS) known.set(label, result);
  return result;
}

/**
 * Relative error of y and of the state against the float64 reference; `sieved`, infinity when a few heads show that it is above
 * the tolerance.
 */
function compare(
  region: ScanRegion,
  steps: StepValue | null,
  hypothesis: Hypothesis,
  trial: Trial,
  result: Extract<Measurement, { kind: "ran" }>,
  sieved: boolean,
): number {
  const { batch, length } = trial.sizes;
  const { parameters } = hypothesis;
  const canonical = ({ layout }: Part, data: Float32Array | Float64Array | undefined): Float64Array =>
    data === undefined ? new Float64Array(batch * length * layout.channels) : toCanonical(layout, data, batch, length);
  const { heads, headDim, dState, groups } = parameters;
  const { x, B, C, dt } = hypothesis;
  const fed = canonical(x, result.feeds.get(x.name)?.numbers);
  const past = region.pastState === null ? null : result.feeds.get(region.pastState);
  const args: SelectiveScanArguments = {
    batch,
    length,
    headDim: parameters.family === "mamba2" ? headDim : pseudoHeadDim(heads),
    dState,
    groups,
    x: fed,
    B: canonical(B, result.feeds.get(B.name)?.numbers),
    C: canonical(C, result.feeds.get(C.name)?.numbers),
    A: parameters.A,
    ...(steps === null
      ? {
          dt: canonical(dt, result.feeds.get(dt.name)?.numbers),
          D: parameters.D,
          dtBias: parameters.dtBias,
          dtMin: parameters.dtMin,
          dtMax: parameters.dtMax,
        }
      : { dt: beforeSoftplus(steps, canonical(steps, result.feeds.get(steps.name)?.numbers)), D: null, dtBias: null }),
    past: past === null || past === undefined ? null : stateToCanonical(past.numbers, hypothesis, batch),
    ...(parameters.family === "mamba2" ? { family: "mamba2", heads } : { family: "mamba1", channels: heads }),
  };
  const output = result.outputs.get(hypothesis.y.name);
  const given = canonical(hypothesis.y, output === undefined ? undefined : floatValues(output));
  const y = steps === null ? given : withoutSkip(given, fed, parameters.D);
  const present = hypothesis.presentState === null ? null : result.outputs.get(hypothesis.presentState);
  if (present === undefined) return Number.POSITIVE_INFINITY;
  if (sieved && failsInSample(args, y, present, hypothesis.stateLayout)) return Number.POSITIVE_INFINITY;
  const reference = selectiveScanReference(args);
  const error = relativeError(y, reference.y);
  if (present === null) return error;
  return Math.max(error, relativeError(stateToCanonical(floatValues(present), hypothesis, batch), reference.state));
}

/** State data in the public layout -> [B, H, P, N]. */
function stateToCanonical<T extends Float32Array | Float64Array>(
  data: T,
  hypothesis: Hypothesis,
  batch: number,
): T | Float64Array {
  if (hypothesis.stateLayout === "PN") return data;
  const { heads, headDim, dState } = hypothesis.parameters;
  const out = new Float64Array(data.length);
  for (let head = 0; head < batch * heads; head++) {
    const base = head * headDim * dState;
    for (let n = 0; n < dState; n++) {
      for (let p = 0; p < headDim; p++) out[base + p * dState + n] = data[base + n * headDim + p] ?? 0;
    }
  }
  return out;
}

/**
 * Largest absolute difference over the largest absolute reference; infinite when sizes disagree, when anything is not a
 * number, and when the reference is all zeros, which proves nothing.
 */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  let difference = 0;
  let scale = 0;
  for (let i = 0; i < actual.length; i++) {
    const expectation = expected[i] ?? Number.NaN;
    const distance = Math.abs((actual[i] ?? Number.NaN) - expectation);
    const size = Math.abs(expectation);
    if (distance > difference) difference = distance;
    // Not a number where either is none, or where both are infinite.
    else if (Number.isNaN(distance)) return Number.POSITIVE_INFINITY;
    if (size > scale) scale = size;
  }
  const error = difference / scale;
  return Number.isNaN(error) ? Number.POSITIVE_INFINITY : error;
}
