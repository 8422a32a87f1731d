/** Nodes of the emitted operators. Every attribute is written: a kernel's own defaults may differ. */

import { type Attribute, attr, makeNode, type Node } from "../ir/graph.js";
import { invariant } from "../support/errors.js";
import {
  checkedReplayLength,
  codesOp,
  convName,
  DEFAULT_REPLAY_LENGTH,
  type GateKind,
  gateName,
  isStatic,
  OP_DOMAIN,
  opName,
  type Requantize,
  ROTATION_OP,
  type StateFormat,
  type StateScale,
} from "./names.js";

/** Tokens a chunk of prefill. Measured on one CPU thread (H=24 P=64 N=128): 32, 64, 128 take 18.2, 17.4, 19.6 us a token. */
const DEFAULT_CHUNK_SIZE = 64;

interface CommonParams {
  /** Mamba-2: P. Mamba-1: pseudo-head size, a divisor of `channels`. */
  readonly headDim: number;
  readonly dState: number;
  readonly groups: number;
  /** -Infinity for none. */
  readonly dtMin: number;
  /** Infinity for none. */
  readonly dtMax: number;
  readonly format: StateFormat;
  readonly scale?: StateScale;
  readonly requantize?: Requantize;
  /** R of a replay state; default 16, and read for no other. */
  readonly replayLength?: number;
}

export type ScanParams = CommonParams &
  (
    | { readonly family: "mamba2"; readonly heads: number; readonly chunkSize?: number }
    | { readonly family: "mamba1"; readonly channels: number }
  );

/** A scan node. `inputs` are x, dt, A, B, C, D, dt_bias, past, and row_step, column_step with static scales; `outputs` are y, present. */
export function scanNode(
  params: ScanParams,
  inputs: readonly string[],
  outputs: readonly string[],
  name: string = "",
): Node {
  const wanted = isStatic(params) ? 10 : 8;
  invariant(
    inputs.length === wanted && outputs.length === 2,
    `scanNode: this scan has ${wanted} inputs and 2 outputs, not ${inputs.length} and ${outputs.length}`,
  );
  const { headDim, dState, groups, dtMin, dtMax } = params;
  const attributes: [string, Attribute][] =
    params.family === "mamba2" ? [["num_heads", attr.int(params.heads)]] : [["channels", attr.int(params.channels)]];
  attributes.push(["head_dim", attr.int(headDim)], ["d_state", attr.int(dState)], ["num_groups", attr.int(groups)]);
  if (params.family === "mamba2") attributes.push(["chunk_size", attr.int(params.chunkSize ?? DEFAULT_CHUNK_SIZE)]);
  attributes.push(["dt_min", attr.float(dtMin)], ["dt_max", attr.float(dtMax)]);
  if (params.requantize === "replay") {
    const length = checkedReplayLength(params.replayLength ?? DEFAULT_REPLAY_LENGTH);
    attributes.push(["replay_length", attr.int(length)]);
  }
  return makeNode(opName(params), inputs, outputs, new Map(attributes), { domain: OP_DOMAIN, name });
}

/** Which channels of x [B, L, ..] a convolution with tokens before channels reads, and how it hands them out. */
export interface ConvRows {
  /** Where they begin. */
  readonly first: number;
  /** Sizes of three outputs, all channels together; null for one output. */
  readonly parts: readonly [number, number, number] | null;
}

/**
 * A convolution node. `inputs` are x, weight, bias, past; `outputs` are y, present, and with three parts the second and
 * third of them.
 */
export function convNode(
  params: {
    readonly activation: "none" | "silu";
    readonly channels: number;
    readonly kernelSize: number;
    readonly stateWidth: number;
    readonly rows?: ConvRows;
  },
  inputs: readonly string[],
  outputs: readonly string[],
  name: string = "",
): Node {
  const { channels, rows } = params;
  const parts = rows?.parts ?? null;
  const wanted = parts === null ? 2 : 4;
  invariant(
    inputs.length === 4 && outputs.length === wanted,
    `convNode: this convolution has 4 inputs and ${wanted} outputs`,
  );
  const attributes = new Map<string, Attribute>([
    ["channels", attr.int(channels)],
    ["kernel_size", attr.int(params.kernelSize)],
    ["state_width", attr.int(params.stateWidth)],
  ]);
  if (rows !== undefined) attributes.set("first", attr.int(rows.first));
  if (parts !== null) {
    const [one, two, three] = parts;
    invariant(one + two + three === channels, "convNode: the parts are all channels together");
    attributes.set("first_size", attr.int(one));
    attributes.set("second_size", attr.int(two));
  }
  const layout = rows === undefined ? "channels" : parts === null ? "rows" : "split";
  return makeNode(convName(params.activation, layout), inputs, outputs, attributes, { domain: OP_DOMAIN, name });
}

/** A rotation node. `inputs` are x [.., size] and the factor [order, order]. */
export function hadamardNode(
  params: { readonly size: number; readonly order: number; readonly power: number },
  inputs: readonly string[],
  output: string,
  name: string = "",
): Node {
  invariant(inputs.length === 2, "hadamardNode: a rotation has 2 inputs");
  const { size, order, power } = params;
  const attributes = new Map<string, Attribute>([
    ["size", attr.int(size)],
    ["order", attr.int(order)],
    ["power", attr.int(power)],
  ]);
  return makeNode(ROTATION_OP, inputs, [output], attributes, { domain: OP_DOMAIN, name });
}

/** The norm of a gate. */
export interface GateNorm {
  /** Channels that share a norm; divides all of them. */
  readonly groupSize: number;
  /** The norm comes before the gate, not behind it. */
  readonly beforeGate: boolean;
  readonly epsilon: number;
}

/** A gate node. `inputs` are y, z [.., channels] and the weight of a norm or the slope of a sloped gate, [channels]. */
export function gateNode(
  params: { readonly channels: number; readonly norm: GateNorm | null; readonly sloped?: boolean },
  inputs: readonly string[],
  output: string,
  name: string = "",
): Node {
  const { channels, norm, sloped = false } = params;
  const kind: GateKind = norm !== null ? "norm" : sloped ? "sloped" : "plain";
  invariant(norm === null || !sloped, "gateNode: no operator has a norm and a slope");
  invariant(inputs.length === (kind === "plain" ? 2 : 3), "gateNode: a gate has 2 inputs, or 3 with a norm or a slope");
  const attributes = new Map<string, Attribute>([["channels", attr.int(channels)]]);
  if (norm !== null) {
    attributes.set("group_size", attr.int(norm.groupSize));
    attributes.set("norm_before_gate", attr.int(norm.beforeGate ? 1 : 0));
    attributes.set("epsilon", attr.float(norm.epsilon));
  }
  return makeNode(gateName(kind), inputs, [output], attributes, { domain: OP_DOMAIN, name });
}

/** A rotation or gate that gives codes on the grid of two scalars instead of floats: the code of zero is `zeroPoint`. */
export function codesNode(
  node: Node,
  grid: { readonly scale: string; readonly zeroPoint: string },
  output: string,
): Node {
  const op = codesOp(node.op);
  invariant(op !== null && node.domain === OP_DOMAIN, `codesNode: ${node.op} gives no codes`);
  const inputs = [...node.inputs, grid.scale, grid.zeroPoint];
  return makeNode(op, inputs, [output], node.attributes, { domain: OP_DOMAIN, name: node.name });
}
