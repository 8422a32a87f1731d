/**
 * What a candidate region could be: every assignment of x, B, C, y, A, D and the state that the sizes allow. Which one it
 * is, if any, is found out by running them (`scan-proof.ts`).
 */

import { type Tensor, toNumbers } from "../ir/tensor.js";
import { elementCount } from "../ir/types.js";
import { concrete } from "./axes.js";
import { type Layout, layoutOf, layoutsOf } from "./layout.js";
import { type ExecuteGraph, evaluateConstants } from "./region.js";
import type { ScanRegion } from "./scan-region.js";
import type { Tracer } from "./trace.js";

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

/** A value of the graph and how its axes are read. */
export interface Part {
  readonly name: string;
  readonly layout: Layout;
}

export interface Hypothesis {
  readonly parameters: ScanParameters;
  readonly dt: Part;
  readonly x: Part;
  readonly B: Part;
  readonly C: Part;
  readonly y: Part;
  readonly presentState: string | null;
  readonly stateLayout: StateLayout;
}

/** Every assignment that the sizes allow, likeliest first. Empty when dt's bias is no vector of its channels. */
export async function makeHypotheses(tracer: Tracer, region: ScanRegion, execute: ExecuteGraph): Promise<Hypothesis[]> {
  const { view } = tracer;
  const partsOf = (name: string): Part[] => layoutsOf(view, name).map((layout) => ({ name, layout }));
  const constants = await evaluateConstants(
    tracer.graph,
    view.first,
    [...new Set([...region.weights, ...(region.dtBias === null ? [] : [region.dtBias])])].filter((name) =>
      isSmallFloat(tracer, name),
    ),
    execute,
  );
  const parts = new Map(region.roots.map((root) => [root, partsOf(root)]));
  const out: Hypothesis[] = [];
  for (const dt of partsOf(region.dt)) {
    const { channels } = dt.layout;
    const dtBias = region.dtBias === null ? null : perHead(constants.get(region.dtBias), channels);
    if (region.dtBias !== null && dtBias === null) continue;
    const step: StepParameters = { dtBias, ...clampOf(tracer, region, channels) };
    for (const [x, B, C] of permutations(region.roots)) {
      for (const roles of combinations(parts.get(x) ?? [], parts.get(B) ?? [], parts.get(C) ?? []))
        out.push(...hypothesesFor(tracer, region, constants, { dt, ...roles }, step));
    }
  }
  return out;
}

type StepParameters = Pick<ScanParameters, "dtBias" | "dtMin" | "dtMax">;

function hypothesesFor(
  tracer: Tracer,
  region: ScanRegion,
  constants: ReadonlyMap<string, Tensor>,
  roles: Pick<Hypothesis, "dt" | "x" | "B" | "C">,
  step: StepParameters,
): Hypothesis[] {
  const heads = roles.dt.layout.channels;
  const rows = roles.x.layout.channels;
  const width = roles.B.layout.channels;
  if (width !== roles.C.layout.channels || rows % heads !== 0) return [];
  const out: Hypothesis[] = [];
  for (const dims of sizesFor(tracer, region, heads, rows, width)) {
    for (const A of findA(constants, dims)) {
      for (const D of findD(constants, dims, A.name)) {
        for (const y of findY(tracer, region, rows)) {
          for (const state of findState(tracer, region, dims)) {
            out.push({
              parameters: { ...dims, A: A.values, D, ...step },
              ...roles,
              y,
              presentState: state.name,
              stateLayout: state.layout,
            });
          }
        }
      }
    }
  }
  return out;
}

function combinations(x: readonly Part[], B: readonly Part[], C: readonly Part[]): Pick<Hypothesis, "x" | "B" | "C">[] {
  return x.flatMap((one) => B.flatMap((two) => C.map((three) => ({ x: one, B: two, C: three }))));
}

/** Bounds on values of dt's size. */
function clampOf(tracer: Tracer, region: ScanRegion, channels: number): { dtMin: number; dtMax: number } {
  const { batch, length } = tracer.view.sizes;
  const clamps = region.clamps.filter((clamp) => {
    const shape = concrete(tracer.view, clamp.value)?.shape;
    return shape != null && elementCount(shape) % (batch * length * channels) === 0;
  });
  return {
    dtMin: clamps.reduce((low, clamp) => Math.max(low, clamp.low), Number.NEGATIVE_INFINITY),
    dtMax: clamps.reduce((high, clamp) => Math.min(high, clamp.high), Number.POSITIVE_INFINITY),
  };
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
function findY(tracer: Tracer, region: ScanRegion, channels: number): Part[] {
  const parts = (name: string): Part[] =>
    layoutsOf(tracer.view, name).flatMap((layout) => (layout.channels === channels ? [{ name, layout }] : []));
  const exits = region.exits.filter((name) => parts(name).length > 0 && !isStateLike(tracer, region, name));
  const deeper = region.inside.filter((name) => parts(name).length > 0 && !exits.includes(name)).slice(0, 8);
  return [...exits.reverse(), ...deeper].flatMap(parts);
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
