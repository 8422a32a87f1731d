/** One node on constant inputs for every operator that inference has a rule for. */

import type { AttributeInput } from "../../src/ir/builder.js";
import { attr } from "../../src/ir/graph.js";
import { boolTensor, f32Tensor, i64Tensor, type Tensor, tensorFromBytes } from "../../src/ir/tensor.js";

/** A node; null is an omitted input. */
export interface Case {
  readonly op: string;
  readonly inputs: readonly (Tensor | null)[];
  readonly attributes?: Readonly<Record<string, AttributeInput>>;
  /** How many outputs, or which ones by index. */
  readonly outputs?: number | readonly number[];
  readonly domain?: string;
}

function node(
  op: string,
  inputs: readonly (Tensor | null)[],
  attributes: Readonly<Record<string, AttributeInput>> = {},
  outputs: number | readonly number[] = 1,
  domain: string = "",
): Case {
  return { op, inputs, attributes, outputs, domain };
}

const f = (shape: readonly number[], ...values: number[]): Tensor => f32Tensor(shape, filled(shape, values));
const i = (shape: readonly number[], ...values: (number | bigint)[]): Tensor => i64Tensor(shape, filled(shape, values));
const b = (shape: readonly number[], ...values: number[]): Tensor =>
  boolTensor(
    shape,
    filled(shape, values).map((value) => value !== 0),
  );
const i32 = (...values: number[]): Tensor =>
  tensorFromBytes("i32", [values.length], new Uint8Array(Int32Array.from(values).buffer));
const u8 = (...values: number[]): Tensor => tensorFromBytes("u8", [values.length], Uint8Array.from(values));

/** The values given, or else a few different ones of both signs. */
function filled<T extends number | bigint>(shape: readonly number[], values: readonly T[]): (T | number)[] {
  const count = shape.reduce((product, dim) => product * dim, 1);
  return values.length > 0 ? [...values] : Array.from({ length: count }, (_, at) => ((at * 5) % 7) - 2);
}

const bytes = (shape: readonly number[]): Tensor =>
  tensorFromBytes("u8", shape, new Uint8Array(shape.reduce((product, dim) => product * dim, 1)));

const MICROSOFT = "com.microsoft";

const MAX = 2n ** 63n - 1n;
const MIN = -(2n ** 63n);

