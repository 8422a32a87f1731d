/** Normalisations, quantization and the recurrent operators: ONNX, com.microsoft and com.mambac. */

import { attrInt, qualifiedOp } from "./graph.js";
import { broadcastShapes } from "./infer-content.js";
import {
  at,
  axisIn,
  type Call,
  describe,
  dtypeFact,
  hasInput,
  type Rule,
  refuse,
  type TensorFact,
  tensorFact,
  tensorInput,
} from "./infer-fact.js";
import { type DType, dtypeFromNumber } from "./types.js";

const sameAsFirst: Rule = (call) => {
  const x = tensorInput(call, 0);
  return [tensorFact(x.dtype, x.shape)];
};

/** Outputs y, then statistics with the normalised axes kept as 1. */
const axisNorm: Rule = (call) => {
  const x = tensorInput(call, 0);
  if (x.shape === null) return [dtypeFact(x.dtype)];
  const axis = axisIn(attrInt(call.node, "axis", -1), x.shape.length);
  const scale = tensorInput(call, 1).shape;
  if (scale !== null) broadcastShapes([x.shape, scale]);
  const statistics = tensorFact(
    x.dtype === "f64" ? "f64" : "f32",
    x.shape.map((dim, a) => (a < axis ? dim : 1)),
  );
  return [tensorFact(x.dtype, x.shape), statistics, statistics];
};

/** Inputs x, skip, gamma...; outputs y, mean, 1/deviation and x + skip. */
const skipNorm: Rule = (call) => {
  const [x, skip] = [tensorInput(call, 0), tensorInput(call, 1)];
  if (x.shape === null) return [dtypeFact(x.dtype)];
  if (skip.shape !== null) broadcastShapes([x.shape, skip.shape]);
  const same = tensorFact(x.dtype, x.shape);
  const statistics = tensorFact("f32", x.shape.with(-1, 1));
  return [same, statistics, statistics, same];
};

const batchNorm: Rule = (call) => {
  const x = tensorInput(call, 0);
  const [mean, variance] = [tensorInput(call, 3), tensorInput(call, 4)];
  return [tensorFact(x.dtype, x.shape), dtypeFactLike(mean), dtypeFactLike(variance)];
};

function dtypeFactLike(fact: TensorFact): TensorFact {
  return tensorFact(fact.dtype, fact.shape);
}

const quantize: Rule = (call) => {
  const x = tensorInput(call, 0);
  const declared = dtypeFromNumber(attrInt(call.node, "output_dtype", 0));
  const zero = hasInput(call, 2) ? tensorInput(call, 2).dtype : null;
  const dtype = zero ?? declared ?? (hasInput(call, 2) ? null : "u8");
  return [tensorFact(dtype, x.shape)];
};

const dequantize: Rule = (call) => {
  const x = tensorInput(call, 0);
  const declared = dtypeFromNumber(attrInt(call.node, "output_dtype", 0));
  return [tensorFact(declared ?? tensorInput(call, 1).dtype, x.shape)];
};

const dynamicQuantize: Rule = (call) => [
  tensorFact("u8", tensorInput(call, 0).shape),
  tensorFact("f32", []),
  tensorFact("u8", []),
];

/** Packed query, key, value [B, T, heads * width]; state [B, kv heads, key width, value width], see the operator's spec. */
const linearAttention: Rule = (call) => {
  const [query, key, value, past] = [0, 1, 2, 3].map((index) => tensorInput(call, index));
  if (query === undefined || key === undefined || value === undefined || past === undefined) return [];
  const heads = attrInt(call.node, "q_num_heads", 0);
  const stateHeads = attrInt(call.node, "kv_num_heads", heads);
  const stateType = hasInput(call, 3) ? past.dtype : query.dtype;
  if (query.shape === null || value.shape === null || heads === 0 || stateHeads === 0) {
    return [dtypeFact(query.dtype), tensorFact(stateType, past.shape)];
  }
  const [batch, length, queryWidth] = threeDims(query.shape);
  const [valueBatch, valueLength, valueWidth] = threeDims(value.shape);
  if (batch !== valueBatch || length !== valueLength || queryWidth % heads !== 0 || valueWidth % stateHeads !== 0) {
    refuse(`query ${describe(query.shape)} and value ${describe(value.shape)} for ${heads} and ${stateHeads} heads`);
  }
  const width = valueWidth / stateHeads;
  const state = past.shape ?? [batch, stateHeads, queryWidth / heads, width];
  return [tensorFact(query.dtype, [batch, length, Math.max(heads, stateHeads) * width]), tensorFact(stateType, state)];
};

function threeDims(shape: readonly number[]): [number, number, number] {
  if (shape.length !== 3) refuse(`${describe(shape)} has not three dimensions`);
  return [at(shape, 0), at(shape, 1), at(shape, 2)];
}

/** Inputs x [B, C, L], weight [C, 1, K], bias, past [B, C, (K-1) * dilation]. */
const causalConvWithState: Rule = (call) => {
  const [x, weight, past] = [tensorInput(call, 0), tensorInput(call, 1), tensorInput(call, 3)];
  const y = tensorFact(x.dtype, x.shape);
  if (hasInput(call, 3)) return [y, tensorFact(past.dtype, past.shape)];
  const plain = attrInt(call.node, "channels_last", 0) === 0;
  if (x.shape?.length !== 3 || weight.shape === null || !plain) return [y, dtypeFact(x.dtype)];
  const [batch, channels] = threeDims(x.shape);
  const kernel = at(weight.shape, weight.shape.length - 1);
  const dilation = attrInt(call.node, "dilation", 1);
  return [y, tensorFact(x.dtype, [batch, channels, (kernel - 1) * dilation])];
};

