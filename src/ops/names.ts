/** Names of the emitted operators and the state each of them carries: `runtime-ops/README.md` in code. */

import { type DType, elementCount, packedBytes } from "../ir/types.js";
import { assertNever, invariant, MambacError } from "../support/errors.js";

/** Domain and version of every emitted operator. */
export const OP_DOMAIN = "com.mambac";
export const OP_VERSION = 1;

export type Family = "mamba1" | "mamba2";
/** Element type of activations: what operators read and write beside states and parameters. */
export type FloatType = "f32" | "f16";
export const FLOAT_TYPES: readonly FloatType[] = ["f32", "f16"];
/** How the recurrent state is stored between calls. */
export type StateFormat = "f32" | "f16" | "h8" | "h4";
/** Channel scale of the packed formats: sqrt(mean |h|), max |h|, or both scales from calibration, frozen. */
export type StateScale = "dsq" | "dsq-max" | "static";
/**
 * When the state is rounded to its format: once at the end of a call, after every token in it, or once in so many tokens
 * wherever the calls end, the tokens since then being kept beside it.
 */
export type Requantize = "call" | "token" | "replay";

const FAMILIES: readonly Family[] = ["mamba1", "mamba2"];
export const STATE_FORMATS: readonly StateFormat[] = ["f32", "f16", "h8", "h4"];
export const STATE_SCALES: readonly StateScale[] = ["dsq", "dsq-max", "static"];
export const REQUANTIZE_MODES: readonly Requantize[] = ["call", "token", "replay"];

/** Tokens between two roundings of a replay state. */
export const DEFAULT_REPLAY_LENGTH = 16;
export const MAX_REPLAY_LENGTH = 64;

/** What a scan operator's name says. `scale` means nothing for f32 and f16, `requantize` nothing for f32. */
export interface ScanSpec {
  readonly family: Family;
  readonly format: StateFormat;
  readonly scale: StateScale;
  readonly requantize: Requantize;
}

export type OpSpec =
  | ({ readonly kind: "scan" } & ScanSpec)
  | { readonly kind: "conv"; readonly activation: "none" | "silu"; readonly layout: ConvLayout }
  | { readonly kind: "rotation"; readonly codes: boolean }
  | { readonly kind: "gate"; readonly gate: GateKind; readonly codes: boolean };

/** Channels before tokens, tokens before channels, or the latter with the channels handed out in three parts. */
export type ConvLayout = "channels" | "rows" | "split";
const CONV_SUFFIX: Readonly<Record<ConvLayout, string>> = { channels: "", rows: "Rows", split: "Split" };

/** y * silu(z), the same with a factor a channel inside the sigmoid, or with an RMS norm. */
export type GateKind = "plain" | "sloped" | "norm";

/** The operator's name; `scale` defaults to 'dsq' and `requantize` to 'call', both dropped where they mean nothing. */
export function opName(spec: {
  readonly family: Family;
  readonly format: StateFormat;
  readonly scale?: StateScale;
  readonly requantize?: Requantize;
}): string {
  const family = spec.family === "mamba1" ? "Mamba1" : "Mamba2";
  return `${family}Scan${spec.format.toUpperCase()}${scaleName(spec)}${roundingName(spec)}`;
}

function scaleName(spec: {
  readonly family: Family;
  readonly format: StateFormat;
  readonly scale?: StateScale;
}): string {
  if (!isPacked(spec.format)) return "";
  if (isStatic(spec)) {
    invariant(spec.family === "mamba2", `opName: ${spec.family} has no static scales`);
    return "Static";
  }
  return spec.scale === "dsq-max" ? "Max" : "";
}

function roundingName(spec: {
  readonly family: Family;
  readonly format: StateFormat;
  readonly scale?: StateScale;
  readonly requantize?: Requantize;
}): string {
  if (spec.requantize === "replay") {
    invariant(
      hasReplay(spec) && !isStatic(spec),
      `opName: ${spec.family} with a ${spec.format} state has no replay form`,
    );
    return "Replay";
  }
  return spec.format !== "f32" && spec.requantize === "token" ? "Token" : "";
}