/** Operators whose elements are computed. */
export const EXACT: readonly Case[] = [
  node("Reshape", [f([2, 3, 4]), i([3], 0, -1, 2)]),
  node("Reshape", [f([0, 5]), i([2], 5, -1)]),
  node("Reshape", [f([0, 5]), i([2], 3, 0)], { allowzero: 1 }),
  node("Reshape", [f([1]), i([0])]),
  node("Flatten", [f([2, 3, 4])], { axis: -1 }),
  node("Flatten", [f([2, 3, 4])], { axis: 0 }),
  node("Flatten", [f([2, 3])], { axis: 2 }),
  node("Squeeze", [f([1, 3, 1])]),
  node("Squeeze", [f([1, 3, 1]), i([1], -1)]),
  node("Squeeze", [f([1, 3, 1]), i([0])]),
  node("Unsqueeze", [f([2, 3]), i([2], -1, 0)]),
  node("Unsqueeze", [f([]), i([1], 0)]),
  node("Transpose", [f([2, 3, 4])], { perm: [1, 2, 0] }),
  node("Transpose", [f([2, 3, 4])]),
  node("Expand", [f([3, 1]), i([3], 2, 1, 4)]),
  node("Expand", [f([3, 1]), i([3], 2, 1, 0)]),
  node("Expand", [f([3, 2]), i([1], 1)]),
  node("Tile", [f([2, 3]), i([2], 2, 3)]),
  node("Tile", [i([2, 3]), i([2], 0, 1)]),
  node("Pad", [f([2, 3]), i([4], 1, 0, -1, 2), f([], 9)]),
  node("Pad", [f([2, 3]), i([2], 1, 2), null, i([1], -1)]),
  node("Pad", [i([3]), i([2], 2, 2)], { mode: "reflect" }),
  node("Pad", [i([3]), i([2], 2, 1)], { mode: "edge" }),
  node("Pad", [i([3]), i([2], 3, 3)], { mode: "wrap" }),
  node("Concat", [f([2, 1]), f([2, 2]), f([2, 0])], { axis: -1 }),
  node("Concat", [i([1]), i([0]), i([2])], { axis: 0 }),
  node("Split", [f([7])], { num_outputs: 3 }, 3),
  node("Split", [f([2, 6]), i([3], 1, 0, 5)], { axis: -1 }, 3),
  node("Slice", [f([7]), i([1], 1), i([1], MAX)]),
  node("Slice", [f([7]), i([1], MAX), i([1], MIN), i([1], 0), i([1], -2)]),
  node("Slice", [f([7]), i([1], -10), i([1], MIN), i([1], 0), i([1], -1)]),
  node("Slice", [f([0]), i([1], -1), i([1], MIN), i([1], 0), i([1], -1)]),
  node("Slice", [f([4, 5]), i([2], 1, -3), i([2], 3, -1), i([2], 1, 0)]),
  node("Slice", [f([7]), i([1], 1), i([1], MAX), i([1], 0), i([1], MAX)]),
  node("Slice", [f([7]), i([1], 5), i([1], 2)]),
  node("Gather", [f([2, 3, 4]), i([2, 2], 0, -1, 1, 2)], { axis: 1 }),
  node("Gather", [i([3]), i([], -1)]),
  node("Gather", [f([2, 3]), i([0])], { axis: -1 }),
  node("GatherElements", [f([2, 3]), i([1, 2], -1, 0)], { axis: 1 }),
  node("GatherND", [f([2, 3, 4]), i([2, 2], 1, -1, 0, 2)]),
  node("GatherND", [f([2, 3, 4]), i([2, 1], 1, 2)], { batch_dims: 1 }),
  node("ScatterND", [f([2, 3]), i([1, 1], -1), f([1, 3], 7, 8, 9)]),
  node("ScatterND", [f([2, 3]), i([2, 2], 0, 2, 1, 0), f([2], 7, 8)]),
  node("ScatterElements", [f([2, 3]), i([2, 1], 2, -2), f([2, 1], 7, 8)], { axis: 1 }),
  node("OneHot", [i([3], 0, -1, 5), i([1], 3), f([2], 0, 1)], { axis: 0 }),
  node("OneHot", [i([2, 2], 0, 1, 2, 3), i([1], 3), i([2], 5, 6)]),
  node("NonZero", [f([2, 3], 0, 1, 0, 2, 0, 3)]),
  node("NonZero", [i([2], 0, 0)]),
  node("Compress", [f([2, 3]), b([3], 0, 1, 1)], { axis: 1 }),
  node("Compress", [f([2, 3]), b([4], 1, 0, 0, 1)]),
  node("Trilu", [f([2, 3, 4]), i([], 1)], { upper: 1 }),
  node("Trilu", [i([3, 3]), i([], -1)], { upper: 0 }),
  node("Shape", [f([2, 3, 4])], { start: -9, end: -1 }),
  node("Shape", [f([2, 3, 4])], { start: 2, end: 1 }),
  node("Shape", [f([])]),
  node("Size", [f([2, 0, 4])]),
  node("ConstantOfShape", [i([2], 2, 3)], { value: attr.tensor(i([1], 7)) }),
  node("ConstantOfShape", [i([0])]),
  node("Range", [i([], 5), i([], -1), i([], -2)]),
  node("Range", [i([], 5), i([], 5), i([], 1)]),
  node("Range", [f([], 0.1), f([], 1.05), f([], 0.1)]),
  node("EyeLike", [f([2, 3])], { k: 1 }),
  node("ReduceSum", [f([2, 3]), i([1], -1)], { keepdims: 0 }),
  node("ReduceSum", [f([2, 3])]),
  node("ReduceSum", [f([2, 3]), i([0])], { noop_with_empty_axes: 1 }),
  node("ReduceProd", [i([3], 2, 3, 4), i([1], 0)], { keepdims: 0 }),
  node("ReduceProd", [i([0]), i([1], 0)], { keepdims: 0 }),
  node("ReduceSum", [f([2, 0]), i([1], 1)]),
  node("ReduceMax", [i([2, 3]), i([1], 0)]),
  node("ReduceMin", [f([2, 3, 2]), i([2], 0, 2)]),
  node("ReduceMean", [i32(-3, -4)]),
  node("ReduceSumSquare", [f([2, 3]), i([1], 1)]),
  node("ReduceL1", [i([2, 3]), i([1], 1)]),
  node("ArgMax", [f([2, 3], 1, 3, 3, 5, 4, 5)], { axis: 1 }),
  node("ArgMax", [f([2, 3], 1, 3, 3, 5, 4, 5)], { axis: -1, select_last_index: 1, keepdims: 0 }),
  node("ArgMin", [f([2, 3], 1, 3, 3, 5, 4, 5)], { axis: 0 }),
  node("CumSum", [f([2, 4]), i([], 1)], { exclusive: 1, reverse: 1 }),
  node("CumSum", [i([2, 4]), i([], -2)]),
  node("CumSum", [f([5]), i([], 0)], { reverse: 1 }),
  node("Add", [i([2, 1]), i([3])]),
  node("Sub", [f([]), f([2, 3])]),
  node("Mul", [i([0, 1]), i([3])]),
  node("Div", [i([3], -7, 7, -7), i([3], 2, -2, -2)]),
  node("Mod", [i([3], -7, 7, -7), i([3], 2, -3, -3)]),
  node("Mod", [i([3], -7, 7, -7), i([3], 2, -3, -3)], { fmod: 1 }),
  node("Mod", [f([3], -7.5, 7.5, -7.5), f([3], 2, -3, -3)], { fmod: 1 }),
  node("Pow", [i([3], 2, -3, 2), i([3], 3, 3, -1)]),
  node("Pow", [f([3], 2, 3, 4), i([], 2)]),
  node("Add", [i32(2 ** 31 - 1), i32(1)]),
  node("Sub", [u8(3), u8(5)]),
  node("BitwiseAnd", [i([2], 12, -1), i([2], 10, 6)]),
  node("BitwiseOr", [i([2], 12, -8), i([2], 10, 6)]),
  node("BitwiseXor", [i([2], 12, -8), i([2], 10, 6)]),
  node("BitwiseNot", [i([2], 12, -8)]),
  node("BitShift", [u8(200, 3), u8(1, 2)], { direction: "LEFT" }),
  node("BitShift", [u8(200, 3), u8(1, 2)], { direction: "RIGHT" }),
  node("Equal", [i([2, 1]), i([2])]),
  node("Greater", [f([3]), f([], 1)]),
  node("GreaterOrEqual", [i([3]), i([], 1)]),
  node("Less", [i([2], MAX, MIN), i([], 4)]),
  node("LessOrEqual", [i([3]), i([], 1)]),
  node("And", [b([2, 1], 1, 0), b([2], 1, 0)]),
  node("Or", [b([2, 1], 1, 0), b([2], 1, 0)]),
  node("Xor", [b([2, 1], 1, 0), b([2], 1, 0)]),
  node("Not", [b([2], 1, 0)]),
  node("Max", [i([3]), i([], 2), i([3, 1])]),
  node("Min", [i([], 9), i([1], MAX)]),
  node("Sum", [f([3]), f([2, 1]), f([])]),
  node("Where", [b([2, 1], 1, 0), i([3]), i([], MAX)]),
  node("Clip", [f([4], -2, 0, 1.5, 9), f([], -1), f([], 2)]),
  node("Clip", [i([3], -2, 0, 9), null, i([], 2)]),
  node("Abs", [i([3])]),
  node("Neg", [f([3])]),
  node("Sign", [i([3], -5, 0, 9)]),
  node("Floor", [f([3], -1.5, 0.5, 2)]),
  node("Ceil", [f([3], -1.5, 0.5, 2)]),
  node("Round", [f([4], 0.5, 1.5, -2.5, 2.4)]),
  node("Relu", [f([3])]),
  node("Reciprocal", [f([3], 3, -2, 7)]),
  node("Sqrt", [f([3], 3, 2, 7)]),
  node("IsNaN", [f([3], Number.NaN, 1, Number.POSITIVE_INFINITY)]),
  node("IsInf", [f([3], Number.NEGATIVE_INFINITY, 1, Number.POSITIVE_INFINITY)], { detect_negative: 0 }),
  node("Identity", [i([2])]),
  node("Cast", [f([4], -1.7, 0.2, 3.9, 2 ** 40)], { to: 7 }),
  node("Cast", [i([3], 2 ** 40 + 3, -2, 255)], { to: 6 }),
  node("Cast", [i([3], 300, -2, 255)], { to: 2 }),
  node("Cast", [f([3], Number.NaN, 0, -0.5)], { to: 9 }),
  node("Cast", [i([2], 2 ** 24 + 1, MAX)], { to: 1 }),
  node("Cast", [f([3], 1 / 3, 65519, 1e-7)], { to: 10 }),
  node("CastLike", [f([2], 1.5, -1.5), i([1])]),
  node("Dropout", [f([2])]),
  node("Identity", [b([2], 1, 0)]),
];

