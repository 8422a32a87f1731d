/** One-node models of the scan operators, random inputs for them, and how far a run is from the float64 reference. */

import { type Model, makeGraph, makeModel, makeValue, type Node } from "../../src/ir/graph.js";
import { f32Tensor, numberToFloat16, type Tensor, tensorFromBytes, toNumbers } from "../../src/ir/tensor.js";
import { tensorType } from "../../src/ir/types.js";
import { encodeModel } from "../../src/onnx/write.js";
import { opFunction } from "../../src/ops/functions.js";
import {
  DEFAULT_REPLAY_LENGTH,
  isPacked,
  isStatic,
  OP_DOMAIN,
  OP_VERSION,
  packedHeadBytes,
  type ReplayDims,
  replayLayout,
  type ScanSpec,
  type StateScale,
  stateType,
} from "../../src/ops/names.js";
import { scanNode } from "../../src/ops/nodes.js";
import { packState, roundToHalf } from "../../src/ops/packed-state.js";
import { type SelectiveScanResult, selectiveScanReference } from "../../src/ops/reference.js";
import { type ReplayState, readReplay, writeReplay } from "../../src/ops/replay-state.js";
import { packStaticHead, type StaticSteps } from "../../src/ops/static-state.js";
import { openSession, type Session, type SessionOptions } from "../../src/run/session.js";

export interface ScanSizes {
  readonly batch: number;
  readonly length: number;
  /** H for Mamba-2; E / headDim for Mamba-1. */
  readonly heads: number;
  readonly headDim: number;
  readonly dState: number;
  readonly groups: number;
  readonly chunkSize: number;
  readonly dtMin: number;
  readonly dtMax: number;
  /** R of a replay state; default 16. */
  readonly replayLength?: number;
}

export interface ScanData {
  readonly x: Float32Array;
  readonly dt: Float32Array;
  readonly A: Float32Array;
  readonly B: Float32Array;
  readonly C: Float32Array;
  readonly D: Float32Array;
  readonly dtBias: Float32Array;
  readonly past: Float32Array | Uint8Array;
  /** Of static scales: steps of rows [H, P] and columns [G, N]. */
  readonly steps?: { readonly rowStep: Float32Array; readonly columnStep: Float32Array };
}

/** Deterministic noise. */
export class Noise {
  #state: number;

  constructor(seed: number) {
    this.#state = (seed ^ 0x9e3779b9) >>> 0;
  }

