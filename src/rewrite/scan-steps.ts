/**
 * Proofs of scans that divide by cumulated decays. Such a source is the recurrence only while those decays stay far from
 * what float32 rounds to zero, so its step sizes must be small when it is run; then clamps and the linear part of softplus
 * would go unseen. So it is proved in two parts: that a value of the region is clip(softplus(dt + bias)), on extreme dt,
 * and that the rest is a scan of that value, on steps small enough for the source.
 */

import { toNumbers } from "../ir/tensor.js";
import { elementCount } from "../ir/types.js";
import { layoutsOf, toCanonical } from "./layout.js";
import { cutRegion, type ExecuteGraph, tensorFromNumbers } from "./region.js";
import { Sampler } from "./sampler.js";
import { valuesOfDt } from "./scan-form.js";
import type { Hypothesis, Part } from "./scan-hypotheses.js";
import type { Trial } from "./scan-proof.js";
import type { ScanRegion } from "./scan-region.js";
import type { Tracer } from "./trace.js";

/** A value that holds the step sizes: everything after it reads dt through it. */
export interface StepValue extends Part {
  /** Largest |A| of each channel of dt. */
  readonly rates: Float64Array;
  /** Channels of the value for each of dt: exporters spread steps over the channels of a head early. */
  readonly repeat: number;
}

/** Finds and proves the step sizes of a region; null when no value of it is clip(softplus(dt + bias)). */
export async function proveSteps(
  tracer: Tracer,
  region: ScanRegion,
  hypotheses: readonly Hypothesis[],
  trial: Trial,
  execute: ExecuteGraph,
): Promise<StepValue | null> {
  const [first] = hypotheses;
  if (first === undefined) return null;
  const { channels } = first.dt.layout;
  const rates = new Float64Array(channels);
  for (const { parameters } of hypotheses) {
    const perChannel = parameters.A.length / channels;
    parameters.A.forEach((rate, at) => {
      const channel = Math.floor(at / perChannel);
      rates[channel] = Math.max(rates[channel] ?? 0, Math.abs(rate));
    });
  }
  const beside = [...region.roots, ...(region.pastState === null ? [] : [region.pastState])];
  const ends = [...new Set(hypotheses.map(({ y }) => y.name))];
  for (const name of valuesOfDt(tracer, region.dt, region.nodes)) {
    for (const layout of layoutsOf(tracer.view, name)) {
      const repeat = layout.channels / channels;
      if (!Number.isInteger(repeat)) continue;
      const closes = (end: string): boolean =>
        cutRegion(tracer.graph, trial.inference, [name, ...beside], [end]).kind === "region";
      if (!ends.some(closes)) continue;
      for (const hypothesis of distinct(hypotheses)) {
        const value = { name, layout, rates, repeat };
        if (await isStepSize(tracer, region, hypothesis, value, trial, execute)) return value;
      }
    }
  }
  return null;
}

/** One hypothesis for each reading of dt: bias and clamps are the same for all of them. */
function distinct(hypotheses: readonly Hypothesis[]): Hypothesis[] {
  return [...new Map(hypotheses.map((hypothesis) => [hypothesis.dt.layout, hypothesis])).values()];
}

async function isStepSize(
  tracer: Tracer,
  region: ScanRegion,
  { dt, parameters }: Hypothesis,
  value: StepValue,
  trial: Trial,
  execute: ExecuteGraph,
): Promise<boolean> {
  const cut = cutRegion(tracer.graph, trial.inference, [region.dt], [value.name]);
  if (cut.kind === "open") return false;
  const [leaf] = cut.leaves;
  if (leaf === undefined) return false;
  const { batch, length } = trial.sizes;
  const drawn = new Sampler(`steps/${leaf.shape.join("x")}`).timeSteps(elementCount(leaf.shape), true);
  const fed = tensorFromNumbers(leaf.dtype, leaf.shape, drawn);
  const given = (await execute(cut.graph, new Map([[leaf.name, fed]]))).get(value.name);
  if (given === undefined) return false;
  const input = toCanonical(dt.layout, toNumbers(fed), batch, length);
  const output = toCanonical(value.layout, toNumbers(given), batch, length);
  const { dtBias, dtMin, dtMax } = parameters;
  return (
    output.length === input.length * value.repeat &&
    output.every((step, place) => {
      const at = Math.floor(place / value.repeat);
      const biased = (input[at] ?? 0) + (dtBias?.[at % dtBias.length] ?? 0);
      const soft = Math.max(biased, 0) + Math.log1p(Math.exp(-Math.abs(biased)));
      const wanted = Math.min(Math.max(soft, dtMin), dtMax);
      // The second term: float32 softplus rounds 1 + exp(x) where that is near 1.
      return Math.abs(step - wanted) <= 1e-4 * Math.abs(wanted) + 3e-7;
    })
  );
}

/** What the decays of all tokens together make of a state: e to the minus this. */
const DEPTH = 8;
/** The largest step, where A is so small that any would do. */
const LARGEST = 2;

/** Random step sizes, in the order of the value's own axes, that leave a state e^-8 of itself over the whole sequence. */
export function gentleSteps(steps: StepValue, label: string, batch: number, length: number): Float64Array {
  const { layout, rates, repeat } = steps;
  const count = batch * length * layout.channels;
  const sampler = new Sampler(label);
  const places = toCanonical(
    layout,
    Float64Array.from({ length: count }, (_, at) => at),
    batch,
    length,
  );
  const out = new Float64Array(count);
  for (let at = 0; at < count / repeat; at++) {
    const mean = DEPTH / (length * Math.max(rates[at % rates.length] ?? 0, 1e-6));
    const step = Math.min(LARGEST, mean * (0.2 + 1.6 * sampler.uniform()));
    for (let copy = 0; copy < repeat; copy++) out[places[at * repeat + copy] ?? 0] = step;
  }
  return out;
}

/** dt without bias whose softplus is the step size, one for each channel of dt. */
export function beforeSoftplus(steps: StepValue, values: Float64Array): Float64Array {
  return Float64Array.from({ length: values.length / steps.repeat }, (_, at) =>
    Math.log(Math.expm1(values[at * steps.repeat] ?? Number.NaN)),
  );
}

/** y without D x: where steps are small, D x would hide the rest. x and y are [.., channels]. */
export function withoutSkip(y: Float64Array, x: Float64Array, D: Float64Array | null): Float64Array {
  return D === null ? y : y.map((value, at) => value - (D[at % D.length] ?? 0) * (x[at] ?? 0));
}
