/** The model-local function behind each operator name. */

import type { FunctionDef } from "../ir/graph.js";
import { invariant } from "../support/errors.js";
import { Body } from "./body.js";
import { causalConv } from "./causal-conv.js";
import { mamba1Scan } from "./mamba1-scan.js";
import { mamba2Scan } from "./mamba2-scan.js";
import { type Family, parseOpName, type ScanSpec } from "./names.js";

/** Inputs of every scan, in order. */
const SCAN_INPUTS = ["x", "dt", "A", "B", "C", "D", "dt_bias", "past"] as const;
/** Inputs of the convolutions, in order. */
const CONV_INPUTS = ["x", "weight", "bias", "past"] as const;
/** Outputs of every operator, in order. */
const OP_OUTPUTS = ["y", "present"] as const;

const SCAN_ATTRIBUTES: Readonly<Record<Family, readonly string[]>> = {
  mamba1: ["channels", "head_dim", "d_state", "num_groups", "dt_min", "dt_max"],
  mamba2: ["num_heads", "head_dim", "d_state", "num_groups", "chunk_size", "dt_min", "dt_max"],
};
const CONV_ATTRIBUTES = ["channels", "kernel_size", "state_width"] as const;

/** Attributes of an operator, in order; a node carries all of them. */
export function opAttributes(name: string): readonly string[] {
  const spec = parseOpName(name);
  invariant(spec !== null, `opAttributes: ${name} is not an operator`);
  return spec.kind === "conv" ? CONV_ATTRIBUTES : SCAN_ATTRIBUTES[spec.family];
}

/** The function of an operator: one serves every node of that name, as sizes come from the node's attributes. */
export function opFunction(name: string): FunctionDef {
  const spec = parseOpName(name);
  invariant(spec !== null, `opFunction: ${name} is not an operator`);
  const body = new Body();
  if (spec.kind === "conv") {
    const [x, weight, bias, past] = CONV_INPUTS;
    const result = causalConv(body, spec.activation, { x, weight, bias, past });
    const signature = { inputs: CONV_INPUTS, outputs: OP_OUTPUTS, attributes: opAttributes(name) };
    return body.function(name, signature, [result.y, result.present], "Causal depthwise convolution");
  }
  const [x, dt, A, B, C, D, bias, past] = SCAN_INPUTS;
  const scan = spec.family === "mamba1" ? mamba1Scan : mamba2Scan;
  const result = scan(body, spec, { x, dt, A, B, C, D, bias, past });
  const signature = { inputs: SCAN_INPUTS, outputs: OP_OUTPUTS, attributes: opAttributes(name) };
  return body.function(name, signature, [result.y, result.present], describe(spec));
}

function describe(spec: ScanSpec): string {
  const when = spec.requantize === "token" && spec.format !== "f32" ? ", rounded after every token" : "";
  return `Selective scan (${spec.family}) with a state stored as ${spec.format}${when}`;
}