  uniform(): number {
    // mulberry32
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  normals(count: number, scale: number = 1): Float32Array {
    return Float32Array.from({ length: count }, () => scale * this.normal());
  }
}

/** Values like those of trained models: A from -0.05 to -16, step sizes from 0.001 to several. */
export function randomData(spec: ScanSpec, sizes: ScanSizes, seed: number): ScanData {
  const noise = new Noise(seed);
  const { batch, length, heads, headDim, dState, groups } = sizes;
  const rows = heads * headDim;
  const steps = spec.family === "mamba2" ? heads : rows;
  const rates = spec.family === "mamba2" ? heads : rows * dState;
  // Halves, so that every format starts from the same state.
  const state = noise.normals(batch * rows * dState, 2).map(roundToHalf);
  const { format, scale } = spec;
  const dims = { heads: batch * heads, headDim, dState };
  // Steps of their own noise: the other values are those of every format.
  const given = isStatic(spec) ? randomSteps(spec, sizes, new Noise(seed + 1)) : null;
  const packed = !isPacked(format)
    ? null
    : given !== null
      ? packStaticState(state, { ...sizes, format, ...given })
      : scale === "static"
        ? null
        : packState(state, dims, format, scale);
  return {
    ...(given === null ? {} : { steps: given }),
    x: noise.normals(batch * length * rows),
    dt: noise.normals(batch * length * steps),
    A: Float32Array.from({ length: rates }, () => -Math.exp(Math.log(0.05) + noise.uniform() * Math.log(320))),
    B: noise.normals(batch * length * groups * dState),
    C: noise.normals(batch * length * groups * dState),
    D: noise.normals(rows),
    dtBias: Float32Array.from({ length: steps }, () => -7 + 8 * noise.uniform()),
    past: packed === null ? state : spec.requantize === "replay" ? replayPast(spec, sizes, packed, noise) : packed,
  };
}

/** Steps that fit most of a random state and clip some of it. */
function randomSteps(spec: ScanSpec, s: ScanSizes, noise: Noise): NonNullable<ScanData["steps"]> {
  const about = (length: number, size: number): Float32Array =>
    Float32Array.from({ length }, () => size * Math.exp(0.3 * noise.normal()));
  return {
    rowStep: about(s.heads * s.headDim, 2),
    columnStep: about(s.groups * s.dState, spec.format === "h8" ? 3 / 127 : 3 / 7),
  };
}

function packStaticState(state: Float32Array, steps: StaticSteps & { readonly batch: number }): Uint8Array {
  const { batch, heads, headDim, dState, format } = steps;
  const size = headDim * dState;
  const out = new Uint8Array(batch * heads * packedHeadBytes(format, headDim, dState, "static"));
  for (let index = 0; index < batch * heads; index++) {
    packStaticHead(state.subarray(index * size, (index + 1) * size), steps, index, out);
  }
  return out;
}

/** The sizes a replay state depends on. */
export function replayDims(sizes: ScanSizes): ReplayDims {
  return { ...sizes, replayLength: sizes.replayLength ?? DEFAULT_REPLAY_LENGTH };
}

/** Checkpoints [B, H, bytes] with rings of random tokens, every sequence with a count of its own: [B, S]. */
function replayPast(spec: ScanSpec, sizes: ScanSizes, checkpoints: Uint8Array, noise: Noise): Uint8Array {
  if (!isPacked(spec.format)) throw new Error("only packed states are replayed");
  const dims = replayDims(sizes);
  const stride = checkpoints.length / sizes.batch;
  const parts: Uint8Array[] = [];
  for (let b = 0; b < sizes.batch; b++) {
    const tokens = Array.from({ length: Math.floor(noise.uniform() * dims.replayLength) }, () => ({
      u: Float64Array.from(noise.normals(dims.heads * dims.headDim, 0.3), roundToHalf),
      l: Float64Array.from(noise.normals(dims.heads), (value) => Math.fround(-Math.abs(value))),
      b: Float64Array.from(noise.normals(dims.groups * dims.dState), roundToHalf),
    }));
    parts.push(
      writeReplay({ checkpoint: checkpoints.subarray(b * stride, (b + 1) * stride), tokens }, spec.format, dims),
    );
  }
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

/** The sequences of a replay state [B, S]. */
export function replayStates(spec: ScanSpec, sizes: ScanSizes, bytes: Uint8Array): ReplayState[] {
  if (!isPacked(spec.format)) throw new Error("only packed states are replayed");
  const { format } = spec;
  const stride = replayLayout(format, replayDims(sizes)).bytes;
  return Array.from({ length: sizes.batch }, (_, b) =>
    readReplay(bytes.slice(b * stride, (b + 1) * stride), format, replayDims(sizes)),
  );
}

/** A model of one scan node, all of whose values are graph inputs and outputs. `fixed` declares its batch and length as numbers. */
export function scanModel(spec: ScanSpec, sizes: ScanSizes, fixed: boolean = false): Uint8Array {
  const { heads, headDim, dState, groups, chunkSize, dtMin, dtMax } = sizes;
  const rows = heads * headDim;
  const [batch, length] = fixed ? [sizes.batch, sizes.length] : ["batch", "length"];
  const inputs = [
    "x",
    "dt",
    "A",
    "B",
    "C",
    "D",
    "dt_bias",
    "past",
    ...(isStatic(spec) ? ["row_step", "column_step"] : []),
  ];
  const node = scanNode(
    spec.family === "mamba2"
      ? { ...spec, ...replayDims(sizes), family: "mamba2", heads, chunkSize, headDim, dState, groups, dtMin, dtMax }
      : { ...spec, family: "mamba1", channels: rows, headDim, dState, groups, dtMin, dtMax },
    inputs,
    ["y", "present"],
  );
  const state = stateType(spec, sizes);
  const perRow = spec.family === "mamba2" ? [heads, headDim] : [rows];
  const steps = spec.family === "mamba2" ? heads : rows;
  const types = new Map([
    ["x", tensorType("f32", [batch, length, ...perRow])],
    ["dt", tensorType("f32", [batch, length, steps])],
    ["A", tensorType("f32", spec.family === "mamba2" ? [heads] : [rows, dState])],
    ["B", tensorType("f32", [batch, length, groups, dState])],
    ["C", tensorType("f32", [batch, length, groups, dState])],
    ["D", tensorType("f32", perRow)],
    ["dt_bias", tensorType("f32", [steps])],
    ["past", tensorType(state.dtype, [batch, ...state.shape])],
    ["row_step", tensorType("f32", [heads, headDim])],
    ["column_step", tensorType("f32", [groups, dState])],
    ["y", tensorType("f32", [batch, length, ...perRow])],
    ["present", tensorType(state.dtype, [batch, ...state.shape])],
  ]);
  return oneNodeModel(node, inputs, ["y", "present"], types);
}

/** Encodes a model of one node of our domain together with its function. */
export function oneNodeModel(
  node: Node,
  inputs: readonly string[],
  outputs: readonly string[],
  types: ReadonlyMap<string, ReturnType<typeof tensorType>>,
): Uint8Array {
  const values = (names: readonly string[]): ReturnType<typeof makeValue>[] =>
    names.map((name) => makeValue(name, types.get(name) ?? null));
  const model: Model = makeModel(
    makeGraph({ name: "one", inputs: values(inputs), outputs: values(outputs), nodes: [node] }),
    {
      opsets: new Map([
        ["", 21],
        [OP_DOMAIN, OP_VERSION],
      ]),
      functions: [opFunction(node.op)],
    },
  );
  return encodeModel(model);
}

/** Tensors of a scan's inputs. */
export function scanFeeds(spec: ScanSpec, sizes: ScanSizes, data: ScanData): Map<string, Tensor> {
  const { batch, length, heads, headDim, dState, groups } = sizes;
  const rows = heads * headDim;
  const perRow = spec.family === "mamba2" ? [heads, headDim] : [rows];
  const steps = spec.family === "mamba2" ? heads : rows;
  const vectors = [batch, length, groups, dState];
  return new Map([
    ["x", f32Tensor([batch, length, ...perRow], data.x)],
    ["dt", f32Tensor([batch, length, steps], data.dt)],
    ["A", f32Tensor(spec.family === "mamba2" ? [heads] : [rows, dState], data.A)],
    ["B", f32Tensor(vectors, data.B)],
    ["C", f32Tensor(vectors, data.C)],
    ["D", f32Tensor(perRow, data.D)],
    ["dt_bias", f32Tensor([steps], data.dtBias)],
    ["past", stateTensor(spec, sizes, data.past)],
    ...(data.steps === undefined
      ? []
      : [
          ["row_step", f32Tensor([heads, headDim], data.steps.rowStep)] as const,
          ["column_step", f32Tensor([groups, dState], data.steps.columnStep)] as const,
        ]),
  ]);
}

function stateTensor(spec: ScanSpec, sizes: ScanSizes, past: Float32Array | Uint8Array): Tensor {
  const { dtype, shape } = stateType(spec, sizes);
  const full = [sizes.batch, ...shape];
  if (past instanceof Uint8Array) return tensorFromBytes("u8", full, past);
  if (dtype === "f16")
    return tensorFromBytes("f16", full, new Uint8Array(Uint16Array.from(past, numberToFloat16).buffer));
  return f32Tensor(full, past);
}

export interface ScanRun {
  readonly y: Float64Array;
  /** The present state as it came out. */
  readonly present: Tensor;
}

/** Runs a scan model. */
export async function runScan(
  session: Session,
  spec: ScanSpec,
  sizes: ScanSizes,
  data: ScanData,
  past?: Tensor,
): Promise<ScanRun> {
  const feeds = scanFeeds(spec, sizes, data);
  if (past !== undefined) feeds.set("past", past);
  const outputs = await session.run(feeds);
  const y = outputs.get("y");
  const present = outputs.get("present");
  if (y === undefined || present === undefined) throw new Error("the scan gave no outputs");
  return { y: toNumbers(y), present };
}

/** The float64 reference on the same data. */
export function referenceScan(spec: ScanSpec, sizes: ScanSizes, data: ScanData): SelectiveScanResult {
  const { batch, length, heads, headDim, dState, groups, dtMin, dtMax } = sizes;
  const { x, dt, A, B, C, D, dtBias, past, steps } = data;
  const { format, scale, requantize } = spec;
  const rest = { batch, length, headDim, dState, groups, dtMin, dtMax, x, dt, A, B, C, D, dtBias, past };
  const rounding = { format, scale, requantize, replayLength: replayDims(sizes).replayLength, ...steps };
  return spec.family === "mamba2"
    ? selectiveScanReference({ family: "mamba2", heads, ...rest, ...rounding })
    : selectiveScanReference({ family: "mamba1", channels: heads * headDim, ...rest, ...rounding });
}

/** Opens the one-node model. */
export function openScan(spec: ScanSpec, sizes: ScanSizes, options?: SessionOptions): Promise<Session> {
  return openSession(scanModel(spec, sizes), options);
}

/** max |a - b| / max |b| over finite b; NaN or an infinity of one alone gives NaN or Infinity. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let scale = 0;
  let worst = 0;
  for (let i = 0; i < expected.length; i++) {
    const [a, b] = [actual[i] ?? Number.NaN, expected[i] ?? Number.NaN];
    if (Number.isFinite(b)) scale = Math.max(scale, Math.abs(b));
    if (a !== b) worst = Math.max(worst, Math.abs(a - b));
  }
  return scale === 0 ? worst : worst / scale;
}

/** What differs between two packed states. */
export interface CodeDifference {
  readonly codes: number;
  readonly different: number;
  readonly largest: number;
  /** Largest difference of a scale, in units of the last place of a half. */
  readonly scaleUlps: number;
}

/** Compares packed states [.., bytes] code by code and scale by scale. */
export function compareCodes(
  format: "h8" | "h4",
  headDim: number,
  dState: number,
  actual: Uint8Array,
  expected: Uint8Array,
  scale: StateScale = "dsq",
): CodeDifference {
  const stride = packedHeadBytes(format, headDim, dState, scale);
  const codeBytes = packedHeadBytes(format, headDim, dState, "static");
  let [codes, different, largest, scaleUlps] = [0, 0, 0, 0];
  for (let at = 0; at < expected.length; at += stride) {
    for (let i = 0; i < codeBytes; i++) {
      for (const shift of format === "h8" ? [0] : [0, 4]) {
        const difference = Math.abs(code(actual, at + i, shift, format) - code(expected, at + i, shift, format));
        codes += 1;
        if (difference > 0) different += 1;
        largest = Math.max(largest, difference);
      }
    }
    for (let i = codeBytes; i < stride; i += 2) {
      scaleUlps = Math.max(scaleUlps, Math.abs(word(actual, at + i) - word(expected, at + i)));
    }
  }
  return { codes, different, largest, scaleUlps };
}

function code(bytes: Uint8Array, at: number, shift: number, format: "h8" | "h4"): number {
  const byte = bytes[at] ?? 0;
  if (format === "h8") return byte > 127 ? byte - 256 : byte;
  const nibble = (byte >> shift) & 15;
  return nibble > 7 ? nibble - 16 : nibble;
}

function word(bytes: Uint8Array, at: number): number {
  return (bytes[at] ?? 0) + 256 * (bytes[at + 1] ?? 0);
}

/** Tokens start..end of a case. */
export function tokensOf(spec: ScanSpec, s: ScanSizes, data: ScanData, start: number, end: number): ScanData {
  const take = (values: Float32Array, width: number): Float32Array => {
    const out: number[] = [];
    for (let b = 0; b < s.batch; b++) {
      out.push(...values.subarray((b * s.length + start) * width, (b * s.length + end) * width));
    }
    return Float32Array.from(out);
  };
  return {
    ...data,
    x: take(data.x, s.heads * s.headDim),
    dt: take(data.dt, stepCount(spec, s)),
    B: take(data.B, s.groups * s.dState),
    C: take(data.C, s.groups * s.dState),
  };
}

/** y of consecutive calls [B, part, rows] as one [B, L, rows]. */
export function joinParts(s: ScanSizes, parts: readonly Float64Array[], lengths: readonly number[]): Float64Array {
  const rows = s.heads * s.headDim;
  const out = new Float64Array(s.batch * s.length * rows);
  let start = 0;
  parts.forEach((part, i) => {
    const width = lengths[i]! * rows;
    for (let b = 0; b < s.batch; b++) {
      out.set(part.subarray(b * width, (b + 1) * width), (b * s.length + start) * rows);
    }
    start += lengths[i]!;
  });
  return out;
}

/** Step sizes of one token. */
export function stepCount(spec: ScanSpec, s: ScanSizes): number {
  return spec.family === "mamba2" ? s.heads : s.heads * s.headDim;
}
