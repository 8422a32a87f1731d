/**
 * Proves that a candidate region is a selective scan: runs the region and the float64 reference on the same random
 * inputs, for every assignment of roles that the sizes allow, and accepts an assignment only if they agree.
 */

import type { Graph } from "../ir/graph.js";
import type { Inference } from "../ir/infer.js";
import { type Tensor, toNumbers } from "../ir/tensor.js";
import { elementCount } from "../ir/types.js";
import { pseudoHeadDim } from "../ops/names.js";
import { type SelectiveScanArguments, selectiveScanReference } from "../ops/reference.js";
import { concrete, type Sizes } from "./axes.js";
import { aboveLayout, type Layout, layoutOf, toCanonical } from "./layout.js";
import { cutRegion, evaluateConstants, tensorFromNumbers } from "./region.js";
import { Sampler } from "./sampler.js";
import type { ScanRegion } from "./scan-region.js";
import type { Tracer } from "./trace.js";

/** Largest |difference| / largest |reference| that counts as agreement for float32 graphs. */
export const PROOF_TOLERANCE = 1e-4;

/** Trials up to this length also see extreme steps. */
const EXTREME_LENGTH = 32;

export type ExecuteGraph = (graph: Graph, feeds: ReadonlyMap<string, Tensor>) => Promise<Map<string, Tensor>>;

/** Sizes of a scan; Mamba-1 has P = 1 and one dt a channel. */
export interface ScanDims {
  readonly family: "mamba1" | "mamba2";
  readonly heads: number;
  readonly headDim: number;
  readonly dState: number;
  readonly groups: number;
}

export interface ScanParameters extends ScanDims {
  /** [H] or [E, N], negative. */
  readonly A: Float64Array;
  /** [H, P] or [E]; null for none. */
  readonly D: Float64Array | null;
  readonly dtBias: Float64Array | null;
  readonly dtMin: number;
  readonly dtMax: number;
}

/** Where the state tensor keeps P and N. */
export type StateLayout = "PN" | "NP";