/** Whether a scan of this family and format can keep tokens for replay: Mamba-2 with packed states. */
export function hasReplay(spec: { readonly family: Family; readonly format: StateFormat }): boolean {
  return spec.family === "mamba2" && isPacked(spec.format);
}

/** Packed codes whose steps are an input of the operator instead of part of the state: Mamba-2 only. */
export function isStatic(spec: { readonly format: StateFormat; readonly scale?: StateScale }): boolean {
  return isPacked(spec.format) && spec.scale === "static";
}

/** Name of the convolution operator. */
export function convName(activation: "none" | "silu", layout: ConvLayout = "channels"): string {
  return `${activation === "silu" ? "CausalConvSilu" : "CausalConv"}${CONV_SUFFIX[layout]}`;
}

/** Name of the online Hadamard rotation. */
export const ROTATION_OP = "HadamardRotate";
/** What the names of operators end in that give 8-bit codes of their result, as a QuantizeLinear behind them would. */
const CODES_SUFFIX = "Q8";
/** Largest order of a rotation's dense factor that the operator takes. */
export const MAX_ROTATION_ORDER = 256;

/** Name of a gate. */
export function gateName(gate: GateKind): string {
  switch (gate) {
    case "plain":
      return "SiluGate";
    case "sloped":
      return "SlopedSiluGate";
    case "norm":
      return "GatedRMSNorm";
    default:
      return assertNever(gate);
  }
}

/** The operator that gives the result of a rotation or a gate as codes, or null where no such operator is. */
export function codesOp(name: string): string | null {
  const spec = parseOpName(name);
  const has = spec !== null && (spec.kind === "rotation" || spec.kind === "gate") && !spec.codes;
  return has ? `${name}${CODES_SUFFIX}` : null;
}

const SPECS: ReadonlyMap<string, OpSpec> = new Map(allSpecs());

function* allSpecs(): Generator<[string, OpSpec]> {
  for (const family of FAMILIES) {
    for (const format of STATE_FORMATS) {
      for (const scale of scalesOf(family, format)) {
        for (const requantize of roundingsOf(family, format, scale)) {
          const spec: OpSpec = { kind: "scan", family, format, scale, requantize };
          yield [opName(spec), spec];
        }
      }
    }
  }
  for (const layout of ["channels", "rows", "split"] as const) {
    for (const activation of ["none", "silu"] as const)
      yield [convName(activation, layout), { kind: "conv", activation, layout }];
  }
  for (const codes of [false, true]) {
    const named = (name: string): string => (codes ? `${name}${CODES_SUFFIX}` : name);
    yield [named(ROTATION_OP), { kind: "rotation", codes }];
    for (const gate of ["plain", "norm", "sloped"] as const)
      yield [named(gateName(gate)), { kind: "gate", gate, codes }];
  }
}

function scalesOf(family: Family, format: StateFormat): readonly StateScale[] {
  if (!isPacked(format)) return ["dsq"];
  return family === "mamba2" ? STATE_SCALES : ["dsq", "dsq-max"];
}

function roundingsOf(family: Family, format: StateFormat, scale: StateScale): readonly Requantize[] {
  if (format === "f32") return ["call"];
  return hasReplay({ family, format }) && scale !== "static" ? ["call", "token", "replay"] : ["call", "token"];
}

/** Every operator name, in a fixed order. */
export function opNames(): string[] {
  return [...SPECS.keys()];
}

/** What a name stands for, or null when it is not one of ours. */
export function parseOpName(name: string): OpSpec | null {
  return SPECS.get(name) ?? null;
}

/** H8 and H4: codes and scales in one uint8 tensor. */
export function isPacked(format: StateFormat): format is "h8" | "h4" {
  return format === "h8" || format === "h4";
}

/** Largest code of a packed format. */
export function maxCode(format: "h8" | "h4"): number {
  return format === "h8" ? 127 : 7;
}

/** Bytes of one packed head: codes [P, N], then P channel scales and N state scales as halves unless they are static. */
export function packedHeadBytes(
  format: "h8" | "h4",
  headDim: number,
  dState: number,
  scale: StateScale = "dsq",
): number {
  const codes = (headDim * dState) / (format === "h8" ? 1 : 2);
  return scale === "static" ? codes : codes + 2 * headDim + 2 * dState;
}

