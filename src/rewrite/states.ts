/** Names and types of the recurrent states in a graph's interface. */

import { makeValue, type ValueInfo } from "../ir/graph.js";
import { type Dim, tensorType } from "../ir/types.js";
import { type FloatType, isPacked, pseudoHeadDim, stateType } from "../ops/names.js";
import type { AttentionOp, ConvOp, ScanOp, SemanticOp } from "./semantic.js";

/** One state of one layer: which input of the node reads it, which output writes it. */
export interface StateSlot {
  readonly op: SemanticOp;
  readonly kind: "conv" | "ssm" | "key" | "value";
  readonly input: number;
  readonly output: number;
}

/** The states a semantic operator carries: none where it is stateless. */
export function stateSlots(op: SemanticOp): StateSlot[] {
  if (op.kind !== "attention" && op.stateless !== undefined) return [];
  switch (op.kind) {
    case "scan":
      return [{ op, kind: "ssm", input: 7, output: 1 }];
    case "conv":
      return [{ op, kind: "conv", input: 3, output: 1 }];
    default:
      return [
        { op, kind: "key", input: 3, output: 1 },
        { op, kind: "value", input: 4, output: 2 },
      ];
  }
}

/** Default names: those transformers.js uses. */
export function defaultStateNames(kind: StateSlot["kind"], layer: number): { past: string; present: string } {
  switch (kind) {
    case "conv":
      return { past: `past_conv.${layer}`, present: `present_conv.${layer}` };
    case "ssm":
      return { past: `past_ssm.${layer}`, present: `present_ssm.${layer}` };
    default:
      return { past: `past_key_values.${layer}.${kind}`, present: `present.${layer}.${kind}` };
  }
}

/** The input name that goes with an exporter's output name, where its habit tells. */
export function pastNameFor(present: string): string | null {
  if (present.startsWith("output.")) return `input.${present.slice("output.".length)}`;
  if (present.startsWith("present_")) return `past_${present.slice("present_".length)}`;
  const numbered = /^present\.(\d+)\.(conv_state|ssm_state)$/.exec(present);
  if (numbered !== null) return `past_states.${numbered[1]}.${numbered[2]}`;
  if (present.startsWith("present.")) return `past_key_values.${present.slice("present.".length)}`;
  return null;
}

/** Layer number in a label such as `layers.3`. */
export function layerNumber(op: SemanticOp): number {
  return Number(/\d+/.exec(op.layer)?.[0] ?? 0);
}

/** Type of the state a slot carries, with a symbolic batch; states that are activations have the type `float`. */
export function slotType(slot: StateSlot, batch: Dim, name: string, float: FloatType = "f32"): ValueInfo {
  const { op } = slot;
  switch (op.kind) {
    case "scan":
      return makeValue(name, scanStateType(op, batch));
    case "conv":
      return makeValue(name, convStateType(op, batch, float));
    default:
      return makeValue(name, cacheType(op, batch, name, float));
  }
}

function scanStateType(op: ScanOp, batch: Dim): ReturnType<typeof tensorType> {
  const headDim = op.family === "mamba1" ? pseudoHeadDim(op.heads) : op.headDim;
  const heads = op.family === "mamba1" ? op.heads / headDim : op.heads;
  const { replayLength } = op.state;
  const type = stateType(
    { family: op.family, ...op.state },
    { heads, headDim, dState: op.dState, groups: op.groups, ...(replayLength === undefined ? {} : { replayLength }) },
  );
  const transposed = op.stateLayout === "NP" && !isPacked(op.state.format) && type.shape.length === 3;
  const [h, p, n] = type.shape;
  return tensorType(type.dtype, [batch, ...(transposed ? [h ?? 0, n ?? 0, p ?? 0] : type.shape)]);
}

function convStateType(op: ConvOp, batch: Dim, float: FloatType): ReturnType<typeof tensorType> {
  return tensorType(float, [batch, op.channels, op.stateWidth]);
}

function cacheType(op: AttentionOp, batch: Dim, name: string, float: FloatType): ReturnType<typeof tensorType> {
  const length = /^(input|past)/.test(name) ? "past_sequence_length" : "total_sequence_length";
  return tensorType(float, [batch, op.kvHeads, length, op.headDim]);
}

/** Bytes of one sequence's recurrent state; caches that grow count as zero. */
export function stateBytes(slot: StateSlot, float: FloatType = "f32"): number {
  const { type } = slotType(slot, 1, "", float);
  if (type?.kind !== "tensor" || type.shape === null) return 0;
  const bits = type.dtype === "u8" ? 8 : type.dtype === "f16" ? 16 : 32;
  return type.shape.reduce<number>((product, dim) => product * (typeof dim === "number" ? dim : 0), bits / 8);
}