/** Operators of which only the shapes and types are told. */
export const SHAPES: readonly Case[] = [
  node("Exp", [f([2, 3])]),
  node("Erf", [f([2, 3])]),
  node("LeakyRelu", [f([2, 3])]),
  node("PRelu", [f([2, 3]), f([3])]),
  node("Gelu", [f([2, 3])]),
  node("Mean", [f([2, 1]), f([3])]),
  node("MatMul", [f([3]), f([2, 3, 4])]),
  node("MatMul", [f([2, 3]), f([3])]),
  node("MatMul", [f([3]), f([3])]),
  node("MatMul", [f([5, 1, 2, 3]), f([4, 3, 6])]),
  node("MatMul", [f([2, 0]), f([0, 3])]),
  node("Gemm", [f([3, 2]), f([4, 3]), f([4])], { transA: 1, transB: 1 }),
  node("MatMulInteger", [
    tensorFromBytes("u8", [2, 3], new Uint8Array(6)),
    tensorFromBytes("i8", [3, 4], new Uint8Array(12)),
  ]),
  node("Einsum", [f([2, 3, 4]), f([2, 4, 5])], { equation: "bij, bjk -> bik" }),
  node("Einsum", [f([2, 3, 4]), f([4, 5])], { equation: "...j,jk" }),
  node("Einsum", [f([3, 3])], { equation: "ii->i" }),
  node("Einsum", [f([2, 3]), f([2, 3])], { equation: "ij,ij->" }),
  node("Einsum", [f([7, 2, 3]), f([3, 2])], { equation: "a...b,b...->...a" }),
  node("Einsum", [f([2, 1]), f([4, 3])], { equation: "ij,jk->ik" }),
  node("Conv", [f([2, 4, 9]), f([4, 1, 3])], { group: 4, pads: [2, 0], strides: [2], dilations: [2] }),
  node("Conv", [f([1, 2, 8, 9]), f([5, 2, 3, 2])], { auto_pad: "SAME_UPPER", strides: [2, 3] }),
  node("ConvTranspose", [f([1, 2, 5]), f([2, 3, 4])], { strides: [3], output_padding: [1], pads: [1, 0] }),
  node("MaxPool", [f([1, 1, 4])], { kernel_shape: [3], strides: [2], ceil_mode: 1, pads: [1, 1] }, 2),
  node("AveragePool", [f([1, 2, 7, 7])], { kernel_shape: [2, 3] }),
  node("GlobalAveragePool", [f([2, 3, 4, 5])]),
  node("Resize", [f([1, 1, 4, 5]), null, f([4], 1, 1, 2, 1.5)]),
  node("Resize", [f([1, 1, 4, 5]), null, null, i([4], 1, 1, 7, 2)]),
  node("TopK", [f([2, 5]), i([1], 3)], {}, 2),
  node("Softmax", [f([2, 3])], { axis: 0 }),
  node("LogSoftmax", [f([2, 3])]),
  node("LayerNormalization", [f([2, 3, 4]), f([3, 4])], { axis: 1 }, 3),
  node("ReduceL2", [f([2, 3]), i([1], 1)]),
  node("ReduceLogSumExp", [f([2, 3])], { keepdims: 0 }),
  node("QuantizeLinear", [f([2, 3]), f([], 1)]),
  node("QuantizeLinear", [f([2, 3]), f([], 1)], { output_dtype: 3 }),
  node("DequantizeLinear", [u8(1, 2), f([], 1)]),
  node("DynamicQuantizeLinear", [f([2, 3])], {}, 3),
  node("InstanceNormalization", [f([1, 3, 4]), f([3]), f([3])]),
  node("GroupNormalization", [f([1, 4, 3]), f([4]), f([4])], { num_groups: 2 }),
  node("BatchNormalization", [f([1, 3, 4]), f([3]), f([3]), f([3]), f([3], 1, 1, 1)]),
  node("SimplifiedLayerNormalization", [f([2, 3, 4]), f([4])], {}, 2),
  node("SkipSimplifiedLayerNormalization", [f([2, 3, 4]), f([2, 3, 4]), f([4])], {}, [0, 3], MICROSOFT),
  node("SkipLayerNormalization", [f([2, 3, 4]), f([2, 3, 4]), f([4])], {}, 1, MICROSOFT),
  node("FusedMatMul", [f([2, 3, 4]), f([2, 5, 4])], { transB: 1 }, 1, MICROSOFT),
  node("FastGelu", [f([2, 3])], {}, 1, MICROSOFT),
  node("BiasGelu", [f([2, 3]), f([3])], {}, 1, MICROSOFT),
  node(
    "MatMulNBits",
    [f([2, 3, 16]), bytes([8, 1, 8]), f([8])],
    { K: 16, N: 8, bits: 4, block_size: 16 },
    1,
    MICROSOFT,
  ),
  node("DynamicQuantizeMatMul", [f([2, 3]), bytes([3, 4]), f([], 1)], {}, 1, MICROSOFT),
  node(
    "GatherBlockQuantized",
    [bytes([5, 8]), i([2, 2], 0, 1, 2, 3), f([5, 1])],
    { bits: 4, block_size: 16, quantize_axis: 1 },
    1,
    MICROSOFT,
  ),
  node(
    "LinearAttention",
    [f([2, 3, 8]), f([2, 3, 4]), f([2, 3, 10])],
    { q_num_heads: 4, kv_num_heads: 2, update_rule: "linear" },
    2,
    MICROSOFT,
  ),
  node(
    "LinearAttention",
    [f([2, 3, 8]), f([2, 3, 8]), f([2, 3, 12]), f([2, 2, 4, 6]), f([2, 3, 2])],
    { q_num_heads: 2, kv_num_heads: 2, update_rule: "gated" },
    2,
    MICROSOFT,
  ),
  node(
    "LinearAttention",
    [f([2, 3, 4]), f([2, 3, 4]), f([2, 3, 24]), f([2, 4, 2, 6])],
    { q_num_heads: 2, kv_num_heads: 4, update_rule: "linear" },
    2,
    MICROSOFT,
  ),
  node("CausalConvWithState", [f([2, 3, 5]), f([3, 1, 4])], {}, 2, MICROSOFT),
  node("CausalConvWithState", [f([2, 3, 5]), f([3, 1, 4]), f([3]), f([2, 3, 3])], { activation: "silu" }, 2, MICROSOFT),
  node("CausalConvWithState", [f([2, 3, 5]), f([3, 1, 4])], { dilation: 2 }, 2, MICROSOFT),
];

