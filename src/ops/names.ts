/** Names of the emitted operators and the state each of them carries: `runtime-ops/README.md` in code. */

import { type DType, elementCount, packedBytes } from "../ir/types.js";
import { MambacError } from "../support/errors.js";

/** Domain and version of every emitted operator. */
export const OP_DOMAIN = "com.mambac";
export const OP_VERSION = 1;

export type Family = "mamba1" | "mamba2";
/** How the recurrent state is stored between calls. */
export type StateFormat = "f32" | "f16" | "h8" | "h4";
/** Channel scale of the packed formats: sqrt(mean |h|) or max |h|. */
export type StateScale = "dsq" | "dsq-max";
/** When the state is rounded to its format: once at the end of a call, or after every token in it. */
export type Requantize = "call" | "token";

const FAMILIES: readonly Family[] = ["mamba1", "mamba2"];
export const STATE_FORMATS: readonly StateFormat[] = ["f32", "f16", "h8", "h4"];
export const STATE_SCALES: readonly StateScale[] = ["dsq", "dsq-max"];
export const REQUANTIZE_MODES: readonly Requantize[] = ["call", "token"];

/** What a scan operator's name says. `scale` means nothing for f32 and f16, `requantize` nothing for f32. */
export interface ScanSpec {
  readonly family: Family;
  readonly format: StateFormat;
  readonly scale: StateScale;
  readonly requantize: Requantize;
}

export type OpSpec =
  | ({ readonly kind: "scan" } & ScanSpec)
  | { readonly kind: "conv"; readonly activation: "none" | "silu" };

/** The operator's name; `scale` defaults to 'dsq' and `requantize` to 'call', both dropped where they mean nothing. */
export function opName(spec: {
  readonly family: Family;
  readonly format: StateFormat;
  readonly scale?: StateScale;
  readonly requantize?: Requantize;
}): string {
  const max = isPacked(spec.format) && spec.scale === "dsq-max" ? "Max" : "";
  const token = spec.format !== "f32" && spec.requantize === "token" ? "Token" : "";
  const family = spec.family === "mamba1" ? "Mamba1" : "Mamba2";
  return `${family}Scan${spec.format.toUpperCase()}${max}${token}`;
}

/** Name of the convolution operator. */
export function convName(activation: "none" | "silu"): string {
  return activation === "silu" ? "CausalConvSilu" : "CausalConv";
}

const SPECS: ReadonlyMap<string, OpSpec> = new Map(allSpecs());

function* allSpecs(): Generator<[string, OpSpec]> {
  for (const family of FAMILIES) {
    for (const format of STATE_FORMATS) {
      for (const scale of isPacked(format) ? STATE_SCALES : STATE_SCALES.slice(0, 1)) {
        for (const requantize of format === "f32" ? REQUANTIZE_MODES.slice(0, 1) : REQUANTIZE_MODES) {
          const spec: OpSpec = { kind: "scan", family, format, scale, requantize };
          yield [opName(spec), spec];
        }
      }
    }
  }
  for (const activation of ["none", "silu"] as const) yield [convName(activation), { kind: "conv", activation }];
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

/** Bytes of one packed head: codes [P, N], then P channel scales and N state scales as halves. */
export function packedHeadBytes(format: "h8" | "h4", headDim: number, dState: number): number {
  const codes = headDim * dState;
  return (format === "h8" ? codes : codes / 2) + 2 * headDim + 2 * dState;
}

/** Sizes of a state: `heads` is H for Mamba-2 and E / headDim for Mamba-1. */
export interface StateDims {
  readonly heads: number;
  readonly headDim: number;
  readonly dState: number;
}

/** dtype, shape of one sequence (no batch axis) and bytes of one sequence. */
export function stateType(
  spec: { readonly family: Family; readonly format: StateFormat },
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
    const shape = [heads, packedHeadBytes(spec.format, headDim, dState)];
    return { dtype: "u8", shape, bytes: elementCount(shape) };
  }
  const shape = spec.family === "mamba2" ? [heads, headDim, dState] : [heads * headDim, dState];
  return { dtype: spec.format, shape, bytes: packedBytes(spec.format, shape) ?? 0 };
}

/** Pseudo-head size of a Mamba-1 layer: the largest divisor of `channels` that is at most 64. */
export function pseudoHeadDim(channels: number): number {
  for (let size = Math.min(64, channels); size > 1; size--) if (channels % size === 0) return size;
  return 1;
}
