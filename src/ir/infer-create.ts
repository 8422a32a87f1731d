/** Operators that make tensors from attributes, shapes or scalars. */

import { type Attribute, attrInt, attrInts } from "./graph.js";
import { castContent, count, storeAs } from "./infer-content.js";
import {
  type Call,
  CONTENT_LIMIT,
  constantFact,
  contentInput,
  describe,
  dtypeFact,
  type Rule,
  refuse,
  scalarOf,
  type TensorFact,
  tensorFact,
  tensorInput,
  UNKNOWN,
} from "./infer-fact.js";
import { isFloat } from "./tensor.js";
import { type DType, dtypeFromNumber, elementCount } from "./types.js";

const constant: Rule = (call) => {
  for (const [name, attribute] of call.node.attributes) {
    if (name === "value" || name.startsWith("value_")) return [attributeFact(attribute)];
  }
  return [];
};

function attributeFact(attribute: Attribute): TensorFact {
  switch (attribute.kind) {
    case "tensor":
      return constantFact(attribute.value);
    case "int":
      return tensorFact("i64", [], [Number(attribute.value)]);
    case "ints":
      return tensorFact("i64", [attribute.value.length], attribute.value.map(Number));
    case "float":
      return tensorFact("f32", [], [attribute.value]);
    case "floats":
      return tensorFact("f32", [attribute.value.length], attribute.value);
    case "string":
      return tensorFact("string", []);
    case "strings":
      return tensorFact("string", [attribute.value.length]);
    default:
      return UNKNOWN;
  }
}

const constantOfShape: Rule = (call) => {
  const attribute = call.node.attributes.get("value");
  const fill = attribute?.kind === "tensor" ? constantFact(attribute.value) : tensorFact("f32", [1], [0]);
  const shape = contentInput(call, 0);
  if (shape === null) return [dtypeFact(fill.dtype)];
  if (shape.some((dim) => dim < 0)) refuse(`a tensor of shape ${describe(shape)} cannot be`);
  return [filled(fill.dtype, shape, scalarOf(fill.content))];
};

function filled(dtype: DType | null, shape: readonly number[], value: number | null): TensorFact {
  const elements = elementCount(shape);
  const known = value !== null && elements <= CONTENT_LIMIT;
  return tensorFact(dtype, shape, known ? count(elements, () => value) : null);
}

const shapeOf: Rule = (call) => {
  const { shape } = tensorInput(call, 0);
  if (shape === null) return [dtypeFact("i64")];
  const rank = shape.length;
  const bound = (value: number): number => Math.min(rank, Math.max(0, value < 0 ? value + rank : value));
  const dims = shape.slice(bound(attrInt(call.node, "start", 0)), bound(attrInt(call.node, "end", rank)));
  return [tensorFact("i64", [dims.length], dims)];
};

const size: Rule = (call) => {
  const { shape } = tensorInput(call, 0);
  return [tensorFact("i64", [], shape === null ? null : [elementCount(shape)])];
};

const range: Rule = (call) => {
  const dtype = [0, 1, 2].map((index) => tensorInput(call, index).dtype).find((type) => type !== null) ?? null;
  const [start, limit, delta] = [0, 1, 2].map((index) => scalarOf(contentInput(call, index)));
  if (typeof start !== "number" || typeof limit !== "number" || typeof delta !== "number") return [dtypeFact(dtype)];
  if (delta === 0) refuse("range with a step of 0");
  const length = Math.max(0, Math.ceil((limit - start) / delta));
  if (!Number.isSafeInteger(length)) return [dtypeFact(dtype)];
  return [tensorFact(dtype, [length], length > CONTENT_LIMIT ? null : rangeContent(dtype, start, delta, length))];
};

/** Floats are added up step by step, as the operator's own definition does. */
function rangeContent(dtype: DType | null, start: number, delta: number, length: number): readonly number[] | null {
  if (dtype === null || !isFloat(dtype)) {
    return storeAs(
      dtype,
      count(length, (i) => start + i * delta),
    );
  }
  const values: number[] = [];
  let value = start;
  for (let i = 0; i < length; i++) {
    values.push(value);
    value = storeAs(dtype, [value + delta])?.[0] ?? Number.NaN;
  }
  return values;
}

const eyeLike: Rule = (call) => {
  const x = tensorInput(call, 0);
  const dtype = dtypeFromNumber(attrInt(call.node, "dtype", 0)) ?? x.dtype;
  const [rows, columns] = x.shape ?? [];
  if (x.shape === null || rows === undefined || columns === undefined) return [dtypeFact(dtype)];
  const shift = attrInt(call.node, "k", 0);
  const one = (i: number): number => (Math.floor(i / columns) + shift === i % columns ? 1 : 0);
  const elements = rows * columns;
  return [
    tensorFact(dtype, x.shape, elements > CONTENT_LIMIT ? null : castContent("i64", dtype, count(elements, one))),
  ];
};

const random: Rule = (call) => [
  tensorFact(dtypeFromNumber(attrInt(call.node, "dtype", 1)), attrInts(call.node, "shape")),
];

const hasElement: Rule = (call: Call) => [
  tensorFact("bool", [], call.inputs.length === 0 || call.inputs[0] === null ? [0] : null),
];

/** Every creating operator by qualified name. */
export const CREATE_RULES: ReadonlyMap<string, Rule> = new Map([
  ["Constant", constant],
  ["ConstantOfShape", constantOfShape],
  ["Shape", shapeOf],
  ["Size", size],
  ["Range", range],
  ["EyeLike", eyeLike],
  ["RandomNormal", random],
  ["RandomUniform", random],
  ["OptionalHasElement", hasElement],
]);
