/**
 * Loading, rounding and storing a recurrent state inside a function body, one codec a format.
 *
 * A codec carries the state from token to token as its parts: the tensor itself for f32 and f16; codes, channel scales
 * [B,heads,P] and state scales [B,heads,N] for the packed formats. H4 keeps the columns of a state as evens, then odds,
 * so that low and high nibbles are contiguous; `order` puts a tensor over n into that order.
 */

import { dtypeNumber } from "../ir/types.js";
import { assertNever, invariant } from "../support/errors.js";
import type { Body } from "./body.js";
import { bytesToHalves, halvesToBytes, roundToHalfIn } from "./half-bytes.js";
import { maxCode, type ScanSpec } from "./names.js";
import { MAX_HALF, MIN_CHANNEL_SCALE } from "./packed-state.js";

/** The inputs of a scan body by their names in it. */
export interface ScanValues {
  readonly x: string;
  readonly dt: string;
  readonly A: string;
  readonly B: string;
  readonly C: string;
  readonly D: string;
  readonly bias: string;
  readonly past: string;
  /** Steps of rows [H, P] and of columns [G, N]; given with static scales. */
  readonly rowStep?: string;
  readonly columnStep?: string;
}

export interface StateCodec {
  /** The parts of a stored state. */
  load(body: Body, past: string): readonly string[];
  /** decay * h as f32 [B,heads,P,N], with decay [B,1,heads] or null for 1. */
  decayed(body: Body, parts: readonly string[], decay: string | null): string;
  /** The parts of h f32 [B,heads,P,N] after rounding to the format. */
  round(body: Body, h: string): readonly string[];
  /** The stored form. */
  store(body: Body, parts: readonly string[]): string;
  /** Reorders the last axis of a value of a given rank as the codec keeps n. */
  order(body: Body, value: string, rank: number): string;
}

/** The codec of a format; `heads` is the size of the head axis, `given` the steps of static scales. */
export function stateCodec(
  spec: ScanSpec,
  heads: string,
  given: Pick<ScanValues, "rowStep" | "columnStep"> = {},
): StateCodec {
  switch (spec.format) {
    case "f32":
    case "f16":
      return plainCodec(spec, heads, spec.format);
    case "h8":
    case "h4":
      if (spec.scale !== "static") return packedCodec(spec.format, spec.scale, heads);
      invariant(given.rowStep !== undefined && given.columnStep !== undefined, "stateCodec: static scales are inputs");
      return staticCodec(spec.format, heads, given.rowStep, given.columnStep);
    default:
      return assertNever(spec.format);
  }
}

function plainCodec(spec: ScanSpec, heads: string, dtype: "f32" | "f16"): StateCodec {
  return {
    load: (body, past) => [
      spec.family === "mamba2" ? past : body.reshape(past, 0, heads, body.size("head_dim"), body.size("d_state")),
    ],
    decayed: (body, [part = ""], decay) => {
      const h = dtype === "f32" ? part : body.cast(part, "f32");
      return decay === null ? h : body.mul(h, body.reshape(decay, 0, heads, 1, 1));
    },
    round: (body, h) => [dtype === "f32" ? h : body.cast(h, "f16")],
    store: (body, [part = ""]) =>
      spec.family === "mamba2" ? part : body.reshape(part, 0, body.size("channels"), body.size("d_state")),
    order: (_body, value) => value,
  };
}

function packedCodec(format: "h8" | "h4", scale: "dsq" | "dsq-max", heads: string): StateCodec {
  const qmax = maxCode(format);
  return {
    load: (body, past) => {
      const [headDim, dState] = [body.size("head_dim"), body.size("d_state")];
      const codeCount = format === "h8" ? body.mul(headDim, dState) : body.div(body.mul(headDim, dState), body.ints(2));
      const scaleCount = body.add(headDim, dState);
      const sizes = body.op("Concat", [codeCount, body.mul(scaleCount, body.ints(2))], { axis: 0 });
      const [codes = "", scales = ""] = body.builder.ops("Split", [past, sizes], 2, { axis: 2 });
      const halves = bytesToHalves(body, scales, heads);
      return [
        body.reshape(format === "h8" ? body.cast(codes, "i8") : codes, 0, heads, headDim, -1),
        body.slice(halves, 2, 0, headDim),
        order(body, format, body.slice(halves, 2, headDim, scaleCount), 3),
      ];
    },
    decayed: (body, [codes = "", channel = "", state = ""], decay) => {
      const dState = body.size("d_state");
      const [unit, signed] = format === "h8" ? [qmax, codes] : [16 * qmax, nibbles(body, codes)];
      const step = body.div(channel, body.float(unit));
      const rows = decay === null ? step : body.mul(step, body.reshape(decay, 0, heads, 1));
      const scaled = body.op("DequantizeLinear", [body.reshape(signed, -1, dState), body.reshape(rows, -1)], {
        axis: 0,
      });
      return body.mul(body.reshape(scaled, -1, heads, body.size("head_dim"), dState), body.unsqueeze(state, 2));
    },
    round: (body, h) => {
      const magnitude = body.op("Abs", [h]);
      const norm = body.op(scale === "dsq" ? "ReduceMean" : "ReduceMax", [magnitude, body.ints(-1)], { keepdims: 0 });
      const root = scale === "dsq" ? body.op("Sqrt", [norm]) : norm;
      const bounded = body.op("Clip", [root, body.float(MIN_CHANNEL_SCALE), body.float(MAX_HALF)]);
      const channel = roundToHalfIn(body, bounded);
      const ratios = body.div(magnitude, body.unsqueeze(channel, -1));
      const peak = body.op("ReduceMax", [ratios, body.ints(2)], { keepdims: 0 });
      const state = roundToHalfIn(body, body.op("Min", [peak, body.float(MAX_HALF)]));
      const used = body.op("Greater", [state, body.float(0)]);
      const inverse = body.op("Where", [used, body.div(body.float(qmax), state), body.float(0)]);
      const columns = body.reshape(body.mul(h, body.unsqueeze(inverse, 2)), -1, body.size("d_state"));
      const rounded = body.op("QuantizeLinear", [columns, body.reshape(channel, -1)], {
        axis: 0,
        output_dtype: dtypeNumber("i8"),
      });
      // Rounding may lower a subnormal Ss by half of itself, so codes can exceed qmax and need their clamp.
      const clamped = body.op("Clip", [rounded, body.signedByte(-qmax), body.signedByte(qmax)]);
      const codes = body.reshape(clamped, -1, heads, body.size("head_dim"), body.size("d_state"));
      return [format === "h8" ? codes : packNibbles(body, codes), channel, state];
    },
    store: (body, [codes = "", channel = "", state = ""]) => {
      const natural =
        format === "h8" ? state : body.reshape(body.transpose(body.reshape(state, 0, 0, 2, -1), 0, 1, 3, 2), 0, 0, -1);
      const scales = halvesToBytes(body, body.op("Concat", [channel, natural], { axis: 2 }));
      const bytes = format === "h8" ? body.cast(codes, "u8") : codes;
      return body.op("Concat", [body.reshape(bytes, 0, 0, -1), body.reshape(scales, 0, 0, -1)], { axis: 2 });
    },
    order: (body, value, rank) => order(body, format, value, rank),
  };
}