/** Before opset 13, and before 11: axes, bounds and pads as attributes. */
export const OLD: readonly Case[] = [
  node("Squeeze", [f([1, 3, 1])], { axes: [-1] }),
  node("Unsqueeze", [f([2, 3])], { axes: [0, 3] }),
  node("Split", [f([2, 6])], { axis: 1, split: [1, 5] }, 2),
  node("Split", [f([2, 6])], { axis: 1 }, 3),
  node("ReduceSum", [f([2, 3])], { axes: [1], keepdims: 0 }),
  node("ReduceMax", [f([2, 3])], { axes: [-1] }),
  node("Softmax", [f([2, 3, 4])]),
];

export const OLDER: readonly Case[] = [
  node("Slice", [f([4, 5])], { starts: [1, -3], ends: [2 ** 31, -1], axes: [1, 0] }),
  node("Slice", [f([4, 5])], { starts: [1], ends: [3] }),
  node("Pad", [f([2, 3])], { pads: [1, 0, 0, 2], value: attr.float(3) }),
  node("Clip", [f([4], -2, 0, 1.5, 9)], { min: attr.float(-1), max: attr.float(2) }),
  node("TopK", [f([2, 5])], { k: 2 }, 2),
  node("Dropout", [f([2])]),
  node("Upsample", [f([1, 1, 2, 3]), f([4], 1, 1, 2, 2)]),
];

