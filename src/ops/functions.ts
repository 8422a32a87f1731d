/** The model-local function behind each operator name. */

import type { FunctionDef } from "../ir/graph.js";
import { assertNever, invariant } from "../support/errors.js";
import { Body } from "./body.js";
import { causalConv, causalConvRows } from "./causal-conv.js";
import { gatedNorm, siluGate, slopedGate } from "./gate.js";
import { hadamardRotate } from "./hadamard-rotate.js";
import { mamba1Scan } from "./mamba1-scan.js";
import { mamba2Scan } from "./mamba2-scan.js";
import {
  type ConvLayout,
  type Family,
  type FloatType,
  type GateKind,
  isStatic,
  type OpSpec,
  parseOpName,
  type ScanSpec,
} from "./names.js";
import { replayScan } from "./replay-scan.js";

/** Inputs of every scan, in order. */
const SCAN_INPUTS = ["x", "dt", "A", "B", "C", "D", "dt_bias", "past"] as const;
/** What static scales add: steps of rows [H, P] and of columns [G, N]. */
const STEP_INPUTS = ["row_step", "column_step"] as const;
/** Inputs of the convolutions, in order. */
const CONV_INPUTS = ["x", "weight", "bias", "past"] as const;
/** Inputs of the rotation, in order. */
const ROTATION_INPUTS = ["x", "factor"] as const;
/** Inputs of the gates, in order. */
const GATE_INPUTS: Readonly<Record<GateKind, readonly [string, string, ...string[]]>> = {
  plain: ["y", "z"],
  sloped: ["y", "z", "slope"],
  norm: ["y", "z", "weight"],
};
/** What operators that give codes add: the grid, one step and the code of zero. */
const GRID_INPUTS = ["scale", "zero_point"] as const;
/** Outputs of scans and convolutions, in order. */
const OP_OUTPUTS = ["y", "present"] as const;
/** What a convolution that hands out its channels in three parts adds. */
const PART_OUTPUTS = ["y2", "y3"] as const;

const SCAN_ATTRIBUTES: Readonly<Record<Family, readonly string[]>> = {
  mamba1: ["channels", "head_dim", "d_state", "num_groups", "dt_min", "dt_max"],
  mamba2: ["num_heads", "head_dim", "d_state", "num_groups", "chunk_size", "dt_min", "dt_max"],
};
const CONV_ATTRIBUTES: Readonly<Record<ConvLayout, readonly string[]>> = {
  channels: ["channels", "kernel_size", "state_width"],
  rows: ["channels", "kernel_size", "state_width", "first"],
  split: ["channels", "kernel_size", "state_width", "first", "first_size", "second_size"],
};
const ROTATION_ATTRIBUTES = ["size", "order", "power"] as const;
const GATE_ATTRIBUTES = ["channels"] as const;
const GATED_NORM_ATTRIBUTES = ["channels", "group_size", "norm_before_gate", "epsilon"] as const;

/** Attributes of an operator, in order; a node carries all of them. */
export function opAttributes(name: string): readonly string[] {
  const spec = specOf(name);
  switch (spec.kind) {
    case "conv":
      return CONV_ATTRIBUTES[spec.layout];
    case "rotation":
      return ROTATION_ATTRIBUTES;
    case "gate":
      return spec.gate === "norm" ? GATED_NORM_ATTRIBUTES : GATE_ATTRIBUTES;
    default: {
      const own = SCAN_ATTRIBUTES[spec.family];
      return spec.requantize === "replay" ? [...own, "replay_length"] : own;
    }
  }
}

/** Inputs of an operator that are activations: they have the element type of its results, every parameter is float32. */
export function activationInputs(spec: OpSpec): readonly number[] {
  switch (spec.kind) {
    case "conv":
      return [CONV_INPUTS.indexOf("x"), CONV_INPUTS.indexOf("past")];
    case "rotation":
      return [ROTATION_INPUTS.indexOf("x")];
    case "gate":
      return ["y", "z"].map((input) => GATE_INPUTS[spec.gate].indexOf(input));
    default:
      return (["x", "dt", "B", "C"] as const).map((input) => SCAN_INPUTS.indexOf(input));
  }
}

/**
 * The function of an operator: one serves every node of that name, as sizes come from the node's attributes. With `float`
 * f16 its activations are float16; it computes in float32 all the same and rounds each result once.
 */