export interface ProvedScan {
  readonly region: ScanRegion;
  readonly parameters: ScanParameters;
  readonly x: { readonly name: string; readonly layout: Layout };
  readonly dt: { readonly name: string; readonly layout: Layout };
  readonly B: { readonly name: string; readonly layout: Layout };
  readonly C: { readonly name: string; readonly layout: Layout };
  readonly y: { readonly name: string; readonly layout: Layout };
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

interface Hypothesis {
  readonly parameters: ScanParameters;
  readonly roles: readonly [x: string, B: string, C: string];
  readonly y: string;
  readonly presentState: string | null;
  readonly stateLayout: StateLayout;
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
  const dt = layoutOf(tracer.view, region.dt);
  if (dt === null) return refuse(`dt (${region.dt}) has no batch, length and channel axes`, null);
  const hypotheses = await makeHypotheses(tracer, region, dt, execute);
  if (hypotheses.length === 0) return refuse("no assignment of x, B, C and A fits the sizes", null);
  let best = Number.POSITIVE_INFINITY;
  let trouble: string | null = null;
  const measured = new Map<string, Promise<Measurement>>();
  for (const hypothesis of hypotheses) {
    let worst = 0;
    const lengths: number[] = [];
    for (const trial of trials) {
      const key = `${hypothesis.y}|${hypothesis.presentState}|${trial.sizes.length}|${trial.sizes.batch}`;
      let measurement = measured.get(key);
      if (measurement === undefined) {
        measurement = measure(tracer, region, hypothesis, trial, execute);
        measured.set(key, measurement);
      }
      const result = await measurement;
      if (result.kind === "failed") {
        trouble = result.reason;
        if (trial === trials[0]) worst = Number.POSITIVE_INFINITY;
        break;
      }
      const error = compare(tracer, region, hypothesis, trial, result);
      worst = Math.max(worst, error);
      if (!(error <= PROOF_TOLERANCE)) break;
      lengths.push(trial.sizes.length);
    }
    best = Math.min(best, worst);
    if (worst > PROOF_TOLERANCE || lengths.length === 0) continue;
    const layout = (name: string): Layout => {
      const found = layoutOf(tracer.view, name);
      if (found === null) throw new Error(`layout of ${name} vanished`);
      return found;
    };
    const [x, B, C] = hypothesis.roles;
    const y = aboveLayout(tracer, hypothesis.y, layout(x).channels);
    return {
      kind: "proved",
      scan: {
        region,
        parameters: hypothesis.parameters,
        x: { name: x, layout: layout(x) },
        dt: { name: region.dt, layout: dt },
        B: { name: B, layout: layout(B) },
        C: { name: C, layout: layout(C) },
        y: { name: y, layout: layout(y) },
        presentState: hypothesis.presentState,
        stateLayout: hypothesis.stateLayout,
        error: worst,
        lengths,
      },
    };
  }
  if (!Number.isFinite(best)) return refuse(trouble ?? "the region could not be run on its own", null);
  return refuse("no assignment of roles reproduces the region", best);
}

async function makeHypotheses(
  tracer: Tracer,
  region: ScanRegion,
  dt: Layout,
  execute: ExecuteGraph,
): Promise<Hypothesis[]> {
  const { view } = tracer;
  const layouts = new Map(region.roots.map((root) => [root, layoutOf(view, root)]));
  const constants = await evaluateConstants(
    tracer.graph,
    view.first,
    [...new Set([...region.weights, ...(region.dtBias === null ? [] : [region.dtBias])])].filter((name) =>
      isSmallFloat(tracer, name),
    ),
    execute,
  );
  const dtBias = region.dtBias === null ? null : perHead(constants.get(region.dtBias), dt.channels);
  if (region.dtBias !== null && dtBias === null) return [];
  const clamps = region.clamps.filter((clamp) => sameCount(tracer, clamp.value, dt));
  const dtMin = clamps.reduce((low, clamp) => Math.max(low, clamp.low), Number.NEGATIVE_INFINITY);
  const dtMax = clamps.reduce((high, clamp) => Math.min(high, clamp.high), Number.POSITIVE_INFINITY);
  const out: Hypothesis[] = [];
  for (const roles of permutations(region.roots)) {
    const [x, B, C] = roles;
    const [lx, lb, lc] = [layouts.get(x), layouts.get(B), layouts.get(C)];
    if (lx == null || lb == null || lc == null || lb.channels !== lc.channels) continue;
    if (lx.channels % dt.channels !== 0) continue;
    for (const dims of sizesFor(tracer, region, dt.channels, lx.channels, lb.channels)) {
      for (const A of findA(constants, dims)) {
        for (const D of findD(constants, dims, A.name)) {
          for (const y of findY(tracer, region, lx.channels)) {
            for (const state of findState(tracer, region, dims)) {
              out.push({
                parameters: { ...dims, A: A.values, D, dtBias, dtMin, dtMax },
                roles,
                y,
                presentState: state.name,
                stateLayout: state.layout,
              });
            }
          }
        }
      }
    }
  }
  return out;
}

function isSmallFloat(tracer: Tracer, name: string): boolean {
  const value = concrete(tracer.view, name);
  return (
    value?.shape != null &&
    value.dtype !== null &&
    /^(f32|f16|f64|bf16)$/.test(value.dtype) &&
    elementCount(value.shape) < 2 ** 24
  );
}

function sameCount(tracer: Tracer, name: string, dt: Layout): boolean {
  const shape = concrete(tracer.view, name)?.shape;
  if (shape == null) return false;
  const { batch, length } = tracer.view.sizes;
  return elementCount(shape) % (batch * length * dt.channels) === 0;
}

function permutations(roots: readonly string[]): [string, string, string][] {
  const [a, b, c] = roots;
  if (a === undefined || b === undefined || c === undefined) return [];
  return [
    [a, b, c],
    [a, c, b],
    [b, a, c],
    [b, c, a],
    [c, a, b],
    [c, b, a],
  ];
}

/** Sizes that fit the channel counts; with a state tensor N is known, else every group count is tried. */
function sizesFor(
  tracer: Tracer,
  region: ScanRegion,
  dtChannels: number,
  xChannels: number,
  bChannels: number,
): ScanDims[] {
  const headDim = xChannels / dtChannels;
  const family = headDim === 1 ? "mamba1" : "mamba2";
  const stateShape = stateShapeOf(tracer, region);
  const out: ScanDims[] = [];
  for (let groups = 1; groups <= dtChannels; groups++) {
    if (dtChannels % groups !== 0 || bChannels % groups !== 0) continue;
    const dState = bChannels / groups;
    if (stateShape !== null && elementCount(stateShape.slice(1)) !== xChannels * dState) continue;
    out.push({ family, heads: dtChannels, headDim, dState, groups });
  }
  return out;
}

function stateShapeOf(tracer: Tracer, region: ScanRegion): readonly number[] | null {
  if (region.pastState !== null) return concrete(tracer.view, region.pastState)?.shape ?? null;
  for (const exit of region.exits) {
    const shape = concrete(tracer.view, exit)?.shape;
    if (
      tracer.index.outputs.has(exit) &&
      shape != null &&
      shape.length >= 3 &&
      layoutOf(tracer.view, exit)?.axes[1] !== "length"
    ) {
      return shape;
    }
  }
  return null;
}

/** A per-head vector, with broadcasts along later axes removed; null when it is no such thing. */
function perHead(tensor: Tensor | undefined, heads: number): Float64Array | null {
  if (tensor === undefined) return null;
  const values = toNumbers(tensor);
  if (values.length === 1) return new Float64Array(heads).fill(values[0] ?? 0);
  if (values.length % heads !== 0) return null;
  const repeat = values.length / heads;
  const out = new Float64Array(heads);
  for (let h = 0; h < heads; h++) {
    const value = values[h * repeat] ?? 0;
    for (let i = 1; i < repeat; i++) if (values[h * repeat + i] !== value) return null;
    out[h] = value;
  }
  return out;
}

function findA(constants: ReadonlyMap<string, Tensor>, dims: ScanDims): { name: string; values: Float64Array }[] {
  const out: { name: string; values: Float64Array }[] = [];
  for (const [name, tensor] of constants) {
    const count = elementCount(tensor.shape);
    if (count % dims.heads !== 0 || count > dims.heads * dims.headDim * dims.dState) continue;
    const values = toNumbers(tensor);
    if (!values.every((value) => value <= 0) || values.every((value) => value === 0)) continue;
    const vector = perHead(tensor, dims.heads);
    if (dims.family === "mamba2") {
      if (vector !== null) out.push({ name, values: vector });
    } else if (count === dims.heads * dims.dState) {
      out.push({ name, values });
    } else if (vector !== null) {
      const full = new Float64Array(dims.heads * dims.dState);
      for (let e = 0; e < dims.heads; e++) full.fill(vector[e] ?? 0, e * dims.dState, (e + 1) * dims.dState);
      out.push({ name, values: full });
    }
  }
  return out;
}

/** Candidates for D: per head, per channel, and none. */
function findD(constants: ReadonlyMap<string, Tensor>, dims: ScanDims, notA: string): (Float64Array | null)[] {
  const out: (Float64Array | null)[] = [];
  const channels = dims.heads * dims.headDim;
  for (const [name, tensor] of constants) {
    if (name === notA) continue;
    const count = elementCount(tensor.shape);
    if (count === channels) out.push(toNumbers(tensor));
    else if (count === dims.heads) {
      const values = toNumbers(tensor);
      out.push(Float64Array.from({ length: channels }, (_, at) => values[Math.floor(at / dims.headDim)] ?? 0));
    }
  }
  out.push(null);
  return out;
}

/** Ends that could be y: exits first, then values above them. */
function findY(tracer: Tracer, region: ScanRegion, channels: number): string[] {
  const fits = (name: string): boolean => layoutOf(tracer.view, name)?.channels === channels;
  const exits = region.exits.filter((name) => fits(name) && !isStateLike(tracer, region, name));
  const deeper = region.inside.filter((name) => fits(name) && !exits.includes(name)).slice(0, 8);
  return [...exits.reverse(), ...deeper];
}

function isStateLike(tracer: Tracer, region: ScanRegion, name: string): boolean {
  if (region.pastState === null) return false;
  const past = concrete(tracer.view, region.pastState)?.shape;
  const shape = concrete(tracer.view, name)?.shape;
  return (
    past != null && shape != null && past.length === shape.length && past.every((size, axis) => size === shape[axis])
  );
}

function findState(tracer: Tracer, region: ScanRegion, dims: ScanDims): { name: string | null; layout: StateLayout }[] {
  const rows = dims.heads * dims.headDim;
  const batch = tracer.view.sizes.batch;
  const out: { name: string | null; layout: StateLayout }[] = [];
  for (const exit of region.exits) {
    const shape = concrete(tracer.view, exit)?.shape;
    if (shape == null || !tracer.index.outputs.has(exit) || elementCount(shape) !== batch * rows * dims.dState)
      continue;
    const tail = shape.slice(-2);
    if (tail[0] === (dims.family === "mamba1" ? dims.heads : dims.headDim) && tail[1] === dims.dState)
      out.push({ name: exit, layout: "PN" });
    if (dims.family === "mamba2" && tail[0] === dims.dState && tail[1] === dims.headDim)
      out.push({ name: exit, layout: "NP" });
  }
  if (out.length === 0) out.push({ name: null, layout: "PN" });
  return out;
}

type Measurement =
  | { readonly kind: "ran"; readonly feeds: ReadonlyMap<string, Tensor>; readonly outputs: ReadonlyMap<string, Tensor> }
  | { readonly kind: "failed"; readonly reason: string };

/** Runs the region once on random inputs at the sizes of the trial. */
async function measure(
  tracer: Tracer,
  region: ScanRegion,
  hypothesis: Hypothesis,
  trial: Trial,
  execute: ExecuteGraph,
): Promise<Measurement> {
  const leaves = [region.dt, ...region.roots, ...(region.pastState === null ? [] : [region.pastState])];
  const outputs = [hypothesis.y, ...(hypothesis.presentState === null ? [] : [hypothesis.presentState])];
  const cut = cutRegion(tracer.graph, trial.inference, leaves, outputs);
  if (cut.kind === "open") return { kind: "failed", reason: `the region cannot be cut out: ${cut.reason}` };
  const sampler = new Sampler(`${region.dt}/${trial.sizes.batch}/${trial.sizes.length}`);
  const feeds = new Map<string, Tensor>();
  for (const leaf of cut.leaves) {
    const size = elementCount(leaf.shape);
    feeds.set(
      leaf.name,
      tensorFromNumbers(
        leaf.dtype,
        leaf.shape,
        leaf.name === region.dt ? sampler.timeSteps(size, trial.sizes.length <= EXTREME_LENGTH) : sampler.normal(size),
      ),
    );
  }
  try {
    return { kind: "ran", feeds, outputs: await execute(cut.graph, feeds) };
  } catch (cause) {
    return { kind: "failed", reason: cause instanceof Error ? cause.message : String(cause) };
  }
}

/** Relative error of y and of the state against the float64 reference. */
function compare(
  tracer: Tracer,
  region: ScanRegion,
  hypothesis: Hypothesis,
  trial: Trial,
  result: Extract<Measurement, { kind: "ran" }>,
): number {
  const { batch, length } = trial.sizes;
  const { parameters } = hypothesis;
  const canonical = (name: string, tensor: Tensor | undefined, channels: number): Float64Array => {
    const layout = layoutOf(tracer.view, name);
    if (tensor === undefined || layout === null) return new Float64Array(batch * length * channels);
    return toCanonical(layout, toNumbers(tensor), batch, length);
  };
  const { heads, headDim, dState, groups } = parameters;
  const [x, B, C] = hypothesis.roles;
  const rows = heads * headDim;
  const past = region.pastState === null ? null : result.feeds.get(region.pastState);
  const args: SelectiveScanArguments = {
    batch,
    length,
    headDim: parameters.family === "mamba2" ? headDim : pseudoHeadDim(heads),
    dState,
    groups,
    x: canonical(x, result.feeds.get(x), rows),
    dt: canonical(region.dt, result.feeds.get(region.dt), heads),
    B: canonical(B, result.feeds.get(B), groups * dState),
    C: canonical(C, result.feeds.get(C), groups * dState),
    A: parameters.A,
    D: parameters.D,
    dtBias: parameters.dtBias,
    dtMin: parameters.dtMin,
    dtMax: parameters.dtMax,
    past: past === null || past === undefined ? null : stateToCanonical(toNumbers(past), hypothesis, batch),
    ...(parameters.family === "mamba2" ? { family: "mamba2", heads } : { family: "mamba1", channels: heads }),
  };
  const reference = selectiveScanReference(args);
  const y = canonical(hypothesis.y, result.outputs.get(hypothesis.y), rows);
  let error = relativeError(y, reference.y);
  if (hypothesis.presentState !== null) {
    const state = result.outputs.get(hypothesis.presentState);
    if (state === undefined) return Number.POSITIVE_INFINITY;
    error = Math.max(error, relativeError(stateToCanonical(toNumbers(state), hypothesis, batch), reference.state));
  }
  return error;
}

/** State data in the public layout -> [B, H, P, N]. */
function stateToCanonical(data: Float64Array, hypothesis: Hypothesis, batch: number): Float64Array {
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

/** Largest absolute difference over the largest absolute reference; infinite when sizes or NaNs disagree. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  let difference = 0;
  let scale = 0;
  for (let i = 0; i < actual.length; i++) {
    const a = actual[i] ?? Number.NaN;
    const b = expected[i] ?? Number.NaN;
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.POSITIVE_INFINITY;
    difference = Math.max(difference, Math.abs(a - b));
    scale = Math.max(scale, Math.abs(b));
  }
  return scale === 0 ? (difference === 0 ? 0 : Number.POSITIVE_INFINITY) : difference / scale;
}
