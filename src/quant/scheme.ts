/** How weights are put on an integer grid, as data. */

import { assertNever, MambacError } from "../support/errors.js";

export type Bits = 2 | 3 | 4 | 8;

/**
 * What shares one scale. Weights are ONNX [K, N] (inputs by outputs), so output channels are axis 1 and groups along the
 * inputs are axis 0. The last group of an axis may be shorter.
 */
export type Granularity =
  | { readonly kind: "tensor" }
  | { readonly kind: "channel"; readonly axis: number }
  | { readonly kind: "group"; readonly axis: number; readonly size: number };

/**
 * Where zero lies. Symmetric codes are -2^(b-1) .. 2^(b-1) - 1 with zero at code 0; the step is `peak`: max|w| / (2^(b-1)
 * - 1), or `span`: 2 max|w| / (2^b - 1) (Quamba2), which uses the lowest code too but clips the positive peak by half a
 * step. Asymmetric codes are 0 .. 2^b - 1 with a zero point.
 */
export type Zero = { readonly kind: "symmetric"; readonly step: "peak" | "span" } | { readonly kind: "asymmetric" };

/**
 * Where the grid ends. `mse`: of the shares 1, 1 - step, ... of the full range, down to `smallest`, the one with the
 * least sum |error|^exponent, for each scale by itself.
 */
export type Clip =
  | { readonly kind: "none" }
  | { readonly kind: "mse"; readonly exponent: number; readonly smallest: number; readonly step: number };

export interface WeightScheme {
  readonly bits: Bits;
  readonly granularity: Granularity;
  readonly zero: Zero;
  readonly clip: Clip;
  /** Type the scales are stored in; they are rounded to it before use. */
  readonly scaleType: "f32" | "f16";
}

/** The grid of GPTQ's published search: 1, 0.99, ..., 0.21 under |error|^2.4. */
export const MSE_CLIP: Clip = { kind: "mse", exponent: 2.4, smallest: 0.21, step: 0.01 };

const FORM = "i4:g128, u4:g32, i8:channel, i8:in-channel, i8:tensor, with :span, :mse, :f16 after it";

/**
 * A weight scheme from its spelling: `i` (symmetric) or `u` (asymmetric) and the bits; the granularity `tensor`,
 * `channel` (outputs), `in-channel` or `g<size>` (along the inputs); then any of `span`, `mse`, `f16`.
 * Throws `scheme/spelling`.
 */
export function parseWeightScheme(text: string): WeightScheme {
  const refuse = (why: string): never => {
    throw new MambacError("scheme/spelling", `weight scheme '${text}': ${why}; write for example ${FORM}`);
  };
  if (/^(float|none|(f|fp|float)(16|32))$/.test(text)) refuse("null, without quotes, leaves a projection float");
  const [format = "", grain = "", ...rest] = text.split(":");
  const options = new Set(rest);
  if (options.size !== rest.length) refuse("an option is given twice");
  for (const option of options) if (!["span", "mse", "f16"].includes(option)) refuse(`'${option}' is not an option`);
  const [, sign, digits] = /^([iu])([2348])$/.exec(format) ?? refuse(`'${format}' is not a format`);
  const bits = Number(digits) as Bits;
  if (sign === "u" && options.has("span")) refuse("'span' is for symmetric formats");
  const step = options.has("span") ? "span" : "peak";
  return {
    bits,
    granularity: parseGranularity(grain) ?? refuse(`'${grain}' is not a granularity`),
    zero: sign === "i" ? { kind: "symmetric", step } : { kind: "asymmetric" },
    clip: options.has("mse") ? MSE_CLIP : { kind: "none" },
    scaleType: options.has("f16") ? "f16" : "f32",
  };
}

function parseGranularity(text: string): Granularity | null {
  if (text === "tensor") return { kind: "tensor" };
  if (text === "channel") return { kind: "channel", axis: 1 };
  if (text === "in-channel") return { kind: "channel", axis: 0 };
  const size = /^g([1-9]\d{0,5})$/.exec(text)?.[1];
  return size === undefined ? null : { kind: "group", axis: 0, size: Number(size) };
}

/** The spelling of a scheme for a [K, N] weight; the inverse of `parseWeightScheme` for what that can spell. */
export function formatWeightScheme(scheme: WeightScheme): string {
  const parts = [
    `${scheme.zero.kind === "symmetric" ? "i" : "u"}${scheme.bits}`,
    formatGranularity(scheme.granularity),
  ];
  if (scheme.zero.kind === "symmetric" && scheme.zero.step === "span") parts.push("span");
  if (scheme.clip.kind === "mse") parts.push("mse");
  if (scheme.scaleType === "f16") parts.push("f16");
  return parts.join(":");
}

function formatGranularity(granularity: Granularity): string {
  switch (granularity.kind) {
    case "tensor":
      return "tensor";
    case "channel":
      return granularity.axis === 1 ? "channel" : granularity.axis === 0 ? "in-channel" : `channel@${granularity.axis}`;
    case "group":
      return granularity.axis === 0 ? `g${granularity.size}` : `g${granularity.size}@${granularity.axis}`;
    default:
      return assertNever(granularity);
  }
}