export function opFunction(name: string, float: FloatType = "f32"): FunctionDef {
  const spec = specOf(name);
  const body = new Body();
  const floats = <Names extends readonly string[]>(inputs: Names): Names =>
    float === "f32" ? inputs : widened(body, inputs, activationInputs(spec));
  const narrow = (result: string): string => (float === "f32" ? result : body.cast(result, float));
  const attributes = opAttributes(name);
  switch (spec.kind) {
    case "conv": {
      const [x, weight, bias, past] = floats(CONV_INPUTS);
      const values = { x, weight, bias, past };
      if (spec.layout === "channels") {
        const result = causalConv(body, spec.activation, values);
        const results = [narrow(result.y), narrow(result.present)];
        const signature = { inputs: CONV_INPUTS, outputs: OP_OUTPUTS, attributes };
        return body.function(name, signature, results, "Causal depthwise convolution");
      }
      const { parts, present } = causalConvRows(body, spec.activation, values, spec.layout === "split");
      const [y = "", ...more] = parts;
      const outputs = more.length > 0 ? [...OP_OUTPUTS, ...PART_OUTPUTS] : OP_OUTPUTS;
      const results = [y, present, ...more].map(narrow);
      return body.function(name, { inputs: CONV_INPUTS, outputs, attributes }, results, describeRows(more.length > 0));
    }
    case "rotation": {
      const [x, factor] = floats(ROTATION_INPUTS);
      const inputs = spec.codes ? [...ROTATION_INPUTS, ...GRID_INPUTS] : ROTATION_INPUTS;
      const value = hadamardRotate(body, x, factor);
      const result = spec.codes ? quantized(body, value) : narrow(value);
      const doc = `Rows times a Hadamard matrix${whenCodes(spec.codes)}`;
      return body.function(name, { inputs, outputs: ["y"], attributes }, [result], doc);
    }
    case "gate": {
      const own = GATE_INPUTS[spec.gate];
      const inputs = spec.codes ? [...own, ...GRID_INPUTS] : own;
      const value = gateBody(body, spec.gate, floats(own));
      const result = spec.codes ? quantized(body, value) : narrow(value);
      const doc = `${describeGate(spec.gate)}${whenCodes(spec.codes)}`;
      return body.function(name, { inputs, outputs: ["out"], attributes }, [result], doc);
    }
    default: {
      const [x, dt, A, B, C, D, bias, past] = floats(SCAN_INPUTS);
      const [rowStep, columnStep] = STEP_INPUTS;
      const given = isStatic(spec);
      const values = { x, dt, A, B, C, D, bias, past, ...(given ? { rowStep, columnStep } : {}) };
      const result = bodyOf(spec)(body, spec, values);
      const inputs = given ? [...SCAN_INPUTS, ...STEP_INPUTS] : SCAN_INPUTS;
      const signature = { inputs, outputs: OP_OUTPUTS, attributes };
      return body.function(name, signature, [narrow(result.y), result.present], describe(spec));
    }
  }
}

function widened<Names extends readonly string[]>(body: Body, inputs: Names, activations: readonly number[]): Names;
function widened(body: Body, inputs: readonly string[], activations: readonly number[]): readonly string[] {
  return inputs.map((name, at) => (activations.includes(at) ? body.cast(name, "f32") : name));
}

/** The codes of a float32 value on the grid of the operator's last two inputs. */
function quantized(body: Body, value: string): string {
  return body.op("QuantizeLinear", [value, ...GRID_INPUTS]);
}

function whenCodes(codes: boolean): string {
  return codes ? ", as 8-bit codes" : "";
}

function specOf(name: string): OpSpec {
  const spec = parseOpName(name);
  invariant(spec !== null, `${name} is not an operator`);
  return spec;
}

function describeRows(split: boolean): string {
  const parts = split ? ", in three parts" : "";
  return `Causal depthwise convolution of some channels of x, tokens before channels${parts}`;
}

function gateBody(body: Body, gate: GateKind, inputs: (typeof GATE_INPUTS)[GateKind]): string {
  const [y, z, factor = ""] = inputs;
  switch (gate) {
    case "plain":
      return siluGate(body, y, z);
    case "sloped":
      return slopedGate(body, y, z, factor);
    case "norm":
      return gatedNorm(body, { y, z, weight: factor });
    default:
      return assertNever(gate);
  }
}

function describeGate(gate: GateKind): string {
  switch (gate) {
    case "plain":
      return "y * silu(z)";
    case "sloped":
      return "y * z * sigmoid(slope * z)";
    case "norm":
      return "y * silu(z), with an RMS norm of groups of channels behind it or before it";
    default:
      return assertNever(gate);
  }
}

function bodyOf(spec: ScanSpec): typeof mamba2Scan {
  if (spec.requantize === "replay") return replayScan;
  return spec.family === "mamba1" ? mamba1Scan : mamba2Scan;
}

function describe(spec: ScanSpec): string {
  return `Selective scan (${spec.family}) with a state stored as ${spec.format}${isStatic(spec) ? " with given steps" : ""}${whenRounded(spec)}`;
}

function whenRounded({ requantize, format }: ScanSpec): string {
  switch (requantize) {
    case "call":
      return "";
    case "token":
      return format === "f32" ? "" : ", rounded after every token";
    case "replay":
      return ", rounded once in replay_length tokens";
    default:
      return assertNever(requantize);
  }
}
