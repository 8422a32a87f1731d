/** Cases of replay scans, and how their states differ. */

import { numberToFloat16 } from "../../src/ir/tensor.js";
import { isPacked, opNames, parseOpName, type ScanSpec } from "../../src/ops/names.js";
import { writeReplay } from "../../src/ops/replay-state.js";
import {
  type CodeDifference,
  compareCodes,
  replayDims,
  replayStates,
  type ScanData,
  type ScanSizes,
} from "./scan-case.js";

/** Every replay operator. */
export const REPLAYS: readonly { readonly name: string; readonly spec: ScanSpec }[] = opNames().flatMap((name) => {
  const spec = parseOpName(name);
  return spec?.kind === "scan" && spec.requantize === "replay" ? [{ name, spec }] : [];
});

/**
 * The case with step sizes that are the same in float32 and float64, as softplus is the identity from 20 on: d * x is then
 * rounded to the same half everywhere, and results can be compared to the last bits.
 */
export function withExactSteps(data: ScanData): ScanData {
  return {
    ...data,
    dt: data.dt.map((v) => 25 + Math.tanh(v)),
    dtBias: data.dtBias.map(() => 0),
    A: data.A.map((v) => v / 100),
    x: data.x.map((v) => v / 25),
  };
}

/** What differs between two replay states [B, S]. */
export interface ReplayDifference extends CodeDifference {
  /** Values in the rings, and how many differ at all. */
  readonly slots: number;
  readonly differentSlots: number;
  /** Largest difference of a half in units of its last place, and of a float relative to it. */
  readonly halfUlps: number;
  readonly exponents: number;
}

/** Compares replay states part by part. Throws where counts differ. */
export function compareReplay(
  spec: ScanSpec,
  sizes: ScanSizes,
  actual: Uint8Array,
  expected: Uint8Array,
): ReplayDifference {
  if (!isPacked(spec.format)) throw new Error("only packed states are replayed");
  if (actual.length !== expected.length) throw new Error(`${actual.length} bytes instead of ${expected.length}`);
  const [given, wanted] = [replayStates(spec, sizes, actual), replayStates(spec, sizes, expected)];
  const all = {
    codes: 0,
    different: 0,
    largest: 0,
    scaleUlps: 0,
    slots: 0,
    differentSlots: 0,
    halfUlps: 0,
    exponents: 0,
  };
  for (const [b, right] of wanted.entries()) {
    const left = given[b];
    if (left?.tokens.length !== right.tokens.length) {
      throw new Error(`sequence ${b} has ${left?.tokens.length} tokens in its rings instead of ${right.tokens.length}`);
    }
    const codes = compareCodes(spec.format, sizes.headDim, sizes.dState, left.checkpoint, right.checkpoint);
    all.codes += codes.codes;
    all.different += codes.different;
    all.largest = Math.max(all.largest, codes.largest);
    all.scaleUlps = Math.max(all.scaleUlps, codes.scaleUlps);
    for (const [j, token] of right.tokens.entries()) {
      const other = left.tokens[j];
      for (const part of ["u", "l", "b"] as const) {
        for (const [i, value] of token[part].entries()) {
          const found = other?.[part][i] ?? Number.NaN;
          all.slots += 1;
          if (found === value) continue;
          all.differentSlots += 1;
          if (part === "l") all.exponents = Math.max(all.exponents, Math.abs(found / value - 1));
          else all.halfUlps = Math.max(all.halfUlps, Math.abs(orderOf(found) - orderOf(value)));
        }
      }
    }
  }
  return all;
}

/** Number of a half among all halves, in order. */
function orderOf(value: number): number {
  const bits = numberToFloat16(value);
  return bits < 0x8000 ? bits : 0x8000 - bits;
}

/** Bytes of slots beyond the count, and of the padding, that are not zero: none in a state that is right. */
export function strayBytes(spec: ScanSpec, sizes: ScanSizes, bytes: Uint8Array): number {
  if (!isPacked(spec.format)) throw new Error("only packed states are replayed");
  const { format } = spec;
  const clean = replayStates(spec, sizes, bytes).map((state) => writeReplay(state, format, replayDims(sizes)));
  let stray = 0;
  let at = 0;
  for (const sequence of clean) for (const byte of sequence) if (bytes[at++] !== byte) stray += 1;
  return stray;
}