/** `Mamba1Scan*` and `Mamba2Scan*`: y as x, present as the state format says. Source: runtime-ops/README.md. */
function scanRule(family: "Mamba1" | "Mamba2"): Rule {
  return (call) => {
    const [x, past] = [tensorInput(call, 0), tensorInput(call, 7)];
    const y = tensorFact(x.dtype, x.shape);
    const dtype = stateType(call);
    const batch = x.shape?.[0] ?? past.shape?.[0];
    if (batch === undefined) return [y, dtypeFact(dtype)];
    const state = [batch, ...stateShape(call, family, dtype)];
    if (past.shape !== null && describe(past.shape) !== describe(state)) {
      refuse(`past ${describe(past.shape)} where ${describe(state)} is needed`);
    }
    return [y, tensorFact(dtype, state)];
  };
}

function stateType(call: Call): DType {
  if (call.node.op.includes("ScanF32")) return "f32";
  return call.node.op.includes("ScanF16") ? "f16" : "u8";
}

function stateShape(call: Call, family: "Mamba1" | "Mamba2", dtype: DType): number[] {
  const { node } = call;
  const [width, states] = [attrInt(node, "head_dim", 1), attrInt(node, "d_state", 1)];
  const channels = attrInt(node, "channels", 1);
  if (dtype !== "u8") {
    return family === "Mamba2" ? [attrInt(node, "num_heads", 1), width, states] : [channels, states];
  }
  const codes = node.op.includes("ScanH4") ? (width * states) / 2 : width * states;
  const heads = family === "Mamba2" ? attrInt(node, "num_heads", 1) : channels / width;
  return [heads, codes + 2 * width + 2 * states];
}

/** `CausalConv` and `CausalConvSilu`. Source: runtime-ops/README.md. */
const causalConv: Rule = (call) => {
  const [x, past] = [tensorInput(call, 0), tensorInput(call, 3)];
  if (x.shape === null) return [dtypeFact(x.dtype), tensorFact(past.dtype, past.shape)];
  const [batch] = threeDims(x.shape);
  const state = [batch, attrInt(call.node, "channels", at(x.shape, 1)), attrInt(call.node, "state_width", 0)];
  if (past.shape !== null && describe(past.shape) !== describe(state)) {
    refuse(`past ${describe(past.shape)} where ${describe(state)} is needed by ${qualifiedOp(call.node)}`);
  }
  return [tensorFact(x.dtype, x.shape), tensorFact(x.dtype ?? past.dtype, state)];
};

/** Those with tokens in rows: y, the state, and with `Split` two more parts of the channels. */
const causalConvRows: Rule = (call) => {
  const { node } = call;
  const [x, past] = [tensorInput(call, 0), tensorInput(call, 3)];
  const size = (name: string): number => attrInt(node, name, 0);
  const channels = size("channels");
  const rows = x.shape === null ? null : threeDims(x.shape);
  const part = (width: number): TensorFact => tensorFact(x.dtype, rows === null ? null : [rows[0], rows[1], width]);
  const state = rows === null ? past.shape : [rows[0], channels, size("state_width")];
  const present = tensorFact("f32", state);
  if (!node.op.endsWith("Split")) return [part(channels), present];
  const [one, two] = [size("first_size"), size("second_size")];
  return [part(one), present, part(two), part(channels - one - two)];
};

const SCAN_FORMATS = ["F32", "F16", "F16Token", "H8", "H8Max", "H8Token", "H8MaxToken", "H4", "H4Max", "H4Token"];

const SAME_AS_FIRST = [
  "Softmax",
  "LogSoftmax",
  "Hardmax",
  "LpNormalization",
  "MeanVarianceNormalization",
  "InstanceNormalization",
  "GroupNormalization",
  "LRN",
  "ReverseSequence",
  "RotaryEmbedding",
  "com.microsoft.RotaryEmbedding",
  "com.microsoft.MoE",
  "com.microsoft.QMoE",
];

/** Every neural network operator by qualified name. */
export const NN_RULES: ReadonlyMap<string, Rule> = new Map<string, Rule>([
  ...SAME_AS_FIRST.map((op): [string, Rule] => [op, sameAsFirst]),
  ...[...SCAN_FORMATS, "H4MaxToken"].flatMap((format): [string, Rule][] => [
    [`com.mambac.Mamba1Scan${format}`, scanRule("Mamba1")],
    [`com.mambac.Mamba2Scan${format}`, scanRule("Mamba2")],
  ]),
  ["com.mambac.CausalConv", causalConv],
  ["com.mambac.CausalConvSilu", causalConv],
  ...["Rows", "SiluRows", "Split", "SiluSplit"].map((op): [string, Rule] => [
    `com.mambac.CausalConv${op}`,
    causalConvRows,
  ]),
  ["LinearAttention", linearAttention],
  ["com.microsoft.LinearAttention", linearAttention],
  ["CausalConvWithState", causalConvWithState],
  ["com.microsoft.CausalConvWithState", causalConvWithState],
  ["LayerNormalization", axisNorm],
  ["RMSNormalization", axisNorm],
  ["SimplifiedLayerNormalization", axisNorm],
  ["com.microsoft.SimplifiedLayerNormalization", axisNorm],
  ["SkipLayerNormalization", skipNorm],
  ["com.microsoft.SkipLayerNormalization", skipNorm],
  ["SkipSimplifiedLayerNormalization", skipNorm],
  ["com.microsoft.SkipSimplifiedLayerNormalization", skipNorm],
  ["BatchNormalization", batchNorm],
  ["QuantizeLinear", quantize],
  ["com.microsoft.QuantizeLinear", quantize],
  ["DequantizeLinear", dequantize],
  ["com.microsoft.DequantizeLinear", dequantize],
  ["DynamicQuantizeLinear", dynamicQuantize],
]);