/** Codes alone; the step of row p and column n is the product of two given numbers. */
function staticCodec(format: "h8" | "h4", heads: string, rowStep: string, columnStep: string): StateCodec {
  const qmax = maxCode(format);
  /** [H,P,1] and, in the codec's order, [H,1,N]. */
  const steps = (body: Body): [rows: string, columns: string] => {
    const [groups, dState] = [body.size("num_groups"), body.size("d_state")];
    const columns = body.reshape(order(body, format, columnStep, 2), groups, 1, 1, dState);
    const each = body.op("Expand", [columns, body.shape(groups, body.div(heads, groups), 1, dState)]);
    return [body.unsqueeze(rowStep, 2), body.reshape(each, heads, 1, dState)];
  };
  return {
    load: (body, past) => {
      const codes = body.reshape(past, 0, heads, body.size("head_dim"), -1);
      return [format === "h8" ? body.cast(codes, "i8") : codes];
    },
    decayed: (body, [codes = ""], decay) => {
      const [rows, columns] = steps(body);
      const [unit, signed] =
        format === "h8" ? [rows, codes] : [body.mul(rows, body.float(1 / 16)), nibbles(body, codes)];
      const factor = decay === null ? unit : body.mul(unit, body.reshape(decay, 0, heads, 1, 1));
      return body.mul(body.mul(body.cast(signed, "f32"), factor), columns);
    },
    round: (body, h) => {
      const [rows, columns] = steps(body);
      const exact = body.op("Round", [body.div(body.div(h, rows), columns)]);
      const codes = body.cast(body.op("Clip", [exact, body.float(-qmax), body.float(qmax)]), "i8");
      return [format === "h8" ? codes : packNibbles(body, codes)];
    },
    store: (body, [codes = ""]) => body.reshape(format === "h8" ? body.cast(codes, "u8") : codes, 0, 0, -1),
    order: (body, value, rank) => order(body, format, value, rank),
  };
}

/** [.., N] -> evens, then odds, where the format wants that. */
function order(body: Body, format: "h8" | "h4", value: string, rank: number): string {
  if (format === "h8") return value;
  const lead = Array.from({ length: rank - 1 }, () => 0);
  const pairs = body.reshape(value, ...lead, -1, 2);
  return body.reshape(body.transpose(pairs, ...lead.map((_, axis) => axis), rank, rank - 1), ...lead, -1);
}

/**
 * Nibble bytes [B,heads,P,N/2] -> 16 * code as i8 [B,heads,P,N], evens first: a nibble moved to the top of its byte, with
 * zeros below, is 16 times its value in two's complement.
 */
function nibbles(body: Body, bytes: string): string {
  const low = body.op("BitShift", [bytes, body.byte(4)], { direction: "LEFT" });
  const high = body.op("BitwiseAnd", [bytes, body.byte(0xf0)]);
  return body.cast(body.op("Concat", [low, high], { axis: -1 }), "i8");
}

/**
 * Codes i8 [B,heads,P,N], evens first -> nibble bytes u8 [B,heads,P,N/2]. The byte is 16 high + low, plus 16 where low is
 * negative. In floats, as bit operations on bytes are several times slower.
 */
function packNibbles(body: Body, codes: string): string {
  const [low = "", high = ""] = body.builder.ops("Split", [codes], 2, { axis: -1, num_outputs: 2 });
  const sixteenths = body.op("DequantizeLinear", [low, body.float(1 / 16)]);
  const carried = body.sub(body.op("DequantizeLinear", [high, body.float(1)]), body.op("Floor", [sixteenths]));
  const sum = body.add(carried, sixteenths);
  const signed = body.op("QuantizeLinear", [sum, body.float(1 / 16)], { output_dtype: dtypeNumber("i8") });
  return body.cast(signed, "u8");
}
