/**
 * What runtimes take as quantized: types of activations and weights, and which values must have a pair. One profile fits a
 * whole file.
 *
 * - `ort-cpu`: ONNX Runtime's CPU provider. A pair on the input of each projection; everything else may be mixed.
 * - `tensorrt`: explicit quantization. int8 symmetric with zero point 0, activations by tensor, weights by tensor or by output
 *   channel, pairs on both inputs of a product and none on its result (results of weighted layers stay with what follows
 *   them). 4 bits for weights alone, in blocks. Bias stays float.
 * - `qnn`, `qnn-16`: the QNN provider for Hexagon. Activations asymmetric by tensor in uint8 or uint16; weights by tensor, or
 *   symmetric by output channel. An operator runs on integers only if all it reads and makes is quantized, so results have
 *   pairs too, and what only moves values keeps their grid.
 */

import type { WeightScheme } from "../quant/scheme.js";
import type { ActivationType } from "./qdq-pair.js";

export const QDQ_PROFILES = ["ort-cpu", "tensorrt", "qnn", "qnn-16"] as const;
export type QdqProfile = (typeof QDQ_PROFILES)[number];

interface ProfileRules {
  readonly activations: ActivationType;
  /** Results have pairs too. */
  readonly results: boolean;
  /** 4-bit weights may become MatMulNBits, which is ONNX Runtime's own. */
  readonly ownOperators: boolean;
  /** Why weights cannot be so, or null. */
  readonly refuses: (scheme: WeightScheme) => string | null;
}

const QNN: ProfileRules = { activations: "u8", results: true, ownOperators: false, refuses: qnnRefuses };

const RULES: Readonly<Record<QdqProfile, ProfileRules>> = {
  "ort-cpu": { activations: "i8", results: false, ownOperators: true, refuses: () => null },
  tensorrt: { activations: "i8", results: false, ownOperators: false, refuses: tensorrtRefuses },
  qnn: QNN,
  "qnn-16": { ...QNN, activations: "u16" },
};

export function profileRules(profile: QdqProfile): ProfileRules {
  return RULES[profile];
}

const TENSORRT_BLOCKS: readonly number[] = [64, 128];

function tensorrtRefuses({ bits, granularity, zero, scaleType }: WeightScheme): string | null {
  if (zero.kind === "asymmetric") return "zero points other than 0 are refused: write i8 or i4";
  if (scaleType !== "f32") return "scales must have the type of the activations: leave out f16";
  if (bits === 8) return outputScales(granularity);
  if (bits !== 4) return "there are 8 and 4 bits only";
  return granularity.kind === "group" && granularity.axis === 0 && TENSORRT_BLOCKS.includes(granularity.size)
    ? null
    : `4 bits come in blocks of ${TENSORRT_BLOCKS.join(" or ")}: write i4:g128`;
}

function qnnRefuses({ bits, granularity, zero, scaleType }: WeightScheme): string | null {
  if (scaleType !== "f32") return "scales must be float32: leave out f16";
  if (bits !== 8 && bits !== 4) return "there are 8 and 4 bits only";
  if (zero.kind === "asymmetric" && granularity.kind !== "tensor")
    return "scales by channel are symmetric: write i8:channel";
  return outputScales(granularity);
}

function outputScales(granularity: WeightScheme["granularity"]): string | null {
  if (granularity.kind === "tensor" || (granularity.kind === "channel" && granularity.axis === 1)) return null;
  return "a scale is for the tensor or for an output channel: write i8:tensor or i8:channel";
}