/** Nodes that cannot run. */
export const REFUSED: readonly Case[] = [
  node("Reshape", [f([2, 3]), i([2], 4, -1)]),
  node("Reshape", [f([2, 3]), i([2], 3, 3)]),
  node("Reshape", [f([2, 3]), i([2], -1, -1)]),
  node("Reshape", [f([0, 5]), i([2], 0, -1)]),
  node("Reshape", [f([2]), i([3], 1, 2, 0)]),
  node("Squeeze", [f([2, 1]), i([1], 0)]),
  node("Unsqueeze", [f([2]), i([2], 0, 0)]),
  node("Unsqueeze", [f([2]), i([1], 3)]),
  node("Transpose", [f([2, 3])], { perm: [0, 0] }),
  node("Expand", [f([2]), i([1], 3)]),
  node("Tile", [f([2, 3]), i([1], 2)]),
  node("Pad", [f([2]), i([2], -2, -1)]),
  node("Concat", [f([2, 3]), f([2, 4])], { axis: 0 }),
  node("Concat", [f([2, 3]), f([2])], { axis: 0 }),
  node("Split", [f([5])], { num_outputs: 4 }, 4),
  node("Split", [f([5]), i([2], 2, 2)], {}, 2),
  node("Slice", [f([5]), i([1], 0), i([1], 2), i([1], 0), i([1], 0)]),
  node("Gather", [f([3]), i([1], 3)]),
  node("Gather", [f([3]), i([1], -4)]),
  node("GatherElements", [f([3]), i([1], 3)]),
  node("GatherND", [f([2, 3]), i([1, 3])]),
  node("ScatterND", [f([2, 3]), i([1, 1], 0), f([1, 2])]),
  node("TopK", [f([2]), i([1], 3)], {}, 2),
  node("Add", [f([2]), f([3])]),
  node("Where", [b([2], 1, 0), f([3]), f([])]),
  node("MatMul", [f([2, 3]), f([2, 3])]),
  node("MatMul", [f([2, 2, 3]), f([3, 3, 2])]),
  node("Gemm", [f([2, 3]), f([3, 4]), f([3])]),
  node("Einsum", [f([2, 3]), f([2, 3])], { equation: "ij,jk->ik" }),
  node("Einsum", [f([2, 3])], { equation: "ijk->i" }),
  node("Conv", [f([1, 1, 3]), f([1, 1, 4])]),
  node("Conv", [f([1, 4, 9]), f([4, 2, 3])]),
  node("ReduceSum", [f([2]), i([1], 1)]),
  node("Range", [i([], 0), i([], 5), i([], 0)]),
  node("CumSum", [f([2]), i([], 1)]),
  node(
    "MatMulNBits",
    [f([2, 3, 15]), bytes([8, 1, 8]), f([8])],
    { K: 16, N: 8, bits: 4, block_size: 16 },
    1,
    MICROSOFT,
  ),
];