/** Sizes of a state: `heads` is H for Mamba-2 and E / headDim for Mamba-1. */
export interface StateDims {
  readonly heads: number;
  readonly headDim: number;
  readonly dState: number;
  /** G; only a replay state depends on it. */
  readonly groups?: number;
  /** R; only a replay state depends on it. */
  readonly replayLength?: number;
}

/** All sizes of a replay state. */
export type ReplayDims = Required<StateDims>;

/** Where the parts of a replay state begin in the bytes of one sequence. */
export interface ReplayLayout {
  readonly u: number;
  readonly l: number;
  readonly b: number;
  readonly count: number;
  /** Bytes of the whole, a multiple of 64. */
  readonly bytes: number;
}

/** A sequence's state begins on a cache line. */
const REPLAY_ALIGNMENT = 64;

/** The layout of one sequence's replay state; the checkpoint is at 0. Throws `state/replay-length`. */
export function replayLayout(format: "h8" | "h4", dims: ReplayDims): ReplayLayout {
  const { heads, headDim, dState, groups } = dims;
  const replayLength = checkedReplayLength(dims.replayLength);
  const u = heads * packedHeadBytes(format, headDim, dState);
  const l = u + 2 * heads * replayLength * headDim;
  const b = l + 4 * heads * replayLength;
  const count = b + 2 * groups * replayLength * dState;
  return { u, l, b, count, bytes: REPLAY_ALIGNMENT * Math.ceil((count + 4) / REPLAY_ALIGNMENT) };
}

/** The value, where it is a possible number of tokens between roundings. Throws `state/replay-length`. */
export function checkedReplayLength(value: number): number {
  if (Number.isInteger(value) && value >= 1 && value <= MAX_REPLAY_LENGTH) return value;
  throw new MambacError(
    "state/replay-length",
    `a replay state is rounded once in 1 to ${MAX_REPLAY_LENGTH} tokens, not in ${value}`,
  );
}

/** dtype, shape of one sequence (no batch axis) and bytes of one sequence. */
export function stateType(
  spec: {
    readonly family: Family;
    readonly format: StateFormat;
    readonly scale?: StateScale;
    readonly requantize?: Requantize;
  },
  dims: StateDims,
): { readonly dtype: DType; readonly shape: readonly number[]; readonly bytes: number } {
  const { heads, headDim, dState } = dims;
  if (isPacked(spec.format)) {
    if (spec.format === "h4" && dState % 2 !== 0) {
      throw new MambacError(
        "state/odd-width",
        `a 4-bit state needs an even d_state, this one has ${dState}: choose h8, f16 or f32 for it`,
      );
    }
    if (spec.requantize === "replay") {
      const { groups, replayLength = DEFAULT_REPLAY_LENGTH } = dims;
      invariant(
        hasReplay(spec) && groups !== undefined,
        "stateType: a replay state is of Mamba-2 and needs its groups",
      );
      const { bytes } = replayLayout(spec.format, { heads, headDim, dState, groups, replayLength });
      return { dtype: "u8", shape: [bytes], bytes };
    }
    const shape = [heads, packedHeadBytes(spec.format, headDim, dState, spec.scale)];
    return { dtype: "u8", shape, bytes: elementCount(shape) };
  }
  const shape = spec.family === "mamba2" ? [heads, headDim, dState] : [heads * headDim, dState];
  return { dtype: spec.format, shape, bytes: packedBytes(spec.format, shape) ?? 0 };
}

/**
 * Pseudo-head size of a Mamba-1 layer: the largest divisor of `channels` that is at most 32. Scales shared by 64 channels lose
 * a third more at 4 bits (w8a8h4 on a trained model: 0.36 % against 0.26 %) and save 2 % of the state.
 */
export function pseudoHeadDim(channels: number): number {
  for (let size = Math.min(32, channels); size > 1; size--) if (channels % size === 0) return size;
  return 1;
}
